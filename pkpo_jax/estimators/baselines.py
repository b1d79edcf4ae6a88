"""Estimators to compare PKPO with: GRPO, Dr. GRPO, RLOO, Mahdavi et al. and Tang et al.

Functions named `*_advantages` use the MEAN convention, in which a trainer averages over the n
samples of a prompt. Functions named `*_weights` use the SUM convention of `pkpo_weights`. An
advantage is n times the corresponding reward weight.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import _groups
from pkpo_jax.estimators.pkpo import pkpo_weights


def grpo_advantages(
    rewards: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """Computes the advantages of GRPO (arXiv 2402.03300, section 4.1.2).

    A_i = (r_i - mean(r)) / (std(r) + epsilon),

    with the mean and the population standard deviation of the group. As an estimate of the gradient
    of the mean reward it is biased: each prompt is weighted by one over the deviation of its own
    samples, which favours prompts that are almost always or almost never solved.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.
      epsilon: added to the deviation, in units of the reward. It keeps rewards that differ by no
        more than rounding, such as those of a learned scorer, from becoming advantages of size 1.
        The paper has no such term, which is epsilon = 0. Public trainers use 1e-6 to 1e-4.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups whose rewards are all equal.

    Raises:
      ValueError: shapes that do not fit, or a negative epsilon.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.grpo_advantages([3.0, 1.0]).round(4))
    [ 1. -1.]
    """
    centred, valid = centre(rewards, where)
    return over_deviation(centred, centred, valid, epsilon)


def dr_grpo_advantages(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the advantages of Dr. GRPO (arXiv 2503.20783).

    A_i = r_i - mean(r),

    with the mean of the group. This is (n-1)/n times `rloo_advantages`, and so an unbiased estimate
    of the gradient of the mean reward, up to that factor.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups whose rewards are all equal.

    Raises:
      ValueError: shapes that do not fit.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.dr_grpo_advantages([3.0, 1.0]))
    [ 1. -1.]
    """
    return _groups.unscale(centre(rewards, where)[0])


def rloo_advantages(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the advantages of RLOO, REINFORCE leave-one-out (arXiv 2402.14740).

    A_i = r_i - mean of the rewards of the other samples of the group.

    This is an unbiased estimate of the gradient of the mean reward, which is pass@1 for binary
    rewards, and n times `pkpo_weights` at k = 1.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False, in groups of one sample, and in groups whose
      rewards are all equal.

    Raises:
      ValueError: shapes that do not fit.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.rloo_advantages([3.0, 1.0]))
    [ 2. -2.]
    """
    centred, valid = centre(rewards, where)
    n = _count(valid)
    return _groups.unscale(jnp.where(n > 1, centred * (n / jnp.maximum(n - 1.0, 1.0)), 0.0))


def mahdavi_advantages(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes advantages of pass@1, reweighted for pass@k by the pass rate of the group.

    A_i = k (1-p)^(k-1) (r_i - mean of the other samples), with p the pass rate of the group, from
    "Beyond Accuracy: A Policy Gradient Reweighting Approach for Pass@K Maximization in LLMs"
    (Mahdavi et al., AI for Math workshop at ICML 2025).

    For the true pass rate p, grad pass@k = k (1-p)^(k-1) grad pass@1. The pass rate of the group in
    its place makes the estimator biased for k >= 2, and 0 in groups with only right answers.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
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
    """Computes reward weights for max@n (Tang et al., arXiv 2503.19595).

    w_i = max(r) - max of the rewards of the other samples of the group,

    so that the best sample gets its lead over the second best, and all others 0. This is an
    unbiased estimate of the gradient of max@n in the SUM convention, and `pkpo_weights` with k = n.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups of one sample.

    Raises:
      ValueError: shapes that do not fit.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.tang_weights([3.0, 1.0, 0.0]))
    [2. 0. 0.]
    """
    rewards = _groups.as_group(rewards, "rewards")
    # k is an array, so that it is clipped to the number of valid samples of each group.
    k = jnp.full(rewards.shape[:-1], rewards.shape[-1], jnp.int32)
    return pkpo_weights(rewards, k, baseline="loo_minus_one", where=where)


def centre(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Returns (r - mean over the valid samples) * SCALE, 0 off the mask, and the mask."""
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    low = jnp.where(valid, rewards, jnp.inf).min(-1, keepdims=True)
    # Subtracting the lowest reward first keeps a common offset from costing accuracy, and makes
    # groups of equal rewards exactly 0. Dividing before the sum keeps it from overflowing.
    rewards = jnp.where(valid, rewards * _groups.SCALE - low * _groups.SCALE, 0.0)
    mean = (rewards / _count(valid)).sum(-1, keepdims=True)
    return jnp.where(valid, rewards - mean, 0.0), valid


def over_deviation(x: jax.Array, centred: jax.Array, valid: jax.Array, epsilon: float) -> jax.Array:
    """Returns x over the population deviation of a group plus epsilon, or 0 if that is 0.

    Both `x` and `centred`, which are what `centre` returns or shifted from it, have its units.
    """
    options.check("epsilon", epsilon, at_least=0)
    # Dividing by the largest magnitude first keeps the squares of huge rewards finite.
    largest = jnp.abs(centred).max(-1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1.0)
    deviation = jnp.sqrt(jnp.square(centred / largest).sum(-1, keepdims=True) / _count(valid))
    deviation += epsilon * _groups.SCALE / largest
    return x / largest / jnp.where(deviation > 0, deviation, 1.0)


def _count(valid: jax.Array) -> jax.Array:
    """Returns [..., 1] float32, the number of valid samples, at least 1."""
    return jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
