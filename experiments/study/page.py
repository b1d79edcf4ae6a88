"""The study of the papers' claims: its design, its rules, and the tables and plots of its page."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import claim_tables, claims, design, figures, plan, results, tables
from experiments.study.base import Cell, Study
from experiments.study.measures import all_sets
from experiments.study.quantities import quarters
from experiments.study.runs import Measurement


def _tables(letter: str, found: Mapping[str, Any]) -> list[str]:
    sets = all_sets(found, design.DESIGN)
    if letter in "cegh":
        return [tables.differences(sets["fog"], claims.COMPARED[letter])]
    if letter == "d":
        longer = sets["hard"].longer
        return [claim_tables.hard(sets["hard"]), *([claim_tables.hard(longer)] if longer else [])]
    if letter == "f":
        return [
            claim_tables.methods(sets["fog"]),
            "The time of a step is the median over steps, for the fastest seed, because runs "
            "shared the machine with others. The five k of PKPO are one program and take "
            f"{claim_tables.time_of_k(sets['fog'])}, so smaller differences are noise. The last "
            "two columns show after how many steps (over seeds) and seconds of training the pass@k "
            "of the training batches, over 10 steps, first reaches a level, or how many seeds "
            "reach it. Training problems are not repeated, so this is pass@k on unseen problems.",
        ]
    return [claim_tables.cost(found["cost"])] if letter == "i" else []


def _measurements(found: Mapping[str, Any]) -> list[str]:
    parts = []
    if any(finding.letter == "b" for finding in claims.findings(found)):
        parts += ["## Exploration", *map(claim_tables.quarters, quarters(found))]
    for name, optimum in found.get("optimum", {}).items():
        parts += [
            f"## The exact optimum on {design.PROBLEMS[name].title}",
            claim_tables.optimum(optimum),
        ]
    if "variance" in found:
        parts.append("## Variance of one gradient estimate")
        parts += [claim_tables.variance(p, found["variance"][p]) for p in design.POLICIES]
    return parts


def _measure(
    workdir: pathlib.Path,
    problems: Mapping[str, Any],
    cells: Sequence[Cell],
    run_all: plan.RunAll,
) -> dict[str, Any]:
    """Measures the exact optimum, the variance of gradients for each seed, and the cost.

    The variance is that of policies before and after RL with k = 4, if these were trained.
    """
    if "fog" not in problems:
        return {}

    def measurement(name: str, module: str, *arguments: str) -> Measurement:
        output = workdir / "measured" / f"{name}.json"
        return Measurement(
            output, f"experiments.study.{module}", [*arguments, f"--output={output}"]
        )

    config = f"--config={design.PROBLEMS['fog'].config}"
    best = measurement("optimum", "optimum", config)
    reported = workdir / "fog" / "reported"

    def variance(folder: str, step: int) -> Measurement:
        where = (f"--workdir={reported / folder}", f"--step={step}", "--k=4")
        return measurement(f"variance_{folder}_step{step}", "variance", *where)

    steps = design.PROBLEMS["fog"].steps
    before, after = design.POLICIES
    noise = {}
    if "k4" in problems["fog"]["methods"]:
        rate = problems["fog"]["methods"]["k4"]["rate"]
        noise = {
            before: [variance(f"base_{cell.name}", 0) for cell in cells],
            after: [variance(f"k4_lr{rate:g}_{cell.name}", steps) for cell in cells],
        }
    cost = measurement("cost", "cost", config, "--steps=2400")
    run_all([best, *itertools.chain(*noise.values())], "optimum and variance")
    # This runs alone, because it measures time.
    run_all([cost], "what the transform costs")
    read = lambda job: json.loads(job.output.read_text())  # noqa: E731
    found = {"optimum": {"fog": read(best)}, "cost": read(cost)}
    if noise:
        found["variance"] = {
            policy: results.of_variance([*map(read, jobs)]) for policy, jobs in noise.items()
        }
    return found


STUDY = Study(
    design.DESIGN,
    "the study",
    claims.findings,
    _tables,
    figures.draw,
    claims.PAIRS,
    _measurements,
    _measure,
)
