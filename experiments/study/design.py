"""The study's design: problems, methods, learning rates to tune over, and seeds.

A run is the shipped trainer on a shipped config with some keys changed; this file says which.
"""

from __future__ import annotations

from typing import Any

from experiments.study.base import KS, Design, Method, Problems, Scope

SEEDS = (0, 1, 2, 3, 4)
# One rate at which all k of PKPO are reported too, besides their tuned rates.
ONE_RATE = 6e-4

PROBLEMS = {
    "fog": Problems(
        "fogged mazes, 4x4",
        "configs/maze_tiny.py",
        steps=200,
        evaluate_every=50,
        curves=("cumulative_solve_rate", "pass_at_1", "pass_at_4"),
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
    # Half of these mazes have longer paths than any demonstration that the policy has seen.
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
        curves=("cumulative_solve_rate", "entropy", "pass_at_1"),
    ),
}


def _pkpo(baseline: str) -> dict[str, Any]:
    return {"estimator.baseline": baseline}


def _paper_b(method: str) -> dict[str, Any]:
    return {"estimator.name": "passk_training", "estimator.method": method}


def _ours(function: str) -> dict[str, Any]:
    return {"estimator.name": f"experiments.study.estimators:{function}"}


METHODS = {
    # PKPO with loo_minus_one, the baseline that paper A trains with. It is RLOO at k = 1, and the
    # estimator of Tang et al. at k = n = 16.
    "k1": Method("PKPO k = 1 (RLOO)", 1, watched=True),
    "k2": Method("PKPO k = 2", 2, watched=True),
    "k4": Method("PKPO k = 4", 4, watched=True),
    "k8": Method("PKPO k = 8", 8, watched=True),
    "k16": Method("PKPO k = 16 (Tang et al.)", 16, watched=True),
    # These are schedules of k.
    "anneal_third": Method("k = 8, then 1 after 1/3", {0: 8, 1 / 3: 1}, watched=True),
    "anneal_two_thirds": Method("k = 8, then 1 after 2/3", {0: 8, 2 / 3: 1}, watched=True),
    "explore": Method("k = 1, then 8, then 1", {0: 1, 1 / 3: 8, 2 / 3: 1}, watched=True),
    "per_prompt": Method("a k for each prompt", 1, _ours("per_prompt_k")),
    # These estimate the same gradient in other ways.
    "centered": Method("centered, k = 4", 4, _pkpo("centered")),
    "loo": Method("loo, k = 4", 4, _pkpo("loo")),
    "none": Method("no baseline, k = 4", 4, _pkpo("none")),
    "disjoint": Method("disjoint groups, baseline, k = 4", 4, _ours("disjoint_groups")),
    # These are the estimators of paper B.
    "b_full": Method("B full, k = 4", 4, _paper_b("full")),
    "b_bootstrap": Method("B bootstrap, k = 4", 4, _paper_b("bootstrap")),
    "b_analytical": Method("B analytical, k = 4", 4, _paper_b("analytical")),
    "b_combination": Method("B combination, k = 4", 4, _paper_b("combination")),
    "b_adaptive": Method("B adaptive, k = 4", 4, _paper_b("adaptive")),
    # These train for pass@1, except MaxRL.
    "grpo": Method("GRPO", 1, {"estimator.name": "grpo"}),
    "maxrl": Method("MaxRL", 1, {"estimator.name": "maxrl"}),
    "entropy_.01": Method("RLOO, entropy bonus .01", 1, {"loss.entropy_coef": 0.01}),
    "entropy_.05": Method("RLOO, entropy bonus .05", 1, {"loss.entropy_coef": 0.05}),
    "entropy_.1": Method("RLOO, entropy bonus .1", 1, {"loss.entropy_coef": 0.1}),
    "entropy_.2": Method("RLOO, entropy bonus .2", 1, {"loss.entropy_coef": 0.2}),
}
PKPO = tuple(f"k{k}" for k in KS)
# Only one coefficient of the bonus is reported, the one that tuning finds best.
BONUSES = tuple(method for method in METHODS if method.startswith("entropy_"))


# The policies whose gradients are measured for claim e.
POLICIES = ("before RL", "after RL with k = 4")

FULL = Scope(
    {"fog": tuple(METHODS), "plain": PKPO, "arithmetic": PKPO, "hard": ("k1", "k4", "k8")},
    SEEDS,
    # These runs separate the effect of a method from that of its speed and of its rate. The rule
    # of claim b reads the first rate. At the others, methods differed most in tuning.
    at_rates={
        "fog": {
            ONE_RATE: PKPO,
            1.2e-3: ("k1", "anneal_third"),
            3e-4: ("k4", "centered", "loo"),
        }
    },
    longer={
        "fog": (1000, ("k1", "k8", "anneal_third", "explore")),
        "hard": (1500, ("k1", "k4", "k8")),
    },
)
QUICK = Scope({"fog": PKPO}, (0, 1, 2), {"fog": {ONE_RATE: PKPO}}, tuned=False, measured=False)
DESIGN = Design(
    PROBLEMS,
    METHODS,
    FULL,
    QUICK,
    # These are learning rates of Adam.
    rates=(3e-4, 6e-4, 1.2e-3),
    one_rate=ONE_RATE,
    alternatives=BONUSES,
)
label = DESIGN.label
