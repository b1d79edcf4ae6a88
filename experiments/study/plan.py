"""The order of a study: policies before RL, rates tuned on some seeds, reports on others."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments.study import design, results
from experiments.study.runs import Job, Measurement, Run

# Takes jobs and a title, and returns when they are complete.
RunAll = Callable[[Sequence[Job], str], None]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs on one set of problems, in `folder`."""

    folder: pathlib.Path
    problems: design.Problems
    run_all: RunAll

    def before(self, seeds: Sequence[int], *, tuning: bool = False) -> list[Run]:
        """The policies before RL, evaluated."""
        runs = [self._before(seed, tuning) for seed in seeds]
        self.run_all(runs, f"{self.problems.title}: before RL")
        return runs

    def report(
        self, rates: dict[str, float], seeds: Sequence[int], *, steps: int = 0
    ) -> dict[str, list[Run]]:
        """The runs that are reported, of every method at its rate; of more steps, if these are."""
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
        """{method: {rate: a run a seed}} of the grid, grown where the best rate is at its end."""
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
        """Of the training problems, under a policy before RL, from 1024 samples of each."""
        keys = {**self.problems.changes, "eval.n": 1024, "eval.problems": 128, "eval.prompts": 16}
        return Measurement(
            before.workdir / "eval" / "train_step0" / "summary.json",
            "pkpo_jax.main",
            [
                *("--mode=eval", f"--workdir={before.workdir}", "--split=train", "--step=0"),
                *(f"--config.{key}={value}" for key, value in keys.items()),
            ],
        )

    def choose(self, grid: dict[float, list[Run]]) -> float:
        """The rate whose mean score over seeds is the highest."""
        return max(grid, key=lambda rate: self.score(grid[rate]))

    def score(self, runs: Sequence[Run]) -> float:
        """What a rate is chosen by: pass@k, the mean over the study's k and over these seeds."""
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
    """Does what is not done yet; what all of it left, as JSON."""
    problems = {}
    for name in names:
        sweep = Sweep(workdir / name, design.PROBLEMS[name], run_all)
        problems[name] = _of_problems(sweep, scope, name, seeds)
    found: dict[str, Any] = {"problems": problems, "seeds": list(seeds)}
    found["tuned"] = scope.tuned
    if scope.measured and "fog" in names:
        found |= _measurements(workdir, problems["fog"], seeds, run_all)
    return found


def _of_problems(
    sweep: Sweep, scope: design.Scope, name: str, seeds: Sequence[int]
) -> dict[str, Any]:
    methods = scope.methods[name]
    grids = sweep.tune(methods) if scope.tuned else {}
    rates = {m: sweep.choose(grids[m]) if scope.tuned else design.ONE_RATE for m in methods}
    for group in design.ONE_OF:
        # Variants of one method, tuned as its rate is: the best alone is reported.
        variants = [m for m in methods if m in group]
        for loser in sorted(variants, key=lambda m: sweep.score(grids[m][rates[m]]))[:-1]:
            del rates[loser]
    before = sweep.before(seeds)
    runs = sweep.report(rates, seeds)
    reported = _read(runs)
    spread = [sweep.pass_rates(run) for run in before]
    sweep.run_all(spread, f"{sweep.problems.title}: pass rates before RL")
    found: dict[str, Any] = {
        "pass_rates": [results.of_pass_rates(job.output) for job in spread],
        # One run of each, for the page.
        "commands": {
            method: _shown(of[0].command(), sweep.folder.parent)
            for method, of in {"base": before, **runs}.items()
        },
        "methods": {
            method: {
                "grid": results.of_grid(grids[method], sweep.problems.fixed) if grids else {},
                "rate": rates.get(method),
                **reported.get(method, {"runs": []}),
            }
            for method in methods
        },
    }
    for rate, which in scope.at_rates.get(name, {}).items():
        same = sweep.report(dict.fromkeys(which, rate), seeds)
        found.setdefault("at_rates", {})[f"{rate:g}"] = {"methods": _read(same)}
    if name in scope.longer:
        steps, which = scope.longer[name]
        longer = sweep.report({m: rates[m] for m in which}, seeds, steps=steps)
        found["longer"] = {"steps": steps, "methods": _read(longer)}
    return found


def _shown(command: Sequence[str], workdir: pathlib.Path) -> list[str]:
    """As anyone would give it: of any Python, and in a directory that is not the study's own."""
    return ["python", *(word.replace(str(workdir), "runs/by_hand") for word in command[1:])]


def _read(runs: dict[str, list[Run]]) -> dict[str, dict[str, Any]]:
    return {m: {"runs": [results.of_run(run) for run in of]} for m, of in runs.items()}


def _measurements(
    workdir: pathlib.Path, fog: dict[str, Any], seeds: Sequence[int], run_all: RunAll
) -> dict[str, Any]:
    """The exact optimum, the variance of gradients for each seed, and what the transform costs."""

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
    noise = {
        "before RL": [variance(f"base_seed{seed}", 0) for seed in seeds],
        "after RL with k = 4": [variance(f"k4_lr{rate:g}_seed{seed}", steps) for seed in seeds],
    }
    cost = measurement("cost", "cost", config, "--steps=2400")
    run_all([best, *itertools.chain(*noise.values())], "optimum and variance")
    # Alone, for it is a matter of time.
    run_all([cost], "what the transform costs")
    return {
        "optimum": {"fog": json.loads(best.output.read_text())},
        "variance": {
            policy: [json.loads(job.output.read_text()) for job in jobs]
            for policy, jobs in noise.items()
        },
        "cost": json.loads(cost.output.read_text()),
    }
