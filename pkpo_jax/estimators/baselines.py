"""Estimators to compare with: GRPO, Dr. GRPO, RLOO, MaxRL, Mahdavi et al., Tang et al.

`*_advantages` are in the MEAN convention (a trainer averages over the n samples of a prompt),
`*_weights` in the SUM convention of `pkpo_weights`: an advantage is n times a weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups
from pkpo_jax.estimators.pkpo import pkpo_weights


def grpo_advantages(
    rewards: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """Computes (r - mean) / (standard deviation + epsilon) (GRPO, arXiv 2402.03300, section 4.1.2).

    The deviation is that of the population, over the group. The result is biased for the gradient
    of the mean reward: each prompt is weighted by one over the deviation of its own samples, which
    favours prompts that are almost always or almost never solved.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension;
        constants, the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.
      epsilon: added to the deviation, in units of the reward. It keeps rewards that differ by no
        more than rounding, such as those of a learned scorer, from becoming advantages of size 1.
        The paper has none, which is 0; public trainers use 1e-6 to 1e-4.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups whose rewards are all equal.

    Raises:
      ValueError: shapes that do not fit, or a negative epsilon.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.grpo_advantages([3.0, 1.0]).round(4))
    [ 1. -1.]
    """
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon={epsilon}; expected 0 or more.")
    centred, valid = _centre(rewards, where)
    # Dividing by the largest first keeps the squares of huge rewards finite.
    largest = jnp.abs(centred).max(-1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1.0)
    scaled = centred / largest
    deviation = jnp.sqrt(jnp.square(scaled).sum(-1, keepdims=True) / _count(valid))
    deviation += epsilon * _groups.SCALE / largest
    return scaled / jnp.where(deviation > 0, deviation, 1.0)


def dr_grpo_advantages(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """r - mean of the group (Dr. GRPO, arXiv 2503.20783).

    (n-1)/n times `rloo_advantages`, so unbiased for the gradient of the mean reward but for that
    factor. Arguments, result and errors as for `grpo_advantages`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.dr_grpo_advantages([3.0, 1.0]))
    [ 1. -1.]
    """
    return _groups.unscale(_centre(rewards, where)[0])


def rloo_advantages(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """r - mean of the other samples (RLOO, arXiv 2402.14740).

    Unbiased for the gradient of the mean reward, pass@1 if rewards are binary; n times
    `pkpo_weights` at k = 1. Arguments, result and errors as for `grpo_advantages`; 0 in groups of
    one.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.rloo_advantages([3.0, 1.0]))
    [ 2. -2.]
    """
    centred, valid = _centre(rewards, where)
    n = _count(valid)
    return _groups.unscale(jnp.where(n > 1, centred * (n / jnp.maximum(n - 1.0, 1.0)), 0.0))


def maxrl_advantages(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """(r - mean) / mean of the group, for binary rewards (MaxRL, arXiv 2602.02710).

    Unbiased for the gradient of sum_{k=1}^{n-1} pass@k / k, which tends to that of log pass@1 as n
    grows (derived here: dropping groups without a right answer drops the term k = n).

    Args:
      correct: [..., n] 0 or 1 (or bool).
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups without a right answer.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.maxrl_advantages([1, 0, 0, 0]))
    [ 3. -1. -1. -1.]
    """
    correct, valid = _groups.as_correct(correct, where)
    advantages = correct * (_count(valid) / _count(correct)) - 1.0
    return jnp.where(valid & correct.any(-1, keepdims=True), advantages, 0.0)


def mahdavi_advantages(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """k (1-p)^(k-1) (r - mean of the others), p the group's pass rate.

    "Beyond Accuracy: A Policy Gradient Reweighting Approach for Pass@K Maximization in LLMs"
    (Mahdavi et al., 2025).

    grad pass@k = k (1-p)^(k-1) grad pass@1 for the true pass rate p. With that of the group in its
    place the estimator is biased, for k >= 2, and it is 0 in groups with only right answers.

    Args:
      correct: [..., n] 0 or 1 (or bool).
      k: int >= 1 or integer array that broadcasts against the leading dimensions, traced or not;
        it may exceed n. A JAX array is clipped to 1 from below.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False.

    Raises:
      ValueError: static k below 1, shapes that do not fit, or values other than 0 and 1, as in
        `pass_at_k`.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.mahdavi_advantages([1, 0], k=2))
    [ 1. -1.]
    """
    correct, valid = _groups.as_correct(correct, where)
    k = _groups.check_k(k, correct.shape[:-1], correct.shape[-1], largest=None)[..., None]
    k = jnp.maximum(k, 1)
    wrong = (valid & ~correct).sum(-1, keepdims=True, dtype=jnp.float32)
    wrong_rate = wrong / _count(valid)
    scale = k * jnp.where(k > 1, wrong_rate ** (k - 1), 1.0)
    return scale * rloo_advantages(correct, where)


def tang_weights(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """The best sample gets its lead over the second best (Tang et al., arXiv 2503.19595).

    Unbiased for the gradient of max@n, in the SUM convention: `pkpo_weights` with k = n. Arguments,
    result and errors as for `grpo_advantages`; 0 in groups of one.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.tang_weights([3.0, 1.0, 0.0]))
    [2. 0. 0.]
    """
    rewards = _groups.as_group(rewards, "rewards")
    # Clipped to the number of valid samples of each group.
    k = jnp.full(rewards.shape[:-1], rewards.shape[-1], jnp.int32)
    return pkpo_weights(rewards, k, baseline="loo_minus_one", where=where)


def _centre(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Rewards minus the mean of the valid ones, scaled, 0 off the mask; and the mask."""
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    low = jnp.where(valid, rewards, jnp.inf).min(-1, keepdims=True)
    # From the lowest up, so that an offset common to the group costs no accuracy, and groups of
    # equal rewards give exactly 0. Divided before they are added: the sum could overflow.
    rewards = jnp.where(valid, rewards * _groups.SCALE - low * _groups.SCALE, 0.0)
    mean = (rewards / _count(valid)).sum(-1, keepdims=True)
    return jnp.where(valid, rewards - mean, 0.0), valid


def _count(valid: jax.Array) -> jax.Array:
    """[..., 1] float32 number of valid samples, at least 1."""
    return jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
