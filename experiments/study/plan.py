"""The order of a study: policies before RL, tuning of rates, reported runs, and what they yield."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.study import design, results
from experiments.study.runs import Job, Measurement, Run

# Runs the jobs under a title, and returns when they are complete.
RunAll = Callable[[Sequence[Job], str], None]
# Only this curve is kept of runs at rates that are not tuned.
_AT_RATES = ("cumulative_solve_rate",)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs on one set of problems, in `folder`."""

    folder: pathlib.Path
    problems: design.Problems
    run_all: RunAll

    def before(self, seeds: Sequence[int], *, tuning: bool = False) -> list[Run]:
        """Trains and evaluates the policies before RL."""
        runs = [self._before(seed, tuning) for seed in seeds]
        self.run_all(runs, f"{self.problems.title}: before RL")
        return runs

    def report(
        self, rates: Mapping[str, float], seeds: Sequence[int], *, steps: int = 0
    ) -> dict[str, list[Run]]:
        """Does the reported runs of every method at its rate, of `steps` steps if that is not 0."""
        runs = {
            method: [
                self._run(method, rate, seed, steps or self._every(method), steps=steps)
                for seed in seeds
            ]
            for method, rate in rates.items()
        }
        title = f"{self.problems.title}: reported seeds" + (f", {steps} steps" if steps else "")
        self.run_all([*itertools.chain(*runs.values())], title)
        return runs

    def tune(self, methods: Sequence[str]) -> dict[str, dict[float, list[Run]]]:
        """Returns {method: {rate: runs}} of the grids, grown where the best rate is at an end."""
        self.before(self.problems.tuning_seeds, tuning=True)
        grids = {m: {rate: self._at(m, rate) for rate in design.RATES} for m in methods}
        for growth in range(design.EXTENSIONS + 1):
            title = f"{self.problems.title}: rates" + (f", grown {growth}x" if growth else "")
            self.run_all([r for grid in grids.values() for at in grid.values() for r in at], title)
            if growth == design.EXTENSIONS:
                break
            for method, grid in grids.items():
                best = self.choose(grid)
                if best == min(grid):
                    grid[best / 2] = self._at(method, best / 2)
                elif best == max(grid):
                    grid[best * 2] = self._at(method, best * 2)
        return grids

    def pass_rates(self, before: Run) -> Measurement:
        """Returns the evaluation of a policy before RL: 1024 samples of 128 training problems."""
        keys = {**self.problems.changes, "eval.n": 1024, "eval.problems": 128, "eval.prompts": 16}
        return Measurement(
            before.workdir / "eval" / "train_step0" / "summary.json",
            "pkpo_jax.main",
            [
                *("--mode=eval", f"--workdir={before.workdir}", "--split=train", "--step=0"),
                *(f"--config.{key}={value}" for key, value in keys.items()),
            ],
        )

    def choose(self, grid: Mapping[float, Sequence[Run]]) -> float:
        """Returns the rate with the highest mean score over seeds."""
        return max(grid, key=lambda rate: self.score(grid[rate]))

    def score(self, runs: Sequence[Run]) -> float:
        """Returns what rates are chosen by: pass@k, the mean over the study's k and the runs."""
        return statistics.fmean(results.score(run, self.problems.fixed) for run in runs)

    def _every(self, method: str) -> int:
        watched = design.METHODS[method].watched
        return self.problems.evaluate_every if watched else self.problems.steps

    def _at(self, method: str, rate: float) -> list[Run]:
        every = self.problems.steps
        seeds = self.problems.tuning_seeds
        return [self._run(method, rate, seed, every, tuning=True) for seed in seeds]

    def _before(self, seed: int, tuning: bool) -> Run:
        changes = {**self.problems.base(seed), **_split(tuning)}
        return Run(self._folder(tuning) / f"base_seed{seed}", self.problems.config, changes)

    def _run(
        self,
        method: str,
        rate: float,
        seed: int,
        every: int,
        *,
        tuning: bool = False,
        steps: int = 0,
    ) -> Run:
        start = self._before(seed, tuning).workdir / "warm_start"
        keys = self.problems.run(design.METHODS[method], seed, rate, str(start), steps)
        longer = f"_steps{steps}" if steps else ""
        return Run(
            self._folder(tuning) / f"{method}_lr{rate:g}{longer}_seed{seed}",
            self.problems.config,
            {**keys, **_split(tuning), "eval.every": every},
        )

    def _folder(self, tuning: bool) -> pathlib.Path:
        return self.folder / ("tuning" if tuning else "reported")


