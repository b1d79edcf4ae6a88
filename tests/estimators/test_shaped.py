"""Tests of the entropic, quantile, mixed and extrapolated estimators from their definitions."""

import math
import statistics

import jax
import numpy as np
import pytest
import scipy.optimize

import pkpo_jax as pkpo

RNG = np.random.default_rng(0)
GROUPS = np.stack(
    [*RNG.integers(-8, 8, (6, 8)) / 4, [1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]]
)
WHERE = RNG.random(GROUPS.shape) < 0.8
WHERE[:, :4] = True


def entropic(rewards):
    r, n = np.array(rewards, float), len(rewards)
    if r.max() == r.min():
        return np.zeros(n)
    target = min(math.log(2), math.log(n) / 2)

    def divergence(beta):
        q = np.exp(beta * (r - r.max()))
        q /= q.sum()
        return float((q * np.log(np.maximum(q * n, 1e-300))).sum())

    most = 1e6 / (r.max() - r.min())
    beta = most
    if divergence(most) > target:
        beta = scipy.optimize.brentq(lambda b: divergence(b) - target, 0, most, xtol=1e-12)
    tilt = np.exp(beta * (r - r.max()))
    return tilt / ((tilt.sum() - tilt) / (n - 1)) - 1


def quantile_baseline(rewards, quantile=0.4):
    n, ordered = len(rewards), sorted(rewards)
    base = ordered[math.ceil(quantile * n - 1e-9) - 1]
    deviation = statistics.pstdev(rewards) + 1e-6
    return [(r - base) / deviation for r in rewards]


def pacevolve(rewards, ks=(1, 3), weights=(0.25, 0.75)):
    n, total = len(rewards), np.zeros(len(rewards))
    for k, weight in zip(ks, weights, strict=True):
        advantages = n * np.asarray(pkpo.pkpo_weights(rewards, k), np.float64)
        deviation = advantages.std()
        if deviation >= 1e-6:
            total += weight * (advantages - advantages.mean()) / (deviation + 1e-8)
    return total


