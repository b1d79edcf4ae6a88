"""Tests of float32 against big integers, and of expectations against enumerated gradients."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

BASELINES = ("none", "loo", "loo_minus_one", "centered")


def test_the_big_integer_reference_equals_enumeration():
    ordered = [-3, 0, 0, 1, 5, 9]
    for baseline in BASELINES:
        for k in range(1, 6):
            expected = [float(w) for w in reference.pkpo_weights(ordered, k, baseline)]
            large = reference.large_pkpo_weights(ordered, k, baseline)
            np.testing.assert_allclose(large, expected, atol=1e-12)


@pytest.mark.parametrize(("n", "bound"), [(32, 1e-5), (128, 1e-5), (1024, 1e-5), (4096, 5e-5)])
def test_large_groups_in_float32(n, bound):
    rng = np.random.default_rng(n)
    draws = {
        "uniform": rng.integers(0, 2**20, n),
        "binary": rng.integers(0, 2, n),
        "rare": (rng.random(n) < 0.01).astype(int),
        "heavy-tailed": (1000 * rng.standard_cauchy(n)).clip(-(2**23), 2**23).astype(int),
    }
    weigh = jax.jit(pkpo.pkpo_weights, static_argnames="baseline")
    for name in ("uniform",) if n > 1024 else draws:
        values = draws[name]
        ordered = np.sort(values)
        for baseline in BASELINES:
            for k in (2, n // 2) if n > 1024 else (1, 2, 3, n // 8, n // 2, n - 1):
                exact = np.array(
                    reference.large_pkpo_weights([int(v) for v in ordered], k, baseline)
                )
                weights = weigh(jnp.asarray(ordered), jnp.int32(k), baseline=baseline)
                error = np.abs(np.asarray(weights, np.float64) - exact).max()
                # Weights below 1e-35 are no longer normal float32 numbers.
                assert error <= bound * np.abs(exact).max() + 1e-35, (name, baseline, k)


@pytest.mark.parametrize("n", [128, 1024, 4096])
def test_metrics_and_analytical_of_large_groups(n):
    """Checks errors relative to each value, since pass rates can be small."""
    for right in (1, n // 50, n // 2):
        correct = np.arange(n) < right
        rewards = np.arange(n) ** 2
        for k in (1, 2, n // 8, n // 2, n):
            exact = 1 - Fraction(math.comb(n - right, k), math.comb(n, k))
            value = float(pkpo.pass_at_k(correct, jnp.int32(k)))
            assert value == pytest.approx(float(exact), rel=2e-4, abs=1e-7)
            value = float(pkpo.max_at_k(correct, jnp.int32(k)))
            assert value == pytest.approx(float(exact), rel=5e-5)
            exact = sum(math.comb(i, k - 1) * i**2 for i in range(n)) / math.comb(n, k)
            value = float(pkpo.max_at_k(rewards, jnp.int32(k)))
            assert value == pytest.approx(exact, rel=5e-5)


# The policy is a categorical distribution over six outcomes with ties. The tests enumerate every
# tuple of n samples from it.
REWARDS = np.array([0.0, 1.0, 0.25, 1.0, -0.5, 0.0])
BINARY = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
LOGITS = np.array([0.3, -1.2, 0.1, -0.4, 0.2, 0.6])
P = np.exp(LOGITS) / np.exp(LOGITS).sum()


def true_gradient(rewards, k, p=P):
    """Returns d max@k / d logits.

    The value max@k is a polynomial in the probabilities that a reward is at most v.
    """
    gradient = np.zeros(len(p))
    values = np.unique(rewards)
    for low, high in itertools.pairwise(values):
        # max@k = max - sum over gaps of gap * P(reward <= low)^k.
        inside = rewards <= low
        at_most = p[inside].sum()
        gradient -= (high - low) * k * at_most ** (k - 1) * (inside - at_most) * p
    return gradient


def tuples(n):
    return np.array(list(itertools.product(range(len(P)), repeat=n)))


def expectation(weights, chosen, p=P, draws=P):
    """Returns the sum over tuples of their probability times sum_i w_i grad log p(x_i)."""
    chance = draws[chosen].prod(-1)
    score = np.eye(len(p))[chosen] - p
    weights = np.asarray(weights, np.float64)
    return np.einsum("t,ti,tio->o", chance, weights, score)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("baseline", BASELINES)
def test_pkpo_weights_are_unbiased(n, baseline):
    chosen = tuples(n)
    for k in range(1, n + (baseline in ("none", "loo_minus_one"))):
        for rewards in (REWARDS, BINARY):
            weights = pkpo.pkpo_weights(rewards[chosen], k, baseline=baseline)
            np.testing.assert_allclose(
                expectation(weights, chosen), true_gradient(rewards, k), atol=2e-6
            )


def test_tang_is_unbiased_for_k_n():
    chosen = tuples(3)
    weights = pkpo.tang_weights(REWARDS[chosen])
    np.testing.assert_allclose(expectation(weights, chosen), true_gradient(REWARDS, 3), atol=1e-6)


def test_rloo_and_dr_grpo_are_unbiased_for_the_mean_up_to_their_scale():
    chosen = tuples(3)
    exact = true_gradient(REWARDS, 1)
    rloo = pkpo.rloo_advantages(REWARDS[chosen])
    np.testing.assert_allclose(expectation(rloo, chosen) / 3, exact, atol=1e-6)
    dr_grpo = pkpo.dr_grpo_advantages(REWARDS[chosen])
    np.testing.assert_allclose(expectation(dr_grpo, chosen) / 3, exact * 2 / 3, atol=1e-6)


def test_maxrl_is_unbiased_for_its_truncated_sum():
    for n in (2, 3, 4):
        chosen = tuples(n)
        weights = pkpo.maxrl_advantages(BINARY[chosen]) / n
        exact = sum(true_gradient(BINARY, k) / k for k in range(1, n))
        np.testing.assert_allclose(expectation(weights, chosen), exact, atol=1e-6)


BIASED = {
    "grpo": (1, pkpo.grpo_advantages),
    "entropic": (1, pkpo.entropic_advantages),
    "quantile_baseline": (1, pkpo.quantile_baseline_advantages),
    "pacevolve": (2, lambda r: pkpo.pacevolve_advantages(r, 2)),
    "bbg": (16, lambda r: pkpo.bbg_advantages(r, 16)),
    "posterior": (16, lambda r: pkpo.posterior_advantages(r, 16)),
    "mahdavi": (2, lambda r: pkpo.mahdavi_advantages(r, 2)),
    "full": (2, lambda r: pkpo.passk_training_advantages(r, 2, method="full")),
    "analytical": (2, lambda r: pkpo.passk_training_advantages(r, 2)),
    "exceeding": (2, lambda r: pkpo.passk_training_advantages(r, 2, method="exceeding")),
    "combination": (2, lambda r: pkpo.passk_training_advantages(r, 2, method="combination")),
}


@pytest.mark.parametrize(("k", "estimator"), BIASED.values(), ids=BIASED)
def test_those_documented_as_biased_are(k, estimator):
    """Checks that no single scale fits the gradients of pass@k of a hard and of an even prompt."""
    chosen, scales = np.array(list(itertools.product([0, 1], repeat=10))), []
    for rate in (0.05, 0.5):
        p = np.array([1 - rate, rate])
        ours = expectation(estimator(chosen), chosen, p, p)
        exact = true_gradient(np.array([0.0, 1.0]), k, p)
        scales.append(ours @ exact / (exact @ exact))
    assert max(scales) / min(scales) > 1.02


def off_policy_bias(k, distance, n=4):
    behaviour = np.exp(LOGITS + distance * np.array([1.0, -0.5, 0.3, 0.8, -1.0, 0.1]))
    behaviour /= behaviour.sum()
    chosen = tuples(n)
    ratios = (P / behaviour)[chosen]
    weights = pkpo.off_policy_weights(REWARDS[chosen], k, ratios)
    ours = expectation(weights, chosen, P, behaviour)
    return np.abs(ours - true_gradient(REWARDS, k)).max()


def test_off_policy_weights_are_unbiased_up_to_k_2_and_to_first_order_beyond():
    assert off_policy_bias(1, 0.8) < 2e-6
    assert off_policy_bias(2, 0.8) < 2e-6
    for k in (3, 4):
        near, far = off_policy_bias(k, 0.1), off_policy_bias(k, 0.2)
        assert near > 1e-5
        assert far / near == pytest.approx(4.0, rel=0.25)


# Outcomes 1 and 3 are right, with different answers; the wrong ones give three answers.
ANSWERS = np.array([0, 1, 2, 3, 4, 0])


def set_gradient(score, k):
    """Returns d E score(k samples) / d logits by enumeration of all k samples."""
    chosen = tuples(k)
    scores = np.array([float(score(list(c))) for c in chosen])
    return expectation(np.broadcast_to(scores[:, None], chosen.shape), chosen)


def distinct_right(outcomes):
    return len({ANSWERS[i] for i in outcomes if BINARY[i]})


SETS = {
    "quantile": (
        lambda c, k: pkpo.quantile_weights(REWARDS[c], k, 0.5),
        lambda k: lambda s: sorted(REWARDS[s])[math.ceil(k / 2) - 1],
    ),
    "top_mean": (
        lambda c, k: pkpo.top_mean_weights(REWARDS[c], k, 2),
        lambda k: lambda s: np.mean(sorted(REWARDS[s])[-2:]),
    ),
    "trimmed_mean": (
        lambda c, k: pkpo.trimmed_mean_weights(REWARDS[c], k, 0.34),
        lambda k: lambda s: np.mean(sorted(REWARDS[s])[k // 3 : k - k // 3]),
    ),
    "pass_hat_k": (
        lambda c, k: pkpo.pass_hat_k_weights(BINARY[c], k),
        lambda k: lambda s: BINARY[s].min(),
    ),
    "distinct": (
        lambda c, k: pkpo.distinct_weights(BINARY[c], ANSWERS[c], k),
        lambda k: distinct_right,
    ),
    "poly_epo": (
        lambda c, k: pkpo.poly_epo_weights(REWARDS[c], ANSWERS[c], k),
        lambda k: lambda s: REWARDS[s].mean() * len(set(ANSWERS[s])) / k,
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_weights_of_set_objectives_are_unbiased(name):
    weigh, score = SETS[name]
    chosen = tuples(4)
    for k in (1, 2, 3):
        exact = set_gradient(score(k), k)
        ours = expectation(weigh(chosen, k), chosen)
        np.testing.assert_allclose(ours, exact, atol=2e-6, err_msg=f"k={k}")


def test_mixtures_and_shapley_values_are_unbiased_for_their_sums():
    chosen = tuples(3)
    k = pkpo.Mixture([1, 3], [0.25, 0.75])
    exact = 0.25 * true_gradient(REWARDS, 1) + 0.75 * true_gradient(REWARDS, 3)
    ours = expectation(pkpo.pkpo_weights(REWARDS[chosen], k), chosen)
    np.testing.assert_allclose(ours, exact, atol=2e-6)
    exact = sum(true_gradient(REWARDS, k) / k for k in (1, 2, 3))
    ours = expectation(pkpo.shapley_weights(REWARDS[chosen]), chosen)
    np.testing.assert_allclose(ours, exact, atol=2e-6)
    exact = sum(true_gradient(REWARDS, k) / k for k in (1, 2))
    ours = expectation(pkpo.tailrl_advantages(REWARDS[chosen]) / 3, chosen)
    np.testing.assert_allclose(ours, exact, atol=2e-6)
    exact = sum(set_gradient(distinct_right, k) / k for k in (1, 2, 3))
    ours = expectation(pkpo.distinct_shapley_weights(BINARY[chosen], ANSWERS[chosen]), chosen)
    np.testing.assert_allclose(ours, exact, atol=2e-6)

    vectors = np.eye(5)[ANSWERS] + 0.3
    volume = pkpo.volume_weights(REWARDS[chosen], vectors[chosen])

    def of_set(s):
        v = vectors[s] * np.sqrt(np.maximum(REWARDS[s], 0))[:, None]
        return np.linalg.slogdet(np.eye(5) + v.T @ v)[1]

    exact = sum(set_gradient(of_set, k) / k for k in (1, 2, 3))
    np.testing.assert_allclose(expectation(volume, chosen), exact, atol=2e-6)
