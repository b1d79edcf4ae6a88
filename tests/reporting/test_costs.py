"""Tests of the costs of compiled programs, on programs whose costs are known by hand."""

import collections
import json
import os
import subprocess
import sys

import pytest

from pkpo_jax.reporting import chips, costs, hlo, roofline

# Every program runs on four forced devices, each with a share of the arrays where it says so.
PROGRAMS = """
import collections, json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from pkpo_jax import parallel
from pkpo_jax.reporting import costs

mesh = parallel.make_mesh((1, 4, 1))

def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

def over_devices(f, spec):
    return jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(*spec), check_vma=False)

def scan(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

def decode(x, w):
    def step(s):
        x = jnp.tanh(s[1] @ w)
        return s[0] + 1, x, x.sum() < 0.1
    return jax.lax.while_loop(lambda s: (s[0] < 37) & ~s[2], step, (0, x, False))[1]

def in_turn(x, w):
    # The second loop goes on where the first one ended.
    def run(s, bound, w):
        return jax.lax.while_loop(lambda s: (s[0] < bound) & (s[1].sum() > 0), lambda s: (s[0] + 1, s[1] @ w), s)
    s = run((0, x), 20, w)
    return jax.lax.cond(s[1].sum() > 0, lambda s, w: run(s, 50, w)[1], lambda s, w: s[1], s, w)

def endless(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

def slices(x, w):
    return jax.lax.scan(lambda x, w: (x + w.sum(), jnp.cos(x)), x, w)

def branches(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

rows, whole = array((512, 64), "fsdp"), array((64, 64))
programs = {
    "scan": (scan, rows, array((5, 64, 64), None, "fsdp")),
    "split": (jnp.dot, rows, whole),
    "replicated": (jnp.dot, array((512, 64)), whole),
    "decode": (decode, rows, whole),
    "in turn": (in_turn, rows, whole),
    "endless": (endless, whole),
    "branches": (branches, rows, whole),
    "slices": (slices, array((256, 256)), array((64, 256, 256))),
    "reduce-scatter": (over_devices(lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), ["fsdp"]), whole),
    "all-reduce": (over_devices(lambda x: jax.lax.psum(x, "fsdp"), []), whole),
    "all-gather": (over_devices(lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), []), whole),
    "all-to-all": (over_devices(lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), ["fsdp"]), whole),
    "collective-permute": (over_devices(lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]), ["fsdp"]), whole),
}
results = {}
for name, (f, *arguments) in programs.items():
    work, ends = costs.work(jax.jit(f).lower(*arguments).compile().as_text())
    results[name] = {
        "flops": sum(w.times * w.flops for w in work),
        "memory": sum(w.times * w.memory for w in work),
        "received": {t.kind: 0 for w in work for t in w.transfers},
        "endless": ends,
    }
    for w in work:
        for t in w.transfers:
            results[name]["received"][t.kind] += w.times * t.bytes
print(json.dumps(results))
"""  # noqa: E501


@pytest.fixture(scope="module")
def measured():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAMS],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_products_count_as_often_as_their_loops_run(measured):
    assert measured["scan"]["flops"] == 5 * 2 * 128 * 64 * 64
    assert measured["decode"]["flops"] == 37 * 2 * 128 * 64 * 64
    assert measured["in turn"]["flops"] == 50 * 2 * 128 * 64 * 64
    # The branch of a conditional that has two products counts.
    assert measured["branches"]["flops"] == 2 * 2 * 128 * 64 * 64
    # A loop whose end depends on what it computes counts once, and is named.
    assert measured["endless"]["flops"] == 2 * 64 * 64 * 64
    assert measured["endless"]["endless"] == ["jit(endless)/while"]
    assert not measured["decode"]["endless"]


def test_replicated_products_are_the_work_of_each_device(measured):
    assert measured["split"]["flops"] == 2 * 128 * 64 * 64
    assert measured["replicated"]["flops"] == 2 * 512 * 64 * 64


def test_the_bytes_that_each_collective_receives(measured):
    size = 64 * 64 * 4
    assert measured["scan"]["received"] == {"all-gather": 5 * size * 3 / 4}
    for kind, expected in {
        "reduce-scatter": size * 3 / 4,
        "all-reduce": 2 * size * 3 / 4,
        "all-gather": 4 * size * 3 / 4,
        "all-to-all": size * 3 / 4,
        "collective-permute": size,
    }.items():
        assert measured[kind]["received"] == {kind: expected}


def test_slices_of_an_array_count_as_themselves(measured):
    """A scan reads and writes 64 slices. Whole arrays at each step would be 64 times as much."""
    read, written = 64 * 256 * 256 * 4, 64 * 256 * 256 * 4
    assert read + written < measured["slices"]["memory"] < 8 * (read + written)


