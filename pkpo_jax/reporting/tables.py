"""Tables of evaluations and samples for a terminal."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np
import rich.box
import rich.console
import rich.panel
import rich.table
from rich.text import Text

from pkpo_jax.reporting.labels import LABELS
from pkpo_jax.tasks.drawing import printable
from pkpo_jax.training import evaluation
from pkpo_jax.training.evaluation import Evaluation


def figures(results: Mapping[str, Evaluation], split: str) -> None:
    """Prints the metrics of each evaluation with their intervals.

    Args:
      results: the evaluations by the labels of their columns.
      split: name of the problems' split, for the title.
    """
    table = rich.table.Table(
        "",
        title=f"{split} problems, with 95% intervals over problems",
        box=rich.box.SIMPLE_HEAD,
        title_style="",
        title_justify="left",
    )
    columns = []
    for label, one in results.items():
        count, n = one.rewards.shape
        table.add_column(Text(f"{label}\n{count} x {n} samples"), justify="right")
        intervals = evaluation.intervals(one.terms)
        # Intervals exist for every k up to n, but only the k of the metrics are shown.
        shown = {name for name in one.metrics if evaluation.k_of(name)}
        columns.append(
            {
                name: f"{value:.3f} ({low:.3f}-{high:.3f})"
                for name, value in evaluation.figures(one.terms).items()
                for low, high in [intervals[name]]
                if name in shown or name in LABELS
            }
        )
    ks = sorted({k for column in columns for name in column if (k := evaluation.k_of(name))})
    kinds = {x: evaluation.AT_K[x] for x in evaluation.informative_kinds(list(results.values()))}
    names = {f"{x}_{k}": f"{notation[:-1]}{k}" for x, notation in kinds.items() for k in ks}
    names |= LABELS
    for name, shown_as in names.items():
        if any(name in column for column in columns):
            table.add_row(shown_as, *(Text(column.get(name, "-")) for column in columns))
    console = rich.console.Console(highlight=False)
    console.print(table)
    for label, one in results.items():
        if left_out := evaluation.left_out(one.rewards):
            console.print(
                f"{label}: {left_out} of {len(one.problems)} problems are left out because none "
                "of their responses could be graded.",
                markup=False,
            )


def samples(
    result: Evaluation, prompts: Sequence[str], weights: Mapping[int, np.ndarray], split: str
) -> None:
    """Prints each problem, and its responses with their rewards and reward weights.

    Equal responses share a row, which shows the weight of one of them. Estimators that sample
    groups can give them different weights, of which it shows the mean.

    Args:
      result: the evaluation that holds the problems and responses.
      prompts: the text that the policy read for each problem.
      weights: reward weights [P, n] by k.
      split: name of the problems' split, for the titles.
    """
    console = rich.console.Console(highlight=False)
    for i, problem in enumerate(result.problems):
        rewards = result.rewards[i]
        right = int((rewards >= 1.0).sum())
        title = f"{split} problem {problem['id']}: {right} of {len(rewards)} right"
        prompt = Text(printable(prompts[i].strip("\n")), overflow="fold")
        console.print(rich.panel.Panel(prompt, title=Text(title), title_align="left"))
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("times", justify="right", no_wrap=True)
        for k in weights:
            table.add_column(f"weight\nk={k}", justify="right", no_wrap=True)
        table.add_column("response", overflow="fold")
        for (reward, response), places in _merged(rewards, result.responses[i]):
            graded = math.isfinite(reward)
            cells = [_signed(weights[k][i, places].mean()) if graded else "-" for k in weights]
            text = printable(response, newline="\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
            table.add_row(
                f"{reward:.3g}" if graded else "invalid",
                str(len(places)),
                *cells,
                Text(text, overflow="fold") if text else Text("(empty)", style="dim"),
            )
        console.print(table)


def _merged(
    rewards: np.ndarray, responses: Sequence[str]
) -> list[tuple[tuple[float, str], list[int]]]:
    """Returns ((reward, response), places) of equal responses, best first, ungraded ones last."""
    groups = collections.defaultdict(list)
    for i, (reward, response) in enumerate(zip(rewards.tolist(), responses, strict=True)):
        # NaN does not equal itself, so -inf stands for it as a key.
        groups[reward if math.isfinite(reward) else -math.inf, response].append(i)
    return sorted(groups.items(), key=lambda group: (-group[0][0], -len(group[1])))


def _signed(weight: float) -> str:
    return f"{weight:+.4f}" if weight else "0"
