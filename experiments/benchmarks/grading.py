"""Measures how many answers the grading pool grades per second, and what a stuck answer costs.

python -m experiments.benchmarks.grading

A batch has 16 prompts x 8 answers, and is graded by one worker and by two. The tasks are mazes with
random walks, MATH with right answers in other notations, and programs (`code`), each of which runs
in its own sandbox. After that come batches with programs that never end: each of them blocks one
worker for `task.timeout` while the others continue.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from pkpo_jax import tasks
from pkpo_jax.tasks import maze
from pkpo_jax.tasks.code import Code
from pkpo_jax.tasks.code import problems as code_problems
from pkpo_jax.tasks.grading import Grader

_TIMEOUT = flags.DEFINE_float("timeout", 2.0, "task.timeout of the programs, in seconds.")
_PROMPTS, _RESPONSES = 16, 8

Batch = tuple[Sequence[tasks.Problem], list[list[str]]]


def mazes() -> tuple[tasks.Task, Batch]:
    rng = random.Random(0)
    task = tasks.Maze(train_problems=1, test_problems=_PROMPTS)
    problems = list(maze.generate(task, "test"))
    return task, (
        problems,
        [[task.demonstration(p, rng) for _ in range(_RESPONSES)] for p in problems],
    )


def mathematics() -> tuple[tasks.Task, Batch]:
    problems = [{"answer": rf"\frac{{{i}}}{{7}}"} for i in range(1, _PROMPTS + 1)]
    forms = (r"\boxed{{\dfrac{{{0}}}{{{1}}}}}", r"\boxed{{x = {0}/{1}}}")
    texts = [
        [forms[j % 2].format(i * j, 7 * j) for j in range(1, _RESPONSES + 1)]
        for i in range(1, _PROMPTS + 1)
    ]
    return tasks.Math(), (problems, texts)


def programs(stuck: int = 0) -> tuple[tasks.Task, Batch]:
    task = Code(allow_code_execution=True, instruct=False, timeout=_TIMEOUT.value)
    problems, texts = [], []
    for i in range(_PROMPTS):
        code = f"def add(x):\n    return x + {i}\n"
        tests = [f"assert add({x}) == {x + i}" for x in (0, 5, -7)]
        row = {"task_id": i, "text": "?", "code": code, "test_list": tests}
        problems.append(code_problems.mbpp_problem(row))
        texts.append([code] * _RESPONSES)
    for i in range(stuck):
        texts[i * _PROMPTS // stuck][i % _RESPONSES] = "def add(x):\n    while True: pass\n"
    return task, (problems, texts)


def seconds(task: tasks.Task, batch: Batch, workers: int) -> float:
    """Returns the seconds of the faster of two batches, after the workers have warmed up."""
    problems, texts = batch
    taken = []
    with Grader(task, workers=workers, timeout=30) as grader:
        grader.grade(problems[:workers], [group[-1:] for group in texts[:workers]])
        for _ in range(2):
            started = time.perf_counter()
            grades = grader.grade(problems, texts)
            taken.append(time.perf_counter() - started)
    assert np.isfinite(grades.rewards).all()
    return min(taken)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    answers = _PROMPTS * _RESPONSES
    table = rich.table.Table("task", "answers/s, 1 worker", "2 workers", "ms an answer, 1 worker")
    for name, (task, batch) in (
        ("maze", mazes()),
        ("math", mathematics()),
        ("code", programs()),
    ):
        one, two = (seconds(task, batch, workers) for workers in (1, 2))
        table.add_row(
            name, f"{answers / one:.0f}", f"{answers / two:.0f}", f"{1e3 * one / answers:.2f}"
        )
    console = rich.console.Console(width=100)
    console.print(table)

    table = rich.table.Table(
        "stuck answers", "2 workers, s a batch", "more, s", "more a stuck one, s"
    )
    base = None
    for stuck in (0, 1, 4):
        taken = seconds(*programs(stuck), workers=2)
        base = taken if base is None else base
        more = taken - base
        each = f"{more / stuck:.2f}" if stuck else ""
        table.add_row(str(stuck), f"{taken:.2f}", f"{more:.2f}", each)
    console.print(table)
    console.print(
        f"{answers} programs a batch, task.timeout {_TIMEOUT.value:g} s; {experiments.machine()}",
        highlight=False,
    )


if __name__ == "__main__":
    app.run(main)