def _split(tuning: bool) -> dict[str, int]:
    return {"task.seed": design.TUNING_PROBLEMS if tuning else 0}


def run(
    workdir: pathlib.Path,
    scope: design.Scope,
    names: Sequence[str],
    seeds: Sequence[int],
    run_all: RunAll,
) -> dict[str, Any]:
    """Does what is not complete yet, and returns the results of everything, as JSON."""
    problems = {}
    for name in names:
        sweep = Sweep(workdir / name, design.PROBLEMS[name], run_all)
        problems[name] = _on_problems(sweep, scope, name, seeds)
    found = {
        "format": results.FORMAT,
        "problems": problems,
        "seeds": list(seeds),
        "tuned": scope.tuned,
    }
    if scope.measured and "fog" in names:
        found |= _measurements(workdir, problems["fog"], seeds, run_all)
    return found


def _on_problems(
    sweep: Sweep, scope: design.Scope, name: str, seeds: Sequence[int]
) -> dict[str, Any]:
    methods, fixed = scope.methods[name], sweep.problems.fixed
    grids = sweep.tune(methods) if scope.tuned else {}
    rates = {m: sweep.choose(grids[m]) if scope.tuned else design.ONE_RATE for m in methods}
    # The coefficient of the bonus is tuned as rates are: only the best one is reported.
    bonuses = [m for m in methods if m in design.BONUSES]
    for loser in sorted(bonuses, key=lambda m: sweep.score(grids[m][rates[m]]))[:-1]:
        del rates[loser]
    before = sweep.before(seeds)
    runs = sweep.report(rates, seeds)
    spread = [sweep.pass_rates(run) for run in before]
    sweep.run_all(spread, f"{sweep.problems.title}: pass rates before RL")

    def read(
        runs: Mapping[str, Sequence[Run]], curves: Sequence[str] = sweep.problems.curves
    ) -> dict[str, Any]:
        return {"methods": {m: results.of_runs(done, curves) for m, done in runs.items()}}

    found: dict[str, Any] = {
        # All methods start from the same policies, and evaluate them first.
        "base": results.evaluations(next(iter(runs.values())))["0"],
        "pass_rates": results.of_pass_rates([job.output for job in spread]),
        **read(runs),
    }
    for method, grid in grids.items():
        found["methods"].setdefault(method, {})["grid"] = results.of_grid(grid, fixed)
    for method, rate in rates.items():
        found["methods"][method]["rate"] = rate
    for rate, which in scope.at_rates.get(name, {}).items():
        same = sweep.report(dict.fromkeys(which, rate), seeds)
        found.setdefault("at_rates", {})[f"{rate:g}"] = read(same, _AT_RATES)
    if name in scope.longer:
        steps, which = scope.longer[name]
        found["longer"] = read(sweep.report({m: rates[m] for m in which}, seeds, steps=steps))
    return found


def _measurements(
    workdir: pathlib.Path, fog: Mapping[str, Any], seeds: Sequence[int], run_all: RunAll
) -> dict[str, Any]:
    """Measures the exact optimum, the variance of gradients for each seed, and the cost."""

    def measurement(name: str, module: str, *arguments: str) -> Measurement:
        output = workdir / "measured" / f"{name}.json"
        return Measurement(
            output, f"experiments.study.{module}", [*arguments, f"--output={output}"]
        )

    config = f"--config={design.PROBLEMS['fog'].config}"
    best = measurement("optimum", "optimum", config)
    reported, rate = workdir / "fog" / "reported", fog["methods"]["k4"]["rate"]

    def variance(folder: str, step: int) -> Measurement:
        where = (f"--workdir={reported / folder}", f"--step={step}", "--k=4")
        return measurement(f"variance_{folder}_step{step}", "variance", *where)

    steps = design.PROBLEMS["fog"].steps
    before, after = design.POLICIES
    noise = {
        before: [variance(f"base_seed{seed}", 0) for seed in seeds],
        after: [variance(f"k4_lr{rate:g}_seed{seed}", steps) for seed in seeds],
    }
    cost = measurement("cost", "cost", config, "--steps=2400")
    run_all([best, *itertools.chain(*noise.values())], "optimum and variance")
    # This runs alone, because it measures time.
    run_all([cost], "what the transform costs")
    read = lambda job: json.loads(job.output.read_text())  # noqa: E731
    return {
        "optimum": {"fog": read(best)},
        "variance": {
            policy: results.of_variance([*map(read, jobs)]) for policy, jobs in noise.items()
        },
        "cost": read(cost),
    }
