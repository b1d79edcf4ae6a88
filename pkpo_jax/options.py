"""Checks of the options of estimators, for those in JAX and those in NumPy alike."""

from __future__ import annotations

from typing import Any

import numpy as np


def check(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    whole: bool = False,
) -> None:
    """Raises a ValueError if an option is out of its range.

    JAX arrays may be traced, so that their values are not checked.

    Args:
      name: the option's name, for the message.
      value: a number or an array of numbers.
      above, at_least, below, at_most: the bounds; `above` and `below` themselves are excluded.
      whole: whether the numbers are integers.
    """
    if not _is_known(value):
        return
    bounds: list[tuple[str, float | None, Any]] = [
        ("above", above, np.greater),
        ("at least", at_least, np.greater_equal),
        ("below", below, np.less),
        ("at most", at_most, np.less_equal),
    ]
    value = np.asarray(value)
    given = [(word, limit, fits) for word, limit, fits in bounds if limit is not None]
    inside = all(np.all(fits(value, limit)) for _, limit, fits in given)
    if not inside or (whole and np.any(value % 1 != 0)):
        kind = "an integer" if whole else "a number"
        words = " and ".join(f"{word} {limit:g}" for word, limit, _ in given)
        raise ValueError(f"{name}={value}; expected {kind} {words}.")


def check_prior(prior: tuple[Any, Any]) -> None:
    """Raises a ValueError unless a prior is the two numbers above 0 of a Beta distribution."""
    if len(prior) != 2 or any(_is_known(x) and not np.all(np.asarray(x) > 0) for x in prior):
        raise ValueError(f"prior={prior}; expected two numbers above 0.")


def _is_known(value: Any) -> bool:
    """Returns whether a value can be read now, unlike a JAX array, which may be traced."""
    return isinstance(value, int | float | np.number | np.ndarray | list | tuple)
