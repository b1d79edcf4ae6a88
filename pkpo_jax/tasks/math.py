r"""Grades word problems with one answer, given in \boxed{}: MATH, GSM8K, or a file of one's own.

Answers are read and compared by `math_answers`: exactly, and in steps that are counted instead of
seconds, so that a verdict does not depend on how busy the machine is. An answer has to be
evaluated: a formula of the question is none. The rules are those of `math_answers.comparison`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import string
from collections.abc import Iterator, Sequence
from typing import Any

from pkpo_jax.tasks import drawing, math_answers
from pkpo_jax.tasks.base import Grade, Problem, Status, Task, require
from pkpo_jax.tasks.boxed import INSTRUCTION, boxed

# Seconds, about, that the arithmetic of a comparison may take, counted as steps of a slow core: an
# answer that needs more is TIMEOUT on any machine, as one too large to write out is at once.
TIMEOUT, STEPS_A_SECOND = 1, 20_000
# Longer answers are wrong unread, but for the problem's own text; in MATH-500 none takes more than
# 63 characters.
LONGEST_ANSWER = 500


@dataclasses.dataclass(frozen=True)
class Math(Task):
    r"""Reads problems from a directory; the last box of a response has to hold the answer.

    Attributes:
      data_dir: a directory in one of two layouts. The MATH release (github.com/hendrycks/math):
        {train,test}/<subject>/*.json, each with "problem" and "solution", whose last \boxed or
        \fbox holds the answer. Or, where no such file is: {train,test}.jsonl, each line with
        "problem" or "question", and "answer" or "solution". An answer is used as it is, or from
        its last #### on, as GSM8K writes it; without one, the solution's last box is.
    """

    data_dir: str = ""

    # For the tiny character policy, which raises on any other character; Gemma-2 reads them all.
    alphabet = string.printable

    def __post_init__(self) -> None:
        require(self, isinstance(self.data_dir, str), "data_dir", "the path of a directory")

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of "train" or "test", in the order of their files' names."""
        try:
            rows = [_row(*entry) for entry in _entries(self.data_dir, split)]
        except OSError as e:
            raise ValueError(f"task.data_dir={self.data_dir!r} cannot be read: {e}") from None
        if not rows:
            wrong = f"holds no {split} problems" if self._exists() else "does not exist"
            raise ValueError(
                f"task.data_dir={self.data_dir!r} {wrong}; expected "
                f"{split}/<subject>/*.json (the MATH release, see github.com/hendrycks/math) or "
                f"a {split}.jsonl of your own; set task.data_dir to their directory."
            )
        # So that a missing library is told before anything is compiled.
        math_answers.library()
        return [
            {"id": i, "prompt": f"{row['problem']}\n\n{INSTRUCTION}\n", **row}
            for i, row in enumerate(rows)
        ]

    def _exists(self) -> bool:
        return not self.data_dir or pathlib.Path(self.data_dir).expanduser().exists()

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """Returns 1 iff the last box is right; TIMEOUT if that takes too much arithmetic.

        Any text is graded, in any thread, within about `TIMEOUT` seconds. Where the problem has its
        text in "problem", its formulas are no answers (see `math_answers.right`).
        """
        answer, own = boxed(response), problem["answer"]
        if answer == own:
            return 1.0
        if not answer or len(answer) > LONGEST_ANSWER:
            return 0.0
        question = problem.get("problem", "")
        try:
            return float(
                math_answers.right(own, answer, int(TIMEOUT * STEPS_A_SECOND), question=question)
            )
        except math_answers.TooLarge:
            return Grade(0.0, Status.TIMEOUT)

    def answer(self, response: str) -> str | None:
        r"""Extracts the last box in a canonical form, which spellings of one value share.

        \frac12, 0.5 and \dfrac{1}{2} are all "1/2". Takes some milliseconds at most.
        """
        answer = boxed(response)
        if not answer or len(answer) > LONGEST_ANSWER:
            return answer or None
        return math_answers.canonical(answer)

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the problem's own solution, which ends on its boxed answer, or that alone."""
        return problem["solution"]

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the problem, its answer, and the first responses, as text."""
        drawing.draw_text(axes, problem["problem"], responses, rewards, problem["answer"])


def _entries(data_dir: str, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the JSON texts of a split's problems, each behind the place where it stands."""
    if not data_dir:
        return
    directory = pathlib.Path(data_dir).expanduser()
    files = sorted((directory / split).glob("*/*.json"))
    for path in files:
        yield str(path), path.read_bytes()
    path = directory / f"{split}.jsonl"
    if not files and path.exists():
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", line


def _row(place: str, text: bytes) -> dict[str, str]:
    """Returns the problem, answer and solution of a JSON text."""
    try:
        row = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{place}: not JSON ({e}).") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {type(row).__name__}; expected an object.")
    problem = row.get("problem", row.get("question"))
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f'{place}: no text in "problem" or "question".')
    solution = row.get("solution")
    solution = solution.strip() if isinstance(solution, str) else ""
    answer = row.get("answer")
    if isinstance(answer, str) and "####" in answer:
        solution, _, answer = (part.strip() for part in answer.rpartition("####"))
    elif isinstance(answer, str | int | float) and not isinstance(answer, bool):
        answer = str(answer).strip()
    else:
        answer = boxed(solution)
    if not answer:
        raise ValueError(f'{place}: no "answer", and no \\boxed{{}} or \\fbox{{}} in a "solution".')
    if boxed(solution) is None:
        solution = f"{solution}\n\\boxed{{{answer}}}".lstrip()
    return {"problem": problem, "answer": answer, "solution": solution}
