r"""Reads numerals: decimals that end or repeat, mixed numbers, and numerals in another base."""

from __future__ import annotations

import re
from fractions import Fraction

from pkpo_jax.tasks.math_answers.tokens import Cursor, Unreadable
from pkpo_jax.tasks.math_answers.tree import Node

_NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = _NUMBER_WORDS.split()
_DIGITS = ["", *(f"-{digit}" for digit in _SMALL[1:10])]
# The index of a word is its number.
NUMBERS = _SMALL + [ten + digit for ten in _TENS_WORDS.split() for digit in _DIGITS]
_BASES = {name: base for base, name in enumerate(NUMBERS) if base > 1}


def number(cursor: Cursor, digits: str) -> Node:
    r"""Reads what may follow the digits of a decimal (\overline{3} or dots); returns the number.

    A number holds its value, and how many decimals it has, or -1 if they repeat.
    """
    whole, _, decimals = digits.partition(".")
    repeated, dots = "", False
    if cursor.take(r"\overline"):
        repeated = cursor.raw()
        if "." not in digits or not re.fullmatch("[0-9]+", repeated):
            raise Unreadable("overline")
    elif cursor.take(r"\dots"):
        dots = True
    elif cursor.tokens[cursor.at : cursor.at + 3] == [("char", ".")] * 3:
        cursor.at += 3
        dots = True
    if dots:
        # Dots repeat the last digit (0.333...), which has to occur at least three times.
        repeated, shown = decimals[-1:], len(decimals) - len(decimals.rstrip(decimals[-1:]))
        if not repeated or shown < 3:
            raise Unreadable("dots")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    if repeated:
        nines = 10 ** len(repeated) - 1
        value += Fraction(int(repeated), nines * 10 ** len(decimals))
    return Node("number", (value, -1 if repeated else len(decimals)))


def with_subscript(cursor: Cursor, node: Node) -> Node:
    """Reads a subscript; returns the symbol with this subscript, or the numeral in this base."""
    name = cursor.raw().strip("()").removeprefix("base").strip()
    if node.kind == "symbol":
        return Node("symbol", (f"{node.args[0]}_{name}",))
    base = _BASES.get(name, int(name) if re.fullmatch("[0-9]{1,2}", name) else 0)
    value, places = node.args
    digits = str(value.numerator)
    if not 2 <= base <= 36 or places or any(int(d) >= base for d in digits):
        raise Unreadable("base")
    return Node("base", (digits, base))


def _is_numeral(node: Node) -> bool:
    return node.kind == "number" and node.args[1] == 0


def is_fraction(whole: Node, node: Node) -> bool:
    """Returns whether `node` is a fraction of two integers, and `whole` an integer before it.

    The fraction may have a degree or percent sign, which belongs to both.
    """
    if node.kind in ("percent", "degree"):
        return is_fraction(whole, node.args[0])
    return _is_numeral(whole) and node.kind == "div" and all(map(_is_numeral, node.args))


def mixed(whole: Node, node: Node) -> Node | None:
    r"""Returns the mixed number of an integer and a proper fraction; None for an improper one."""
    if node.kind in ("percent", "degree"):
        inner = mixed(whole, node.args[0])
        return inner and Node(node.kind, (inner,))
    over, under = (part.args[0] for part in node.args)
    if not 0 < over < under:
        return None
    return Node("mixed", (whole.args[0] + over / under,))
