import math
import statistics

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

# These are jitted because eager operations would be compiled one by one for every shape.
JITTED = {
    name: jax.jit(getattr(pkpo, name))
    for name in (
        "grpo_advantages",
        "dr_grpo_advantages",
        "rloo_advantages",
        "maxrl_advantages",
        "mahdavi_advantages",
        "tang_weights",
        "pkpo_weights",
    )
}


def call(name, values, *args):
    """Calls an estimator on a group of up to 16, which is padded to that size and masked."""
    n = len(values)
    filled = np.concatenate([np.array(values, np.float32), np.zeros(16 - n, np.float32)])
    return np.asarray(JITTED[name](filled, *args, where=np.arange(16) < n))[:n]


rewards_lists = st.lists(st.integers(-64, 64).map(lambda x: x / 16), min_size=2, max_size=16)


@hypothesis.given(rewards_lists)
def test_definitions(rewards):
    n, mean = len(rewards), statistics.fmean(rewards)
    deviation = statistics.pstdev(rewards)
    close = dict(atol=2e-5)
    expected = [(r - mean) / deviation if deviation else 0.0 for r in rewards]
    np.testing.assert_allclose(call("grpo_advantages", rewards), expected, **close)
    expected = np.array(rewards) - mean
    np.testing.assert_allclose(call("dr_grpo_advantages", rewards), expected, **close)
    others = [r - (sum(rewards) - r) / (n - 1) for r in rewards]
    np.testing.assert_allclose(call("rloo_advantages", rewards), others, **close)
    np.testing.assert_allclose(n * call("pkpo_weights", rewards, jnp.int32(1)), others, **close)
    ordered = sorted(rewards)
    best = [ordered[-1] - ordered[-2] if r == ordered[-1] else 0.0 for r in rewards]
    np.testing.assert_allclose(call("tang_weights", rewards), best, **close)


@hypothesis.given(st.lists(st.booleans(), min_size=2, max_size=16), st.integers(1, 40))
def test_binary_definitions(correct, k):
    n, p = len(correct), statistics.fmean(correct)
    expected = [(c - p) / p if p else 0.0 for c in correct]
    np.testing.assert_allclose(call("maxrl_advantages", correct), expected, atol=2e-5)
    rloo = [c - (sum(correct) - c) / (n - 1) for c in correct]
    expected = [k * (1 - p) ** (k - 1) * a for a in rloo]
    ours = call("mahdavi_advantages", correct, jnp.int32(k))
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        pkpo.grpo_advantages,
        pkpo.dr_grpo_advantages,
        pkpo.rloo_advantages,
        pkpo.maxrl_advantages,
        pkpo.tang_weights,
        lambda r, where=None: pkpo.mahdavi_advantages(r, 3, where=where),
    ],
)
def test_masks_equal_smaller_groups_and_poison_does_not_leak(estimator):
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (20, 6)).astype(np.float32)
    where = rng.random((20, 6)) < 0.6
    where[:, 0] = True
    estimator = jax.jit(estimator)
    result = np.asarray(estimator(np.where(where, rewards, np.nan), where=where))
    for row in range(20):
        alone = estimator(rewards[row, where[row]])
        np.testing.assert_allclose(result[row, where[row]], alone, atol=2e-6)
        assert not result[row, ~where[row]].any()


def test_equal_rewards_give_exactly_zero_and_huge_ones_stay_finite():
    for value in (0.1, 0.3, 1e-30, 3e38):
        group = np.full((1, 7), value, np.float32)
        for estimator in (pkpo.grpo_advantages, pkpo.dr_grpo_advantages, pkpo.rloo_advantages):
            np.testing.assert_array_equal(estimator(group), 0.0)
    huge = np.array([3e38, -3e38, 0.0, 3e38], np.float32)
    for estimator in (pkpo.grpo_advantages, pkpo.dr_grpo_advantages, pkpo.rloo_advantages):
        assert np.isfinite(estimator(huge)).all()
    tiny = pkpo.grpo_advantages(np.array([1e-30, 0.0], np.float32), epsilon=0.0)
    np.testing.assert_allclose(tiny, [1.0, -1.0], rtol=1e-5)


def test_off_policy_against_every_subset():
    rng = np.random.default_rng(0)
    for n in range(2, 7):
        rewards = rng.integers(-4, 4, n) / 2
        ratios = rng.uniform(0.3, 2.0, n)
        for k in range(1, n + 1):
            expected = reference.off_policy_weights(list(rewards), k, list(ratios))
            weights = pkpo.off_policy_weights(rewards, k, ratios)
            np.testing.assert_allclose(weights, np.array(expected, float), atol=3e-6)
        on_policy = pkpo.off_policy_weights(rewards, 1, np.ones(n))
        np.testing.assert_allclose(on_policy, pkpo.pkpo_weights(rewards, 1), atol=1e-6)


