"""Tests of weighted sums of max@k, and of the estimators that are such sums, in exact rationals."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax import schedules
from tests import reference

BASELINES = ("none", "loo", "loo_minus_one", "centered")
GROUPS = [[0, 0, 1, 0, 1, 0], [3, -1, 3, 7, 2, 2], [5, 5, 5, 5, 5, 5], [1, 2, 4, 8, 16, 32]]
N = 6

weigh = jax.jit(pkpo.pkpo_weights, static_argnames="baseline")


def mixed(rewards, mixture, baseline):
    """Returns the weighted sum of the enumerated weights for each k."""
    parts = [
        [Fraction(w) * x for x in reference.pkpo_weights(rewards, k, baseline)]
        for k, w in mixture.items()
    ]
    return [sum(column) for column in zip(*parts, strict=True)]


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_mixture_is_the_weighted_sum_over_k(baseline):
    mixture = {1: 0.5, 2: 0.25, 5: 1.5}
    k = pkpo.Mixture(jnp.array(list(mixture)), jnp.array(list(mixture.values())))
    expected = [[float(w) for w in mixed(g, mixture, baseline)] for g in GROUPS]
    np.testing.assert_allclose(weigh(GROUPS, k, baseline=baseline), expected, rtol=1e-5, atol=1e-5)
    values = [sum(w * reference.max_at_k(g, k) for k, w in mixture.items()) for g in GROUPS]
    np.testing.assert_allclose(pkpo.max_at_k(GROUPS, k), np.array(values, float), rtol=1e-6)


def test_masks_one_mixture_a_prompt_and_any_number_of_groups():
    """Checks each way in which the coefficients are shared among groups."""
    rng = np.random.default_rng(0)
    for groups in (3, 40):
        rewards = rng.normal(size=(groups, N)).astype(np.float32)
        where = rng.random((groups, N)) < 0.7
        where[:, :3] = True
        shared = pkpo.Mixture([1, 3], [0.25, 0.75])
        own = pkpo.Mixture(rng.integers(1, 4, (groups, 2)), rng.random((groups, 2)))
        for k in (shared, own):
            got = np.asarray(weigh(rewards, jax.tree.map(jnp.asarray, k), where=where))
            for row, kept in enumerate(where):
                one = pkpo.Mixture(*(np.broadcast_to(x, (groups, 2))[row] for x in k))
                alone = weigh(rewards[row, kept], jax.tree.map(jnp.asarray, one))
                np.testing.assert_allclose(got[row, kept], alone, atol=2e-6)
                assert not got[row, ~kept].any()


def shapley_of_max(rewards):
    return reference.shapley(lambda s: Fraction(max((rewards[i] for i in s), default=0)), N)


@pytest.mark.parametrize("rewards", GROUPS)
def test_the_shapley_value_of_the_best_reward_is_a_mixture(rewards):
    harmonic = {k: Fraction(1, k) for k in range(2, N + 1)}
    phi = mixed(rewards, harmonic, "loo_minus_one")
    # The term of k = 1 is g_i / n, which is "none" at k = 1.
    phi = [a + b for a, b in zip(phi, reference.pkpo_weights(rewards, 1, "none"), strict=True)]
    assert phi == shapley_of_max(rewards)
    np.testing.assert_allclose(pkpo.shapley_weights(rewards), np.array(phi, float), rtol=1e-6)


@pytest.mark.parametrize("rewards", GROUPS)
def test_tailrl_is_a_mixture_and_the_centred_shapley_value(rewards):
    harmonic = {k: Fraction(1, k) for k in range(1, N)}
    advantages = [N * w for w in mixed(rewards, harmonic, "centered")]
    phi = shapley_of_max(rewards)
    assert advantages == [N * x - sum(phi) for x in phi]
    np.testing.assert_allclose(
        pkpo.tailrl_advantages(rewards), np.array(advantages, float), rtol=1e-6, atol=1e-6
    )
    k = pkpo.Mixture(jnp.arange(1, N), 1.0 / jnp.arange(1, N))
    np.testing.assert_allclose(
        N * weigh(rewards, k, baseline="centered"), np.array(advantages, float), atol=3e-5
    )


def test_maxrl_is_tailrl_of_binary_rewards():
    for right in range(N + 1):
        correct = [Fraction(i < right) for i in range(N)]
        phi, mean = shapley_of_max(correct), Fraction(right, N)
        centred = [N * x - sum(phi) for x in phi]
        assert centred == [(c - mean) / mean if right else 0 for c in correct]
        np.testing.assert_allclose(
            pkpo.maxrl_advantages([int(c) for c in correct]), np.array(centred, float), atol=1e-6
        )


@pytest.mark.parametrize("rewards", GROUPS)
def test_tang_is_the_mixture_of_n_alone(rewards):
    expected = [float(w) for w in reference.pkpo_weights(rewards, N, "loo_minus_one")]
    k = pkpo.Mixture([N, 2], [1.0, 0.0])
    np.testing.assert_allclose(pkpo.tang_weights(rewards), expected, atol=1e-6)
    np.testing.assert_allclose(pkpo.pkpo_weights(rewards, k), expected, atol=1e-6)


def test_off_policy_weights_take_mixtures():
    rewards, ratios = GROUPS[1], [0.5, 1.2, 0.9, 2.0, 1.5, 1.0]
    parts = {1: 0.5, 2: 0.25, 4: 0.25}
    mixture = pkpo.Mixture(list(parts), list(parts.values()))
    expected = [np.array(reference.off_policy_weights(rewards, k, ratios), float) for k in parts]
    expected = sum(w * x for w, x in zip(parts.values(), expected, strict=True))
    np.testing.assert_allclose(
        pkpo.off_policy_weights(rewards, mixture, ratios), expected, atol=1e-5
    )


def test_blend_goes_from_one_objective_to_the_other_without_a_step():
    schedule = schedules.blend(8, schedules.parse_k("mixture(1: 1, 4: 3)"), steps=100)
    traced = jax.jit(schedule)
    for step, share in [(0, 0.0), (25, 0.25), (50, 0.5), (100, 1.0), (500, 1.0)]:
        for made in (schedule(step), traced(jnp.int32(step))):
            np.testing.assert_array_equal(made.ks, [8, 1, 4])
            np.testing.assert_allclose(
                made.weights, [1 - share, share / 4, 3 * share / 4], atol=1e-6
            )
    # Consecutive steps change the weights of a fixed group by the same small amount.
    rewards = np.linspace(0, 1, 16, dtype=np.float32) ** 3
    f = jax.jit(lambda r, k: pkpo.pkpo_weights(r, k))
    along = np.stack([f(rewards, schedule(step)) for step in range(0, 101, 10)])
    assert f._cache_size() == 1
    changes = np.diff(along, axis=0)
    np.testing.assert_allclose(changes, np.broadcast_to(changes[0], changes.shape), atol=1e-6)


def test_mixtures_as_text_and_in_staircases():
    text = "mixture(1: .5, 8: 1.5)"
    assert schedules.parse(text) == {0: pkpo.Mixture((1, 8), (0.25, 0.75))}
    assert str(schedules.parse_k(text)) == "mixture(1: 0.25, 8: 0.75)"
    blended = schedules.parse("blend(8, mixture(1: 1, 2: 1), 4)")
    assert list(blended) == [0, 1, 2, 3, 4]
    for made in (
        schedules.step(blended),
        schedules.blend(8, schedules.parse_k("mixture(1:1,2:1)"), 4),
    ):
        np.testing.assert_allclose(made(3).weights, [0.25, 0.375, 0.375])
    stairs = schedules.step({0: 8, 10: schedules.parse_k(text)})
    for step, expected in ((9, {8: 1.0}), (10, {1: 0.25, 8: 0.75})):
        for made in (stairs(step), jax.jit(stairs)(jnp.int32(step))):
            assert {int(k): float(w) for k, w in zip(*made, strict=True) if w} == expected


@pytest.mark.parametrize(
    "text",
    ["mixture()", "mixture(1)", "mixture(1: a)", "mixture(0: 1)", "mixture(1: -1, 2: 2)",
     "mixture(1: 0)", "blend(8, 1)", "blend(0, 1, 5)", "blend(8, 1, 0)", "mixture(1.5: 1)"],
)  # fmt: skip
def test_bad_text_raises(text):
    with pytest.raises(ValueError, match="expected"):
        schedules.parse(text)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (pkpo.Mixture([1, 9], [0.5, 0.5]), "k=9; expected 1 <= k <= 6"),
        (pkpo.Mixture([1, 2], [0.5]), r"weights of shape \(1,\)"),
        (pkpo.Mixture(2, 1.0), r"expected \[..., C\]"),
        (pkpo.Mixture(np.ones((2, 3), int), np.ones((2, 3))), "one k a prompt"),
    ],
)
def test_bad_mixtures_raise(k, message):
    with pytest.raises(ValueError, match=message):
        pkpo.pkpo_weights(np.zeros((4, 6)), k)
