"""Measures the grader of programs on MBPP, for `graders`.

It counts the reference programs that pass in each of a dozen layouts of a response, and measures
the reward of a constant that is copied from the shown test, for each way of counting tests. It also
measures the programs graded per second with as many workers as cores and with three times as many,
and counts the verdicts that differ between the two.
"""

from __future__ import annotations

import ast
import os
import pathlib
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pkpo_jax import tasks
from pkpo_jax.tasks.code import Code
from pkpo_jax.tasks.grading import Grader, Grades

# Constants are tried on these tasks, the first hundred of MBPP's training problems.
_CONSTANTS = range(511, 611)

LAYOUTS: dict[str, Callable[[str], str]] = {
    "one block": lambda code: f"```python\n{code}\n```\n",
    "no tag": lambda code: f"Here you are.\n```\n{code}\n```\nDone.\n",
    "PYTHON": lambda code: f"```PYTHON\n{code}\n```\n",
    "py3": lambda code: f"```py3\n{code}\n```\n",
    "tildes": lambda code: f"~~~python\n{code}\n~~~\n",
    "four backticks": lambda code: f"````python\n{code}\n````\n",
    "no end": lambda code: f"So:\n```python\n{code}\n",
    "in a list": lambda code: "1. Code:\n\n" + _indented(code) + "\n2. Done.\n",
    "in a quotation": lambda code: "\n".join(
        f"> {line}" for line in f"```python\n{code}\n```".split("\n")
    ),
    "output behind it": lambda code: f"```python\n{code}\n```\nOutput:\n```\n3\n```\n",
    "example behind it": lambda code: f"```python\n{code}\n```\n```python\nprint(1)\n```\n",
    "draft before it": lambda code: f"```python\nx = 1 +\n```\n```python\n{code}\n```\n",
    "shell command behind it": lambda code: f"```python\n{code}\n```\n```bash\nls\n```\n",
}


def _indented(code: str) -> str:
    return textwrap.indent(f"```python\n{code}\n```\n", "   ")


def references(mbpp: str, workers: int) -> tuple[dict[str, float], Grades]:
    """Returns how many reference programs pass and are graded per second, and their grades."""
    task, problems = _problems(mbpp)
    texts = [[LAYOUTS["one block"](p["solution"])] for p in problems]
    with Grader(task, workers=workers, timeout=60.0) as grader:
        grader.grade(problems[:workers], texts[:workers])
        started = time.perf_counter()
        grades = grader.grade(problems, texts)
        taken = time.perf_counter() - started
    passed = int((grades.rewards == 1).sum())
    return {"programs": len(problems), "passed": passed, "a second": len(problems) / taken}, grades


def layouts(mbpp: str, workers: int, count: int = 100) -> dict[str, float]:
    """Returns how many of the first `count` reference programs pass in each layout."""
    task, problems = _problems(mbpp)
    problems = problems[:count]
    texts = [[layout(p["solution"]) for layout in LAYOUTS.values()] for p in problems]
    with Grader(task, workers=workers, timeout=60.0) as grader:
        rewards = grader.grade(problems, texts).rewards
    return {name: int(n) for name, n in zip(LAYOUTS, (rewards == 1).sum(0), strict=True)}


def constants(mbpp: str, workers: int) -> dict[str, float]:
    """Returns the mean reward of constants copied from the shown test, by how tests are counted.

    A problem whose shown test does not compare with a constant gives no reward.
    """
    _, problems = _problems(mbpp)
    problems = [p for p in problems if p["task_id"] in _CONSTANTS]
    texts = [[LAYOUTS["one block"](constant(p["shown"][0], p["names"]))] for p in problems]
    ways: dict[str, dict[str, Any]] = {
        "all tests counted": {"shown_tests": 99},
        "hidden tests alone": {},
        "all": {"reward": "all"},
    }
    earned = {}
    for name, options in ways.items():
        task = Code(allow_code_execution=True, **options)
        with Grader(task, workers=workers, timeout=60.0) as grader:
            earned[name] = float(np.nanmean(grader.grade(problems, texts).rewards))
    return earned


def constant(test: str, names: Sequence[str]) -> str:
    """Returns a program whose functions return what a test expects, or None if that is unclear.

    >>> print(constant("assert add(1, 2) == 3", ["add"]))
    def add(*args, **kwargs): return 3
    """
    assertion = next((n for n in ast.walk(ast.parse(test)) if isinstance(n, ast.Assert)), None)
    match assertion:
        case ast.Assert(ast.Compare(_, [ast.Eq() | ast.Is()], [expected])):
            value = ast.unparse(expected)
        case ast.Assert(ast.UnaryOp(ast.Not())):
            value = "False"
        case ast.Assert(ast.Call(ast.Name(name))) if name in names:
            value = "True"
        case _:
            value = "None"
    return "\n".join(f"def {name}(*args, **kwargs): return {value}" for name in names)


def under_load(mbpp: str) -> dict[str, Any]:
    """Compares one worker a core with three: programs per second, and verdicts that differ.

    A different verdict is listed as the task_id, the reward and status with few workers, and those
    with many.
    """
    cores = os.cpu_count() or 1
    (few, idle), (many, busy) = (references(mbpp, n * cores) for n in (1, 3))
    same = np.isclose(idle.rewards, busy.rewards, equal_nan=True) & (idle.statuses == busy.statuses)
    names = [p["task_id"] for p in _problems(mbpp)[1]]
    different = [
        (names[i], idle.rewards[i, j], idle.statuses[i, j], busy.rewards[i, j], busy.statuses[i, j])
        for i, j in np.argwhere(~same)
    ]
    return {
        "programs": few["programs"],
        f"passed, {cores} workers": few["passed"],
        f"passed, {3 * cores} workers": many["passed"],
        "different verdicts": different,
        f"a second, {cores} workers": few["a second"],
        f"a second, {3 * cores} workers": many["a second"],
    }


def _problems(mbpp: str) -> tuple[Code, Sequence[tasks.Problem]]:
    task = Code(data_dir=str(pathlib.Path(mbpp).parent), allow_code_execution=True)
    return task, task.problems("train")


def measure(mbpp: str) -> dict[str, dict[str, Any]]:
    """Returns the counts of each table."""
    cores = os.cpu_count() or 1
    return {
        "reference programs of MBPP": under_load(mbpp),
        "layouts of a response: passed of 100": layouts(mbpp, cores),
        "constants of the shown test, MBPP 511-610: mean reward": constants(mbpp, cores),
    }
