"""Tests of the study's gradients and moments: enumeration, NumPy and the shipped update."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.study import cost, estimators, variance
from pkpo_jax.policy import checkpoints
from pkpo_jax.tasks import Maze
from pkpo_jax.training import run_directory
from pkpo_jax.training.trainer import Trainer
from tests.training.test_run import small_config

# This policy has one prompt and three answers, of which the last is right.
LOGITS = jnp.array([0.5, 0.2, -0.6])
N, K = 4, 2
TUPLES = np.array(list(itertools.product(range(3), repeat=N)))


def log_prob(logits, actions):
    return jax.nn.log_softmax(logits)[actions]


def pass_at(k, logits):
    return 1.0 - (1.0 - jax.nn.softmax(logits)[2]) ** k


@pytest.fixture(scope="module")
def enumerated():
    """Returns estimators, the chance of each tuple of N answers, and gradients [C, E, D]."""
    compared = estimators.serving(N, K)
    gradients = variance.make_gradients(log_prob, [e.weigh for e in compared.values()])
    valid = jnp.ones((1, N), bool)
    found = [
        gradients(LOGITS, t[None], jnp.asarray(t[None] == 2, jnp.float32), valid) for t in TUPLES
    ]
    chances = np.asarray(jax.nn.softmax(LOGITS), np.float64)[TUPLES].prod(-1)
    return compared, chances / chances.sum(), np.array(found, np.float64)


def test_every_estimator_is_unbiased_for_its_objective(enumerated):
    compared, chances, gradients = enumerated
    assert len(compared) == 8
    means = np.einsum("c,ced->ed", chances, gradients)
    for mean, (name, estimator) in zip(means, compared.items(), strict=True):
        exact = jax.grad(lambda x, k=estimator.k: pass_at(k, x))(LOGITS)
        np.testing.assert_allclose(mean, exact, atol=1e-6, err_msg=name)


def test_metrics_of_estimates_tend_to_the_enumerated_ones(enumerated):
    compared, chances, gradients = enumerated
    means = np.einsum("c,ced->ed", chances, gradients)
    noise = np.einsum("c,ced->e", chances, (gradients - means) ** 2)
    sampled = np.random.default_rng(0).choice(len(chances), size=(8, 2000), p=chances)
    found = variance.summarize([moments(gradients[rows]) for rows in sampled], list(compared))
    base = list(compared).index("loo_minus_one")
    for i, row in enumerate(found.values()):
        assert row["noise"] == pytest.approx(noise[i], rel=0.1)
        assert row["signal"] == pytest.approx((means[i] ** 2).sum(), abs=4 * row["signal_error"])
        assert row["signal_error"] < 0.1 * row["signal"]
        ratio, error = row["log_ratio"], row["log_ratio_error"]
        assert abs(ratio - np.log(noise[i] / noise[base])) <= 5 * error
        assert error < 0.05


def moments(gradients):
    result = variance.Moments()
    for one in gradients:
        result.add(one)
    return result


def test_moments_are_those_of_numpy():
    # A large mean makes the variance a small difference of large sums.
    gradients = 300.0 + np.random.default_rng(0).normal(size=(40, 3, 50)).astype(np.float32)
    halves = moments(gradients[:10]) + moments(gradients[10:])
    exact = gradients.astype(np.float64)
    np.testing.assert_allclose(halves.noise, exact.var(0, ddof=1).sum(-1), rtol=1e-6)
    squared = (exact.mean(0) ** 2).sum(-1) - exact.var(0, ddof=1).sum(-1) / 40
    np.testing.assert_allclose(halves.signal, squared, rtol=1e-9)


def test_a_metric_that_is_not_defined_is_none():
    nothing = [moments(np.zeros((2, 1, 5))) for _ in range(8)]
    (row,) = variance.summarize(nothing, ["loo_minus_one"]).values()
    assert row.pop("noise") == row.pop("signal") == row.pop("signal_error") == 0.0
    assert set(row.values()) == {None}


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_which_estimators_serve(k):
    names = set(estimators.serving(5, k))
    assert ("loo" in names) == ("centered" in names) == (k < 5)
    assert ("disjoint groups, baseline" in names) == (k <= 2)
    assert names >= {"none", "loo_minus_one", "disjoint groups", "tang", "rloo"}


def test_naive_groups_drop_what_is_left_over_and_prompts_that_lack_a_grade():
    rewards = jnp.array([[1.0, 0.0, 3.0, 2.0, 9.0]] * 2)
    valid = jnp.ones((2, 5), bool).at[1, 0].set(False)
    expected = [[0.5, 0.5, 1.5, 1.5, 0.0], [0.0] * 5]
    np.testing.assert_allclose(estimators.naive_groups(rewards, 2, valid), expected)


def config():
    config = small_config()
    config.k, config.estimator.baseline, config.warm_start.steps = 2, "centered", 0
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a directory with a config and a policy before RL, their trainer and its state."""
    workdir, of_run = tmp_path_factory.mktemp("run"), config()
    trainer = Trainer(of_run)
    state = trainer.start(workdir)
    of_run.model.checkpoint = str(tmp_path_factory.mktemp("policy") / "params")
    checkpoints.write(of_run.model.checkpoint, state.params)
    run_directory.claim(workdir, of_run)
    with pytest.MonkeyPatch.context() as patch:
        # The policy is not trained, so rewards are between 0 and 1.
        patch.setattr(Maze, "grade", lambda self, problem, response: response.count("U") / 8)
        yield workdir, trainer, state


def test_measure(run):
    results = variance.measure(run[0], 0, k=2, replicates=16)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    found = results["estimators"]
    assert found["none"]["noise"] > found["loo_minus_one"]["noise"] > 0.0
    assert found["loo_minus_one"]["log_ratio"] == 0.0
    assert len(found) == 8
    for wrong in ({"k": 5}, {"k": 0}, {"k": 2, "replicates": 20}, {"k": 2, "replicates": 8}):
        with pytest.raises(ValueError, match="expected"):
            variance.measure(run[0], 0, **wrong)


def test_it_is_the_gradient_of_the_shipped_update(run):
    _, trainer, state = run
    batch = cost.graded_batch(trainer, state.params)
    names = list(compared := estimators.serving(4, 2))
    gradients = variance.policy_gradients(trainer, [e.weigh for e in compared.values()])
    samples = (batch.prompts, batch.lengths, batch.rollout)
    found = np.asarray(gradients(state.params, samples, batch.rewards, batch.valid))
    _, metrics = trainer.programs.update(state, batch, (2, jax.random.key(0), 1.0, 1e-3))
    norm = np.linalg.norm(found[names.index("centered")])
    assert norm == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)
    assert norm > 1e-3


def test_cost():
    given = config()
    results = cost.measure(given, steps=6)
    assert list(results["variants"]) == ["k = 1", "k = 2", "RLOO"]
    assert results["rounds"] == 2 and results["compilations"] == 0
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert given == config()
    for row in results["variants"].values():
        assert all(row[kind]["seconds"] > 0.0 for kind in cost.KINDS)
    assert results["variants"]["k = 1"]["step"]["interval"] == [1.0, 1.0]
