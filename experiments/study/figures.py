"""The plots of the study."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.study import claims, design, legends
from experiments.study.base import KS
from experiments.study.design import DESIGN, PKPO, label
from experiments.study.measures import all_sets, estimate
from experiments.study.quantities import ONE_RATE, best_bonus, unseen

# A curve has steps, or seconds, and values as [seed][step].
Curve = tuple[Sequence[float], Sequence[Sequence[float]]]


def draw(results: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """Writes the plots that these results are enough for.

    Returns:
      Their file names, each of which starts with the letter of its claim.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = {finding.letter for finding in claims.findings(results)}
    plots = {
        "a_diagonal": _diagonal,
        "b_throughout": _throughout,
        "c_schedules": _schedules,
        "d_hard": _hard,
        "f_methods": _methods,
    }
    names = [name for name in plots if name[0] in letters]
    for name in names:
        plots[name](results).savefig(folder / f"{name}.png", dpi=90)
    return [f"{name}.png" for name in names]


def _diagonal(results: Mapping[str, Any]) -> Figure:
    """Plots pass@k_eval of each k_opt, coloured by its distance from the best of its column."""
    sets = unseen(results)
    figure = Figure(figsize=(4.4 * len(sets) + 0.6, 3.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(sets)))
    for ax, problems in zip(axes, sets.values(), strict=True):
        means = np.array([[problems.mean(m, k) for k in KS] for m in ("base", *PKPO)])
        behind = means - means.max(0)
        image = ax.imshow(behind, cmap="viridis", vmin=-0.15, vmax=0, aspect="auto")
        for (i, j), distance in np.ndenumerate(behind):
            color = "black" if distance > -0.06 else "white"
            weight = "bold" if distance == 0 else "normal"
            text = f"{means[i, j]:.3f}"
            ax.text(j, i, text, ha="center", va="center", color=color, weight=weight, size=8)
        ax.set_xticks(range(len(KS)), KS)
        ax.set_yticks(range(len(means)), ["before RL", *map(str, KS)])
        ax.set(xlabel="k_eval", ylabel="k_opt", title=problems.problems.title)
    figure.colorbar(image, ax=axes, label="pass@k_eval less the best of its column")
    return figure


def _throughout(results: Mapping[str, Any]) -> Figure:
    runs = all_sets(results, DESIGN)["fog"].at_rate(ONE_RATE)
    return _panels(
        {
            "entropy, nats a token, held out": {m: runs.evaluated(m, "entropy") for m in PKPO},
            "distinct wrong / wrong, held out": {
                m: runs.evaluated(m, "distinct_wrong") for m in PKPO
            },
            "mazes solved so far, each seen once": {
                m: runs.curve(m, "cumulative_solve_rate") for m in PKPO
            },
        }
    )


def _schedules(results: Mapping[str, Any]) -> Figure:
    fog, names = all_sets(results, DESIGN)["fog"], ["k1", "k8", *claims.ANNEALED, "explore"]
    return _panels(
        {
            f"pass@{k}, held out": {m: fog.evaluated(m, f"pass_at_{k}") for m in names}
            for k in (1, 8)
        }
    )


def _hard(results: Mapping[str, Any]) -> Figure:
    """Plots the longest runs: the rate is constant, so the shorter runs are their beginning."""
    hard = all_sets(results, DESIGN)["hard"]
    runs = hard.longer or hard
    names = {
        "cumulative_solve_rate": "cumulative solve rate",
        "pass_at_1": "pass@1, in training",
        "entropy": "entropy, nats a token",
    }
    return _panels(
        {text: {m: runs.curve(m, name) for m in runs.methods} for name, text in names.items()}
    )


def _methods(results: Mapping[str, Any]) -> Figure:
    """Plots where each method ends, and some of them against time."""
    fog = all_sets(results, DESIGN)["fog"]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    ends, *timed = figure.subplots(1, 3)
    shown = [m for m in fog.methods if m not in design.BONUSES]
    for i, method in enumerate([*shown, best_bonus(fog)]):
        x, y = (estimate(fog.pass_at(method, k)) for k in (1, 16))
        style = {"color": f"C{i % 10}", "marker": "osD^"[i // 10], "label": label(method)}
        ends.errorbar(x.mean, y.mean, xerr=x.se, yerr=y.se, ls="", **style)
    ends.set(xlabel="pass@1, held out", ylabel="pass@16, held out")
    figure.legend(*ends.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    for ax, k in zip(timed, (1, 4), strict=True):
        for i, method in enumerate(["k1", "k4", "grpo", "b_analytical", "b_bootstrap", "maxrl"]):
            steps, values = fog.curve(method, f"pass_at_{k}")
            seconds = [step * fog.step_seconds(method) for step in steps]
            _band(ax, (seconds, values), f"C{i}", label(method))
        ax.set(xlabel="seconds of training", ylabel=f"pass@{k} of training batches")
    ax.legend(fontsize=7)
    return figure


def _panels(panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Plots {y axis: {method: curve}} side by side, against steps."""
    figure = Figure(figsize=(3.8 * len(panels) + 1.6, 3.4), layout="constrained")
    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    for ax, (text, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for method, curve in curves.items():
            _band(ax, curve, f"C{methods.index(method)}", label(method))
        ax.set(xlabel="step", ylabel=text)
    legends.add(figure)
    return figure


def _band(ax: Axes, curve: Curve, color: str, label: str) -> None:
    """Plots the mean over seeds, and one standard error to both sides."""
    x, seeds = curve
    values = np.array(seeds)
    mean = values.mean(0)
    ax.plot(x, mean, color=color, label=label)
    if len(values) > 1:
        se = values.std(0, ddof=1) / np.sqrt(len(values))
        ax.fill_between(x, mean - se, mean + se, color=color, alpha=0.2, linewidth=0)
