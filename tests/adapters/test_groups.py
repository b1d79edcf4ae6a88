"""Tests of what the adapters do to arrays; `python -m tests.adapters` has the real trainers."""

import importlib
import sys
import types

import numpy as np
import pytest

import pkpo_jax
from pkpo_jax import Mixture, schedules
from pkpo_jax.adapters import groups, rllm, verl
from pkpo_jax.adapters import numpy as on_numpy
from tests.adapters import checks

REWARDS = np.array([[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 0.0, 0.0]])


PASSK = "passk_training_advantages"


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


@pytest.mark.parametrize("worst", [np.nan, np.inf, -np.inf])
def test_samples_without_a_reward_leave_one_scale(worst):
    rewards = np.array([[1.0, 0.0, worst, worst], [1.0, 0.0, 0.0, 1.0], [worst] * 4])
    found = groups.make(k=1)(rewards, 0)
    np.testing.assert_allclose(found[0], [2, -2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(groups.make("rloo_advantages")(rewards, 0), found, atol=1e-12)
    own = groups.make(lambda rewards, where=None: on_numpy.rloo_advantages(rewards, where))
    np.testing.assert_allclose(own(rewards, 0), found, atol=1e-12)


def test_a_seed_starts_one_stream_of_random_groups():
    right = np.arange(16)[None] % 3 == 0
    make = lambda: groups.make(PASSK, 4, method="bootstrap", key=0)  # noqa: E731
    advantages, again = make(), make()
    first, second = advantages(right, 0), advantages(right, 1)
    assert (first != second).any()
    np.testing.assert_array_equal(again(right, 0), first)


def test_groups_of_rllm_smaller_than_k_are_maximised_at_their_size(monkeypatch):
    registered = {}
    register = lambda name: lambda function: registered.setdefault(name, function)  # noqa: E731
    module = types.SimpleNamespace(register_rllm_adv_estimator=register)
    monkeypatch.setattr(groups, "import_trainer", lambda *_: module)
    rllm.register("pkpo", k=3)
    rllm.register("rloo", "rloo_advantages")
    rewards = [[0.0, 1.0, 0.5, 0.25], [1.0, 0.0], [0.5]]
    for _ in range(2):
        found, _ = registered["pkpo"](rewards=rewards)
        for group, advantages in zip(rewards, found, strict=True):
            expected = checks.advantages(group, min(3, len(group))) if len(group) > 1 else [0.0]
            np.testing.assert_allclose(advantages, expected, atol=1e-12)
        # A step may have no group of the full size.
        rewards = rewards[1:]
    found, _ = registered["rloo"](rewards=[[0.0, 1.0, 0.5, 0.25], [1.0, 0.0]])
    np.testing.assert_allclose(found[1], [1, -1], atol=1e-12)
    rllm.register("too_large", k=5)
    with pytest.raises(ValueError, match="k=5; expected 1 <= k <= 4 for groups of n=4"):
        registered["too_large"](rewards=[[0.0] * 4])


def test_rows_of_a_group_may_be_anywhere():
    order = np.random.default_rng(0).permutation(8)
    ids = np.array(["b", "a"])[np.arange(8) // 4]
    of_groups = groups.of_any_size(groups.make(k=3))
    found = groups.by_row(of_groups, REWARDS.ravel()[order], ids[order], np.ones(8, bool))
    np.testing.assert_allclose(found, exact(3).ravel()[order], atol=1e-12)


def test_rows_that_fill_a_batch_up_are_left_out_and_failed_rollouts_leave_smaller_groups():
    # The last rows have the mask of verl's padding, and a rollout of the second prompt is missing.
    rewards = np.array([*REWARDS[0], *REWARDS[1, :3], 9.0, 9.0])
    ids = np.array(["a"] * 4 + ["b"] * 3 + ["pad"] * 2, object)
    for estimator, k in (("pkpo_weights", 4), ("rloo_advantages", None)):
        of_groups = groups.of_any_size(groups.make(estimator, k))
        found = groups.by_row(of_groups, rewards, ids, np.arange(9) < 7)
        own = 1 if k is None else k
        np.testing.assert_allclose(found[:4], checks.advantages(REWARDS[0], own), atol=1e-12)
        smaller = checks.advantages(REWARDS[1, :3], min(own, 3))
        np.testing.assert_allclose(found[4:7], smaller, atol=1e-12)
        assert not found[7:].any()
        assert not groups.by_row(of_groups, rewards, ids, np.zeros(9, bool)).any()


def test_functions_of_the_package_are_known_by_their_names():
    for function in (on_numpy.pkpo_weights, pkpo_jax.pkpo_weights):
        np.testing.assert_allclose(groups.make(function, 2)(REWARDS, 0), exact(2), atol=1e-12)


def test_the_smallest_and_largest_k_of_a_schedule_are_tried():
    late = schedules.step({0: 2, 1500: 64, 2000: 1})
    assert [late(step) for step in groups.steps_of(late)] == [2, 1, 64]
    assert [late(step) for step in groups.steps_of(late, 1500)] == [2, 2, 2]
    assert groups.steps_of(8) == [0]
    # A function of your own may be defined for the steps of the run alone.
    own = [8, 4, 2, 1].__getitem__
    assert groups.steps_of(own) == [0] and groups.steps_of(own, 4) == [0, 3, 0]
    groups.make(k=own)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: groups.make("pkpo"), "estimator='pkpo'; expected one of pkpo_weights, .*function"),
        (lambda: groups.make(), "k=None, but pkpo_weights takes a k; give one, such as k=8"),
        (lambda: groups.make(k="8"), "k='8'; expected an integer >= 1, or a Mixture of such"),
        (lambda: groups.make(k=0), "k=0; expected an integer >= 1"),
        (lambda: groups.make(k=lambda step: "8"), "k='8'; expected an integer >= 1, or a Mixture"),
        (lambda: groups.make(k=schedules.near_inverse_pass_rate(1, 4)), "function of pass rates"),
        (
            lambda: groups.make("tail_extrapolated_weights", schedules.step({0: 8, 2000: 1})),
            "k=1; expected 2 <= k",
        ),
        (lambda: groups.make("quantile_weights", 3, quantile=50), "quantile=50; .* at most 1"),
        (lambda: groups.make("rloo_advantages", 2), "k=2, but rloo_advantages takes no k; leave"),
        (lambda: groups.make(k=5)(REWARDS, 0), "k=5; expected 1 <= k <= 4 for groups of n=4"),
        (lambda: groups.make("maxrl_advantages")(REWARDS, 0), "correct holds 0.5; expected 0 or 1"),
        (lambda: verl.register(k=lambda step: 2), "k is a schedule, but verl tells no step; give"),
        (
            lambda: groups.make(k=2, basline="loo"),
            "pkpo_weights: .*'basline'; its options are: bas",
        ),
        (lambda: groups.make(k=2, baseline="lou"), "baseline='lou'; expected"),
        (lambda: groups.make(k=2, where=[True]), "pkpo_weights: 'where' is made from the rewards"),
        (lambda: groups.make("tang_weights", nats=1.0), "tang_weights: .*; its options are: none"),
        (lambda: groups.make(lambda r, k: r, 2, base=1), "'base'; its options are: none"),
        (lambda: groups.make(PASSK, 2, method="adaptive"), "'adaptive' needs entropies, which no"),
        (lambda: groups.make(PASSK, 2, method="bootstrap"), "give key=a seed or a Generator"),
        (lambda: groups.make(PASSK, Mixture([1, 2], [1, 1])), "k is a Mixture, but passk_tr"),
        (lambda: groups.make(PASSK, schedules.blend(2, 1, 9)), "takes one k, unlike pkpo_weights"),
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
