r"""Counts the operations that an expression leaves undone; a final answer leaves none.

Ordinary forms of a number leave nothing undone: 12, 1/2 and 2/4, 0.5, 3\frac{1}{2}, 5\%,
3\sqrt{2}, 2\pi, and sums of these whose terms cannot be combined, as 1 + \sqrt{2} and 3 + 4i.
Formulas copied from a question do: a sum or product of numbers, a power of a number, a fraction
that is a whole number or contains decimals, fractions or sums of radicals, a root that is not in
lowest terms, and any function.
"""

from __future__ import annotations

import collections
import functools
import math
from fractions import Fraction
from typing import Any, NamedTuple

from pkpo_jax.tasks.math_answers.monomials import Value, rational, variables
from pkpo_jax.tasks.math_answers.tree import Node
from pkpo_jax.tasks.math_answers.values import Arithmetic

Operations = collections.Counter[str]


class Form(NamedTuple):
    """The way in which an expression with variables is written.

    Attributes:
      factors: the number of factors of several terms in its numerator, counted with their powers.
      divisors: the same number for its denominator.
      degree: the degree of the divisors; it shows whether two fractions are equally reduced.
      outside: the monomial and the whole number before the factors, if there are factors.
    """

    factors: int
    divisors: int
    degree: Fraction
    outside: tuple[object, int]


def operations(node: Node, arithmetic: Arithmetic) -> Operations:
    """Returns how many operations of each name are left undone.

    Raises:
      Unknown, TooLarge: as `Arithmetic.of` does.
    """
    found: Operations = collections.Counter()
    _collect(node, arithmetic, found)
    return +found


