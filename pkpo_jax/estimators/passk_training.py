"""Pass@k Training: advantages from binary rewards, normalised as in GRPO.

Paper B is "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning
Models" (Chen et al., arXiv 2508.10751). All functions return advantages in the MEAN convention of
GRPO, in which a trainer averages over the samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups

Method = Literal["full", "bootstrap", "analytical", "exceeding", "combination", "adaptive"]


def passk_training_advantages(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    *,
    method: Method = "analytical",
    key: jax.Array | None = None,
    entropy: jax.typing.ArrayLike | None = None,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the advantages of Pass@k Training (arXiv 2508.10751, sections 2.2-2.4 and 4.2).

    Of N samples of a prompt, N+ are right and N- are wrong. The chance that k of them hold a right
    one is R = 1 - C(N-, k)/C(N, k), and sigma = sqrt(R (1-R)). The methods are

      "full"         consecutive disjoint groups of k samples, the rest dropped. The reward of a
                     group is its best one. Group rewards are normalised by their mean and
                     population standard deviation, and a sample takes its group's advantage
                     (section 2.2).
      "bootstrap"    N groups of k distinct samples, sampled with `key`. A sample SUMS the
                     advantages of the groups that hold it (equation 6), so the scale is about k
                     times that of the other methods.
      "analytical"   the limit of "bootstrap" for many groups, divided by k. Right samples have
                     A+ = (1-R)/sigma, and wrong ones
                     A- = (1 - R - C(N- - 1, k-1)/C(N-1, k-1))/sigma (equations 11-15). At k = 1
                     this is GRPO with the population standard deviation.
      "exceeding"    "analytical" times 4 / (10 ln(N+ + 0.5)) (equation 17).
      "combination"  (N+/N) A_pass@k + (1 - N+/N) A_pass@1, both from "analytical" (equation 18).
      "adaptive"     "analytical", with k = 1 for the half of the batch's prompts whose `entropy` is
                     higher, because the policy explores enough there (section 4.2.3).

    The division by sigma makes them biased estimates of the gradient of pass@k: each prompt is
    weighted by 1/sigma of its own samples. Up to this division, "analytical" is the weight c_i of
    the baseline "centered" of `pkpo_weights`, times a factor that changes with k:
    sigma A_i = q_i - rho_k = c_i (N-k)/k.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not. An int or NumPy value outside 1..n raises. A JAX array is clipped to 1..n; so
        is every k in a group of which `where` keeps fewer than k.
      method: one of the six above.
      key: random key for "bootstrap". Under vmap or shard_map over prompts, give each call its own
        key.
      entropy: [...] mean policy entropy of each prompt, for "adaptive". The half is taken of the
        prompts of this call, so do not map the call over prompts.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups without a right answer. Except for
      "combination" and "adaptive", it is 0 as well where all k-subsets hold a right answer.

    Raises:
      ValueError: unknown method, `key` or `entropy` missing, static k outside 1..n, shapes that do
        not fit, or values of `correct` other than 0 and 1, as in `pass_at_k`.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.passk_training_advantages([1, 0, 0, 0], k=2))
    [ 1.         -0.33333334 -0.33333334 -0.33333334]
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r}; expected one of {', '.join(get_args(Method))}.")
    correct, valid = _groups.as_correct(correct, where)
    batch, size = correct.shape[:-1], correct.shape[-1]
    count = jnp.maximum(valid.sum(-1, dtype=jnp.int32), 1)
    k = jnp.clip(_groups.check_k(k, batch, size, largest=size), 1, count)
    if method == "full":
        return _full(correct, k, valid)
    if method == "bootstrap":
        if key is None:
            raise ValueError("method='bootstrap' samples groups; give key=jax.random.key(...).")
        return _bootstrap(correct, k, valid, key)
    if method == "adaptive":
        if entropy is None or jnp.shape(entropy) != batch:
            given = None if entropy is None else jnp.shape(entropy)
            raise ValueError(f"entropy has shape {given}; method='adaptive' needs one of {batch}.")
        k = jnp.where(_higher_half(jnp.asarray(entropy)), 1, k)
    advantages = _analytical(correct, k, valid)
    right = correct.sum(-1, keepdims=True, dtype=jnp.float32)
    if method == "exceeding":
        advantages *= 4.0 / (10.0 * jnp.log(jnp.maximum(right, 1.0) + 0.5))
    if method == "combination":
        rate = right / count[..., None].astype(jnp.float32)
        pass_at_1 = _analytical(correct, jnp.ones_like(k), valid)
        advantages = rate * advantages + (1.0 - rate) * pass_at_1
    return advantages


def _analytical(correct: jax.Array, k: jax.Array, valid: jax.Array) -> jax.Array:
    right = correct.sum(-1, keepdims=True, dtype=jnp.float32)
    wrong = valid.sum(-1, keepdims=True, dtype=jnp.float32) - right
    # With miss = 1 - R = C(N-, k)/C(N, k), which is a product of ratios, the advantages are
    # A+ = sqrt(miss / (1-miss)) and A- = -(N+/N-) A+.
    ratios = _groups.miss_ratios(correct, valid)
    taken = jnp.arange(correct.shape[-1]) < k[..., None]
    miss = jnp.where(taken, ratios, 1.0).prod(-1, keepdims=True)
    odds = jnp.sqrt(jnp.where(right > 0, miss / jnp.where(right > 0, 1.0 - miss, 1.0), 0.0))
    loss = -odds * right / jnp.maximum(wrong, 1.0)
    return jnp.where(valid, jnp.where(correct, odds, loss), 0.0)


def _full(correct: jax.Array, k: jax.Array, valid: jax.Array) -> jax.Array:
    # Valid samples come first, in their given order, which `start` and `end` count in.
    order = jnp.argsort(~valid, -1, stable=True)
    k, size = k[..., None], correct.shape[-1]
    right = jnp.cumsum(jnp.take_along_axis(correct, order, -1), -1)
    right = jnp.pad(right, [(0, 0)] * (right.ndim - 1) + [(1, 0)])
    start = jnp.arange(size) // k * k
    used = start + k <= valid.sum(-1, keepdims=True)
    end = jnp.where(used, start + k, start)
    solved = jnp.take_along_axis(right, end, -1) > jnp.take_along_axis(right, start, -1)
    # Each group counts once in the mean and the deviation, at its first sample.
    advantages = _normalise(solved, used & (jnp.arange(size) == start))
    advantages = jnp.where(used, advantages, 0.0)
    place = jnp.maximum(jnp.cumsum(valid, -1) - 1, 0)
    return jnp.where(valid, jnp.take_along_axis(advantages, place, -1), 0.0)


def _bootstrap(correct: jax.Array, k: jax.Array, valid: jax.Array, key: jax.Array) -> jax.Array:
    noise = jax.random.uniform(key, (*correct.shape, correct.shape[-1]), jnp.float32)
    noise = jnp.where(valid[..., None, :], noise, jnp.inf)
    rank = jnp.argsort(jnp.argsort(noise, -1), -1)
    member = (rank < k[..., None, None]) & valid[..., None, :]
    # There are as many groups as valid samples.
    solved = (member & correct[..., None, :]).any(-1)
    advantages = jnp.where(valid, _normalise(solved, valid), 0.0)
    return jnp.where(valid, (advantages[..., :, None] * member).sum(-2), 0.0)


def _normalise(solved: jax.Array, where: jax.Array) -> jax.Array:
    """Normalises values of 0 and 1 to mean 0 and population standard deviation 1.

    The moments are those of the values where `where` is True. If these are all equal, the result
    is 0.
    """
    count = jnp.maximum(where.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = (solved & where).sum(-1, keepdims=True, dtype=jnp.float32) / count
    variance = mean * (1.0 - mean)
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    return jnp.where(variance > 0, (solved - mean) / deviation, 0.0)


def _higher_half(entropy: jax.Array) -> jax.Array:
    """Returns [...] bool, True for the half of all prompts with higher entropy, rounded down."""
    flat = entropy.ravel()
    rank = jnp.argsort(jnp.argsort(flat))
    return (rank >= flat.size - flat.size // 2).reshape(entropy.shape)
