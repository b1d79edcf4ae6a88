"""The work of a compiled program on one device: products, memory traffic and communication.

XLA's own `cost_analysis` counts the body of a loop once, and a slice of an array as the whole
array. Here every instruction counts as often as its loops run it, and a slice as its own bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pkpo_jax.reporting import hlo

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# These instructions move no data.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"),
    *("opt-barrier", "partition-id", "replica-id", "add-dependency", "domain"),
}
_SLICES = ("dynamic-slice", "slice", "gather")


class Transfer(NamedTuple):
    """A collective.

    Attributes:
      kind: one of COLLECTIVES.
      bytes: how many bytes a device receives, with the algorithms of a ring.
      carried: how many bytes its two links into the ring carry, with those that it passes on.
      hops: how many transfers between neighbours follow each other, if both directions are used.
    """

    kind: str
    bytes: float
    carried: float
    hops: float


class Work(NamedTuple):
    """An instruction that a device runs.

    Attributes:
      times: how often it runs.
      loop: the scope of the outermost loop around it, such as "jit(sampler)/while", or "".
      flops: the multiplications and additions of its matrix products, each time.
      memory: the bytes that it reads from and writes to HBM, each time.
      transfers: its collectives.
    """

    times: int
    loop: str
    flops: float
    memory: float
    transfers: tuple[Transfer, ...]


def work(text: str) -> tuple[list[Work], list[str]]:
    """Returns the work of a compiled program, and the scopes of its loops without a known end.

    The body of a loop without a known end counts once. Of a conditional, the branch that moves the
    most bytes counts.

    Args:
      text: the text of the program, as of `Compiled.as_text()`.
    """
    schedule = _Schedule(hlo.parse(text))
    done = list(schedule.run(schedule.program.entry, 1, ""))
    return done, schedule.endless


class _Schedule:
    """The instructions of a program in the order in which a device runs them."""

    def __init__(self, program: hlo.Program) -> None:
        self.program = program
        self.endless: list[str] = []
        self._channels: set[str] = set()

    def run(self, name: str, times: int, loop: str) -> Iterator[Work]:
        """Yields the work of a computation that runs `times` times within `loop`."""
        computation = self.program.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "while":
                trips = self.program.trips(instruction, name)
                if trips is None:
                    self.endless.append(instruction.scope)
                for part in instruction.called("(?:condition|body)"):
                    runs = times * (1 if trips is None else trips)
                    yield from self.run(part, runs, loop or instruction.scope)
            elif instruction.opcode == "conditional":
                runs = [list(self.run(branch, times, loop)) for branch in instruction.branches]
                yield from max(runs, key=lambda run: sum(w.times * w.memory for w in run))
            elif instruction.opcode == "call":
                (called,) = instruction.called("to_apply")
                yield from self.run(called, times, loop)
            elif not _is_free(instruction):
                transfers = tuple(self._transfers(name, instruction))
                flops = _flops(self.program, computation, instruction)
                memory = _memory(self.program, computation, instruction)
                yield Work(times, loop, flops, memory, transfers)

    def _transfers(self, name: str, instruction: hlo.Instruction) -> Iterator[Transfer]:
        """Yields the collectives of an instruction and of its fused computations.

        XLA for TPU splits a transfer over the fusions that it overlaps with, and each of them
        repeats the collective with its channel. Only the first one counts.
        """
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            channel = re.search(r"channel_id=\d+", instruction.attributes)
            key = channel[0] if channel else f"{name}/{instruction.name}"
            if key not in self._channels:
                self._channels.add(key)
                # XLA for TPU writes a reduce-scatter as the fusion of an all-reduce and a slice.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                yield _transfer(self.program, name, instruction, kind)
        for called in instruction.called():
            for inner in self.program.computations[called].values():
                yield from self._transfers(called, inner)


def _is_free(instruction: hlo.Instruction) -> bool:
    # The bytes of an asynchronous operation count at its start.
    return (
        instruction.opcode in _FREE
        or instruction.opcode.endswith(("-done", "-update"))
        or 'custom_call_target="AllocateBuffer"' in instruction.attributes
    )


def _transfer(program: hlo.Program, name: str, instruction: hlo.Instruction, kind: str) -> Transfer:
    computation = program.computations[name]
    size = sum(computation[operand].bytes for operand in instruction.operands)
    group = _group(program, instruction)
    others = (group - 1) / group
    received = {
        "all-gather": size * (group - 1),
        "all-reduce": 2 * size * others,
        "collective-permute": size,
    }.get(kind, size * others)
    # On a ring of g devices, what each sends to each travels g / 4 hops on average.
    detour = max(1.0, group / 4) if kind == "all-to-all" else 1.0
    hops = {"all-reduce": group, "collective-permute": 1}.get(kind, group / 2)
    return Transfer(kind, received, received * detour, hops)


def _group(program: hlo.Program, instruction: hlo.Instruction) -> int:
    """Returns how many devices take part in one collective together."""
    text = instruction.attributes
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # An axis may be split, as in 'a':(2)4, of whose devices every second four are a group.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    return program.devices


def _flops(
    program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Returns the multiplications and additions of the products in an instruction."""
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    # The products of cuBLAS are custom calls.
    contracted = re.search(
        r'lhs_contracting_dim(?:ension)?s"?[=:]([{\[][\d,"]*)', instruction.attributes
    )
    if contracted:
        left = computation[instruction.operands[0]].arrays[0].dimensions
        inner = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted[1]))
        return 2.0 * math.prod(instruction.arrays[0].dimensions) * inner
    fused = [program.computations[name] for name in instruction.called()]
    return sum(_flops(program, inner, i) for inner in fused for i in inner.values())


