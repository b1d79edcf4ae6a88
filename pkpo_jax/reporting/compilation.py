"""Compilation of the steps of a config ahead of time, for devices that need not be present.

`report` compiles the sampler and the update for a TPU topology, or for the local backend, and
prints what a device needs: memory compared with what it has, work, communication, compile time. For
a TPU it also predicts the time of a step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.policy import sampling, sizes
from pkpo_jax.reporting import chips, costs, roofline
from pkpo_jax.training import checks, policies, programs, step
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.state import TrainState

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The needs of one device for one call of a program, in bytes unless stated otherwise.

    Attributes:
      arguments: parameters, optimiser state and batch. Results that reuse the memory of arguments
        are not counted again.
      temporaries: memory needed beside the arguments while the program runs, including its other
        results.
      work: the instructions that it runs, which have products, memory traffic and collectives.
      endless: the loops whose number of iterations the compiled text does not say.
      seconds: compile time in seconds.
    """

    arguments: int
    temporaries: int
    work: list[costs.Work]
    endless: list[str]
    seconds: float

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries

    @property
    def flops(self) -> float:
        return sum(w.times * w.flops for w in self.work)

    @property
    def accessed(self) -> float:
        return sum(w.times * w.memory for w in self.work)

    @property
    def collectives(self) -> dict[str, float]:
        """The bytes received by kind of collective."""
        received: dict[str, float] = {}
        for w in self.work:
            for transfer in w.transfers:
                before = received.get(transfer.kind, 0.0)
                received[transfer.kind] = before + w.times * transfer.bytes
        return received

    def beside(self, held: int) -> Compiled:
        """Returns these needs with `held` more bytes, for arrays that stay in memory."""
        return dataclasses.replace(self, arguments=self.arguments + held)


def report(config: config_dict.ConfigDict, topology: str | None) -> bool:
    """Compiles the programs of a config, prints what they need, and returns whether all fit.

    Args:
      config: the experiment.
      topology: a TPU topology such as "v5e:8x16", or None for the local devices.

    Raises:
      ConfigError: the config cannot run on these devices, or there is no such topology.
    """
    chip = None
    if topology is None:
        devices, name = jax.devices(), f"{jax.device_count()} local {jax.devices()[0].device_kind}"
        memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    else:
        devices, chip = chips.describe(topology)
        memory = chip.memory
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
        f"{sizes.title(config.model.size)} on {name}, mesh {shape}: {t.prompts} prompts x {r.n} "
        f"responses, {r.max_prompt} + {r.max_response} tokens, {t.micro_batches} micro-batch(es); "
        f"activations {config.model.dtype}, parameters {config.model.param_dtype}",
        highlight=False,
    )
    samplings = {"sampling": (t.prompts, r.n, 1.0)}
    evaluated = (evaluation.prompts, evaluation.n, evaluation.top_p)
    if evaluated != samplings["sampling"]:
        samplings["evaluation"] = evaluated
    try:
        compiled = {name: compile_sampler(built, *how) for name, how in samplings.items()}
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
    if chip:
        _predict(console, built, compiled, chip)
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


def _predict(
    console: rich.console.Console,
    built: programs.Programs,
    compiled: dict[str, Compiled],
    chip: chips.Chip,
) -> None:
    """Prints the predicted times of the parts of a step, and what they are based on."""
    evaluation = built.config.eval
    calls = -(-evaluation.problems // evaluation.prompts)
    times = roofline.phases(
        {name: c.work for name, c in compiled.items()},
        chip,
        tokens=built.config.rollout.max_response,
        scorings=built.needs_old + built.needs_reference,
        evaluations=calls / evaluation.every,
    )
    console.print(roofline.table(times))
    notes = [
        roofline.assumptions(chip),
        f"An evaluation of {evaluation.problems} problems takes {calls} calls of its sampler, "
        f"every {evaluation.every} steps.",
    ]
    if built.config.model.size == "2b":
        notes.append(
            "arXiv 2505.15201 reports 4 hours for 1000 steps (14.4 s a step) of Gemma-2 2B on a "
            "v5litepod-128 (v5e:8x16), and does not state the lengths."
        )
    for loop in sorted({loop for c in compiled.values() for loop in c.endless}):
        notes.append(f"The loop {loop} has no end in the compiled text, and counts once.")
    for note in notes:
        console.print(note, highlight=False, markup=False)


def compile_sampler(built: programs.Programs, prompts: int, n: int, top_p: float = 1.0) -> Compiled:
    """Compiles the sampler of n responses to each of the prompts."""
    tokens = _array(built, (prompts, built.config.rollout.max_prompt), jnp.int32)
    rows = _array(built, (prompts,), jnp.int32)
    sampler = built.sampler(n, top_p)
    return _compile(sampler, built.abstract_policy(), (tokens, rows, rows), (_key(), 0, 1.0))


def compile_scorer(built: programs.Programs) -> Compiled:
    """Compiles the scorer of a training step's responses, for updates that need its log-probs."""
    _, batch, _ = update_arguments(built)
    scored = (batch.prompts, batch.lengths, batch.rollout.tokens)
    return _compile(built.scorer, built.abstract_policy(), scored, (1.0,))


def compile_update(built: programs.Programs) -> Compiled:
    """Compiles the update of a training step."""
    return _compile(built.update, *update_arguments(built))


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
        classes=_array(built, (p, n), jnp.int32) if built.needs_classes else None,
        earlier=(_array(built, (p,), jnp.float32),) * 2 if built.needs_earlier else None,
    )
    return built.abstract_state(), batch, (1, _key(), 1.0, 1e-6)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _array(built: programs.Programs, shape: tuple[int, ...], dtype: Any, n: int = 1) -> Any:
    """Returns an abstract array of a batch, [P, ...] or [P, n, ...], sharded by `batch_axes`."""
    mesh = built.devices.mesh
    spec = PartitionSpec(*parallel.batch_axes(mesh.shape, shape[0], n)[: len(shape)])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _compile(program: Any, *arguments: Any) -> Compiled:
    started = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    work, endless = costs.work(compiled.as_text())
    # All responses are taken to have the full length, by which none goes on without the others.
    work = [one for one in work if sampling.STRAGGLERS not in one.loop]
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        work=work,
        endless=endless,
        seconds=seconds,
    )


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
    rows.append(("matrix products", [f"{c.flops / 1e12:.4g} TFLOP" for c in compiled]))
    rows.append(("memory traffic", [gib(c.accessed) for c in compiled]))
    for kind in costs.COLLECTIVES:
        if any(kind in c.collectives for c in compiled):
            rows.append((kind, [gib(c.collectives.get(kind, 0)) for c in compiled]))
    rows.append(("compile time", [f"{c.seconds:.0f} s" for c in compiled]))
    return rows
