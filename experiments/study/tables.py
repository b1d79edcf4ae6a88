"""Markdown of figures over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.study.results import Estimate


def cell(e: Estimate, *, bold: bool = False) -> str:
    """Mean and standard error.

    >>> from experiments.study.results import estimate
    >>> cell(estimate([0.1, 0.2, 0.3])), cell(estimate([0.5]), bold=True)
    ('.200 ± .058', '**.500**')
    """
    mean = number(e.mean)
    mean = f"**{mean}**" if bold else mean
    return mean if math.isnan(e.se) else f"{mean} ± {number(e.se)}"


def interval(e: Estimate) -> str:
    """Mean and 95% interval of a difference; bold where 0 is outside of it."""
    mean = f"{e.mean:+.3f}"
    if math.isnan(e.se):
        return mean
    mean = f"**{mean}**" if e.above or e.below else mean
    return f"{mean} ({e.low:+.3f} to {e.high:+.3f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table; all columns but the first `words` are right-aligned."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three places, no zero before the point."""
    text = f"{value:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text
