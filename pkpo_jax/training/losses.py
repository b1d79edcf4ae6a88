"""Losses on responses [prompts, n, T]."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def policy_gradient(
    log_probs: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    valid: jax.Array,
    prompts: jax.typing.ArrayLike,
) -> jax.Array:
    """REINFORCE for weighted groups: minus the mean over prompts of sum_i w_i log p(x_i).

    Its gradient is that of minus max@k, without bias, for `pkpo_weights` (paper A, equation 19,
    arXiv 2505.15201): a sum over the group and over a response's tokens, a mean over prompts.

    Args:
      log_probs: [P, n, T] of the response tokens, differentiable.
      weights: [P, n], constants.
      mask: [P, n, T] bool, the tokens that belong to a response.
      valid: [P, n] bool.
      prompts: how many prompts to divide by: those of the whole batch that have a valid response,
        of which these P may be a part; the losses of its parts add up to the loss of the batch.
    """
    per_response = jnp.where(mask & valid[..., None], log_probs, 0.0).sum(-1)
    return -(jax.lax.stop_gradient(weights) * per_response).sum() / jnp.maximum(prompts, 1)


def supervised(log_probs: jax.Array, mask: jax.Array, tokens: jax.typing.ArrayLike) -> jax.Array:
    """Cross-entropy of the tokens on the mask, nats, over `tokens`, those of the whole batch."""
    return -jnp.where(mask, log_probs, 0.0).sum() / jnp.maximum(tokens, 1)
