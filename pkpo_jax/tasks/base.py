"""What a task is: problems, their prompts, a grader, and demonstrations to warm up on."""

from __future__ import annotations

import enum
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pkpo_jax.tasks import drawing

Problem = Mapping[str, Any]


class Status(enum.IntEnum):
    """How the grading of a response ended.

    OK and WRONG_FORMAT are graded: the latter has no answer to grade, as a rule for a reward of 0.
    A TIMEOUT or ERROR has the reward that the task gave it; without one it is left out of its
    group, and counted.
    """

    OK = 0
    WRONG_FORMAT = 1
    TIMEOUT = 2
    ERROR = 3


class Grade(NamedTuple):
    """The reward of a response, right if at least 1, and how it was come by."""

    reward: float
    status: Status = Status.OK


def require(task: object, holds: object, name: str, expected: str) -> None:
    """Raises a ValueError that says what is expected of the option `name`, unless `holds`."""
    if not holds:
        raise ValueError(f"task.{name}={getattr(task, name)!r}; expected {expected}.")


class Task(Protocol):
    """A family of problems with a grader: `problems` and `grade` have to be written, the rest is
    there to be overridden.

    Options are the fields of a frozen dataclass, each with a default: they are the keys of the
    config beside task.name. It has to be picklable, for `grading.workers`.

    Attributes:
      alphabet: every character that a prompt or an answer may hold, for character tokenizers.
    """

    alphabet: str = string.printable

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of the split "train" or "test", random access; prepared on first use.

        A problem has at least "id", a number or a string of its own within the split, and "prompt",
        a string.
        """
        ...

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """The reward of a response, right if at least 1; a string of any content is graded.

        A plain number is OK, or WRONG_FORMAT where `answer` finds none. One that is not finite
        marks a response that could not be graded: it is left out of its group, and counted.
        """
        ...

    def answer(self, response: str) -> str | None:
        """What of a response is its answer: two with the same answer vote alike. None for none.

        Called in the run's own process: it has to be quick on any string.
        """
        return response.strip() or None

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """A response to learn from in the warm start; the problem's "answer" if not overridden."""
        if "answer" not in problem:
            raise ValueError(
                f"{type(self).__name__} has no demonstrations, nor its problems an answer; set "
                "warm_start.steps=0, or write demonstration()."
            )
        return problem["answer"]

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Shows a problem and responses to it, with their rewards, on matplotlib axes."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards)
