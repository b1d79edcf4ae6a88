"""The text of a compiled program, parsed into its instructions.

`Compiled.as_text()` of JAX returns HLO in the order in which a device runs it. XLA documents the
format at https://openxla.org/xla/operation_semantics and https://openxla.org/xla/shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Array:
    """An operand or a result.

    Attributes:
      kind: the type of its elements, such as "bf16".
      dimensions: the shape.
      bytes: the size in memory. TPUs pad arrays to whole tiles, such as T(8,128).
      in_hbm: False in a memory on the chip, such as the vector memory of a TPU, S(1).
    """

    kind: str
    dimensions: tuple[int, ...]
    bytes: int
    in_hbm: bool

    @property
    def is_integer(self) -> bool:
        return self.kind[0] in "su" and not self.dimensions


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: the name, unique in its computation.
      opcode: the operation, such as "fusion".
      arrays: the results.
      operands: the names of the operands.
      literal: the text in the parentheses, which is the value of a constant and the number of a
        parameter.
      attributes: the text after the parentheses.
      is_root: whether the computation returns these results.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def scope(self) -> str:
        """The path of the JAX functions that it was traced from, such as "jit(f)/while"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str = "calls") -> list[str]:
        """Returns the names of the computations that an attribute of this instruction names."""
        return re.findall(rf"\b{attribute}=%?([\w.-]+)", self.attributes)

    @property
    def branches(self) -> list[str]:
        """The names of the computations of which a conditional runs one."""
        named = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if named:
            return re.findall(r"[\w.-]+", named[1])
        return self.called("true_computation") + self.called("false_computation")


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a program by name, in the order in which they run.

    Attributes:
      computations: by name, and within each the instructions by name.
      entry: the name of the computation that the program starts with.
      devices: the number of devices that run the program together.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int

    def root(self, computation: str) -> Instruction:
        """Returns the instruction whose results the computation returns."""
        return next(i for i in self.computations[computation].values() if i.is_root)

    def trips(self, loop: Instruction, computation: str) -> int | None:
        """Returns how often a `while` runs its body at most, or None if the text does not say.

        The condition compares a counter with a constant. A loop may end before, as decoding does.
        XLA counts by 2 in the loops by which it overlaps a product with the transfer of its shards,
        because these handle two shards at a time.

        Args:
          loop: the loop.
          computation: the name of the computation that it is in.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        bound, counter = self._bound(loop), self._counter(loop)
        if bound is None or counter is None:
            return None
        start = self._value(computation, loop.operands[0], counter) or 0
        (body,) = loop.called("body")
        step = _increment(self.computations[body], self.root(body).operands[counter])
        return -(-max(bound - start, 0) // (step or 1))

    def _bound(self, loop: Instruction) -> int | None:
        """Returns the largest integer in the condition of a loop and in its fusions.

        Those that something has to exceed are no bounds of the counter. Decoding goes on while more
        than so many responses are left.
        """
        names, found = loop.called("condition"), []
        for name in names:
            instructions = self.computations[name]
            exceeded = {
                operand
                for i in instructions.values()
                if i.opcode == "compare" and "direction=GT" in i.attributes
                for operand in i.operands
            }
            for instruction in instructions.values():
                if _is_integer(instruction) and instruction.name not in exceeded:
                    found.append(int(instruction.literal))
                names += instruction.called()
        return max(found, default=None)

    def _counter(self, loop: Instruction) -> int | None:
        """Returns the index of the integer in a loop's state that its condition reads."""
        (condition,) = loop.called("condition")
        for instruction in self.computations[condition].values():
            array = instruction.arrays[0] if instruction.arrays else None
            if instruction.opcode == "get-tuple-element" and array and array.is_integer:
                return _index(instruction)
        return None

    def _value(self, computation: str, name: str, element: int | None = None) -> int | None:
        """Returns an integer, or an element of a tuple, if it is known before the program runs."""
        instruction = self.computations[computation][name]
        if _is_integer(instruction):
            return int(instruction.literal)
        if instruction.opcode in ("copy", "bitcast"):
            return self._value(computation, instruction.operands[0], element)
        if instruction.opcode == "get-tuple-element":
            return self._value(computation, instruction.operands[0], _index(instruction))
        if instruction.opcode == "tuple" and element is not None:
            return self._value(computation, instruction.operands[element])
        if instruction.opcode == "while" and element == self._counter(instruction):
            return self._bound(instruction)  # It is the counter's value after the loop.
        if instruction.opcode == "parameter" and computation in self._branches:
            return self._value(*self._branches[computation], element)
        return None

    @functools.cached_property
    def _branches(self) -> dict[str, tuple[str, str]]:
        """For each branch of a conditional, the computation and the name of its argument."""
        return {
            branch: (computation, argument)
            for computation, instructions in self.computations.items()
            for instruction in instructions.values()
            if instruction.opcode == "conditional"
            for branch, argument in zip(instruction.branches, instruction.operands[1:], strict=True)
        }


def _increment(instructions: Computation, name: str) -> int:
    """Returns the sum of the constants that are added on the way to a value."""
    instruction = instructions[name]
    if _is_integer(instruction):
        return int(instruction.literal)
    if instruction.opcode in ("add", "copy", "bitcast"):
        return sum(_increment(instructions, operand) for operand in instruction.operands)
    return 0


def _is_integer(instruction: Instruction) -> bool:
    """Returns whether an instruction is a constant integer of at least 0."""
    constant = instruction.opcode == "constant" and instruction.arrays[0].is_integer
    return constant and instruction.literal.isdigit()


def _index(instruction: Instruction) -> int:
    """Returns which element of a tuple a get-tuple-element takes."""
    return int(instruction.attributes.partition("index=")[2].partition(",")[0])


def parse(text: str) -> Program:
    """Parses the text of a compiled program."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    devices = re.search(r"num_partitions=(\d+)", text)
    return Program(computations, entry, int(devices[1]) if devices else 1)


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    # The shape of several results is in parentheses, and layouts have parentheses too.
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    return Instruction(
        name=start[2],
        opcode=rest[end:opening].strip(),
        arrays=_arrays(rest[:end]),
        operands=tuple(re.findall(r"%([\w.-]+)", literal)),
        literal=literal.strip(),
        attributes=rest[closing + 1 :],
        is_root=bool(start[1]),
    )


def _closing(text: str, opening: int) -> int:
    """Returns the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text[opening:]):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return opening + parenthesis.start()
    raise ValueError(f"no parenthesis closes the one at {opening} of {text!r}")


@functools.cache
def _arrays(shape: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape such as "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[])"."""
    pattern = r"\b(pred|[a-z]+(\d*)\w*)\[([\d,]*)\](?:\{([^}]*)\})?"
    arrays = []
    for kind, bits, dimensions, layout in re.findall(pattern, shape):
        sizes = _integers(dimensions)
        order, _, details = layout.partition(":")
        # The layout has the dimensions from minor to major, and tiles cover the minor ones.
        physical = [sizes[i] for i in reversed(_integers(order))] or list(sizes)
        if tile := re.search(r"T\(([\d,]+)\)", details):
            sides = _integers(tile[1])[-len(physical) :] if physical else ()
            for i, side in enumerate(reversed(sides), 1):
                physical[-i] = -(-physical[-i] // side) * side
        space = re.search(r"S\((\d+)\)", details)
        count, width = math.prod(physical), 8 if kind == "pred" else int(bits or 0)
        arrays.append(Array(kind, sizes, count * width // 8, not space or space[1] == "0"))
    return tuple(arrays)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
