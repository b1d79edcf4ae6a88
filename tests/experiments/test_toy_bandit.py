"""Tests of the bandit's policy against quadrature, a grid of policies and its balance condition."""

import itertools

import numpy as np
import pytest

from experiments import toy_bandit

RNG = np.random.default_rng(0)


def test_expected_improvement_against_quadrature():
    mean, variance = np.array([0.3, -0.5]), np.array([0.4, 1.1])
    nodes, masses = np.polynomial.hermite_e.hermegauss(100)
    first, second = (mean[i] + np.sqrt(variance[i]) * nodes for i in (0, 1))
    gap = first[:, None] - second
    both = np.outer(masses, masses) / masses.sum() ** 2
    found = toy_bandit.expected_improvement(mean, variance)
    assert found[0, 1] == pytest.approx((both * np.maximum(gap, 0)).sum(), abs=2e-3)
    assert found[1, 0] == pytest.approx((both * np.maximum(-gap, 0)).sum(), abs=2e-3)
    assert found[0, 1] - found[1, 0] == pytest.approx(0.8) and found[0, 0] == 0.0


@pytest.mark.parametrize("arms", [2, 3])
def test_no_policy_of_a_grid_is_better(arms):
    steps = np.linspace(0, 1, 201 if arms == 2 else 41)
    grid = np.array([(*p, 1 - sum(p)) for p in itertools.product(steps, repeat=arms - 1)])
    grid = grid[grid[:, -1] >= -1e-9]
    for _ in range(20):
        mean, variance = RNG.normal(size=arms), RNG.uniform(0.05, 2, arms)
        q = mean + toy_bandit.expected_improvement(mean, variance)
        p = toy_bandit.best_of_two(mean, variance)
        best = np.einsum("gi,ij,gj->g", grid, q, grid).max()
        if arms == 2:
            improvement = toy_bandit.expected_improvement(mean, variance)
            assert p[0] / p[1] == pytest.approx(improvement[0, 1] / improvement[1, 0])
        assert p.sum() == pytest.approx(1) and p @ q @ p >= best - 1e-12


def test_improvements_are_balanced_over_the_arms_that_are_played():
    mean, variance = RNG.normal(size=(50, 5)), RNG.uniform(0.2, 2, (50, 5))
    p = toy_bandit.best_of_two(mean, variance)
    improvement = (toy_bandit.expected_improvement(mean, variance) @ p[..., None])[..., 0]
    played = (p * improvement).sum(-1, keepdims=True)
    # An arm that is not played would improve less than those that are.
    assert (np.abs(improvement - played)[p > 0] < 1e-9).all()
    assert (improvement < played + 1e-9).all()


def test_every_policy_learns():
    for policy in toy_bandit.POLICIES:
        found = toy_bandit.regrets(policy, arms=3, rounds=200, bandits=20)
        assert (np.diff(found, axis=-1) >= 0).all()
        # The second half costs less than the first.
        assert found[:, -1].mean() < 1.8 * found[:, 99].mean()
