"""The tree of an answer: its nodes, and functions that make common ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple


class Node(NamedTuple):
    """Holds an operation or a leaf of what was read.

    Attributes:
      kind: number, symbol, neg, add, mul, div, pow, root, mixed, percent, degree, base, quantity,
        scaled, call, pm; group, set, list, union, matrix, relation; words.
      args: nodes, and for leaves their contents.
    """

    kind: str
    args: tuple[Any, ...]


# Stands in answers only to say what values a variable takes.
INTEGERS = Node("symbol", ("mathbb Z",))


def integer(value: Fraction | int) -> Node:
    return Node("number", (Fraction(value), 0))


def product(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
