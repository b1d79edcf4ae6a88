"""Shows problems and responses as text, on matplotlib axes or in a printable form."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

# The figure shows this many characters from the start of a problem and the end of a response.
_PROBLEM, _RESPONSE = 600, 240
_RESPONSES = 3


def draw_text(
    axes: Any,
    problem: str,
    responses: Sequence[str],
    rewards: Sequence[float],
    answer: str | None = None,
) -> None:
    """Draws a problem, its answer if given, and the rewards and ends of the first responses."""
    ends = [
        r if len(r) <= _RESPONSE else "\N{HORIZONTAL ELLIPSIS}" + r[-_RESPONSE:]
        for r in responses[:_RESPONSES]
    ]
    ends = [f"[{reward:g}] {end}" for reward, end in zip(rewards, ends, strict=False)]
    answers = [] if answer is None else [f"Answer: {answer[:200]}"]
    paragraphs = [problem[:_PROBLEM], *answers, *ends]
    text = "\n\n".join(
        "\n".join(textwrap.fill(printable(line), 60) for line in paragraph.split("\n"))
        for paragraph in paragraphs
    )
    # Dollars are shown literally, since matplotlib can seldom parse sampled LaTeX.
    axes.text(
        0.02,
        0.98,
        text,
        parse_math=False,
        usetex=False,
        size=5,
        va="top",
        transform=axes.transAxes,
        clip_on=True,
    )
    axes.set(xticks=[], yticks=[])


def printable(text: str, newline: str = "\n") -> str:
    r"""Returns `text` with unprintable characters as escapes such as \x1b, and its line ends as
    `newline`.

    Terminals, fonts and HTML each fail on some of the characters that a policy can write.

    >>> print(printable("a\tb"))
    a\tb
    """
    if text.isprintable():
        return text
    return "".join(newline if c == "\n" else c if c.isprintable() else ascii(c)[1:-1] for c in text)
