"""Schedules: k as a function of the training step, or of the measured pass rate.

A schedule maps a step to k. An int gives an int, and an integer array, traced or not, gives an
int32 array. Schedules of mixtures give a `Mixture` of NumPy or JAX arrays [..., C] in both cases.
Changing k never recompiles a program that takes k as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pkpo_jax.mixtures import Mixture

Schedule = Callable[[Any], Any]


def constant(k: int) -> Schedule:
    """Returns the schedule that has the same k at every step.

    Args:
      k: an integer >= 1.

    Raises:
      ValueError: k is not an integer >= 1.

    >>> constant(8)(100)
    8
    """
    return step({0: k})


def step(ks: Mapping[int, int | Mixture]) -> Schedule:
    """Returns a staircase schedule, such as the annealing from 8 to 1 of arXiv 2505.15201.

    Args:
      ks: {first step: k}, with a k for step 0. If one of them is a `Mixture`, the schedule returns
        mixtures, all with the same number of components.

    Raises:
      ValueError: a step is not an integer >= 0, a k is not an integer >= 1, a mixture has such a k
        or weights that are not >= 0 with a positive sum, or step 0 is missing.

    >>> schedule = step({0: 8, 1500: 1})
    >>> schedule(1499), schedule(1500)
    (8, 1)
    """
    if not all(isinstance(s, int | np.integer) and s >= 0 for s in ks):
        raise ValueError(f"k schedule {dict(ks)}; expected steps that are integers >= 0.")
    steps = sorted(ks)
    if not steps or steps[0] != 0:
        raise ValueError(f"k schedule {dict(ks)}; expected a k for step 0, as {{0: 8, 1500: 1}}.")
    stacked = _stack([_check_k(ks[s], f"k at step {s}") for s in steps])

    def schedule(at_step: Any) -> Any:
        xp = _namespace(at_step)
        index = xp.searchsorted(xp.asarray(steps), at_step, side="right") - 1
        if isinstance(stacked, Mixture):
            return Mixture(*(xp.asarray(x)[index] for x in stacked))
        return _k(xp, xp.asarray(stacked)[index])

    return schedule


def linear(k0: int, k1: int, steps: int) -> Schedule:
    """Returns the schedule that goes linearly from k0 at step 0 to k1 at step `steps` and after.

    Args:
      k0: k at step 0, an integer >= 1.
      k1: k from step `steps` on, an integer >= 1.
      steps: an integer >= 1. In between, k is rounded to the nearest integer.

    Raises:
      ValueError: an argument is not an integer >= 1.

    >>> schedule = linear(8, 1, steps=7)
    >>> [schedule(s) for s in (0, 1, 7, 100)]
    [8, 7, 1, 1]
    """
    return _interpolate(k0, k1, steps, lambda xp, done: done)


def cosine(k0: int, k1: int, steps: int) -> Schedule:
    """Returns the schedule that goes from k0 to k1 along half a cosine, slowly at both ends.

    Args:
      k0: k at step 0, an integer >= 1.
      k1: k from step `steps` on, an integer >= 1.
      steps: an integer >= 1. In between, k is rounded to the nearest integer.

    Raises:
      ValueError: an argument is not an integer >= 1.

    >>> schedule = cosine(8, 1, steps=10)
    >>> [schedule(s) for s in (0, 1, 5, 9, 10)]
    [8, 8, 5, 1, 1]
    """
    return _interpolate(k0, k1, steps, lambda xp, done: 0.5 - 0.5 * xp.cos(xp.pi * done))


def blend(k0: int | Mixture, k1: int | Mixture, steps: int) -> Schedule:
    """Returns the schedule that goes from the objective of k0 to that of k1 without a jump.

    At the share s of the way, it is the mixture (1-s) max@k0 + s max@k1, so that the objective
    changes by the same amount in every step.

    Args:
      k0: k at step 0, an integer >= 1 or a `Mixture`.
      k1: k from step `steps` on, an integer >= 1 or a `Mixture`.
      steps: an integer >= 1.

    Raises:
      ValueError: an argument is not as described.

    >>> schedule = blend(8, 1, steps=4)
    >>> [str(schedule(s)) for s in (0, 1, 4)]
    ['mixture(8: 1, 1: 0)', 'mixture(8: 0.75, 1: 0.25)', 'mixture(8: 0, 1: 1)']
    """
    _check(steps, "steps")
    (ks0, weights0), (ks1, weights1) = (
        _as_mixture(_check_k(k, name)) for k, name in ((k0, "k0"), (k1, "k1"))
    )
    ks = np.array([*ks0, *ks1], np.int32)

    def schedule(at_step: Any) -> Any:
        xp = _namespace(at_step)
        done = xp.clip(xp.asarray(at_step) / steps, 0.0, 1.0)[..., None]
        first, last = (xp.asarray(w, np.float32) for w in (weights0, weights1))
        weights = xp.concatenate([(1.0 - done) * first, done * last], -1).astype(np.float32)
        return Mixture(xp.broadcast_to(xp.asarray(ks), weights.shape), weights)

    return schedule


_NUMBER_OR_MIXTURE = r"\s*(\d+|mixture\([^()]*\))\s*"


def parse_k(text: str) -> int | Mixture:
    """Parses a k given as text.

    Args:
      text: an integer, or "mixture(k: weight, k: weight, ...)". The weights are divided by their
        sum.

    Raises:
      ValueError: the text has another form.

    >>> parse_k("8"), parse_k("mixture(1: 1, 8: 3)")
    (8, Mixture(ks=(1, 8), weights=(0.25, 0.75)))
    """
    if text.strip().isdecimal():
        return int(text)
    match = re.fullmatch(r"\s*mixture\(([^()]*)\)\s*", text)
    try:
        pairs = [part.split(":") for part in match[1].split(",")] if match else []
        ks, weights = zip(*((int(k), float(w)) for k, w in pairs), strict=True)
    except ValueError:
        raise ValueError(
            f"k {text!r}; expected an integer, or a mixture such as 'mixture(1: .5, 8: .5)'."
        ) from None
    _check_k(Mixture(ks, weights), text)
    return Mixture(ks, tuple(w / sum(weights) for w in weights))


def parse(text: str) -> dict[int, int | Mixture]:
    """Parses a schedule given as text, and returns it as a staircase {first step: k}.

    Args:
      text: "linear(k0, k1, steps)" or "cosine(k0, k1, steps)", with integers >= 1; what `parse_k`
        reads; or "blend(k0, k1, steps)", where k0 and k1 are what `parse_k` reads.

    Returns:
      What `step` takes: each step at which k changes, with its k.

    Raises:
      ValueError: the text has another form, or an integer below 1.

    >>> parse("linear(3, 1, 4)")
    {0: 3, 2: 2, 4: 1}
    """
    if text.lstrip().startswith("mixture"):
        return {0: parse_k(text)}
    k = _NUMBER_OR_MIXTURE
    match = re.fullmatch(rf"\s*blend\({k},{k},\s*(?:steps=)?(\d+)\)\s*", text)
    if match:
        schedule, steps = blend(parse_k(match[1]), parse_k(match[2]), int(match[3])), int(match[3])
        ks, weights = (x.tolist() for x in schedule(np.arange(steps + 1)))
        return {s: Mixture(tuple(ks[s]), tuple(weights[s])) for s in range(steps + 1)}
    match = re.fullmatch(r"\s*(linear|cosine)\((\d+),\s*(\d+),\s*(?:steps=)?(\d+)\)\s*", text)
    if not match:
        raise ValueError(
            f"k schedule {text!r}; expected an integer, a staircase such as {{0: 8, 1500: 1}}, "
            "'linear(8, 1, 1500)', 'cosine(8, 1, 1500)', 'blend(8, 1, 1500)' or "
            "'mixture(1: .5, 8: .5)'."
        )
    k0, k1, steps = map(int, match.groups()[1:])
    schedule = {"linear": linear, "cosine": cosine}[match[1]](k0, k1, steps)
    # As every k is an integer, the schedule is a staircase too.
    ks = schedule(np.arange(steps + 1))
    first = [0, *(np.flatnonzero(np.diff(ks)) + 1)]
    return {int(step): int(ks[step]) for step in first}


def near_inverse_pass_rate(smallest: int, largest: int) -> Schedule:
    """Returns a schedule that sets k to 1/p for a measured pass rate p, instead of by the step.

    About one in 1/p samples is right. The gradient of pass@k is k (1-p)^(k-1) times that of pass@1,
    and this factor is near its largest at k = 1/p. The schedule takes a number, or an array with
    one pass rate a prompt. A pass rate of 0, or one not known yet (NaN), gives `largest`.

    Args:
      smallest: the smallest k that the schedule returns, an integer >= 1.
      largest: the largest k that it returns, an integer >= smallest.

    Raises:
      ValueError: an argument is not an integer >= 1, or `smallest` is above `largest`.

    >>> schedule = near_inverse_pass_rate(1, 16)
    >>> [schedule(p) for p in (0.0, 0.05, 0.13, 0.9)]
    [16, 16, 8, 1]
    """
    if _check(smallest, "smallest") > _check(largest, "largest"):
        raise ValueError(f"smallest={smallest} is above largest={largest}.")

    def schedule(pass_rate: Any) -> Any:
        xp = _namespace(pass_rate)
        rate = xp.clip(xp.nan_to_num(pass_rate), 1.0 / largest, 1.0 / smallest)
        return _nearest(xp, 1.0 / rate)

    return schedule


def _namespace(x: Any) -> Any:
    """Returns `jax.numpy` for a JAX array and `numpy` for others, without an import of JAX."""
    return x.__array_namespace__() if hasattr(x, "__array_namespace__") else np


def _interpolate(k0: int, k1: int, steps: int, shape: Callable) -> Schedule:
    _check(k0, "k0"), _check(k1, "k1"), _check(steps, "steps")

    def schedule(at_step: Any) -> Any:
        xp = _namespace(at_step)
        done = shape(xp, xp.clip(at_step / steps, 0.0, 1.0))
        return _nearest(xp, k0 + (k1 - k0) * done)

    return schedule


def _nearest(xp: Any, value: Any) -> Any:
    # Adding slightly more than a half makes ties round up in float32 and float64 alike.
    return _k(xp, xp.floor(value + 0.5001))


def _k(xp: Any, value: Any) -> Any:
    if xp is not np or np.ndim(value):
        return value.astype(np.int32)
    return int(value)


def _check(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected an integer >= 1.")
    return int(value)


def _check_k(value: int | Mixture, name: str) -> int | Mixture:
    if not isinstance(value, Mixture):
        return _check(value, name)
    weights = [float(w) for w in np.ravel(value.weights)]
    if not (all(0 <= w < np.inf for w in weights) and sum(weights) > 0):
        raise ValueError(f"{name} has the weights {weights}; expected numbers >= 0, not all 0.")
    return Mixture(tuple(_check(k, f"a k of {name}") for k in np.ravel(value.ks)), tuple(weights))


def _as_mixture(value: int | Mixture) -> Mixture:
    return value if isinstance(value, Mixture) else Mixture((value,), (1.0,))


def _stack(values: list[int | Mixture]) -> list[Any] | Mixture:
    """Returns integers as they are, or all values as one mixture [steps, C]."""
    if not any(isinstance(value, Mixture) for value in values):
        return values
    mixtures = [_as_mixture(value) for value in values]
    size = max(len(m.ks) for m in mixtures)
    ks, weights = np.ones((len(values), size), np.int32), np.zeros((len(values), size), np.float32)
    for row, (own_ks, own_weights) in enumerate(mixtures):
        ks[row, : len(own_ks)], weights[row, : len(own_ks)] = own_ks, own_weights
    return Mixture(ks, weights)
