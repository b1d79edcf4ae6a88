"""Compilation of the steps of a config ahead of time, for devices that need not be present.

`report` compiles the sampler and the update for a TPU topology, or for the local backend, and
prints what a device needs: memory compared with what it has, work, communication, compile time.
"""

from __future__ import annotations

import dataclasses
import math
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

from pkpo_jax import parallel
from pkpo_jax.policy import sampling
from pkpo_jax.reporting import hlo
from pkpo_jax.training import checks, policies, programs, step
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.state import TrainState

# The high-bandwidth memory of a chip in GiB is that of Cloud TPU's documentation.
HBM_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The needs of one device for one call of a program, in bytes unless stated otherwise.

    Attributes:
      arguments: parameters, optimiser state and batch. Results that reuse the memory of arguments
        are not counted again.
      temporaries: memory needed beside the arguments while the program runs, including its other
        results.
      flops: number of multiplications and additions in matrix products, if devices share them
        evenly.
      accessed: XLA's estimate of the memory read and written, with the body of a loop counted once.
      collectives: bytes received by kind of collective, with loops counted as often as they run.
      seconds: compile time in seconds.
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

    def beside(self, held: int) -> Compiled:
        """Returns these needs with `held` more bytes, for arrays that stay in memory."""
        return dataclasses.replace(self, arguments=self.arguments + held)


def topology_devices(topology: str) -> tuple[list[Any], int]:
    """Returns the devices of a TPU topology such as "v5e:8x16", and the memory of one in bytes.

    Raises:
      ConfigError: there is no such topology, or libtpu is not installed.
    """
    kind, _, grid = topology.partition(":")
    sides = 2 if kind in ("v5e", "v6e") else 3
    if kind not in HBM_GIB or not re.fullmatch("x".join([r"\d+"] * sides), grid):
        raise config_lib.ConfigError(
            f"--topology={topology}; expected a chip ({', '.join(HBM_GIB)}) and its grid, which "
            "has two sides for v5e and v6e, as in v5e:8x16, and three for v4 and v5p, as in "
            "v5p:4x4x8."
        )
    # libtpu would ask a TPU VM for these values, but there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as e:  # libtpu raises errors of many types.
        raise config_lib.ConfigError(
            f"--topology={topology} cannot be described ({str(e).splitlines()[0]}); it needs "
            'libtpu, which pip install -e ".[tpu]" installs, and a grid that Cloud TPU offers.'
        ) from None
    return list(described.devices), HBM_GIB[kind] * _GIB


def report(config: config_dict.ConfigDict, topology: str | None) -> bool:
    """Compiles the programs of a config, prints what they need, and returns whether all fit.

    Args:
      config: the experiment.
      topology: a TPU topology such as "v5e:8x16", or None for the local devices.

    Raises:
      ConfigError: the config cannot run on these devices, or there is no such topology.
    """
    if topology is None:
        devices, name = jax.devices(), f"{jax.device_count()} local {jax.devices()[0].device_kind}"
        memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    else:
        devices, memory = topology_devices(topology)
        name = f"{len(devices)} devices of {topology}"
    config = checks.validate(config, len(devices), reads_weights=False)
    if config.parallel.mode != "jit":
        raise config_lib.ConfigError(
            f"parallel.mode={config.parallel.mode!r}; --mode=compile compiles for a mesh, so set "
            "it to 'jit'."
        )
    shape = parallel.mesh_shape(config.parallel.mesh, len(devices))
    mesh = parallel.make_mesh(shape, devices)
    built = programs.Programs(config, parallel.Jitted(mesh), policies.vocabulary(config))
    console = rich.console.Console()
    r, t, evaluation = config.rollout, config.train, config.eval
    console.print(
        f"Gemma {config.model.size} on {name}, mesh {shape}: {t.prompts} prompts x {r.n} "
        f"responses, {r.max_prompt} + {r.max_response} tokens, {t.micro_batches} micro-batch(es); "
        f"activations {config.model.dtype}, parameters {config.model.param_dtype}",
        highlight=False,
    )
    samplings = {"sampling": (t.prompts, r.n)}
    if (evaluation.prompts, evaluation.n) != (t.prompts, r.n):
        samplings["evaluation"] = (evaluation.prompts, evaluation.n)
    try:
        compiled = {name: compile_sampler(built, *shape) for name, shape in samplings.items()}
        if built.needs_old or built.needs_reference:
            compiled["scoring"] = compile_scorer(built)
        compiled["update"] = compile_update(built)
    except jax.errors.JaxRuntimeError as e:
        # XLA for TPU refuses programs that do not fit, and says by how much in its first lines.
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        console.print(str(e)[:600], highlight=False, markup=False)
        console.print(f"DOES NOT FIT; {_ADVICE}", style="bold red", highlight=False)
        return False
    # What the reference policy does not share with the state stays in memory in every program.
    if built.needs_reference:
        reference = _bytes(built.abstract_state().params)
        compiled = {n: c.beside(reference) for n, c in compiled.items()}
    table = rich.table.Table("per device", *compiled, title="compiled, not run")
    for label, row in _rows(list(compiled.values()), memory):
        table.add_row(label, *row)
    console.print(table)
    # The optimiser's state stays in memory while the policy samples.
    optimizer = _bytes(built.abstract_state().opt_state)
    totals = {n: c.total + (optimizer if n != "update" else 0) for n, c in compiled.items()}
    largest = max(totals, key=lambda name: totals[name])
    peak = f"peak {totals[largest] / _GIB:.2f} GiB"
    beside = f", {optimizer / _GIB:.2f} of them the optimiser's" if largest != "update" else ""
    if memory is None:
        console.print(
            f"{peak} in {largest}{beside}; the device does not report its memory", highlight=False
        )
        return True
    fits = totals[largest] <= memory
    console.print(
        f"{peak} of {memory / _GIB:.2f} a device, in {largest}{beside}: "
        + ("fits" if fits else f"DOES NOT FIT; {_ADVICE}"),
        highlight=False,
        style="" if fits else "bold red",
    )
    return fits