def test_off_policy_stays_finite():
    for rewards in ([3e38, -3e38, 0.0, 1.0], [0.0, 1.0, 2.0, 3.0], [1e-38, 0.0, 0.0, 0.0]):
        for ratios in ([100.0] * 4, [3e38, 3e38, 1.0, 1.0], [0.0] * 4, [1e30, 0.0, 1e30, 0.0]):
            for k in (1, 2, 3, 4):
                weights = pkpo.off_policy_weights(np.array(rewards), k, np.array(ratios))
                assert np.isfinite(weights).all(), (rewards, ratios, k)


@pytest.mark.parametrize("offset", [1.0, 1000.0, 1e5])
def test_an_offset_costs_no_accuracy(offset):
    rewards = (offset + np.random.default_rng(0).random((2, 1024))).astype(np.float32)
    exact = rewards.astype(np.float64) - rewards.astype(np.float64).mean(-1, keepdims=True)
    for estimator, scale in ((pkpo.dr_grpo_advantages, 1.0), (pkpo.rloo_advantages, 1024 / 1023)):
        error = np.abs(estimator(rewards) - scale * exact).max()
        assert error <= 1e-6 * np.abs(exact).max()
    exact /= exact.std(-1, keepdims=True)
    error = np.abs(pkpo.grpo_advantages(rewards, epsilon=0.0) - exact).max()
    assert error <= 1e-6 * np.abs(exact).max()


def test_off_policy_masks_and_errors():
    rewards, ratios = np.array([1.0, 0.0, np.nan, 2.0]), np.array([0.5, 1.5, np.nan, 1.1])
    where = np.array([True, True, False, True])
    masked = pkpo.off_policy_weights(rewards, 2, ratios, where=where)
    alone = pkpo.off_policy_weights(rewards[where], 2, ratios[where])
    np.testing.assert_allclose(np.asarray(masked)[where], alone, atol=1e-6)
    assert masked[2] == 0.0
    with pytest.raises(ValueError, match=r"ratios have shape \(3,\); expected \(4,\)"):
        pkpo.off_policy_weights(np.zeros(4), 2, np.ones(3))


def test_mahdavi_k_may_exceed_the_group_but_not_fall_below_one():
    expected = 64 * 0.75**63 * np.array([1.0, -1 / 3, -1 / 3, -1 / 3])
    advantages = pkpo.mahdavi_advantages([1, 0, 0, 0], 64)
    np.testing.assert_allclose(advantages, expected, rtol=1e-3, atol=1e-12)
    assert math.isclose(pkpo.mahdavi_advantages([1, 1], 3)[0], 0.0)
    with pytest.raises(ValueError, match="k=0; expected 1 <= k for groups"):
        pkpo.mahdavi_advantages([1, 0], 0)


def test_grpo_does_not_scale_up_differences_of_rounding_size():
    above = np.nextafter(np.float32(0.1), np.float32(1))
    rewards = np.array([0.1, 0.1, 0.1, above], np.float32)
    difference = float(above) - float(np.float32(0.1))
    for epsilon in (1e-6, 1e-4):
        got = pkpo.grpo_advantages(rewards, epsilon=epsilon)
        deviation = statistics.pstdev([0.0, 0.0, 0.0, difference])
        expected = np.array([-1, -1, -1, 3]) * difference / 4 / (deviation + epsilon)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    paper = pkpo.grpo_advantages(rewards, epsilon=0.0)
    np.testing.assert_allclose(paper, np.array([-1, -1, -1, 3]) / math.sqrt(3), rtol=1e-5)
    np.testing.assert_array_equal(pkpo.grpo_advantages(np.full(4, 0.1), epsilon=0.0), np.zeros(4))
    with pytest.raises(ValueError, match="epsilon=-1; expected a number at least 0"):
        pkpo.grpo_advantages(rewards, epsilon=-1)


@pytest.mark.parametrize(
    "estimator",
    [
        pkpo.grpo_advantages,
        pkpo.dr_grpo_advantages,
        pkpo.rloo_advantages,
        pkpo.maxrl_advantages,
        pkpo.tang_weights,
        lambda r: pkpo.mahdavi_advantages(r, 2),
        lambda r: pkpo.pkpo_weights(r, 1),
        lambda r: pkpo.pkpo_weights(r, 2, baseline="none"),
        lambda r: pkpo.off_policy_weights(r, 2, jnp.ones_like(r)),
        lambda r: pkpo.passk_training_advantages(r, 2),
        lambda r: pkpo.max_at_k(r, 2),
    ],
)
@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
def test_rewards_are_constants(estimator, rewards):
    gradient = jax.grad(lambda r: (estimator(r) * jnp.arange(3.0)).sum())(jnp.array(rewards))
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_rewards_of_64_bits_do_not_wrap(dtype):
    for large in (2**31, 2**32, 2**40, 2**62):
        rewards = np.array([large, 0], dtype)
        assert float(pkpo.max_at_k(rewards, 1)) == pytest.approx(large / 2)
        np.testing.assert_allclose(pkpo.pkpo_weights(rewards, 1), [large / 2, -large / 2])
        np.testing.assert_allclose(pkpo.rloo_advantages(list(rewards)), [large, -large])
        with pytest.raises(ValueError, match=r"correct holds .*correct = rewards >= 1"):
            pkpo.pass_at_k(rewards, 1)
