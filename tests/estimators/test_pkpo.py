import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference

BASELINES = ("none", "loo", "loo_minus_one", "centered")
VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "data" / "estimators.json").read_text())


# These are jitted with a traced k because eager operations would be compiled for every shape.
weigh = jax.jit(pkpo.pkpo_weights, static_argnames="baseline")
max_at_k = jax.jit(pkpo.max_at_k)


def largest_k(n, baseline):
    return n - 1 if baseline in ("loo", "centered") else n


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['kind']}-n{v['n']}-k{v['k']}")
def test_vectors(vector):
    rewards, k = vector["rewards"], vector["k"]
    np.testing.assert_allclose(pkpo.max_at_k(rewards, k), vector["max_at_k"], atol=1e-6)
    assert {"none", "loo" if k < vector["n"] else "loo_minus_one"} <= set(vector)
    for baseline in set(vector) & set(BASELINES):
        weights = pkpo.pkpo_weights(rewards, k, baseline=baseline)
        np.testing.assert_allclose(weights, vector[baseline], atol=2e-6, err_msg=baseline)


@pytest.mark.parametrize("baseline", BASELINES)
def test_brute_force(baseline):
    rng = np.random.default_rng(0)
    for n in range(2, 9):
        groups = np.stack(
            [
                rng.integers(-8, 8, n) / 4,
                rng.integers(0, 2, n),
                rng.integers(0, 3, n),
                np.zeros(n),
                np.full(n, 7.25),
            ]
        )
        for k in range(1, largest_k(n, baseline) + 1):
            expected = [
                [float(w) for w in reference.pkpo_weights(list(g), k, baseline)] for g in groups
            ]
            weights = weigh(groups, jnp.int32(k), baseline=baseline)
            np.testing.assert_allclose(weights, expected, atol=3e-6, err_msg=f"n={n} k={k}")


@pytest.mark.parametrize("baseline", BASELINES)
def test_masks_and_one_k_a_prompt_equal_smaller_groups(baseline):
    rng = np.random.default_rng(1)
    rewards = rng.normal(size=(40, 7)).astype(np.float32)
    where = rng.random((40, 7)) < 0.7
    where[:, :2] = True
    sizes = where.sum(-1)
    k = np.array([rng.integers(1, largest_k(size, baseline) + 1) for size in sizes])
    poisoned = np.where(where, rewards, np.nan)
    weights = jax.jit(lambda r, k, w: pkpo.pkpo_weights(r, k, baseline=baseline, where=w))(
        poisoned, k, where
    )
    for row in range(len(rewards)):
        kept = where[row]
        alone = weigh(rewards[row, kept], jnp.int32(k[row]), baseline=baseline)
        np.testing.assert_allclose(weights[row, kept], alone, atol=2e-6)
        assert not np.asarray(weights[row, ~kept]).any()


def test_rewards_of_any_dtype_give_float32():
    expected = pkpo.pkpo_weights(np.array([0.0, 1.0, 1.0, 2.0], np.float32), 2)
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float16, jnp.uint8):
        weights = pkpo.pkpo_weights(jnp.array([0, 1, 1, 2], dtype), 2)
        assert weights.dtype == jnp.float32
        np.testing.assert_array_equal(weights, expected)


groups = st.integers(2, 24).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-64, 64).map(lambda x: x / 16), min_size=n, max_size=n),
        st.integers(1, n - 1),
    )
)


