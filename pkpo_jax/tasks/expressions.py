"""A canonical form of arithmetic expressions, and all solutions of countdown puzzles in that form.

Expressions have one form iff the rules of commutativity and associativity, of signs
(a - b = a + (-b), -(a + b) = -a - b, (-a) b = -(a b)) and of reciprocals (a / b = a (1 / b),
1 / (a b) = (1 / a) (1 / b)) turn one into the other. Equal numbers are not told apart. Nothing is
evaluated or distributed, so that 2*3 is not 3+3, nor a*1 a/1.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# All expressions of this many numbers are found in milliseconds.
LARGEST = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """A canonical form: a sign, and a number, sum or product without a sign.

    Attributes:
      sign: 1 or -1; 0 if the form equals its own negative, as 3 - 3 does.
      kind: "number", "sum" or "product".
      parts: the number alone; else sorted pairs of 1, 0 or -1 and the `Form.body` of a part, where
        the first entry is the sign of a term or the power of a factor.
    """

    sign: int
    kind: str
    parts: tuple[Any, ...]

    @property
    def body(self) -> tuple[str, tuple[Any, ...]]:
        return self.kind, self.parts

    def __neg__(self) -> Form:
        return dataclasses.replace(self, sign=-self.sign)

    def __add__(self, other: Form) -> Form:
        terms = [
            (form.sign * sign, body)
            for form in (self, other)
            for sign, body in (form.parts if form.kind == "sum" else [(1, form.body)])
        ]
        up = tuple(sorted(terms))
        down = tuple(sorted((-sign, body) for sign, body in terms))
        # A sum and its negative share a body, the larger one of the two.
        return Form((up > down) - (up < down), "sum", max(up, down))

    def __mul__(self, other: Form) -> Form:
        factors = [*self._factors(1), *other._factors(1)]
        return Form(self.sign * other.sign, "product", tuple(sorted(factors)))

    def __truediv__(self, other: Form) -> Form:
        factors = [*self._factors(1), *other._factors(-1)]
        return Form(self.sign * other.sign, "product", tuple(sorted(factors)))

    def __str__(self) -> str:
        return ("-" if self.sign < 0 else "") + _text(*self.body)

    def _factors(self, power: int) -> list[tuple[int, Any]]:
        parts = self.parts if self.kind == "product" else [(1, self.body)]
        return [(power * own, body) for own, body in parts]


def _text(kind: str, parts: tuple[Any, ...]) -> str:
    if kind == "number":
        return str(parts[0])
    positive, negative = "+-" if kind == "sum" else "*/"
    signs = [(negative if sign < 0 else positive, body) for sign, body in parts]
    return "(" + "".join(sign + _text(*body) for sign, body in signs) + ")"


def number(value: int) -> Form:
    """Returns the form of a number that is not negative."""
    return Form(1, "number", (value,))


def canonical(text: str) -> str | None:
    """Names the canonical form of an expression of numbers, + - * / and parentheses.

    Returns None if the text is no such expression.

    >>> canonical("(1+2) * 3"), canonical("3*(2 - -1)"), canonical("4 - 1/3")
    ('(*3*(+1+2))', '(*3*(+1+2))', '(-(/3*1)+4)')
    """
    form = evaluate(text.strip(), number)
    return None if form is None else str(form)


def evaluate(text: str, number: Callable[[int], Any], **variables: Any) -> Any:
    """Evaluates an expression of numbers, variables, + - * / and parentheses.

    Returns None if the text is no such expression, or divides by zero.

    Values may have any type with these operators, such as forms or arrays. Nothing is run as code.

    Args:
      text: the expression.
      number: returns the value of an integer that stands in the expression.
      **variables: the values of names.

    >>> evaluate("2*x-1", int, x=4), evaluate("y", int, x=4), evaluate("x/0", int, x=4)
    (7, None, None)
    """
    try:
        return _evaluate(ast.parse(text, mode="eval").body, number, variables)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, number: Callable[[int], Any], variables: Mapping[str, Any]) -> Any:
    def value(node: ast.expr) -> Any:
        return _evaluate(node, number, variables)

    match node:
        case ast.Constant(value=int(integer)):
            return number(integer)
        case ast.Name(id=name) if name in variables:
            return variables[name]
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return value(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return value(left) + value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return value(left) + -value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return value(left) * value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return value(left) / value(right)
    raise ValueError(f"{ast.dump(node)} is no arithmetic")


@functools.lru_cache(maxsize=4096)
def solutions(numbers: tuple[int, ...], target: int) -> frozenset[str] | None:
    """Returns the canonical forms of all expressions that use each number once and equal `target`.

    Returns None for more than `LARGEST` numbers. Values equal the target within the tolerance of
    reasoning-gym's countdown, 1e-6 plus 1e-5 of the target.
    """
    if len(numbers) > LARGEST:
        return None
    found = _forms(tuple(sorted(numbers)))
    return frozenset(
        str(form) for form, value in found.items() if abs(value - target) <= 1e-6 + 1e-5 * target
    )


@functools.lru_cache(maxsize=1024)
def _forms(numbers: tuple[int, ...]) -> dict[Form, float]:
    """Returns the value of every form of an expression that uses each of the sorted numbers once.

    Forms that are the negative of another one are among them.
    """
    if len(numbers) == 1:
        return {number(numbers[0]): float(numbers[0])}
    found: dict[Form, float] = {}
    for left, right in _splits(numbers):
        for (a, x), (b, y) in itertools.product(_forms(left).items(), _forms(right).items()):
            found |= {a + b: x + y, a + -b: x - y, b + -a: y - x, a * b: x * y}
            if y:
                found[a / b] = x / y
            if x:
                found[b / a] = y / x
    return found


def _splits(numbers: Sequence[int]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns the ways to split numbers in two parts, neither of them empty."""
    size = len(numbers)
    found = set()
    for members in range(1, 2 ** (size - 1)):
        left = tuple(x for i, x in enumerate(numbers) if members >> i & 1)
        right = tuple(x for i, x in enumerate(numbers) if not members >> i & 1)
        found.add((left, right))
    return found
