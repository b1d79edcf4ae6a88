"""The sizes of Gemma-2, with the names and values of the `gemma` package."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gemma2Config:
    """The sizes of the network, with the names and values of `gm.nn.Gemma2_*.config`.

    `num_embed` is the number of rows of the embedding table and `vocab_size` the number of tokens.
    PAD and the rows from `vocab_size` on are never sampled and have probability zero. `dtype` is
    that of activations ("float32" or "bfloat16"). Norms, softmax, soft-caps and the head are always
    float32.
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
        if self.num_layers < 2 or self.num_layers % 2:
            raise ValueError(
                f"num_layers={self.num_layers}; layers come in pairs, a local and a global one, so "
                "num_layers must be even."
            )
        if self.num_heads % self.num_kv_heads or self.num_heads == self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}; Gemma-2 groups "
                "queries, so num_heads must be a multiple of num_kv_heads, and larger."
            )
        if not 2 < self.vocab_size <= self.num_embed:
            raise ValueError(
                f"vocab_size={self.vocab_size} must lie in 3..num_embed={self.num_embed}."
            )

    @property
    def num_pairs(self) -> int:
        """The number of pairs of a local (sliding-window) layer and the global layer after it."""
        return self.num_layers // 2


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
