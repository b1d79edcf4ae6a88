"""The study's figures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.study import claims, claims_of_k, claims_of_methods, design
from experiments.study.finding import KS, PKPO
from experiments.study.results import Set, estimate


def draw(results: Mapping[str, Any], folder: pathlib.Path) -> list[str]:
    """Writes those that the results serve; their names, each after its claim's letter."""
    folder.mkdir(parents=True, exist_ok=True)
    fog, drawn = Set(results["problems"].get("fog", {"methods": {}})), []

    letters = {finding.letter for finding in claims.findings(results)}
    figures = {
        "a_diagonal": lambda: diagonal(results),
        "b_throughout": lambda: throughout(fog.at_rate(design.ONE_RATE)),
        "c_schedules": lambda: schedules(fog),
        "d_hard": lambda: hard(results["problems"]["hard"]),
        "e_variance": lambda: variance(results["variance"]),
        "f_methods": lambda: methods(fog),
        "i_cost": lambda: cost(results["cost"]),
    }
    for name, of in figures.items():
        if name[0] in letters:
            of().savefig(folder / f"{name}.png", dpi=90)
            drawn.append(f"{name}.png")
    return drawn


def diagonal(results: Mapping[str, Any]) -> Figure:
    """pass@k_eval of each k_opt, less the best of its column."""
    sets = claims_of_k.unseen(results, *PKPO)
    figure = Figure(figsize=(4.4 * len(sets) + 0.6, 3.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(sets)))
    for ax, (name, s) in zip(axes, sets.items(), strict=True):
        rows = ["base", *PKPO]
        means = np.array([[estimate(s.pass_at(m, k)).mean for k in KS] for m in rows])
        behind = means - means.max(0)
        image = ax.imshow(behind, cmap="viridis", vmin=-0.15, vmax=0, aspect="auto")
        for i in range(len(rows)):
            for j in range(len(KS)):
                best = behind[i, j] == 0
                color = "black" if behind[i, j] > -0.06 else "white"
                weight = "bold" if best else "normal"
                text = f"{means[i, j]:.3f}"
                ax.text(j, i, text, ha="center", va="center", color=color, weight=weight, size=8)
        ax.set_xticks(range(len(KS)), KS)
        ax.set_yticks(range(len(rows)), ["before RL", *map(str, KS)])
        ax.set(xlabel="k_eval", ylabel="k_opt", title=design.PROBLEMS[name].title)
    figure.colorbar(image, ax=axes, label="pass@k_eval less the best of its column")
    return figure


def throughout(s: Set) -> Figure:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    entropy, diversity, solved = figure.subplots(1, 3)
    for i, method in enumerate(PKPO):
        label = f"k = {KS[i]}"
        _band(entropy, s.curve(method, "entropy"), f"C{i}", label)
        _band(diversity, s.evaluated(method, "distinct_wrong"), f"C{i}", label)
        _band(solved, s.curve(method, "cumulative_solve_rate"), f"C{i}", label)
    entropy.set(xlabel="step", ylabel="entropy in training, nats a token")
    diversity.set(xlabel="step", ylabel="distinct wrong / wrong, held out")
    solved.set(xlabel="step", ylabel="mazes solved so far, each seen once")
    entropy.legend(fontsize=8)
    return figure


def schedules(s: Set) -> Figure:
    names = ["k1", "k8", "anneal_third", "anneal_two_thirds", "explore"]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, k in zip(figure.subplots(1, 2), (1, 8), strict=True):
        for i, method in enumerate(names):
            label = design.METHODS[method].label
            _band(ax, s.evaluated(method, f"pass_at_{k}"), f"C{i}", label)
        ax.set(xlabel="step", ylabel=f"pass@{k}, held out")
    ax.legend(fontsize=7)
    return figure


def hard(data: Mapping[str, Any]) -> Figure:
    """Of the longest runs: their rate is constant, so the shorter ones are their beginning."""
    s = Set(data.get("longer", data))
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    names = {
        "cumulative_solve_rate": "cumulative solve rate",
        "pass_at_1": "pass@1, in training",
        "entropy": "entropy, nats a token",
    }
    for ax, (name, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for i, method in enumerate(s.data["methods"]):
            _band(ax, s.curve(method, name), f"C{i}", design.METHODS[method].label)
        ax.set(xlabel="step", ylabel=label)
    ax.legend(fontsize=8)
    return figure


def variance(measured: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(measured)
    for i, (policy, seeds) in enumerate(measured.items()):
        ratios = claims_of_methods.log_ratios(seeds)
        middle = np.exp([e.mean for e in ratios.values()])
        ends = np.exp([[e.low for e in ratios.values()], [e.high for e in ratios.values()]])
        at = np.arange(len(ratios)) + i * width
        ax.bar(at, middle, width, yerr=np.abs(ends - middle), capsize=2, label=policy)
    ax.set_xticks(np.arange(len(ratios)) + 0.4 - width / 2, list(ratios), rotation=20, ha="right")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(ylabel="variance / that of loo_minus_one", yscale="log")
    ax.legend(fontsize=8)
    return figure


def methods(s: Set) -> Figure:
    """Where each method ends, and three of them against time."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    ends, first, fourth = figure.subplots(1, 3)
    shown = [m for m in s.data["methods"] if not m.startswith("entropy_")]
    shown += [claims_of_methods.best_bonus(s)]
    for i, method in enumerate(shown):
        x, y = (estimate(s.pass_at(method, k)) for k in (1, 16))
        color, marker = f"C{i % 10}", "osD^"[i // 10]
        label = design.METHODS[method].label
        ends.errorbar(
            x.mean, y.mean, xerr=x.se, yerr=y.se, color=color, marker=marker, ls="", label=label
        )
    ends.set(xlabel="pass@1, held out", ylabel="pass@16, held out")
    figure.legend(*ends.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    timed = ["k1", "k4", "grpo", "b_analytical", "b_bootstrap", "maxrl"]
    for ax, k in ((first, 1), (fourth, 4)):
        for i, method in enumerate(timed):
            steps, values = s.curve(method, f"pass_at_{k}")
            seconds = np.array(steps) * s.step_seconds(method)
            _band(ax, (seconds.tolist(), values), f"C{i}", design.METHODS[method].label)
        ax.set(xlabel="seconds of training", ylabel=f"pass@{k} of training batches")
    fourth.legend(fontsize=7)
    return figure


def cost(measured: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.5, 3.4), layout="constrained")
    ax = figure.subplots()
    updates = {name: row["update"] for name, row in measured["variants"].items()}
    middle = [row["ratio"] for row in updates.values()]
    low, high = zip(*(row["interval"] for row in updates.values()), strict=True)
    spread = np.abs(np.array([low, high]) - middle)
    ax.errorbar(list(updates), middle, yerr=spread, marker="o", ls="", capsize=3)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(ylabel="time of an update / that at k = 1")
    return figure


def _band(ax: Axes, curve: tuple[Sequence[float], Any], color: str, label: str) -> None:
    """The mean over seeds, and one standard error to both sides."""
    x, seeds = curve
    values = np.array(seeds)
    mean = values.mean(0)
    ax.plot(x, mean, color=color, label=label)
    if len(values) > 1:
        se = values.std(0, ddof=1) / np.sqrt(len(values))
        ax.fill_between(x, mean - se, mean + se, color=color, alpha=0.2, linewidth=0)