# XLA for TPU wrote the instructions of these programs, which are shortened here.
WINDOWED = """\
HloModule jit_f, num_partitions=4

%cond (p: (bf16[16,128], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8)
  %p = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %compare.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.1), direction=LT
}

%body (q: (bf16[16,128], u32[])) -> (bf16[16,128], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %q = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.2 = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%q), index=0
  %get-tuple-element.3 = u32[]{:T(128)} get-tuple-element(%q), index=1
  %collective-permute-start = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.2), channel_id=8, source_target_pairs={{0,3},{1,0},{2,1},{3,2}}
  %add.1 = u32[]{:T(128)} add(%get-tuple-element.3, %constant.2)
  %collective-permute-done = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start)
  ROOT %tuple.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) tuple(%collective-permute-done, %add.1)
}

%all-reduce-scatter (x: f32[64,128]) -> f32[16,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  %constant.3 = s32[]{:T(128)} constant(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%x), channel_id=9, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[16,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %constant.3, %constant.3), dynamic_slice_sizes={16,128}
}

%async (y: f32[16,128]) -> f32[64,128] {
  %y = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.1 = f32[64,128]{1,0:T(8,128)} all-gather(%y), channel_id=10, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (a: bf16[16,128], b: f32[64,128]) -> f32[64,128] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = f32[64,128]{1,0:T(8,128)} parameter(1)
  %constant.4 = u32[]{:T(128)} constant(0)
  %tuple.2 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) tuple(%a, %constant.4)
  %while.1 = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) while(%tuple.2), condition=%cond, body=%body, metadata={op_name="jit(f)/dot_general"}
  %fusion.1 = f32[16,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter
  %fusion.2 = f32[64,128]{1,0:T(8,128)} fusion(%fusion.1), kind=kCustom, calls=%async
  ROOT %fusion.3 = f32[64,128]{1,0:T(8,128)} fusion(%fusion.1), kind=kCustom, calls=%async
}
"""  # noqa: E501


def test_the_collectives_of_xla_for_tpu():
    """Tests a loop over windows, a fused reduce-scatter, and a channel that is named twice."""
    work, endless = costs.work(WINDOWED)
    received = collections.Counter()
    for one in work:
        for transfer in one.transfers:
            received[transfer.kind] += one.times * transfer.bytes
    assert received == {
        # The loop counts to 8 by 2.
        "collective-permute": 4 * 16 * 128 * 2,
        "reduce-scatter": 64 * 128 * 4 * 3 / 4,
        "all-gather": 64 * 128 * 4 * 3 / 4,
    }
    assert not endless


BATCHED = """\
HloModule jit_f

ENTRY %main (a: bf16[256,4,256,1], b: bf16[256,4,2,256]) -> f32[4,256,256,2] {
  %a = bf16[256,4,256,1]{0,2,3,1:T(8,128)(2,1)} parameter(0)
  %b = bf16[256,4,2,256]{3,0,2,1:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.63 = f32[4,256,256,2]{2,1,3,0:T(8,128)} convolution(%a, %b), window={size=4x2 stride=3x1 pad=0_0x1_1 lhs_dilate=4x1 rhs_reversal=0x1}, dim_labels=b0f1_o01i->0bf1
}
"""  # noqa: E501


def test_a_batched_product_that_xla_writes_as_a_convolution():
    """Tests pntkgh,pnskh->pnkgts with n = 1, t = s = h = 256, k = 4 and g = 2, on a TPU."""
    (product,), _ = costs.work(BATCHED)
    assert product.flops == 2 * 4 * 2 * 256 * 256 * 256


def test_a_product_of_cublas():
    text = """\
HloModule jit_f

ENTRY %main (a: f32[8,16], b: f32[16,4]) -> (f32[8,4], s8[1024]) {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  ROOT %c = (f32[8,4]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501
    (product,), _ = costs.work(text)
    assert product.flops == 2 * 8 * 16 * 4


def test_arrays_are_padded_to_tiles_and_may_lie_on_the_chip():
    text = """\
HloModule jit_f

ENTRY %main (a: bf16[3,100]) -> f32[3,100] {
  %a = bf16[3,100]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[3,100]{0,1:T(8,128)S(1)} convert(%a)
  ROOT %c = f32[3,100]{0,1:T(8,128)} cosine(%b)
}
"""
    program = hlo.parse(text)
    assert [i.bytes for i in program.computations["main"].values()] == [
        8 * 128 * 2,
        104 * 128 * 4,
        104 * 128 * 4,
    ]
    # The result of the first instruction is not in HBM.
    assert [w.memory for w in costs.work(text)[0]] == [8 * 128 * 2, 104 * 128 * 4]


def test_time_is_that_of_the_resource_that_bounds_each_instruction():
    chip = chips.Chip(memory=1, flops=100.0, bandwidth=10.0, ici=5.0)
    transfer = costs.Transfer("all-gather", 10.0, 10.0, 2.0)
    work = [
        costs.Work(3, "", flops=200.0, memory=10.0, transfers=()),
        costs.Work(2, "jit(f)/while", flops=100.0, memory=40.0, transfers=(transfer,)),
    ]
    time = roofline.time(work, chip)
    assert (time.products, time.memory) == (3 * 2.0, 2 * 4.0)
    assert time.transfers == pytest.approx(2 * (10 / 5 + 2 * roofline.HOP))
    assert time.seconds == pytest.approx(18.0, abs=1e-4) and time.bound == "memory"


def test_the_parts_of_a_step():
    chip = chips.Chip(memory=1, flops=1.0, bandwidth=1.0, ici=1.0)

    def of(seconds, loop="", times=1):
        return costs.Work(times, loop, flops=seconds, memory=0.0, transfers=())

    work = {
        "sampling": [of(3.0, "jit(f)/Gemma.prefill/while"), of(2.0, "jit(f)/while", 8), of(1.0)],
        "scoring": [of(5.0)],
        "update": [of(7.0)],
        "evaluation": [of(40.0)],
    }
    times = roofline.phases(work, chip, tokens=8, scorings=2, evaluations=0.25)
    assert {name: time.seconds for name, time in times.items()} == {
        "prefill": 4.0,
        "a decoded token": 2.0,
        "sampling": 20.0,
        "scoring": 10.0,
        "update": 7.0,
        "evaluation's share": 10.0,
        "a step": 47.0,
    }
    del work["evaluation"]
    times = roofline.phases(work, chip, tokens=8, scorings=0, evaluations=0.25)
    assert times["a step"].seconds == 20.0 + 7.0 + 5.0
