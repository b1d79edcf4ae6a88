"""Measures the time that sampling one step ahead saves, for graders of several speeds.

python -m experiments.benchmarks.overlap

The steps are those of the tiny policy (16 prompts x 16 responses of up to 64 tokens). The grading
workers wait for the time in the row and compute nothing, as if the code ran on another machine.
Steps run in turn, and with `rollout.ahead`, which samples the next batch while this one is graded.
At most, this saves the shorter of the times for sampling and grading.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence

import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from pkpo_jax import tasks
from pkpo_jax.tasks import Maze
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.trainer import Trainer

_STEPS = flags.DEFINE_integer("steps", 12, "Number of timed steps, after three that are not timed.")
_WORKERS = 4
_ANSWERS = 16 * 16

# Each row of the table sets this delay, and workers receive it with the task.
_delay = 0.0


class SlowMaze(Maze):
    """Waits before it grades."""

    def __getstate__(self) -> dict:
        return {**self.__dict__, "delay": _delay}

    def grade(self, problem: tasks.Problem, response: str) -> float:
        time.sleep(self.__dict__["delay"])
        return super().grade(problem, response)


def step_times(ahead: bool) -> tuple[float, float, float]:
    """Returns the median seconds of a step, of its sampling and of its grading."""
    config = config_lib.default()
    config.task.train_problems, config.task.test_problems = 1000, 10
    config.rollout.max_prompt, config.rollout.max_response = 21, 64
    config.rollout.ahead, config.loss.importance_cap = ahead, 2.0
    config.grading.workers = _WORKERS
    trainer = Trainer(config)
    try:
        with tempfile.TemporaryDirectory() as directory:
            state = trainer.start(pathlib.Path(directory))
        times = []
        for at in range(_STEPS.value + 3):
            started = time.perf_counter()
            state, figures, _ = trainer.step(state, at)
            taken = time.perf_counter() - started
            times.append((taken, figures["time/sample_s"], figures["time/grade_s"]))
    finally:
        trainer.close()
    return tuple(statistics.median(column) for column in zip(*times[3:], strict=True))


def main(argv: Sequence[str]) -> None:
    global _delay
    del argv
    logging.set_verbosity(logging.WARNING)
    tasks.TASKS["maze"] = SlowMaze
    table = rich.table.Table("grading, s", "sampling, s", "in turn, s a step", "ahead", "faster")
    for batch_seconds in (0.05, 0.2, 0.8):
        _delay = batch_seconds * _WORKERS / _ANSWERS
        (turn, sampling, grading), (ahead, *_) = step_times(False), step_times(True)
        row = (
            f"{grading:.3f}",
            f"{sampling:.3f}",
            f"{turn:.3f}",
            f"{ahead:.3f}",
            f"{turn / ahead:.2f}x",
        )
        table.add_row(*row)
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main)
