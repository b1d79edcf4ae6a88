r"""Generated arithmetic, which needs no files: `12+7=` is answered by `19`.

With `instruct`, for models that know English, the problem is a question, and the answer stands in a
\boxed{} as in the task math.
"""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections.abc import Sequence
from typing import Any

from pkpo_jax.tasks import drawing
from pkpo_jax.tasks.base import Problem, Task, require
from pkpo_jax.tasks.boxed import INSTRUCTION, boxed

# An integer has one spelling here, so that answers are compared as text: no int(), which takes
# underscores and other alphabets' digits, and raises beyond 4300 of them.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


@dataclasses.dataclass(frozen=True)
class Arithmetic(Task):
    """Distinct problems drawn at random, right if the response is the integer and nothing else.

    Attributes:
      operators: those that a problem is drawn from: some of +-*, with the usual precedence.
      digits: operands are uniform among the integers from 0 that have at most so many.
      terms: operands of a problem.
      train_problems, test_problems: sizes of the splits. No problem is drawn twice for a split, and
        none of the test split stands in the train split.
      seed: of the problems; independent of a run's seed.
      demonstration_noise: a demonstration is the answer with each digit replaced by a random one of
        1 to 9 with a probability drawn from these.
      instruct: whether the problem is put as a question, to be answered in a box.
    """

    operators: str = "+-"
    digits: int = 2
    terms: int = 2
    train_problems: int = 8192
    test_problems: int = 512
    seed: int = 0
    demonstration_noise: tuple[float, ...] = (0.0, 0.3, 1.0)
    instruct: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            self.operators
            and set(self.operators) <= set("+-*")
            and len(set(self.operators)) == len(self.operators),
            "operators",
            "one or more of +-*, each once",
        )
        require(self, self.digits >= 1, "digits", "at least 1")
        require(self, self.terms >= 2, "terms", "at least 2")
        require(self, self.train_problems >= 1, "train_problems", "at least 1")
        require(self, self.test_problems >= 1, "test_problems", "at least 1")
        require(
            self,
            self.demonstration_noise and all(0 <= p <= 1 for p in self.demonstration_noise),
            "demonstration_noise",
            "probabilities",
        )
        require(
            self,
            self.train_problems + self.test_problems <= self._distinct(),
            "train_problems",
            f"at most {self._distinct() - self.test_problems}, for there are {self._distinct()} "
            f"distinct problems, of which test_problems={self.test_problems} are held out; raise "
            "task.digits or task.terms",
        )
        require(
            self,
            self._distinct() <= sys.maxsize,
            "digits",
            "fewer, or fewer task.terms: less than 2^63",
        )

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of the split "train" or "test"."""
        distinct = range(self._distinct())
        numbers = random.Random(f"{self.seed} test").sample(distinct, self.test_problems)
        if split == "train":
            held_out = set(numbers)
            drawn = random.Random(f"{self.seed} train").sample(
                distinct, self.train_problems + len(held_out)
            )
            numbers = [n for n in drawn if n not in held_out][: self.train_problems]
        return [{"id": i, **self._problem(number)} for i, number in enumerate(numbers)]

    def grade(self, problem: Problem, response: str) -> float:
        """1 iff the answer is the integer in its one decimal spelling: no +7, 07, 7.0 or -0."""
        return float(self.answer(response) == problem["answer"])

    def answer(self, response: str) -> str | None:
        """The integer that is all of the response, or of its last box; None for anything else."""
        text = (boxed(response) or "").replace(",", "") if self.instruct else response
        return text if _INTEGER.fullmatch(text) else None

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """The answer, some of its digits replaced at random."""
        noise = rng.choice(self.demonstration_noise)
        # No 0, which might come first: noisy demonstrations are wrong, but well formed.
        text = "".join(
            rng.choice("123456789") if c != "-" and rng.random() < noise else c
            for c in problem["answer"]
        )
        return f"\\boxed{{{text}}}" if self.instruct else text

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """The problem, its answer, and the first responses, as text."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards, problem["answer"])

    def _distinct(self) -> int:
        return len(self.operators) ** (self.terms - 1) * 10 ** (self.digits * self.terms)

    def _problem(self, number: int) -> dict[str, str]:
        """The problem with a number below `_distinct`, whose digits are operands and operators."""
        operands, operators = [], []
        for _ in range(self.terms):
            number, operand = divmod(number, 10**self.digits)
            operands.append(operand)
        for _ in operands[1:]:
            number, at = divmod(number, len(self.operators))
            operators.append(self.operators[at])
        total, product, text = 0, operands[0], str(operands[0])
        space = " " if self.instruct else ""
        for operator, operand in zip(operators, operands[1:], strict=True):
            text += f"{space}{operator}{space}{operand}"
            if operator == "*":
                product *= operand
            else:
                total, product = total + product, operand if operator == "+" else -operand
        prompt = f"What is {text}?\n\n{INSTRUCTION}\n" if self.instruct else f"{text}="
        return {"prompt": prompt, "answer": str(total + product)}
