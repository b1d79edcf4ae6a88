"""Scoring, which computes log-probs of n responses to a prompt, and the prompt only once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.typing import VariableDict

from pkpo_jax.policy import gemma


def score(
    model: gemma.Gemma,
    params: VariableDict,
    prompts: jax.Array,
    lengths: jax.Array,
    responses: jax.Array,
    temperature: jax.typing.ArrayLike = 1.0,
    *,
    head_chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Computes the log-probs of response tokens, and the policy's entropy at each of them.

    The numbers are those that `sampling.sample` returns for its own tokens, and are differentiable
    in `params`. The head runs on response tokens alone, on `head_chunk` tokens of every response at
    a time. Its largest array is therefore [P, n, head_chunk, V]. Where it takes several
    chunks, they are recomputed in the backward pass.

    Args:
      model: the network.
      params: parameters of `model`.
      prompts: [P, L] int32, right-padded.
      lengths: [P] int32, the number of tokens of each prompt, at least 1.
      responses: [P, n, T] int32. Tokens after the end of a response are scored too; mask them.
      temperature: scalar > 0, may be traced. The policy is softmax(logits / temperature).
      head_chunk: tokens of every response that the head runs on at a time. T is padded up to a
        multiple of it.

    Returns:
      log_probs, entropy: [P, n, T] float32 each, in nats.
    """
    hidden = hidden_states(model, params, prompts, lengths, responses)
    return of_hidden(model, params, hidden, responses, temperature, head_chunk=head_chunk)


def hidden_states(
    model: gemma.Gemma,
    params: VariableDict,
    prompts: jax.Array,
    lengths: jax.Array,
    responses: jax.Array,
) -> jax.Array:
    """Computes the normalised hidden states, of which the head predicts each response token.

    The arguments are those of `score`.

    Returns:
      [P, n, T, D] in the dtype of the model's activations.
    """
    last = gemma.last_prompt_token(prompts, lengths)[:, None, None]
    inputs = jnp.concatenate(
        [jnp.broadcast_to(last, (*responses.shape[:2], 1)), responses[..., :-1]], -1
    )
    hidden: Any = model.apply({"params": params}, prompts, lengths, inputs, method="respond")
    return hidden


def of_hidden(
    model: gemma.Gemma,
    params: VariableDict,
    hidden: jax.Array,
    responses: jax.Array,
    temperature: jax.typing.ArrayLike = 1.0,
    *,
    head_chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """Computes what `score` does, given the result [P, n, T, D] of `hidden_states`."""
    variables = {"params": params}

    def head(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, tokens = chunk
        logits: Any = model.apply(variables, states, method="logits")
        log_p, entropy = gemma.log_probs_and_entropy(logits, temperature)
        return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0], entropy

    t = responses.shape[-1]
    if t <= head_chunk:
        return head((hidden, responses))
    chunks = jax.tree.map(lambda x: _split(x, head_chunk), (hidden, responses))
    log_probs, entropy = jax.tree.map(_join, jax.lax.map(jax.checkpoint(head), chunks))
    return log_probs[..., :t], entropy[..., :t]


def _split(x: jax.Array, size: int) -> jax.Array:
    """Splits [P, n, T, ...] into [chunks, P, n, size, ...], padded with zeros at the end."""
    pad = -x.shape[2] % size
    x = jnp.pad(x, [(0, pad) if axis == 2 else (0, 0) for axis in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)


def _join(x: jax.Array) -> jax.Array:
    """Joins [chunks, P, n, size] to [P, n, chunks * size]."""
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)
