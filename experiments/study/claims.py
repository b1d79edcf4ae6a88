"""All claims, in order: which can be read from some results, and how they came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.study import claims_of_k, claims_of_methods, design
from experiments.study.finding import PKPO, UNTESTED, Finding
from experiments.study.results import Set


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Of the claims that these results are enough for."""
    fog = Set(results["problems"].get("fog", {"methods": {}}))
    # Of the quick form there are the five k alone.
    compared = fog.has(*(m for m in design.METHODS if not m.startswith("entropy_")))
    enough = {
        claims_of_k.diagonal: bool(claims_of_k.unseen(results, *PKPO)),
        claims_of_k.throughout: fog.has(*PKPO),
        claims_of_k.annealing: compared,
        claims_of_k.hard_set: "hard" in results["problems"],
        claims_of_methods.estimators: compared and "variance" in results,
        claims_of_methods.against_paper_b: compared,
        claims_of_k.exploring: compared,
        claims_of_k.one_k_a_prompt: compared,
        claims_of_methods.cost: "cost" in results,
    }
    found = [find(results) for find, served in enough.items() if served]
    if len(results["seeds"]) < 2:
        # Without a spread nothing is higher than anything; a cost has no seeds.
        found = [
            f if f.letter == "i" else dataclasses.replace(f, verdict=UNTESTED, met=())
            for f in found
        ]
    return found
