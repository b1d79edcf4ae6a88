"""Gemma-2 in flax.linen, with the parameters of the `gemma` package.

Arrays are [prompts, n, ...], for n responses share one prompt. A call computes T tokens of every
response. The prompt enters as a `Prefix` of keys and values computed once (`prefill`), which all n
responses attend to beside their own keys. Sampling and scoring are thin layers over that call.

Layers come in pairs, a local and a global one, and a scan runs over the pairs, so that compile time
does not grow with depth. In memory the parameters of the layers are stacked, [pairs, ...].
`unstack` converts them to the tree of the `gemma` package, with `layer_0`, `layer_1`, ..., and
`stack` converts that tree back.

The network is described in the Gemma 2 technical report, arXiv 2408.00118.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pkpo_jax.policy.sizes import SIZES as SIZES
from pkpo_jax.policy.sizes import Gemma2Config as Gemma2Config

PAD_ID = 0
KINDS = ("local", "global")
_MASKED = -1e30


class KeyValues(NamedTuple):
    """The rotated keys and the values of one layer, [P, n, S, num_kv_heads, head_dim] each."""

    keys: jax.Array
    values: jax.Array


# The cache of all layers holds keys and values by kind ("local", "global"), with a leading axis for
# the pairs.
Layers = dict[str, KeyValues]


# A function that returns its first argument, possibly constrained to the devices where arrays of
# the kind that the second one names, "activations" or "logits", live.
Placement = Callable[[jax.Array, str], jax.Array]


def _anywhere(x: jax.Array, kind: str) -> jax.Array:
    return x


class Prefix(NamedTuple):
    """Keys and values of the prompts, which the n responses to each prompt share.

    Attributes:
      layers: keys and values by kind, [pairs, P, L, num_kv_heads, head_dim] each.
      length: [P] int32, how many of the L positions hold tokens of the prefix.
    """

    layers: Layers
    length: jax.Array


class RMSNorm(nn.Module):
    """A norm that computes x / rms(x) * (1 + scale) in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + 1e-6)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


class Einsum(nn.Module):
    """An einsum with one parameter `w`, whose initial values are scaled by `fan_in`."""

    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.normal(self.fan_in**-0.5), self.shape)
        return jnp.einsum(equation, x, w.astype(x.dtype))


def apply_rope(x: jax.Array, positions: jax.Array, base_frequency: int) -> jax.Array:
    """Applies rotary embeddings at positions [P, T] to [P, n, T, heads, head_dim], in float32."""
    half = x.shape[-1] // 2
    timescale = base_frequency ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = (positions[..., None] / timescale)[:, None, :, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)