@hypothesis.given(groups, st.randoms(use_true_random=False))
def test_properties(group, random):
    rewards, k = np.array(group[0], np.float32), group[1]
    n = len(rewards)
    # Groups are padded to one size and masked, so that one program serves every example.
    where = np.arange(24) < n

    def filled(rewards):
        return np.concatenate([rewards, np.zeros(24 - n, np.float32)])

    def weights_of(rewards, baseline):
        weights = weigh(filled(rewards), jnp.int32(k), baseline=baseline, where=where)
        return np.asarray(weights)[:n]

    def rho(k):
        return float(max_at_k(filled(rewards), jnp.int32(k), where=where))

    weights = {b: weights_of(rewards, b) for b in BASELINES}
    close = dict(atol=5e-5, rtol=1e-5)
    np.testing.assert_allclose(weights["none"].sum(), k * rho(k), **close)
    np.testing.assert_allclose(weights["centered"].sum(), 0.0, **close)
    if k >= 2:
        gained = k * (rho(k) - rho(k - 1))
        np.testing.assert_allclose(weights["loo_minus_one"].sum(), gained, **close)
        assert (weights["loo_minus_one"] >= 0.0).all()
    order = list(range(n))
    random.shuffle(order)
    for baseline, w in weights.items():
        np.testing.assert_allclose(weights_of(rewards[order], baseline), w[order], **close)
        np.testing.assert_allclose(weights_of(2 * rewards, baseline), 2 * w, **close)
        if baseline in ("loo_minus_one", "centered"):
            np.testing.assert_allclose(weights_of(rewards + 3, baseline), w, **close)


def test_finite_for_the_largest_rewards():
    limit = np.finfo(np.float32).max
    rewards = np.array([[-limit, limit, 0.0, limit], [limit, -limit, -limit, -limit]])
    for baseline in BASELINES:
        for k in (1, 2, 3):
            assert np.isfinite(pkpo.pkpo_weights(rewards, k, baseline=baseline)).all()
            assert np.isfinite(pkpo.max_at_k(rewards, k)).all()


def test_traced_k_is_clipped_and_does_not_recompile():
    weights = jax.jit(lambda r, k: pkpo.pkpo_weights(r, k, baseline="centered"))
    rewards = jnp.array([0.0, 1.0, 3.0, 4.0])
    for k, served in [(-2, 1), (1, 1), (3, 3), (4, 3), (9, 3)]:
        expected = pkpo.pkpo_weights(rewards, served, baseline="centered")
        np.testing.assert_allclose(weights(rewards, jnp.int32(k)), expected, atol=1e-6)
    assert weights._cache_size() == 1


def test_groups_without_a_comparison_give_zero():
    for where in ([False] * 3, [False, True, False]):
        for baseline in BASELINES[1:]:
            weights = pkpo.pkpo_weights(
                [1.0, 2.0, 3.0], jnp.int32(2), baseline=baseline, where=jnp.array(where)
            )
            np.testing.assert_array_equal(weights, 0.0)
    assert pkpo.max_at_k([1.0, 2.0], jnp.int32(1), where=jnp.array([False, False])) == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(k=0), ValueError, "k=0; expected 1 <= k <= 3"),
        (dict(k=4), ValueError, "k=4; expected 1 <= k <= 3"),
        (dict(k=3, baseline="loo"), ValueError, "k=3; expected 1 <= k <= 2"),
        (dict(k=3, baseline="centered"), ValueError, "k=3; expected 1 <= k <= 2"),
        (dict(k=np.array([1, 5])), ValueError, "expected 1 <= k <= 3"),
        (dict(k=1.0), TypeError, "expected an integer"),
        (dict(k=1, baseline="mean"), ValueError, "baseline='mean'; expected one of none, loo"),
        (dict(k=np.array([1, 2, 1])), ValueError, "one k a prompt"),
        (dict(k=1, where=np.ones((2, 2), bool)), ValueError, r"expected bool\(2, 3\)"),
        (dict(k=1, where=np.ones((2, 3))), ValueError, r"expected bool\(2, 3\)"),
    ],
)
def test_static_bad_arguments_raise(arguments, error, message):
    with pytest.raises(error, match=message):
        pkpo.pkpo_weights(np.zeros((2, 3)), **arguments)


def test_a_scalar_is_no_group():
    with pytest.raises(ValueError, match=r"expected \[..., n\]"):
        pkpo.max_at_k(1.0, 1)
