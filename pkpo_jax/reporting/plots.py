"""Plots of a run, which are PNG files in DIR/plots."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pkpo_jax.reporting.labels import LABELS
from pkpo_jax.tasks import Task
from pkpo_jax.training.evaluation import Evaluation, k_of, reported_ks

_SOLVED = ("train/cumulative_solve_rate", "train/seen_solve_rate")


def learning_curves(path: pathlib.Path, lines: Sequence[Mapping[str, Any]], n: int) -> None:
    """Draws the metrics of a run against the step, with one panel for each of `panels`."""
    drawn = panels(lines, n)
    columns = min(3, max(1, len(drawn)))
    rows = max(1, -(-len(drawn) // columns))
    figure = Figure(figsize=(4.4 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(drawn) :]:
        ax.set_axis_off()
    for ax, (title, series) in zip(axes.flat, drawn.items(), strict=False):
        _draw_panel(ax, series)
        ax.set_title(title)
        ax.legend(fontsize=7)
    _save(figure, path)


def panels(
    lines: Sequence[Mapping[str, Any]], n: int
) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """Returns {title: {key: (step, value) pairs}} of a run's learning curves.

    Panels without information, such as a constant k, are left out.

    Args:
      lines: the lines of metrics.jsonl.
      n: the size of a training group.
    """
    training = [f"train/pass_at_{k}" for k in reported_ks(n) if k > 1]
    chosen = {
        "training batches": [*_SOLVED, "train/reward_mean", *training],
        "held-out problems": [key for key in _keys(lines) if key.startswith("eval/pass_at_")],
        "held-out problems, max@k": [k for k in _keys(lines) if k.startswith("eval/max_at_")],
        "held-out problems, pass^k": [k for k in _keys(lines) if k.startswith("eval/pass_hat_")],
        "held-out problems, distinct correct@k": [
            key for key in _keys(lines) if key.startswith("eval/distinct_correct_")
        ],
        f"held-out problems, {LABELS['mode_coverage']}": ["eval/mode_coverage"],
        LABELS["entropy"]: ["train/entropy", "eval/entropy"],
        "k": ["train/k"],
        f"{LABELS['dead_groups']}, truncated": ["train/dead_groups", "train/truncated"],
        "gradient norm": ["train/grad_norm"],
        "KL, nats": ["train/kl", "train/policy_kl"],
        "clipped tokens": ["train/clip_fraction"],
        "largest log-prob gap": ["train/log_prob_gap_max"],
        "seconds of a step": ["time/sample_s", "time/grade_s", "time/update_s"],
    }
    recorded = {}
    for title, keys in chosen.items():
        series = {key: points(lines, key) for key in keys}
        if title == "seconds of a step":
            # The first step waits for the compiler, and its time would dwarf the others.
            series = {key: [p for p in pairs if p[0] > 1] for key, pairs in series.items()}
        series = {key: pairs for key, pairs in series.items() if pairs}
        values = {value for pairs in series.values() for _, value in pairs}
        constant = len(values) == 1 and title == "k"
        unused = values == {0.0} and title in ("KL, nats", "clipped tokens")
        if values and not constant and not unused:
            recorded[title] = series
    return recorded


def points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, Any]]:
    """Returns (step, value) pairs of a metric, without null values.

    metrics.jsonl has null for values that were not finite.

    >>> points([{"step": 1, "a": 0.5}, {"step": 2, "a": None}, {"step": 3}], "a")
    [(1, 0.5)]
    """
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def panel(series: Mapping[str, Sequence[tuple[int, Any]]]) -> Figure:
    """Returns one of `panels` as a separate figure, without its title."""
    figure = Figure(figsize=(3.7, 3.0), layout="constrained")
    _draw_panel(figure.subplots(), series)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _draw_panel(ax: Axes, series: Mapping[str, Sequence[tuple[int, Any]]]) -> None:
    colors = {key: f"C{i}" for i, key in enumerate(series)}
    family = [key for key in series if k_of(key) or key == "train/reward_mean"]
    if len(family) > 1:
        # The colours go from dark to light as k grows.
        colors |= zip(family, colormaps["viridis"](np.linspace(0, 0.85, len(family))), strict=True)
    faint = 0.15 if len(series) > 3 else 0.3
    for key, pairs in series.items():
        steps, values = zip(*pairs, strict=True)
        if len(pairs) > 50:
            ax.plot(steps, values, color=colors[key], alpha=faint, linewidth=0.7)
            values = _smooth(values)
        marker = "o" if len(pairs) <= 20 else None
        dashes = "--" if key in _SOLVED else "-"
        ax.plot(steps, values, dashes, color=colors[key], marker=marker, markersize=4, label=key)
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if all(value >= 0.0 for pairs in series.values() for _, value in pairs):
        ax.set_ylim(bottom=0.0)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def pass_at_k(
    path: pathlib.Path,
    rows: Mapping[str, Mapping[int, float]],
    bands: Mapping[str, Mapping[int, tuple[float, float]]] | None = None,
    *,
    name: str = "pass@k",
    title: str = "held-out problems",
) -> None:
    """Draws pass@k against k, with a line for each row.

    Args:
      path: the file to write.
      rows: {label: {k: pass@k}}.
      bands: {label: {k: (low, high)}}, intervals to shade, or None.
      name: label of the y axis.
      title: title of the figure.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for label, values in rows.items():
        marker = "o" if len(values) <= 10 else None
        (line,) = ax.plot(list(values), list(values.values()), marker=marker, label=label)
        if bands and bands[label]:
            low, high = zip(*bands[label].values(), strict=True)
            ax.fill_between(list(bands[label]), low, high, color=line.get_color(), alpha=0.15, lw=0)
    ks = sorted({k for values in rows.values() for k in values if k in reported_ks(max(values))})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set(xlabel="k", ylabel=name, title=title)
    if ax.dataLim.y1 <= 1.0:  # max@k can exceed 1.
        ax.set_ylim(top=1.0)
    ax.grid(alpha=0.3)
    ax.legend()
    _save(figure, path)


def samples(path: pathlib.Path, task: Task, evaluation: Evaluation, count: int = 8) -> None:
    """Draws the first `count` problems of an evaluation with the responses sampled to them."""
    count = min(count, len(evaluation.problems))
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for i, ax in enumerate(axes.flat[:count]):
        task.draw(ax, evaluation.problems[i], evaluation.responses[i], evaluation.rewards[i])
        right = (evaluation.rewards[i] >= 1.0).sum()
        ax.set_title(f"{right} of {evaluation.rewards.shape[1]} right", fontsize=9)
    _save(figure, path)


def _keys(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Returns the exponential moving average, without a bias towards the first value."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight)
    return out


def _save(figure: Figure, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
