"""Logits of the `gemma` package for tiny configurations, kept in tests/data/gemma_golden.npz.

python -m tests.policy.gemma_golden

writes them. It needs `pip install -e ".[gemma]"`; the tests that read them do not.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.policy import gemma, official

PATH = pathlib.Path(__file__).parents[1] / "data" / "gemma_golden.npz"
LENGTH = 14

_BASE = dataclasses.replace(
    gemma.SIZES["tiny"],
    num_layers=4,
    embed_dim=24,
    hidden_dim=40,
    head_dim=8,
    query_pre_attn_scalar=8**-0.5,
    num_embed=50,
    vocab_size=50,
    sliding_window_size=5,
)
# These cover each difference between the sizes: the layout of the gating, the scale of queries and
# the number of query heads per key head. The window is smaller than the sequence, and the
# soft-caps are low enough to affect the logits.
CONFIGS = {
    "2b": dataclasses.replace(_BASE, transpose_gating_einsum=False),
    "9b": dataclasses.replace(_BASE, transpose_gating_einsum=True, num_heads=6, num_kv_heads=2),
    "27b": dataclasses.replace(_BASE, query_pre_attn_scalar=(24 // 4) ** -0.5),
    "soft-caps": dataclasses.replace(_BASE, attn_logits_soft_cap=2.0, final_logit_softcap=3.0),
}
# Depths that are no multiple of the pattern of local and global layers, both bases of the rotary
# embeddings, and their scale.
_GEMMA3 = dataclasses.replace(
    gemma.SIZES["gemma3_4b"],
    embed_dim=24,
    hidden_dim=40,
    num_heads=4,
    num_kv_heads=1,
    head_dim=8,
    query_pre_attn_scalar=8**-0.5,
    num_embed=50,
    vocab_size=50,
    never_sampled=(0,),
    sliding_window_size=5,
)
CONFIGS |= {
    "gemma3, 6 layers": dataclasses.replace(_GEMMA3, num_layers=6, global_scale_factor=1.0),
    "gemma3, 8 layers": dataclasses.replace(_GEMMA3, num_layers=8, num_kv_heads=2),
    "gemma3, 11 layers": dataclasses.replace(
        _GEMMA3, num_layers=11, query_pre_attn_scalar=(24 // 4) ** -0.5
    ),
}


def params(name):
    """Returns random parameters from NumPy, the same on every machine."""
    model = gemma.Gemma(CONFIGS[name])
    shapes = jax.eval_shape(
        lambda key: gemma.unstack(gemma.init_params(model, key)), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), jnp.float32), shapes)


def tokens():
    return np.random.default_rng(1).integers(3, 50, (3, LENGTH))


def reference(name, sizes=None):
    """Returns the network of the `gemma` package for CONFIGS[name] (or `sizes`), in float32."""
    gm = official.gemma()
    from gemma.gm.nn import _config, _modules

    ours = sizes or CONFIGS[name]
    scales = _config.QueryPreAttentionNormalisation
    by_heads = ours.query_pre_attn_scalar != ours.head_dim**-0.5
    network = gm.nn.Gemma2_2B if ours.generation == 2 else gm.nn.Gemma3_1B
    same = ("num_embed", "embed_dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim")
    same += ("final_logit_softcap", "attn_logits_soft_cap", "sliding_window_size")
    same += ("transpose_gating_einsum", "use_qk_norm", "local_base_frequency")
    same += ("global_base_frequency", "global_scale_factor")
    kinds = _modules.AttentionType
    config = dataclasses.replace(
        network.config,
        query_pre_attn_norm=(
            scales.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
            if by_heads
            else scales.BY_ONE_OVER_SQRT_HEAD_DIM
        ),
        attention_types=[
            kinds.GLOBAL if ours.is_global(i) else kinds.LOCAL_SLIDING
            for i in range(ours.num_layers)
        ],
        **{field: getattr(ours, field) for field in same},
    )
    return network(config=config, dtype=np.float32)


def main():
    logits = {
        name: reference(name).apply({"params": params(name)}, tokens()).logits for name in CONFIGS
    }
    np.savez_compressed(PATH, **{name: np.asarray(x) for name, x in logits.items()})
    print(f"wrote {PATH.name}: " + ", ".join(f"{k} {v.shape}" for k, v in logits.items()))


if __name__ == "__main__":
    main()
