"""The sizes of Gemma 2 and Gemma 3, with the names and values of the `gemma` package."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """The sizes of the network, with the names and values of `gm.nn.Gemma*.config`.

    The defaults are those that all Gemma 2 share.

    Attributes:
      num_embed: the number of rows of the embedding table.
      vocab_size: the number of tokens. The rows from `vocab_size` on have probability zero.
      never_sampled: ids below `vocab_size` that have probability zero too: PAD, and the tokens of
        images in Gemma 3.
      global_every: every so many layers, the last one is global; the others are local and attend to
        a window of `sliding_window_size` tokens.
      attn_logits_soft_cap: attention's logits are squashed below this, or not if None.
      final_logit_softcap: the logits of tokens are squashed below this, or not if None.
      use_qk_norm: whether queries and keys are normalised before their rotation.
      local_base_frequency: the base of the rotary embeddings' timescales in local layers.
      global_base_frequency: the same in global layers.
      global_scale_factor: global layers divide positions by this.
      dtype: the dtype of activations, "float32" or "bfloat16". Norms, softmax, soft-caps and
        logits are always float32.
      lora_alpha: the outputs of low-rank adapters, where there are any, are multiplied by this
        number over their rank; see lora.py.
    """

    num_layers: int
    embed_dim: int
    hidden_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    transpose_gating_einsum: bool = True
    num_embed: int = 256_128
    vocab_size: int = 256_000
    never_sampled: tuple[int, ...] = (0,)
    sliding_window_size: int = 4096
    global_every: int = 2
    attn_logits_soft_cap: float | None = 50.0
    final_logit_softcap: float | None = 30.0
    use_qk_norm: bool = False
    local_base_frequency: int = 10_000
    global_base_frequency: int = 10_000
    global_scale_factor: float = 1.0
    dtype: str = "float32"
    lora_alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers}; expected at least one layer.")
        if self.num_heads % self.num_kv_heads or self.num_heads == self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}; Gemma groups "
                "queries, so num_heads must be a multiple of num_kv_heads, and larger."
            )
        if not 2 < self.vocab_size <= self.num_embed:
            raise ValueError(
                f"vocab_size={self.vocab_size} must lie in 3..num_embed={self.num_embed}."
            )

    @property
    def generation(self) -> int:
        """2 or 3. Only Gemma 3 normalises queries and keys."""
        return 3 if self.use_qk_norm else 2

    def is_global(self, layer: int) -> bool:
        """Returns whether a layer attends to all tokens before it."""
        return layer % self.global_every == self.global_every - 1


def title(size: str) -> str:
    """Returns a size as a reader knows it.

    >>> title("2b"), title("gemma3_270m"), title("tiny")
    ('Gemma 2 2b', 'Gemma 3 270m', 'Gemma 2 tiny')
    """
    generation, _, name = size.rpartition("_")
    return f"Gemma {generation.removeprefix('gemma') or 2} {name}"


# The fields that all sizes of Gemma 3 share.
_GEMMA3: dict[str, Any] = dict(
    num_embed=262_144,
    vocab_size=262_144,
    # PAD, <start_of_image> and <end_of_image>.
    never_sampled=(0, 255_999, 256_000),
    global_every=6,
    attn_logits_soft_cap=None,
    final_logit_softcap=None,
    use_qk_norm=True,
    global_base_frequency=1_000_000,
)

SIZES = {
    "tiny": GemmaConfig(
        num_layers=2,
        embed_dim=64,
        hidden_dim=160,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16**-0.5,
        num_embed=128,
        vocab_size=128,
        sliding_window_size=32,
    ),
    "2b": GemmaConfig(
        num_layers=26,
        embed_dim=2304,
        hidden_dim=9216,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        transpose_gating_einsum=False,
    ),
    "9b": GemmaConfig(
        num_layers=42,
        embed_dim=3584,
        hidden_dim=14336,
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
    ),
    "27b": GemmaConfig(
        num_layers=46,
        embed_dim=4608,
        hidden_dim=36864,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        query_pre_attn_scalar=(4608 // 32) ** -0.5,
    ),
    "gemma3_270m": GemmaConfig(
        num_layers=18,
        embed_dim=640,
        hidden_dim=2048,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        sliding_window_size=512,
        **_GEMMA3,
    ),
    "gemma3_1b": GemmaConfig(
        num_layers=26,
        embed_dim=1152,
        hidden_dim=6912,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        sliding_window_size=512,
        **_GEMMA3,
    ),
    "gemma3_4b": GemmaConfig(
        num_layers=34,
        embed_dim=2560,
        hidden_dim=10240,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        sliding_window_size=1024,
        global_scale_factor=8.0,
        **_GEMMA3,
    ),
    "gemma3_12b": GemmaConfig(
        num_layers=48,
        embed_dim=3840,
        hidden_dim=15360,
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256**-0.5,
        sliding_window_size=1024,
        global_scale_factor=8.0,
        **_GEMMA3,
    ),
    "gemma3_27b": GemmaConfig(
        num_layers=62,
        embed_dim=5376,
        hidden_dim=21504,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        query_pre_attn_scalar=(5376 // 32) ** -0.5,
        sliding_window_size=1024,
        global_scale_factor=8.0,
        **_GEMMA3,
    ),
}
