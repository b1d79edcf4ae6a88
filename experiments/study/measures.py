"""The results of any study as claims, tables and plots read them, and statistics over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats

from experiments.study.base import Design, Problems


class Estimate(NamedTuple):
    """A mean over seeds, its standard error, and the ends of its 95% interval (Student's t)."""

    mean: float
    se: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether all of the interval is below 0."""
        return self.high < 0

    def cell(self, *, bold: bool = False) -> str:
        """Returns the mean and the standard error for a table.

        >>> estimate([0.1, 0.2, 0.3]).cell(), estimate([0.5]).cell(bold=True)
        ('.200 ± .058', '**.500**')
        """
        mean = f"**{number(self.mean)}**" if bold else number(self.mean)
        return mean if math.isnan(self.se) else f"{mean} ± {number(self.se)}"

    def interval(self) -> str:
        """Returns a difference and its 95% interval, bold where the interval excludes 0."""
        mean = f"{self.mean:+.3f}"
        if math.isnan(self.se):
            return mean
        mean = f"**{mean}**" if self.above or self.below else mean
        return f"{mean} ({self.low:+.3f} to {self.high:+.3f})"


def number(value: float) -> str:
    """Formats a number with three decimals and no zero before the point."""
    text = f"{value:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def estimate(values: Sequence[float], comparisons: int = 1) -> Estimate:
    """Returns the estimate from one value a seed; a single seed has no spread.

    With several comparisons the interval is wider, so that all of them hold with 95% (Bonferroni).

    >>> estimate([0.1, 0.2, 0.3])._asdict() == estimate([0.3, 0.2, 0.1])._asdict()
    True
    >>> [round(x, 3) for x in estimate([0.1, 0.2, 0.3])]
    [0.2, 0.058, -0.048, 0.448]
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, math.nan, -math.inf, math.inf)
    se = statistics.stdev(values) / math.sqrt(n)
    half = float(stats.t.ppf(1 - 0.025 / comparisons, n - 1)) * se
    return Estimate(mean, se, mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> Estimate:
    """Returns the estimate of a - b, seed by seed: both start from the same policy."""
    return estimate([x - y for x, y in zip(a, b, strict=True)], comparisons)


class Set:
    """The results on one set of problems, as results.json holds them.

    Attributes:
      data: the results, with a value for each run: those of the first draw of problems come first.
      design: what was run.
      name: of the problems in the design.
      draws: how many draws of problems there are.
    """

    def __init__(self, data: Mapping[str, Any], design: Design, name: str, draws: int = 1) -> None:
        self.data, self.design, self.name, self.draws = data, design, name, draws

    @property
    def problems(self) -> Problems:
        """The design of these problems."""
        return self.design.problems[self.name]

    @property
    def methods(self) -> list[str]:
        """The methods with reported runs, in the order of the design."""
        return [m for m in self.design.methods if "eval" in self.data["methods"].get(m, {})]

    def has(self, *methods: str) -> bool:
        """Returns whether all of these methods have reported runs."""
        return set(methods) <= set(self.methods)

    def final(self, method: str, name: str) -> list[float]:
        """Returns a metric of the last evaluation for each seed; "base" is the policy before RL."""
        if method == "base":
            return self.data["base"][name]
        return self._evaluations(method)[str(self.last_step)][name]

    def pass_at(self, method: str, k: int) -> list[float]:
        """Returns held-out pass@k after training for each seed."""
        return self.final(method, f"pass_at_{k}")

    def mean(self, method: str, k: int) -> float:
        """Returns the mean of held-out pass@k after training."""
        return statistics.fmean(self.pass_at(method, k))

    def difference(self, a: str, b: str, k: int) -> Estimate:
        """Returns the difference of held-out pass@k of two methods, paired by seed."""
        return paired(self.pass_at(a, k), self.pass_at(b, k))

    def higher(self, a: Sequence[float], b: Sequence[float], comparisons: int = 1) -> bool:
        """Returns whether a is higher than b, given a value for each run.

        The interval of the difference is above 0, and so is its mean on each draw of problems.
        """
        size = len(a) // self.draws
        draws = [slice(i * size, (i + 1) * size) for i in range(self.draws)]
        agree = all(paired(a[at], b[at]).mean > 0 for at in draws)
        return agree and paired(a, b, comparisons).above

    def evaluated(self, method: str, name: str) -> tuple[list[float], list[list[float]]]:
        """Returns the steps of evaluations, from 0, and a metric there as [seed][step]."""
        later = self._evaluations(method)
        steps = sorted(map(int, later))
        rows = [self.data["base"][name], *(later[str(step)][name] for step in steps)]
        return [0, *steps], [list(seed) for seed in zip(*rows, strict=True)]

    def curve(self, method: str, name: str) -> tuple[list[float], list[list[float]]]:
        """Returns evenly spaced steps, and a training metric up to there as [seed][step]."""
        seeds = self.data["methods"][method]["train"][name]
        count = len(seeds[0])
        return [self.last_step * (i + 1) / count for i in range(count)], seeds

    def last(self, method: str, name: str) -> list[float]:
        """Returns a training metric over the last steps for each seed."""
        return self.data["methods"][method]["last"][name]

    def step_seconds(self, method: str) -> float:
        """Returns the time of a training step: its median over steps, for the fastest seed.

        Other work on the machine slows some runs by half, and speeds up none.
        """
        return min(self.data["methods"][method]["step_s"])

    def at_rate(self, rate: str) -> Set:
        """Returns the runs of methods that all had this learning rate."""
        return self._with(self.data["at_rates"][rate])

    @property
    def longer(self) -> Set | None:
        """The runs of more steps, if there are any."""
        return self._with(self.data["longer"]) if "longer" in self.data else None

    @property
    def last_step(self) -> int:
        """The number of steps of the runs."""
        return max(map(int, self._evaluations(self.methods[0])))

    def _with(self, data: Mapping[str, Any]) -> Set:
        return Set({**self.data, **data}, self.design, self.name, self.draws)

    def _evaluations(self, method: str) -> Mapping[str, Mapping[str, list[float]]]:
        return self.data["methods"][method]["eval"]


def all_sets(results: Mapping[str, Any], design: Design) -> dict[str, Set]:
    """Returns the results on each set of problems that was run, in the order of the design."""
    data, draws = results["problems"], len(results.get("draws", [0]))
    return {n: Set(data[n], design, n, draws) for n in design.problems if n in data}


def listed(values: Iterable[object]) -> str:
    """Joins values with commas."""
    return ", ".join(map(str, values))
