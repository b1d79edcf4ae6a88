"""Tests of micro-batches, rematerialisation, precision and memory of the update."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pkpo_jax as pkpo
from pkpo_jax import parallel
from pkpo_jax.policy import gemma, sampling, scoring, tokenizers
from pkpo_jax.reporting import compilation
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import programs, state, step
from pkpo_jax.training.config import Loss, Train
from tests import reference
from tests.policy import small

DEVICES = parallel.Jitted(parallel.make_mesh((1, 1, 1)))
P, N, T = 8, 4, 6
PPO = Loss("ppo", clip_low=0.1, clip_high=0.3, aggregation="token-mean")


def batch():
    """Returns eight graded prompts, with an invalid response and a group without valid ones."""
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
    return step.Batch(prompts, lengths, jnp.arange(P), rollout, rewards, valid)


@functools.cache
def update_of(model, estimator=(), loss=Loss(), train=()):  # noqa: B008  It is frozen.
    """Returns a plain gradient descent update, compiled once for all tests that use it."""
    recipe = step.Recipe(small.weigh(**dict(estimator)), loss, Train(**dict(train)))
    return step.make_update(model, optax.identity(), DEVICES, recipe)


def updated(graded=None, policy=small.table, rate=1.0, estimator=None, loss=None, **train):
    """Returns the state after a step of plain gradient descent, and its metrics."""
    model, params = policy()
    estimator = tuple((estimator or {}).items())
    update = update_of(model, estimator, loss or Loss(), tuple(train.items()))
    start = state.TrainState.create(params, optax.identity())
    return update(start, batch() if graded is None else graded, (2, jax.random.key(7), 0.9, rate))


@pytest.fixture(scope="module")
def plain():
    return jax.device_get(updated())


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_micro_batches_give_the_same_gradient_and_metrics(micro_batches, plain):
    after, metrics = updated(micro_batches=micro_batches)
    scale = float(plain[1]["grad_norm"])
    for ours, expected in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(plain[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * scale)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, plain[1][name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert scale > 0.1


@pytest.fixture(scope="module")
def plain_network():
    return updated(policy=small.policy)


@pytest.mark.parametrize(("remat", "unroll"), [("full", False), ("dots", False), ("full", True)])
def test_computing_layers_again_in_parts_gives_the_networks_gradient(remat, unroll, plain_network):
    plain, policy = plain_network, functools.partial(small.policy, remat=remat, unroll=unroll)
    after, _ = updated(policy=policy, micro_batches=2)
    scale = float(plain[1]["grad_norm"])
    for ours, expected in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(plain[0].params), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-6 * scale)


def test_a_frozen_embedding_stays_and_the_rest_moves_as_before():
    model, params = small.policy()
    update, arguments = update_of(model), (batch(), (2, jax.random.key(7), 0.9, 1.0))
    trained, frozen = state.split(jax.tree.map(jnp.copy, params), ("embedder",))
    start = state.TrainState.create(trained, optax.identity()).replace(frozen=frozen)
    assert "embedder" not in start.params and start.policy.keys() == params.keys()
    whole, _ = update(state.TrainState.create(params, optax.identity()), *arguments)
    after, metrics = update(start, *arguments)
    _, before = small.policy()
    jax.tree.map(np.testing.assert_array_equal, after.frozen, {"embedder": before["embedder"]})
    expected, _ = state.split(whole.params, ("embedder",))
    assert metrics["grad_norm"] > 0.1
    assert_same_params(after, whole.replace(params=expected))


@pytest.mark.parametrize("train", [dict(), dict(micro_batches=2, epochs=2, minibatches=2)])
def test_volume_is_given_the_mean_hidden_states_of_the_policy_before_the_update(train):
    graded, (model, params) = batch(), small.table()
    graded = graded._replace(old=graded.rollout.log_probs)
    responses = graded.prompts, graded.lengths, graded.rollout.tokens
    hidden = np.asarray(jax.jit(scoring.hidden_states, static_argnums=0)(model, params, *responses))
    lengths = np.asarray(graded.rollout.lengths)
    means = [[hidden[p, i, : lengths[p, i]].mean(0) for i in range(N)] for p in range(P)]
    units = means / np.linalg.norm(means, axis=-1, keepdims=True)
    expected = jax.jit(pkpo.volume_weights)(graded.rewards, units, graded.valid)
    recipe = step.Recipe(small.weigh(name="volume", embeddings=True), PPO, Train(**train), True)
    update = step.make_update(model, optax.identity(), DEVICES, recipe)
    start = state.TrainState.create(params, optax.identity())
    _, metrics = update(start, graded, (1, jax.random.key(7), 0.9, 0.1))
    np.testing.assert_allclose(metrics["weights"], expected, atol=1e-5)
    assert metrics["weights"].max() > 0.1


def rows(graded, chosen):
    return jax.tree.map(lambda x: x[chosen], graded)


def assert_same_params(a, b, scale=1.0):
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * scale)


def test_off_policy_weighs_responses_by_their_ratios_to_the_sampler():
    graded = batch()
    change = 0.3 * jax.random.normal(jax.random.key(2), (P, N, T))
    rollout = graded.rollout
    # Off the mask the difference is large, but it must not count.
    old = rollout.log_probs + jnp.where(rollout.mask, change, 9.0)
    _, metrics = updated(graded._replace(old=old), estimator=dict(name="off_policy"))
    ratios = np.exp(np.where(rollout.mask, change, 0.0).sum(-1))
    for row in (0, 7):
        expected = reference.off_policy_weights(
            [float(r) for r in graded.rewards[row]], 2, [float(x) for x in ratios[row]]
        )
        ours = metrics["weights"][row]
        np.testing.assert_allclose(ours, [float(w) for w in expected], rtol=1e-4, atol=1e-5)


def test_epochs_and_minibatches_are_updates_one_after_the_other():
    """Compares two epochs of two minibatches with four updates of half the prompts each."""
    graded = batch()
    graded = graded._replace(old=graded.rollout.log_probs, reference=graded.rollout.log_probs - 0.1)
    loss = dataclasses.replace(PPO, kl="k3", kl_coef=0.1, entropy_coef=0.01)
    centered = dict(baseline="centered")
    together, metrics = updated(
        graded, loss=loss, epochs=2, minibatches=2, rate=0.02, estimator=centered
    )
    model, params = small.table()
    one = update_of(model, tuple(centered.items()), loss)
    after = state.TrainState.create(params, optax.identity())
    figures = []
    for half in (0, 1, 0, 1):
        after, m = one(after, rows(graded, slice(half, None, 2)), (2, jax.random.key(7), 0.9, 0.02))
        figures.append(jax.device_get(m))
    assert_same_params(together, after)
    for name in ("loss", "clip_fraction", "policy_kl", "kl", "entropy", "grad_norm"):
        mean = np.mean([m[name] for m in figures])
        np.testing.assert_allclose(metrics[name], mean, rtol=1e-4, err_msg=name)
    assert figures[-1]["clip_fraction"] > 0 and figures[-1]["policy_kl"] > 0


def test_an_update_that_is_not_finite_changes_nothing_and_is_counted():
    graded, (_, params) = batch(), small.table()
    for bad in (
        graded._replace(rewards=graded.rewards.at[0, 0].set(3e38)),
        graded._replace(rewards=graded.rewards.at[0, 0].set(jnp.nan)),
    ):
        after, metrics = updated(bad, loss=Loss(entropy_coef=1e30))
        assert metrics["skipped"] == 1 and metrics["update_norm"] == 0
        assert not np.isfinite(metrics["grad_norm"]) or not np.isfinite(metrics["loss"])
        for x, y in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(x, y)
    assert updated(graded)[1]["skipped"] == 0


def test_groups_of_equal_rewards_are_counted_and_can_be_dropped():
    graded = batch()
    rewards = graded.rewards.at[3].set(0.25).at[6].set(1.0)
    graded = graded._replace(rewards=rewards)
    kept = np.array([0, 1, 2, 4, 5, 7])
    loss = dataclasses.replace(PPO, entropy_coef=0.1)
    dropping = dataclasses.replace(loss, drop_equal_groups=True)
    dropped, metrics = updated(graded, loss=dropping)
    without, _ = updated(rows(graded, kept), loss=loss)
    assert_same_params(dropped, without)
    # The shares are of the seven groups with a valid response. With k = 2, all other groups have a
    # gradient.
    np.testing.assert_allclose(metrics["equal_groups"], 2 / 7, rtol=1e-6)
    np.testing.assert_allclose(metrics["dead_groups"], 2 / 7, rtol=1e-6)


def test_truncated_responses_can_be_masked_and_keep_their_rewards():
    graded = batch()
    finished = graded.rollout.finished
    assert 0 < int((~finished & graded.valid).sum()) < finished.size
    cut = graded.rollout._replace(mask=graded.rollout.mask & finished[..., None])
    loss = dataclasses.replace(PPO, aggregation="sequence-mean")
    masking = dataclasses.replace(loss, mask_truncated=True)
    masked, metrics = updated(graded, loss=masking)
    by_hand, _ = updated(graded._replace(rollout=cut), loss=loss)
    # A group in which no response is left counts in neither.
    whole = (finished & graded.valid).any(-1) | ~graded.valid.any(-1)
    assert whole.all()
    assert_same_params(masked, by_hand)
    shares = (~finished & graded.valid).sum() / graded.valid.sum()
    np.testing.assert_allclose(metrics["truncated"], shares, rtol=1e-6)


def test_the_kl_divergence_can_be_in_the_reward():
    graded = batch()
    old = graded.rollout.log_probs
    reference = old + 0.3 * jax.random.normal(jax.random.key(9), old.shape)
    graded = graded._replace(old=old, reference=reference)
    loss = Loss(kl="k1", kl_coef=0.5, kl_in_reward=True)
    penalty = jnp.where(graded.rollout.mask, old - reference, 0.0).sum(-1)
    ours, metrics = updated(graded, loss=loss)
    by_hand, _ = updated(graded._replace(rewards=graded.rewards - 0.5 * penalty))
    assert_same_params(ours, by_hand)
    _, plain = updated(graded)
    np.testing.assert_allclose(metrics["reward_mean"], plain["reward_mean"])


def test_groups_that_the_penalty_sets_apart_are_not_dropped():
    graded = batch()
    old = graded.rollout.log_probs
    reference = old + 0.3 * jax.random.normal(jax.random.key(9), old.shape)
    # Two groups have equal rewards, and one of them has equal penalties as well.
    reference = reference.at[3].set(old[3])
    rewards = graded.rewards.at[3].set(0.25).at[6].set(1.0)
    graded = graded._replace(old=old, reference=reference, rewards=rewards)
    loss = Loss("ppo", kl="k1", kl_coef=0.5, kl_in_reward=True)
    ours, metrics = updated(graded, loss=dataclasses.replace(loss, drop_equal_groups=True))
    without, _ = updated(rows(graded, np.array([0, 1, 2, 4, 5, 6, 7])), loss=loss)
    assert_same_params(ours, without)
    np.testing.assert_allclose(metrics["equal_groups"], 2 / 7, rtol=1e-6)


def config(**changes):
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    return config


def temporaries(remat):
    """Returns the bytes that the gradient of log-probs needs besides its arguments and results."""
    model = gemma.Gemma(dataclasses.replace(small.CONFIG, num_layers=32), remat)
    prompts, lengths = small.prompts()
    responses = jnp.ones((len(prompts), N, 64), jnp.int32)

    def total(params):
        return scoring.score(model, params, prompts, lengths, responses)[0].sum()

    params = jax.eval_shape(lambda key: gemma.init_params(model, key), jax.random.key(0))
    return jax.jit(jax.grad(total)).lower(params).compile().memory_analysis().temp_size_in_bytes


def test_remat_keeps_one_layers_activations_at_a_time():
    """Checks that 32 layers keep only the inputs of each and the activations of one pair."""
    none, dots, full = (temporaries(remat) for remat in ("none", "dots", "full"))
    assert full < 0.1 * none and full < dots < none

    def remat(**model):
        c = config(**{f"model.{name}": value for name, value in model.items()})
        return programs.Programs(c, DEVICES, tokenizers.CharacterTokenizer()).model.remat

    assert [remat(remat=True), remat(remat_policy="dots")] == ["full", "none"]
    assert remat(remat=True, remat_policy="dots") == "dots"


def test_only_estimators_that_look_at_hidden_states_get_them():
    for name, embeddings, wanted in [
        ("volume", True, True),
        ("volume", False, False),
        ("pkpo", True, False),
        ("math:fsum", True, True),
    ]:
        c = config(**{"estimator.name": name, "estimator.embeddings": embeddings})
        built = programs.Programs(c, DEVICES, tokenizers.CharacterTokenizer())
        assert built.recipe.embeds is wanted


def test_precisions():
    """Scores one rollout with parameters in bfloat16, and with the same ones in float32."""
    prompts = np.full((4, 12), 4, np.int32)
    arrays = DEVICES.put((prompts, np.full(4, 9, np.int32), np.arange(4, dtype=np.int32)), 4)
    rollout = None
    for param_dtype in ("bfloat16", "float32"):
        c = config(**{"model.dtype": "bfloat16", "model.param_dtype": param_dtype, "rollout.n": 4})
        c.train.prompts, c.rollout.max_response, c.rollout.max_prompt = 4, 8, 12
        built = programs.Programs(c, DEVICES, tokenizers.CharacterTokenizer("abcdefgh"))
        params = built.random_params(jax.random.key(0))
        rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype(x.dtype), params)
        start = built.create(rounded)
        mu, nu = (optax.tree.get(start.opt_state, moment) for moment in ("mu", "nu"))
        assert {x.dtype for x in jax.tree.leaves((start.params, mu))} == {jnp.dtype(param_dtype)}
        assert {x.dtype for x in jax.tree.leaves(nu)} == {jnp.dtype("float32")}
        if rollout is None:
            rollout = built.sampler(4)(start.params, arrays, (jax.random.key(1), 0, 1.0))
        rewards = jnp.arange(16.0).reshape(4, 4) % 3
        graded = step.Batch(*arrays, rollout, rewards, jnp.ones((4, 4), bool))
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), start)
        after, metrics = built.update(start, graded, (2, jax.random.key(0), 1.0, 1e-3))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == shapes
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
        # The sampler and the scorer may round activations at different places.
        assert metrics["log_prob_gap_max"] < 0.1 and metrics["entropy"] > 0.1
        assert metrics["log_prob_gap_mean"] < 0.01


def test_small_steps_move_bfloat16_parameters_as_they_should_on_average():
    """Takes steps of 1e-6 on parameters near 0.3, where bfloat16 numbers are 2e-3 apart."""
    params = {"w": jnp.full(200_000, 0.3, jnp.bfloat16)}
    start = float(params["w"][0])
    add = jax.jit(state._add)
    for at in range(50):
        params = add(params, {"w": jnp.full(200_000, -1e-6)}, at)
    assert params["w"].dtype == jnp.bfloat16
    change = np.asarray(params["w"], np.float64) - start
    error = change.std() / np.sqrt(change.size)
    assert abs(change.mean() + 5e-5) < 5 * error < 2e-5


@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_the_second_moment_of_bfloat16_parameters_decays(b2):
    """Gradients fall to a fiftieth: Adam's moments and steps are those of float32 parameters."""
    optimizer = state.make_optimizer(Train(b2=b2, clip_norm=1e9))

    def moments(dtype, steps=3000):
        start = state.TrainState.create({"w": jnp.ones(512, dtype)}, optimizer)

        def once(current, at):
            key = jax.random.fold_in(jax.random.key(1), at)
            g = jax.random.normal(key, (512,)) * jnp.where(at < 20, 1.0, 0.02)
            after, metrics = state.apply_gradients(
                current, optimizer, DEVICES, 0.0, 1, {"w": g.astype(dtype)}, 1e-4
            )
            return after, metrics["update_norm"]

        last, norms = jax.jit(lambda s: jax.lax.scan(once, s, jnp.arange(steps)))(start)
        return float(optax.tree.get(last.opt_state, "nu")["w"].mean()), float(norms[-100:].mean())

    np.testing.assert_allclose(moments("bfloat16"), moments("float32"), rtol=0.03)


