"""Attention of n responses to the prompt that they share and to themselves, and its rotation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30
# Queries are computed in at most so many blocks, of at least so many tokens. The logits of a block
# are the largest arrays in memory.
_BLOCKS, _BLOCK = 16, 128
# Logits squashed below this need no maximum: neither their exponentials nor sums of these overflow.
_SMALL_CAP = 60.0


class KeyValues(NamedTuple):
    """The rotated keys and the values of one layer, [P, n, num_kv_heads, S, head_dim] each.

    The tokens of each head are adjacent, so that products with them need no copy in another order.
    """

    keys: jax.Array
    values: jax.Array


def apply_rope(x: jax.Array, positions: jax.Array, timescale: jax.Array) -> jax.Array:
    """Applies rotary embeddings in float32.

    Args:
      x: [P, n, heads, T, head_dim].
      positions: [P, T] int32.
      timescale: [head_dim / 2] float32, by which positions are divided to get angles in radians.
    """
    angle = (positions[..., None] / timescale)[:, None, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


class Sources(NamedTuple):
    """The keys and values that T queries of each response attend to, in one softmax.

    Attributes:
      own: those of the queries' own tokens, [P, n, K, T, H].
      earlier: those of the response's earlier tokens, [P, n, K, S, H], or None. Position t is at t
        modulo S. S is at least the number of earlier tokens or, if T is 1, the window.
      prefix: those of the prompts, which n responses share, [P, K, L, H], or None.
    """

    own: KeyValues
    earlier: KeyValues | None = None
    prefix: KeyValues | None = None


class Visible(NamedTuple):
    """Says which keys each query attends to: its own, those before it, and within the window.

    Attributes:
      window: int32, how many of the last tokens each query attends to, itself included.
      start: how many tokens of each response precede the first query.
      length: [P] int32, how many keys of the prefix hold tokens; None without a prefix.
    """

    window: jax.typing.ArrayLike
    start: jax.typing.ArrayLike
    length: jax.Array | None


def attend(
    queries: jax.Array, sources: Sources, visible: Visible, soft_cap: float | None
) -> jax.Array:
    """Computes attention with one softmax over the keys of the prompt and of the response.

    Queries are computed in blocks, and the logits of a block are computed again in the backward
    pass, so that memory grows with the number of tokens and not with its square (as in
    FlashAttention, arXiv 2205.14135).

    Args:
      queries: [P, n, K, G, T, H], with G query heads for each of K key heads.
      sources: the keys and values.
      visible: the keys that each query attends to, at least one.
      soft_cap: logits are squashed into (-soft_cap, soft_cap), or left as they are if None.

    Returns:
      [P, n, K, G, T, H] in the dtype of the queries.
    """
    count = queries.shape[4]
    size = max(_BLOCK, -(-count // _BLOCKS))
    blocks = []
    for first in range(0, count, size):
        last = min(first + size, count)
        # A block needs no keys after its own.
        seen = sources._replace(own=KeyValues(*(x[:, :, :, :last] for x in sources.own)))
        blocks.append(_attend(queries[:, :, :, :, first:last], seen, visible, soft_cap))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, 4)


class _Part(NamedTuple):
    """The keys of the prompts, or those of the responses.

    Attributes:
      kv: keys and values.
      mask: which keys each query attends to; broadcasts against logits.
      keys: the axes of `kv`.
      logits: the axes of logits.
    """

    kv: KeyValues
    mask: jax.Array
    keys: str
    logits: str

    def compute_logits(self, queries: jax.Array, soft_cap: float | None) -> jax.Array:
        """Returns float32 logits, which masks do not enter yet."""
        x = _dot(f"pnkgth,{self.keys}->{self.logits}", queries, self.kv.keys)
        return soft_capped(x, soft_cap)

    def of_queries(self, weights: jax.Array, x: jax.Array) -> jax.Array:
        """Returns the sums of keys or values `x` with these weights, [p, n, k, g, t, h]."""
        # XLA for CPU multiplies bfloat16 in this order of axes alone.
        return self.swap(_dot(f"{self.logits},{self.keys}->{self.logits[:-1]}h", weights, x))

    def swap(self, x: jax.Array) -> jax.Array:
        """Converts [p, n, k, g, t, ...] to the order of axes that logits have here, and back."""
        return x.swapaxes(1, 2) if self.logits == "pkngts" else x


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _parts(count: int, sources: Sources, visible: Visible) -> Iterator[_Part]:
    """Yields the sources with their masks, for queries that are the last `count` own tokens."""
    # Positions are counted from the end of the prefix, so that one mask serves every row.
    first, window = jnp.asarray(visible.start), jnp.asarray(visible.window)
    tokens = sources.own.keys.shape[3]
    query_at = first + jnp.arange(tokens - count, tokens)[:, None]

    def near(key_at: jax.Array) -> jax.Array:
        return query_at - key_at < window

    key_at = first + jnp.arange(tokens)
    yield _Part(sources.own, (key_at <= query_at) & near(key_at), "pnksh", "pnkgts")
    if sources.earlier is not None:
        size = sources.earlier.keys.shape[3]
        # Each place holds the last earlier token whose position has this remainder, if any.
        key_at = first - 1 - (first - 1 - jnp.arange(size)) % size
        yield _Part(sources.earlier, (key_at >= 0) & near(key_at), "pnksh", "pnkgts")
    if sources.prefix is not None and visible.length is not None:
        key_at, length = jnp.arange(sources.prefix.keys.shape[2]), visible.length[:, None, None]
        mask = (key_at < length) & near(key_at - length)
        yield _Part(sources.prefix, mask[:, None, None, None], "pksh", "pkngts")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(
    queries: jax.Array, sources: Sources, visible: Visible, soft_cap: float | None
) -> jax.Array:
    return _forward(queries, sources, visible, soft_cap)[0]


def _forward(
    queries: jax.Array, sources: Sources, visible: Visible, soft_cap: float | None
) -> tuple[jax.Array, Any]:
    parts = list(_parts(queries.shape[4], sources, visible))
    logits = [jnp.where(p.mask, p.compute_logits(queries, soft_cap), _MASKED) for p in parts]
    # Exponentials of small logits need no maximum to stay in range.
    top = jnp.float32(0.0)
    if soft_cap is None or soft_cap > _SMALL_CAP:
        highest = [p.swap(x.max(-1)) for p, x in zip(parts, logits, strict=True)]
        top = functools.reduce(jnp.maximum, highest)
    total, out = jnp.float32(0.0), jnp.float32(0.0)
    for p, x in zip(parts, logits, strict=True):
        shift = p.swap(top)[..., None] if top.ndim else top
        weights = jnp.exp(x - shift)
        total += p.swap(weights.sum(-1))
        weights = weights.astype(p.kv.values.dtype)
        out += p.of_queries(weights, p.kv.values)
    out = (out / total[..., None]).astype(queries.dtype)
    return out, (queries, sources, visible, out, top + jnp.log(total))


def _backward(soft_cap: float | None, saved: Any, gradient: jax.Array) -> Any:
    queries, sources, visible, out, log_total = saved
    delta = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    to_queries, gradients = jnp.float32(0.0), []
    for p in _parts(queries.shape[4], sources, visible):
        logits, dtype = p.compute_logits(queries, soft_cap), queries.dtype
        weights = jnp.where(p.mask, jnp.exp(logits - p.swap(log_total)[..., None]), 0.0)
        to_weights = _dot(f"pnkgth,{p.keys}->{p.logits}", gradient, p.kv.values)
        to_logits = weights * (to_weights - p.swap(delta)[..., None])
        if soft_cap is not None:
            to_logits *= 1.0 - jnp.square(logits / soft_cap)
        to_logits, weights = to_logits.astype(dtype), weights.astype(dtype)
        to_queries += p.of_queries(to_logits, p.kv.keys)
        to_keys = jnp.einsum(f"{p.logits},pnkgth->{p.keys}", to_logits, queries)
        to_values = jnp.einsum(f"{p.logits},pnkgth->{p.keys}", weights, gradient)
        gradients.append(KeyValues(to_keys, to_values))
    own, *others = gradients
    earlier = None if sources.earlier is None else others.pop(0)
    to_sources = Sources(own, earlier, others.pop() if others else None)
    return to_queries.astype(queries.dtype), to_sources, None


_attend.defvjp(_forward, _backward)


def soft_capped(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Squashes `x` into (-soft_cap, soft_cap), or returns it as it is if `soft_cap` is None."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)
