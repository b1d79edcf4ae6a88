"""Gemma 2 by hand: plain functions with the numbers of the package, written for speed alone.

`inner_loop` measures the package beside these. They take the tree of `gemma.unstack`, and know no
meshes, no remat, no LoRA and no Gemma 3. Layers are unrolled, queries are computed in blocks whose
logits are computed again in the backward pass, and local layers read no key outside their window.
Decoding keeps one cache a layer, which grows as responses do and which finished responses leave.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pkpo_jax.policy.gemma import GemmaConfig
from pkpo_jax.policy.sampling import Rollout

_QUERIES = 128  # Prompt tokens that attend at a time.
_TOKENS = 64  # Room in the first cache.


class Layer(NamedTuple):
    """The parameters of a layer as [inputs, outputs] matrices, and the scales of its norms."""

    qkv: jax.Array
    out: jax.Array
    gating: jax.Array
    linear: jax.Array
    scales: tuple[jax.Array, ...]


def windows(c: GemmaConfig) -> list[int | None]:
    """Returns how many tokens each layer sees, or None for global layers."""
    size = c.sliding_window_size
    return [None if c.is_global(i) else size for i in range(c.num_layers)]


def arrange(c: GemmaConfig, params: dict) -> list[Layer]:
    """Returns the layers of the tree of `gemma.unstack`, with products that share inputs joined."""
    layers = []
    for i in range(c.num_layers):
        tree = params[f"layer_{i}"]
        q, kv = tree["attn"]["q_einsum"]["w"], tree["attn"]["kv_einsum"]["w"]
        heads = jnp.concatenate([q, kv[0], kv[1]])
        gating = tree["mlp"]["gating_einsum"]
        axes = (2, 0, 1) if c.transpose_gating_einsum else (1, 0, 2)
        names = ("pre_attention", "post_attention", "pre_ffw", "post_ffw")
        layers.append(
            Layer(
                heads.swapaxes(0, 1).reshape(c.embed_dim, -1),
                tree["attn"]["attn_vec_einsum"]["w"].reshape(-1, c.embed_dim),
                gating.transpose(axes).reshape(c.embed_dim, -1),
                tree["mlp"]["linear"],
                tuple(1 + tree[f"{name}_norm"]["scale"] for name in names),
            )
        )
    return layers


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def _angles(c: GemmaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sines and cosines [..., 1, head_dim / 2] of rotations at `positions` [...]."""
    half = c.head_dim // 2
    angle = positions[..., None] / 10_000 ** (jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.sin(angle)[..., None, :], jnp.cos(angle)[..., None, :]


def _project(c: GemmaConfig, layer: Layer, x: jax.Array, angles: Any) -> tuple[jax.Array, ...]:
    """Returns queries [..., K, G, H], keys and values [..., K, H] of activations [..., D]."""
    heads = _norm(x, layer.scales[0]) @ layer.qkv
    heads = heads.reshape(*x.shape[:-1], -1, c.head_dim)
    count, (sin, cos) = c.num_heads, angles
    first, second = jnp.split(heads[..., : count + c.num_kv_heads, :], 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    queries = turned[..., :count, :] * c.query_pre_attn_scalar
    queries = queries.reshape(*x.shape[:-1], c.num_kv_heads, -1, c.head_dim)
    return queries, turned[..., count:, :], heads[..., count + c.num_kv_heads :, :]


def _finish(layer: Layer, x: jax.Array, attended: jax.Array) -> jax.Array:
    """Returns the activations after a layer whose attention gave [..., K, G, H]."""
    out = attended.reshape(*x.shape[:-1], -1) @ layer.out
    x = x + _norm(out, layer.scales[1])
    gate, up = jnp.split(_norm(x, layer.scales[2]) @ layer.gating, 2, -1)
    return x + _norm((jax.nn.gelu(gate) * up) @ layer.linear, layer.scales[3])


def _capped(x: jax.Array, cap: float | None) -> jax.Array:
    if cap is None:
        raise ValueError("A soft-cap is None; the hand-written network is Gemma 2, which has both.")
    return cap * jnp.tanh(x / cap)


def _weights(c: GemmaConfig, equation: str, q: jax.Array, k: jax.Array, mask: Any) -> jax.Array:
    """Returns exp(logits), which soft-caps keep small enough to need no maximum."""
    logits = _capped(jnp.einsum(equation, q, k), c.attn_logits_soft_cap)
    return jnp.where(mask, jnp.exp(logits), 0.0)


# The backward pass keeps the sums of attention, and computes the weights that they are of again.
_recomputed = functools.partial(
    jax.checkpoint,
    static_argnums=0,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names("sums"),
)


@_recomputed
def _attend_prompt(
    c: GemmaConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns the attention [P, K, G, T, H] of a block of queries to keys [P, K, S, H]."""
    weights = _weights(c, "pkgth,pksh->pkgts", q, k, mask)
    total = checkpoint_name(weights.sum(-1, keepdims=True), "sums")
    return checkpoint_name(jnp.einsum("pkgts,pksh->pkgth", weights, v), "sums") / total


@_recomputed
def _attend_both(
    c: GemmaConfig, q: jax.Array, prefix: Any, k: jax.Array, v: jax.Array, masks: Any
) -> jax.Array:
    """Returns the attention [P, n, K, G, T, H] to the prompts' and the responses' own keys."""
    shared = _weights(c, "pnkgth,pksh->pkngts", q, prefix[0], masks[0])
    own = _weights(c, "pnkgth,pnksh->pnkgts", q, k, masks[1])
    total = shared.sum(-1).swapaxes(1, 2) + own.sum(-1)
    out = jnp.einsum("pkngts,pksh->pnkgth", shared, prefix[1])
    out += jnp.einsum("pnkgts,pnksh->pnkgth", own, v)
    return checkpoint_name(out, "sums") / checkpoint_name(total, "sums")[..., None]


def prefill(c: GemmaConfig, table: jax.Array, layers: list[Layer], prompts: jax.Array) -> list:
    """Returns the keys and values of each layer, [P, K, L, H] each."""
    length = prompts.shape[1]
    angles = _angles(c, jnp.arange(length))
    x, kept = table[prompts] * c.embed_dim**0.5, []
    for layer, window in zip(layers, windows(c), strict=True):
        q, k, v = _project(c, layer, x, angles)
        q, (k, v) = q.transpose(0, 2, 3, 1, 4), (y.swapaxes(1, 2) for y in (k, v))
        kept.append((k, v))
        window, blocks = window or length, []
        for first in range(0, length, _QUERIES):
            last = min(first + _QUERIES, length)
            seen = slice(max(first - window + 1, 0), last)
            before = np.arange(first, last)[:, None] - np.arange(seen.start, last)
            mask = (before >= 0) & (before < window)
            blocks.append(
                _attend_prompt(c, q[:, :, :, first:last], k[:, :, seen], v[:, :, seen], mask)
            )
        x = _finish(layer, x, jnp.concatenate(blocks, 3).transpose(0, 3, 1, 2, 4))
    return kept


def within_window(c: GemmaConfig, kept: list, lengths: jax.Array) -> list:
    """Returns (keys, values, positions [P, S]) of each layer's keys that responses can see.

    The prefix is the prompt less its last token, which is fed with the responses.
    """
    visible = []
    for window, kv in zip(windows(c), kept, strict=True):
        size = kv[0].shape[2]
        size = size if window is None else min(size, window - 1)
        start = jnp.maximum(lengths - 1 - size, 0)
        cut = jax.vmap(functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=size, axis=1))
        visible.append((*(cut(y, start) for y in kv), start[:, None] + jnp.arange(size)))
    return visible


def _sees(window: int | None, positions: jax.Array, lengths: jax.Array, at: jax.Array) -> jax.Array:
    """Returns [P, T, S], whether response tokens `at` [T] see prefix keys at `positions`."""
    lengths = lengths[:, None, None] - 1
    mask = positions[:, None] < lengths
    if window is not None:
        mask &= lengths + at[:, None] - positions[:, None] < window
    return mask


def _head(c: GemmaConfig, table: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
    logits = _capped(_norm(x, 1 + scale) @ table.T, c.final_logit_softcap)
    sampled = ~np.isin(np.arange(c.num_embed), c.never_sampled)
    sampled &= np.arange(c.num_embed) < c.vocab_size
    return jnp.where(sampled, logits, -1e30)


def score(
    c: GemmaConfig, params: dict, prompts: jax.Array, lengths: jax.Array, responses: jax.Array
) -> jax.Array:
    """Returns the log-probs [P, n, T] of `responses`, as `scoring.score` does."""
    table, layers = params["embedder"]["input_embedding"], arrange(c, params)
    prefix = within_window(c, prefill(c, table, layers, prompts), lengths)
    count, at = responses.shape[2], jnp.arange(responses.shape[2])
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)[:, None]
    last = jnp.broadcast_to(last, (*responses.shape[:2], 1))
    x = table[jnp.concatenate([last, responses[:, :, :-1]], -1)] * c.embed_dim**0.5
    angles = _angles(c, (lengths[:, None] - 1 + at)[:, None])
    before = at[:, None] - at
    for layer, window, (*kv, positions) in zip(layers, windows(c), prefix, strict=True):
        q, k, v = _project(c, layer, x, angles)
        q, (k, v) = q.transpose(0, 1, 3, 4, 2, 5), (y.swapaxes(2, 3) for y in (k, v))
        own = (before >= 0) & (before < (window or count))
        masks = _sees(window, positions, lengths, at)[:, None, None, None], own
        attended = _attend_both(c, q, kv, k, v, masks)
        x = _finish(layer, x, attended.transpose(0, 1, 4, 2, 3, 5))
    log_p = jax.nn.log_softmax(_head(c, table, params["final_norm"]["scale"], x))
    return jnp.take_along_axis(log_p, responses[..., None], -1)[..., 0]


def products(c: GemmaConfig, params: dict, prompts: jax.Array, responses: jax.Array) -> jax.Array:
    """Returns a number whose gradient takes the dense products of that of `score`, and no more.

    Every token goes through the matrices of each layer, without attention or norms.
    """
    table, layers = params["embedder"]["input_embedding"], arrange(c, params)
    x = table[jnp.concatenate([prompts.ravel(), responses.ravel()])]
    for layer in layers:
        heads = (x @ layer.qkv).reshape(len(x), -1, c.head_dim)
        q, k, v = jnp.split(heads, np.cumsum([c.num_heads, c.num_kv_heads]), 1)
        q = q.reshape(len(x), c.num_kv_heads, -1, c.head_dim) + (k + v)[:, :, None]
        gate, up = jnp.split(q.reshape(len(x), -1) @ layer.out @ layer.gating, 2, -1)
        x += (gate * up) @ layer.linear
    return (x[prompts.size :] @ table.T).sum()


class _Decoding(NamedTuple):
    """The arrays that the loop over tokens reads, with lengths [P] and random keys [P, n]."""

    table: jax.Array
    scale: jax.Array
    layers: list[Layer]
    prefix: list
    lengths: jax.Array
    keys: jax.Array


_WRITTEN = ("tokens", "log_probs", "entropy", "lengths", "finished")


def _cache(c: GemmaConfig, shape: tuple[int, int], size: int) -> list:
    """Returns empty caches [P, n, K, S, H] of keys and of values, no longer than a window."""
    sizes = [min(size, window or size) for window in windows(c)]
    empty = [jnp.zeros((*shape, c.num_kv_heads, size, c.head_dim)) for size in sizes]
    return [(x, x) for x in empty]


def _step(c: GemmaConfig, stop: tuple, d: _Decoding, temperature: jax.Array, s: dict) -> dict:
    """Samples one token of each response."""
    t, live, cache = s["t"], ~s["finished"], []
    x = d.table[s["last"]] * c.embed_dim**0.5
    angles = _angles(c, (d.lengths - 1 + t)[:, None])
    for layer, window, (*shared, positions), own in zip(
        d.layers, windows(c), d.prefix, s["cache"], strict=True
    ):
        q, *new = _project(c, layer, x, angles)
        # A local layer's cache is a ring, in which a token takes the place of one out of sight.
        size = own[0].shape[3]
        at = (0, 0, 0, t % size, 0)
        k, v = (
            jax.lax.dynamic_update_slice(old, y[:, :, :, None], at)
            for old, y in zip(own, new, strict=True)
        )
        cache.append((k, v))
        mask = _sees(window, positions, d.lengths, t[None])[:, :, None, None]
        to_prefix = _weights(c, "pnkgh,pksh->pkngs", q, shared[0], mask)
        to_own = _weights(c, "pnkgh,pnksh->pnkgs", q, k, jnp.arange(size) <= t)
        total = to_prefix.sum(-1).swapaxes(1, 2) + to_own.sum(-1)
        out = jnp.einsum("pkngs,pksh->pnkgh", to_prefix, shared[1])
        out += jnp.einsum("pnkgs,pnksh->pnkgh", to_own, v)
        x = _finish(layer, x, out / total[..., None])
    log_p = jax.nn.log_softmax(_head(c, d.table, d.scale, x) / temperature)
    noise = jax.vmap(
        jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), (c.num_embed,)))
    )
    noisy = log_p + noise(d.keys)
    ids = jnp.arange(c.num_embed)
    token = jnp.where(noisy == noisy.max(-1, keepdims=True), ids, c.num_embed).min(-1)
    new = {
        "tokens": token,
        "log_probs": jnp.take_along_axis(log_p, token[..., None], -1)[..., 0],
        "entropy": -(jnp.exp(log_p) * log_p).sum(-1),
    }
    written = {name: s[name].at[:, :, t].set(jnp.where(live, y, 0)) for name, y in new.items()}
    ended = jnp.isin(token, jnp.array(stop, jnp.int32)) & live
    return written | {
        "t": t + 1,
        "last": token,
        "cache": cache,
        "lengths": s["lengths"] + live,
        "finished": s["finished"] | ended,
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(
    c: GemmaConfig, stop: tuple, d: _Decoding, temperature: Any, s: dict, limit: Any, few: Any
) -> dict:
    """Samples up to token `limit`, or until no more than `few` responses go on."""
    going_on = lambda s: (s["t"] < limit) & ((~s["finished"]).sum() > few)  # noqa: E731
    return jax.lax.while_loop(going_on, lambda s: _step(c, stop, d, temperature, s), s)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _begin(
    c: GemmaConfig, params: dict, prompts: jax.Array, lengths: jax.Array, key: jax.Array, n: int
) -> tuple[_Decoding, jax.Array]:
    """Returns what the loop over tokens reads, and the last token of each prompt."""
    table, layers = params["embedder"]["input_embedding"], arrange(c, params)
    prefix = within_window(c, prefill(c, table, layers, prompts), lengths)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold, (0, None))(fold(key, jnp.arange(len(prompts))), jnp.arange(n))
    last = jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)
    scale = params["final_norm"]["scale"]
    return _Decoding(table, scale, layers, prefix, lengths, keys), last


@functools.partial(jax.jit, static_argnums=0)
def _grow(c: GemmaConfig, new: list, old: list) -> list:
    """Returns the caches `new` with the tokens of `old`, which have all been written."""
    write = lambda x, y: jax.lax.dynamic_update_slice(x, y, (0,) * 5)  # noqa: E731
    return jax.tree.map(write, new, old)


@jax.jit
def _keep(d: _Decoding, s: dict, kept: jax.Array, rows: jax.Array) -> tuple[_Decoding, dict]:
    """Returns prompts `kept` [P] alone, and of their responses those of numbers `rows` [P, n]."""
    prefix, lengths = jax.tree.map(lambda x: x[kept], (d.prefix, d.lengths))
    take = lambda x: x if x.ndim == 0 else x[kept[:, None], rows]  # noqa: E731
    return d._replace(prefix=prefix, lengths=lengths, keys=take(d.keys)), jax.tree.map(take, s)


def _smaller(live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns the prompts [P] and rows [P, n] to keep and which of them are live.

    P and n are powers of two. The result is None if they would hold more than half of the rows.
    """
    power = lambda count: 1 << int(count - 1).bit_length()  # noqa: E731
    kept = np.flatnonzero(live.any(1))
    shape = power(len(kept)), power(live.sum(1).max())
    if 2 * shape[0] * shape[1] > live.size:
        return None
    kept = np.resize(kept, shape[0])
    rows = np.argsort(~live[kept], axis=1, kind="stable")[:, : shape[1]]
    real = np.take_along_axis(live[kept], rows, 1)
    real[live.any(1).sum() :] = False
    return kept, rows, real


def sample(
    c: GemmaConfig,
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    temperature: float,
    *,
    n: int,
    max_response: int,
    stop_tokens: tuple[int, ...],
) -> Rollout:
    """Samples the tokens that `sampling.sample` does, at temperatures above 0.

    The host runs the loop in parts, between which caches grow and finished responses leave.
    """
    d, last = _begin(c, params, prompts, lengths, key, n)
    shape = len(prompts), n
    written: Any = {name: np.zeros((*shape, max_response), np.float32) for name in _WRITTEN[:3]}
    written |= {"lengths": np.zeros(shape, np.int32), "finished": np.zeros(shape, bool)}
    s = jax.tree.map(jnp.asarray, written) | {"t": jnp.int32(0)}
    s["tokens"] = s["tokens"].astype(jnp.int32)
    s |= {"last": jnp.broadcast_to(last, shape), "cache": _cache(c, shape, _TOKENS)}
    # The number of each row in the result, or -1 for rows that fill a batch up.
    numbers, size = np.arange(shape[0] * n).reshape(shape), _TOKENS

    def collect(done: np.ndarray) -> None:
        for name, x in written.items():
            x.reshape(-1, *x.shape[2:])[numbers[done]] = np.asarray(s[name])[done]

    few = numbers.size // 2
    while True:
        s = _decode(c, stop_tokens, d, temperature, s, min(size, max_response), few)
        t, live = int(s["t"]), np.logical_not(s["finished"])
        if t == max_response or not live.any():
            collect(numbers >= 0)
            break
        if live.sum() <= few:
            few = live.sum() // 2
            if smaller := _smaller(live):
                collect(np.logical_not(live) & (numbers >= 0))
                kept, rows, real = smaller
                d, s = _keep(d, s, kept, rows)
                numbers = np.where(real, numbers[kept[:, None], rows], -1)
                s["finished"] = ~jnp.asarray(real)
                few = min(few, numbers.size // 2)
        if t == size:
            size *= 2
            s["cache"] = _grow(c, _cache(c, numbers.shape, size), s["cache"])
    mask = np.arange(max_response) < written["lengths"][..., None]
    written["tokens"] = written["tokens"].astype(np.int32)
    names = "tokens", "lengths", "mask", "log_probs", "entropy", "finished"
    return Rollout(**{name: (written | {"mask": mask})[name] for name in names})
