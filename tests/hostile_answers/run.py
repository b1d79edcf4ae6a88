"""Grades the table of hostile answers by a real pool, next to targets that they might harm."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pkpo_jax.tasks import Math, Problem, Task
from pkpo_jax.tasks.code import Code, problems
from pkpo_jax.tasks.grading import Grader
from tests.hostile_answers import programs, protocol
from tests.hostile_answers.mathematics import MATHEMATICS

SECRET_NAME, SECRET = "PKPO_JAX_SECRET", "s3cret of the trainer"
# These are seconds for the code of an answer, and for a worker with one answer.
CODE_TIMEOUT, TIMEOUT = 1.5, 12.0


@dataclasses.dataclass(frozen=True)
class Either(Task):
    """A task that passes each problem to the task it belongs to, so that one pool grades all."""

    def __post_init__(self) -> None:
        chat = Code(**{**OPTIONS, "instruct": True})
        tasks = {"math": Math(), "code": Code(**OPTIONS), "chat": chat}
        object.__setattr__(self, "tasks", tasks)

    def problems(self, split: str) -> list[Problem]:
        raise NotImplementedError

    def grade(self, problem: Problem, response: str) -> object:
        return self.tasks[problem["task"]].grade(problem, response)

    def answer(self, response: str) -> str:
        return response


OPTIONS = {"allow_code_execution": True, "instruct": False, "timeout": CODE_TIMEOUT}


class Answer(NamedTuple):
    kind: str
    name: str
    problem: Problem
    text: str
    works: bool


def problem(solution: str, tests: list[str], task: str = "code") -> Problem:
    row = {"task_id": 1, "text": "?", "code": solution, "test_list": tests}
    return {"task": task, **problems.mbpp_problem(row)}


DOUBLE = problem(programs.RIGHT, programs.TESTS)
THEFT = problem("def secret(): pass", [f"assert secret() == {SECRET!r}"])
SEVEN = {"task": "math", "answer": "7"}


def answers(site: programs.Site) -> list[Answer]:
    """Returns the whole table."""
    return [
        *(Answer("code", p.name, DOUBLE, p.text, p.works) for p in programs.programs(site)),
        *(
            Answer("code", p.name, THEFT, p.text, p.works)
            for p in programs.thefts(site, SECRET_NAME)
        ),
        *(
            Answer(
                "code",
                a.name,
                problem(a.solution, a.tests, "chat" if a.instruct else "code"),
                a.text,
                a.works,
            )
            for a in protocol.attacks()
        ),
        *(Answer("math", name, SEVEN, text, False) for name, text in MATHEMATICS.items()),
    ]


@contextlib.contextmanager
def bait(reached: bool = False) -> Iterator[programs.Site]:
    """Provides files, sockets and a secret that answers try to reach.

    At the end it asserts that no answer reached them, unless `reached` allows it.
    """
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o777)
        files = {"canary": "alive", "secret": SECRET}
        for name, text in files.items():
            (directory / name).write_text(text)
            (directory / name).chmod(0o666)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(f"\0pkpo_jax {directory}")
        local.listen()
        os.environ[SECRET_NAME] = SECRET
        stack.callback(os.environ.pop, SECRET_NAME)
        # This descriptor would be inherited without the sandbox.
        inherited = os.open(directory / "secret", os.O_RDONLY)
        stack.callback(os.close, inherited)
        os.set_inheritable(inherited, True)
        address = local.getsockname()[1:].decode()
        yield programs.Site(str(directory), port.getsockname()[1], address, os.getpid())
        if reached:
            return
        assert {path.name: path.read_text() for path in directory.iterdir()} == files
        for server in (port, local):
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                server.accept()
                raise AssertionError("an answer reached a socket of the trainer's")


def works_unconfined(answer: Answer) -> bool:
    """Returns whether an answer passes if the tests run in its process, without a sandbox."""
    grader = "import sys\nspace = {}\nexec(sys.argv[1], space)\ntests = sys.argv[2]\n"
    # A harness that reads tests from a file would keep them in memory like this.
    grader += "held = {'tests': tests}\nexec(tests, space)"
    tests = "\n".join(answer.problem["shown"])
    command = [sys.executable, "-c", grader, answer.text, tests]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def descendants(pid: int) -> list[int]:
    """Returns the ids of all processes that a process has started, directly or indirectly."""
    with contextlib.suppress(OSError):
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [d for child in map(int, text.split()) for d in (child, *descendants(child))]
    return []


class Result(NamedTuple):
    answer: Answer
    reward: float
    status: int
    seconds: float


def grade_one_by_one() -> Iterator[Result]:
    """Grades the table, one answer at a time by one worker."""
    with bait() as site, Grader(Either(), workers=1, timeout=TIMEOUT) as grader:
        grader.grade([DOUBLE, SEVEN], [[programs.RIGHT], [r"\boxed{7.0}"]])
        for answer in answers(site):
            started = time.monotonic()
            grades = grader.grade([answer.problem], [[answer.text]])
            taken = time.monotonic() - started
            yield Result(answer, float(grades.rewards[0, 0]), int(grades.statuses[0, 0]), taken)


def harmless(reward: float) -> bool:
    return bool(reward == 0 or np.isnan(reward))
