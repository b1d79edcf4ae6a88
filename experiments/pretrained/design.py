"""The design of the study on a pretrained model: Gemma 3 270M on few-shot sums and countdown.

A run is the shipped trainer on a shipped config with some keys changed; this file says which. All
runs start from the same parameters, so that seeds differ in the order of problems and in samples.
"""

from __future__ import annotations

from experiments.study.base import Design, Method, Problems, Scope, Seconds

KS = (1, 2, 4, 8)
SEEDS = (0, 1, 2)
# A run writes a checkpoint this often, from which the same command resumes it.
_EVERY = {"checkpoint.every": 10, "checkpoint.keep": 1, "eval.problems": 128}
# These were measured on two x86-64 cores; docs/gemma.md has the time of a step. The start has three
# evaluations.
_SECONDS = Seconds(start=330.0, step=14.0, before=0.0)

PROBLEMS = {
    "sums": Problems(
        "few-shot sums of three digits",
        "configs/gemma3_270m_sums.py",
        steps=100,
        evaluate_every=50,
        changes=_EVERY,
        tuning_seeds=(10,),
        seconds=_SECONDS,
    ),
    "countdown": Problems(
        "few-shot countdown with three numbers",
        "configs/gemma3_270m_countdown.py",
        steps=100,
        evaluate_every=50,
        changes=_EVERY,
        tuning_seeds=(10,),
        evaluated=("distinct_correct_8",),
        seconds=_SECONDS,
    ),
}
METHODS = {
    **{f"k{k}": Method(f"PKPO k = {k}", k, watched=True) for k in KS},
    "down": Method("PKPO k = 8 down to 1", "blend(8, 1, {steps})", watched=True),
    "mixture": Method(
        "PKPO mean of k = 1..8",
        "mixture(1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1)",
        watched=True,
    ),
}
FULL = Scope(dict.fromkeys(PROBLEMS, tuple(METHODS)), SEEDS)
QUICK = Scope({"sums": ("k1", "k8")}, (0,), tuned=False)
DESIGN = Design(
    PROBLEMS,
    METHODS,
    FULL,
    QUICK,
    # These are learning rates of Adam.
    rates=(5e-7, 1e-6, 2e-6),
    one_rate=1e-6,
    tuning_draw=10,
    all_cores=True,
    pretrained=True,
    # A policy and its optimiser's state take 2 GB.
    keeps_policies=False,
)
