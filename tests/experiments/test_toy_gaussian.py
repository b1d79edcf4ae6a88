"""Tests against values of the toy that were computed independently (see the comments on each)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy_gaussian as toy

# These are the optimal theta, max@k there, and the slope at theta = 1. Another quadrature computed
# them to the digits given.
EXACT = {
    1: (0.862411, 0.661281, -3.0692),
    2: (0.901704, 0.800425, -3.1893),
    4: (0.938661, 0.892414, -1.7772),
    8: (0.968999, 0.943774, -0.3544),
    16: (0.985571, 0.970656, -0.0469),
}
# These come from 100,000 other replicates at theta = 1, k = 4, n = 8.
VARIANCES = {
    "none": 117.4,
    "disjoint groups": 133.0,
    "disjoint groups, baseline": 38.5,
    "disjoint loo_minus_one": 4.97,
    "loo_minus_one": 2.04,
    "loo": 13.08,
    "centered": 4.62,
}


@pytest.mark.parametrize("k", EXACT)
def test_exact_values(k):
    theta, value, slope = EXACT[k]
    assert toy.optimum(k) == pytest.approx(theta, abs=1e-6)
    assert toy.value(theta, k) == pytest.approx(value, abs=1e-6)
    assert toy.derivative(1.0, k) == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("name", toy.ESTIMATORS)
def test_estimates_have_the_true_mean_and_the_known_variance(name):
    x = 1.0 + toy.SD * jax.random.normal(jax.random.key(0), (40_000, 8))
    estimates = np.asarray(jax.jit(lambda x: toy.gradient_estimate(name, x, 1.0, 4))(x))
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - toy.derivative(1.0, 4)) < 5 * error
    assert estimates.var() == pytest.approx(VARIANCES[name], rel=0.05)


def test_samples_left_over_by_disjoint_groups_have_no_weight():
    rewards = jnp.array([1.0, 0.0, 3.0, 2.0, 9.0])
    np.testing.assert_allclose(toy.naive(rewards, 2), [0.5, 0.5, 1.5, 1.5, 0.0])
    np.testing.assert_allclose(toy.naive_with_baseline(rewards, 2), [-1.0, -1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(toy.disjoint_loo_minus_one(rewards, 2), [0.5, 0.0, 0.5, 0.0, 0.0])


def test_rank_weights_are_those_of_the_formula():
    np.testing.assert_allclose(toy.rank_weights(4, 2), [0.0, 1 / 6, 2 / 6, 3 / 6], atol=1e-6)
