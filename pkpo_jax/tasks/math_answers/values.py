r"""Computes exact values of expressions, in a limited number of steps.

A value is a sum of monomials, each a rational coefficient times powers of atoms. Atoms are primes
(with exponents between 0 and 1, so that \sqrt{12} is 2 times 3^{1/2}), pi, e, i, variables, and
opaque atoms, which are not decomposed: functions, and sums under a root or in a denominator. A
value without opaque atoms has a unique form, so that equality is exact, because radicals of
different primes are independent over the rationals. With opaque atoms, differences are multiplied
out, and constants are compared to 60 digits.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from pkpo_jax.tasks.math_answers import numerics
from pkpo_jax.tasks.math_answers.monomials import (
    LARGEST,
    ONE,
    Monomial,
    Opaque,
    TooLarge,
    Unknown,
    Value,
    atoms,
    checked,
    constant,
    freeze,
    monomial_of,
    rational,
    variables,
)
from pkpo_jax.tasks.math_answers.tree import Node

# By default, an answer may take this many steps; a product of two monomials is one step.
STEPS = 2_000
_PRIMES = [n for n in range(2, 1000) if all(n % p for p in range(2, math.isqrt(n) + 1))]


class Arithmetic:
    """Computes values, and raises TooLarge once its steps are used up."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps = steps

    def spend(self, steps: int = 1) -> None:
        """Uses up steps; raises TooLarge if too few are left."""
        self.steps -= steps
        if self.steps < 0:
            raise TooLarge

    def add(self, *values: Value) -> Value:
        total: dict[Monomial, Fraction] = {}
        for value in values:
            for monomial, coefficient in value.items():
                self.spend()
                total[monomial] = checked(total.get(monomial, Fraction(0)) + coefficient)
        return {monomial: c for monomial, c in total.items() if c}

    def scale(self, value: Value, factor: Fraction | int) -> Value:
        return self.multiply(value, constant(factor))

    def subtract(self, one: Value, other: Value) -> Value:
        return self.add(one, self.scale(other, -1))

    def multiply(self, one: Value, other: Value) -> Value:
        total: dict[Monomial, Fraction] = {}
        for left, a in one.items():
            for right, b in other.items():
                self.spend()
                exponents = dict(left)
                for atom, exponent in right:
                    exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
                monomial, c = monomial_of(exponents)
                total[monomial] = total.get(monomial, Fraction(0)) + checked(checked(a * b) * c)
        return {monomial: c for monomial, c in total.items() if c}

    def invert(self, value: Value) -> Value:
        """Returns 1 over a value; raises Unknown for 0."""
        if not value:
            raise Unknown
        if len(value) == 1:
            ((monomial, coefficient),) = value.items()
            inverse, c = monomial_of({atom: -exponent for atom, exponent in monomial})
            return {inverse: c / coefficient}
        # The first coefficient is scaled to 1, so that denominators that differ by a factor only
        # become the same atom.
        first = freeze(value)[0][1]
        atom = Opaque("sum", (freeze(self.scale(value, 1 / first)),))
        return {((atom, Fraction(-1)),): 1 / first}

    def power(self, base: Value, exponent: Value) -> Value:
        """Returns the base to the exponent; raises TooLarge if the power is too large."""
        number = rational(exponent)
        if number is None:
            whole = exponent.get(ONE, Fraction(0))
            whole = whole if whole.denominator == 1 else Fraction(0)
            rest = freeze(self.subtract(exponent, constant(whole)))
            atom = Opaque("power", (freeze(base), rest))
            return self.multiply({((atom, Fraction(1)),): Fraction(1)}, self._whole(base, whole))
        root = self.root(base, number.denominator) if number.denominator > 1 else base
        return self._whole(root, Fraction(number.numerator))

    def _whole(self, base: Value, exponent: Fraction) -> Value:
        n = int(exponent)
        if len(base) > 1 and abs(n) <= 64:
            power = constant(1)
            for _ in range(abs(n)):
                power = self.multiply(power, base)
            return self.invert(power) if n < 0 else power
        if not base:
            if n <= 0:
                raise Unknown
            return base
        if len(base) > 1:
            raise TooLarge
        ((monomial, c),) = base.items()
        bits = max(c.numerator.bit_length(), c.denominator.bit_length())
        # A prime's exponent, once above 1, moves to the coefficient.
        primes = sum(atom.bit_length() for atom, _ in monomial if isinstance(atom, int))
        if ((bits if abs(c) != 1 else 0) + primes) * abs(n) > LARGEST:
            raise TooLarge
        raised, factor = monomial_of({atom: e * n for atom, e in monomial})
        return {raised: checked(c**n * factor)}

    def root(self, value: Value, n: int) -> Value:
        """Returns the n-th root; for a negative number and odd n, this is the real one."""
        if not value:
            return value
        if not 1 <= n <= 64:
            raise TooLarge
        if len(value) > 1:
            return {((Opaque("sum", (freeze(value),)), Fraction(1, n)),): Fraction(1)}
        ((monomial, c),) = value.items()
        if any(atom == "i" for atom, _ in monomial) or (c < 0 and n % 2 == 0 and n != 2):
            raise Unknown
        exponents = {atom: e / n for atom, e in monomial}
        for number, sign in ((abs(c).numerator, 1), (abs(c).denominator, -1)):
            for prime, times in self._factors(number):
                exponents[prime] = exponents.get(prime, Fraction(0)) + Fraction(sign * times, n)
        if c < 0 and n == 2:
            exponents["i"] = Fraction(1)
        rooted, factor = monomial_of(exponents)
        return {rooted: checked(factor) * (-1 if c < 0 and n % 2 else 1)}

    def _factors(self, number: int) -> list[tuple[int, int]]:
        """Returns small prime factors with their exponents, and the remaining factor."""
        found = []
        self.spend(number.bit_length() // 50)
        for prime in _PRIMES:
            if prime * prime > number:
                break
            times = 0
            while number % prime == 0:
                number, times = number // prime, times + 1
            if times:
                self.spend(times)
                found.append((prime, times))
        if number > 1:
            root = math.isqrt(number)
            found.append((root, 2) if root * root == number else (number, 1))
        return found

    def call(self, name: str, *args: Value) -> Value:
        """Returns the value of a function if it is rational and simple; else an opaque atom."""
        numbers = [number for arg in args if (number := rational(arg)) is not None]
        if len(numbers) == len(args) and name in _EXACT:
            return constant(checked(_EXACT[name](*numbers)))
        if name == "exp":
            return self.power({(("e", Fraction(1)),): Fraction(1)}, args[0])
        if name in ("ln", "log") and len(args) == 1:
            name = "ln" if name == "ln" else "log"
        return {((Opaque(name, tuple(freeze(arg) for arg in args)), Fraction(1)),): Fraction(1)}

    def of(self, node: Node) -> Value:
        """Returns the value of a tree of numbers and operations; raises Unknown for others."""
        kind, args = node
        self.spend()
        if kind == "number":
            return constant(args[0])
        if kind == "mixed":
            return constant(args[0])
        if kind == "base":
            return constant(int(args[0], args[1]))
        if kind == "symbol":
            return {((args[0], Fraction(1)),): Fraction(1)}
        if kind in ("degree", "quantity"):
            return self.of(args[0])
        if kind == "percent":
            return self.scale(self.of(args[0]), Fraction(1, 100))
        if kind == "scaled":
            return self.scale(self.of(args[0]), args[1])
        if kind == "neg":
            return self.scale(self.of(args[0]), -1)
        if kind == "add":
            return self.add(*map(self.of, args))
        if kind == "mul":
            return functools.reduce(self.multiply, map(self.of, args))
        if kind == "div":
            return self.multiply(self.of(args[0]), self.invert(self.of(args[1])))
        if kind == "pow":
            return self.power(self.of(args[0]), self.of(args[1]))
        if kind == "root":
            index = rational(self.of(args[1]))
            if index is None or index.denominator > 1:
                raise Unknown
            return self.root(self.of(args[0]), int(index))
        if kind == "call" and all(isinstance(arg, Node) for arg in args[1:]):
            if args[0] in ("det", "arg", "Re", "Im"):
                raise Unknown
            return self.call(args[0], *(self._angle(args[0], arg) for arg in args[1:]))
        raise Unknown

    def _angle(self, function: str, node: Node) -> Value:
        """Returns the value of an argument, with degrees in radians for trigonometric functions."""
        value = self.of(node)
        if node.kind == "degree" and function in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return self.multiply(value, {(("pi", Fraction(1)),): Fraction(1, 180)})
        return value

    def equal(self, one: Value, other: Value) -> bool:
        """Returns whether two values are equal, as `zero` decides of their difference."""
        return self.zero(self.subtract(one, other))

    def zero(self, value: Value) -> bool:
        """Returns whether a value is 0, exactly or up to 60 digits of its largest term."""
        for _ in range(8):
            sums = [
                (atom, -exponent)
                for monomial in value
                for atom, exponent in monomial
                if isinstance(atom, Opaque) and atom.name == "sum" and exponent < 0
            ]
            if not value or not sums:
                break
            atom, exponent = max(sums, key=lambda pair: pair[1])
            value = self._expand(self.multiply(value, {((atom, exponent),): Fraction(1)}))
        value = self._expand(value)
        if not value or not any(isinstance(atom, Opaque) for atom in atoms(value)):
            return not value
        return not variables(value) and numerics.vanishes(value, self.spend)

    def approximate(self, value: Value) -> Fraction:
        """Returns a real constant, exactly or to 60 digits; raises Unknown for other values."""
        number = rational(value)
        return numerics.real(value, self.spend) if number is None else number

    def _expand(self, value: Value) -> Value:
        """Multiplies out positive integer powers of sums."""
        total: Value = {}
        for monomial, coefficient in value.items():
            part: Value = {ONE: coefficient}
            for atom, exponent in monomial:
                whole = math.floor(exponent) if isinstance(atom, Opaque) else 0
                if whole >= 1 and atom.name == "sum":
                    part = self.multiply(part, self._whole(dict(atom.args[0]), Fraction(whole)))
                    exponent -= whole
                if exponent:
                    part = self.multiply(part, {((atom, exponent),): Fraction(1)})
            total = self.add(total, part)
        return total


def _whole_numbers(*numbers: Fraction) -> list[int]:
    if any(n.denominator != 1 for n in numbers):
        raise Unknown
    return [int(n) for n in numbers]


def _factorial(number: Fraction) -> Fraction:
    (n,) = _whole_numbers(number)
    if n < 0:
        raise Unknown
    if n > 1000:
        raise TooLarge
    return Fraction(math.factorial(n))


def _binomial(over: Fraction, under: Fraction) -> Fraction:
    n, k = _whole_numbers(over, under)
    if n < 0 or k < 0:
        raise Unknown
    if min(k, n - k) * n.bit_length() > LARGEST:
        raise TooLarge
    return Fraction(math.comb(n, k))


def _modulo(number: Fraction, modulus: Fraction) -> Fraction:
    if not modulus:
        raise Unknown
    return number % modulus


_EXACT = {
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "factorial": _factorial,
    "binom": _binomial,
    "mod": _modulo,
    "gcd": lambda *numbers: Fraction(math.gcd(*_whole_numbers(*numbers))),
    "lcm": lambda *numbers: Fraction(math.lcm(*_whole_numbers(*numbers))),
    "max": lambda *numbers: max(numbers),
    "min": lambda *numbers: min(numbers),
}
