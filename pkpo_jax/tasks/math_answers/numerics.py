"""Computes constants without an exact form to many digits, by mpmath."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from pkpo_jax.tasks.math_answers.monomials import Opaque, TooLarge, Unknown, Value

_DIGITS = 60
# This is called before an operation, with the number of steps that the operation takes.
Spend = Callable[[int], None]


def library() -> Any:
    """Returns mpmath's context; the import is local because the package is an optional extra."""
    try:
        import mpmath
    except ImportError as e:
        raise ImportError(
            f'the task math compares constants by mpmath ({e}); pip install -e ".[math]"'
        ) from e
    return mpmath.mp


def vanishes(value: Value, spend: Spend) -> bool:
    """Returns whether a constant is 0, up to 60 digits of its largest term."""
    with _precisely() as mp:
        terms = [number({monomial: c}, spend) for monomial, c in value.items()]
        return bool(abs(mp.fsum(terms)) <= max(map(abs, terms)) * mp.mpf(10) ** -_DIGITS)


def real(value: Value, spend: Spend) -> Fraction:
    """Returns a constant to 60 digits; raises Unknown if it has variables or is not real."""
    with _precisely() as mp:
        constant = number(value, spend)
        if mp.im(constant) != 0:
            raise Unknown
        return Fraction(mp.nstr(mp.re(constant), _DIGITS))


@contextlib.contextmanager
def _precisely() -> Iterator[Any]:
    """Computes with more digits than are compared; raises Unknown for undefined ones, as ln 0."""
    mp = library()
    with mp.workdps(_DIGITS + 20):
        try:
            yield mp
        except (ArithmeticError, ValueError, TypeError) as e:
            raise Unknown from e


def number(value: Value, spend: Spend) -> Any:
    """Returns a constant as a number of mpmath, at mpmath's current precision."""
    mp, total = library(), 0
    for monomial, c in value.items():
        spend(20)
        term = mp.mpf(c.numerator) / c.denominator
        for atom, exponent in monomial:
            power = mp.mpf(exponent.numerator) / exponent.denominator
            term *= mp.power(_atom(atom, spend), power)
        total += term
    return total


def _atom(atom: Any, spend: Spend) -> Any:
    mp = library()
    if isinstance(atom, int):
        return mp.mpf(atom)
    if isinstance(atom, str):
        if atom not in ("pi", "e", "i"):
            raise Unknown
        return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[atom]
    assert isinstance(atom, Opaque)
    args = [number(dict(arg), spend) for arg in atom.args]
    # For larger arguments, trigonometric functions and powers would take long.
    if any(abs(arg) > 10**6 for arg in args):
        raise TooLarge
    if atom.name == "power":
        return mp.power(*args)
    if atom.name == "log" and len(args) == 2:
        return mp.ln(args[0]) / mp.ln(args[1])
    if atom.name not in _FUNCTIONS or len(args) != 1:
        raise Unknown
    return args[0] if atom.name == "sum" else getattr(mp, _FUNCTIONS[atom.name])(*args)


_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
# These are mpmath's names of the functions.
_FUNCTIONS = {name: name for name in (*_TRIGONOMETRIC, "ln", "floor", "ceil", "sum")}
_FUNCTIONS |= {"log": "log10", "lg": "log10", "abs": "fabs"}
_FUNCTIONS |= {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
