"""Figures of a run, PNG files in DIR/plots."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pkpo_jax.tasks import Task
from pkpo_jax.training.evaluation import Evaluation, reported_ks


def learning_curves(path: pathlib.Path, lines: Sequence[dict[str, Any]], n: int) -> None:
    """Reward, pass@k, entropy, response length and cumulative solve rate against the step."""
    panels = {
        "training batches": ["train/reward_mean", "train/cumulative_solve_rate"]
        + [f"train/pass_at_{k}" for k in reported_ks(n) if k > 1],
        "held-out problems": [key for key in _keys(lines) if key.startswith("eval/pass_at_")],
        "entropy of a token, nats": ["train/entropy", "eval/entropy"],
        "k": ["train/k"],
        "groups without gradient, truncated": ["train/dead_groups", "train/truncated"],
        "gradient norm": ["train/grad_norm"],
    }
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, (title, keys) in zip(axes.flat, panels.items(), strict=True):
        for i, key in enumerate(keys):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            color = f"C{i}"
            if len(points) > 50:
                ax.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
                values = _smooth(values)
            marker = "o" if len(points) <= 20 else None
            ax.plot(steps, values, color=color, marker=marker, label=key)
        ax.set(title=title, xlabel="step")
        ax.set_ylim(bottom=0.0)
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=7)
    _save(figure, path)


def pass_at_k(path: pathlib.Path, rows: Mapping[str, Mapping[int, float]]) -> None:
    """pass@k against k on held-out problems, one line a row: {label: {k: pass@k}}."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for label, values in rows.items():
        ax.plot(list(values), list(values.values()), marker="o", label=label)
    ks = sorted({k for values in rows.values() for k in values})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set(xlabel="k", ylabel="pass@k", title="held-out problems", ylim=(None, 1.0))
    ax.grid(alpha=0.3)
    ax.legend()
    _save(figure, path)


def samples(path: pathlib.Path, task: Task, evaluation: Evaluation, count: int = 8) -> None:
    """The first problems of an evaluation with the responses sampled to them."""
    count = min(count, len(evaluation.problems))
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for i, ax in enumerate(axes.flat[:count]):
        task.draw(ax, evaluation.problems[i], evaluation.responses[i])
        right = (evaluation.rewards[i] >= 1.0).sum()
        ax.set_title(f"{right} of {evaluation.rewards.shape[1]} right", fontsize=9)
    _save(figure, path)


def _keys(lines: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential moving average, without bias towards its first value."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight)
    return out


def _save(figure: Figure, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
