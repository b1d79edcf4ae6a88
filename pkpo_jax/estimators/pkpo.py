"""Pass@K Policy Optimization: max@k and the reward weights whose policy gradient maximises it.

Paper A is "Pass@K Policy Optimization: Solving Harder Reinforcement Learning Problems" (Walder and
Karkhanis, arXiv 2505.15201). Every array has the group of n rewards of one prompt as its last
dimension, and leading dimensions are batch dimensions.

All quantities come from sorting each group once. Let g_(1) <= ... <= g_(n) be its rewards, and
d_j = g_(j+1) - g_(j) >= 0 their gaps. The weight of a sample is a constant of the group, plus a sum
of multiples of the gaps below the sample, plus a sum of multiples of the gaps above it. The terms
of each sum have one sign, so that it loses nothing to cancellation in float32. The multiples are
built from

    V_j = C(j-1, k-1) / C(n-1, k-1) = prod_{t=j}^{n-1} max(t-k+1, 0) / t,

which is a reverse cumulative product of simple ratios. No binomial coefficient is ever formed, and
k, as well as n under a mask, can be traced arrays.

The multiples are linear in the objective. So those of any mixture sum_k w_k max@k are the weighted
sums of those for each k, and the same pass over the sorted rewards serves it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups, _sorted
from pkpo_jax.estimators._sorted import Coefficients, Ranks
from pkpo_jax.mixtures import Mixture

Baseline = Literal["none", "loo", "loo_minus_one", "centered"]


def max_at_k(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the unbiased estimate of max@k, the expected best reward of k samples.

    rho_k(g) = sum_{i>=k} C(i-1, k-1) g_(i) / C(n, k), with g_(1) <= ... <= g_(n) the sorted rewards
    of the group, is the mean of the maximum over all k-subsets of the group ("Pass@K Policy
    Optimization", arXiv 2505.15201, equations 12-13). For binary rewards it equals pass@k.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not, or a `Mixture` of them, which gives the weighted sum of max@k. An int or
        NumPy value outside 1..n raises. A JAX array is clipped to 1..n; so is every k in a group of
        which `where` keeps fewer than k.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [...] float32. A group without a valid sample gives 0.

    Raises:
      ValueError: static k outside 1..n, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.max_at_k([0.0, 1.0, 4.0], k=2))  # (1 + 4 + 4) / 3, over the pairs
    3.0
    """
    group = _sorted.sort(rewards, where)
    low, up, _ = group.coefficients(k, _mean_of_maxima)
    return _groups.unscale((low * group.lowest)[..., 0] + (up * group.gaps).sum(-1))


