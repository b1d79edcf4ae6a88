"""Tests that eager, jit, vmap, pmap, shard_map and a differentiated loss give the same numbers."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo


def classes_of(r):
    return jnp.floor(2 * r).astype(jnp.int32)


ESTIMATORS = {
    **{
        baseline: lambda r, k, b=baseline: pkpo.pkpo_weights(r, k, baseline=b)
        for baseline in ("none", "loo", "loo_minus_one", "centered")
    },
    "max_at_k": pkpo.max_at_k,
    "pass_at_k": lambda r, k: pkpo.pass_at_k(r > 0, k),
    "masked": lambda r, k: pkpo.pkpo_weights(r, k, where=r < 1.0),
    "mixture": lambda r, k: pkpo.pkpo_weights(
        r, pkpo.Mixture(jnp.stack([k, 6 - k], -1), [0.5, 2.0]), where=r < 1.0
    ),
    "shapley": lambda r, k: pkpo.shapley_weights(r),
    "tailrl": lambda r, k: pkpo.tailrl_advantages(r, where=r < 1.0),
    "top_mean": lambda r, k: pkpo.top_mean_weights(r, k, where=r < 1.0),
    "quantile": lambda r, k: pkpo.quantile_weights(r, k, 0.3),
    "pass_hat_k_weights": lambda r, k: pkpo.pass_hat_k_weights(r > 0, k),
    "distinct": lambda r, k: pkpo.distinct_weights(r > 0, classes_of(r), k),
    "poly_epo": lambda r, k: pkpo.poly_epo_weights(r, classes_of(r), k, where=r < 1.0),
    "edas": lambda r, k: pkpo.edas_advantages(r, r > 0, classes_of(r)),
    "rarity": lambda r, k: pkpo.rarity_advantages(r, r > 0, classes_of(r)),
    "entropic": lambda r, k: pkpo.entropic_advantages(r, where=r < 1.0),
    "quantile_baseline": lambda r, k: pkpo.quantile_baseline_advantages(r),
    "pacevolve": lambda r, k: pkpo.pacevolve_advantages(r, k),
    "distinct_shapley": lambda r, k: pkpo.distinct_shapley_weights(r > 0, classes_of(r)),
    "volume": lambda r, k: pkpo.volume_weights(r, jnp.stack([r, r * r], -1)),
    "bbg": lambda r, k: pkpo.bbg_advantages(r > 0, 3 * k),
    "posterior": lambda r, k: pkpo.posterior_advantages(r > 0, 3 * k, k, 0.5 * k, r < 1.0),
    "tail": lambda r, k: pkpo.tail_extrapolated_weights(r, 8 * k),
    "tang": lambda r, k: pkpo.tang_weights(r),
    "rloo": lambda r, k: pkpo.rloo_advantages(r, where=r < 1.0),
    "maxrl": lambda r, k: pkpo.maxrl_advantages(r > 0),
    "combination": lambda r, k: pkpo.passk_training_advantages(r > 0, k, method="combination"),
    "curve": lambda r, k: pkpo.pass_at_k_curve(r > 0),
    "analytical": lambda r, k: pkpo.passk_training_advantages(r > 0, k),
    "full": lambda r, k: pkpo.passk_training_advantages(r > 0, k, method="full"),
    "mahdavi": lambda r, k: pkpo.mahdavi_advantages(r > 0, k),
    "grpo": lambda r, k: pkpo.grpo_advantages(r),
    "off_policy": lambda r, k: pkpo.off_policy_weights(r, k, jnp.exp(0.1 * r)),
}
R = np.random.default_rng(0).normal(size=(8, 2, 6)).astype(np.float32)
K = np.arange(16).reshape(8, 2) % 5 + 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_eager_jit_vmap_and_loss(name):
    f = ESTIMATORS[name]
    eager = f(R, K)
    close = dict(atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(f)(R, K), eager, **close)
    np.testing.assert_allclose(jax.vmap(jax.vmap(f))(jnp.array(R), jnp.array(K)), eager, **close)
    # Each k occurs once.
    rows = [[f(R[i, j], int(K[i, j])) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(np.array(rows), eager[:3], **close)

    def loss(log_probs, rewards, k):
        weights = jax.lax.stop_gradient(f(rewards, k))
        weights = weights if weights.ndim == 3 else weights[..., None]
        return (weights * log_probs).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.zeros(R.shape), R, K)
    np.testing.assert_allclose(
        gradient, jnp.broadcast_to(jnp.asarray(eager).reshape((*R.shape[:2], -1)), R.shape), **close
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_changing_k_does_not_recompile(name):
    # This needs a new function, since all jits of one function share their cache.
    f = jax.jit(lambda r, k: ESTIMATORS[name](r, k))
    for k in (1, 2, 5):
        f(jnp.array(R), jnp.int32(k))
    assert f._cache_size() == 1


PROGRAM = """
import re
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from tests.estimators.test_composition import ESTIMATORS, K, R

assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
placed = [jax.device_put(x, jax.NamedSharding(explicit, P("data"))) for x in (R, K)]
def every(r, k):
    return {name: f(r, k) for name, f in ESTIMATORS.items()}
eager = every(R, K)
sharded = jax.jit(jax.shard_map(every, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
for results in (jax.pmap(every)(R, K), sharded(R, K), jax.jit(every)(*placed)):
    for name, result in results.items():
        np.testing.assert_allclose(result, eager[name], atol=2e-6, rtol=1e-5, err_msg=name)
text = sharded.lower(R, K).compile().as_text()
found = re.findall(r"all-reduce|all-gather|all-to-all|collective|reduce-scatter", text)
assert not found, found
print("same", len(results))
"""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_results_are_float32_when_jax_has_float64(name):
    with jax.enable_x64(True):
        assert ESTIMATORS[name](R, K).dtype == jnp.float32


def test_passk_training_is_float32_when_jax_has_float64():
    with jax.enable_x64(True):
        for method in ("exceeding", "full", "bootstrap", "adaptive"):
            result = pkpo.passk_training_advantages(
                R > 0, K, method=method, key=jax.random.key(0), entropy=R.mean(-1)
            )
            assert result.dtype == jnp.float32, method


def test_pmap_and_shard_map_over_prompts_without_collectives():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env
    )
    assert result.stdout == f"same {len(ESTIMATORS)}\n", result.stderr
