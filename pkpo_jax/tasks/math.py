r"""Word problems with one answer, given in \boxed{}: MATH, GSM8K, or a file of one's own.

Answers are compared by math-verify (`pip install -e ".[math]"`), which reads LaTeX into sympy: an
answer is right if it equals the problem's own up to form, as 0.5 equals \frac{1}{2}. Of an equation
it reads the last side, as in x = 7, and so 8 = 7 is right where 7 is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import random
import re
import string
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pkpo_jax.tasks import drawing
from pkpo_jax.tasks.base import Grade, Problem, Status, Task

INSTRUCTION = r"Reason step by step, and put your final answer within \boxed{}."

# An answer is compared for at most this many seconds; reading it may take as many again, and so may
# the problem's own: less in all than the default of grading.timeout.
TIMEOUT = 3
# Of a response longer than the first, only the end is read: as many characters as the second says.
LONG_RESPONSE, END = 20_000, 2_000
# Longer answers are wrong unread; in 100 problems of MATH none takes more than 23 characters.
LONGEST_ANSWER = 500


@dataclasses.dataclass(frozen=True)
class Math(Task):
    r"""Problems kept in a directory, right if the last box of a response holds their answer.

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
        if not isinstance(self.data_dir, str):
            raise ValueError(f"task.data_dir={self.data_dir!r}; expected the path of a directory.")

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of the split "train" or "test", in the order of their files' names."""
        try:
            rows = [_row(*entry) for entry in _entries(self.data_dir, split)]
        except OSError as e:
            raise ValueError(f"task.data_dir={self.data_dir!r} cannot be read: {e}") from None
        if not rows:
            raise ValueError(
                f"task.data_dir={self.data_dir!r} holds no {split} problems; expected "
                f"{split}/<subject>/*.json (the MATH release, see github.com/hendrycks/math) or "
                f"a {split}.jsonl of your own; set task.data_dir to their directory."
            )
        # So that a missing library is told before anything is compiled.
        _math_verify()
        return [
            {"id": i, "prompt": f"{row['problem']}\n\n{INSTRUCTION}\n", **row}
            for i, row in enumerate(rows)
        ]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a worker, before the clock of its first answer runs.
        self.__dict__.update(state)
        _math_verify()

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """1 iff the last box of the response equals the answer; whatever goes wrong gives 0.

        In the main thread it takes at most about 3 times `TIMEOUT`. In others there is no limit,
        for math-verify's is by SIGALRM, and sympy may well try to write out 10^{10^{10}}.
        """
        answer = self.answer(response)
        if answer == problem["answer"]:
            return 1.0
        if not answer or len(answer) > LONGEST_ANSWER:
            return 0.0
        library = _math_verify()
        try:
            # The gold answer is first: verify is not symmetric.
            right = library.verify(
                _gold(problem["answer"]), _parse(answer), timeout_seconds=_timeout()
            )
        # It is no Exception, so that sympy's handlers do not swallow it.
        except library.errors.TimeoutException:
            return Grade(0.0, Status.TIMEOUT)
        except Exception:
            return 0.0
        return float(right)

    def answer(self, response: str) -> str | None:
        """What the last box of the response holds."""
        return boxed(response[-END:] if len(response) > LONG_RESPONSE else response)

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """The problem's own solution, which ends on its boxed answer; nothing but that if none."""
        return problem["solution"]

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """The problem, its answer, and the first responses, as text."""
        drawing.draw_text(axes, problem["problem"], responses, rewards, problem["answer"])


_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed or \fbox; None without one, or if its brace never closes.

    A box without braces reaches to the next dollar, as in the MATH release's own code.

    >>> boxed(r"not \boxed{1} but \boxed{\frac{1}{2}}"), boxed(r"$\fbox 3$."), boxed(r"\boxed{4")
    ('\\frac{1}{2}', '3', None)
    """
    *_, box = None, *_BOX.finditer(text)
    if box is None:
        return None
    rest, depth = text[box.end() :], 0
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    for brace in _BRACE.finditer(rest):
        # Escaped braces are letters of the answer: they match as pairs with their backslash.
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return rest[1 : brace.start()].strip()
    return None


def _entries(data_dir: str, split: str) -> Iterator[tuple[str, bytes]]:
    """The JSON texts of a split's problems, each behind the place where it stands."""
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
    """The problem, answer and solution of a JSON text."""
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


@functools.cache
def _math_verify() -> Any:
    """The library, imported here, for it takes a second and few tasks need it."""
    try:
        import math_verify
    except ImportError as e:
        raise ImportError(
            f'the task math grades with math-verify ({e}); pip install -e ".[math]"'
        ) from e
    return math_verify


@functools.lru_cache(maxsize=65_536)
def _gold(answer: str) -> list[Any]:
    return _parse(answer)


def _parse(answer: str) -> list[Any]:
    """What `verify` compares: a sympy expression, if the answer can be read, and its text.

    Raises on a timeout, so that no cache keeps what a busy machine did not read in time.
    """
    library = _math_verify()
    # LaTeX only, and the whole box: by default, a number is picked out of what cannot be read.
    return library.parse(
        f"\\boxed{{{answer}}}",
        [library.LatexExtractionConfig(boxed_match_priority=0)],
        extraction_mode="first_match",
        parsing_timeout=_timeout(),
        raise_on_error=True,
    )


def _timeout() -> int | None:
    """math-verify's timeouts are by SIGALRM, which only the main thread may set; None is none."""
    return TIMEOUT if threading.current_thread() is threading.main_thread() else None
