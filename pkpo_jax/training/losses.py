"""Losses on responses [prompts, n, T]."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def policy_gradient(
    log_probs: jax.Array, weights: jax.Array, mask: jax.Array, valid: jax.Array
) -> jax.Array:
    """REINFORCE for weighted groups: minus the mean over prompts of sum_i w_i log p(x_i).

    Its gradient is that of minus max@k, without bias, for `pkpo_weights` (paper A, equation 19,
    arXiv 2505.15201): a sum over the group and over a response's tokens, a mean over prompts.

    Args:
      log_probs: [P, n, T] of the response tokens, differentiable.
      weights: [P, n], constants.
      mask: [P, n, T] bool, the tokens that belong to a response.
      valid: [P, n] bool; prompts without a valid response are not counted in the mean.
    """
    per_response = jnp.where(mask & valid[..., None], log_probs, 0.0).sum(-1)
    prompts = jnp.maximum(valid.any(-1).sum(), 1)
    return -(jax.lax.stop_gradient(weights) * per_response).sum() / prompts


def supervised(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean cross-entropy of the tokens on the mask, nats."""
    return -masked_mean(log_probs, mask)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `x` where `mask`, 0 if nowhere."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)
