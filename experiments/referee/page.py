"""The referee: its design, its rules, and the tables and plots of its page."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.referee import claims
from experiments.referee.design import BONUSES, DESIGN, DISTINCT, LOSSES_OF_GRPO, PROBLEMS
from experiments.study import legends, plan, tables
from experiments.study.base import KS, Cell, Study
from experiments.study.measures import Set, all_sets, estimate, listed, number, paired
from experiments.study.runs import Measurement

# A cell of a table names at most so many methods.
_NAMED = 4


def _tables(letter: str, found: Mapping[str, Any]) -> list[str]:
    sets = all_sets(found, DESIGN)
    met = [one for one in sets.values() if not one.problems.fixed]
    if letter == "a":
        return [_leaders(met, found.get("optimum", {}))]
    if letter == "b":
        return [_diversity(sets["modes"], found.get("optimum", {}))]
    if letter == "e":
        return [_collapse(sets["hard"])]
    if letter == "g":
        return [_seconds(met)]
    pairs = {
        "c": claims.FAMILIES.values(),
        "d": (("edas", "grpo"), ("edas", "k4"), ("grpo", "k4")),
        "f": [*((m, "grpo") for m in LOSSES_OF_GRPO), *((m, "k1") for m in BONUSES)],
    }[letter]
    made = [(one.problems.title, tables.differences(one, pairs)) for one in met]
    return [f"On {title}:\n\n{table}" for title, table in made if table]


def _leaders(sets: Sequence[Set], optimum: Mapping[str, Any]) -> str:
    """Returns who leads at each k, with the best mean and the optimum."""
    rows = []
    for problems in sets:
        for k in KS:
            first = claims.leaders(problems, k)
            best = max(first, key=lambda m: problems.mean(m, k))
            others = [problems.design.label(m) for m in first if m != best]
            more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            most = optimum.get(problems.name, {}).get("pass_at", {}).get(str(k))
            rows.append(
                [
                    problems.problems.title,
                    f"pass@{k}",
                    problems.design.label(best),
                    (listed(others[:_NAMED]) or "none") + more,
                    estimate(problems.pass_at(best, k)).cell(),
                    number(most) if most else "",
                ]
            )
    header = ["problems", "at", "highest mean", "not lower than that by the rule"]
    return tables.markdown([*header, "its mean", "optimum"], rows, words=4)


def _diversity(problems: Set, optimum: Mapping[str, Any]) -> str:
    """Returns the distinct right answers of each method beside RLOO's at equal pass@1."""
    name, rows = f"distinct_correct_{DISTINCT}", []
    for method in problems.methods:
        ours, equal = problems.final(method, name), claims.at_equal_pass_at_1(problems, method)
        rows.append(
            [
                problems.design.label(method),
                estimate(problems.pass_at(method, 1)).cell(),
                estimate(ours).cell(),
                estimate(equal).cell(),
                paired(ours, equal).interval() if method != "k1" else "",
            ]
        )
    best = optimum.get("modes", {}).get("distinct_correct", {}).get(str(DISTINCT))
    if best:
        rows.append(["optimum", "1.000", number(best), "", ""])
    header = ["", "pass@1", f"distinct right of {DISTINCT}", "RLOO's at this pass@1", "difference"]
    return tables.markdown(header, rows)


def _collapse(hard: Set) -> str:
    """Returns what k = 1 and k = 4 solve of the hard mazes, under each condition."""
    rows = []
    for problems in (hard, *([hard.longer] if hard.longer else [])):
        for method in problems.methods:
            solved = [seed[-1] for seed in problems.curve(method, "cumulative_solve_rate")[1]]
            passed = [estimate(problems.last(method, f"pass_at_{k}")).cell() for k in (1, 16)]
            label, steps = problems.design.label(method), str(problems.last_step)
            rows.append([label, steps, estimate(solved).cell(), *passed])
    header = ["", "steps", "solved so far", "pass@1, in training", "pass@16, in training"]
    return tables.markdown(header, rows)


def _seconds(sets: Sequence[Set]) -> str:
    """Returns the time of a step of each method, in ms."""
    methods = [m for m in DESIGN.methods if any(one.has(m) for one in sets)]
    rows = [
        [
            DESIGN.label(m),
            *(f"{1e3 * one.step_seconds(m):.0f}" if one.has(m) else "" for one in sets),
        ]
        for m in methods
    ]
    return tables.markdown(["ms a step", *(one.problems.title for one in sets)], rows)


