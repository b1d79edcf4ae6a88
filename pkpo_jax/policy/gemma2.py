"""Gemma-2 in flax.linen, with the parameter tree of the `gemma` package.

Arrays are [prompts, n, ...]: n responses share one prompt. A call computes T tokens of every
response; the prompt enters as a `Prefix` of keys and values computed once (`prefill`), which all n
responses attend to beside their own keys. Sampling and scoring are thin layers over that call.

Gemma 2 technical report: arXiv 2408.00118.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

PAD_ID = 0
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Gemma2Config:
    """Sizes of the network; names and values are those of `gm.nn.Gemma2_*.config`.

    `num_embed` counts the rows of the embedding table, `vocab_size` the tokens that exist: rows
    from `vocab_size` on, and PAD, are never sampled and have probability zero. `dtype` is that of
    activations ("float32" or "bfloat16"); norms, softmax, soft-caps and the head are float32.
    """

    num_layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    transpose_gating_einsum: bool
    num_embed: int = 256_128
    vocab_size: int = 256_000
    sliding_window_size: int = 4096
    attn_logits_soft_cap: float = 50.0
    final_logit_softcap: float = 30.0
    rope_base_frequency: int = 10_000
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads or self.num_heads == self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}; Gemma-2 groups "
                "queries: num_heads must be a multiple of num_kv_heads, and larger."
            )
        if not 2 < self.vocab_size <= self.num_embed:
            raise ValueError(
                f"vocab_size={self.vocab_size} must lie in 3..num_embed={self.num_embed}."
            )

    def is_local(self, layer: int) -> bool:
        """Local (sliding window) and global layers alternate, local first."""
        return layer % 2 == 0


SIZES = {
    "tiny": Gemma2Config(
        num_layers=2,
        embed_dim=64,
        hidden_dim=160,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16**-0.5,
        transpose_gating_einsum=True,
        num_embed=128,
        vocab_size=128,
        sliding_window_size=32,
    ),
    "2b": Gemma2Config(
        num_layers=26,
        embed_dim=2304,
        hidden_dim=9216,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        transpose_gating_einsum=False,
    ),
    "9b": Gemma2Config(
        num_layers=42,
        embed_dim=3584,
        hidden_dim=14336,
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        transpose_gating_einsum=True,
    ),
    "27b": Gemma2Config(
        num_layers=46,
        embed_dim=4608,
        hidden_dim=36864,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        query_pre_attn_scalar=(4608 // 32) ** -0.5,
        transpose_gating_einsum=True,
    ),
}


class KeyValues(NamedTuple):
    """Keys and values of one layer, rotated: [P, n, S, num_kv_heads, head_dim] each."""

    keys: jax.Array
    values: jax.Array


class Prefix(NamedTuple):
    """What the n responses of a prompt share.

    Attributes:
      layers: one KeyValues a layer, here [P, L, num_kv_heads, head_dim] each.
      length: [P] int32, how many of the L positions count.
    """

    layers: tuple[KeyValues, ...]
    length: jax.Array


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + scale), in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + 1e-6)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


class Einsum(nn.Module):
    """An einsum with one weight `w`; `fan_in` scales its initial values."""

    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.normal(self.fan_in**-0.5), self.shape)
        return jnp.einsum(equation, x, w.astype(x.dtype))


def apply_rope(x: jax.Array, positions: jax.Array, base_frequency: int) -> jax.Array:
    """Rotates [P, n, T, heads, head_dim] by positions [P, T]; angles in float32."""
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
    """One softmax over two sets of keys: the prompt's, shared by the n responses, and their own.

    Args:
      queries: [P, n, T, K, G, H], G query heads to each of K key heads.
      prefix: keys and values [P, L, K, H], and the mask [P, T, L] of those to attend to.
      own: keys and values [P, n, S, K, H], and the mask [T, S]; a query sees at least one of them.
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
    """Grouped-query attention; returns the output and the keys and values of its own tokens."""

    config: Gemma2Config
    window: int | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        start: jax.typing.ArrayLike,
        prefix: tuple[KeyValues, jax.Array] | None,
        cache: KeyValues | None,
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
        kv = KeyValues(apply_rope(keys, positions, c.rope_base_frequency), values)
        if cache is not None:
            kv = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 2), cache, kv
            )

        # Queries and keys count from the end of the prefix, so one mask serves every row.
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
        return out, kv


