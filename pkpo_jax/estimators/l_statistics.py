"""L-statistics of k samples: a quantile, the mean of the best m, a trimmed mean.

Each of them averages some neighbouring ranks of k samples: those after the `drop` best, `keep` of
them. max@k is the case (0, 1), and the worst of k samples, which is pass^k for binary rewards, the
case (k-1, 1). OrderGrad (arXiv 2606.06096) trains for such objectives.

The weights are c_i = (k/n) (mean of the statistic over the k-subsets that hold i - mean over those
that do not). In the terms of `pkpo_weights`, whose baseline "centered" is the case (0, 1), they
have the coefficients

    up_j = k/(n-1) (j/n) B_j,   down_j = k/(n-1) ((n-j)/n) B_j,
    B_j = P(drop <= T < drop+keep) / keep,

where T is the number of samples above the gap among k-1 of the n-2 others: exchanging a sample
below gap j for one above it changes the statistic only if T is in that window (derived here).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import _sorted
from pkpo_jax.estimators._sorted import Coefficients, Ranks
from pkpo_jax.mixtures import Mixture

# The product of a share and an integer k is an integer up to this much.
_ROUNDING = 1e-4


def quantile_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    quantile: jax.typing.ArrayLike = 0.5,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the expected quantile of k samples, without bias.

    The quantile q of k samples is the one of rank ceil(q k), counted from the worst: q = 1 is the
    best of them, and q = 0.5 with an odd k their median.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not, or a `Mixture` of them. An int or NumPy value outside 1..n-1 raises. A JAX
        array is clipped to that range; so is every k in a group of which `where` keeps too few.
      quantile: a number in (0, 1], traced or not.
      where: optional [..., n] bool, False for samples to leave out; each group then has its own n.

    Returns:
      [..., n] float32 in the SUM convention; they sum to 0. 0 where `where` is False and in groups
      with fewer than two samples.

    Raises:
      ValueError: static k or `quantile` out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.quantile_weights([0.0, 1.0, 2.0, 5.0], k=3, quantile=0.5))
    [-0.5 -0.5  0.5  0.5]
    """
    options.check("quantile", quantile, above=0, at_most=1)

    def window(k: jax.Array) -> tuple[jax.Array, jax.Array]:
        rank = jnp.clip(jnp.ceil(quantile * k - _ROUNDING), 1, k)
        return k - rank, jnp.ones_like(k)

    return _weights(rewards, k, window, where)


def top_mean_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    top: jax.typing.ArrayLike = 2,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the expected mean of the best `top` of k samples, without bias.

    With top = 1 they are those of `pkpo_weights` with the baseline "centered", and with top = k
    those of the mean reward.

    Args:
      rewards: [..., n] real rewards of any dtype, as in `quantile_weights`.
      k: int, integer array or `Mixture`, as in `quantile_weights`.
      top: an integer >= 1, traced or not; it is clipped to k.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, as in `quantile_weights`.

    Raises:
      ValueError: static k or `top` out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.top_mean_weights([0.0, 0.0, 0.0, 4.0], k=2, top=1))
    [-0.6666667 -0.6666667 -0.6666667  2.       ]
    """
    options.check("top", top, at_least=1, whole=True)

    def window(k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(k), jnp.clip(top, 1, k)

    return _weights(rewards, k, window, where)


def trimmed_mean_weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    trim: jax.typing.ArrayLike = 0.25,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the expected trimmed mean of k samples, without bias.

    The floor(trim k) best and as many of the worst samples are left out of the mean. It ignores
    single outliers of the reward, such as those of a learned scorer.

    Args:
      rewards: [..., n] real rewards of any dtype, as in `quantile_weights`.
      k: int, integer array or `Mixture`, as in `quantile_weights`.
      trim: a number in [0, 0.5), traced or not.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, as in `quantile_weights`.

    Raises:
      ValueError: static k or `trim` out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.trimmed_mean_weights([0.0, 1.0, 2.0, 300.0], k=3, trim=0.34))
    [-0.5 -0.5  0.5  0.5]
    """
    options.check("trim", trim, at_least=0, below=0.5)

    def window(k: jax.Array) -> tuple[jax.Array, jax.Array]:
        drop = jnp.clip(jnp.floor(trim * k + _ROUNDING), 0, jnp.floor((k - 1) / 2))
        return drop, k - 2 * drop

    return _weights(rewards, k, window, where)


def _weights(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    window: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    where: jax.typing.ArrayLike | None,
) -> jax.Array:
    group = _sorted.sort(rewards, where)

    def coefficients(ranks: Ranks) -> Coefficients:
        rank, n, k = ranks
        drop, keep = window(k)
        chances = _hypergeometric(n - 2, n - 1 - rank, k - 1, rank.shape[-1] + 1)
        above = jnp.arange(rank.shape[-1] + 1, dtype=jnp.float32)
        inside = (drop[..., None] <= above) & (above < (drop + keep)[..., None])
        share = jnp.where(inside, chances, 0.0).sum(-1) / keep
        scaled = k / jnp.maximum(n - 1, 1) * share / n
        return Coefficients(0.0, rank * scaled, (n - rank) * scaled)

    return group.combine(group.coefficients(k, coefficients, lambda n: n - 1))


def _hypergeometric(total: jax.Array, marked: jax.Array, drawn: jax.Array, size: int) -> jax.Array:
    """Returns [..., size], the chances of 0, 1, ... marked ones among those drawn from `total`.

    The chances are built from their ratios, outwards from the most likely number, so that each is a
    product of factors below 1, and then normalised.
    """
    total, marked, drawn = (jnp.maximum(x, 0.0)[..., None] for x in (total, marked, drawn))
    marked = jnp.minimum(marked, total)
    t = jnp.arange(size, dtype=jnp.float32)
    lowest, highest = jnp.maximum(drawn - (total - marked), 0.0), jnp.minimum(marked, drawn)
    mode = jnp.clip(jnp.floor((drawn + 1) * (marked + 1) / (total + 2)), lowest, highest)

    # The ratio of the chances of t + 1 and t.
    more = jnp.maximum(marked - t, 0.0) * jnp.maximum(drawn - t, 0.0)
    less = (t + 1) * jnp.maximum(total - marked - drawn + t + 1, 0.0)
    upward = jnp.where(t >= mode, more / jnp.where(less > 0, less, 1.0), 1.0)
    downward = jnp.where(t < mode, less / jnp.where(more > 0, more, 1.0), 1.0)
    axis = upward.ndim - 1
    after = jax.lax.cumprod(upward, axis)
    after = jnp.concatenate([jnp.ones_like(after[..., :1]), after[..., :-1]], -1)
    chances = after * jax.lax.cumprod(downward, axis, reverse=True)
    return chances / chances.sum(-1, keepdims=True)
