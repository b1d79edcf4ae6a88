"""Advantages over a quantile of the group in place of its mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import baselines


def quantile_baseline_advantages(
    rewards: jax.typing.ArrayLike,
    quantile: jax.typing.ArrayLike = 0.4,
    where: jax.typing.ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
) -> jax.Array:
    """Computes the advantages of QAE, quantile advantage estimation (arXiv 2509.22611).

    A_i = (r_i - Q) / (std(r) + epsilon),

    with Q the smallest reward such that a share of at least `quantile` of the group is no better.
    For binary rewards with the pass rate p of the group, Q is 0 if p <= 1 - quantile, so that hard
    prompts train on their right samples alone, and 1 otherwise, so that easy ones train on their
    wrong samples alone.

    Q depends on the sample itself, so that the advantages are biased, and they do not sum to 0. So
    does the deviation, as in `grpo_advantages`.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      quantile: a number in (0, 1], traced or not.
      where: optional [..., n] bool, False for samples to leave out.
      epsilon: added to the deviation, as in `grpo_advantages`.

    Returns:
      [..., n] float32 in the MEAN convention, 0 where `where` is False and in groups whose rewards
      are all equal.

    Raises:
      ValueError: shapes that do not fit, or an option out of range.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.quantile_baseline_advantages([1.0, 0.0, 0.0, 0.0], 0.5).round(3))
    [2.309 0.    0.    0.   ]
    """
    options.check("quantile", quantile, above=0, at_most=1)
    centred, valid = baselines.centre(rewards, where)
    up_to = (centred[..., None, :] <= centred[..., :, None]) & valid[..., None, :]
    needed = quantile * valid.sum(-1, keepdims=True) - 1e-4
    enough = valid & (up_to.sum(-1) >= needed)
    lowest = jnp.where(enough, centred, jnp.inf).min(-1, keepdims=True)
    above = jnp.where(valid, centred - lowest, 0.0)
    return baselines.over_deviation(above, centred, valid, epsilon)
