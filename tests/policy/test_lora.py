"""Tests of low-rank adapters: their logits, their gradients, and merging them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from pkpo_jax import parallel
from pkpo_jax.policy import gemma, lora, matrices, sampling, scoring
from tests.policy import small

RANK, ALPHA = 3, 7.0
# One layout of the gating matrices is that of Gemma 2 2B, and the other that of all other sizes.
CONFIGS = {
    transposed: dataclasses.replace(
        small.CONFIG, transpose_gating_einsum=transposed, lora_alpha=ALPHA
    )
    for transposed in (False, True)
}


def adapters(config, targets="all", b=0.1):
    """Returns adapters whose matrices B are random, of this standard deviation."""
    made = lora.init(config, jax.random.key(5), rank=RANK, targets=targets)

    def fill(path, x):
        return b * jax.random.normal(jax.random.key(len(str(path))), x.shape)

    return jax.tree_util.tree_map_with_path(
        lambda path, x: fill(path, x) if path[-1].key == "b" else x, made
    )


def logits(model, params):
    hidden = model.apply({"params": params}, small.prompts()[0])
    return model.apply({"params": params}, hidden, method="logits")


@pytest.mark.parametrize("transposed", CONFIGS)
def test_merged_parameters_compute_what_adapted_ones_do(transposed):
    model, params = small.policy(CONFIGS[transposed])
    with jax.default_matmul_precision("highest"):
        compute = jax.jit(lambda params: logits(model, params))
        plain = compute(params)
        new = lora.init(model.config, jax.random.key(0), rank=RANK, targets="all")
        np.testing.assert_array_equal(compute(params | {"lora": new}), plain)
        adapted = params | {"lora": adapters(model.config)}
        ours, merged = compute(adapted), compute(lora.merge(adapted, model.config, "float32"))
    assert float(jnp.abs(ours - plain)[..., 1:30].max()) > 0.5
    np.testing.assert_allclose(ours, merged, atol=1e-5)


@pytest.mark.parametrize("targets", ["all", "attention", "mlp"])
def test_adapters_have_the_shapes_of_the_matrices(targets):
    config = CONFIGS[True]
    made = traverse_util.flatten_dict(
        lora.init(config, jax.random.key(0), rank=RANK, targets=targets)
    )
    layers = jax.eval_shape(
        lambda key: gemma.init_params(gemma.Gemma(config), key), jax.random.key(0)
    )
    matrices = {
        path: x.shape
        for path, x in traverse_util.flatten_dict(layers["layers"]).items()
        if path[-1] != "scale" and (targets == "all" or path[0] == targets.replace("ention", "n"))
    }
    assert {path[:-1] for path in made} == set(matrices)
    stacked = {"kv_einsum": 2, "gating_einsum": 2}
    for path, shape in matrices.items():
        copies = stacked.get(path[1], 1) * config.num_layers
        a, b = made[*path, "a"], made[*path, "b"]
        inputs, outputs = a.size // copies // RANK, b.size // copies // RANK
        assert inputs * outputs * copies == np.prod(shape), path
        assert inputs == (config.hidden_dim if path[1] == "linear" else config.embed_dim)
        assert not np.any(b)
        assert float(a.std()) * inputs**0.5 == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("transposed", CONFIGS)
def test_gradients_are_those_of_the_matrices_projected(transposed):
    """Compares with dL/dA = (alpha / rank) dL/dW B^T and dL/dB = (alpha / rank) A^T dL/dW."""
    model, params = small.policy(CONFIGS[transposed])
    adapted = params | {"lora": adapters(model.config)}
    merged = lora.merge(adapted, model.config, "float32")
    prompts, lengths = small.prompts()
    responses = jax.random.randint(jax.random.key(2), (6, 2, 4), 1, small.CONFIG.vocab_size)

    @jax.jit
    @jax.grad
    def gradient(trained, rest):
        log_probs, entropy = scoring.score(model, rest | trained, prompts, lengths, responses)
        return (log_probs * jnp.arange(1.0, 5.0)).sum() + entropy.sum()

    base = {name: params[name] for name in ("embedder", "layers", "final_norm")}
    with jax.default_matmul_precision("highest"):
        ours = gradient({"lora": adapted["lora"]}, base)["lora"]
        full = gradient({"layers": merged["layers"]}, merged)["layers"]
    d, heads, h = model.config.embed_dim, model.config.num_heads, model.config.head_dim
    kv, f, count = model.config.num_kv_heads, model.config.hidden_dim, model.config.num_layers
    gating = full["mlp"]["gating_einsum"]
    # The gradients of the matrices as [copies, inputs, outputs].
    matrices = {
        ("attn", "q_einsum", "w"): jnp.moveaxis(full["attn"]["q_einsum"]["w"], 1, 2),
        ("attn", "kv_einsum", "w"): jnp.moveaxis(full["attn"]["kv_einsum"]["w"], 2, 3),
        ("attn", "attn_vec_einsum", "w"): full["attn"]["attn_vec_einsum"]["w"],
        ("mlp", "gating_einsum"): gating.swapaxes(2, 3) if transposed else gating,
        ("mlp", "linear"): full["mlp"]["linear"],
    }
    sizes = {
        "q_einsum": (d, heads * h),
        "kv_einsum": (d, kv * h),
        "attn_vec_einsum": (heads * h, d),
    }
    sizes |= {"gating_einsum": (d, f), "linear": (f, d)}
    found, given = (traverse_util.flatten_dict(x) for x in (ours, adapted["lora"]))
    for path, matrix in matrices.items():
        inputs, outputs = sizes[path[1]]
        matrix = np.asarray(matrix).reshape(-1, inputs, outputs)
        a, b = (np.asarray(given[*path, name]) for name in "ab")
        a, b = a.reshape(-1, inputs, RANK), b.reshape(-1, RANK, outputs)
        assert len(matrix) == len(a) and len(a) % count == 0
        expected = {"a": matrix @ b.swapaxes(1, 2), "b": a.swapaxes(1, 2) @ matrix}
        for name, x in expected.items():
            x *= ALPHA / RANK
            scale = np.abs(x).max()
            assert scale > 1e-2
            np.testing.assert_allclose(
                np.asarray(found[*path, name]).reshape(x.shape), x, atol=2e-5 * scale, err_msg=path
            )


def test_sampler_and_scorer_agree():
    model, params = small.policy(CONFIGS[True])
    params |= {"lora": adapters(model.config)}
    prompts, lengths = small.prompts()
    rollout = jax.jit(
        lambda params: sampling.sample(
            model,
            params,
            prompts,
            lengths,
            jax.random.key(0),
            1.0,
            n=2,
            max_response=5,
            stop_tokens=(1,),
        )
    )(params)
    scored, _ = jax.jit(lambda p, r: scoring.score(model, p, prompts, lengths, r))(
        params, rollout.tokens
    )
    np.testing.assert_allclose(jnp.where(rollout.mask, scored, 0.0), rollout.log_probs, atol=2e-5)


def test_adapters_are_split_as_their_matrices():
    """Checks the letters of the einsums: an axis of a matrix keeps its split in the adapter."""
    config, mesh = CONFIGS[True], parallel.make_mesh((1, 1, 1))
    tree = jax.eval_shape(
        lambda key: gemma.init_params(gemma.Gemma(config), key), jax.random.key(0)
    )
    tree["lora"] = adapters(config)
    placed = parallel.placements(tree, mesh)
    placed_matrices, adapted = (
        traverse_util.flatten_dict(placed[name]) for name in ("layers", "lora")
    )
    for path, of in matrices.axes(config).items():
        letters = "l" + of.matrix
        split = dict(zip(letters, placed_matrices[path].spec, strict=True)) | {"r": None}
        axes = lora.factors(of)
        for name, letters in {"a": axes.a, "b": axes.b}.items():
            spec = tuple(adapted[*path, name].spec)
            assert spec == (None, *(split[letter] for letter in letters)), path
            assert set(spec) - {None}, path
