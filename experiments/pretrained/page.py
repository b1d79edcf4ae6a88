"""The study on a pretrained model: its design, its rules, and the tables and plots of its page."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from experiments import study as tiny
from experiments.pretrained import claims
from experiments.pretrained.design import DESIGN
from experiments.study import claims as tiny_claims
from experiments.study import legends, results, tables
from experiments.study.base import KS, Study
from experiments.study.measures import Set, all_sets, estimate


def _tables(letter: str, found: Mapping[str, Any]) -> list[str]:
    sets = all_sets(found, DESIGN).values()
    if letter == "b":
        made = [(one.problems.title, _diversity(one)) for one in sets]
    else:
        pairs = claims.COMPARED[letter]
        made = [(one.problems.title, tables.differences(one, pairs)) for one in sets]
    kept = results.load(pathlib.Path(tiny.__file__).with_name("results.json"))
    before = {finding.letter: finding.verdict for finding in tiny_claims.findings(kept)}
    similar = "The tiny policy's verdict, by a similar rule:"
    beside = f"{similar} {before[letter]}." if letter in "abc" else ""
    return [*filter(None, [beside]), *(f"On {name}:\n\n{table}" for name, table in made if table)]


def _diversity(problems: Set) -> str:
    """Returns entropy and the share of distinct wrong answers at each evaluation."""
    rows, steps = [], []
    for name, title in claims.DIVERSITY.items():
        for method in problems.methods:
            steps, seeds = problems.evaluated(method, name)
            cells = [estimate(values).cell() for values in zip(*seeds, strict=True)]
            rows.append([title, problems.design.label(method), *cells])
    return tables.markdown(["", "", *(f"step {step}" for step in steps)], rows, words=2)


def _draw(found: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """Plots held-out pass@k against k before RL and after training with each method."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = all_sets(found, DESIGN)
    if not sets:
        return []
    figure = Figure(figsize=(4.2 * len(sets) + 2.0, 3.8), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for ax, problems in zip(axes, sets.values(), strict=True):
        for method in ("base", *problems.methods):
            at = [estimate(problems.pass_at(method, k)) for k in KS]
            means, errors = ([getattr(e, name) for e in at] for name in ("mean", "se"))
            color = "grey" if method == "base" else f"C{list(DESIGN.methods).index(method)}"
            ax.errorbar(KS, means, errors, color=color, label=problems.design.label(method))
        ax.set(xlabel="k", ylabel="pass@k, held out", xscale="log", title=problems.problems.title)
        ax.set_xticks(KS, KS)
    legends.add(figure)
    figure.savefig(folder / "a_pass_at_k.png", dpi=90)
    return ["a_pass_at_k.png"]


STUDY = Study(
    DESIGN,
    "the study on a pretrained model",
    claims.findings,
    _tables,
    _draw,
    claims.PAIRS,
    measurements=lambda found: [],
    measure=lambda *arguments: {},
)