def _measurements(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, optimum in found.get("optimum", {}).items():
        rows = [
            [kind, *(number(values[str(k)]) for k in KS)]
            for kind, values in optimum.items()
            if isinstance(values, dict)
        ]
        table = tables.markdown(["best of any policy", *map(str, KS)], rows)
        parts += [f"## The exact optimum on {PROBLEMS[name].title}", table]
    return parts


def _measure(
    workdir: pathlib.Path,
    problems: Mapping[str, Any],
    cells: Sequence[Cell],
    run_all: plan.RunAll,
) -> dict[str, Any]:
    """Measures the exact optimum on each draw of problems, and returns the means over draws."""
    jobs: dict[str, list[Measurement]] = {}
    modules = {"fog": "experiments.study.optimum", "modes": "experiments.referee.optimum"}
    for name, module in modules.items():
        for draw in sorted({cell.draw for cell in cells}) if name in problems else ():
            keys = {**PROBLEMS[name].changes, "task.seed": draw}
            output = workdir / "measured" / f"optimum_{name}_draw{draw}.json"
            arguments = [f"--config={PROBLEMS[name].config}", f"--output={output}"]
            arguments += [f"--config.{key}={value}" for key, value in keys.items()]
            jobs.setdefault(name, []).append(Measurement(output, module, arguments))
    run_all([job for some in jobs.values() for job in some], "exact optimum")
    optimum: dict[str, Any] = {}
    for name, some in jobs.items():
        draws = [json.loads(job.output.read_text()) for job in some]
        kind = "pass_at" if name == "fog" else "distinct_correct"
        of = {
            str(k): [
                d["matrix"][str(k)][str(k)] if name == "fog" else d[kind][str(k)] for d in draws
            ]
            for k in KS
        }
        optimum[name] = {kind: {k: statistics.fmean(values) for k, values in of.items()}}
    return {"optimum": optimum}


def _draw(found: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """Plots where each method ends: pass@1 against pass@16, and against distinct right answers."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {n: one for n, one in all_sets(found, DESIGN).items() if not one.problems.fixed}
    if not sets:
        return []
    of_modes = f"distinct_correct_{DISTINCT}"
    titles = {"pass_at_16": "pass@16", of_modes: f"distinct right answers of {DISTINCT}"}
    plots = {"a_ends.png": {n: "pass_at_16" for n in sets}}
    if "modes" in sets:
        plots["b_diversity.png"] = {"modes": of_modes}
    for file, panels in plots.items():
        figure = Figure(figsize=(4.2 * len(panels) + 2.4, 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (name, metric) in zip(axes, panels.items(), strict=True):
            problems = sets[name]
            for method in problems.methods:
                x, y = (estimate(problems.final(method, m)) for m in ("pass_at_1", metric))
                number_of = list(DESIGN.methods).index(method)
                style = {"color": f"C{number_of % 10}", "marker": "osD^v"[number_of // 10]}
                label = problems.design.label(method)
                ax.errorbar(x.mean, y.mean, xerr=x.se, yerr=y.se, ls="", label=label, **style)
            if metric != "pass_at_16":
                _trajectory(ax, problems, metric)
            ax.set(xlabel="pass@1, held out", ylabel=f"{titles[metric]}, held out")
            ax.set_title(problems.problems.title, fontsize=9)
        legends.add(figure, fontsize=6)
        figure.savefig(folder / file, dpi=90)
    return list(plots)


def _trajectory(ax: Any, problems: Set, metric: str) -> None:
    """Plots RLOO during training, which claim b compares with."""
    if not problems.has("k1"):
        return
    rows = [problems.evaluated("k1", name)[1] for name in ("pass_at_1", metric)]
    xs, ys = ([statistics.fmean(at) for at in zip(*row, strict=True)] for row in rows)
    ax.plot(xs, ys, color="grey", lw=1, label="RLOO, during training")


STUDY = Study(
    DESIGN,
    "the referee",
    claims.findings,
    _tables,
    _draw,
    claims.PAIRS,
    _measurements,
    _measure,
)
