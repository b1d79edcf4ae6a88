r"""Python functions from a description, right if they pass the problem's tests: MBPP, HumanEval.

An answer and the tests run in two sandboxed processes (`pkpo_jax.tasks.sandbox`): the tests call
the answer's functions through a pipe that carries plain data, so that nothing an answer does to its
own process can pass a test; it has to return the right values. It follows that tests do not see
what an answer does to its arguments, and that only the standard library can be imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import signal
import string
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pkpo_jax.tasks import code_tests, sandbox
from pkpo_jax.tasks.base import Grade, Problem, Status, Task

# MBPP's own test split; its tasks from 511 on are for training, the 90 that it validates on too.
MBPP_TEST, MBPP_TRAIN = range(11, 511), 511
INSTRUCTION = "Answer with one Python code block, from ```python to ```."


@dataclasses.dataclass(frozen=True)
class Code(Task):
    """Trains on MBPP and evaluates on HumanEval or on MBPP's test split.

    Attributes:
      data_dir: the directory of mbpp.jsonl, or of sanitized-mbpp.json; any problems in that form.
      allow_code_execution: has to be True, for grading runs what the policy writes.
      evaluate_on: "humaneval", and all of the file is trained on; or "mbpp", where the test split
        is tasks 11-510, and those from 511 on are trained on.
      instruct: ask for a code block, for chat models. Otherwise a prompt is the description and
        tests (MBPP), or the head of the function (HumanEval), and the whole response is code.
      shown_tests: how many tests a prompt of MBPP shows, at least 1, for they name the function.
        The MBPP paper shows all three, which rewards a policy that learns them by heart.
      reward: "fraction" of the tests that pass, or "all", 1 iff all do.
      timeout: seconds for all tests of an answer; less than grading.timeout, by the time that
        `sandbox.START_TIMEOUT` gives sandboxes to start.
      memory_mb: address space for an answer.
    """

    data_dir: str = ""
    allow_code_execution: bool = False
    evaluate_on: str = "humaneval"
    instruct: bool = True
    shown_tests: int = 1
    reward: str = "fraction"
    timeout: float = 4.0
    memory_mb: int = 512

    # For the tiny character policy, which raises on any other character; Gemma-2 reads them all.
    # The last two are HumanEval's.
    alphabet = (
        string.printable + "\N{LESS-THAN OR EQUAL TO}\N{HEAVY TRIANGLE-HEADED RIGHTWARDS ARROW}"
    )

    def __post_init__(self) -> None:
        def require(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ValueError(f"task.{name}={getattr(self, name)!r}; expected {expected}.")

        require("data_dir", isinstance(self.data_dir, str), "the path of a directory")
        for name in ("allow_code_execution", "instruct"):
            require(name, isinstance(getattr(self, name), bool), "True or False")
        require("evaluate_on", self.evaluate_on in ("humaneval", "mbpp"), "humaneval or mbpp")
        require("shown_tests", self.shown_tests >= 1, "at least 1")
        require("reward", self.reward in ("fraction", "all"), "fraction or all")
        require("timeout", 0 < self.timeout <= 3600, "more than 0 seconds, and an hour at most")
        require("memory_mb", 64 <= self.memory_mb <= 1 << 20, "64 or more")

    def problems(self, split: str) -> Sequence[Problem]:
        """Problems of the split "train" or "test".

        Raises ValueError where code may not run, cannot be isolated (`sandbox.Unavailable`), or
        the files are missing or wrong.
        """
        self._require_permission()
        sandbox.require()
        if split == "test" and self.evaluate_on == "humaneval":
            rows = code_tests.human_eval()
        else:
            rows = [
                row
                for number, row in code_tests.mbpp(self.data_dir).items()
                if self._split(number) in (split, "both")
            ]
        if not rows:
            raise ValueError(
                f"task.data_dir={self.data_dir!r} holds no {split} problems; expected task_ids of "
                f"{'11 to 510' if split == 'test' else '511 and more'} (task.evaluate_on="
                f"{self.evaluate_on!r})."
            )
        return [{"id": i, "prompt": self._prompt(row), **row} for i, row in enumerate(rows)]

    def grade(self, problem: Problem, response: str) -> Grade:
        """The reward of the code of a response. Raises `sandbox.Failed` if no sandbox starts.

        No code, or no program, or not what the tests call, is WRONG_FORMAT. Time that runs out is
        a TIMEOUT, and a process that ends otherwise an ERROR: both wrong, with a reward of 0.
        """
        self._require_permission()
        code = self.answer(response)
        if code is None:
            return Grade(0.0, Status.WRONG_FORMAT)
        limits = sandbox.Limits(memory=self.memory_mb << 20, cpu=self.timeout)
        verdict = judge(problem, programs(problem, code), limits, self.timeout)
        share = verdict.passed / problem["count"]
        return Grade(share if self.reward == "fraction" else float(share == 1), verdict.status)

    def answer(self, response: str) -> str | None:
        """The last code block of the response, or all of it if none was asked for."""
        if not self.instruct:
            return response if response.strip() else None
        blocks = [code for language, code in _BLOCK.findall(response) if language in _PYTHON]
        return blocks[-1] if blocks and blocks[-1].strip() else None

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """The problem's solution, in the form that the prompt asks for."""
        if self.instruct:
            return f"```python\n{problem['stub']}{problem['solution'].rstrip()}\n```"
        return problem["solution"]

    def _require_permission(self) -> None:
        if not self.allow_code_execution:
            raise ValueError(
                "the task code runs programs that the policy writes, in a sandbox; set "
                "task.allow_code_execution=True to let it."
            )

    def _split(self, number: int) -> str:
        if self.evaluate_on == "humaneval":
            return "train"
        return "test" if number in MBPP_TEST else "train" if number >= MBPP_TRAIN else "neither"

    def _prompt(self, row: Mapping[str, Any]) -> str:
        if row["stub"]:
            if not self.instruct:
                return row["stub"]
            return f"Complete this function.\n\n```python\n{row['stub']}```\n\n{INSTRUCTION}\n"
        tests = "\n".join(row["shown"][: self.shown_tests])
        if not self.instruct:
            return f"{row['text']}\n{tests}\n"
        return f"{row['text']}\nIt has to pass tests such as\n\n{tests}\n\n{INSTRUCTION}\n"

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a worker, before the clock of its first answer runs.
        self.__dict__.update(state)
        if self.allow_code_execution:
            sandbox.require()