def attend(
    queries: jax.Array,
    prefix: tuple[KeyValues, jax.Array] | None,
    own: tuple[KeyValues, jax.Array],
    soft_cap: float,
) -> jax.Array:
    """Computes attention with one softmax over the prompt's shared keys and a response's own keys.

    Args:
      queries: [P, n, T, K, G, H], with G query heads for each of K key heads.
      prefix: keys and values [P, L, K, H] of the prompts, and a mask [P, T, L] of the keys to
        attend to; None without a prefix.
      own: keys and values [P, n, S, K, H] of the responses, and a mask [T, S] of the keys to attend
        to, at least one for each query.
      soft_cap: logits are squashed into (-soft_cap, soft_cap).

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
        x = soft_cap * jnp.tanh(x / soft_cap)
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


class Attention(nn.Module):
    """Grouped-query attention, which returns its output and the keys and values of its tokens.

    A cache is given as the keys and values of all layers of this kind, and the index of this layer.
    With it, the new keys and values are written into the cache at `start`, and the whole cache is
    returned in their place, so that XLA updates one buffer in place.
    """

    config: Gemma2Config
    window: int | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        start: jax.typing.ArrayLike,
        prefix: tuple[KeyValues, jax.Array] | None,
        cache: tuple[KeyValues, jax.Array] | None,
    ) -> tuple[jax.Array, KeyValues]:
        c = self.config
        heads, groups = c.num_kv_heads, c.num_heads // c.num_kv_heads
        q = Einsum((c.num_heads, c.embed_dim, c.head_dim), c.embed_dim, name="q_einsum")(
            "pntd,mdh->pntmh", x
        )
        keys, values = Einsum((2, heads, c.embed_dim, c.head_dim), c.embed_dim, name="kv_einsum")(
            "pntd,ckdh->cpntkh", x
        )
        q = apply_rope(q, positions, c.rope_base_frequency) * c.query_pre_attn_scalar
        kv = kept = KeyValues(apply_rope(keys, positions, c.rope_base_frequency), values)
        if cache is not None:
            layers, index = cache
            kept = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice(
                    old, new[None], (index, 0, 0, start, 0, 0)
                ),
                layers,
                kv,
            )
            kv = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, False), kept)

        # Positions of queries and keys are counted from the end of the prefix, so that one mask
        # serves every row.
        query_at = start + jnp.arange(x.shape[2])[:, None]
        key_at = jnp.arange(kv.keys.shape[2])
        own_mask = key_at <= query_at
        if self.window is not None:
            own_mask &= query_at - key_at < self.window
        if prefix is not None:
            layer, length = prefix
            key_at = jnp.arange(layer.keys.shape[1])
            mask = jnp.broadcast_to(
                key_at < length[:, None, None], (*positions.shape, key_at.shape[0])
            )
            if self.window is not None:
                mask &= positions[..., None] - key_at < self.window
            prefix = (layer, mask)

        q = q.reshape(*q.shape[:3], heads, groups, c.head_dim)
        out = attend(q, prefix, (kv, own_mask), c.attn_logits_soft_cap)
        out = out.reshape(*out.shape[:3], c.num_heads, c.head_dim)
        out = Einsum(
            (c.num_heads, c.head_dim, c.embed_dim),
            c.num_heads * c.head_dim,
            name="attn_vec_einsum",
        )("pntmh,mhd->pntd", out)
        return out, kept


class FeedForward(nn.Module):
    """The gated feed-forward network, (gelu(x W_0) * (x W_1)) W_2."""

    config: Gemma2Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (2, c.embed_dim, c.hidden_dim), "cdf"
        if c.transpose_gating_einsum:
            shape, axes = (2, c.hidden_dim, c.embed_dim), "cfd"
        gating = self.param("gating_einsum", nn.initializers.normal(c.embed_dim**-0.5), shape)
        linear = self.param(
            "linear", nn.initializers.normal(c.hidden_dim**-0.5), (c.hidden_dim, c.embed_dim)
        )
        gate, up = jnp.einsum(f"pntd,{axes}->cpntf", x, gating.astype(x.dtype))
        return jnp.einsum("pntf,fd->pntd", nn.gelu(gate) * up, linear.astype(x.dtype))


class Block(nn.Module):
    """A layer of attention and feed-forward network, each between two norms."""

    config: Gemma2Config
    window: int | None

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any) -> tuple[jax.Array, KeyValues]:
        out, kv = Attention(self.config, self.window, name="attn")(
            RMSNorm(name="pre_attention_norm")(x), *args
        )
        x = x + RMSNorm(name="post_attention_norm")(out)
        out = FeedForward(self.config, name="mlp")(RMSNorm(name="pre_ffw_norm")(x))
        return x + RMSNorm(name="post_ffw_norm")(out), kv


class Pair(nn.Module):
    """A local and a global layer, which are the body of the scan.

    `carry` holds the activations, and the cache of all layers or None. Without a cache, the keys
    and values of these tokens are returned if `keep` is set.
    """

    config: Gemma2Config
    remat: bool
    keep: bool
    place: Placement

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Layers | None],
        prefix: Layers | None,
        index: jax.Array,
        positions: jax.Array,
        start: jax.typing.ArrayLike,
        length: jax.Array | None,
    ) -> tuple[tuple[jax.Array, Layers | None], Layers | None]:
        x, cache = carry
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        own = {}
        for kind in KINDS:
            window = self.config.sliding_window_size if kind == "local" else None
            x, own[kind] = block(self.config, window, name=kind)(
                self.place(x, "activations"),
                positions,
                start,
                None if prefix is None else (prefix[kind], length),
                None if cache is None else (cache[kind], index),
            )
        if cache is not None:
            return (x, own), None
        return (x, None), own if self.keep else None


class Embedder(nn.Module):
    """The embedding table, which is also the head."""

    config: Gemma2Config

    def setup(self) -> None:
        c = self.config
        self.table = self.param(
            "input_embedding",
            nn.initializers.normal(c.embed_dim**-0.5),
            (c.num_embed, c.embed_dim),
        )

    def encode(self, tokens: jax.Array) -> jax.Array:
        x = self.table[tokens].astype(self.config.dtype)
        return x * jnp.sqrt(self.config.embed_dim).astype(x.dtype)

    def decode(self, x: jax.Array) -> jax.Array:
        c = self.config
        # At JAX's default precision, accelerators multiply float32 with fewer bits (TPUs in
        # bfloat16, GPUs in TF32) and add in float32. Setting jax_default_matmul_precision="highest"
        # uses all bits.
        logits = jnp.einsum("...d,vd->...v", x.astype(jnp.float32), self.table.astype(jnp.float32))
        logits = c.final_logit_softcap * jnp.tanh(logits / c.final_logit_softcap)
        ids = jnp.arange(c.num_embed)
        return jnp.where((ids != PAD_ID) & (ids < c.vocab_size), logits, _MASKED)


class Gemma2(nn.Module):
    """The network, used through `apply(..., method=...)` with `prefill`, `__call__` and `logits`.

    Attributes:
      config: the sizes of the network.
      remat: whether the backward pass recomputes each layer instead of keeping its intermediates.
      place: applied to activations [P, n, T, D] before each layer and to logits, to constrain which
        devices they live on.
    """

    config: Gemma2Config
    remat: bool = False
    place: Placement = _anywhere

    def setup(self) -> None:
        self.embedder = Embedder(self.config)
        self.final_norm = RMSNorm()

    def __call__(
        self,
        tokens: jax.Array,
        *,
        prefix: Prefix | None = None,
        start: jax.typing.ArrayLike = 0,
        cache: Layers | None = None,
    ) -> tuple[jax.Array, Layers | None]:
        """Computes the hidden states of T tokens of each response.

        Args:
          tokens: [P, n, T] int32.
          prefix: the prefix that the n responses share, or None without one.
          start: how many tokens of each response precede these. Their keys are in the cache.
          cache: keys and values [pairs, P, n, S, ...], in which the new ones are written at
            `start`, or None.

        Returns:
          [P, n, T, D] normalised hidden states, for `logits`, and the updated cache.
        """
        x, cache = self._run(tokens, prefix, start, cache)
        return self.final_norm(x), cache

    def prefill(self, prompts: jax.Array, lengths: jax.Array) -> Prefix:
        """Computes the prefix of [P, L] right-padded prompts of `lengths` [P], less the last token.

        The last token is fed with the responses, so that every response token is predicted by the
        same program, in sampling and in scoring.
        """
        _, layers = self._run(prompts[:, None], None, 0, None, keep=True)
        return Prefix(jax.tree.map(lambda x: x[:, :, 0], layers), lengths - 1)

    @nn.compact
    def _run(
        self,
        tokens: jax.Array,
        prefix: Prefix | None,
        start: jax.typing.ArrayLike,
        cache: Layers | None,
        keep: bool = False,
    ) -> tuple[jax.Array, Layers | None]:
        """Runs the layers, and returns the activations with the cache.

        If `keep` is set, the keys and values of the tokens are returned in place of the cache.
        """
        layers, length = (None, None) if prefix is None else prefix
        offset = jnp.zeros(tokens.shape[:1], jnp.int32) if length is None else length
        positions = offset[:, None] + start + jnp.arange(tokens.shape[2])
        scan = nn.scan(
            Pair,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.config.num_pairs,
            # The check traces the layers once more, and finds nothing: no variable is broadcast.
            # In `init` it stays, for the random parameters depend on it.
            check_constancy_invariants=self.is_initializing(),
        )(self.config, self.remat, keep, self.place, name="layers")
        carry = (self.embedder.encode(tokens), cache)
        indices = jnp.arange(self.config.num_pairs)
        (x, cache), own = scan(carry, layers, indices, positions, start, length)
        return self.place(x, "activations"), own if keep else cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., num_embed] of hidden states [..., D].

        PAD and the rows of the table that belong to no token are masked.
        """
        return self.place(self.embedder.decode(hidden), "logits")

    def init_cache(self, prompts: int, n: int, length: int) -> Layers:
        """Returns an empty cache for `length` tokens of each response."""
        c = self.config
        shape = (c.num_pairs, prompts, n, length, c.num_kv_heads, c.head_dim)
        return {
            kind: KeyValues(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype)) for kind in KINDS
        }


