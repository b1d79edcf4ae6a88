"""What the runs of a study left, as one JSON value, and the statistics that claims are read by."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.study import design
from experiments.study.runs import Run
from pkpo_jax.training import metrics

# Points of a learning curve, each the mean over the steps since the one before.
POINTS = 20
_EVALUATED = (
    *(f"eval/pass_at_{k}" for k in design.KS),
    "eval/entropy",
    "eval/distinct_wrong",
)
_AVERAGED = (
    "train/entropy",
    "train/dead_groups",
    "train/equal_groups",
    *(f"train/pass_at_{k}" for k in design.KS),
)


def of_run(run: Run) -> dict[str, Any]:
    """Evaluations by step, learning curves and the time of a step, of a complete run."""
    lines = metrics.read(run.workdir)
    evaluations = {
        str(line["step"]): {
            name.removeprefix("eval/"): round(line[name], 5)
            for name in _EVALUATED
            # What is not finite is null there: diversity, where no answer is wrong.
            if line[name] is not None
        }
        for line in lines
        if "eval/entropy" in line
    }
    return {"seed": run.changes["seed"], "eval": evaluations, **_curves(lines)}


def _curves(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    steps = [line for line in lines if "train/entropy" in line]
    width = max(len(steps) // POINTS, 1)
    windows = [steps[i : i + width] for i in range(0, len(steps), width)]
    curves = {
        name.removeprefix("train/"): [
            round(statistics.fmean(line[name] for line in window), 5) for window in windows
        ]
        for name in _AVERAGED
    }
    curves["step"] = [window[-1]["step"] for window in windows]
    # The study's rate is over the problems seen; older runs have it under the name of the other.
    curves["cumulative_solve_rate"] = [
        round(line.get("train/seen_solve_rate", line["train/cumulative_solve_rate"]), 5)
        for line in (window[-1] for window in windows)
    ]
    parts = ("time/sample_s", "time/grade_s", "time/update_s")
    # The median leaves out the first step, which compiles.
    return {
        "train": curves,
        "step_s": round(statistics.median(sum(line[p] for p in parts) for line in steps), 5),
    }


def score(run: Run, fixed: bool) -> float:
    """pass@k after training, the mean over the study's k; `fixed` is that of the problem set."""
    return statistics.fmean(_after(run, fixed).values())


def _after(run: Run, fixed: bool) -> dict[str, float]:
    """{pass_at_k: ...}, held out; or of the last batches, if problems are seen again and again."""
    lines = metrics.read(run.workdir)
    last, prefix = (lines[-len(lines) // POINTS :], "train/") if fixed else (lines[-1:], "eval/")
    names = [f"pass_at_{k}" for k in design.KS]
    return {name: statistics.fmean(line[prefix + name] for line in last) for name in names}


def of_grid(grid: Mapping[float, Sequence[Run]], fixed: bool) -> dict[str, dict[str, float]]:
    """{rate: {score, pass_at_1, ...}} of a method's tuning, means over its seeds."""
    rows = {}
    for rate in sorted(grid):
        after = [_after(run, fixed) for run in grid[rate]]
        row = {name: statistics.fmean(values[name] for values in after) for name in after[0]}
        rows[f"{rate:g}"] = {"score": statistics.fmean(row.values()), **row}
    return {rate: {name: round(v, 5) for name, v in row.items()} for rate, row in rows.items()}


def of_pass_rates(path: pathlib.Path) -> dict[str, float]:
    """Of what `--mode=eval` found of each problem, in the folder of its summary: quantiles of pass
    rates over problems, their mean, the share of them within .1% and 60%, and the share of problems
    solved by any sample."""
    lines = (path.parent / "problems.jsonl").read_text().splitlines()
    rates = [json.loads(line)["pass_at_1"] for line in lines]
    found = {f"{q}%": float(np.quantile(rates, q / 100)) for q in (5, 25, 50, 75, 95)}
    solved = statistics.fmean(rate > 0 for rate in rates)
    within = statistics.fmean(0.001 <= rate <= 0.6 for rate in rates)
    return {**found, "mean": statistics.fmean(rates), "within": within, "solved": solved}


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
        return self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value a seed; without a spread if there is one seed.

    >>> estimate([0.1, 0.2, 0.3])._asdict() == estimate([0.3, 0.2, 0.1])._asdict()
    True
    >>> [round(x, 3) for x in estimate([0.1, 0.2, 0.3])]
    [0.2, 0.058, -0.048, 0.448]
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, math.nan, -math.inf, math.inf)
    se = statistics.stdev(values) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * se
    return Estimate(mean, se, mean - half, mean + half)


def paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of a - b, seed by seed: both started from the same policy."""
    return estimate([x - y for x, y in zip(a, b, strict=True)])


class Set:
    """The results of one set of problems, as a study's JSON holds them."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def has(self, *methods: str) -> bool:
        """Whether these have runs that are reported."""
        return all(self.data["methods"].get(method, {}).get("runs") for method in methods)

    def grid(self, method: str) -> Mapping[str, Mapping[str, float]]:
        return self.data["methods"][method].get("grid", {})

    def runs(self, method: str) -> list[Mapping[str, Any]]:
        """In the order of seeds."""
        return self.data["methods"][method]["runs"]

    def final(self, method: str, name: str) -> list[float]:
        """A figure of the last evaluation, for each seed; of the first, if `method` is "base"."""
        if method == "base":
            # All methods start from the same policies, and evaluate them.
            method = next(method for method in self.data["methods"] if self.has(method))
            return [run["eval"]["0"][name] for run in self.runs(method)]
        return [list(run["eval"].values())[-1][name] for run in self.runs(method)]

    def evaluated(self, method: str, name: str) -> tuple[list[int], list[list[float]]]:
        """Steps, and a figure of the evaluations there for each of the seeds."""
        steps = list(self.runs(method)[0]["eval"])
        values = [[run["eval"][step][name] for step in steps] for run in self.runs(method)]
        return list(map(int, steps)), values

    def curve(self, method: str, name: str) -> tuple[list[int], list[list[float]]]:
        """Steps, and a figure of the training batches up to there for each of the seeds."""
        runs = self.runs(method)
        return runs[0]["train"]["step"], [run["train"][name] for run in runs]

    def step_seconds(self, method: str) -> float:
        """Of a training step: the median over steps, of the seed for which it is the least. What
        else runs on the machine slows single runs by half, and speeds up none."""
        return min(run["step_s"] for run in self.runs(method))

    def at_rate(self, rate: float) -> Set:
        """The runs of methods that were all given this rate."""
        return Set(self.data["at_rates"][f"{rate:g}"])

    @property
    def last_step(self) -> int:
        method = next(method for method in self.data["methods"] if self.has(method))
        return int(list(self.runs(method)[0]["eval"])[-1])

    def pass_at(self, method: str, k: int) -> list[float]:
        """Held-out pass@k after training, for each seed."""
        return self.final(method, f"pass_at_{k}")
