import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax import schedules

EXAMPLES = {
    "constant": (schedules.constant(4), {0: 4, 10_000: 4}),
    "step": (schedules.step({0: 8, 1500: 1}), {0: 8, 1499: 8, 1500: 1, 9999: 1}),
    "out of order": (schedules.step({20: 2, 0: 1, 10: 8}), {9: 1, 10: 8, 19: 8, 20: 2}),
    "linear": (schedules.linear(1, 9, 8), {0: 1, 4: 5, 8: 9, 80: 9}),
    "cosine": (schedules.cosine(16, 1, 100), {0: 16, 10: 16, 50: 9, 90: 1, 100: 1, 200: 1}),
}


@pytest.mark.parametrize(("schedule", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_steps_as_ints_and_traced(schedule, expected):
    traced = jax.jit(schedule)
    for step, k in expected.items():
        assert schedule(step) == k and isinstance(schedule(step), int)
        assert traced(jnp.int32(step)) == k
    np.testing.assert_array_equal(
        schedule(jnp.array(list(expected))), np.array(list(expected.values()))
    )


@pytest.mark.parametrize(
    "ks",
    [{}, {1: 2}, {0: 0}, {0: -1}, {0: 2.5}, {0: True}, {0: "8"}, {0: 8, 1.5: 1}, {0: 8, "9": 1}],
)
def test_bad_staircases_raise(ks):
    with pytest.raises(ValueError, match="expected"):
        schedules.step(ks)


def test_ties_round_up_in_float32_and_float64():
    rates = np.array([2 / 7, 2 / 13, 2 / 15, np.nan])
    schedule = schedules.near_inverse_pass_rate(1, 16)
    assert [schedule(r) for r in rates] == [4, 7, 8, 16]
    np.testing.assert_array_equal(schedule(jnp.array(rates, jnp.float32)), [4, 7, 8, 16])
    cosine = schedules.cosine(2, 8, 3)
    assert cosine(1) == 4 == int(jax.jit(cosine)(jnp.int32(1)))


def test_pass_rates_of_prompts_each_give_a_k():
    schedule = schedules.near_inverse_pass_rate(2, 8)
    rates = np.array([0.0, 0.1, 0.2, 0.3, 0.6, 1.0])
    expected = [8, 8, 5, 3, 2, 2]
    np.testing.assert_array_equal(schedule(rates), expected)
    np.testing.assert_array_equal(jax.jit(schedule)(jnp.array(rates)), expected)
    with pytest.raises(ValueError, match="smallest=9 is above largest=8"):
        schedules.near_inverse_pass_rate(9, 8)