def log_probs_and_entropy(
    logits: jax.Array, temperature: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probs [..., V] of softmax(logits / temperature), and its entropy [...]."""
    log_p = jax.nn.log_softmax(logits / temperature)
    return log_p, -(jnp.exp(log_p) * log_p).sum(-1)


def last_prompt_token(prompts: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns [P] the last token of each of the right-padded prompts [P, L] of `lengths` [P]."""
    return jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)[:, 0]


def init_params(model: Gemma2, key: jax.Array) -> dict:
    """Returns random float32 parameters scaled by fan-in, for a policy trained from scratch."""
    return dict(model.init(key, jnp.zeros((1, 1, 1), jnp.int32))["params"])


def cast(params: dict, dtype: str) -> dict:
    """Converts the matrices of the layers to `dtype`, but neither the norms nor the embeddings."""
    layers = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 2 else x, params["layers"])
    return params | {"layers": layers}


def unstack(params: dict) -> dict:
    """Returns parameters as the `gemma` package names them.

    `layer_0` is local, `layer_1` global, and so on.
    """
    layers = {
        f"layer_{2 * pair + place}": jax.tree.map(
            lambda x, pair=pair: x[pair], params["layers"][kind]
        )
        for pair in range(_num_pairs(params))
        for place, kind in enumerate(KINDS)
    }
    return {name: params[name] for name in params if name != "layers"} | layers


def stack(params: dict) -> dict:
    """Inverts `unstack`: returns parameters with the layers of each kind stacked."""
    count = sum(name.startswith("layer_") for name in params)
    layers = {
        kind: jax.tree.map(
            lambda *x: jnp.stack(x), *(params[f"layer_{i}"] for i in range(place, count, 2))
        )
        for place, kind in enumerate(KINDS)
    }
    rest = {name: x for name, x in params.items() if not name.startswith("layer_")}
    return rest | {"layers": layers}


def _num_pairs(params: dict) -> int:
    return jax.tree.leaves(params["layers"])[0].shape[0]
