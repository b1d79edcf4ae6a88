"""The nodes of the tree into which an answer is parsed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple


class Node(NamedTuple):
    """An operation or a leaf of the tree.

    Attributes:
      kind: number, symbol, neg, add, mul, div, pow, root, mixed, percent, degree, base, quantity,
        scaled, call, pm, mp; group, set, list, and, union, without, matrix, relation; words.
      args: the operands, which are nodes, or the content of a leaf.
    """

    kind: str
    args: tuple[Any, ...]


# Answers contain this set only to state which values a variable takes.
INTEGERS = Node("symbol", ("mathbb Z",))


def integer(value: Fraction | int) -> Node:
    """Returns the leaf of a whole number."""
    return Node("number", (Fraction(value), 0))


def product(factors: list[Node]) -> Node:
    """Returns the product of one or more factors."""
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
