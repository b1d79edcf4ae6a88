"""The order of a study: policies before RL, tuning of rates, reported runs, and what they yield."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.study import results
from experiments.study.base import Cell, Design, Problems, Scope, Study
from experiments.study.runs import Job, Measurement, Run

# Runs the jobs under a title, and returns when they are complete.
RunAll = Callable[[Sequence[Job], str], None]
# Only this curve is kept of runs at rates that are not tuned.
_AT_RATES = ("cumulative_solve_rate",)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs on one set of problems, in `folder`; `checkpoint` is that of a pretrained policy."""

    folder: pathlib.Path
    design: Design
    problems: Problems
    run_all: RunAll
    checkpoint: str = ""

    def before(self, cells: Sequence[Cell]) -> list[Run]:
        """Trains and evaluates the policies before RL."""
        if self.checkpoint:
            return []
        runs = [self._before(cell) for cell in cells]
        self.run_all(runs, f"{self.problems.title}: before RL")
        return runs

    def report(
        self, rates: Mapping[str, float], cells: Sequence[Cell], *, steps: int = 0
    ) -> dict[str, list[Run]]:
        """Does the reported runs of every method at its rate, of `steps` steps if that is not 0."""
        runs = {
            method: [
                self._run(method, rate, cell, steps or self._every(method), steps=steps)
                for cell in cells
            ]
            for method, rate in rates.items()
        }
        title = f"{self.problems.title}: reported seeds" + (f", {steps} steps" if steps else "")
        self.run_all([*itertools.chain(*runs.values())], title)
        return runs

    def tune(self, methods: Sequence[str]) -> dict[str, dict[float, list[Run]]]:
        """Returns {method: {rate: runs}} of the grids, grown where the best rate is at an end."""
        self.before(self._tuning)
        grids = {m: {r: self._at(m, r) for r in self.design.rates_of(m)} for m in methods}
        for growth in range(self.design.extensions + 1):
            title = f"{self.problems.title}: rates" + (f", grown {growth}x" if growth else "")
            self.run_all([r for grid in grids.values() for at in grid.values() for r in at], title)
            if growth == self.design.extensions:
                break
            for method, grid in grids.items():
                first, second, *_ = self.design.rates_of(method)
                best, factor = self.choose(grid), second / first
                if best == min(grid):
                    grid[best / factor] = self._at(method, best / factor)
                elif best == max(grid):
                    grid[best * factor] = self._at(method, best * factor)
        return grids

    def pass_rates(self, before: Run) -> Measurement:
        """Returns the evaluation of a policy before RL: 1024 samples of 128 training problems."""
        keys = {**self.problems.changes, "task.seed": before.changes["task.seed"]}
        keys |= {"eval.n": 1024, "eval.problems": 128, "eval.prompts": 16}
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

    @property
    def _tuning(self) -> list[Cell]:
        draw = self.design.tuning_draw
        return [Cell(seed, draw, tuning=True) for seed in self.problems.tuning_seeds]

    def _every(self, method: str) -> int:
        watched = self.design.methods[method].watched
        return self.problems.evaluate_every if watched else self.problems.steps

    def _at(self, method: str, rate: float) -> list[Run]:
        return [self._run(method, rate, cell, self.problems.steps) for cell in self._tuning]

    def _before(self, cell: Cell) -> Run:
        changes = self.problems.base(cell)
        return Run(self._folder(cell) / f"base_{cell.name}", self.problems.config, changes)

    def _run(self, method: str, rate: float, cell: Cell, every: int, *, steps: int = 0) -> Run:
        start = self.checkpoint or str(self._before(cell).workdir / "warm_start")
        keys = self.problems.run(self.design.methods[method], cell, rate, start, steps)
        longer = f"_steps{steps}" if steps else ""
        return Run(
            self._folder(cell) / f"{method}_lr{rate:g}{longer}_{cell.name}",
            self.problems.config,
            {**keys, "eval.every": every},
            self.design.keeps_policies,
        )

    def _folder(self, cell: Cell) -> pathlib.Path:
        return self.folder / ("tuning" if cell.tuning else "reported")


