"""Pass@K Policy Optimization: max@k and the reward weights whose policy gradient maximises it.

Paper A is "Pass@K Policy Optimization: Solving Harder Reinforcement Learning Problems" (Walder and
Karkhanis, arXiv 2505.15201). Every array has the group of n rewards of one prompt as its last
dimension; leading dimensions are batch.

All quantities come from one sorted pass. With g_(1) <= ... <= g_(n) and gaps
d_j = g_(j+1) - g_(j) >= 0, each of them is a group constant plus multiples of one sign of the
gaps below a sample, and of the other of those above, so sums lose nothing to cancellation in
float32. The multiples are built from

    V_j = C(j-1, k-1) / C(n-1, k-1) = prod_{t=j}^{n-1} max(t-k+1, 0) / t,

a reverse cumulative product of simple ratios: k, and n under a mask, can be traced arrays, and no
binomial coefficient is ever formed.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups

Baseline = Literal["none", "loo", "loo_minus_one", "centered"]


def max_at_k(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Unbiased estimate of max@k, the expected best reward of k samples.

    rho_k(g) = sum_{i>=k} C(i-1, k-1) g_(i) / C(n, k), the mean over all k-subsets of the group of
    the subset's maximum (paper A, equations 12-13). For binary rewards it equals pass@k.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension;
        constants, the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions, traced or not. An int
        or NumPy value outside 1..n raises. A JAX array is clipped to 1..n; so is every k in a group
        of which `where` keeps fewer than k.
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
    group = _groups.sort(rewards, k, where, largest_k=lambda n: n)
    return _groups.unscale(group.max_at_k())


def pkpo_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    *,
    baseline: Baseline = "loo_minus_one",
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Weights w with E[sum_i w_i grad log p(x_i)] = grad max@k, in the paper's SUM convention.

    A trainer that averages over the n samples must multiply by n. With q_i the mean over k-subsets
    holding i of the subset's maximum, and g\\i the group without sample i:

      "none"           s_i = (k/n) q_i                                  (paper A, equations 19, 27)
      "loo"            s_i - k/(n-1) rho_k(g\\i),        k <= n-1       (paper A, equation 29)
      "loo_minus_one"  s_i - (k/n) rho_{k-1}(g\\i),      k >= 2         (paper A, equation 33)
                       (g_i - mean of the others) / n,   k = 1: RLOO, as the paper trains it
      "centered"       (k/n) (q_i - rho_k(g\\i)),        k <= n-1       (MaxPO, arXiv 2606.06080)

    All are unbiased. "loo_minus_one", which the paper recommends, never pushes a sample down for
    k >= 2, and with k = n is the estimator of Tang et al. (arXiv 2503.19595); "centered" sums to
    zero over the group; "loo" is not invariant to a shift of the rewards.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension;
        constants, the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not. An int or NumPy value out of the range 1..n, or 1..n-1 for "loo" and
        "centered", raises. A JAX array is clipped to that range; so is every k in a group of which
        `where` keeps too few.
      baseline: which of the four.
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
    needs_rest = baseline in ("loo", "centered")
    group = _groups.sort(rewards, k, where, largest_k=lambda n: n - 1 if needs_rest else n)
    n, k, rank, v = group.count, group.k, group.rank, group.v
    share, rest = k / n, k / jnp.maximum(n - 1, 1)
    base = jnp.float32(0.0)
    if baseline == "loo_minus_one":
        up, down = group.loo_minus_one()
    elif baseline == "none":
        base = share[..., 0] * group.lowest
        up, down = jnp.broadcast_to(share, v.shape), -share * (1.0 - v)
    else:
        # q_i - rho_k(g) has the coefficients j V_j / n and (n-j) V_j / n; rho_k(g\i) in place of
        # rho_k(g) only rescales them.
        scale = k / jnp.maximum(n - k, 1)
        if baseline == "loo":
            scale = share + rest * scale
            base = -(rest / n)[..., 0] * group.max_at_k()
        up, down = scale * rank * v / n, scale * (n - rank) * v / n
        # A sample alone has nothing to be compared with.
        base = jnp.where(n[..., 0] > 1, base, 0.0)
    return group.combine(base, up, down)
