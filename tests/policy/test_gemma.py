import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pkpo_jax.policy import gemma
from tests.policy import small


def test_parameter_tree_is_that_of_the_gemma_package():
    model = gemma.Gemma(gemma.SIZES["2b"])
    tree = jax.eval_shape(lambda k: gemma.unstack(gemma.init_params(model, k)), jax.random.key(0))
    assert set(tree) == {"embedder", "final_norm", *(f"layer_{i}" for i in range(26))}
    assert tree["embedder"]["input_embedding"].shape == (256_128, 2304)
    assert jax.tree.map(jnp.shape, tree["layer_25"]) == {
        "attn": {
            "attn_vec_einsum": {"w": (8, 256, 2304)},
            "kv_einsum": {"w": (2, 4, 2304, 256)},
            "q_einsum": {"w": (8, 2304, 256)},
        },
        "mlp": {"gating_einsum": (2, 2304, 9216), "linear": (9216, 2304)},
        **{
            name: {"scale": (2304,)}
            for name in (
                "pre_attention_norm",
                "post_attention_norm",
                "pre_ffw_norm",
                "post_ffw_norm",
            )
        },
    }


def test_random_parameters_stay_what_they_were():
    """The results in the documentation start from these, whatever becomes of the network's code."""
    model = gemma.Gemma(gemma.SIZES["tiny"])
    layers = gemma.init_params(model, jax.random.key(0))["layers"]
    # These sums are those of the version that made the results.
    for layer, sums in enumerate([(0.51515, -17.34621), (-4.31041, 3.24904)]):
        arrays = layers["attn"]["kv_einsum"]["w"][layer], layers["mlp"]["gating_einsum"][layer]
        assert [float(x.sum()) for x in arrays] == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("2b", 2_614_341_888),
        ("9b", 9_241_705_984),
        ("27b", 27_227_128_320),
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
        ("gemma3_4b", 3_880_099_328),
        ("gemma3_12b", 11_765_788_416),
        ("gemma3_27b", 27_009_002_240),
    ],
)
def test_sizes_have_the_published_number_of_parameters(size, parameters):
    # Hugging Face counts these for google/gemma-*, without the rows of the table past the
    # vocabulary and without what reads images.
    config = gemma.SIZES[size]
    model = gemma.Gemma(config)
    tree = jax.eval_shape(lambda k: gemma.init_params(model, k), jax.random.key(0))
    unused = (config.num_embed - config.vocab_size) * config.embed_dim
    assert sum(x.size for x in jax.tree.leaves(tree)) - unused == parameters


def test_rows_without_a_token_have_probability_zero():
    model, params = small.policy()
    hidden = jax.random.normal(jax.random.key(0), (7, small.CONFIG.embed_dim))
    p = jax.nn.softmax(model.apply({"params": params}, hidden, method="logits"))
    assert p.shape == (7, 40) and p.dtype == jnp.float32
    assert not p[:, 0].any() and not p[:, 30:].any()
    assert (p[:, 1:30] > 0).all()


def test_bfloat16_activations_stay_near_float32():
    model, params = small.policy()
    half = gemma.Gemma(dataclasses.replace(small.CONFIG, dtype="bfloat16"))
    tokens = small.prompts()[0]
    hidden = model.apply({"params": params}, tokens)
    hidden_half = half.apply({"params": params}, tokens)
    assert hidden_half.dtype == jnp.bfloat16
    error = jnp.linalg.norm(hidden - hidden_half) / jnp.linalg.norm(hidden)
    assert error < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_heads=4, num_kv_heads=3), "multiple of num_kv_heads"),
        (dict(num_heads=2, num_kv_heads=2), "multiple of num_kv_heads"),
        (dict(vocab_size=50), "vocab_size=50 must lie in 3..num_embed=40"),
    ],
)
def test_bad_sizes_raise(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small.CONFIG, **change)
