"""Problems and their graders, one file a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pkpo_jax.tasks.base import Problem, Task
from pkpo_jax.tasks.math import Math
from pkpo_jax.tasks.maze import Maze

TASKS = {"math": Math, "maze": Maze}

__all__ = ["TASKS", "Math", "Maze", "Problem", "Task", "make", "options"]


def options(name: str) -> dict[str, Any]:
    """The options of a task, with their defaults."""
    return dataclasses.asdict(TASKS[name]())


def make(config: Mapping[str, Any]) -> Task:
    """The task `config["name"]`, with the other keys as its options; ValueError on a bad one."""
    arguments = dict(config)
    return TASKS[arguments.pop("name")](**arguments)
