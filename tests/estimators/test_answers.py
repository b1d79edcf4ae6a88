"""Tests of the estimators that look at which answers are equal, against every subset or order."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

RNG = np.random.default_rng(0)
N, ROWS = 7, 24
CORRECT = RNG.integers(0, 2, (ROWS, N))
CORRECT[0], CORRECT[1] = 0, 1
# Right and wrong samples never share an answer.
CLASSES = RNG.integers(0, 3, (ROWS, N)) + 3 * CORRECT
CLASSES[2] = CORRECT[2]
REWARDS = np.where(CORRECT, 1.0, RNG.integers(-2, 3, (ROWS, N)) / 4)
ADVANTAGES = RNG.normal(size=(ROWS, N)).round(3)
WHERE = RNG.random((ROWS, N)) < 0.75
WHERE[:, :3] = True


def distinct(correct, classes, members):
    return len({int(classes[i]) for i in members if correct[i]})


def poly_epo(rewards, classes, members):
    mean = sum(Fraction(float(rewards[i])) for i in members) / len(members)
    return mean * Fraction(len({int(classes[i]) for i in members}), len(members))


@pytest.mark.parametrize(
    ("estimator", "values", "score"),
    [
        (pkpo.distinct_weights, CORRECT, distinct),
        (pkpo.poly_epo_weights, REWARDS, poly_epo),
    ],
)
def test_closed_forms_against_every_subset(estimator, values, score):
    f = jax.jit(estimator)
    for k in range(1, N):
        ours = np.asarray(f(values, CLASSES, jnp.int32(k)))
        for row in range(0, ROWS, 3):
            exact = reference.subset_weights(
                lambda c, row=row: score(values[row], CLASSES[row], c), N, k
            )
            np.testing.assert_allclose(ours[row], np.array(exact, float), atol=2e-6)
    assert f._cache_size() == 1
    # One k a prompt, and masks, whose groups are smaller ones.
    k = RNG.integers(1, 3, ROWS)
    masked = np.asarray(f(np.where(WHERE, values, 1), CLASSES, k, WHERE))
    for row, kept in enumerate(WHERE):
        own, classes = values[row, kept], CLASSES[row, kept]
        exact = reference.subset_weights(
            lambda c, own=own, classes=classes: score(own, classes, c), len(own), int(k[row])
        )
        np.testing.assert_allclose(masked[row, kept], np.array(exact, float), atol=2e-6)
        assert not masked[row, ~kept].any()


def test_distinct_answers_of_one_kind_are_pass_at_k():
    ours = pkpo.distinct_weights(CORRECT, CORRECT, 3)
    np.testing.assert_allclose(ours, pkpo.pkpo_weights(CORRECT, 3, baseline="centered"), atol=1e-6)


def test_any_score_of_subsets():
    rewards = jnp.asarray(REWARDS[:6, :5])

    def score(members):
        return jnp.where(members, rewards[:, None], -jnp.inf).max(-1)

    f = jax.jit(lambda k, where: pkpo.subset_weights(score, 5, k, where))
    for k in (1, 3, 4):
        np.testing.assert_allclose(
            f(jnp.int32(k), None), pkpo.pkpo_weights(rewards, k, baseline="centered"), atol=2e-6
        )
    where = WHERE[:6, :5]
    k = jnp.array([1, 2, 1, 2, 1, 2])
    expected = pkpo.pkpo_weights(rewards, k, baseline="centered", where=where)
    np.testing.assert_allclose(f(k, where), expected, atol=2e-6)
    with pytest.raises(ValueError, match="n=13; expected at most 12"):
        pkpo.subset_weights(score, 13, 2)


@pytest.mark.parametrize(
    ("estimator", "literal"),
    [(pkpo.edas_advantages, reference.edas), (pkpo.rarity_advantages, reference.rarity)],
)
def test_reshaped_advantages(estimator, literal):
    whole, masked = (
        np.asarray(jax.jit(estimator)(ADVANTAGES, CORRECT, CLASSES, w)) for w in (None, WHERE)
    )
    for row, kept in enumerate(WHERE):
        rows = ADVANTAGES[row], CORRECT[row], CLASSES[row]
        np.testing.assert_allclose(whole[row], literal(*map(list, rows)), atol=1e-5)
        alone = literal(*(list(x[kept]) for x in rows))
        np.testing.assert_allclose(masked[row, kept], alone, atol=1e-5)
        assert not masked[row, ~kept].any()


def test_edas_leaves_loo_minus_one_as_it_is():
    weights = pkpo.pkpo_weights(CORRECT, 3)
    np.testing.assert_array_equal(pkpo.edas_advantages(weights, CORRECT, CLASSES), weights)
    centred = pkpo.pkpo_weights(CORRECT, 3, baseline="centered")
    assert np.abs(pkpo.edas_advantages(centred, CORRECT, CLASSES) - centred).max() > 0.01


def test_rarity_keeps_the_sum_over_equal_advantages():
    grpo = pkpo.grpo_advantages(CORRECT)
    rare = pkpo.rarity_advantages(grpo, CORRECT, CLASSES)
    np.testing.assert_allclose(rare.sum(-1), grpo.sum(-1), atol=1e-5)
    factors = np.asarray(pkpo.rarity_advantages(np.ones((1, 9)), [[1] * 9], [[0] * 8 + [1]]))[0]
    assert factors[8] / factors[0] == pytest.approx(min(8**0.8, 3 / (9 / (8 + 8**0.8))), rel=1e-5)


def test_distinct_shapley_values():
    for row in range(6):
        correct, classes = CORRECT[row, :6], CLASSES[row, :6]
        exact = reference.shapley(
            lambda s, correct=correct, classes=classes: distinct(correct, classes, s), 6
        )
        ours = pkpo.distinct_shapley_weights(correct, classes)
        np.testing.assert_allclose(ours, np.array(exact, float), atol=1e-6)
    masked = pkpo.distinct_shapley_weights(CORRECT, CLASSES, WHERE)
    alone = pkpo.distinct_shapley_weights(CORRECT[3, WHERE[3]], CLASSES[3, WHERE[3]])
    np.testing.assert_allclose(masked[3, WHERE[3]], alone, atol=1e-6)


def test_volume_is_a_shapley_value():
    rng = np.random.default_rng(1)
    rewards, vectors = rng.random((3, 5)), rng.normal(size=(3, 5, 4))
    rewards[0, 0] = -1.0

    def volume(row, members):
        chosen = vectors[row, list(members)] * np.sqrt(rewards[row, list(members)].clip(0))[:, None]
        return np.linalg.slogdet(np.eye(4) + chosen.T @ chosen / 0.5)[1]

    exact = [
        [float(x) for x in reference.shapley(lambda s, row=row: Fraction(volume(row, s)), 5)]
        for row in range(3)
    ]
    ours = pkpo.volume_weights(rewards, vectors, delta=0.5)
    np.testing.assert_allclose(ours, exact, atol=1e-5)
    many = pkpo.volume_weights(
        rewards, vectors, delta=0.5, key=jax.random.key(0), permutations=20_000
    )
    np.testing.assert_allclose(many, exact, atol=0.01)
    # Every order adds up to the volume of all, so the sum is exact for any number of orders.
    few = pkpo.volume_weights(rewards, vectors, delta=0.5, key=jax.random.key(1), permutations=2)
    np.testing.assert_allclose(few.sum(-1), np.sum(exact, -1), rtol=1e-5)
    where = np.array([True, False, True, True, True])
    masked = pkpo.volume_weights(rewards[1], vectors[1], where, delta=0.5)
    alone = pkpo.volume_weights(rewards[1, where], vectors[1, where], delta=0.5)
    np.testing.assert_allclose(masked[where], alone, atol=1e-6)
    assert masked[1] == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pkpo.distinct_weights([1, 0], [0, 1, 2], 1), r"classes is int.*\(3,\); expected"),
        (lambda: pkpo.rarity_advantages([1.0, 0.0], [1, 0], [0.0, 1.0]), "expected integers"),
        (lambda: pkpo.distinct_weights([1, 0], [0, 1], 2), "k=2; expected 1 <= k <= 1"),
        (lambda: pkpo.volume_weights(np.ones(13), np.ones((13, 2))), "n=13; expected at most 12"),
        (lambda: pkpo.volume_weights([1.0], [[1.0]], delta=0.0), "delta=0.0; expected"),
        (lambda: pkpo.volume_weights([1.0], [1.0, 2.0]), "embeddings have shape"),
    ],
)
def test_bad_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
