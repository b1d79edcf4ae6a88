"""Tests of when a run warns about its entropy, and that it does so once."""

import math

from pkpo_jax.training.entropy_watch import LEAST, WINDOW, EntropyWatch


def warnings(entropies, rewards=None):
    """Returns {step: warning} of a run with these metrics."""
    watch = EntropyWatch()
    rewards = rewards or [0.5] * len(entropies)
    said = {
        step: watch.add(step, {"train/entropy": entropy, "train/reward_mean": reward})
        for step, (entropy, reward) in enumerate(zip(entropies, rewards, strict=True), 1)
    }
    return {step: text for step, text in said.items() if text}


def test_each_halving_is_reported_once():
    found = warnings([1.0] * 10 + [0.45] * 30 + [0.19] * 30)
    # The mean over 10 steps is .505 at step 19 and .45 at step 20, from where it is .242 at step 48
    # and .216 at step 49, less than half of .45.
    assert list(found) == [20, 49]
    assert "went from 1 to 0.45 nats per token since step 10, by more than half" in found[20]
    assert "raise k, lower train.learning_rate, or set loss.entropy_coef" in found[20]
    assert not warnings([1.0] * 10 + [0.51] * 50)


def test_one_noisy_step_is_no_fall():
    assert not warnings(([1.0] * 9 + [0.01]) * 5)


def test_a_rise_is_reported_unless_the_reward_rises_too():
    entropies = [0.4] * 10 + [0.7] * 20
    found = warnings(entropies, [0.5] * 10 + [0.4] * 20)
    (text,) = found.values()
    assert "went from 0.4 to 0.61" in text and "mean reward went from 0.5 to 0.43" in text
    assert "lower train.learning_rate" in text
    assert not warnings(entropies, [0.5] * 10 + [0.6] * 20)


def test_policies_of_one_response_and_unknown_values_say_nothing():
    assert not warnings([LEAST / 2] * 10 + [LEAST / 100] * 20)
    assert not warnings([math.nan] * 50)
    assert not warnings([1.0] * (WINDOW - 1))
    assert EntropyWatch().add(0, {"eval/entropy": 1.0}) == ""
    assert EntropyWatch().add(0, {"train/entropy": None, "train/reward_mean": 0.5}) == ""
