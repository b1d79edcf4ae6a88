"""Problems and their graders, one module for each family of tasks."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pkpo_jax.tasks.arc import Arc
from pkpo_jax.tasks.arithmetic import Arithmetic
from pkpo_jax.tasks.base import Grade, Problem, Status, Task
from pkpo_jax.tasks.code import Code
from pkpo_jax.tasks.code import problems as code_tests  # noqa: F401  The name before 0.2.
from pkpo_jax.tasks.math import Math
from pkpo_jax.tasks.maze import Maze
from pkpo_jax.tasks.puzzles import Puzzles
from pkpo_jax.tasks.revision import Revision
from pkpo_jax.tasks.synthesis import Synthesis

TASKS: dict[str, Callable[..., Task]] = {
    "arc": Arc,
    "arithmetic": Arithmetic,
    "code": Code,
    "math": Math,
    "maze": Maze,
    "puzzles": Puzzles,
    "revision": Revision,
    "synthesis": Synthesis,
}

__all__ = [
    "TASKS",
    "Arc",
    "Arithmetic",
    "Code",
    "Grade",
    "Math",
    "Maze",
    "Problem",
    "Puzzles",
    "Revision",
    "Status",
    "Synthesis",
    "Task",
    "find",
    "make",
    "options",
]


def find(name: str) -> Callable[..., Task]:
    """Returns the class of a task: one of `TASKS`, or "module:Class", which is imported.

    Raises:
      ValueError: there is no such class, or it lacks a method that every task needs.
    """
    if name in TASKS:
        return TASKS[name]
    module, _, attribute = str(name).partition(":")
    if not attribute:
        raise ValueError(
            f"task.name={name!r}; expected one of {', '.join(TASKS)}, or your own class as "
            "module:Class."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(
            f"task.name={name!r} cannot be imported ({e}); expected module:Class, with the module "
            "in the directory where the command starts, or on PYTHONPATH."
        ) from e
    missing = [method for method in ("problems", "grade") if not hasattr(found, method)]
    if missing:
        raise ValueError(
            f"task.name={name!r} has no {' and no '.join(missing)}; see pkpo_jax.tasks.Task."
        )
    return found


def options(name: str) -> dict[str, Any]:
    """Returns the options of a task with their defaults.

    Raises:
      ValueError: there is no such task, or one of its options has no default.
    """
    try:
        task: Any = find(name)()
    except TypeError as e:
        raise ValueError(f"task.name={name!r}: {e}; give every option a default.") from e
    return dataclasses.asdict(task) if dataclasses.is_dataclass(task) else {}


def make(config: Mapping[str, Any]) -> Task:
    """Makes the task `config["name"]`, with the other keys as its options.

    Raises:
      ValueError: there is no such task, or an option has a value that it does not allow.
    """
    arguments = dict(config)
    return find(arguments.pop("name"))(**arguments)