class FeedForward(nn.Module):
    """gelu(x W_0) * (x W_1), projected back."""

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
    """Attention and feed-forward, each between two norms."""

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


class Embedder(nn.Module):
    """The embedding table, tied to the head."""

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
        logits = jnp.einsum("...d,vd->...v", x.astype(jnp.float32), self.table.astype(jnp.float32))
        logits = c.final_logit_softcap * jnp.tanh(logits / c.final_logit_softcap)
        ids = jnp.arange(c.num_embed)
        return jnp.where((ids != PAD_ID) & (ids < c.vocab_size), logits, _MASKED)


class Gemma2(nn.Module):
    """The network. `apply(..., method=...)` reaches `prefill`, `__call__` and `logits`."""

    config: Gemma2Config

    def setup(self) -> None:
        c = self.config
        self.embedder = Embedder(c)
        self.blocks = [
            Block(c, c.sliding_window_size if c.is_local(i) else None, name=f"layer_{i}")
            for i in range(c.num_layers)
        ]
        self.final_norm = RMSNorm()

    def __call__(
        self,
        tokens: jax.Array,
        *,
        prefix: Prefix | None = None,
        start: jax.typing.ArrayLike = 0,
        cache: tuple[KeyValues, ...] | None = None,
    ) -> tuple[jax.Array, tuple[KeyValues, ...]]:
        """Runs T tokens of each response.

        Args:
          tokens: [P, n, T] int32.
          prefix: what comes before them, shared by the n responses; None if nothing does.
          start: how many tokens of the response stand before these; they are in the cache.
          cache: one KeyValues [P, n, S, ...] a layer; the new ones are written at `start`.

        Returns:
          [P, n, T, D] normalised hidden states, for `logits`, and one KeyValues a layer:
          the updated cache, or those of these T tokens.
        """
        offset = jnp.zeros(tokens.shape[:1], jnp.int32) if prefix is None else prefix.length
        positions = offset[:, None] + start + jnp.arange(tokens.shape[2])
        x = self.embedder.encode(tokens)
        own = []
        for i, block in enumerate(self.blocks):
            shared = None if prefix is None else (prefix.layers[i], prefix.length)
            x, kv = block(x, positions, start, shared, None if cache is None else cache[i])
            own.append(kv)
        return self.final_norm(x), tuple(own)

    def prefill(self, prompts: jax.Array, lengths: jax.Array) -> Prefix:
        """The prefix of [P, L] right-padded prompts of `lengths` [P]: all but their last token.

        The last token is fed with the responses, so that every response token is predicted by
        the same program, in sampling and in scoring.
        """
        _, own = self(prompts[:, None])
        layers = jax.tree.map(lambda x: x[:, 0], own)
        return Prefix(layers, lengths - 1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] to [..., num_embed] float32; PAD and rows without a token are masked."""
        return self.embedder.decode(hidden)

    def init_cache(self, prompts: int, n: int, length: int) -> tuple[KeyValues, ...]:
        """Empty caches for `length` tokens of each response."""
        c = self.config
        shape = (prompts, n, length, c.num_kv_heads, c.head_dim)
        zeros = jnp.zeros(shape, c.dtype)
        return tuple(KeyValues(zeros, zeros) for _ in range(c.num_layers))


def log_probs_and_entropy(
    logits: jax.Array, temperature: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """[..., V] log-probs of softmax(logits / temperature), and its entropy [...] in nats."""
    log_p = jax.nn.log_softmax(logits / temperature)
    return log_p, -(jnp.exp(log_p) * log_p).sum(-1)


def last_prompt_token(prompts: jax.Array, lengths: jax.Array) -> jax.Array:
    """[P] the token at each prompt's end, [P, L] right-padded prompts."""
    return jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)[:, 0]


def init_params(model: Gemma2, key: jax.Array) -> dict:
    """Random float32 parameters, scaled by fan-in: a policy to train from scratch."""
    return model.init(key, jnp.zeros((1, 1, 1), jnp.int32))["params"]
