"""The Shapley value of the best reward, and MaxRL and TailRL, which are this value, centred.

All three are mixtures of max@k with the weights 1/k. Their sums over k have a closed form: in the
terms of `pkpo_weights`, sum_{k=1}^{n} (1/k) (k/n) C(j,k-1)/C(n-1,k-1) = 1/(n-j).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups, _sorted
from pkpo_jax.estimators._sorted import Coefficients


def shapley_weights(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the Shapley value of each sample in the game v(S) = max_S g, v(empty) = 0.

    With g_(0) = 0, the sample of rank i gets phi_(i) = sum_{j<=i} (g_(j) - g_(j-1)) / (n+1-j): each
    gap is shared equally by the samples above it. The values add up to the best reward. As reward
    weights in the SUM convention they are an unbiased estimate of the gradient of
    sum_{k=1}^{n} max@k / k, namely sum_k 1/k times the weights of the baseline "loo_minus_one" of
    `pkpo_weights`, with g_i / n, which has no baseline, for k = 1 (derived here).

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False.

    Raises:
      ValueError: shapes that do not fit.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.shapley_weights([0.0, 1.0, 4.0]))
    [0.  0.5 3.5]
    """
    group = _sorted.sort(rewards, where)
    up = 1.0 / jnp.maximum(group.count - group.rank, 1.0)
    return group.combine(Coefficients(1.0 / group.count, up, 0.0))


def tailrl_advantages(
    rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the advantages of TailRL, MaxRL for continuous rewards (arXiv 2609.02987).

    A_i = n (phi_i - mean(phi)), with phi the Shapley value of `shapley_weights`.

    The mean convention applies. The advantages are an unbiased estimate of the gradient of
    sum_{k=1}^{n-1} max@k / k, n times the sum over k of 1/k times the weights of the baseline
    "centered" of `pkpo_weights` (derived here). They sum to zero and do not change when all rewards
    shift.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups whose rewards are all equal.

    Raises:
      ValueError: shapes that do not fit.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.tailrl_advantages([0.0, 1.0, 4.0]))
    [-4.  -2.5  6.5]
    """
    group = _sorted.sort(rewards, where)
    up = group.rank / jnp.maximum(group.count - group.rank, 1.0)
    return group.combine(Coefficients(0.0, up, 1.0))


def maxrl_advantages(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the advantages of MaxRL, for binary rewards (arXiv 2602.02710).

    A_i = (r_i - mean(r)) / mean(r),

    with the mean of the group. This is an unbiased estimate of the gradient of
    sum_{k=1}^{n-1} pass@k / k, which tends to the gradient of log pass@1 as n grows. (The upper
    limit is derived here, and in version 3 of the paper: dropping groups without a right answer
    drops the term k = n.) It is computed as `tailrl_advantages`, which never divides by the mean.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, 0 where `where` is False and in groups without a right answer.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.maxrl_advantages([1, 0, 0, 0]))
    [ 3. -1. -1. -1.]
    """
    return tailrl_advantages(*_groups.as_correct(correct, where))
