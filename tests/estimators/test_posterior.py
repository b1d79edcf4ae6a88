"""Tests of the estimator with earlier visits from its formula, and its bias by enumeration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax.estimators import posterior

RNG = np.random.default_rng(0)
CORRECT = RNG.integers(0, 2, (6, 8))
WHERE = RNG.random((6, 8)) < 0.8
KS = np.array([1, 2, 9, 30, 64, 200])
RIGHT, WRONG = np.array([0, 1, 2.5, 0, 3, 0]), np.array([0, 20, 7.25, 90, 0, 300])


def mean_factor(a, b, k):
    return k * math.prod((b + j) / (a + b + j) for j in range(k - 1))


@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.5, 2.0)])
def test_its_formula_with_masks_and_one_k_a_prompt(prior):
    f = jax.jit(lambda *given: pkpo.posterior_advantages(*given, prior=prior))
    ours = np.asarray(f(CORRECT, KS, RIGHT, WRONG))
    masked = np.asarray(f(CORRECT, KS, RIGHT, WRONG, WHERE))
    assert not masked[~WHERE].any()
    for row, k in enumerate(KS):
        for got, own in (
            (ours[row], CORRECT[row]),
            (masked[row, WHERE[row]], CORRECT[row, WHERE[row]]),
        ):
            for i, r in enumerate(own):
                others = np.delete(own, i)
                a = prior[0] + RIGHT[row] + others.sum()
                b = prior[1] + WRONG[row] + (1 - others).sum()
                expected = mean_factor(a, b, k) * (r - others.mean())
                assert got[i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_factor_is_the_mean_over_the_posterior():
    """Integrates k (1-p)^(k-1) over the density of Beta(2, 5) and compares."""
    p = (np.arange(100_000) + 0.5) / 100_000
    density = 30 * p * (1 - p) ** 4
    for k in (1, 3, 64):
        expected = pytest.approx(np.mean(k * (1 - p) ** (k - 1) * density), rel=1e-5)
        assert mean_factor(2, 5, k) == expected
        ours = posterior.mean_factor(jnp.array([2.0]), jnp.array([5.0]), jnp.array([k]))
        assert float(ours[0]) == expected


def factor(p, right, wrong, n=16, k=64):
    """Returns the expected sum_i A_i (r_i - p) / (n p (1-p)) over groups of pass rate p."""
    groups = np.arange(n) < np.arange(n + 1)[:, None]
    given = np.asarray(pkpo.posterior_advantages(groups, k, right, wrong), np.float64)
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    return float(chances @ (given * (groups - p)).mean(-1)) / (p * (1 - p))


@pytest.mark.parametrize(("right", "wrong"), [(0, 0), (1, 15), (2.5, 60)])
def test_its_mean_is_that_of_a_factor_of_the_other_samples(right, wrong):
    p, n, k = 0.03, 16, 64
    expected = sum(
        math.comb(n - 1, s)
        * p**s
        * (1 - p) ** (n - 1 - s)
        * mean_factor(1 + right + s, 1 + wrong + n - 1 - s, k)
        for s in range(n)
    )
    assert factor(p, right, wrong) == pytest.approx(expected, rel=1e-5)


def test_the_bias_goes_as_visits_are_counted():
    p, k = 0.01, 64
    true = k * (1 - p) ** (k - 1)
    assert true == pytest.approx(33.98, abs=5e-3)
    assert factor(p, 0, 0) == pytest.approx(11.48, abs=5e-3)
    assert factor(p, 1e3, 99e3) == pytest.approx(true, rel=0.01)
    # k = 1 is RLOO, whatever was counted.
    np.testing.assert_allclose(
        pkpo.posterior_advantages(CORRECT, 1, RIGHT, WRONG), pkpo.rloo_advantages(CORRECT)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(prior=(0.0, 1.0)), r"prior=\(0.0, 1.0\); expected two numbers above 0"),
        (dict(right=np.ones(4)), r"right has shape \(4,\); expected one .* against \(6,\)"),
        (dict(wrong=np.ones((6, 8))), r"wrong has shape \(6, 8\)"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        pkpo.posterior_advantages(CORRECT, 4, **options)
