"""PACEvolve++: a sum of standardised advantages of several k."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups
from pkpo_jax.estimators.pkpo import pkpo_weights
from pkpo_jax.mixtures import Mixture


def pacevolve_advantages(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the advantages of PACEvolve++ (arXiv 2605.07039).

    A = sum_c w_c standardise(w^(k_c)),

    where w^(k) are the weights of `pkpo_weights` with "loo_minus_one", which are r - mean(r) up to
    a factor at k = 1, and standardising subtracts the mean of the group and divides by its
    population standard deviation. The paper mixes k = 1 and one other k, and moves from the first
    to the second during training: that is the k of a config such as "blend(1, 8, 1000)". PKPO
    anneals the other way.

    A `Mixture` given to `pkpo_weights` adds the weights without standardising them, which keeps
    them unbiased; here each k has the same say in a group, and the result is biased.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      k: int, integer array or `Mixture`, as in `pkpo_weights`.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the MEAN convention, 0 where `where` is False. A k whose weights have a
      deviation below 1e-6 (as advantages) counts as 0.

    Raises:
      ValueError: static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> both = pkpo.Mixture([1, 2], [0.5, 0.5])
    >>> print(pkpo.pacevolve_advantages([1.0, 0.0], both))
    [ 1. -1.]
    """
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    size, batch = rewards.shape[-1], rewards.shape[:-1]
    ks, weights = _groups.as_mixture(k, batch, size, size)
    n = jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    total = jnp.zeros(rewards.shape, jnp.float32)
    for one, weight in zip(ks, weights, strict=True):
        own = jnp.broadcast_to(one, batch)
        advantages = n * pkpo_weights(rewards, own, where=valid)
        centred = jnp.where(valid, advantages - advantages.sum(-1, keepdims=True) / n, 0.0)
        deviation = jnp.sqrt(jnp.square(centred).sum(-1, keepdims=True) / n)
        standard = jnp.where(deviation < 1e-6, 0.0, centred / (deviation + 1e-8))
        total += weight[..., None] * standard
    return total
