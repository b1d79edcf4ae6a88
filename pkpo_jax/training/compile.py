"""Compiling the steps of a config ahead of time, for devices that are not there.

`report` compiles the sampler and the update for a TPU topology, or for the local backend, and
prints what a device needs: memory against what it has, work, communication, compile time.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import time
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import rich.console
import rich.table
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.policy import sampling, tokenizers
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import programs, step

# High-bandwidth memory of a chip, GiB, as Cloud TPU's documentation states it.
HBM_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
_GIB = 2**30
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one device needs for one call of a program; bytes, unless said otherwise.

    Attributes:
      arguments: parameters, optimiser and batch; what the program gives back in their place is
        not counted again.
      temporaries: what it needs beside them while it runs, its other results included.
      flops: multiplications and additions of its matrix products, if devices share them evenly.
      accessed: memory that XLA estimates to be read and written, a loop's body counted once.
      collectives: by kind, bytes that it receives; loops as often as they run.
      seconds: that compiling took.
    """

    arguments: int
    temporaries: int
    flops: float
    accessed: float
    collectives: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def topology_devices(topology: str) -> tuple[list[Any], int]:
    """The devices of a TPU topology such as "v5e:8x16", and the memory of one in bytes.

    Raises:
      ConfigError: there is no such topology, or libtpu is not installed.
    """
    kind = topology.partition(":")[0]
    if kind not in HBM_GIB or not re.fullmatch(r"\w+:\d+x\d+(x\d+)?", topology):
        raise config_lib.ConfigError(
            f"--topology={topology}; expected a chip ({', '.join(HBM_GIB)}) and its grid, such as "
            "v5e:8x16 or v5p:4x4x8."
        )
    # libtpu asks a TPU VM for these; there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as e:  # Of libtpu, of whatever type.
        raise config_lib.ConfigError(
            f"--topology={topology} cannot be described ({str(e).splitlines()[0]}); it takes "
            'libtpu, which pip install -e ".[tpu]" installs, and a grid that Cloud TPU offers.'
        ) from None
    return list(described.devices), HBM_GIB[kind] * _GIB


def report(config: config_dict.ConfigDict, topology: str | None) -> bool:
    """Compiles and prints; whether all programs fit."""
    if topology is None:
        devices, name = jax.devices(), f"{jax.device_count()} local {jax.devices()[0].device_kind}"
        memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    else:
        devices, memory = topology_devices(topology)
        name = f"{len(devices)} devices of {topology}"
    config_lib.validate(config, len(devices), weights=False)
    if config.parallel.mode != "jit":
        raise config_lib.ConfigError(
            f"parallel.mode={config.parallel.mode!r}; --mode=compile compiles for a mesh: set it "
            "to 'jit'."
        )
    shape = config_lib.mesh_shape(config.parallel.mesh, len(devices))
    tokenizer = tokenizers.Gemma2Tokenizer
    if config.model.size == "tiny":
        tokenizer = tokenizers.CharacterTokenizer(tasks.make(config.task.to_dict()).alphabet)
    mesh = parallel.make_mesh(shape, devices)
    built = programs.Programs(config, parallel.Jitted(mesh), tokenizer)
    console = rich.console.Console()
    r, t = config.rollout, config.train
    console.print(
        f"Gemma-2 {config.model.size} on {name}, mesh {shape}: {t.prompts} prompts x {r.n} "
        f"responses, {r.max_prompt} + {r.max_response} tokens, {t.micro_batches} micro-batch(es); "
        f"activations {config.model.dtype}, parameters {config.model.param_dtype}",
        highlight=False,
    )
    table = rich.table.Table("a device", "sampling", "update", title="compiled, not run")
    compiled = [compile_sampler(built), compile_update(built)]
    for label, row in _rows(compiled, memory):
        table.add_row(label, *row)
    console.print(table)
    # The optimiser's state waits in memory while the policy samples.
    waiting = _bytes(built.abstract_state().opt_state)
    peaks = [compiled[0].total + waiting, compiled[1].total]
    if memory is None:
        console.print("the device does not say how much memory it has", highlight=False)
        return True
    fits = max(peaks) <= memory
    console.print(
        f"peak {max(peaks) / _GIB:.2f} GiB of {memory / _GIB:.2f} a device"
        f" (the optimiser's {waiting / _GIB:.2f} GiB beside sampling included): "
        + ("fits" if fits else "DOES NOT FIT; use more devices, or raise train.micro_batches"),
        highlight=False,
        style="" if fits else "bold red",
    )
    return fits


