"""Micro-batches, rematerialisation, precision and memory of the update."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pkpo_jax import parallel
from pkpo_jax.policy import gemma2, sampling, tokenizers
from pkpo_jax.training import compile as compile_lib
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import programs, step
from tests.policy import small

DEVICES = parallel.Jitted(parallel.make_mesh((1, 1, 1)))
P, N, T = 8, 4, 6


def batch():
    """Eight graded prompts: responses of different lengths, an invalid one, an empty group."""
    prompts, lengths = small.prompts()
    prompts, lengths = jnp.resize(prompts, (P, prompts.shape[1])), jnp.resize(lengths, (P,))
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = jax.random.randint(keys[0], (P, N, T), 1, 30)
    sizes = jax.random.randint(keys[1], (P, N), 1, T + 1)
    mask = jnp.arange(T) < sizes[..., None]
    log_probs = jnp.where(mask, -jax.random.uniform(keys[2], (P, N, T)), 0.0)
    rollout = sampling.Rollout(tokens, sizes, mask, log_probs, -log_probs, sizes < T)
    rewards = jax.random.normal(keys[3], (P, N))
    valid = jnp.ones((P, N), bool).at[2, 1].set(False).at[5].set(False)
    return step.Batch(prompts, lengths, rollout, rewards, valid)


def updated(micro_batches=1, remat=False):
    """Parameters after a step of plain gradient descent, learning rate 1, and its metrics."""
    _, params = small.policy()
    model = gemma2.Gemma2(small.CONFIG, remat)
    optimizer = optax.identity()
    update = step.make_update(
        model, optimizer, DEVICES, baseline="loo_minus_one", micro_batches=micro_batches
    )
    state = step.TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    return update(state, batch(), (2, 0.9, 1.0))


@pytest.fixture(scope="module")
def plain():
    return jax.device_get(updated())


@pytest.mark.parametrize(
    "changes", [dict(micro_batches=2), dict(micro_batches=4), dict(micro_batches=8)]
)
def test_micro_batches_give_the_same_gradient_and_metrics(changes, plain):
    state, metrics = updated(**changes)
    scale = float(plain[1]["grad_norm"])
    for ours, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(plain[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * scale)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, plain[1][name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert scale > 0.1


def test_computing_layers_again_gives_the_same_gradient(plain):
    state, _ = updated(remat=True)
    scale = float(plain[1]["grad_norm"])
    for ours, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(plain[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-6 * scale)


def config(**changes):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    return config


def temporaries(remat, layers):
    c = config(**{"model.remat": remat, "rollout.max_response": 64})
    size = dataclasses.replace(gemma2.SIZES["tiny"], num_layers=layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gemma2.SIZES, "tiny", size)
        built = programs.Programs(c, DEVICES, tokenizers.CharacterTokenizer())
        return compile_lib.compile_update(built).temporaries


def test_remat_keeps_one_layers_activations_at_a_time():
    """What a layer more costs in memory, with and without."""
    kept = temporaries(False, 8) - temporaries(False, 2)
    again = temporaries(True, 8) - temporaries(True, 2)
    assert again < 0.2 * kept


@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_precisions(dtype, param_dtype):
    c = config(**{"model.dtype": dtype, "model.param_dtype": param_dtype, "rollout.n": 4})
    c.train.prompts, c.rollout.max_response, c.rollout.max_prompt = 4, 8, 12
    built = programs.Programs(c, DEVICES, tokenizers.CharacterTokenizer("abcdefgh"))
    state = built.create(built.random_params(jax.random.key(0)))
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(param_dtype)}
    prompts = np.full((4, 12), 4, np.int32)
    arrays = DEVICES.put((prompts, np.full(4, 9, np.int32), np.arange(4, dtype=np.int32)), 4)
    rollout = built.sampler(4)(state.params, arrays, (jax.random.key(1), 0, 1.0))
    rewards = jnp.arange(16.0).reshape(4, 4) % 3
    graded = step.Batch(arrays[0], arrays[1], rollout, rewards, jnp.ones((4, 4), bool))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    state, metrics = built.update(state, graded, (2, 1.0, 1e-3))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    # Sampler and scorer may round activations at other places.
    assert metrics["log_prob_gap_max"] < 0.1 and metrics["entropy"] > 0.1
    assert metrics["log_prob_gap_mean"] < 0.01


def test_small_steps_move_bfloat16_parameters_as_they_should_on_average():
    """Steps of 1e-6 on weights near 0.3, whose neighbours are 2e-3 away."""
    params = {"w": jnp.full(200_000, 0.3, jnp.bfloat16)}
    start = float(params["w"][0])
    add = jax.jit(step._add)
    for at in range(50):
        params = add(params, {"w": jnp.full(200_000, -1e-6)}, at)
    assert params["w"].dtype == jnp.bfloat16
    change = np.asarray(params["w"], np.float64) - start
    error = change.std() / np.sqrt(change.size)
    assert abs(change.mean() + 5e-5) < 5 * error < 2e-5


def test_no_array_of_all_tokens_and_the_vocabulary():
    """In the lowered update of Gemma-2 2B: 512 tokens and 256128 rows never in one array."""
    c = config(**{"model.size": "2b", "rollout.max_response": 512, "model.remat": True})
    built = programs.Programs(c, DEVICES, tokenizers.Gemma2Tokenizer)
    arguments = compile_lib.update_arguments(built)
    text = built.update.lower(*arguments).as_text()
    shapes = {tuple(map(int, s.split("x"))) for s in re.findall(r"tensor<([\dx]+)x[a-z]\w*>", text)}
    with_vocabulary = [s for s in shapes if 256_128 in s]
    assert (256_128, 2304) in with_vocabulary and (16, 16, 512, 2304) in shapes
    assert not [s for s in with_vocabulary if 512 in s]
    # 512 MiB of logits at a time.
    assert max(np.prod(s) for s in with_vocabulary if len(s) > 2) <= 2**27
