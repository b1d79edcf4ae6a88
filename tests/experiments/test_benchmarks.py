"""Tests of the benchmarks that call the package's programs themselves, at small sizes."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import handwritten, inner_loop, refilling
from pkpo_jax.policy import gemma, sampling, scoring

CONFIG = inner_loop.QUICK


def test_throughput_runs():
    command = [sys.executable, "-m", "experiments.benchmarks.throughput", "--prompts=2"]
    command += ["--lengths=8,4", "--repeats=1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for program in ("sampling", "update"):
        assert re.search(rf"{program} +│ \d+\.\d+ +│", result.stdout)


def make_inputs():
    """Returns inputs with prompts of several lengths, and norms with scales other than 1."""
    inputs = inner_loop.make_inputs(CONFIG, 3, 40)
    noisy = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    params = jax.tree.map(noisy, inputs.params)
    return inputs._replace(params=params, lengths=jnp.array([40, 1, 30]))


def test_handwritten_gradient_equals_that_of_the_package():
    model, params, *batch = make_inputs()
    responses = jax.random.randint(jax.random.key(1), (3, 2, 30), 1, CONFIG.vocab_size)
    weights = jax.random.normal(jax.random.key(2), responses.shape)
    package = jax.value_and_grad(
        lambda params: (weights * scoring.score(model, params, *batch, responses)[0]).mean()
    )
    reference = jax.value_and_grad(
        lambda params: (weights * handwritten.score(CONFIG, params, *batch, responses)).mean()
    )
    loss, gradient = jax.jit(package)(params)
    expected_loss, expected = jax.jit(reference)(gemma.unstack(params))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert max(abs(x).max() for x in jax.tree.leaves(expected)) > 1e-3
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gemma.unstack(gradient), expected
    )


def test_handwritten_sampler_draws_the_tokens_of_the_package():
    model, params, *batch = make_inputs()
    sizes = {"n": 4, "max_response": 70, "stop_tokens": (5, 6)}
    args = (*batch, jax.random.key(3), 1.5)
    ours = jax.jit(lambda params: sampling.sample(model, params, *args, **sizes))(params)
    expected = handwritten.sample(CONFIG, gemma.unstack(params), *args, **sizes)
    # Some responses outgrow the first cache, and others have left the batch by then.
    lengths = np.sort(ours.lengths.ravel())
    assert lengths[len(lengths) // 2] < 64 < lengths[-1]
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("stragglers", [0, 1])
def test_stops_are_where_the_workload_wants_them(stragglers):
    pair = inner_loop.early_stop(CONFIG, 2, 4, 24, 5, stragglers=stragglers)
    package, reference = pair.package(), pair.reference()
    expected = [5] * (8 - stragglers) + [24] * stragglers
    assert sorted(np.asarray(reference.lengths).ravel()) == expected
    assert pair.difference(package, reference) < 1e-5


def test_top_p_changes_tokens_outside_the_nucleus_alone():
    pair = inner_loop.nucleus(CONFIG, 2, 8, 6)
    package, reference = pair.package(), pair.reference()
    assert pair.difference(package, reference) < 1e-5
    with pytest.raises(ValueError, match="100% are equal"):
        pair.difference(package, package)


def test_counts_of_batches_by_hand():
    lengths = np.full((32, 8), 10)
    lengths[3, 5] = 100
    # One response goes on in a batch of two, whose cache has room for all tokens.
    expected = 110, 20 * 128 + 90 * 2, 20 * 128 * 64 + 90 * 2 * 128
    assert refilling.batches(lengths, 16, 128) == expected
    # Short responses do not leave their batch.
    assert refilling.batches(np.minimum(lengths, 30), 16, 30) == (40, 40 * 128, 40 * 128 * 30)


@pytest.mark.parametrize(
    ("prompts", "width", "steps"),
    [
        # One slot takes as long as the longest response of each group.
        (1, 2, 3 + 2 + 4),
        # Two slots take the sums of the first two groups at once, and then one that of the third.
        (1, 1, 4 + 1 + 4),
        # The second of two slots ends first, and is given to the third group.
        (2, 2, 2 + 4),
    ],
)
def test_counts_of_refilling_by_hand(prompts, width, steps):
    lengths = np.array([[3, 1], [2, 2], [1, 4]])
    rows = steps * prompts * 2
    assert refilling.refilled(lengths, prompts, 9, width=width) == (steps, rows, 9 * rows)
