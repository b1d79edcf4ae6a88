"""Represents values as sums of monomials with exact coefficients, and formats them as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

Monomial = tuple[tuple[Any, Fraction], ...]
Value = Mapping[Monomial, Fraction]

# Numerators and denominators have at most this many bits.
LARGEST = 12_000
ONE: Monomial = ()


class TooLarge(Exception):
    """The value needs more memory or steps than an answer may use."""


class Unknown(Exception):
    """The expression has no known value, as an integral, a division by 0, or a word."""


class Opaque(NamedTuple):
    """An atom that is not decomposed: a function of values, or a sum.

    Attributes:
      name: the function, or "sum" for a value of several terms under a root or in a denominator.
      args: the arguments, as frozen values.
    """

    name: str
    args: tuple[tuple[tuple[Monomial, Fraction], ...], ...]


def constant(number: Fraction | int) -> Value:
    """Returns a number as a value."""
    return {ONE: Fraction(number)} if number else {}


def rational(value: Value) -> Fraction | None:
    """Returns the value as a fraction, or None if it is not rational."""
    if not value:
        return Fraction(0)
    return value.get(ONE) if len(value) == 1 else None


def atoms(value: Value) -> set[Any]:
    """Returns the atoms of a value, and of the arguments of its functions."""
    found = set()
    for monomial in value:
        for atom, _ in monomial:
            found.add(atom)
            if isinstance(atom, Opaque):
                found |= set().union(*(atoms(dict(arg)) for arg in atom.args))
    return found


def variables(value: Value) -> set[str]:
    """Returns the names of the variables of a value."""
    return {a for a in atoms(value) if isinstance(a, str) and a not in ("pi", "e", "i")}


def freeze(value: Value) -> tuple[tuple[Monomial, Fraction], ...]:
    """Returns a value as a sorted tuple, which can be hashed."""
    return tuple(sorted(value.items(), key=lambda term: _key(term[0])))


def _key(monomial: Monomial) -> tuple[Any, ...]:
    return tuple((isinstance(a, Opaque), isinstance(a, str), str(a), e) for a, e in monomial)


def monomial_of(exponents: Mapping[Any, Fraction]) -> tuple[Monomial, Fraction]:
    """Normalises the powers of a monomial, and returns it with the rational factor that remains.

    The exponents of primes become at least 0 and less than 1, that of i becomes 0 or 1.
    """
    factor, kept = Fraction(1), []
    for atom, exponent in exponents.items():
        if isinstance(atom, int):
            whole = math.floor(exponent)
            if abs(whole) * atom.bit_length() > LARGEST:
                raise TooLarge
            factor, exponent = factor * Fraction(atom) ** whole, exponent - whole
        elif atom == "i" and exponent.denominator == 1:
            turns = int(exponent) % 4
            factor, exponent = factor * (-1 if turns > 1 else 1), Fraction(turns % 2)
        if exponent:
            kept.append((atom, exponent))
    return tuple(sorted(kept, key=lambda pair: _key((pair,)))), factor


def checked(number: Fraction) -> Fraction:
    """Returns the number; raises TooLarge if it has more than `LARGEST` bits."""
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > LARGEST:
        raise TooLarge
    return number


def shown(value: Value) -> str:
    r"""Formats a value as LaTeX: 1/2, 3\sqrt{2}/4, 1+2i."""
    text = ""
    for monomial, coefficient in freeze(value):
        atoms = _shown_atoms(monomial)
        number = str(abs(coefficient.numerator))
        part = atoms if number == "1" and atoms else number + atoms
        part += f"/{coefficient.denominator}" if coefficient.denominator > 1 else ""
        text += ("-" if coefficient < 0 else "+" if text else "") + part
    return text or "0"


def _shown_atoms(monomial: Monomial) -> str:
    roots = [(atom, e) for atom, e in monomial if isinstance(atom, int)]
    text = ""
    if roots:
        index = math.lcm(*(e.denominator for _, e in roots))
        radicand = math.prod(atom ** int(e * index) for atom, e in roots)
        text = rf"\sqrt{{{radicand}}}" if index == 2 else rf"\sqrt[{index}]{{{radicand}}}"
    for atom, exponent in monomial:
        if not isinstance(atom, int):
            name = _shown_opaque(atom) if isinstance(atom, Opaque) else atom
            name = f"\\{name} " if len(name) > 1 and name.isalpha() else name
            text += name if exponent == 1 else f"{name}^{{{exponent}}}"
    return text.strip()


def _shown_opaque(atom: Opaque) -> str:
    inner = ", ".join(shown(dict(arg)) for arg in atom.args)
    return f"({inner})" if atom.name == "sum" else rf"\{atom.name}({inner})"
