"""Logits of the `gemma` package for tiny configurations, kept in tests/data/gemma_golden.npz.

python -m tests.policy.gemma_golden

writes them. It needs `pip install -e ".[gemma]"`; the tests that read them do not.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.policy import gemma2, official

PATH = pathlib.Path(__file__).parents[1] / "data" / "gemma_golden.npz"
LENGTH = 14

_BASE = dataclasses.replace(
    gemma2.SIZES["tiny"],
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


def params(name):
    """Returns random parameters from NumPy, the same on every machine."""
    model = gemma2.Gemma2(CONFIGS[name])
    shapes = jax.eval_shape(
        lambda key: gemma2.unstack(gemma2.init_params(model, key)), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), jnp.float32), shapes)


def tokens():
    return np.random.default_rng(1).integers(3, 50, (3, LENGTH))


def reference(name):
    """Returns the network of the `gemma` package for CONFIGS[name], in float32."""
    gm = official.gemma()
    from gemma.gm.nn import _config

    scales = _config.QueryPreAttentionNormalisation
    ours, by_heads = CONFIGS[name], name == "27b"
    theirs = getattr(gm.nn, f"Gemma2_{'27B' if by_heads else '2B'}").config
    assert theirs.query_pre_attn_norm == (
        scales.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS
        if by_heads
        else scales.BY_ONE_OVER_SQRT_HEAD_DIM
    )
    same = ("num_embed", "embed_dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim")
    same += ("final_logit_softcap", "attn_logits_soft_cap", "sliding_window_size")
    same += ("transpose_gating_einsum",)
    config = dataclasses.replace(
        theirs,
        attention_types=theirs.attention_types[: ours.num_layers],
        **{field: getattr(ours, field) for field in same},
    )
    return gm.nn.Gemma2_2B(config=config, dtype=np.float32)


def main():
    logits = {
        name: reference(name).apply({"params": params(name)}, tokens()).logits for name in CONFIGS
    }
    np.savez_compressed(PATH, **{name: np.asarray(x) for name, x in logits.items()})
    print(f"wrote {PATH.name}: " + ", ".join(f"{k} {v.shape}" for k, v in logits.items()))


if __name__ == "__main__":
    main()
