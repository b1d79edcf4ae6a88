import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "data" / "estimators.json").read_text())


# This is jitted with a traced k because eager operations would be compiled for every shape.
advantages_of = jax.jit(pkpo.passk_training_advantages, static_argnames="method")


@pytest.mark.parametrize(
    "vector",
    [v for v in VECTORS if "passk_training_analytical" in v],
    ids=lambda v: f"n{v['n']}-k{v['k']}-{sum(v['rewards']):g}",
)
def test_vectors(vector):
    advantages = pkpo.passk_training_advantages(vector["rewards"], vector["k"])
    np.testing.assert_allclose(advantages, vector["passk_training_analytical"], atol=1e-6)


@pytest.mark.parametrize("method", ["full", "analytical", "exceeding", "combination"])
def test_definitions(method):
    for n in range(1, 8):
        groups = np.array(list(itertools.product([0, 1], repeat=n)))
        for k in range(1, n + 1):
            expected = [reference.passk_training(list(map(int, g)), k, method) for g in groups]
            advantages = advantages_of(groups, jnp.int32(k), method=method)
            np.testing.assert_allclose(advantages, expected, atol=2e-6, err_msg=f"n={n} k={k}")


@pytest.mark.parametrize("method", ["full", "analytical", "exceeding", "combination"])
def test_masks_and_one_k_a_prompt_equal_smaller_groups(method):
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 2, (30, 7))
    where = rng.random((30, 7)) < 0.7
    where[:, 0] = True
    k = np.array([rng.integers(1, size + 1) for size in where.sum(-1)])
    advantages = jax.jit(
        lambda c, k, w: pkpo.passk_training_advantages(c, k, method=method, where=w)
    )(correct, k, where)
    for row in range(30):
        kept = where[row]
        alone = advantages_of(correct[row, kept], jnp.int32(k[row]), method=method)
        np.testing.assert_allclose(advantages[row, kept], alone, atol=2e-6)
        assert not np.asarray(advantages[row, ~kept]).any()


def test_analytical_is_centered_over_sigma():
    groups = np.array(list(itertools.product([0, 1], repeat=6)))
    for k in range(1, 6):
        rho = np.asarray(pkpo.pass_at_k(groups, k))
        sigma = np.sqrt(rho * (1 - rho))[:, None]
        advantages = pkpo.passk_training_advantages(groups, k)
        # sigma A_i = q_i - rho_k, and centered is (k/n) n/(n-k) times that.
        centered = pkpo.pkpo_weights(groups, k, baseline="centered")
        np.testing.assert_allclose(sigma * advantages, (6 - k) / k * centered, atol=2e-6)


def test_analytical_at_k_1_is_grpo():
    groups = np.array(list(itertools.product([0, 1], repeat=6)))
    grpo = pkpo.grpo_advantages(groups, epsilon=0.0)
    np.testing.assert_allclose(pkpo.passk_training_advantages(groups, 1), grpo, atol=2e-6)


def test_bootstrap_draws_groups_of_k_distinct_samples():
    """Tests with one right answer of six, where advantages show which groups hold that answer."""
    correct = jnp.broadcast_to(jnp.array([1, 0, 0, 0, 0, 0]), (4000, 6))
    for k in (1, 2, 3):
        advantages = np.asarray(
            pkpo.passk_training_advantages(correct, k, method="bootstrap", key=jax.random.key(k))
        )
        # Each of the 6 groups has k members, so the sum is k times that of normalised rewards, 0.
        np.testing.assert_allclose(advantages.sum(-1), 0.0, atol=2e-5)
        # If m of 6 groups hold the answer, where m is binomial(6, k/6), its advantage is
        # m sqrt((6-m)/m) = sqrt(m (6-m)).
        squares = np.round(advantages[:, 0] ** 2, 3)
        assert set(squares) <= {0.0, 5.0, 8.0, 9.0}
        chance = [
            np.prod([(6 - i) / (i + 1) for i in range(m)]) * (k / 6) ** m * (1 - k / 6) ** (6 - m)
            for m in range(7)
        ]
        for value, ms in {0.0: (0, 6), 5.0: (1, 5), 8.0: (2, 4), 9.0: (3,)}.items():
            expected = sum(chance[m] for m in ms)
            error = 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9
            assert abs((squares == value).mean() - expected) < error


def test_bootstrap_with_masks():
    correct = jnp.array([[1, 0, 0, 0, 1], [0, 0, 0, 1, 1]])
    where = jnp.array([[True, True, True, False, False], [True, True, True, True, True]])
    advantages = pkpo.passk_training_advantages(
        correct, jnp.array([1, 5]), method="bootstrap", key=jax.random.key(0), where=where
    )
    assert not np.asarray(advantages[0, 3:]).any() and np.asarray(advantages[0, :3]).any()
    # Every group of all five samples has a right answer, so their rewards do not differ.
    np.testing.assert_array_equal(advantages[1], 0.0)


def test_adaptive_takes_pass_at_1_where_entropy_is_high():
    correct = jnp.broadcast_to(jnp.array([1, 0, 0, 0, 0]), (5, 5))
    entropy = jnp.array([0.3, 2.0, 0.1, 1.5, 0.4])
    advantages = pkpo.passk_training_advantages(correct, 3, method="adaptive", entropy=entropy)
    for row, k in enumerate([3, 1, 3, 1, 3]):
        expected = pkpo.passk_training_advantages(correct[row], k)
        np.testing.assert_allclose(advantages[row], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(k=2, method="exact"), "method='exact'; expected one of full, bootstrap"),
        (dict(k=5), "k=5; expected 1 <= k <= 4"),
        (dict(k=2, method="bootstrap"), "give key=jax.random.key"),
        (dict(k=2, method="adaptive"), r"entropy has shape None; .* needs one of \(3,\)"),
        (dict(k=2, method="adaptive", entropy=np.zeros(4)), r"entropy has shape \(4,\)"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        pkpo.passk_training_advantages(np.zeros((3, 4)), **arguments)