def test_sgd_steps_along_the_clipped_gradient_with_momentum():
    optimizer = state.make_optimizer(Train(optimizer="sgd", b1=0.5, clip_norm=1.0))
    current = state.TrainState.create({"w": jnp.zeros(2)}, optimizer)
    for grad, expected in (((3.0, 4.0), (-0.06, -0.08)), ((0.0, 0.5), (-0.09, -0.17))):
        grads = {"w": jnp.array(grad)}
        current, _ = state.apply_gradients(current, optimizer, DEVICES, 0.0, 1, grads, 0.1)
        np.testing.assert_allclose(current.params["w"], expected, rtol=1e-6)
    # The rounding of bfloat16 parameters depends on the number of steps.
    assert optax.tree.get(current.opt_state, "count") == 2


def test_no_array_of_all_tokens_and_the_vocabulary():
    """Checks that no array in the update of Gemma-2 2B has both 512 tokens and 256128 rows."""
    c = config(**{"model.size": "2b", "rollout.max_response": 512, "model.remat": True})
    built = programs.Programs(c, DEVICES, tokenizers.Gemma2Tokenizer)
    arguments = compilation.update_arguments(built)
    text = built.update.lower(*arguments).as_text()
    shapes = {tuple(map(int, s.split("x"))) for s in re.findall(r"tensor<([\dx]+)x[a-z]\w*>", text)}
    with_vocabulary = [s for s in shapes if 256_128 in s]
    assert (256_128, 2304) in with_vocabulary and (16, 16, 512, 2304) in shapes
    assert not [s for s in with_vocabulary if 512 in s]
    # There are at most 512 MiB of logits at a time.
    assert max(np.prod(s) for s in with_vocabulary if len(s) > 2) <= 2**27