def compile_sampler(built: programs.Programs) -> Compiled:
    """The sampler of a training step."""
    config = built.config
    prompts = _array(built, (config.train.prompts, config.rollout.max_prompt), jnp.int32)
    rows = _array(built, (config.train.prompts,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sampler = built.sampler(config.rollout.n)
    return _compile(sampler, built, built.abstract_params(), (prompts, rows, rows), (key, 0, 1.0))


def compile_update(built: programs.Programs) -> Compiled:
    """The update of a training step."""
    return _compile(built.update, built, *update_arguments(built))


def update_arguments(built: programs.Programs) -> tuple[step.TrainState, step.Batch, tuple]:
    """What the update is called with: shapes, dtypes and shardings."""
    config = built.config
    p, n, t = config.train.prompts, config.rollout.n, config.rollout.max_response
    tokens = {dtype: _array(built, (p, n, t), dtype) for dtype in (jnp.int32, bool, jnp.float32)}
    groups = {dtype: _array(built, (p, n), dtype) for dtype in (jnp.int32, bool, jnp.float32)}
    batch = step.Batch(
        _array(built, (p, config.rollout.max_prompt), jnp.int32),
        _array(built, (p,), jnp.int32),
        sampling.Rollout(
            tokens=tokens[jnp.int32],
            lengths=groups[jnp.int32],
            mask=tokens[bool],
            log_probs=tokens[jnp.float32],
            entropy=tokens[jnp.float32],
            finished=groups[bool],
        ),
        groups[jnp.float32],
        groups[bool],
    )
    return built.abstract_state(), batch, (1, 1.0, 1e-6)


def _array(built: programs.Programs, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A batch's array [P, ...] or [P, n, ...], placed as a run places it."""
    mesh = built.devices.mesh
    n = shape[1] if shape[1:2] == (built.config.rollout.n,) else 1
    spec = PartitionSpec(*parallel.batch_axes(mesh.shape, shape[0], n)[: len(shape)])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _compile(program: Any, built: programs.Programs, *arguments: Any) -> Compiled:
    started = time.perf_counter()
    traced = program.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    trips = built.config.rollout.max_response
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        flops=matmul_flops(traced.jaxpr.jaxpr, trips) / built.devices.mesh.size,
        accessed=cost.get("bytes accessed", float("nan")),
        collectives=collective_bytes(compiled.as_text()),
        seconds=seconds,
    )


def matmul_flops(jaxpr: Any, trips: int) -> float:
    """Multiplications and additions of all matrix products of a jaxpr.

    XLA's own count takes the body of a loop once; this one takes it as often as the loop runs, a
    `while` loop (decoding) `trips` times.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = 1
            for axis in contracted:
                inner *= left[axis]
            total += 2.0 * equation.outvars[0].aval.size * inner
            continue
        times = {"scan": equation.params.get("length"), "while": trips}
        inside = sum(
            matmul_flops(j, trips) for j in jax.extend.core.jaxprs_in_params(equation.params)
        )
        total += inside * times.get(equation.primitive.name, 1)
    return total


def collective_bytes(hlo: str) -> dict[str, int]:
    """By kind of collective, the bytes a device receives, from a compiled program's text.

    A loop's body counts as often as the constant in its condition says, which all loops here have:
    over layers, chunks, tokens, and the shards of a product that XLA pipelines with its transfers.
    """
    bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            current = bodies.setdefault(header[1], [])
            if line.startswith("ENTRY"):
                main = header[1]
        elif line.startswith(" "):
            current.append(line)

    def called(line: str, attribute: str) -> list[str]:
        return re.findall(rf"\b{attribute}=%?([\w.-]+)", line)

    @functools.cache
    def trips(condition: str) -> int:
        constants = [1]
        for line in bodies.get(condition, []):
            constants += [int(c) for c in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", line)]
            constants += [trips(name) for name in called(line, "calls")]
        return max(constants)

    # XLA for TPU splits a transfer over the fusions it overlaps with, which name it again, also
    # from within their loops: each channel is one transfer, as often as the least of them runs.
    channels: dict[str, tuple[str, int, int]] = {}

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, []):
            found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z-]+)\(", line)
            if not found:
                continue
            variable, shape, kind = found.groups()
            base = kind.removesuffix("-start")
            if base in COLLECTIVES:
                # A start returns its operand and its result; the result is the larger one.
                size = max(_sizes(shape)) if kind != base else sum(_sizes(shape))
                channel = "".join(re.findall(r"channel_id=\d+", line)) or variable
                least = min(times, channels.get(channel, (base, size, times))[2])
                channels[channel] = (base, size, least)
            runs = max([trips(c) for c in called(line, "condition")], default=1)
            for inner in called(line, "(?:body|calls|to_apply)"):
                walk(inner, times * runs)

    walk(main, 1)
    total: collections.Counter = collections.Counter()
    for kind, size, times in channels.values():
        total[kind] += size * times
    return dict(total)


def _sizes(shape: str) -> list[int]:
    """Bytes of each array in an HLO shape such as "(bf16[8,128]{1,0}, f32[4])"."""
    sizes = []
    for kind, bits, dimensions in re.findall(r"\b(pred|[a-z]+?)(\d*)\[([\d,]*)\]", shape):
        size = 1 if kind == "pred" else max(int(bits or 8) // 8, 1)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        sizes.append(size)
    return sizes or [0]


def _bytes(abstract: Any) -> int:
    """What a tree of placed shapes takes on one device."""
    leaves = jax.tree.leaves(abstract)
    return sum(
        x.dtype.itemsize * int(jnp.prod(jnp.array(x.sharding.shard_shape(x.shape)))) for x in leaves
    )


def _rows(compiled: list[Compiled], memory: int | None) -> list[tuple[str, list[str]]]:
    def gib(x: float) -> str:
        return f"{x / _GIB:.2f} GiB" if x > 1e7 else f"{x / 2**20:.2f} MiB"

    rows = [
        ("arguments", [gib(c.arguments) for c in compiled]),
        ("temporaries", [gib(c.temporaries) for c in compiled]),
        ("total", [gib(c.total) for c in compiled]),
    ]
    if memory is not None:
        rows.append(("of the device's memory", [f"{c.total / memory:.0%}" for c in compiled]))
    rows.append(("matrix products", [f"{c.flops / 1e9:,.2f} GFLOP" for c in compiled]))
    rows.append(("memory traffic, loop bodies once", [gib(c.accessed) for c in compiled]))
    for kind in COLLECTIVES:
        if any(kind in c.collectives for c in compiled):
            rows.append((kind, [gib(c.collectives.get(kind, 0)) for c in compiled]))
    rows.append(("compile time", [f"{c.seconds:.0f} s" for c in compiled]))
    return rows
