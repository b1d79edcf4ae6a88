"""Tests of the counts of --mode=compile, on programs whose counts are known by hand."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pkpo_jax.reporting import compilation, hlo
from pkpo_jax.training import config as config_lib

HLO = """\
HloModule jit_f, num_partitions=4

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %constant.1 = s32[] constant(13)
  ROOT %less = pred[] compare(%i, %constant.1), direction=LT
}

%fused (x: f32[2,128]) -> f32[8,128] {
  ROOT %all-gather.1 = f32[8,128]{1,0} all-gather(%x), channel_id=7, dimensions={0}
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %g = f32[8,128] fusion(%x), kind=kCustom, calls=%fused
  %g2 = f32[8,128] fusion(%x), kind=kCustom, calls=%fused
  %r = (bf16[64], bf16[64]) all-reduce-start(%y), channel_id=8, to_apply=%add
}

ENTRY %main (a: f32[2,128]) -> f32[8,128] {
  %w = (s32[], f32[8,128]) while(%t), condition=%condition, body=%body
  %p = (bf16[16,4], bf16[16,4], u32[]) collective-permute-start(%a), channel_id=9
}
"""


def test_collectives_count_as_often_as_their_loops_run_and_each_channel_once():
    assert hlo.collective_bytes(HLO) == {
        "all-gather": 13 * 8 * 128 * 4,
        "all-reduce": 13 * 64 * 2,
        "collective-permute": 16 * 4 * 2,
    }


def test_collectives_of_a_real_program():
    """Counts a scan of 5 products with gathered parameters, on two forced devices."""
    program = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from pkpo_jax import parallel
from pkpo_jax.reporting import hlo
mesh = parallel.make_mesh((1, 2, 1))
w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
x = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
f = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
print(hlo.collective_bytes(jax.jit(f).lower(x, w).compile().as_text()))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )
    assert result.stdout.strip() == str({"all-gather": 5 * 64 * 64 * 4}), result.stderr


def test_matmul_flops():
    def f(x, w):
        x = jax.lax.scan(lambda x, w: (jax.checkpoint(jnp.dot)(x, w), None), x, w)[0]
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w[0], x)

    jaxpr = jax.make_jaxpr(f)(jnp.ones((3, 8)), jnp.ones((5, 8, 8)))
    assert compilation.matmul_flops(jaxpr.jaxpr, trips=7) == 2 * 3 * 8 * 8 * (5 + 7)


@pytest.mark.parametrize("topology", ["v5e", "v7:4x4", "v5e:4", "v5e:axb", "v5e:4x4x4", "v5p:4x4"])
def test_topologies_that_are_none(topology):
    with pytest.raises(config_lib.ConfigError, match=r"expected a chip \(v4, v5e, v5p, v6e\)"):
        compilation.topology_devices(topology)


def test_the_local_report(capsys):
    config = config_lib.default()
    config.train.prompts, config.rollout.max_response = 4, 8
    assert compilation.report(config, None)
    text = capsys.readouterr().out
    for row in (
        "evaluation",
        "arguments",
        "temporaries",
        "total",
        "matrix products",
        "compile time",
    ):
        assert row in text
    config.parallel.mode, config.parallel.mesh = "pmap", (1, 1, 1)
    with pytest.raises(config_lib.ConfigError, match=r"parallel.mode='pmap'"):
        compilation.report(config, None)


def test_what_does_not_fit_is_said(monkeypatch, capsys):
    compiled = compilation.Compiled(2**30, 2**34, 1e12, 1e9, {"all-gather": 5}, 1.0)
    monkeypatch.setattr(compilation, "topology_devices", lambda _: (jax.devices(), 16 * 2**30))
    monkeypatch.setattr(compilation, "compile_sampler", lambda *_: compiled)
    monkeypatch.setattr(compilation, "compile_update", lambda _: compiled)
    assert not compilation.report(config_lib.default(), "v5e:1x1")
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_what_xla_refuses_is_reported(monkeypatch, capsys):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 20G of 15.75G"
        )

    monkeypatch.setattr(compilation, "compile_sampler", refuse)
    assert not compilation.report(config_lib.default(), None)
    text = capsys.readouterr().out
    assert "Used 20G of 15.75G" in text and "DOES NOT FIT" in text
