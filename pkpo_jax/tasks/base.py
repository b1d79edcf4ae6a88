"""What a task is: problems, their prompts, a grader, and demonstrations to warm up on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Problem = Mapping[str, Any]


class Task(Protocol):
    """A family of problems with a grader.

    Attributes:
      alphabet: every character that a prompt or an answer may hold, for character tokenizers.
    """

    alphabet: str

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of the split "train" or "test", random access; prepared on first use.

        A problem has at least "id", its number within the split, and "prompt".
        """
        ...

    def grade(self, problem: Problem, response: str) -> float:
        """The reward of a response, right if at least 1; a string of any content is graded.

        A reward that is not finite marks a response that could not be graded: it is left out of
        its group, and counted.
        """
        ...

    def answer(self, response: str) -> str | None:
        """What of a response is its answer: two with the same answer vote alike. None for none."""
        ...

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """A response to learn from in the warm start, of mixed quality."""
        ...

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Shows a problem and responses to it, with their rewards, on matplotlib axes."""
        ...
