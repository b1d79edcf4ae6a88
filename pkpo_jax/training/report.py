"""What a run leaves at its end: plots, and a table of pass@k before and after."""

from __future__ import annotations

import pathlib
from typing import Any

import rich.console
import rich.table

from pkpo_jax.tasks import Task
from pkpo_jax.training import metrics, plots
from pkpo_jax.training.evaluation import Evaluation


def write(workdir: pathlib.Path, task: Task, last: Evaluation, *, n: int) -> None:
    """Writes DIR/plots, and prints the table; n is the size of a training group."""
    lines = metrics.read(workdir)
    rows = before_and_after(lines)
    plots.learning_curves(workdir / "plots" / "learning_curves.png", lines, n)
    plots.pass_at_k(workdir / "plots" / "pass_at_k.png", rows)
    plots.samples(workdir / "plots" / "samples.png", task, last)
    title = (
        f"pass@k on {len(last.problems)} held-out problems, {last.rewards.shape[1]} samples each"
    )
    table = rich.table.Table("", title=title)
    for k in next(iter(rows.values())):
        table.add_column(f"@{k}", justify="right")
    for label, values in rows.items():
        table.add_row(label, *(f"{value:.3f}" for value in values.values()))
    console = rich.console.Console()
    console.print(table)
    console.print(f"metrics, plots and checkpoints are in {workdir}", highlight=False)


def before_and_after(lines: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{label: {k: pass@k}} of a run's first and last evaluation."""
    evaluations = [line for line in lines if "eval/pass_at_1" in line]
    return {
        "before RL" if line["step"] == 0 else f"after step {line['step']}": pass_at_k(line)
        for line in (evaluations[0], evaluations[-1])
    }


def pass_at_k(line: dict[str, Any]) -> dict[int, float]:
    """{k: pass@k} of a metrics line that holds an evaluation."""
    prefix = "eval/pass_at_"
    return {int(key[len(prefix) :]): v for key, v in line.items() if key.startswith(prefix)}
