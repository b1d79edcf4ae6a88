"""The protocol of a task: problems with their prompts, a grader, and demonstrations."""

from __future__ import annotations

import ast
import enum
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pkpo_jax.tasks import drawing

Problem = Mapping[str, Any]


class Status(enum.IntEnum):
    """The outcome of grading a response.

    OK and WRONG_FORMAT are graded. A response in the WRONG_FORMAT has no answer to grade, and
    usually a reward of 0. A TIMEOUT or ERROR has the reward that the task gave it; without a reward
    it is left out of its group, and counted.
    """

    OK = 0
    WRONG_FORMAT = 1
    TIMEOUT = 2
    ERROR = 3


class Grade(NamedTuple):
    """The reward of a response, which is right if its reward is at least 1, and its status."""

    reward: float
    status: Status = Status.OK


def require(task: object, holds: object, name: str, expected: str) -> None:
    """Raises a ValueError that states what the option `name` should be, unless `holds`."""
    if not holds:
        raise ValueError(f"task.{name}={getattr(task, name)!r}; expected {expected}.")


def literals(options: str) -> dict[str, Any] | None:
    """Parses "name=value, name=value" with Python literals as values; None if that fails."""
    try:
        call = ast.parse(f"f({options})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            return None
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return values if "None" not in values else None


class Task(Protocol):
    """A family of problems with a grader.

    A task has to define `problems` and `grade`; it may override the rest. Its options are the
    fields of a frozen dataclass, each with a default: they become the config keys beside task.name.
    A task has to be picklable for `grading.workers`.

    Attributes:
      alphabet: every character that a prompt or an answer may contain, for character tokenizers.
    """

    alphabet: str = string.printable

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of the split "train" or "test", which are prepared on first use.

        The sequence supports random access. A problem has at least "id", a number or string that is
        unique within the split, and "prompt", a string.
        """
        ...

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """Returns the reward of a response, which is right if its reward is at least 1.

        It has to accept a string of any content. A plain number means that the status is OK, or
        WRONG_FORMAT if `answer` returns None. A number that is not finite marks a response that
        could not be graded: it is left out of its group, and counted.
        """
        ...

    def answer(self, response: str) -> str | None:
        """Extracts the final answer from a response, or returns None if it has none.

        Responses with equal answers count as votes for one answer. The run's own process calls
        this, so it has to be quick on any string.
        """
        return response.strip() or None

    def mode_of(self, problem: Problem, response: str) -> str | None:
        """Names the mode of a right response: which of the problem's solutions it is.

        Right responses with equal modes count as one solution in `eval/distinct_correct_<k>`, and
        as equal answers for the estimators that look at which answers are equal. The default is
        `answer`. The run's own process calls this for right responses alone, so it has to be quick.
        """
        return self.answer(response)

    def mode_count(self, problem: Problem) -> int | None:
        """Counts the modes of all right responses to a problem, or returns None if it is unknown.

        The number has to be exact, for `eval/mode_coverage` divides by it. The default is None. The
        run's own process calls this for each held-out problem at each evaluation.
        """
        return None

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns a response for the SFT warm start; by default the problem's "answer".

        Right ones also serve as the worked examples of `prompt.shots`.
        """
        if "answer" not in problem:
            raise ValueError(
                f"{type(self).__name__} has no demonstrations, nor its problems an answer; set "
                "warm_start.steps=0 and prompt.shots=0, or define demonstration()."
            )
        return problem["answer"]

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws a problem and responses to it, with their rewards, on matplotlib axes."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards)
