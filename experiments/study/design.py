"""What the study runs: problems, methods, the rates that each is tuned over, and the seeds.

A run is the shipped trainer on a shipped config, some keys changed; this file says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

KS = (1, 2, 4, 8, 16)
# Rates of Adam that every method is tuned over; where the best is the first or the last of them,
# the grid grows by a factor of two on that side, at most so many times.
RATES = (3e-4, 6e-4, 1.2e-3)
EXTENSIONS = 1
# Tuning has seeds and problems of its own: what is chosen there is reported on others. This is
# the task.seed of those problems.
TUNING_PROBLEMS = 1
SEEDS = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Problems:
    """A set of problems: a config, and what is changed in it.

    Attributes:
      title: a few words, for tables.
      config: of the repository.
      changes: config keys of all its runs; warm_start, and of those before RL alone.
      steps: of RL.
      evaluate_every: steps between evaluations of the runs that are reported, and watched.
      tuning_seeds: of the runs that rates are chosen by; all methods have the same ones.
      fixed: whether a few problems are gone through again and again. Rates are chosen by pass@k in
        training then, and by that of unseen problems otherwise.
    """

    title: str
    config: str
    steps: int
    evaluate_every: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warm_start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuning_seeds: tuple[int, ...] = (100, 101)
    fixed: bool = False

    def base(self, seed: int) -> dict[str, Any]:
        """The policy before RL: all methods of a seed start from the same one."""
        return {**self.changes, **self.warm_start, "train.steps": 0, "seed": seed, **_LEAN}

    def run(
        self, method: Method, seed: int, rate: float, start: str, steps: int = 0
    ) -> dict[str, Any]:
        """Keys of one RL run from the policy in `start`, of `steps` in place of all runs' own."""
        steps = steps or self.steps
        return {
            **self.changes,
            "model.checkpoint": start,
            "warm_start.steps": 0,
            "train.steps": steps,
            "train.learning_rate": rate,
            "seed": seed,
            **_LEAN,
            **method.changes(steps),
        }


# A sweep needs metrics and the last policy, and none of the rest.
_LEAN = {
    "checkpoint.every": 0,
    "checkpoint.best": "",
    "log.samples_every": 0,
    "log.report": False,
}

