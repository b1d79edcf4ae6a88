"""Files of sampled responses for people to read: DIR/samples/<step>.txt."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from pkpo_jax.tasks.drawing import printable


def write(
    path: pathlib.Path,
    title: str,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    rewards: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Writes prompts and, below each, its responses with their rewards and reward weights [P, n].

    The responses of a prompt are ordered by reward, the best first.
    """
    lines = [title]
    for number, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        lines += ["", "-" * 40, *printable(prompt).splitlines(), "", "  reward   weight  response"]
        # Responses that could not be graded come last.
        order = np.argsort(-np.nan_to_num(rewards[number], nan=-np.inf), kind="stable")
        for i in order:
            first, *rest = printable(group[i]).splitlines() or [""]
            lines.append(f"{rewards[number, i]:8.3f} {weights[number, i]:+8.4f}  {first}")
            lines += [f"{'':19}{line}" for line in rest]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
