"""Compares RL on problems with RL on problems, revisions and verifications (REVES), on two tasks.

python -m experiments.toy_revision DIR [--quick] [--seeds=0,1,2] [--workers=2]

A tiny policy learns sums or fogged mazes, and how to read prompts to revise and to verify, in one
SFT warm start. Its own chains of up to eight revisions on training problems are the data of REVES
(arXiv 2606.18910, one round of it). RL then takes as many steps on the problems alone as on the
problems with the revision and verification prompts of these chains: with verifications of all
answers, or of as many wrong ones as right ones (task.balanced). All policies are measured by chains
on held-out problems: the share that is solved at first and after so many revisions, and the shares
of right and of wrong answers on which the policy's verdict is right, whose sum is 1 by chance. DIR
holds the runs, which are resumed. The table has means ± standard errors over seeds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import experiments
from experiments.study import base, plan, runs, script, tables
from experiments.study.measures import estimate
from pkpo_jax.training import metrics

REVISIONS = 8
# The table has columns of the share solved after so many revisions, and of how often verdicts on
# right and on wrong answers are right.
TURNS = {0: "first", 1: "after 1", 2: "after 2", 4: "after 4", 8: "after 8"}
VERDICTS = ("on right", "on wrong")
CONFIG = "configs/revision_tiny.py"
TASKS: dict[str, dict[str, Any]] = {
    "sums": {},
    "mazes": {
        "task.inner": "maze",
        # These are the mazes of maze_tiny, fewer of them.
        "task.options": "fog=0.6, train_problems=4096",
        # A prompt has BOS, a maze of 20 characters, a walk of 8 and a mark.
        "rollout.max_prompt": 30,
        "rollout.max_response": 8,
    },
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The runs on one task with one seed, in `folder`."""

    folder: pathlib.Path
    task: str
    seed: int
    steps: int
    quick: bool = False

    @property
    def before(self) -> runs.Run:
        """The warm start, on right and wrong demonstrations."""
        less = {"warm_start.steps": 200} if self.quick else {}
        return self._run("base", {"train.steps": 0, **less})

    @property
    def chains(self) -> runs.Measurement:
        """The chains of the warm-started policy on training problems."""
        return self._chains(self.before, 0, "train")

    @property
    def trained(self) -> dict[str, runs.Run]:
        """The RL runs by what they train on."""
        start = {
            "model.checkpoint": str(self.before.workdir / "warm_start"),
            "warm_start.steps": 0,
            "train.steps": self.steps,
            "eval.every": self.steps,
        }
        augmented = {"task.attempts": str(self.chains.output)}
        return {
            "problems": self._run("problems", {**start, "task.kinds": ("problem",)}),
            "problems, revisions, verifications": self._run("reves", {**start, **augmented}),
            "the same, balanced": self._run(
                "balanced", {**start, **augmented, "task.balanced": True}
            ),
        }

    @property
    def measured(self) -> dict[str, runs.Measurement]:
        """The chains of all policies on held-out problems, by what the policy trained on."""
        after = {name: (run, self.steps) for name, run in self.trained.items()}
        policies = {"before RL": (self.before, 0), **after}
        return {name: self._chains(run, step, "test") for name, (run, step) in policies.items()}

    def measures(self) -> dict[str, dict[str, float]]:
        """Returns the measures of each policy, from files that exist."""
        parallel = {name: metrics.read(run.workdir)[-1] for name, run in self.trained.items()}
        first = next(iter(self.trained.values()))
        parallel["before RL"] = metrics.read(first.workdir)[0]
        return {
            name: {**of_chains(read(job.output)), "pass@8": parallel[name]["eval/pass_at_8"]}
            for name, job in self.measured.items()
        }

    def _run(self, name: str, changes: Mapping[str, Any]) -> runs.Run:
        keys = {**TASKS[self.task], **base.LEAN, "seed": self.seed, **changes}
        return runs.Run(self.folder / name, CONFIG, keys)

    def _chains(self, run: runs.Run, step: int, split: str) -> runs.Measurement:
        count = 256 if self.quick else 4096
        where = [f"--workdir={run.workdir}", f"--step={step}", f"--split={split}"]
        output = run.workdir.with_name(f"{run.workdir.name}_{split}.jsonl")
        limits = [f"--problems={count}", f"--revisions={REVISIONS}", f"--output={output}"]
        return runs.Measurement(output, "experiments.revision_chains", [*where, *limits])


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of chains."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_chains(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the share solved after so many revisions, and the accuracy of verdicts.

    >>> chain = {"rewards": [0.0, 1.0], "verified": [1.0, 0.0]}
    >>> found = of_chains([chain, {"rewards": [1.0], "verified": [1.0]}])
    >>> found["first"], found["after 1"], found["on right"], found["on wrong"]
    (0.5, 1.0, 0.5, 1.0)
    """
    solved = [next((i for i, r in enumerate(x["rewards"]) if r >= 1.0), None) for x in lines]
    found = {
        name: statistics.fmean(at is not None and at <= turn for at in solved)
        for turn, name in TURNS.items()
    }
    verdicts: dict[str, list[float]] = {name: [] for name in VERDICTS}
    for line in lines:
        for reward, verified in zip(line["rewards"], line["verified"], strict=True):
            if verified is not None:
                verdicts[VERDICTS[reward < 1.0]].append(verified)
    shares = {name: statistics.fmean(of) if of else math.nan for name, of in verdicts.items()}
    return {**found, **shares}


def table(found: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> str:
    """Returns the table of {task: the measures of each policy, for each seed}."""
    names = ["pass@8", *TURNS.values(), *VERDICTS]
    rows = [
        [task, policy, *(estimate([seed[policy][name] for seed in seeds]).cell() for name in names)]
        for task, seeds in found.items()
        for policy in seeds[0]
    ]
    return tables.markdown(["", "RL on", *names], rows, words=2)


def compare(
    folder: pathlib.Path, seeds: Sequence[int], steps: int, quick: bool, run_all: plan.RunAll
) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Does what is not complete yet, and returns the measures of every task and seed."""
    all_runs = {
        task: [
            Comparison(folder / task / f"seed{seed}", task, seed, steps, quick) for seed in seeds
        ]
        for task in TASKS
    }
    every = [one for group in all_runs.values() for one in group]
    run_all([one.before for one in every], "warm starts")
    run_all([one.chains for one in every], "chains of the training problems")
    run_all([run for one in every for run in one.trained.values()], "RL")
    run_all([job for one in every for job in one.measured.values()], "held-out chains")
    return {task: [one.measures() for one in group] for task, group in all_runs.items()}


def main(arguments: script.Arguments) -> None:
    steps = 20 if arguments.quick else 100
    found = compare(arguments.folder, arguments.seeds, steps, arguments.quick, arguments.run_all)
    print(f"{table(found)}\n\n{steps} steps of RL; {experiments.machine()}")


if __name__ == "__main__":
    script.run(main, quick="Run one seed, a short warm start and 20 steps of RL.")
