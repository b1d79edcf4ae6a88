"""The referee's design: the methods of the field, the problems they meet on, rates and seeds.

A run is the shipped trainer on a shipped config with some keys changed; this file says which. What
authors state of their method (coefficients, clipping) is kept. Learning rates are tuned, the same
way for all.
"""

from __future__ import annotations

from typing import Any

from experiments.study.base import KS, Design, Method, Problems, Scope

SEEDS = (0, 1, 2, 3, 4)
# The reported problems are drawn three times: values of task.seed. Tuning has another one.
DRAWS = (0, 1, 2)
TUNING_DRAW = 100
# The number of samples at which the different right answers are counted.
DISTINCT = 8
_DISTINCT = tuple(f"distinct_correct_{k}" for k in (2, 4, DISTINCT, 16))

PROBLEMS = {
    "fog": Problems("fogged mazes", "configs/maze_tiny.py", steps=150, evaluate_every=50),
    "sums": Problems(
        "sums of three digits", "configs/arithmetic_tiny.py", steps=150, evaluate_every=50
    ),
    # All cells are shown, and few are walls: a maze has many right paths, and each is a mode.
    "modes": Problems(
        "open mazes, whose modes are paths",
        "configs/maze_tiny.py",
        steps=150,
        evaluate_every=25,
        changes={
            "task.fog": 0.0,
            "task.wall_density": 0.15,
            "task.min_path": 3,
            "task.max_path": 5,
            "task.modes": "path",
        },
        evaluated=(*_DISTINCT, "mode_coverage"),
    ),
    # These are the hard mazes of the study. They stand for paper A's hard set, on which k = 1
    # solved 12% of the problems and larger k 84%.
    "hard": Problems(
        "128 hard mazes, repeated",
        "configs/maze_tiny.py",
        steps=300,
        evaluate_every=300,
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
        curves=("cumulative_solve_rate", "pass_at_1"),
    ),
}


def _named(name: str, **more: Any) -> dict[str, Any]:
    return {"estimator.name": name, **{f"estimator.{key}": value for key, value in more.items()}}


# Several updates on a batch, which clipped ratios are for.
_TWICE = {**_named("grpo"), "train.epochs": 2}
_FOUR_TIMES = {"loss.policy": "ppo", "train.epochs": 4}
# Gradients are not clipped, as a clipped one has a fixed length, like a step of Adam.
_SGD = {"train.optimizer": "sgd", "train.b1": 0.0, "train.clip_norm": 1e3}
_SGD_RATES = (0.03, 0.1, 0.3)

METHODS = {
    # PKPO has the baseline loo_minus_one, which its authors train with. It is RLOO at k = 1.
    "k1": Method("PKPO k = 1 (RLOO)", 1, watched=True),
    "k2": Method("PKPO k = 2", 2),
    "k4": Method("PKPO k = 4", 4),
    "k8": Method("PKPO k = 8", 8),
    "k16": Method("PKPO k = 16", 16),
    "mixture": Method(
        "PKPO mean of k = 1..8", "mixture(1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1)"
    ),
    "down": Method("PKPO k = 8 down to 1", "blend(8, 1, {steps})"),
    "up": Method("PKPO k = 1 up to 8", "blend(1, 8, {steps})"),
    # PACEvolve++ anneals up.
    "pace_up": Method("PACEvolve++ k = 1 up to 8", "blend(1, 8, {steps})", _named("pacevolve")),
    "pace_down": Method("PACEvolve++ k = 8 down to 1", "blend(8, 1, {steps})", _named("pacevolve")),
    "maxrl": Method("MaxRL", 1, _named("maxrl")),
    "passk": Method("Pass@k Training k = 4", 4, _named("passk_training", method="analytical")),
    "poly_epo": Method("Poly-EPO k = 4", 4, _named("poly_epo")),
    "distinct": Method("distinct right answers of 4", 4, _named("distinct")),
    # These start from GRPO.
    "grpo": Method("GRPO", 1, _named("grpo")),
    "edas": Method("GRPO + EDAS", 1, _named("edas", base="grpo")),
    "rarity": Method("GRPO + Cue (rarity)", 1, _named("rarity", base="grpo")),
    "sage": Method("GRPO + SAGE", 1, {**_named("grpo"), "loss.kl": "sage", "loss.kl_coef": 0.05}),
    "resrl": Method("GRPO + ResRL", 1, {**_named("grpo"), "loss.token_weights": "resrl"}),
    "ppo": Method("GRPO + PPO (2 epochs)", 1, {**_TWICE, "loss.policy": "ppo"}),
    "cispo": Method(
        "GRPO + CISPO (2 epochs)",
        1,
        {**_TWICE, "loss.policy": "cispo", "loss.clip_low": 1.0, "loss.clip_high": 0.28},
    ),
    # GSPO's clip is that of its paper.
    "gspo": Method(
        "GRPO + GSPO (2 epochs)",
        1,
        {**_TWICE, "loss.policy": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4},
    ),
    "entropy_.01": Method("RLOO + entropy bonus .01", 1, {"loss.entropy_coef": 0.01}),
    "entropy_.05": Method("RLOO + entropy bonus .05", 1, {"loss.entropy_coef": 0.05}),
    "entropy_.1": Method("RLOO + entropy bonus .1", 1, {"loss.entropy_coef": 0.1}),
    # These ask why the k = 1 of paper A collapses.
    "sgd_k1": Method("SGD k = 1", 1, _SGD, rates=_SGD_RATES),
    "sgd_k4": Method("SGD k = 4", 4, _SGD, rates=_SGD_RATES),
    "clipped_k1": Method("PPO k = 1 (4 epochs)", 1, _FOUR_TIMES),
    "clipped_k4": Method("PPO k = 4 (4 epochs)", 4, _FOUR_TIMES),
}
PKPO = tuple(f"k{k}" for k in KS)
BONUSES = tuple(method for method in METHODS if method.startswith("entropy_"))
# These put the same rewards into another loss: GRPO's, or RLOO's with a bonus.
LOSSES_OF_GRPO = ("sage", "resrl", "ppo", "cispo", "gspo")
LOSSES = (*LOSSES_OF_GRPO, *BONUSES)
_OF_HARD = ("sgd_k1", "sgd_k4", "clipped_k1", "clipped_k4")
FIELD = tuple(method for method in METHODS if method not in _OF_HARD)
# A sum has one right answer, so that Cue is GRPO there, and the count of answers is pass@k.
_ON_SUMS = tuple(method for method in FIELD if method not in ("rarity", "distinct"))

FULL = Scope(
    {
        "fog": tuple(method for method in FIELD if method != "distinct"),
        "sums": _ON_SUMS,
        "modes": FIELD,
        "hard": ("k1", "k4", *_OF_HARD),
    },
    SEEDS,
    longer={"hard": (1200, ("k1", "k4"))},
    draws=DRAWS,
)
# The quick form shows what the page looks like. Two runs of a method settle nothing.
QUICK = Scope(
    {
        "modes": (
            *("k1", "k4", "k8", "mixture", "down", "up", "pace_up", "pace_down"),
            *("maxrl", "grpo", "edas", "distinct"),
        )
    },
    (0, 1),
    tuned=False,
    measured=False,
)
DESIGN = Design(
    PROBLEMS,
    METHODS,
    FULL,
    QUICK,
    # These are learning rates of Adam.
    rates=(3e-4, 6e-4, 1.2e-3),
    one_rate=6e-4,
    tuning_draw=TUNING_DRAW,
    alternatives=BONUSES,
)
