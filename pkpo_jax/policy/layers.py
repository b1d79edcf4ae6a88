"""The layers of Gemma in flax.linen, with the parameters of the `gemma` package."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from pkpo_jax.policy import lora, matrices
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


def multiply(module: nn.Module, name: str, of: matrices.Axes, x: jax.Array) -> jax.Array:
    """Computes the product of x with a matrix, a parameter of the module, and with its adapter.

    The adapter is in the collection "lora", under the parameter's name, if there is one. Initial
    values are scaled by the number of inputs.
    """
    if module.is_initializing():
        config = module.config  # type: ignore[missing-attribute]
        scale = matrices.fan_in(config, of) ** -0.5
        shape = tuple(matrices.sizes(config, of.matrix))
        module.param(name, nn.initializers.normal(scale), shape)
    y = matrices.product(of, x, module.get_variable("params", name))
    adapter = module.get_variable("lora", name)
    return y if adapter is None else y + lora.low_rank(of, x, adapter)


class Einsum(nn.Module):
    """A product with one parameter `w`."""

    config: GemmaConfig
    axes: matrices.Axes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return multiply(self, "w", self.axes, x)


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
        axes = {path[1]: of for path, of in matrices.axes(c).items()}
        project = {
            name: Einsum(c, axes[name], name=name)
            for name in ("q_einsum", "kv_einsum", "attn_vec_einsum")
        }
        q, kv = project["q_einsum"](x).swapaxes(2, 3), project["kv_einsum"](x)
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
        return project["attn_vec_einsum"](out), kv


class FeedForward(nn.Module):
    """The gated feed-forward network, (gelu(x W_0) * (x W_1)) W_2."""

    config: GemmaConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = matrices.axes(self.config)
        both = multiply(self, "gating_einsum", axes["mlp", "gating_einsum"], x)
        gate, up = both[..., 0, :], both[..., 1, :]
        return multiply(self, "linear", axes["mlp", "linear"], nn.gelu(gate) * up)


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
