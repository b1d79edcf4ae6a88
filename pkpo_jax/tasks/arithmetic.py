r"""Generates arithmetic problems, which need no files: the answer to `12+7=` is `19`.

With `instruct`, for models that know English, the problem is a question, and the answer has to be
in a \boxed{}, as in the task math.
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

# An integer has one spelling here, so that answers can be compared as text. int() does not serve:
# it accepts underscores and digits of other alphabets, and raises an error beyond 4300 digits.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
# In a box, commas may separate thousands, and these marks of LaTeX may surround the integer.
_THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}(?:,[0-9]{3})+")
_MARKED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}|\$([^$]*)\$")


@dataclasses.dataclass(frozen=True)
class Arithmetic(Task):
    """Distinct random problems; a response is right if it is the integer and nothing else.

    Attributes:
      operators: the operators that problems use, some of +-*, with the usual precedence.
      digits: the largest number of digits of an operand; operands are non-negative integers,
        uniformly sampled.
      terms: the number of operands of a problem.
      train_problems, test_problems: sizes of the splits. A split contains no problem twice, and the
        train split contains no problem of the test split.
      seed: the seed of the problems, independent of the run's seed.
      demonstration_noise: probabilities, of which one is sampled for each demonstration. The
        demonstration is the answer, with each digit replaced by a random digit from 1 to 9 with
        this probability.
      instruct: whether the prompt is a question whose answer has to be in a box.
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
        """Returns the problems of the split "train" or "test"."""
        distinct = range(self._distinct())
        numbers = random.Random(f"{self.seed} test").sample(distinct, self.test_problems)
        if split == "train":
            held_out = set(numbers)
            sampled = random.Random(f"{self.seed} train").sample(
                distinct, self.train_problems + len(held_out)
            )
            numbers = [n for n in sampled if n not in held_out][: self.train_problems]
        return [{"id": i, **self._problem(number)} for i, number in enumerate(numbers)]

    def grade(self, problem: Problem, response: str) -> float:
        """Returns 1 iff the answer is the integer in its one spelling: no +7, 07, 7.0 or -0."""
        return float(self.answer(response) == problem["answer"])

    def answer(self, response: str) -> str | None:
        """Returns the response, or its last box with `instruct`, if it is an integer; else None."""
        text = _plain(boxed(response) or "") if self.instruct else response
        return text if _INTEGER.fullmatch(text) else None

    def mode_count(self, problem: Problem) -> int:
        """Returns 1, for a problem has one answer."""
        return 1

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the answer with some of its digits replaced at random."""
        noise = rng.choice(self.demonstration_noise)
        # A 0 might come first, so it is left out: noisy demonstrations are wrong, but well formed.
        text = "".join(
            rng.choice("123456789") if c != "-" and rng.random() < noise else c
            for c in problem["answer"]
        )
        return f"\\boxed{{{text}}}" if self.instruct else text

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the problem, its answer, and the first responses, as text."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards, problem["answer"])

    def _distinct(self) -> int:
        return len(self.operators) ** (self.terms - 1) * 10 ** (self.digits * self.terms)

    def _problem(self, number: int) -> dict[str, str]:
        """Returns a problem by its number below `_distinct`, which encodes operands, operators."""
        operands, operators = [], []
        for _ in range(self.terms):
            number, operand = divmod(number, 10**self.digits)
            operands.append(operand)
        for _ in operands[1:]:
            number, index = divmod(number, len(self.operators))
            operators.append(self.operators[index])
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


def _plain(text: str) -> str:
    r"""Returns an integer in its one spelling, without the marks of LaTeX; other texts keep theirs.

    >>> [_plain(text) for text in (r"\text{12}", "$12$", "1{,}234", "- 5", "1,2")]
    ['12', '12', '1234', '-5', '1,2']
    """
    if marked := _MARKED.fullmatch(text):
        text = (marked[1] or marked[2] or "").strip()
    text = re.sub(r"^[-\u2212] *", "-", text.replace("{,}", ","))
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
