"""Tests of quantiles, top means and trimmed means of k samples against every subset."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

QUANTILE, TOP, TRIM = 0.6, 2, 0.3


def window(name, k):
    """Returns which of k ascending samples the statistic averages."""
    if name == "quantile":
        rank = math.ceil(QUANTILE * k - 1e-9)
        return slice(rank - 1, rank)
    if name == "top_mean":
        return slice(k - min(TOP, k), k)
    drop = math.floor(TRIM * k + 1e-9)
    return slice(drop, k - drop)


CALLS = {
    "quantile": jax.jit(lambda r, k, w: pkpo.quantile_weights(r, k, QUANTILE, w)),
    "top_mean": jax.jit(lambda r, k, w: pkpo.top_mean_weights(r, k, TOP, w)),
    "trimmed_mean": jax.jit(lambda r, k, w: pkpo.trimmed_mean_weights(r, k, TRIM, w)),
}


def expected(name, rewards, k):
    def score(members):
        kept = sorted(Fraction(float(rewards[i])) for i in members)[window(name, k)]
        return sum(kept) / len(kept)

    return [float(w) for w in reference.subset_weights(score, len(rewards), k)]


@pytest.mark.parametrize("name", CALLS)
def test_against_every_subset(name):
    rng = np.random.default_rng(0)
    for n in (2, 3, 6, 8):
        groups = np.stack([rng.integers(-8, 8, n) / 4, rng.integers(0, 2, n), np.full(n, 3.5)])
        for k in range(1, n):
            exact = [expected(name, g, k) for g in groups]
            ours = CALLS[name](groups, jnp.int32(k), None)
            np.testing.assert_allclose(ours, exact, atol=3e-6, err_msg=f"n={n} k={k}")
    assert CALLS[name]._cache_size() == 4


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("groups", [4, 20])
def test_masks_and_one_k_a_prompt(name, groups):
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(groups, 7)).astype(np.float32)
    where = rng.random((groups, 7)) < 0.7
    where[:, :3] = True
    for k in (jnp.int32(2), rng.integers(1, 3, groups)):
        ours = np.asarray(CALLS[name](rewards, k, where))
        for row, kept in enumerate(where):
            one = int(np.broadcast_to(k, groups)[row])
            np.testing.assert_allclose(
                ours[row, kept], expected(name, rewards[row, kept], one), atol=3e-6
            )
            assert not ours[row, ~kept].any()


def test_max_and_mean_are_cases():
    rewards = np.random.default_rng(2).normal(size=(3, 9)).astype(np.float32)
    for k in (1, 4, 8):
        centred = pkpo.pkpo_weights(rewards, k, baseline="centered")
        np.testing.assert_allclose(pkpo.top_mean_weights(rewards, k, 1), centred, atol=2e-6)
        np.testing.assert_allclose(pkpo.quantile_weights(rewards, k, 1.0), centred, atol=2e-6)
        mean = pkpo.rloo_advantages(rewards) / 9
        np.testing.assert_allclose(pkpo.top_mean_weights(rewards, k, k), mean, atol=2e-6)
        np.testing.assert_allclose(pkpo.trimmed_mean_weights(rewards, k, 0.0), mean, atol=2e-6)


def test_pass_hat_k_is_the_worst_of_k():
    correct = np.array([1, 1, 0, 1, 0, 1, 1])
    for k in (1, 3, 6):
        worst = reference.subset_weights(lambda c: min(correct[i] for i in c), 7, k)
        worst = np.array(worst, float)
        ours = pkpo.pass_hat_k_weights(correct, k, baseline="centered")
        np.testing.assert_allclose(ours, worst, atol=1e-6)
        np.testing.assert_allclose(pkpo.quantile_weights(correct, k, 1e-3), worst, atol=1e-6)
    where = np.array([True] * 6 + [False])
    np.testing.assert_allclose(
        pkpo.pass_hat_k_weights(correct, 3, where=where)[:6],
        pkpo.pass_hat_k_weights(correct[:6], 3),
        atol=1e-6,
    )
    np.testing.assert_allclose(pkpo.pass_hat_k_weights(correct[:4], 2), [0, 0, -0.5, 0], atol=1e-6)


def test_large_groups_agree_with_sums_of_binomials():
    """Compares the weights of one right sample among many with big integers."""
    n, top = 1024, 5
    rewards = np.zeros(n)
    rewards[:40] = 1.0
    for k in (8, 100, 700):
        # The right samples in a subset: 40 of n, the statistic is min(right, top) / top.
        def mean(total, right, drawn, more):
            return sum(
                Fraction(math.comb(right, t) * math.comb(total - right, drawn - t))
                * Fraction(min(t + more, top), top)
                for t in range(min(right, drawn) + 1)
            ) / math.comb(total, drawn)  # fmt: skip

        held, rest = mean(n - 1, 39, k - 1, 1), mean(n - 1, 39, k, 0)
        ours = pkpo.top_mean_weights(rewards, k, top)
        assert float(ours[0]) == pytest.approx(float(Fraction(k, n) * (held - rest)), rel=2e-5)
