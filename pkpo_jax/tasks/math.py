r"""Grades word problems with one answer, given in \boxed{}: MATH, GSM8K, or the user's own file.

`math_answers` reads and compares the answers. It compares exactly, and counts steps instead of
seconds, so that a verdict does not depend on how busy the machine is. An answer has to be
evaluated: a formula copied from the question is no answer. `math_answers.comparison` states the
rules.
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

# The arithmetic of a comparison may take about this many seconds, counted as steps of a slow core.
# An answer that needs more is TIMEOUT on any machine; one too large to write out is so at once.
TIMEOUT, STEPS_A_SECOND = 1, 20_000
# Longer answers are wrong without being read, unless they equal the problem's own. No answer of
# MATH-500 has more than 63 characters.
LONGEST_ANSWER = 500


@dataclasses.dataclass(frozen=True)
class Math(Task):
    r"""Problems from a directory; the last box of a response has to hold the answer.

    Attributes:
      data_dir: a directory in one of two layouts. The first is the MATH release
        (github.com/hendrycks/math): {train,test}/<subject>/*.json, each with "problem" and
        "solution", whose last \boxed or \fbox holds the answer. The second, read if no such file
        exists, is {train,test}.jsonl, each line with "problem" or "question", and "answer" or
        "solution". An "answer" is used as it is, or from its last #### on, as GSM8K writes it;
        without an "answer", the last box of the solution is used.
    """

    data_dir: str = ""

    # This limits the tiny character policy, which rejects other characters; Gemma-2 reads any.
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
                f"your own {split}.jsonl; set task.data_dir to their directory."
            )
        # This reports a missing library before anything is compiled.
        math_answers.library()
        return [
            {"id": i, "prompt": f"{row['problem']}\n\n{INSTRUCTION}\n", **row}
            for i, row in enumerate(rows)
        ]

    def _exists(self) -> bool:
        return not self.data_dir or pathlib.Path(self.data_dir).expanduser().exists()

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """Returns 1 iff the last box is right; TIMEOUT if that takes too much arithmetic.

        It grades any text, in any thread, within about `TIMEOUT` seconds. If the problem has its
        text in "problem", the formulas of this text do not count as answers (see
        `math_answers.right`).
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
        r"""Extracts the last box, in a canonical form that all spellings of a value share.

        \frac12, 0.5 and \dfrac{1}{2} all become "1/2". This takes a few milliseconds at most.
        """
        answer = boxed(response)
        if not answer or len(answer) > LONGEST_ANSWER:
            return answer or None
        return math_answers.canonical(answer)

    def mode_of(self, problem: Problem, response: str) -> str:
        """Returns the problem's own answer, which every right answer equals in some form."""
        return problem["answer"]

    def mode_count(self, problem: Problem) -> int:
        """Returns 1, for a problem has one answer."""
        return 1

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the problem's own solution, which ends with its boxed answer, or only that."""
        return problem["solution"]

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the problem, its answer, and the first responses, as text."""
        drawing.draw_text(axes, problem["problem"], responses, rewards, problem["answer"])


def _entries(data_dir: str, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields the place (file and line) and the JSON text of each problem of a split."""
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
    """Returns the problem, answer and solution of a JSON text found at `place`."""
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
