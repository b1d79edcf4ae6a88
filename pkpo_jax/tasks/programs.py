"""Programs that compute a function of an integer x, and all behaviours of short programs.

A program is an expression of this grammar:

    expression = term | expression + term | expression - term
    term       = factor | term * factor
    factor     = x | digit | (expression)

There is neither a sign nor a space, and numbers have one digit. Parentheses may be superfluous, and
every character counts for the length. The behaviour of a program is its outputs on all inputs
0, 1, ..., so that `x+x` and `2*x` behave alike.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pkpo_jax.tasks import expressions

Behaviour = tuple[int, ...]
_Programs = dict[Behaviour, str]


def behaviour(program: str, length: int, digits: str, inputs: int) -> Behaviour | None:
    """Returns the outputs of a program on the inputs 0, ..., inputs - 1.

    Returns None if the text is no program of the grammar, is longer than `length` characters, or
    has a digit that is not in `digits`. Longer text is refused before it is read.

    >>> behaviour("x*(x+1)", 7, "12", inputs=5), behaviour("-x", 7, "12", inputs=5)
    ((0, 2, 6, 12, 20), None)
    """
    operand = rf"\(*[x{digits}]\)*"
    # Up to the balance of parentheses, which the parser decides, this is the grammar.
    if len(program) > length or not re.fullmatch(rf"{operand}(?:[-+*]{operand})*", program):
        return None
    x = np.arange(inputs)
    outputs = expressions.evaluate(program, lambda value: np.full_like(x, value), x=x)
    return None if outputs is None else tuple(outputs.tolist())


@functools.lru_cache(maxsize=4)
def behaviours(length: int, digits: str, inputs: int) -> Mapping[Behaviour, str]:
    """Returns the behaviours of all programs of up to `length` characters, and a program for each.

    This is bottom-up enumeration with observational equivalence, as in Escher (Albarghouthi et al.,
    CAV 2013) and TRANSIT (Udupa et al., PLDI 2013). From short to long, programs are composed of
    shorter ones. Of those that behave alike, only the first, which is a shortest one, is kept for
    each symbol of the grammar, as longer programs behave alike if their parts do.
    """
    atoms = {tuple(range(inputs)): "x"} | {(int(d),) * inputs: d for d in digits}
    # These hold the new behaviours of each length, by the symbols of the grammar.
    factor: list[_Programs] = [{}]
    term: list[_Programs] = [{}]
    expression: list[_Programs] = [{}]
    for size in range(1, length + 1):
        inner = expression[size - 2] if size > 2 else {}
        found = atoms if size == 1 else {key: f"({text})" for key, text in inner.items()}
        _append(factor, found.items())
        _append(term, itertools.chain(factor[size].items(), _joined(term, "*", factor, size)))
        sums = (_joined(expression, operator, term, size) for operator in "+-")
        _append(expression, itertools.chain(term[size].items(), *sums))
    return functools.reduce(lambda shorter, new: shorter | new, expression)


def _append(shorter: list[_Programs], found: Iterable[tuple[Behaviour, str]]) -> None:
    """Appends the programs whose behaviour no shorter one has."""
    new: _Programs = {}
    for key, program in found:
        if not any(key in programs for programs in shorter):
            new.setdefault(key, program)
    shorter.append(new)


def _joined(
    lefts: list[_Programs], operator: str, rights: list[_Programs], size: int
) -> Iterator[tuple[Behaviour, str]]:
    """Yields all programs of `size` characters that join two shorter ones by an operator."""
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operator]
    for left in range(1, size - 1):
        pairs = itertools.product(lefts[left].items(), rights[size - 1 - left].items())
        for (one, program), (other, argument) in pairs:
            yield tuple(map(apply, one, other)), f"{program}{operator}{argument}"
