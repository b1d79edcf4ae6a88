"""The most different right answers that any policy can give among k samples, on open mazes.

python -m experiments.referee.optimum [--config=configs/maze_tiny.py] [--output=FILE.json]

A policy knows a maze without fog, and samples k independent walks. Of M simple paths short enough
for a response, those with probabilities p_m are found in expectation

    f(p) = sum_m 1 - (1 - p_m)^k

times. f is concave and symmetric in p, so its maximum over distributions is at p_m = 1/M, where
pass@1 is 1 too: on these problems nothing has to be given up for diversity.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments.study import results
from experiments.study.base import KS
from pkpo_jax import tasks
from pkpo_jax.tasks import Maze, maze, paths


def modes(grid: str, longest: int) -> int:
    """Counts the simple paths from S to E of at most `longest` steps.

    >>> modes("S.\\n.E", 2), modes("S*\\n.E", 8)
    (2, 1)
    """
    width = grid.index("\n") + 1
    cells = maze.distances(grid)
    graph = {c: [n for n in (c - 1, c + 1, c - width, c + width) if n in cells] for c in cells}
    found = paths.simple_paths(graph, grid.index(maze.START), grid.index(maze.GOAL), maze.SEARCHED)
    if found is None:
        raise ValueError("a maze has too many paths to be counted; lower task.max_side.")
    return sum(len(path) - 1 <= longest for path in found)


def optimum(task: Maze, *, ks: Sequence[int], longest: int, problems: int) -> dict[str, Any]:
    """Returns the best distinct correct@k on held-out problems, and how many modes these have.

    Args:
      task: mazes without fog, whose modes are paths.
      ks: numbers of samples.
      longest: the most letters of a response.
      problems: how many of the first held-out problems to use.

    Returns:
      {"distinct_correct": {k: mean over problems}, "modes": mean number within `longest` steps}.

    Raises:
      ValueError: the prompt hides cells, or modes are not paths.
    """
    if task.fog or task.modes != "path":
        raise ValueError(
            f"task.fog={task.fog}, task.modes={task.modes}; expected mazes without fog, whose "
            "modes are paths."
        )
    held_out = task.problems("test")
    counts = [modes(held_out[i]["grid"], longest) for i in range(min(problems, len(held_out)))]
    return {
        "distinct_correct": {
            k: statistics.fmean(m * (1 - (1 - 1 / m) ** k) for m in counts) for k in ks
        },
        "modes": statistics.fmean(counts),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = flags.FLAGS.config
    try:
        task = tasks.make(config.task)
        if not isinstance(task, Maze):
            raise ValueError(f"task.name={config.task.name!r}; expected maze.")
        longest, problems = config.rollout.max_response, config.eval.problems
        found = optimum(task, ks=KS, longest=longest, problems=problems)
    except ValueError as e:
        raise app.UsageError(str(e)) from e
    results.publish(found, flags.FLAGS.output)


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    config_flags.DEFINE_config_file("config", "configs/maze_tiny.py")
    flags.DEFINE_string("output", "", "JSON file to write the numbers to; none if empty.")
    app.run(main)
