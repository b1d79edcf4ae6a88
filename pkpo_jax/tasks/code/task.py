r"""The task code: write a Python function that passes the problem's tests (MBPP, HumanEval).

An answer and the tests run in two sandboxed processes (see `sandbox`). The tests call the answer's
functions through a pipe that carries plain data, so that nothing an answer does to its own process
can pass a test; it has to return the right values. It follows that only the standard library can be
imported, and that tests cannot compare everything:

  - Plain data and the standard library's numbers, dates and containers are sent by value, and
    instances of their subclasses arrive as instances of the base class. Other objects stay in the
    answer's process, and are compared as `sandboxed.handles` describes. A test that changes a list
    in an attribute of such an object changes a copy. Tests do not see what an answer prints.
  - Arguments are copies. A call changes the tests' own objects if the solution's function changes
    its arguments too, or if the call is a whole statement. Otherwise an answer could change the
    value that it is compared with: `f(xs) == sorted(xs)`.
  - Functions and iterators of the tests can be arguments; objects of classes of the tests cannot.
  - An exception arrives as the first of its classes that is Python's own or that the tests name. If
    it would end a loop of the tests, or the process, it arrives as a RuntimeError.
  - Tests cannot await coroutines. They do not see the class of an object that stays with the
    answer, except by isinstance with a class of the answer's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import signal
import string
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pkpo_jax.tasks.base import Grade, Problem, Status, Task, require
from pkpo_jax.tasks.code import blocks, problems, sandbox

# MBPP's own test split. Its tasks from 511 on, its 90 validation tasks included, are for training.
MBPP_TEST, MBPP_TRAIN = range(11, 511), 511
# An answer is given up, ungraded, after this multiple of its CPU time has passed on the clock. It
# suffices for three workers on each processor, with a reserve.
PATIENCE = 5.0
INSTRUCTION = "Answer with one Python code block, from ```python to ```."


@dataclasses.dataclass(frozen=True)
class Code(Task):
    """Trains on MBPP and evaluates on HumanEval or on MBPP's test split.

    Attributes:
      data_dir: the directory of mbpp.jsonl or sanitized-mbpp.json, or of other problems in one of
        these files' formats.
      allow_code_execution: has to be True, for grading runs the programs that the policy writes.
      evaluate_on: "humaneval", where all of the file is for training; or "mbpp", where the test
        split is tasks 11-510, and the tasks from 511 on are for training.
      instruct: whether the prompt asks for a code block, for chat models. Otherwise a prompt is the
        description and tests (MBPP), or the head of the function (HumanEval), and the whole
        response is code.
      shown_tests: how many tests a prompt of MBPP shows. At least 1, for they name the function.
        The MBPP paper shows all three, which rewards a policy that memorises them.
      reward: "fraction" is the share of the hidden tests that pass; "all" is 1 iff all tests pass,
        as in the papers. The fraction counts no test that the prompt shows, but an answer that
        fails one of these earns nothing. Consider the constant function that returns the value
        which the shown test expects: the hidden tests that it passes are subtracted. So no constant
        earns anything, unless all tests expect the same value. If the prompt shows all tests, all
        count, and a constant earns its share of them. A program that distinguishes the shown
        argument from others can still earn a share, and with few tests even the full reward.
      timeout: seconds of CPU time for an answer and all of its tests; the slowest reference of
        MBPP, task 123, uses 4 to 4.5. `PATIENCE` times as much may pass on the clock, and
        grading.timeout has to allow for that plus `sandbox.START_TIMEOUT`.
      memory_mb: MiB of address space for an answer.
    """

    data_dir: str = ""
    allow_code_execution: bool = False
    evaluate_on: str = "humaneval"
    instruct: bool = True
    shown_tests: int = 1
    reward: str = "fraction"
    timeout: float = 6.0
    memory_mb: int = 512

    # This limits the tiny character policy, which rejects other characters; Gemma-2 reads any. The
    # last two occur in HumanEval.
    alphabet = (
        string.printable + "\N{LESS-THAN OR EQUAL TO}\N{HEAVY TRIANGLE-HEADED RIGHTWARDS ARROW}"
    )

    def __post_init__(self) -> None:
        require(self, isinstance(self.data_dir, str), "data_dir", "the path of a directory")
        for name in ("allow_code_execution", "instruct"):
            require(self, isinstance(getattr(self, name), bool), name, "True or False")
        where = self.evaluate_on in ("humaneval", "mbpp")
        require(self, where, "evaluate_on", "humaneval or mbpp")
        require(self, self.shown_tests >= 1, "shown_tests", "at least 1")
        require(self, self.reward in ("fraction", "all"), "reward", "fraction or all")
        soon = 0 < self.timeout <= 3600
        require(self, soon, "timeout", "more than 0 seconds, and an hour at most")
        require(self, 64 <= self.memory_mb <= 1 << 20, "memory_mb", "64 or more")

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of the split "train" or "test".

        Raises:
          ValueError: code may not run, cannot be isolated (`sandbox.Unavailable`), or the files are
            missing or invalid.
        """
        self._require_permission()
        self._require()
        if split == "test" and self.evaluate_on == "humaneval":
            rows = problems.human_eval()
        else:
            rows = [
                row
                for number, row in problems.mbpp(self.data_dir).items()
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
        """Returns the reward and the status of the code of a response.

        A response is WRONG_FORMAT if it has no code, its code is no program, or the program does
        not define the functions that the tests call. It is a TIMEOUT if its CPU time runs out, and
        an ERROR if its process ends otherwise; both are wrong, with a reward of 0. An answer that
        is given up with CPU time left is a TIMEOUT without a reward: it may sleep or wait forever,
        or the machine may be far too busy.

        Raises:
          sandbox.Failed: a sandbox does not start, which is not the answer's fault.
        """
        self._require_permission()
        programs = self._blocks(response)
        if not programs:
            return Grade(0.0, Status.WRONG_FORMAT)
        limits = sandbox.Limits(memory=self.memory_mb << 20, cpu=self.timeout)
        verdict = judge(problem, programs, limits)
        if verdict is None:
            return Grade(math.nan, Status.TIMEOUT)
        return Grade(self._reward(problem, verdict.passed), verdict.status)

    def answer(self, response: str) -> str | None:
        """Returns the last code block that defines something, else the last; None without blocks.

        This is the answer when responses are counted as votes. Grading looks at all blocks, for it
        knows which names have to be defined. Without `instruct` the whole response is the answer.
        """
        if not self.instruct:
            return response if response.strip() else None
        return blocks.likeliest(response)

    def _blocks(self, response: str) -> list[str]:
        if self.instruct:
            return blocks.blocks(response)
        return [response] if response.strip() else []

    def _reward(self, problem: Problem, passed: frozenset[int]) -> float:
        """Returns the reward for the tests that passed, given by their numbers."""
        count = problem["count"]
        if self.reward == "all":
            return float(len(passed) == count)
        shown = {i for i, e in enumerate(problem["entries"]) if 0 <= e < self.shown_tests}
        hidden = set(range(count)) - shown
        if not shown or not hidden:
            return len(passed) / count
        if not shown <= passed:
            return 0.0
        # If one constant passes all shown tests, it also passes the hidden tests of the same form.
        forms = {problem["forms"][i] for i in shown}
        free = {i for i in hidden if {problem["forms"][i]} == forms}
        if free == hidden:
            return len(passed & hidden) / len(hidden)
        return max(0, len(passed & hidden) - len(free)) / len(hidden - free)

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the problem's solution, in the form that the prompt asks for."""
        if self.instruct:
            return f"```python\n{problem['stub']}{problem['solution'].rstrip()}\n```"
        return problem["solution"]

    def _require_permission(self) -> None:
        if not self.allow_code_execution:
            raise ValueError(
                "the task code runs programs that the policy writes, in a sandbox; set "
                "task.allow_code_execution=True to let it."
            )

    def _require(self) -> None:
        sandbox.require()
        if self.instruct:
            blocks.require()

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
        # A worker checks the requirements as it starts, before the clock of its first answer runs.
        self.__dict__.update(state)
        if self.allow_code_execution:
            self._require()


class Verdict(NamedTuple):
    """The numbers of the tests that an answer passed, and the status of its grading."""

    passed: frozenset[int] = frozenset()
    status: Status = Status.OK


def judge(problem: Problem, blocks: Sequence[str], limits: sandbox.Limits) -> Verdict | None:
    """Runs the tests of a problem against a response's code, in two sandboxes.

    Together they may use `limits.cpu` seconds of CPU time, however much time passes on the clock.
    Returns None if `PATIENCE` times as much passes before that is used up.

    Raises:
      sandbox.Failed, OSError: a sandbox does not start.
    """
    with contextlib.ExitStack() as stack:
        answer, checker = _start(stack, problem, blocks, limits)
        end = time.monotonic() + sandbox.START_TIMEOUT
        for process in (answer, checker):
            process.started(end)
        try:
            report = _report(answer, checker, limits.cpu)
        except TimeoutError:
            return None
        if report is None:
            return Verdict(status=Status.TIMEOUT)
        end, _, passed = report.partition("\n")
        if end in ("done", "raised"):
            return Verdict(frozenset(map(int, passed.split())))
        if end in ("syntax", "missing"):
            return Verdict(status=Status.WRONG_FORMAT)
        # One of the processes has ended. SIGKILL means that it exceeded its CPU time.
        killed = signal.SIGKILL in (answer.ended_by(), checker.ended_by())
        return Verdict(status=Status.TIMEOUT if killed else Status.ERROR)


def _start(
    stack: contextlib.ExitStack, problem: Problem, blocks: Sequence[str], limits: sandbox.Limits
) -> tuple[sandbox.Sandbox, sandbox.Sandbox]:
    """Starts the processes of the answer and of the tests, with pipes between them."""
    pipes = [*os.pipe(), *os.pipe()]
    with contextlib.ExitStack() as ends:
        for end in pipes:
            ends.callback(os.close, end)
        request_out, request_in, reply_out, reply_in = pipes
        jobs = {
            "answer": (
                {
                    "blocks": list(blocks),
                    **{key: problem[key] for key in ("names", "head", "stub")},
                },
                {"requests": request_out, "replies": reply_in},
            ),
            "checker": (
                {key: problem[key] for key in _CHECKER_KEYS},
                {"requests": request_in, "replies": reply_out},
            ),
        }
        answer, checker = (
            stack.enter_context(sandbox.Sandbox(program, job, its_pipes, limits))
            for program, (job, its_pipes) in jobs.items()
        )
    return answer, checker


# The parts of a problem that the checker needs.
_CHECKER_KEYS = ("names", "classes", "attributes", "changing", "setup", "tests", "count")


def _report(answer: sandbox.Sandbox, checker: sandbox.Sandbox, cpu: float) -> str | None:
    """Returns the checker's report; None if the two processes use up their CPU time.

    Raises:
      TimeoutError: `PATIENCE` times as much passes on the clock before either happens.
    """
    end = time.monotonic() + PATIENCE * cpu
    while True:
        # They take turns when they call each other, so only their sum keeps up with the clock.
        left = cpu - (answer.cpu() + checker.cpu())
        if left <= 0:
            return None
        now = time.monotonic()
        if now >= end:
            raise TimeoutError
        # Each process has one thread, so they need at least this long to use up the remaining time.
        with contextlib.suppress(TimeoutError):
            return checker.report(min(end, now + max(left / 2, 0.01)))
