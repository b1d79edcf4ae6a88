"""k as a function of the training step, or of the measured pass rate.

A schedule maps a step, an int or a traced integer array, to k: an int for an int, an int32 array
for an array. Changing k never recompiles a step that takes it as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[Any], Any]


def constant(k: int) -> Schedule:
    """The same k at every step.

    >>> constant(8)(100)
    8
    """
    return step({0: k})


def step(ks: Mapping[int, int]) -> Schedule:
    """A staircase: {first step: k}, as the annealing 8 to 1 of arXiv 2505.15201.

    >>> schedule = step({0: 8, 1500: 1})
    >>> schedule(1499), schedule(1500)
    (8, 1)
    """
    if not all(isinstance(s, int | np.integer) and s >= 0 for s in ks):
        raise ValueError(f"k schedule {dict(ks)}; expected steps that are integers >= 0.")
    steps = sorted(ks)
    if not steps or steps[0] != 0:
        raise ValueError(f"k schedule {dict(ks)}; expected a k for step 0, as {{0: 8, 1500: 1}}.")
    values = [_check(ks[s], f"k at step {s}") for s in steps]

    def schedule(at: Any) -> Any:
        xp = jnp if isinstance(at, jax.Array) else np
        return _k(xp.asarray(values)[xp.searchsorted(xp.asarray(steps), at, side="right") - 1])

    return schedule


def linear(k0: int, k1: int, steps: int) -> Schedule:
    """From k0 at step 0 to k1 at `steps` and after, rounded to the nearest k.

    >>> schedule = linear(8, 1, steps=7)
    >>> [schedule(s) for s in (0, 1, 7, 100)]
    [8, 7, 1, 1]
    """
    return _interpolate(k0, k1, steps, lambda xp, done: done)


def cosine(k0: int, k1: int, steps: int) -> Schedule:
    """From k0 to k1 along half a cosine: slow at both ends, rounded to the nearest k.

    >>> schedule = cosine(8, 1, steps=10)
    >>> [schedule(s) for s in (0, 1, 5, 9, 10)]
    [8, 8, 5, 1, 1]
    """
    return _interpolate(k0, k1, steps, lambda xp, done: 0.5 - 0.5 * xp.cos(xp.pi * done))


def parse(text: str) -> dict[int, int]:
    """Returns the schedule that a text names, as {first step: k}.

    Args:
      text: "linear(k0, k1, steps)" or "cosine(k0, k1, steps)", with integers >= 1.

    Raises:
      ValueError: the text is neither.

    >>> parse("linear(3, 1, 4)")
    {0: 3, 2: 2, 4: 1}
    """
    match = re.fullmatch(r"\s*(linear|cosine)\((\d+),\s*(\d+),\s*(?:steps=)?(\d+)\)\s*", text)
    if not match:
        raise ValueError(
            f"k schedule {text!r}; expected an integer, a staircase such as {{0: 8, 1500: 1}}, "
            "'linear(8, 1, 1500)' or 'cosine(8, 1, 1500)'."
        )
    k0, k1, steps = map(int, match.groups()[1:])
    schedule = {"linear": linear, "cosine": cosine}[match[1]](k0, k1, steps)
    # Each k is an integer, so that the schedule is a staircase too.
    ks = schedule(np.arange(steps + 1))
    first = [0, *(np.flatnonzero(np.diff(ks)) + 1)]
    return {int(step): int(ks[step]) for step in first}


def near_inverse_pass_rate(smallest: int, largest: int) -> Schedule:
    """k from a measured pass@1 instead of the step: 1/p, rounded and kept in smallest..largest.

    About 1/p draws hold one right answer, so that is the k whose gradient, k (1-p)^(k-1) that of
    pass@1, is near its largest. A pass rate of 0, or none yet (NaN), gives `largest`. Takes a
    number, or an array of one pass rate a prompt.

    >>> schedule = near_inverse_pass_rate(1, 16)
    >>> [schedule(p) for p in (0.0, 0.05, 0.13, 0.9)]
    [16, 16, 8, 1]
    """
    if _check(smallest, "smallest") > _check(largest, "largest"):
        raise ValueError(f"smallest={smallest} is above largest={largest}.")

    def schedule(pass_rate: Any) -> Any:
        xp = jnp if isinstance(pass_rate, jax.Array) else np
        rate = xp.clip(xp.nan_to_num(pass_rate), 1.0 / largest, 1.0 / smallest)
        return _nearest(xp, 1.0 / rate)

    return schedule


def _interpolate(k0: int, k1: int, steps: int, shape: Callable) -> Schedule:
    _check(k0, "k0"), _check(k1, "k1"), _check(steps, "steps")

    def schedule(at: Any) -> Any:
        xp = jnp if isinstance(at, jax.Array) else np
        done = shape(xp, xp.clip(at / steps, 0.0, 1.0))
        return _nearest(xp, k0 + (k1 - k0) * done)

    return schedule


def _nearest(xp: Any, value: Any) -> Any:
    # A little above a half, so that ties round up in float32 and float64 alike.
    return _k(xp.floor(value + 0.5001))


def _k(value: Any) -> Any:
    if isinstance(value, jax.Array) or np.ndim(value):
        return value.astype(np.int32)
    return int(value)


def _check(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected an integer >= 1.")
    return int(value)
