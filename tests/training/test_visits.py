"""Tests of the counts of earlier visits, and of a run that is interrupted and resumed with them."""

import json

import jax
import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax.tasks import Maze
from pkpo_jax.training import loop
from pkpo_jax.training.trainer import Trainer
from pkpo_jax.training.visits import Visits
from tests.training.test_run import comparable, small_config
from tests.training.test_survival import params

NAN = float("nan")


def test_counts_are_discounted_by_visits_to_their_own_problem():
    visits = Visits(5, 0.5)
    visits.add(np.array([3, 1]), np.array([[1.0, 0.0, 2.0, NAN], [0.5, 0.0, 0.0, 0.0]]))
    visits.add(np.array([3, 0]), np.array([[1.0, 1.0, 1.0, 1.0], [NAN, NAN, NAN, NAN]]))
    right, wrong = visits.earlier(np.array([0, 1, 2, 3, 3]))
    np.testing.assert_array_equal(right, [0, 0, 0, 2.5, 2.5])
    np.testing.assert_array_equal(wrong, [0, 2, 0, 0.25, 0.25])
    assert right.dtype == wrong.dtype == np.float32


def test_a_problem_that_occurs_twice_in_a_batch_is_visited_once():
    twice, once = Visits(3, 0.3), Visits(3, 0.3)
    twice.add(np.array([1, 1]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    once.add(np.array([1]), np.array([[1.0, 0.0, 1.0, 1.0]]))
    assert twice.to_json() == once.to_json()


def test_json_holds_the_counts_of_many_problems_exactly():
    rng, visits, total = np.random.default_rng(0), Visits(100_000, 0.8), 100_000
    for _ in range(3):
        ids = rng.choice(total, 30_000)
        visits.add(ids, rng.integers(0, 2, (len(ids), 16)).astype(np.float32))
    text = json.dumps(visits.to_json())
    again = Visits(total, 0.8)
    again.add(np.arange(2), np.ones((2, 4)))
    again.restore(json.loads(text))
    ids = np.arange(total)
    np.testing.assert_array_equal(again.earlier(ids), visits.earlier(ids))
    assert len(text) < 50 * total


def visiting_config():
    """Returns a config that visits each of its five problems again and again, for k beyond n."""
    config = small_config()
    config.estimator.name, config.estimator.discount, config.k = "posterior", 0.5, 8
    config.task.train_problems, config.warm_start.steps = 5, 0
    config.train.steps, config.eval.every, config.log.report = 5, 5, False
    return config


def test_an_interrupted_run_remembers_its_visits(tmp_path, monkeypatch):
    # Random policies solve no maze, so that these rewards stand for those of a trained one.
    monkeypatch.setattr(Maze, "grade", lambda self, problem, text: sum(map(ord, text)) % 4 // 3)
    real_step, seen, stopped = Trainer.step, [], []

    def step(self, state, at):
        if at == 3 and not stopped:
            stopped.append(at)
            raise KeyboardInterrupt
        state, values, graded = real_step(self, state, at)
        seen.append(graded)
        return state, values, graded

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            loop.train(visiting_config(), tmp_path / "run")
        # The newest checkpoint is that of step 2.
        del seen[2:]
        loop.train(visiting_config(), tmp_path / "run")
    loop.train(visiting_config(), tmp_path / "whole")
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    ours, theirs = (jax.tree.leaves(params(tmp_path / name, 5)) for name in ("run", "whole"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    # The weights of each step are those for all that was counted before it, interrupted or not.
    visits, first = Visits(5, 0.5), []
    for graded in seen:
        rewards = graded.grades.rewards
        counts = visits.earlier(graded.ids)
        expected = pkpo.posterior_advantages(rewards, 8, *counts) / rewards.shape[1]
        np.testing.assert_allclose(graded.weights, expected, atol=1e-6)
        first.append(pkpo.posterior_advantages(rewards, 8) / rewards.shape[1])
        visits.add(graded.ids, rewards)
    assert len(seen) == 5
    assert any(
        np.abs(graded.weights - x).max() > 0.05 for graded, x in zip(seen, first, strict=True)
    )
