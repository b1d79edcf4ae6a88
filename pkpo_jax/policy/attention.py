"""Attention of n responses to the prompt that they share and to themselves, and its rotation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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
    queries: jax.Array,
    sources: Sources,
    visible: Visible,
    soft_cap: float | None,
    local_window: int | None = None,
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
      local_window: where `visible.window` is this, which may be traced, blocks of queries skip the
        keys that are out of it for all of them. None skips nothing.

    Returns:
      [P, n, K, G, T, H] in the dtype of the queries.
    """
    return _attend(queries, sources, visible, soft_cap, local_window)


def last_keys(prefix: KeyValues, length: jax.Array, count: int) -> tuple[KeyValues, jax.Array]:
    """Returns the last `count` tokens of prefixes [P, K, L, H], and how many there are, [P]."""
    if count >= prefix.keys.shape[2]:
        return prefix, length
    first = jnp.maximum(length - count, 0)
    cut = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, count, 1))
    return KeyValues(*(cut(x, first) for x in prefix)), jnp.minimum(length, count)


class _Block(NamedTuple):
    """A block of the queries, from token `first` up to `last`, in layers with a window or None."""

    first: int
    last: int
    window: int | None

    def of(self, x: jax.Array) -> jax.Array:
        """Returns this block of an array [P, n, K, G, T, ...]."""
        return x[:, :, :, :, self.first : self.last]

    def seen(self, sources: Sources, visible: Visible) -> tuple[Sources, Visible]:
        """Returns the sources without keys that no query of the block attends to."""
        start = 0 if self.window is None else max(self.first - self.window + 1, 0)
        own = KeyValues(*(x[:, :, :, start : self.last] for x in sources.own))
        prefix, length = sources.prefix, visible.length
        if self.window is not None and prefix is not None and length is not None:
            count = max(self.window - 1 - self.first, 0)
            prefix, length = last_keys(prefix, length, count) if count else (None, None)
        return Sources(own, sources.earlier, prefix), Visible(
            visible.window, visible.start + start, length
        )


def _blocks(count: int, window: int | None) -> list[_Block]:
    size = max(_BLOCK, -(-count // _BLOCKS))
    starts = range(0, count, size)
    return [_Block(first, min(first + size, count), window) for first in starts]


def _for_window(
    run: Callable[[int | None], Any], sources: Sources, visible: Visible, window: int | None
) -> Any:
    """Returns run(window) where that is the window of this layer, and run(None) elsewhere."""
    tokens, prefix = sources.own.keys.shape[3], sources.prefix
    longest = max(tokens, 0 if prefix is None else prefix.keys.shape[2] + 1)
    if window is None or longest <= window:
        return run(None)
    is_local = jnp.asarray(visible.window) <= window
    return jax.lax.cond(is_local, lambda: run(window), lambda: run(None))


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(
    queries: jax.Array,
    sources: Sources,
    visible: Visible,
    soft_cap: float | None,
    local_window: int | None,
) -> jax.Array:
    return _forward(queries, sources, visible, soft_cap, local_window)[0]


def _forward(
    queries: jax.Array,
    sources: Sources,
    visible: Visible,
    soft_cap: float | None,
    local_window: int | None,
) -> tuple[jax.Array, Any]:
    def run(window: int | None) -> list[jax.Array]:
        blocks = [
            _forward_block(block.of(queries), *block.seen(sources, visible), soft_cap)
            for block in _blocks(queries.shape[4], window)
        ]
        return [jnp.concatenate(parts, 4) for parts in zip(*blocks, strict=True)]

    out, log_total = _for_window(run, sources, visible, local_window)
    return out, (queries, sources, visible, out, log_total)


def _forward_block(
    queries: jax.Array, sources: Sources, visible: Visible, soft_cap: float | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the attention of a block of queries, and the logarithms of its sums of weights."""
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
    return (out / total[..., None]).astype(queries.dtype), top + jnp.log(total)


def _backward(
    soft_cap: float | None, local_window: int | None, saved: Any, gradient: jax.Array
) -> Any:
    queries, sources, visible, out, log_total = saved

    def run(window: int | None) -> Any:
        to_queries, to_sources = [], jax.tree.map(jnp.zeros_like, sources)
        for block in _blocks(queries.shape[4], window):
            seen, put, visible_here = jax.vjp(
                lambda x, block=block: block.seen(x, visible), sources, has_aux=True
            )
            saved_here = [block.of(x) for x in (out, log_total, gradient)]
            to_block, to_seen = _backward_block(
                block.of(queries), seen, visible_here, soft_cap, *saved_here
            )
            to_queries.append(to_block)
            to_sources = jax.tree.map(jnp.add, to_sources, put(to_seen)[0])
        return jnp.concatenate(to_queries, 4), to_sources

    return *_for_window(run, sources, visible, local_window), None


def _backward_block(
    queries: jax.Array,
    sources: Sources,
    visible: Visible,
    soft_cap: float | None,
    out: jax.Array,
    log_total: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, Sources]:
    """Returns the gradients of a block of queries, and those of its keys and values."""
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
    return to_queries.astype(queries.dtype), to_sources


_attend.defvjp(_forward, _backward)


def soft_capped(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """Squashes `x` into (-soft_cap, soft_cap), or returns it as it is if `soft_cap` is None."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)
