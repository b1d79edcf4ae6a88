"""Formats of numbers, intervals, durations and schedules on the page of a run."""

from __future__ import annotations

import json
from typing import Any

from pkpo_jax.training import config


def number(value: Any) -> str:
    """Formats a number with three decimals, or with similar precision if it is small or large.

    >>> [number(x) for x in (0.25, 0.0, 2.384e-06, 36000.0, 300, None, [1, 2])]
    ['0.250', '0', '2.4e-06', '36,000', '300', '-', '[1, 2]']
    """
    if value is None:
        return "-"
    if not isinstance(value, float):
        return text(value)
    if 1e-3 <= abs(value) < 1e9:
        return f"{value:.3f}" if abs(value) < 1e3 else f"{value:,.0f}"
    return f"{value:.2g}"


def text(value: Any) -> str:
    """Returns a string as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Formats seconds in their two largest units.

    >>> [duration(s) for s in (0.5, 61, 7300)]
    ['0.5 s', '1 min 1 s', '2 h 1 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def k_text(k: Any) -> str:
    """Formats any value of the config key k for a reader.

    >>> k_text({"0": 8, "200": 1})
    '8, 1 from step 200'
    >>> k_text("linear(8, 1, 200)")
    'linear(8, 1, 200)'
    """
    if isinstance(k, str):
        return k
    parts = [
        (step, text(value) if value is None else str(value))
        for step, value in config.k_by_step(k).items()
    ]
    return ", ".join(f"{value} from step {step}" if step else value for step, value in parts)


def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """Formats a share with its interval, or the number alone if there is no interval.

    >>> with_interval(0.871, (0.853, 0.888)), with_interval(0.5, None)
    ('.871 (.853-.888)', '0.500')
    """
    if value is None or ends is None:
        return number(value)
    middle, low, high = (f"{x:.3f}".removeprefix("0") for x in (value, *ends))
    return f"{middle} ({low}-{high})"
