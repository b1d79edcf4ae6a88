"""Scoring: log-probs of responses, the prompt computed once and its n responses beside it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.typing import VariableDict

from pkpo_jax.policy import gemma2


def score(
    model: gemma2.Gemma2,
    params: VariableDict,
    prompts: jax.Array,
    lengths: jax.Array,
    responses: jax.Array,
    temperature: jax.typing.ArrayLike = 1.0,
    *,
    head_chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of response tokens, and the entropy of the distribution each was drawn from.

    The same numbers as `sampling.sample` returns for its own tokens, differentiable in `params`.
    The head runs on response tokens alone, in float32, `head_chunk` tokens of every response at a
    time, and is recomputed in the backward pass: [P, n, head_chunk, V] is its largest array.

    Args:
      params: parameters of `model`.
      prompts: [P, L] int32, right-padded; lengths: [P] int32, at least 1 each.
      responses: [P, n, T] int32; what stands after a response's end is scored as well, mask it.
      temperature: scalar > 0, may be traced; the policy is softmax(logits / temperature).
      head_chunk: see above; T is padded up to a multiple of it.

    Returns:
      log_probs, entropy: [P, n, T] float32, nats.
    """
    variables = {"params": params}
    prefix = model.apply(variables, prompts, lengths, method="prefill")
    last = gemma2.last_prompt_token(prompts, lengths)[:, None, None]
    inputs = jnp.concatenate(
        [jnp.broadcast_to(last, (*responses.shape[:2], 1)), responses[..., :-1]], -1
    )
    hidden, _ = model.apply(variables, inputs, prefix=prefix)

    @jax.checkpoint
    def head(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, tokens = chunk
        logits: Any = model.apply(variables, states, method="logits")
        log_p, entropy = gemma2.log_probs_and_entropy(logits, temperature)
        return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0], entropy

    t = responses.shape[-1]
    size = min(head_chunk, t)
    chunks = jax.tree.map(lambda x: _split(x, size), (hidden, responses))
    log_probs, entropy = jax.tree.map(_join, jax.lax.map(head, chunks))
    return log_probs[..., :t], entropy[..., :t]


def _split(x: jax.Array, size: int) -> jax.Array:
    """[P, n, T, ...] to [chunks, P, n, size, ...], zeros after the end."""
    pad = -x.shape[2] % size
    x = jnp.pad(x, [(0, pad) if axis == 2 else (0, 0) for axis in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)


def _join(x: jax.Array) -> jax.Array:
    """[chunks, P, n, size] back to [P, n, chunks * size]."""
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)
