import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from tests import reference


def test_brute_force():
    for n in range(1, 7):
        groups = np.array(list(itertools.product([0, 1], repeat=n)))
        curve = jax.jit(pkpo.pass_at_k_curve)(groups)
        metrics = [jax.jit(metric) for metric in (pkpo.pass_at_k, pkpo.max_at_k)]
        for k in range(1, n + 1):
            expected = [float(reference.pass_at_k(group, k)) for group in groups]
            np.testing.assert_allclose(curve[:, k - 1], expected, atol=1e-6)
            for metric in metrics:
                np.testing.assert_allclose(metric(groups, k), expected, atol=1e-6)


def test_masks_leave_smaller_groups():
    correct = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 1, 1]])
    where = np.array([[True, True, False, True, True], [True, True, True, False, False]])
    for k in (1, 2, 3):
        expected = [
            float(reference.pass_at_k(c[w], k)) for c, w in zip(correct, where, strict=True)
        ]
        np.testing.assert_allclose(pkpo.pass_at_k(correct, k, where=where), expected, atol=1e-6)
    curve = pkpo.pass_at_k_curve(correct, where=where)
    np.testing.assert_allclose(curve[0], [0.5, 5 / 6, 1.0, 1.0, 1.0], atol=1e-6)
    empty = pkpo.pass_at_k(correct, 1, where=np.zeros_like(where))
    np.testing.assert_array_equal(empty, [0.0, 0.0])


def test_k_is_traced_and_may_differ_by_prompt():
    # This needs a new function: the cache size counts what all jits of one function compiled.
    f = jax.jit(lambda correct, k: pkpo.pass_at_k(correct, k))
    correct = jnp.array([[1, 0, 0, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_allclose(f(correct, jnp.array([1, 3])), [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(f(correct, jnp.array([0, 9])), [0.25, 1.0], atol=1e-6)
    assert f._cache_size() == 1


@pytest.mark.parametrize("k", [0, 5, np.array([1, 7])])
def test_static_k_out_of_range_raises(k):
    with pytest.raises(ValueError, match="expected 1 <= k <= 4"):
        pkpo.pass_at_k(np.zeros((2, 4)), k)


def test_pass_hat_k_is_the_share_of_subsets_that_are_all_right():
    for n in range(1, 7):
        groups = np.array(list(itertools.product([0, 1], repeat=n)))
        curve = pkpo.pass_hat_k_curve(groups)
        for k in range(1, n + 1):
            expected = [
                np.mean([all(group[list(c)]) for c in reference.subsets(n, k)]) for group in groups
            ]
            np.testing.assert_allclose(pkpo.pass_hat_k(groups, k), expected, atol=1e-6)
            np.testing.assert_allclose(curve[:, k - 1], expected, atol=1e-6)


def test_pass_hat_k_of_masked_groups():
    correct = np.array([[1, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    where = np.array([[True, True, False, True, True], [False] * 5])
    for k, expected in ((1, 3 / 4), (2, 3 / 6), (3, 1 / 4), (4, 0.0)):
        got = pkpo.pass_hat_k(correct, k, where=where)
        np.testing.assert_allclose(got, [expected, 0.0], atol=1e-6)
    curve = pkpo.pass_hat_k_curve(correct, where=where)
    np.testing.assert_allclose(curve, [[0.75, 0.5, 0.25, 0.0, 0.0], [0.0] * 5], atol=1e-6)
    traced = jax.jit(pkpo.pass_hat_k)(correct, jnp.array([2, 1]), where=where)
    np.testing.assert_allclose(traced, [0.5, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="expected 1 <= k <= 5"):
        pkpo.pass_hat_k(correct, 6)


BINARY = {
    "pass_at_k": lambda c, where=None: pkpo.pass_at_k(c, 2, where),
    "pass_at_k_curve": pkpo.pass_at_k_curve,
    "pass_hat_k": lambda c, where=None: pkpo.pass_hat_k(c, 2, where),
    "pass_hat_k_curve": pkpo.pass_hat_k_curve,
    "passk_training": lambda c, where=None: pkpo.passk_training_advantages(c, 2, where=where),
    "maxrl": pkpo.maxrl_advantages,
    "mahdavi": lambda c, where=None: pkpo.mahdavi_advantages(c, 2, where),
}


@pytest.mark.parametrize("name", BINARY)
def test_values_other_than_0_and_1_are_refused(name):
    f = BINARY[name]
    right = np.array([[1, 0, 0, 1], [0, 1, 1, 1]])
    expected = np.asarray(f(right))
    for values in (right.astype(bool), right.astype(np.float64), jnp.asarray(right, jnp.bfloat16)):
        np.testing.assert_array_equal(f(values), expected)
    for given, shown in ((0.5, "0.5"), (-1, "-1"), (2**40, "1.09951e+12"), (np.nan, "nan")):
        wrong = np.where(right, given, 0)
        for values in (wrong, wrong.tolist(), jnp.asarray(wrong, jnp.float32)):
            with pytest.raises(ValueError, match=re.escape(f"correct holds {shown}; ")) as e:
                f(values)
            assert "correct = rewards >= 1" in str(e.value)
    # Masked entries may hold any value.
    where = np.array([[True, True, False, True], [False, True, True, True]])
    masked = f(np.where(where, right, np.nan), where=where)
    np.testing.assert_array_equal(masked, f(right, where=where))
    # Traced values are unknown, whatever their dtype.
    half = jnp.asarray(right * 0.5, jnp.float32)
    np.testing.assert_allclose(jax.jit(f)(half), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(half), expected, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda c: f(c).sum())(half), np.zeros((2, 4)))