def pkpo_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    *,
    baseline: Baseline = "loo_minus_one",
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights w such that E[sum_i w_i grad log p(x_i)] = grad max@k.

    This is the SUM convention of "Pass@K Policy Optimization" (arXiv 2505.15201, "A" below). A
    trainer that averages over the n samples has to multiply the weights by n. Let q_i be the mean
    of the maximum over those k-subsets of the group g that hold sample i, g\\i the group without
    sample i, and rho_k the estimate that `max_at_k` computes. The weight of sample i is

      "none"           s_i = (k/n) q_i                                  (A, equations 19 and 27)
      "loo"            s_i - k/(n-1) rho_k(g\\i),        k <= n-1       (A, equation 29)
      "loo_minus_one"  s_i - (k/n) rho_{k-1}(g\\i),      k >= 2         (A, equation 33)
                       (g_i - mean of the others) / n,   k = 1          (RLOO, as in A's training)
      "centered"       (k/n) (q_i - rho_k(g\\i)),        k <= n-1       (MaxPO, arXiv 2606.06080)

    All four are unbiased. "loo_minus_one", which the paper recommends, never pushes a sample down
    for k >= 2, and with k = n it is the estimator of Tang et al. (arXiv 2503.19595). "centered"
    sums to zero over the group. "loo" is not invariant to a shift of the rewards.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not, or a `Mixture` of them, which gives the weighted sum of the weights for each
        k, and so the gradient of sum_k w_k max@k. An int or NumPy value outside 1..n, or outside
        1..n-1 for "loo" and "centered", raises. A JAX array is clipped to that range; so is every k
        in a group of which `where` keeps too few samples.
      baseline: "none", "loo", "loo_minus_one" or "centered".
      where: optional [..., n] bool, False for samples to leave out; each group then has its own n.

    Returns:
      [..., n] float32, 0 where `where` is False and, for the three baselines that compare samples,
      in groups with fewer than two samples.

    Raises:
      ValueError: unknown baseline, static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.pkpo_weights([0.0, 4.0, 0.0, 0.0], k=2))
    [0. 2. 0. 0.]
    >>> print(pkpo.pkpo_weights([0.0, 3.0, 0.0, 0.0], k=1))
    [-0.25  0.75 -0.25 -0.25]
    """
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline={baseline!r}; expected one of {', '.join(get_args(Baseline))}.")
    group = _sorted.sort(rewards, where)
    largest_k = _up_to_rest if baseline in ("loo", "centered") else _up_to_all
    return group.combine(group.coefficients(k, _COEFFICIENTS[baseline], largest_k))


def loo_minus_one(ranks: Ranks) -> Coefficients:
    """Returns the coefficients of the baseline "loo_minus_one", those of RLOO at k = 1."""
    rank, n, k = ranks
    others = n * jnp.maximum(n - 1, 1)
    up = jnp.where(k == 1, rank / others, k / n * ranks.w)
    return Coefficients(0.0, up, jnp.where(k == 1, (n - rank) / others, 0.0))


def _none(ranks: Ranks) -> Coefficients:
    share, v = ranks.k / ranks.n, ranks.v
    return Coefficients(share, jnp.broadcast_to(share, v.shape), -share * (1.0 - v))


def _centered(ranks: Ranks) -> Coefficients:
    # q_i - rho_k(g) has the coefficients j V_j / n and (n-j) V_j / n. Replacing rho_k(g) by
    # rho_k(g\i) only rescales them.
    rank, n, k = ranks
    scaled = k / jnp.maximum(n - k, 1) * ranks.v / n
    return Coefficients(0.0, rank * scaled, (n - rank) * scaled)


def _loo(ranks: Ranks) -> Coefficients:
    # The weight is (k/n) (q_i - rho_k(g)), that of "centered", (k/(n-1)) times the same difference,
    # and a multiple of rho_k(g), which is a constant of the group.
    rank, n, k = ranks
    rest = k / jnp.maximum(n - 1, 1)
    scaled = (k / n + rest * k / jnp.maximum(n - k, 1)) * ranks.v / n
    # A single sample has no others to be compared with, so its weight is 0.
    constant = jnp.where(n > 1, -rest / n, 0.0)
    low, up, _ = _mean_of_maxima(ranks)
    return Coefficients(
        constant * low, rank * scaled + constant * up, (n - rank) * scaled - constant * up
    )


def _mean_of_maxima(ranks: Ranks) -> Coefficients:
    """Returns the coefficients of rho_k = g_(1) + sum_j d_j (1 - C(j,k)/C(n,k)) as `up`."""
    # C(n,k) - C(j,k) = sum_{i>=j} C(i,k-1), so the factor of d_j is (k/n) sum_{i>=j} W_i.
    rank, n, k = ranks
    w = jnp.where(rank < n, ranks.w, 0.0)
    return Coefficients(1.0, jax.lax.cumsum(w, w.ndim - 1, reverse=True) * k / n, 0.0)


def _up_to_all(n: Any) -> Any:
    return n


def _up_to_rest(n: Any) -> Any:
    return n - 1


_COEFFICIENTS = {
    "none": _none,
    "loo": _loo,
    "loo_minus_one": loo_minus_one,
    "centered": _centered,
}
