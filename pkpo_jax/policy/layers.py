"""The layers of Gemma in flax.linen, with the parameters of the `gemma` package."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pkpo_jax.policy import lora
from pkpo_jax.policy.attention import KeyValues, Sources, Visible, apply_rope, attend
from pkpo_jax.policy.sizes import GemmaConfig


class LayerKind(NamedTuple):
    """In what local and global layers differ.

    Attributes:
      window: int32, how many of the last tokens each token attends to, itself included.
      timescale: [head_dim / 2] float32, the timescales of the rotary embeddings.
    """

    window: jax.Array
    timescale: jax.Array


class RMSNorm(nn.Module):
    """A norm that computes x / rms(x) * (1 + scale) in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + 1e-6)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


def summed_first(equation: str) -> list[int]:
    """Returns the order of a matrix's axes in which those come first that its einsum sums over.

    >>> summed_first("pntd,mdh->pntmh")
    [1, 0, 2]
    """
    inputs, axes, _ = re.split(",|->", equation)
    return sorted(range(len(axes)), key=lambda i: axes[i] not in inputs)


def adapted_einsum(module: nn.Module, name: str, equation: str, x: jax.Array) -> jax.Array:
    """Computes an einsum of x with a parameter of a module, and with its adapter if it has one.

    The result has the axes of x and then those of the parameter, less those that are summed over.
    The adapter is in the collection "lora", under the parameter's name. If the parameter is in the
    collection "transposed" too, the axes that are summed over are its first ones.
    """
    w, adapter = module.get_variable("params", name), module.get_variable("lora", name)
    inputs, axes, _ = re.split(",|->", equation)
    if module.has_variable("transposed", name):
        axes = "".join(axes[i] for i in summed_first(equation))
    summed = [axis for axis in axes if axis in inputs]
    # An einsum would choose an order of the summed axes itself, and copy the parameter for it.
    y = jnp.tensordot(x, w.astype(x.dtype), [[s.index(a) for a in summed] for s in (inputs, axes)])
    return y if adapter is None else y + lora.low_rank(equation, x, adapter)


class Einsum(nn.Module):
    """An einsum with one parameter `w`, whose initial values are scaled by `fan_in`."""

    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        if self.is_initializing():
            self.param("w", nn.initializers.normal(self.fan_in**-0.5), self.shape)
        return adapted_einsum(self, "w", equation, x)


class Attention(nn.Module):
    """Grouped-query attention, which returns its output and the keys and values of its tokens.

    Earlier tokens of the responses have theirs in a cache, as `Sources.earlier`.
    """

    config: GemmaConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        kind: LayerKind,
        positions: jax.Array,
        start: jax.typing.ArrayLike,
        prefix: tuple[KeyValues, jax.Array] | None,
        cache: KeyValues | None,
    ) -> tuple[jax.Array, KeyValues]:
        c = self.config
        heads, groups = c.num_kv_heads, c.num_heads // c.num_kv_heads
        # Products give their axes in this order without a copy.
        q = Einsum((c.num_heads, c.embed_dim, c.head_dim), c.embed_dim, name="q_einsum")(
            "pntd,mdh->pntmh", x
        ).swapaxes(2, 3)
        kv = Einsum((2, heads, c.embed_dim, c.head_dim), c.embed_dim, name="kv_einsum")(
            "pntd,ckdh->pntckh", x
        )
        keys, values = kv.transpose(3, 0, 1, 4, 2, 5)
        if c.use_qk_norm:
            q, keys = RMSNorm(name="_query_norm")(q), RMSNorm(name="_key_norm")(keys)
        q = apply_rope(q, positions, kind.timescale) * c.query_pre_attn_scalar
        kv = KeyValues(apply_rope(keys, positions, kind.timescale), values)
        q = q.reshape(*q.shape[:2], heads, groups, *q.shape[3:])
        shared, length = (None, None) if prefix is None else prefix
        sources, visible = Sources(kv, cache, shared), Visible(kind.window, start, length)
        out = attend(q, sources, visible, c.attn_logits_soft_cap, c.sliding_window_size)
        out = out.reshape(*out.shape[:2], c.num_heads, *out.shape[4:]).swapaxes(2, 3)
        out = Einsum(
            (c.num_heads, c.head_dim, c.embed_dim),
            c.num_heads * c.head_dim,
            name="attn_vec_einsum",
        )("pntmh,mhd->pntd", out)
        return out, kv


class FeedForward(nn.Module):
    """The gated feed-forward network, (gelu(x W_0) * (x W_1)) W_2."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (2, c.embed_dim, c.hidden_dim), "cdf"
        if c.transpose_gating_einsum:
            shape, axes = (2, c.hidden_dim, c.embed_dim), "cfd"
        if self.is_initializing():
            self.param("gating_einsum", nn.initializers.normal(c.embed_dim**-0.5), shape)
            shape = (c.hidden_dim, c.embed_dim)
            self.param("linear", nn.initializers.normal(c.hidden_dim**-0.5), shape)
        both = adapted_einsum(self, "gating_einsum", f"pntd,{axes}->pntcf", x)
        gate, up = both[..., 0, :], both[..., 1, :]
        return adapted_einsum(self, "linear", "pntf,fd->pntd", nn.gelu(gate) * up)


class Block(nn.Module):
    """A layer of attention and feed-forward network, each between two norms."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any) -> tuple[jax.Array, KeyValues]:
        out, kv = Attention(self.config, name="attn")(RMSNorm(name="pre_attention_norm")(x), *args)
        x = x + RMSNorm(name="post_attention_norm")(out)
        out = FeedForward(self.config, name="mlp")(RMSNorm(name="pre_ffw_norm")(x))
        return x + RMSNorm(name="post_ffw_norm")(out), kv


class PairOfBlocks(nn.Module):
    """Two layers that are named as in earlier versions, which scanned pairs of layers.

    Random parameters depend on the names, so that with these, seeds give what they always gave.
    """

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any) -> tuple[jax.Array, None]:
        for name in ("local", "global"):
            x, _ = Block(self.config, name=name)(x, *args)
        return x, None