PROBLEMS = {
    "fog": Problems(
        "fogged mazes, 4x4",
        "configs/maze_tiny.py",
        steps=200,
        evaluate_every=50,
    ),
    "plain": Problems(
        "plain mazes, 4x4 and 5x5",
        "configs/maze_tiny.py",
        steps=200,
        evaluate_every=200,
        changes={
            "task.fog": 0.0,
            "task.max_side": 5,
            "task.max_path": 6,
            "rollout.max_prompt": 31,
        },
    ),
    "arithmetic": Problems(
        "sums of three digits", "configs/arithmetic_tiny.py", steps=200, evaluate_every=200
    ),
    # Half of them are longer than all that the policy has seen a demonstration of.
    "hard": Problems(
        "128 hard mazes, 5x5",
        "configs/maze_tiny.py",
        steps=500,
        evaluate_every=500,
        changes={
            "task.fog": 0.0,
            "task.min_side": 5,
            "task.max_side": 5,
            "task.min_path": 5,
            "task.max_path": 8,
            "task.train_problems": 128,
            "rollout.max_prompt": 31,
            "rollout.max_response": 10,
            "train.decay_fraction": 0.0,
        },
        warm_start={"task.min_path": 2, "task.max_path": 5, "task.train_problems": 16_384},
        fixed=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """How a policy is trained: keys, and k, an int or {share of the steps: k}; and whether it is
    evaluated along the way too."""

    label: str
    k: int | Mapping[float, int] = 1
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    watched: bool = False

    def changes(self, steps: int) -> dict[str, Any]:
        k = self.k
        if isinstance(k, Mapping):
            k = {round(share * steps): value for share, value in k.items()}
        return {"k": k, **self.keys}


def _pkpo(baseline: str) -> dict[str, Any]:
    return {"estimator.baseline": baseline}


def _paper_b(method: str) -> dict[str, Any]:
    return {"estimator.name": "passk_training", "estimator.method": method}


METHODS = {
    # PKPO with loo_minus_one, the estimator that paper A trains with; RLOO at k = 1, Tang et al. at
    # k = n = 16.
    "k1": Method("PKPO k = 1 (RLOO)", 1, watched=True),
    "k2": Method("PKPO k = 2", 2, watched=True),
    "k4": Method("PKPO k = 4", 4, watched=True),
    "k8": Method("PKPO k = 8", 8, watched=True),
    "k16": Method("PKPO k = 16 (Tang et al.)", 16, watched=True),
    # Schedules of k.
    "anneal_third": Method("k = 8, then 1 after 1/3", {0: 8, 1 / 3: 1}, watched=True),
    "anneal_two_thirds": Method("k = 8, then 1 after 2/3", {0: 8, 2 / 3: 1}, watched=True),
    "explore": Method("k = 1, then 8, then 1", {0: 1, 1 / 3: 8, 2 / 3: 1}, watched=True),
    "per_prompt": Method(
        "a k for each prompt", 1, {"estimator.name": "experiments.study.estimators:per_prompt_k"}
    ),
    # Other estimators of the same gradient.
    "centered": Method("centered, k = 4", 4, _pkpo("centered")),
    "loo": Method("loo, k = 4", 4, _pkpo("loo")),
    "none": Method("no baseline, k = 4", 4, _pkpo("none")),
    "disjoint": Method(
        "disjoint groups, baseline, k = 4",
        4,
        {"estimator.name": "experiments.study.estimators:disjoint_groups"},
    ),
    # Paper B.
    "b_full": Method("B full, k = 4", 4, _paper_b("full")),
    "b_bootstrap": Method("B bootstrap, k = 4", 4, _paper_b("bootstrap")),
    "b_analytical": Method("B analytical, k = 4", 4, _paper_b("analytical")),
    "b_combination": Method("B combination, k = 4", 4, _paper_b("combination")),
    "b_adaptive": Method("B adaptive, k = 4", 4, _paper_b("adaptive")),
    # pass@1 and its relatives.
    "grpo": Method("GRPO", 1, {"estimator.name": "grpo"}),
    "maxrl": Method("MaxRL", 1, {"estimator.name": "maxrl"}),
    "entropy_.01": Method("RLOO, entropy bonus .01", 1, {"loss.entropy_coef": 0.01}),
    "entropy_.05": Method("RLOO, entropy bonus .05", 1, {"loss.entropy_coef": 0.05}),
    "entropy_.1": Method("RLOO, entropy bonus .1", 1, {"loss.entropy_coef": 0.1}),
    "entropy_.2": Method("RLOO, entropy bonus .2", 1, {"loss.entropy_coef": 0.2}),
}

# Of these the one that tuning finds best is reported.
ONE_OF = (("entropy_.01", "entropy_.05", "entropy_.1", "entropy_.2"),)
# A rate at which all k of PKPO are reported too, beside their own.
ONE_RATE = 6e-4


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is run: methods on each set of problems, on which seeds, at a tuned rate or at
    ONE_RATE; which of them at other rates too, as {problems: {rate: methods}}, and for longer, as
    {problems: (steps, methods)}; and whether optimum, variance and cost are measured."""

    methods: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    at_rates: Mapping[str, Mapping[float, tuple[str, ...]]] = dataclasses.field(
        default_factory=dict
    )
    longer: Mapping[str, tuple[int, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    tuned: bool = True
    measured: bool = True


_FIVE_K = tuple(f"k{k}" for k in KS)
FULL = Scope(
    {
        "fog": tuple(METHODS),
        "plain": _FIVE_K,
        "arithmetic": _FIVE_K,
        "hard": ("k1", "k4", "k8"),
    },
    SEEDS,
    # To tell what a method does from how fast it does it, and from the rate that suits it: at those
    # beside the first, tuning saw methods differ most. Of these, claim b's rule reads the first.
    at_rates={
        "fog": {
            ONE_RATE: _FIVE_K,
            1.2e-3: ("k1", "anneal_third"),
            3e-4: ("k4", "centered", "loo"),
        }
    },
    longer={
        "fog": (1000, ("k1", "k8", "anneal_third", "explore")),
        "hard": (1500, ("k1", "k4", "k8")),
    },
)
QUICK = Scope(
    {"fog": _FIVE_K}, (0, 1, 2), {"fog": {ONE_RATE: _FIVE_K}}, tuned=False, measured=False
)