BOTH = pkpo.Mixture([1, 3], [0.25, 0.75])
DEFINITIONS = {
    "entropic": (pkpo.entropic_advantages, entropic),
    "quantile baseline": (lambda r, where=None: pkpo.quantile_baseline_advantages(r, 0.4, where),
                          quantile_baseline),
    "pacevolve": (lambda r, where=None: pkpo.pacevolve_advantages(r, BOTH, where), pacevolve),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_and_masks(name):
    estimator, literal = DEFINITIONS[name]
    estimator = jax.jit(estimator)
    ours, masked = np.asarray(estimator(GROUPS)), np.asarray(estimator(GROUPS, where=WHERE))
    for row, kept in enumerate(WHERE):
        close = dict(rtol=2e-4, atol=2e-4, err_msg=str(GROUPS[row]))
        np.testing.assert_allclose(ours[row], literal(list(GROUPS[row])), **close)
        np.testing.assert_allclose(masked[row, kept], literal(list(GROUPS[row, kept])), **close)
        assert not masked[row, ~kept].any()
    np.testing.assert_allclose(estimator(np.full((8, 8), 3e38)), 0.0)


def test_the_entropic_tilt_has_the_asked_divergence_and_ignores_shift_and_scale():
    rewards = RNG.normal(size=(5, 16)).astype(np.float32)
    ours = np.asarray(pkpo.entropic_advantages(rewards), np.float64)
    np.testing.assert_allclose(pkpo.entropic_advantages(7.0 + 3.0 * rewards), ours, rtol=1e-3)
    # With w = exp(beta r) the advantage a gives w_i / sum(w) = (1 + a) / (n + a).
    q = (1 + ours) / (16 + ours)
    np.testing.assert_allclose(q.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose((q * np.log(16 * q)).sum(-1), math.log(2), atol=1e-4)
    for small in ([1.0, 0.0], [1.0, 0.0, 0.0]):
        assert 0 < float(pkpo.entropic_advantages(small)[0]) < 20


def test_the_quantile_of_binary_rewards_is_a_switch():
    for right in range(1, 10):
        correct = (np.arange(10) < right).astype(float)
        ours = np.asarray(pkpo.quantile_baseline_advantages(correct, 0.4))
        silent = correct == 0 if right / 10 <= 0.6 else correct == 1
        assert not ours[silent].any() and (ours[~silent] != 0).all()


def factor(estimate, n, p):
    """Returns the expected sum_i A_i (r_i - p) / n of binary rewards of pass rate p."""
    total = 0.0
    for right in range(n + 1):
        correct = np.arange(n) < right
        advantages = np.asarray(estimate(correct), np.float64)
        chance = math.comb(n, right) * p**right * (1 - p) ** (n - right)
        total += chance * (advantages * (correct - p)).mean()
    return total


def test_bbg_is_biased_as_documented():
    """Measures the expected factor of the gradient in the log-odds at n=16, k=64, p=0.01."""
    n, k, p = 16, 64, 0.01
    true = k * (1 - p) ** (k - 1) * p * (1 - p)
    assert true == pytest.approx(0.336, abs=5e-4)
    bbg = jax.jit(lambda c: pkpo.bbg_advantages(c, k))
    assert factor(bbg, n, p) == pytest.approx(0.024, abs=5e-4)
    plug_in = jax.jit(lambda c: pkpo.mahdavi_advantages(c, k))
    assert factor(plug_in, n, p) == pytest.approx(0.0095, abs=5e-5)
    # Many earlier visits tell the pass rate, and RLOO is unbiased.
    known = jax.jit(lambda c: pkpo.bbg_advantages(c, k, prior=(1e2, 1e4 - 1e2)))
    assert factor(known, n, p) == pytest.approx(true, rel=0.25)
    # k = 1 is RLOO.
    np.testing.assert_allclose(
        pkpo.bbg_advantages([1, 0, 0], 1), pkpo.rloo_advantages([1, 0, 0]), rtol=1e-6
    )


def test_bbg_from_its_formula_with_masks_and_one_k_a_prompt():
    correct = RNG.integers(0, 2, (6, 8))
    ks = np.array([1, 2, 9, 30, 64, 200])
    f = jax.jit(pkpo.bbg_advantages)
    ours, masked = np.asarray(f(correct, ks)), np.asarray(f(correct, ks, WHERE[:6]))
    for row, k in enumerate(ks):
        for got, own in (
            (ours[row], correct[row]),
            (masked[row, WHERE[row]], correct[row, WHERE[row]]),
        ):
            n, c = len(own), own.sum()
            u = k * math.prod((n - c + j) / (n + 1 + j) for j in range(1, k))
            u = u if u >= 0.01 * (n + 1) else 0.0
            rloo = (own - own.mean()) * n / (n - 1)
            np.testing.assert_allclose(got, u * rloo, rtol=1e-4, atol=1e-6)


def test_the_tail_of_a_gaussian_is_extrapolated_with_the_documented_bias():
    """Measures the expected gradients in the mean and the scale, which truly are (1, 2.595)."""
    measured = {}
    for n, draws in ((16, 60_000), (64, 30_000)):
        x = jax.random.normal(jax.random.key(n), (draws, n))
        w = np.asarray(jax.jit(lambda x: pkpo.tail_extrapolated_weights(x, 128))(x), np.float64)
        x = np.asarray(x, np.float64)
        measured[n] = (w * x).sum(-1).mean(), (w * (x * x - 1)).sum(-1).mean()
    assert measured[16] == pytest.approx((0.27, 0.99), abs=0.05)
    assert measured[64] == pytest.approx((0.79, 2.06), abs=0.05)
    where = WHERE[:6]
    masked = np.asarray(pkpo.tail_extrapolated_weights(GROUPS[:6], 64, where))
    for row, kept in enumerate(where):
        alone = pkpo.tail_extrapolated_weights(GROUPS[row, kept], 64)
        np.testing.assert_allclose(masked[row, kept], alone, atol=1e-5)


@pytest.mark.parametrize(("k", "value"), [(16, 1.007), (64, 2.182), (128, 2.693), (512, 3.607)])
def test_the_constant_of_the_tail(k, value):
    """Reads c off the weights of a group whose tail is two samples of known mean and deviation."""
    group = np.array([0.0] * 6 + [3.0, 5.0])
    # mu = 4, sigma = 1, threshold 1.5: the weight of 5 is (3.5 + c/2 (1 - 6.25)) / 2.
    weight = float(pkpo.tail_extrapolated_weights(group, k)[-1])
    assert (3.5 - 2 * weight) / 2.625 == pytest.approx(value, abs=1.5e-3)