_ADVICE = (
    "use more devices, a larger tensor axis for sampling, fewer eval.prompts for evaluation, more "
    "train.micro_batches for the update"
)


def compile_sampler(built: programs.Programs, prompts: int, n: int) -> Compiled:
    """Compiles the sampler of n responses to each of the prompts."""
    tokens = _array(built, (prompts, built.config.rollout.max_prompt), jnp.int32)
    rows = _array(built, (prompts,), jnp.int32)
    sampler = built.sampler(n)
    return _compile(sampler, built, built.abstract_policy(), (tokens, rows, rows), (_key(), 0, 1.0))


def compile_scorer(built: programs.Programs) -> Compiled:
    """Compiles the scorer of a training step's responses, for updates that need its log-probs."""
    _, batch, _ = update_arguments(built)
    scored = (batch.prompts, batch.lengths, batch.rollout.tokens)
    return _compile(built.scorer, built, built.abstract_policy(), scored, (1.0,))


def compile_update(built: programs.Programs) -> Compiled:
    """Compiles the update of a training step."""
    return _compile(built.update, built, *update_arguments(built))


def update_arguments(built: programs.Programs) -> tuple[TrainState, step.Batch, tuple]:
    """Returns the shapes, dtypes and shardings of the arguments of the update."""
    config = built.config
    p, n, t = config.train.prompts, config.rollout.n, config.rollout.max_response
    # The rollout is sharded as the sampler returns it, and rewards as the host puts them.
    tokens = {d: _array(built, (p, n, t), d, n) for d in (jnp.int32, bool, jnp.float32)}
    groups = {d: _array(built, (p, n), d, n) for d in (jnp.int32, bool)}
    scored = tokens[jnp.float32]
    batch = step.Batch(
        _array(built, (p, config.rollout.max_prompt), jnp.int32),
        _array(built, (p,), jnp.int32),
        _array(built, (p,), jnp.int32),
        sampling.Rollout(
            tokens=tokens[jnp.int32],
            lengths=groups[jnp.int32],
            mask=tokens[bool],
            log_probs=scored,
            entropy=scored,
            finished=groups[bool],
        ),
        _array(built, (p, n), jnp.float32),
        _array(built, (p, n), bool),
        scored if built.needs_old else None,
        scored if built.needs_reference else None,
    )
    return built.abstract_state(), batch, (1, _key(), 1.0, 1e-6)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _array(built: programs.Programs, shape: tuple[int, ...], dtype: Any, n: int = 1) -> Any:
    """Returns an abstract array of a batch, [P, ...] or [P, n, ...], sharded by `batch_axes`."""
    mesh = built.devices.mesh
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
        collectives=hlo.collective_bytes(compiled.as_text()),
        seconds=seconds,
    )


def matmul_flops(jaxpr: Any, trips: int) -> float:
    """Counts the multiplications and additions in all matrix products of a jaxpr.

    Unlike XLA's count, which takes the body of a loop once, this one takes it as often as the loop
    runs. A `while` loop, such as decoding, is assumed to run `trips` times.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * equation.outvars[0].aval.size * inner
            continue
        times = {"scan": equation.params.get("length"), "while": trips}
        inside = sum(
            matmul_flops(j, trips) for j in jax.extend.core.jaxprs_in_params(equation.params)
        )
        total += inside * times.get(equation.primitive.name, 1)
    return total


def _bytes(abstract: Any) -> int:
    """Returns the bytes that a tree of shapes with shardings takes on one device."""
    leaves = jax.tree.leaves(abstract)
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


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
    for kind in hlo.COLLECTIVES:
        if any(kind in c.collectives for c in compiled):
            rows.append((kind, [gib(c.collectives.get(kind, 0)) for c in compiled]))
    rows.append(("compile time", [f"{c.seconds:.0f} s" for c in compiled]))
    return rows
