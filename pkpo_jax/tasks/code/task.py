r"""Python functions from a description, right if they pass the problem's tests: MBPP, HumanEval.

An answer and the tests run in two sandboxed processes (see `sandbox`): the tests call the answer's
functions through a pipe that carries plain data, so that nothing an answer does to its own process
can pass a test; it has to return the right values. It follows that only the standard library can be
imported, and that tests cannot compare everything:

  - Plain data and the standard library's numbers, dates and containers are sent by value, and what
    derives from them as what it derives from. Other objects stay with the answer, and are compared
    as `sandboxed.handles` says. Tests that change a list in an attribute of one
    change a copy, and what an answer prints is not seen.
  - Arguments are copies. A call changes the tests' own if the solution's function changes its
    arguments too, or if the call is a statement of its own. Otherwise an answer could change what
    it is compared with: `f(xs) == sorted(xs)`.
  - Functions and iterators of the tests can be arguments, objects of their own classes cannot.
  - Exceptions arrive as the first class of theirs that is Python's own or that the tests name. One
    that would end a loop of the tests, or the process, is a RuntimeError.
  - Coroutines cannot be awaited by tests, and the class of an object that stays is not seen,
    except by isinstance with a class of the answer's.
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

# MBPP's own test split; its tasks from 511 on are for training, the 90 that it validates on too.
MBPP_TEST, MBPP_TRAIN = range(11, 511), 511
# An answer is given up, ungraded, after so many times its CPU time: enough for three workers on
# each processor, and a reserve.
PATIENCE = 5.0
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
      reward: "fraction" of the hidden tests that pass, or "all", 1 iff all tests do, as the papers
        have it. The fraction counts no test that the prompt shows: an answer that fails one earns
        nothing, and what the shown test's constant earns on the hidden ones (the value that the
        shown test expects, returned whatever the argument) is taken off. So no constant earns
        anything, unless all tests expect the same value. Where the prompt shows all tests, all
        count, and a constant earns its share of them. A program that tells the shown argument
        from others can still earn a share, and with few tests even all of it.
      timeout: seconds of CPU time for all tests of an answer; the slowest reference of MBPP, task
        123, uses 4 to 4.5. `PATIENCE` times as much may pass on the clock, and grading.timeout has
        to leave room for that and `sandbox.START_TIMEOUT`.
      memory_mb: address space for an answer.
    """

    data_dir: str = ""
    allow_code_execution: bool = False
    evaluate_on: str = "humaneval"
    instruct: bool = True
    shown_tests: int = 1
    reward: str = "fraction"
    timeout: float = 6.0
    memory_mb: int = 512

    # For the tiny character policy, which raises on any other character; Gemma-2 reads them all.
    # The last two are HumanEval's.
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
        """Problems of the split "train" or "test".

        Raises ValueError where code may not run, cannot be isolated (`sandbox.Unavailable`), or
        the files are missing or wrong.
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
        """Returns the reward of the code of a response.

        No code, or no program, or not what the tests call, is WRONG_FORMAT. CPU time that runs out
        is a TIMEOUT, and a process that ends otherwise an ERROR: both wrong, with a reward of 0. An
        answer that is given up with CPU time left is a TIMEOUT without a reward: one that sleeps
        or waits for what never comes, or a machine far too busy.

        Raises:
          sandbox.Failed: no sandbox starts, which is no fault of the answer's.
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

        It stands for the answer where responses are counted. Grading looks at all blocks, for it
        knows what has to be defined. All of the response is the answer if no block was asked for.
        """
        if not self.instruct:
            return response if response.strip() else None
        return blocks.likeliest(response)

    def _blocks(self, response: str) -> list[str]:
        if self.instruct:
            return blocks.blocks(response)
        return [response] if response.strip() else []

    def _reward(self, problem: Problem, passed: frozenset[int]) -> float:
        """Returns the reward for the tests that were passed, by their numbers."""
        count = problem["count"]
        if self.reward == "all":
            return float(len(passed) == count)
        shown = {i for i, e in enumerate(problem["entries"]) if 0 <= e < self.shown_tests}
        hidden = set(range(count)) - shown
        if not shown or not hidden:
            return len(passed) / count
        if not shown <= passed:
            return 0.0
        # Tests of this form would pay a constant that passes the shown ones, if there is one.
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
        # In a worker, before the clock of its first answer runs.
        self.__dict__.update(state)
        if self.allow_code_execution:
            self._require()


class Verdict(NamedTuple):
    """The numbers of the tests that were passed, and how it ended."""

    passed: frozenset[int] = frozenset()
    status: Status = Status.OK


def judge(problem: Problem, blocks: Sequence[str], limits: sandbox.Limits) -> Verdict | None:
    """Runs the tests of a problem against a response's code, in two sandboxes.

    Each may use `limits.cpu` seconds of CPU time, whatever time passes meanwhile on the clock; None
    if `PATIENCE` times as much passes and it is not used up.

    Raises:
      sandbox.Failed, OSError: they do not start.
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
        # One of them is gone. SIGKILL is for the processor's time that it used.
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
        asked, ask, told, tell = pipes
        jobs = {
            "answer": (
                {
                    "blocks": list(blocks),
                    **{key: problem[key] for key in ("names", "head", "stub")},
                },
                {"requests": asked, "replies": tell},
            ),
            "checker": (
                {key: problem[key] for key in _TOLD_TO_CHECKER},
                {"requests": ask, "replies": told},
            ),
        }
        answer, checker = (
            stack.enter_context(sandbox.Sandbox(program, job, its_pipes, limits))
            for program, (job, its_pipes) in jobs.items()
        )
    return answer, checker


_TOLD_TO_CHECKER = ("names", "classes", "attributes", "changing", "setup", "tests")


def _report(answer: sandbox.Sandbox, checker: sandbox.Sandbox, cpu: float) -> str | None:
    """Returns what the checker reports; None if one of them uses up its CPU time.

    Raises:
      TimeoutError: too much time passes before either.
    """
    end = time.monotonic() + PATIENCE * cpu
    while True:
        left = cpu - max(answer.cpu(), checker.cpu())
        if left <= 0:
            return None
        now = time.monotonic()
        if now >= end:
            raise TimeoutError
        # Two processes of one thread each need at least this long to use up what is left.
        with contextlib.suppress(TimeoutError):
            return checker.report(min(end, now + max(left, 0.01)))