def _convolution_flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Returns the multiplications and additions of a convolution.

    XLA for TPU writes every matrix product as one. The batch of a batched product becomes a
    dimension of the window, of which dilation and padding leave out all but one element of each
    output.
    """
    left, right = (computation[operand].arrays[0].dimensions for operand in instruction.operands)
    out = instruction.arrays[0].dimensions
    text = instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels
    window = dict(re.findall(r"(\w+)=(\S+)", (re.search(r"window=\{([^}]*)\}", text) or "  ")[1]))
    flops = 2.0 * out[labels[3].index("b")] * out[labels[3].index("f")]
    flops *= right[labels[2].index("i")]
    if groups := re.search(r"batch_group_count=(\d+)", text):
        flops /= int(groups[1])

    def of(key: str, default: str, axis: int) -> str:
        return window[key].split("x")[axis] if key in window else default

    for axis in range(len(out) - 2):
        size, places, taps = (
            shape[label.index(str(axis))]
            for shape, label in ((left, labels[1]), (out, labels[3]), (right, labels[2]))
        )
        before = int(of("pad", "0_0", axis).split("_")[0])
        stride = int(of("stride", "1", axis))
        spread, reach = int(of("lhs_dilate", "1", axis)), int(of("rhs_dilate", "1", axis))
        read = np.arange(places)[:, None] * stride - before + np.arange(taps) * reach
        flops *= ((read >= 0) & (read <= (size - 1) * spread) & (read % spread == 0)).sum()
    return float(flops)


def _memory(
    program: hlo.Program, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Returns the bytes that an instruction reads from HBM and writes to it."""
    opcode = instruction.opcode
    if opcode.removesuffix("-start") in COLLECTIVES:
        return 0  # What bounds a collective is its transfer.
    if opcode.endswith("-start"):
        # An asynchronous copy or slice has the two ends of the copy among its results.
        ends = instruction.arrays[:2]
        return min(end.bytes for end in ends) * sum(end.in_hbm for end in ends)
    read = 0.0
    for k, operand in enumerate(instruction.operands):
        whole = sum(array.bytes for array in computation[operand].arrays if array.in_hbm)
        read += min(whole, _read(program, computation, instruction, k))
    whole = sum(array.bytes for array in instruction.arrays if array.in_hbm)
    return read + min(whole, _written(program, computation, instruction))


def _read(
    program: hlo.Program, computation: hlo.Computation, user: hlo.Instruction, k: int
) -> float:
    """Returns how many bytes of its operand number k an instruction reads, inf for all."""
    if user.opcode in _SLICES and k == 0:
        return user.bytes
    if user.opcode == "dynamic-update-slice" and k == 0:
        return 0  # It is updated in place.
    if user.opcode == "fusion":
        (fused,) = user.called()
        inner = program.computations[fused]
        parameter = next(
            i for i in inner.values() if i.opcode == "parameter" and i.literal == str(k)
        )
        return _used(program, inner, parameter)
    if user.opcode in ("bitcast", "reshape"):
        return _used(program, computation, user)
    return math.inf


def _used(program: hlo.Program, computation: hlo.Computation, value: hlo.Instruction) -> float:
    """Returns how many bytes of a value its users in a fused computation read, inf for all."""
    if value.is_root:
        return math.inf
    return sum(
        _read(program, computation, user, k)
        for user in computation.values()
        for k, operand in enumerate(user.operands)
        if operand == value.name
    )


def _written(program: hlo.Program, computation: hlo.Computation, value: hlo.Instruction) -> float:
    """Returns how many bytes of a result are new; the rest was updated in place."""
    if value.opcode == "dynamic-update-slice":
        return computation[value.operands[1]].bytes
    if value.opcode == "fusion":
        (fused,) = value.called()
        return _written(program, program.computations[fused], program.root(fused))
    if value.opcode in ("bitcast", "reshape"):
        return _written(program, computation, computation[value.operands[0]])
    if value.opcode == "tuple":
        parts = (computation[operand] for operand in value.operands)
        return sum(_written(program, computation, part) for part in parts)
    return sum(array.bytes for array in value.arrays if array.in_hbm)
