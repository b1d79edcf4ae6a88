"""Quantities that the claims of this study, their tables and their plots read from the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.study.design import BONUSES, DESIGN, PKPO
from experiments.study.measures import Estimate, Set, all_sets, estimate

ONE_RATE = f"{DESIGN.one_rate:g}"


def unseen(results: Mapping[str, Any]) -> dict[str, Set]:
    """Returns the sets with all k of PKPO on which training does not repeat problems."""
    return {
        name: problems
        for name, problems in all_sets(results, DESIGN).items()
        if problems.has(*PKPO) and not problems.problems.fixed
    }


class Quarters(NamedTuple):
    """A measure of exploration at each quarter of training.

    Attributes:
      title: the measure and the learning rates.
      steps: the four steps.
      values: {method: four lists of a value for each seed}.
      before: a value for each seed before RL, or None where it is not defined.
    """

    title: str
    steps: list[int]
    values: dict[str, list[list[float]]]
    before: list[float] | None


def quarters(results: Mapping[str, Any]) -> list[Quarters]:
    """Returns the measures of claim b."""
    sets = all_sets(results, DESIGN)
    runs = {f"all at {ONE_RATE}": sets["fog"].at_rate(ONE_RATE)}
    runs |= {"tuned": sets["fog"]} if results["tuned"] else {}
    titles = {
        "entropy": "entropy, nats a token",
        "distinct_wrong": "distinct wrong answers / wrong",
        "cumulative_solve_rate": "solved, mazes seen once",
    }
    found = [
        _quarters(problems, name, f"{title} ({rates})")
        for rates, problems in runs.items()
        for name, title in titles.items()
    ]
    if "hard" in sets:
        found.append(_quarters(sets["hard"], "cumulative_solve_rate", "solved, hard set (tuned)"))
    return found


def _quarters(problems: Set, name: str, title: str) -> Quarters:
    in_training = name == "cumulative_solve_rate"
    wanted = [problems.last_step * i // 4 for i in (1, 2, 3, 4)]
    values = {}
    for method in (m for m in PKPO if problems.has(m)):
        read = problems.curve if in_training else problems.evaluated
        steps, seeds = read(method, name)
        at = [min(range(len(steps)), key=lambda i: abs(steps[i] - step)) for step in wanted]
        values[method] = [[seed[i] for seed in seeds] for i in at]
    return Quarters(title, wanted, values, None if in_training else problems.final("base", name))


def hard_measures(problems: Set) -> dict[str, Callable[[str], list[float]]]:
    """Returns {measure: method -> a value for each seed}; claim d reads the first three."""

    def solved_late(method: str) -> list[float]:
        _, seeds = problems.curve(method, "cumulative_solve_rate")
        return [seed[-1] - seed[len(seed) // 2 - 1] for seed in seeds]

    def solved(method: str) -> list[float]:
        return [seed[-1] for seed in problems.curve(method, "cumulative_solve_rate")[1]]

    return {
        "solved so far": solved,
        "solved first in the last half": solved_late,
        "pass@1, in training": lambda m: problems.last(m, "pass_at_1"),
        "pass@16, in training": lambda m: problems.last(m, "pass_at_16"),
        "no gradient, of prompts": lambda m: problems.last(m, "dead_groups"),
        "entropy, nats a token": lambda m: problems.last(m, "entropy"),
        "pass@1, held out": lambda m: problems.pass_at(m, 1),
        "pass@16, held out": lambda m: problems.pass_at(m, 16),
    }


def log_ratios(measured: Mapping[str, Any]) -> dict[str, Estimate]:
    """Returns {estimator: log of its variance over that of loo_minus_one} for one policy.

    Estimators of the gradient of another objective are left out.
    """
    k = measured["loo_minus_one"]["k"]
    return {
        name: estimate(measured[name]["log_ratio"])
        for name in sorted(measured)
        if measured[name]["k"] == k and name != "loo_minus_one"
    }


def best_bonus(problems: Set) -> str:
    """Returns the entropy bonus that tuning chose."""
    return next(m for m in BONUSES if problems.has(m))
