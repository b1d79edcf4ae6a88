r"""Program synthesis from examples, where the behaviours of all right programs are known.

A prompt such as `2:4 5:10` shows outputs of an unknown function of an integer x, and a response is
a program: `x+x`, `2*x`, or `x*(x-3)+6`, where the last one behaves differently on other inputs.
Programs are expressions, whose grammar is that of `pkpo_jax.tasks.programs`; none is run as code.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any

from pkpo_jax.tasks import drawing, programs
from pkpo_jax.tasks.base import Problem, Task, require
from pkpo_jax.tasks.boxed import INSTRUCTION, boxed

Examples = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Synthesis(Task):
    """Random sets of examples; a program is right iff it reproduces the examples of its problem.

    The modes of a problem are the behaviours of its right programs: their outputs on all inputs.

    Attributes:
      inputs: the number of inputs, which are 0, 1, ..., inputs - 1.
      examples: the number of inputs whose outputs a prompt shows.
      length: the largest number of characters of a program; longer ones are wrong.
      digits: the digits that a program may use.
      largest: the largest absolute value of an output that a prompt shows.
      min_modes: the least number of modes of a problem. Problems are uniformly sampled from all
        sets of examples that have as many.
      train_problems, test_problems: sizes of the splits. A split contains no prompt twice, and the
        train split contains no prompt of the test split.
      seed: the seed of the problems, independent of the run's seed.
      instruct: whether the prompt explains the task and asks for the program in \\boxed{}, where
        white space does not count, as language models need it.
    """

    inputs: int = 10
    examples: int = 2
    length: int = 9
    digits: str = "123"
    largest: int = 99
    min_modes: int = 2
    train_problems: int = 2048
    test_problems: int = 256
    seed: int = 0
    instruct: bool = False

    def __post_init__(self) -> None:
        # More would take the enumeration of behaviours from seconds to minutes.
        require(self, 1 <= self.length <= 11, "length", "1 to 11")
        require(self, 2 <= self.inputs <= 10, "inputs", "2 to 10")
        require(
            self,
            1 <= self.examples < self.inputs,
            "examples",
            f"at least 1 and less than task.inputs={self.inputs}",
        )
        require(
            self,
            set(self.digits) <= set(string.digits) and len(set(self.digits)) == len(self.digits),
            "digits",
            "some of 0123456789, each once",
        )
        require(self, self.largest >= 0, "largest", "at least 0")
        require(self, self.min_modes >= 1, "min_modes", "at least 1")
        require(self, self.train_problems >= 1, "train_problems", "at least 1")
        require(self, self.test_problems >= 1, "test_problems", "at least 1")

    @property
    def alphabet(self) -> str:  # pyrefly: ignore  What a task reads decides its characters.
        return string.printable if self.instruct else string.digits + "x+-*(): \n"

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of "train" or "test", prepared on first use in up to seconds.

        Raises:
          ValueError: there are fewer sets of examples with `min_modes` than the splits need.
        """
        return _splits(self)[split]

    def grade(self, problem: Problem, response: str) -> float:
        """Returns 1 iff the response is a program that reproduces all examples."""
        outputs = self._behaviour(response)
        return float(outputs is not None and _reproduces(outputs, problem["examples"]))

    def answer(self, response: str) -> str | None:
        """Names the behaviour of a program: its outputs on all inputs. Returns None if it is none.

        Programs that behave alike vote for one answer, as in AlphaCode (arXiv 2203.07814), and
        right ones are one mode.
        """
        outputs = self._behaviour(response)
        return None if outputs is None else " ".join(map(str, outputs))

    def mode_count(self, problem: Problem) -> int:
        """Counts the behaviours, consistent with the examples, of programs of up to `length`."""
        return len(_solutions(self, problem["examples"]))

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns a shortest program of a behaviour that is uniformly sampled from the right ones.

        Were it sampled from the programs, behaviours with many spellings would hide the others, and
        a policy could not be blamed for missing them.
        """
        program = rng.choice(list(_solutions(self, problem["examples"]).values()))
        return f"\\boxed{{{program}}}" if self.instruct else program

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the examples, a program of each mode, and the first responses, as text."""
        right = ", ".join(_solutions(self, problem["examples"]).values())
        drawing.draw_text(axes, problem["prompt"], responses, rewards, right)

    def _behaviour(self, response: str) -> programs.Behaviour | None:
        program = "".join((boxed(response) or "").split()) if self.instruct else response
        return programs.behaviour(program, self.length, self.digits, self.inputs)

    def _prompt(self, examples: Examples) -> str:
        if not self.instruct:
            # A prompt ends with a newline, so that the program starts on a new line.
            return " ".join(f"{x}:{y}" for x, y in examples) + "\n"
        shown = "\n".join(f"f({x}) = {y}" for x, y in examples)
        atoms = ", ".join(["x", *self.digits])
        return (
            f"These are values of a function f of an integer x:\n{shown}\nWrite f(x) with at most "
            f"{self.length} characters, which may be {atoms}, +, -, * and parentheses. There are "
            f"no signs, and numbers have one digit.\n\n{INSTRUCTION}\n"
        )


def _reproduces(outputs: programs.Behaviour, examples: Examples) -> bool:
    return all(outputs[x] == y for x, y in examples)


@functools.lru_cache(maxsize=4096)
def _solutions(task: Synthesis, examples: Examples) -> Mapping[programs.Behaviour, str]:
    """Returns the behaviours that reproduce the examples, each with a shortest program."""
    every = programs.behaviours(task.length, task.digits, task.inputs)
    return {key: program for key, program in every.items() if _reproduces(key, examples)}


@functools.lru_cache(maxsize=2)
def _splits(task: Synthesis) -> dict[str, list[Problem]]:
    """Returns both splits, sampled from all sets of examples that have enough modes."""
    every = programs.behaviours(task.length, task.digits, task.inputs)
    candidates: list[Examples] = []
    for shown in itertools.combinations(range(task.inputs), task.examples):
        modes = collections.Counter(tuple((x, outputs[x]) for x in shown) for outputs in every)
        candidates += [
            examples
            for examples, count in sorted(modes.items())
            if count >= task.min_modes and all(abs(y) <= task.largest for _, y in examples)
        ]
    count, most = task.test_problems + task.train_problems, len(candidates)
    supply = f"there are {most} problems with task.min_modes={task.min_modes}"
    hint = "raise task.length or task.largest, or lower task.min_modes"
    held_out = task.test_problems
    require(task, held_out < most, "test_problems", f"fewer than {most}, for {supply}; {hint}")
    require(
        task,
        count <= most,
        "train_problems",
        f"at most {most - held_out}, for {supply}, of which task.test_problems={held_out} are held "
        f"out; {hint}",
    )
    # The test split stays the same if train_problems changes.
    random.Random(task.seed).shuffle(candidates)
    return {
        split: [
            {"id": i, "prompt": task._prompt(examples), "examples": examples}
            for i, examples in enumerate(of)
        ]
        for split, of in [
            ("test", candidates[: task.test_problems]),
            ("train", candidates[task.test_problems : count]),
        ]
    }
