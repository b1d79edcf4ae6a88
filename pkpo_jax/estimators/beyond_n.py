"""Estimators for k beyond n from one group of n samples. Both are biased: no unbiased one exists.

PKPO needs n >= k samples, since no function of n samples estimates max@k without bias for a larger
k. These two assume a form of the distribution instead: a Beta posterior of the pass rate of binary
rewards, or a tail like that of a Gaussian for continuous ones.
"""

from __future__ import annotations

import math
import statistics

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import _answers, _groups
from pkpo_jax.estimators.baselines import rloo_advantages
from pkpo_jax.estimators.posterior import mean_factor


def bbg_advantages(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    prior: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] = (1.0, 1.0),
    threshold: float = 0.01,
) -> jax.Array:
    """Computes advantages of pass@1, scaled for pass@k by a posterior of the pass rate.

    A_i = u (r_i - mean of the other samples),
    u = E[k (1-p)^(k-1)] = k prod_{j=0}^{k-2} (b+j) / (a+b+j),

    where p has the posterior Beta(a, b) = Beta(1 + c, 1 + n - c) after c right answers of n. u, and
    the threshold (n+1) below which it counts as 0, are those of BBG (arXiv 2606.15455) as a public
    port has them. BBG's other loss, for groups without a right answer, is left out.

    For the true p, k (1-p)^(k-1) is the ratio of the gradients of pass@k and pass@1. The posterior
    is that of the same samples, so that the advantages are biased. They are far too small for rare
    right answers: at n = 16, k = 64 and p = 0.01 the factor is 33.98, and that of the mean of the
    advantages 2.46. Groups without a right answer give 0. A `prior` from earlier visits of the
    prompt moves u towards the truth; `posterior_advantages` takes such counts, and leaves each
    sample out of its own u.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      k: int >= 1 or integer array that broadcasts against the leading dimensions, traced or not;
        it may exceed n. A JAX array is clipped to 1 from below.
      where: optional [..., n] bool, False for samples to leave out.
      prior: two numbers or arrays [...] above 0, those of Beta(a, b) before these samples: 1 plus
        the numbers of right and of wrong answers at earlier visits of each prompt.
      threshold: that of the formula.

    Returns:
      [..., n] float32 in the MEAN convention, 0 where `where` is False.

    Raises:
      ValueError: static k below 1, shapes that do not fit, values other than 0 and 1, as in
        `pass_at_k`, or a prior that is not positive.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.bbg_advantages([1, 0], k=2))  # u = 2 * 2/4
    [ 1. -1.]
    """
    options.check_prior(prior)
    correct, valid = _groups.as_correct(correct, where)
    batch = correct.shape[:-1]
    k = jnp.maximum(_groups.check_k(k, batch, correct.shape[-1], largest=None), 1)
    right = correct.sum(-1, dtype=jnp.float32)
    count = valid.sum(-1, dtype=jnp.float32)
    a, b = (jnp.asarray(x, jnp.float32) for x in prior)
    u = mean_factor(a + right, b + count - right, k)
    u = jnp.where(u >= threshold * (count + 1), u, 0.0)
    return u[..., None] * rloo_advantages(correct, where)


def tail_extrapolated_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    share: float = 0.25,
) -> jax.Array:
    """Computes reward weights for max@k beyond n, extrapolated from the best samples of a group.

    TEA (arXiv 2605.10716; the formula is derived here) assumes that the best `share` of the
    distribution is a Gaussian's tail. If the tail has the mean mu and the deviation sigma,

      max@k = mu + c sigma,   c = (c_k - lam) / s,   lam = phi(z)/share,   s^2 = 1 + z lam - lam^2,

    with z the (1-share) quantile of the standard normal distribution and c_k the expected maximum
    of k standard normal samples. The weight of a sample of the tail is

      1/(share n) [(g_i - r) + c/(2 sigma) ((g_i - mu)^2 - (r - mu)^2)],

    with mu and sigma those of the samples of the tail, and r its threshold, which is taken midway
    between its worst sample and the best one outside; other samples have the weight 0. It is exact
    for Gaussian populations as n grows, and biased for small n, where mu and sigma are those of few
    samples, and for other distributions: for k = 128 and a standard normal population, whose
    gradients in the mean and in the deviation are (1, 2.60), it gives (0.27, 0.99) at n = 16 and
    (0.79, 2.06) at n = 64 (`pkpo_weights` with k = n = 16 gives (1, 1.77)). For k <= n use
    `pkpo_weights`, which is unbiased.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension,
        continuous. They are constants: the result has no gradient in them.
      k: int >= 2 or integer array that broadcasts against the leading dimensions, traced or not; it
        may exceed n. A JAX array is clipped to 2 from below.
      where: optional [..., n] bool, False for samples to leave out.
      share: the share of samples in the tail, which are at least two.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False, in groups with fewer than
      three samples and where the rewards of the tail are equal.

    Raises:
      ValueError: static k below 2, a share outside (0, 1), or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> group = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    >>> print(pkpo.tail_extrapolated_weights(group, k=64).round(3))
    [ 0.     0.     0.     0.     0.     0.    -0.057 -0.007]
    """
    options.check("share", share, above=0, below=1)
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    batch, size = rewards.shape[:-1], rewards.shape[-1]
    k = _groups.check_k(k, batch, size, largest=None, smallest=2)
    k = jnp.maximum(k, 2)[..., None]
    count = valid.sum(-1, keepdims=True)
    # Halves round up; the rest of .5001 outweighs the rounding of float32.
    in_tail = jnp.maximum(jnp.floor(share * count + 0.5001), 2.0).astype(jnp.int32)
    ordered = jnp.sort(jnp.where(valid, rewards, -jnp.inf), -1)
    # In ascending order the tail is at the end, and the best sample outside is just before it.
    outside = jnp.take_along_axis(ordered, jnp.maximum(size - in_tail - 1, 0), -1)
    inside = jnp.take_along_axis(ordered, jnp.maximum(size - in_tail, 0), -1)
    threshold = 0.5 * outside + 0.5 * inside
    tail = valid & (rewards > threshold)
    mu = _answers.mean(rewards, tail)
    sigma = jnp.sqrt(_answers.mean(jnp.square(rewards - mu), tail))
    normal = statistics.NormalDist()
    z = normal.inv_cdf(1.0 - share)
    lam = normal.pdf(z) / share
    c = (_expected_maximum(k) - lam) / math.sqrt(1.0 + z * lam - lam * lam)
    slope = c / (2.0 * jnp.where(sigma > 0, sigma, 1.0))
    curved = jnp.square(rewards - mu) - jnp.square(threshold - mu)
    weights = (rewards - threshold + slope * curved) / in_tail
    return jnp.where(tail & (sigma > 0) & (count > 2), weights, 0.0)


def _expected_maximum(k: jax.Array) -> jax.Array:
    """Returns the expected maximum of k standard normal samples, by quadrature."""
    # E max = integral of 1 - F(x)^k over x > 0 minus that of F(x)^k over x < 0.
    limit, points = 10.0, 2001
    x = jnp.linspace(-limit, limit, points, dtype=jnp.float32)
    at_most = jnp.exp(k[..., None] * jax.scipy.special.log_ndtr(x))
    step = 2.0 * limit / (points - 1)
    return limit - step * (at_most.sum(-1) - 0.5 * at_most[..., -1] - 0.5 * at_most[..., 0])