def run(
    study: Study,
    workdir: pathlib.Path,
    scope: Scope,
    names: Sequence[str],
    seeds: Sequence[int],
    run_all: RunAll,
    checkpoint: str = "",
) -> dict[str, Any]:
    """Does what is not complete yet, and returns the results of everything, as JSON.

    Args:
      study: what is run.
      workdir: the directory of all runs.
      scope: the part of the study.
      names: the sets of problems.
      seeds: those of the reported runs.
      run_all: does the jobs.
      checkpoint: the parameters that a study of a pretrained policy starts from.
    """
    problems, cells = {}, scope.cells(seeds)
    for name in names:
        own = study.design.problems[name]
        sweep = Sweep(workdir / name, study.design, own, run_all, checkpoint)
        problems[name] = _on_problems(sweep, scope, name, cells)
    found = {
        "format": results.FORMAT,
        "problems": problems,
        "seeds": list(seeds),
        "draws": list(scope.draws),
        "tuned": scope.tuned,
    }
    return found | (study.measure(workdir, problems, cells, run_all) if scope.measured else {})


def _on_problems(sweep: Sweep, scope: Scope, name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    methods, design, problems = scope.methods[name], sweep.design, sweep.problems
    grids = sweep.tune(methods) if scope.tuned else {}
    rates = {m: sweep.choose(grids[m]) if scope.tuned else _untuned(design, m) for m in methods}
    # A coefficient is tuned as rates are: only the best one is reported.
    others = [m for m in methods if m in design.alternatives and scope.tuned]
    for loser in sorted(others, key=lambda m: sweep.score(grids[m][rates[m]]))[:-1]:
        del rates[loser]
    before = sweep.before(cells)
    runs = sweep.report(rates, cells)
    spread = [sweep.pass_rates(run) for run in before]
    sweep.run_all(spread, f"{problems.title}: pass rates before RL")

    def read(
        runs: Mapping[str, Sequence[Run]], curves: Sequence[str] = problems.curves
    ) -> dict[str, Any]:
        more = problems.evaluated
        return {"methods": {m: results.of_runs(done, curves, more) for m, done in runs.items()}}

    found: dict[str, Any] = {
        # All methods start from the same policies, and evaluate them first.
        "base": results.evaluations(next(iter(runs.values())), problems.evaluated)["0"],
        **({"pass_rates": results.of_pass_rates([s.output for s in spread])} if spread else {}),
        **read(runs),
    }
    for method, grid in grids.items():
        found["methods"].setdefault(method, {})["grid"] = results.of_grid(grid, problems.fixed)
    for method, rate in rates.items():
        found["methods"][method]["rate"] = rate
    for rate, which in scope.at_rates.get(name, {}).items():
        same = sweep.report(dict.fromkeys(which, rate), cells)
        found.setdefault("at_rates", {})[f"{rate:g}"] = read(same, _AT_RATES)
    if name in scope.longer:
        steps, which = scope.longer[name]
        found["longer"] = read(sweep.report({m: rates[m] for m in which}, cells, steps=steps))
    return found


def _untuned(design: Design, method: str) -> float:
    """Returns the rate of a method that is not tuned."""
    own = design.methods[method].rates
    return own[len(own) // 2] if own else design.one_rate


def estimate(
    design: Design, scope: Scope, names: Sequence[str], seeds: Sequence[int]
) -> tuple[int, float]:
    """Counts the runs, and returns them with the hours that they take, as far as that is known.

    The hours are of one core, or of all cores if a run has all of them. They come from the measured
    `seconds` of each set of problems. Each grid of rates is counted as grown, which is the most.
    The measurements beside the runs are not counted.
    """
    count, total = 0, 0.0
    for name in names:
        problems, methods = design.problems[name], scope.methods[name]
        cells, tuning = len(scope.cells(seeds)), len(problems.tuning_seeds) * scope.tuned
        if not design.pretrained:
            count += cells + tuning
            total += (cells + tuning) * problems.seconds.before
        others = [m for m in methods if m in design.alternatives][: -1 if scope.tuned else 0]
        longer, which = scope.longer.get(name, (0, ()))
        for method, steps, many in [
            *((m, problems.steps, tuning * _rates(design, m)) for m in methods),
            *((m, problems.steps, cells) for m in methods if m not in others),
            *(
                (m, problems.steps, cells)
                for at in scope.at_rates.get(name, {}).values()
                for m in at
            ),
            *((m, longer, cells) for m in which),
        ]:
            # Sampling is a third of a step, and every further epoch repeats the rest.
            epochs = design.methods[method].keys.get("train.epochs", 1)
            step = problems.seconds.step * (1 + 2 / 3 * (epochs - 1))
            count += many
            total += many * (problems.seconds.start + steps * step)
    return count, total / 3600


def _rates(design: Design, method: str) -> int:
    return len(design.rates_of(method)) + design.extensions
