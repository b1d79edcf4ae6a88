"""Communication between devices, read from the text of a compiled program."""

from __future__ import annotations

import collections
import functools
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def collective_bytes(hlo: str) -> dict[str, int]:
    """Returns the bytes that a device receives in each kind of collective.

    A loop's body counts as many times as the constant in the loop's condition says. All loops here
    have one: those over layers, chunks, tokens, and the shards of a product that XLA pipelines with
    its transfers.

    Args:
      hlo: the text of a compiled program.
    """
    bodies: dict[str, list[str]] = {}
    main, current = "", []
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

    # XLA for TPU splits a transfer over the fusions that it overlaps with, and these repeat its
    # name, also within loops. Each channel is therefore counted as one transfer, as many times as
    # the least frequent of its mentions runs.
    channels: dict[str, tuple[str, int, int]] = {}

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, []):
            match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z-]+)\(", line)
            if not match:
                continue
            variable, shape, kind = match.groups()
            base = kind.removesuffix("-start")
            if base in COLLECTIVES:
                # A "-start" operation returns its operand and its result, which is the larger one.
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
    """Returns the bytes of each array in an HLO shape such as "(bf16[8,128]{1,0}, f32[4])"."""
    sizes = []
    for kind, bits, dimensions in re.findall(r"\b(pred|[a-z]+?)(\d*)\[([\d,]*)\]", shape):
        size = 1 if kind == "pred" else max(int(bits or 8) // 8, 1)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        sizes.append(size)
    return sizes or [0]
