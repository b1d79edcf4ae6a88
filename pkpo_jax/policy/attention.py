"""Attention of n responses to the prompt that they share and to themselves, and its rotation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30


class KeyValues(NamedTuple):
    """The rotated keys and the values of one layer, [P, n, S, num_kv_heads, head_dim] each.

    Those of all layers have one more axis before these.
    """

    keys: jax.Array
    values: jax.Array


def apply_rope(x: jax.Array, positions: jax.Array, timescale: jax.Array) -> jax.Array:
    """Applies rotary embeddings in float32.

    Args:
      x: [P, n, T, heads, head_dim].
      positions: [P, T] int32.
      timescale: [head_dim / 2] float32, by which positions are divided to get angles in radians.
    """
    angle = (positions[..., None] / timescale)[:, None, :, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


def attend(
    queries: jax.Array,
    prefix: tuple[KeyValues, jax.Array] | None,
    own: tuple[KeyValues, jax.Array],
    soft_cap: float | None,
) -> jax.Array:
    """Computes attention with one softmax over the prompt's shared keys and a response's own keys.

    Args:
      queries: [P, n, T, K, G, H], with G query heads for each of K key heads.
      prefix: keys and values [P, L, K, H] of the prompts, and a mask [P, T, L] of the keys to
        attend to; None without a prefix.
      own: keys and values [P, n, S, K, H] of the responses, and a mask [T, S] of the keys to attend
        to, at least one for each query.
      soft_cap: logits are squashed into (-soft_cap, soft_cap), or left as they are if None.

    Returns:
      [P, n, T, K, G, H] in the dtype of the queries.
    """
    parts = [("pnskh", own[0], own[1][None])]
    if prefix is not None:
        parts.append(("pskh", *prefix))
    logits = []
    for axes, kv, mask in parts:
        x = jnp.einsum(
            f"pntkgh,{axes}->pnkgts", queries, kv.keys, preferred_element_type=jnp.float32
        )
        x = soft_capped(x, soft_cap)
        logits.append(jnp.where(mask[:, None, None, None], x, _MASKED))
    top = jnp.max(jnp.stack([x.max(-1) for x in logits]), 0)[..., None]
    weights = [jnp.exp(x - jax.lax.stop_gradient(top)) for x in logits]
    total = sum(w.sum(-1) for w in weights)
    out = sum(
        jnp.einsum(
            f"pnkgts,{axes}->pntkgh",
            w.astype(kv.values.dtype),
            kv.values,
            preferred_element_type=jnp.float32,
        )
        for w, (axes, kv, _) in zip(weights, parts, strict=True)
    )
    return (out / jnp.moveaxis(total, -1, 2)[..., None]).astype(queries.dtype)


def soft_capped(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Squashes `x` into (-soft_cap, soft_cap), or returns it as it is if `soft_cap` is None."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)
