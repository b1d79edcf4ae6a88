"""Entropic advantages: rewards tilted exponentially, at a temperature set by each group."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import _groups

# The largest beta, divided by the range of the rewards. Bisection then finds beta to float32.
_LARGEST_BETA = 1e6
_HALVINGS = 60


def entropic_advantages(
    rewards: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    nats: float = math.log(2.0),
) -> jax.Array:
    """Computes the advantages of the entropic objective of TTT-Discover (arXiv 2601.16175).

    A_i = exp(beta r_i) / mean over the other samples of exp(beta r) - 1,

    where beta >= 0 is such that softmax(beta r) has the KL divergence `nats` from the uniform
    distribution over the group. For a fixed beta, A estimates the gradient of
    log E[exp(beta r)] / beta, times beta; the ratio of means and a beta that depends on the group
    make it biased. It tends to the best reward as max@k does, and is invariant to a shift and to a
    positive scale of the rewards.

    Where no beta reaches `nats`, because more than n exp(-nats) samples are equally the best, beta
    is 1e6 over the range of the rewards. In groups of fewer than exp(2 nats) samples, half of the
    largest possible divergence, ln(n)/2, takes the place of `nats` (ours: the paper has large
    groups, and the leave-one-out ratio has no bound as beta grows).

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      where: optional [..., n] bool, False for samples to leave out.
      nats: the divergence, > 0.

    Returns:
      [..., n] float32 in the MEAN convention, 0 where `where` is False and in groups whose rewards
      are all equal.

    Raises:
      ValueError: shapes that do not fit, or `nats` that is not positive.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.entropic_advantages([1.0, 0.0, 1.0, 1.0]).round(3))
    [ 0.5 -1.   0.5  0.5]
    """
    options.check("nats", nats, above=0)
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    scaled = rewards * _groups.SCALE
    low = jnp.where(valid, scaled, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(valid, scaled, -jnp.inf).max(-1, keepdims=True)
    span = jnp.where(high > low, high - low, 1.0)
    # These are the distances from the best reward, in units of the range of the group.
    below = jnp.where(valid, (scaled - high) / span, 0.0)
    n = jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    target = jnp.minimum(nats, 0.5 * jnp.log(n))

    def tilted(beta: jax.Array) -> jax.Array:
        return jnp.where(valid, jnp.exp(beta * below), 0.0)

    def divergence(beta: jax.Array) -> jax.Array:
        tilt = tilted(beta)
        total = tilt.sum(-1, keepdims=True)
        return jnp.log(n / total) + (tilt * beta * below).sum(-1, keepdims=True) / total

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        least, most = ends
        middle = 0.5 * (least + most)
        enough = divergence(middle) >= target
        return jnp.where(enough, least, middle), jnp.where(enough, middle, most)

    ends = jnp.zeros_like(span), jnp.full_like(span, _LARGEST_BETA)
    beta = jax.lax.fori_loop(0, _HALVINGS, halve, ends)[1]
    tilt = tilted(beta)
    others = (tilt.sum(-1, keepdims=True) - tilt) / jnp.maximum(n - 1.0, 1.0)
    advantages = tilt / jnp.where(others > 0, others, 1.0) - 1.0
    # high > low would be False for a NaN, and hide it.
    return jnp.where(valid & ~(high <= low), advantages, 0.0)
