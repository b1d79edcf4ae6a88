"""Tests of what the adapters do to arrays; `python -m tests.adapters` has the real trainers."""

import importlib
import sys

import numpy as np
import pytest

from pkpo_jax import Mixture, schedules
from pkpo_jax.adapters import groups
from pkpo_jax.adapters import numpy as on_numpy
from tests.adapters import checks

REWARDS = np.array([[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 0.0, 0.0]])


def exact(k, baseline="loo_minus_one"):
    return np.array([checks.advantages(group, k, baseline) for group in REWARDS])


def test_weights_become_advantages_of_the_mean_convention():
    for k in range(1, 5):
        np.testing.assert_allclose(groups.make(k=k)(REWARDS, 0), exact(k), atol=1e-12)
    centered = groups.make("pkpo_weights", 2, baseline="centered")(REWARDS, 0)
    np.testing.assert_allclose(centered, exact(2, "centered"), atol=1e-12)
    # At k = 1 they are those of RLOO, whose name says advantages.
    np.testing.assert_allclose(groups.make("rloo_advantages")(REWARDS, 0), exact(1), atol=1e-12)
    both = groups.make(k=Mixture([1, 4], [0.5, 0.25]))(REWARDS, 0)
    np.testing.assert_allclose(both, 0.5 * exact(1) + 0.25 * exact(4), atol=1e-12)


@pytest.mark.parametrize("name", groups.WITH_K + groups.WITHOUT_K)
def test_each_name_gives_advantages(name):
    k = {"k": 2} if name in groups.WITH_K else {}
    right = np.array([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    found = groups.make(name, **k)(right, 0)
    weights = getattr(on_numpy, name)(right, **k)
    np.testing.assert_array_equal(found, weights * (8 if name.endswith("_weights") else 1))


def test_a_schedule_gives_k_by_the_step():
    advantages = groups.make(k=schedules.step({0: 4, 10: 2}))
    np.testing.assert_allclose(advantages(REWARDS, 9), exact(4), atol=1e-12)
    np.testing.assert_allclose(advantages(REWARDS, 10), exact(2), atol=1e-12)


def test_a_function_of_your_own_and_missing_rewards():
    best = groups.make(lambda rewards, k: np.sign(rewards - k), k=0.5)
    np.testing.assert_array_equal(best(REWARDS, 0)[0], [-1, 1, 0, -1])
    with pytest.raises(ValueError, match=r"the estimator gives \(2,\); expected \(2, 4\)"):
        groups.make(lambda rewards: rewards.sum(-1))(REWARDS, 0)
    missing = np.array([[np.nan, 1.0, 0.5, 0.25]])
    found = groups.make(k=2)(missing, 0)
    np.testing.assert_allclose(found[0, 1:], 4 / 3 * np.array(checks.advantages(missing[0, 1:], 2)))
    assert found[0, 0] == 0


def test_rows_of_a_group_may_be_anywhere():
    order = np.random.default_rng(0).permutation(8)
    ids = np.array(["b", "a"])[np.arange(8) // 4]
    found = groups.by_group(groups.make(k=3), REWARDS.ravel()[order], ids[order])
    np.testing.assert_allclose(found, exact(3).ravel()[order], atol=1e-12)
    with pytest.raises(ValueError, match="groups have 3 to 5 samples; expected as many"):
        groups.by_group(groups.make(k=3), REWARDS.ravel(), ["a"] * 5 + ["b"] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: groups.make("pkpo"), "estimator='pkpo'; expected one of pkpo_weights, .*function"),
        (lambda: groups.make(), "k=None, but pkpo_weights takes a k; give one, such as k=8"),
        (lambda: groups.make("rloo_advantages", 2), "k=2, but rloo_advantages takes no k; leave"),
        (lambda: groups.make(k=5)(REWARDS, 0), "k=5; expected 1 <= k <= 4 for groups of n=4"),
        (lambda: groups.make("maxrl_advantages")(REWARDS, 0), "correct holds 0.5; expected 0 or 1"),
        (lambda: groups.refuse_schedule(lambda s: s, "verl"), "k is a schedule, but verl tells no"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("trainer", ["trl", "verl", "tunix", "rllm"])
def test_a_missing_trainer_is_named_with_the_command_that_installs_it(trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, trainer, None)
    adapter = importlib.import_module(f"pkpo_jax.adapters.{trainer}")
    call = adapter.grpo_trainer if trainer == "trl" else adapter.register
    with pytest.raises(ImportError, match=rf"{trainer}.*; this adapter needs {trainer}.*: pip ins"):
        call(k=2)