def _collect(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    kind, args = node
    if kind == "call":
        found[args[0]] += 1
    for part in args:
        if isinstance(part, Node):
            _collect(part, arithmetic, found)
    check = _CHECKS.get(kind)
    if check:
        check(node, arithmetic, found)


def _add(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    values = [arithmetic.of(term) for term in node.args]
    found["sum"] += sum(max(1, len(value)) for value in values) - len(arithmetic.add(*values))
    for term in node.args:
        form = algebraic_form(term, arithmetic)
        found["expand"] += form.factors if _is_product(term) else 0
    # In 2(1 + \sqrt{2}) + 3\sqrt{3} the product is not multiplied out.
    found["product"] += sum(
        len(v) > 1 and not variables(v) and _is_product(t)
        for v, t in zip(values, node.args, strict=True)
    )


def _multiply(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    values = [arithmetic.of(factor) for factor in node.args]
    numerals = sum(_has_coefficient(factor, value) for factor, value in _pairs(node, values))
    found["product"] += max(0, numerals - 1) + (len(values) - 1 if {} in values else 0)
    seen: set[object] = set()
    for value in values:
        parts = {type(a) if isinstance(a, int) else a for m in value for a, _ in m}
        if len(value) == 1:
            found["product"] += len(seen & parts)
            seen |= parts
    sums = [value for value in values if len(value) > 1 and not variables(value)]
    outside = [value for value in values if len(value) <= 1]
    # One rational factor before a sum of radicals is an ordinary form; anything else is undone.
    complex_sum = any(a == "i" for value in sums for m in value for a, _ in m)
    if sums and (len(sums) > 1 or complex_sum or any(rational(v) is None for v in outside)):
        found["product"] += 1


def _pairs(node: Node, values: list[Value]) -> list[tuple[Node, Value]]:
    return list(zip(node.args, values, strict=True))


def _has_coefficient(factor: Node, value: Value) -> bool:
    """Returns whether a factor is a number, or has a coefficient other than 1 and -1."""
    if rational(value) is not None:
        return True
    return len(value) == 1 and abs(next(iter(value.values()))) != 1


def _divide(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    over, under = (arithmetic.of(part) for part in node.args)
    if any(_has_quotient(part) for part in node.args):
        found["quotient"] += 1
        return
    if any(c.denominator > 1 for value in (over, under) for c in value.values()):
        found["quotient"] += 1
        return
    if len(under) != 1:
        # A denominator of several numbers has to be rationalised; `Form` covers polynomials.
        found["quotient"] += not variables(under)
        return
    ((monomial, divisor),) = under.items()
    divisor = abs(divisor)
    if any(a == "i" for a, _ in monomial):
        found["quotient"] += 1
        return
    roots = [a for a, _ in monomial if isinstance(a, int)]
    common = functools.reduce(math.gcd, (int(c) for c in over.values()), 0)
    if rational(under) is not None:
        found["quotient"] += divisor == 1 or common % divisor == 0
    elif roots:
        # The form 2/\sqrt{7} is ordinary; 2/\sqrt{2}, 2/(2\sqrt{7}) and \sqrt{6}/\sqrt{2} are not.
        radicals = any(isinstance(a, int) for m in over for a, _ in m)
        radicand = math.prod(a for a in roots)
        reducible = math.gcd(common, radicand) > 1 or (divisor > 1 and common % divisor == 0)
        found["quotient"] += radicals or len(over) > 1 or reducible
    else:
        found["quotient"] += any(all(a in dict(m) for m in over) for a, _ in monomial)


def _has_quotient(node: Node) -> bool:
    """Returns whether a part of a fraction contains a fraction, a decimal or a mixed number."""
    if node.kind in ("div", "mixed"):
        return True
    if node.kind == "number":
        return node.args[1] != 0
    return node.kind in ("neg", "mul", "add", "percent") and any(map(_has_quotient, node.args))


def _raise(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    base, exponent = (arithmetic.of(part) for part in node.args)
    number = rational(exponent)
    if number in (0, 1) or (rational(base) is not None and number is not None):
        simple = number is not None and 0 < number < 1
        found["power"] += not (
            simple and _is_lowest(base, arithmetic.power(base, exponent), number)
        )
    elif number is None and not variables(base) and not variables(exponent):
        # The value of e^{i\pi} and that of (\sqrt{2}^{\sqrt{2}})^{\sqrt{2}} are ordinary numbers.
        found["power"] += 1
    elif number is not None and not variables(base):
        # Powers of pi and e cannot be simplified; powers of sums, radicals and i can.
        found["power"] += len(base) > 1 or not all(a in ("pi", "e") for m in base for a, _ in m)
    elif number is not None and len(base) == 1:
        # The powers in (2x)^3 and (x^2)^3 are undone; a power of one variable or function is not.
        found["power"] += node.args[0].kind != "symbol" and node.args[0].kind != "call"


def _extract(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    value, index = (arithmetic.of(part) for part in node.args)
    number = rational(index)
    if number is None or variables(value):
        root = arithmetic.of(node)
        ((monomial, coefficient),) = root.items() or [((), Fraction(1))]
        done = coefficient == 1 and all(e < 1 for _, e in monomial)
        found["root"] += len(value) == 1 and not done
    else:
        root = arithmetic.of(node)
        found["root"] += not _is_lowest(value, root, 1 / number)


def _is_lowest(value: Value, root: Value, exponent: Fraction) -> bool:
    r"""Returns whether a root has no factor to extract and no smaller index.

    It is the root of a whole number, of e or of pi.
    """
    number = rational(value)
    if value in ({(("e", Fraction(1)),): 1}, {(("pi", Fraction(1)),): 1}):
        return True
    if number is None or number.denominator > 1 or number <= 1 or len(root) != 1:
        return False
    ((monomial, coefficient),) = root.items()
    if coefficient != 1 or not monomial:
        return False
    return math.lcm(*(e.denominator for _, e in monomial)) == exponent.denominator


def _negate(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    del arithmetic
    found["sign"] += node.args[0].kind == "neg"


def _percent(node: Node, arithmetic: Arithmetic, found: Operations) -> None:
    found["percent"] += node.args[0].kind not in ("number", "mixed", "div")


_CHECKS = {
    "add": _add,
    "mul": _multiply,
    "div": _divide,
    "pow": _raise,
    "root": _extract,
    "neg": _negate,
    "percent": _percent,
}


def _is_product(node: Node) -> bool:
    if node.kind == "neg":
        return _is_product(node.args[0])
    return node.kind in ("mul", "pow") or (node.kind == "div" and _is_product(node.args[0]))


def algebraic_form(node: Node, arithmetic: Arithmetic) -> Form:
    """Returns the `Form` of an expression: written as a sum, as a product or as a fraction."""
    counts: list[Any] = [0, 0, Fraction(0)]
    outside = _factors(node, 1, counts, arithmetic)
    if counts[:2] == [0, 0]:
        return Form(0, 0, Fraction(0), ((), 1))
    # A whole number outside the factors is part of the form; a numerical denominator is not.
    ((monomial, coefficient),) = outside.items() or [((), Fraction(1))]
    factors, divisors, degree = counts
    return Form(factors, divisors, degree, (monomial, abs(coefficient.numerator)))


def _factors(node: Node, times: int, counts: list[Any], arithmetic: Arithmetic) -> Value:
    """Counts the factors of several terms with variables; returns the product of the others.

    Args:
      node: the expression.
      times: the exponent of the expression; negative in a denominator.
      counts: the factors, divisors and degree of the `Form`, to which this adds.
      arithmetic: computes the values.
    """
    one: Value = {(): Fraction(1)}
    kind, args = node
    if kind == "neg":
        return _factors(args[0], times, counts, arithmetic)
    if kind == "mul":
        parts = [_factors(part, times, counts, arithmetic) for part in args]
        return functools.reduce(arithmetic.multiply, parts, one)
    if kind == "div":
        over = _factors(args[0], times, counts, arithmetic)
        under = _factors(args[1], -times, counts, arithmetic)
        return arithmetic.multiply(over, under)
    if kind == "pow":
        number = rational(arithmetic.of(args[1]))
        if number is not None and number.denominator == 1 and abs(number) <= 64:
            return _factors(args[0], times * int(number), counts, arithmetic)
    value = arithmetic.of(node)
    if len(value) > 1:
        if variables(value):
            counts[times < 0] += abs(times)
            counts[2] += max(0, -times) * max(sum(e for _, e in m) for m in value)
        return one
    return arithmetic.power(value, {(): Fraction(times)}) if value else one