# Fences are read in pairs, so that a block in another language does not turn them round.
_BLOCK = re.compile(r"^[ \t]*```([^\s`]*)[^\n`]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "py", "python3", "Python")


def programs(problem: Problem, code: str) -> list[str]:
    """What an answer's process runs, in order: the code, on its own or as the stub goes on.

    It goes on from the stub if it starts with an indented line and has no head of the function;
    it ends before the first line that is not indented.
    """
    first = code.strip("\n")[:1]
    whole = re.search(rf"^(async )?def {problem['names'][0]}\b", code, re.MULTILINE)
    if not problem["stub"] or whole or first not in (" ", "\t"):
        return [problem["head"], code]
    return [problem["stub"] + re.split(r"\n+(?=\S)", code.strip("\n"))[0] + "\n"]


class Verdict(NamedTuple):
    """How many tests were passed, and how it ended."""

    passed: int
    status: Status = Status.OK


def judge(
    problem: Problem, sources: Sequence[str], limits: sandbox.Limits, timeout: float
) -> Verdict:
    """Runs the tests of a problem against programs, in two sandboxes.

    Raises `sandbox.Failed`, or OSError, if they do not start.
    """
    with contextlib.ExitStack() as stack:
        pipes = [*os.pipe(), *os.pipe()]
        with contextlib.ExitStack() as ends:
            for end in pipes:
                ends.callback(os.close, end)
            asked, ask, told, tell = pipes
            names = {"names": problem["names"]}
            answer = sandbox.Sandbox(
                "answer",
                {"sources": list(sources), **names},
                {"requests": asked, "replies": tell},
                limits,
            )
            stack.enter_context(answer)
            checker = sandbox.Sandbox(
                "checker",
                {"setup": problem["setup"], "tests": problem["tests"], **names},
                {"requests": ask, "replies": told},
                limits,
            )
            stack.enter_context(checker)
        end = time.monotonic() + sandbox.START_TIMEOUT
        for process in (answer, checker):
            process.started(end)
        try:
            end, _, passed = checker.report(time.monotonic() + timeout).partition("\n")
        except TimeoutError:
            return Verdict(0, Status.TIMEOUT)
        if end in ("done", "raised"):
            return Verdict(len(passed.split()))
        if end in ("syntax", "missing"):
            return Verdict(0, Status.WRONG_FORMAT)
        # One of them is gone. SIGKILL is for the processor's time that it used.
        killed = signal.SIGKILL in (answer.ended_by(), checker.ended_by())
        return Verdict(0, Status.TIMEOUT if killed else Status.ERROR)
