"""Evaluations and samples as tables for a terminal."""

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

from pkpo_jax.tasks.drawing import printable
from pkpo_jax.training import evaluation
from pkpo_jax.training.evaluation import Evaluation

_NAMES = {
    "reward_mean": "mean reward",
    "majority": "majority vote",
    "distinct_answers": "distinct answers",
    "distinct_wrong": "distinct wrong answers",
    "entropy": "entropy of a token, nats",
    "truncated": "responses cut off",
    "response_length": "tokens of a response",
    "wrong_format": "responses without an answer",
    "timeout": "out of time in grading",
    "error": "errors in grading",
    "invalid": "responses not graded",
}


def figures(found: Mapping[str, Evaluation], split: str) -> None:
    """Prints each figure of each evaluation, with its interval."""
    table = rich.table.Table(
        "",
        title=f"{split} problems, with 95% intervals over problems",
        box=rich.box.SIMPLE_HEAD,
        title_style="",
        title_justify="left",
    )
    columns = []
    for label, one in found.items():
        count, n = one.rewards.shape
        table.add_column(Text(f"{label}\n{count} x {n} samples"), justify="right")
        intervals = evaluation.intervals(one.terms)
        # Only the k that metrics show, for there are n of them.
        shown = {name for name in one.metrics if evaluation.k_of(name)}
        columns.append(
            {
                name: f"{value:.3f} ({low:.3f}-{high:.3f})"
                for name, value in evaluation.figures(one.terms).items()
                for low, high in [intervals[name]]
                if name in shown or name in _NAMES
            }
        )
    ks = sorted({k for column in columns for name in column if (k := evaluation.k_of(name))})
    at_k = evaluation.AT_K.items()
    names = {f"{kind}_{k}": f"{shown[:-1]}{k}" for kind, shown in at_k for k in ks} | _NAMES
    for name, shown_as in names.items():
        if any(name in column for column in columns):
            table.add_row(shown_as, *(Text(column.get(name, "-")) for column in columns))
    console = rich.console.Console(highlight=False)
    console.print(table)
    for label, one in found.items():
        if left_out := evaluation.left_out(one.rewards):
            console.print(
                f"{label}: {left_out} of {len(one.problems)} problems are left out, for none of "
                "their responses could be graded.",
                markup=False,
            )


def samples(found: Evaluation, weights: Mapping[int, np.ndarray], split: str) -> None:
    """Prints each problem, and its responses with their rewards and, for every k, weights [P, n].

    Equal responses are one row: the weight is of each, or their mean where groups are drawn.
    """
    console = rich.console.Console(highlight=False)
    for i, problem in enumerate(found.problems):
        rewards = found.rewards[i]
        right = int((rewards >= 1.0).sum())
        title = f"{split} problem {problem['id']}: {right} of {len(rewards)} right"
        prompt = Text(printable(problem["prompt"].strip("\n")), overflow="fold")
        console.print(rich.panel.Panel(prompt, title=Text(title), title_align="left"))
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("times", justify="right", no_wrap=True)
        for k in weights:
            table.add_column(f"weight\nk={k}", justify="right", no_wrap=True)
        table.add_column("response", overflow="fold")
        for (reward, response), those in _merged(rewards, found.responses[i]):
            graded = math.isfinite(reward)
            cells = [_signed(weights[k][i, those].mean()) if graded else "-" for k in weights]
            text = printable(response, newline="\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
            table.add_row(
                f"{reward:.3g}" if graded else "invalid",
                str(len(those)),
                *cells,
                Text(text, overflow="fold") if text else Text("(empty)", style="dim"),
            )
        console.print(table)


def _merged(
    rewards: np.ndarray, responses: Sequence[str]
) -> list[tuple[tuple[float, str], list[int]]]:
    """Equal responses of equal reward and where they stand: the best first, ungraded ones last."""
    groups = collections.defaultdict(list)
    for i, (reward, response) in enumerate(zip(rewards.tolist(), responses, strict=True)):
        # No two NaN are equal.
        groups[reward if math.isfinite(reward) else -math.inf, response].append(i)
    return sorted(groups.items(), key=lambda group: (-group[0][0], -len(group[1])))


def _signed(weight: float) -> str:
    return f"{weight:+.4f}" if weight else "0"
