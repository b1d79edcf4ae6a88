"""Reward weights of max@k from samples of another policy, to first order in the ratios."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups, _sorted, pkpo
from pkpo_jax.estimators._sorted import Coefficients, Ranks
from pkpo_jax.mixtures import Mixture

# Importance ratios are clipped to this value, far above any useful one, to keep their products
# finite.
_LARGEST_RATIO = 1e6


def off_policy_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    ratios: jax.typing.ArrayLike,
    *,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the gradient of max@k under p from samples of a policy q.

    With r_i = p(x_i)/q(x_i), the weight of the baseline "loo_minus_one" of `pkpo_weights` is

      (1/C(n,k)) sum over k-subsets I holding i of (prod_{j in I} r_j) [max_I g - max_{I\\i} g],

    which is unbiased, but has products of k ratios, whose variance grows exponentially in k. "The
    Best of N Worlds" (Bagirov et al., arXiv 2510.23393, section 3.3) expands the product to first
    order. Here only the product over the *other* samples is, to 1 + sum_{j in I\\i} (r_j - 1),
    while r_i, the ratio of the policy gradient itself, is kept, and the baseline is ours. In terms
    of the gaps d_j = g_(j+1) - g_(j) of the sorted rewards and of W_j = C(j, k-1) / C(n-1, k-1),
    the correction is the mean ratio of the samples up to rank j:

      w_(i) = r_(i) (k/n) sum_{j<i} d_j W_j [1 + (k-1) mean_{m<=j} (r_(m) - 1)]     for k >= 2,

    and for k = 1 the weight is r_i times that of RLOO, as in `pkpo_weights`.

    The weights are exactly unbiased for k <= 2. For k > 2 their bias is of second order in the
    ratios' deviations from 1. With all ratios 1 they are those of `pkpo_weights` with its default
    baseline. A weight can be negative where ratios are small.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not, or a `Mixture` of them. An int or NumPy value outside 1..n raises. A JAX
        array is clipped to 1..n; so is every k in a group of which `where` keeps fewer than k.
      ratios: [..., n] p(x_i)/q(x_i) >= 0 of the whole responses, clipped to at most 1e6. They count
        as constants: use `jax.lax.stop_gradient` where they depend on parameters.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, in which the gradient is sum_i w_i grad log p(x_i);
      0 where `where` is False.

    Raises:
      ValueError: static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.off_policy_weights([0.0, 4.0, 0.0, 0.0], 2, ratios=[1.0, 1.0, 1.0, 1.0]))
    [0. 2. 0. 0.]
    >>> print(pkpo.off_policy_weights([0.0, 4.0, 0.0, 0.0], 2, ratios=[2.0, 0.5, 2.0, 2.0]))
    [0. 2. 0. 0.]
    """
    group = _sorted.sort(rewards, where)
    ratios = _groups.as_group(ratios, "ratios").astype(jnp.float32)
    if ratios.shape != group.place.shape:
        raise ValueError(f"ratios have shape {ratios.shape}; expected {group.place.shape}.")
    ratios = jnp.where(group.valid, jnp.clip(ratios, 0.0, _LARGEST_RATIO), 1.0)
    ordered = jax.lax.sort((group.place, ratios - 1.0), num_keys=1)[1]
    deviation = jnp.cumsum(ordered, -1)[..., :-1] / group.rank
    _, up, down = group.coefficients(k, pkpo.loo_minus_one)
    _, correction, _ = group.coefficients(k, _times_others)
    # The weights are computed for rewards rescaled to span 1, and then multiplied by the span, so
    # that no product overflows on the way.
    span = group.gaps.sum(-1, keepdims=True)
    unit = dataclasses.replace(group, gaps=group.gaps / jnp.where(span > 0, span, 1.0))
    limit = float(jnp.finfo(jnp.float32).max)
    weights = unit.combine(Coefficients(0.0, up + correction * deviation, down))
    return jnp.clip(ratios * weights * span, -limit, limit)


def _times_others(ranks: Ranks) -> Coefficients:
    """Returns the coefficients of "loo_minus_one" times the number k-1 of the other samples."""
    _, up, down = pkpo.loo_minus_one(ranks)
    return Coefficients(0.0, (ranks.k - 1.0) * up, down)
