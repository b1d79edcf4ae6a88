"""The best pass@k that any policy can have on fogged mazes, exactly, and its pass@k at other k.

python -m experiments.study.optimum [--config=configs/maze_tiny.py] [--output=FILE.json]

A policy sees the prompt and samples k independent walks from a distribution pi. The mazes that the
prompt may hide have known weights w_m, so its pass@k is

    f(pi) = sum_m w_m (1 - (1 - s_m)^k),    s_m = sum of pi over the walks that solve maze m,

a concave function. Few walks matter: a walk that crosses a superset of another's hidden cells
solves no maze that the other does not. f is maximised over the rest, with a certificate. It prints
what `optimum` returns, as JSON, after seconds on one CPU core for 512 mazes with 8 hidden cells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from scipy import optimize

from experiments.study import results
from experiments.study.base import KS
from pkpo_jax import tasks
from pkpo_jax.tasks import Maze, maze

MOST_HIDDEN = 14
# f may be this far below the optimum. Tables need far less precision, but where f is flat, pass@k
# at another k still depends on where the solution lies on the flat.
TOLERANCE = 1e-10
MOST_STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class Choices:
    """The possible answers to a prompt, and the mazes that it may hide.

    Mazes that the same walks solve count as one, with their weights added.

    Attributes:
      walks: the A walks worth sampling, in letters, shortest first; a single empty walk if none
        can reach E.
      solves: [A, M] 0 or 1, whether a walk solves a maze.
      weights: [M] probability of each maze given the prompt; they sum to 1.
    """

    walks: tuple[str, ...]
    solves: np.ndarray
    weights: np.ndarray

    def pass_at_k(self, policy: np.ndarray, k: int) -> float:
        """Returns the chance that at least one of k walks from `policy` [A] reaches E."""
        return float(self.weights @ (1 - self.missed(policy) ** k))

    def missed(self, policy: np.ndarray) -> np.ndarray:
        """Returns [M], the chance that one walk from `policy` [A] does not solve a maze: 1 - s."""
        return np.clip(1 - policy @ self.solves, 0, 1)


def choices(prompt: str, task: Maze, longest: int) -> Choices:
    """Returns the walks of up to `longest` letters worth sampling for a prompt, and its mazes.

    Raises:
      ValueError: too many cells are hidden, no maze of the task has this prompt, or the task
        does not ask for, and grade, a bare walk that ends on E.
    """
    if task.reward != "solved" or task.instruct:
        raise ValueError(
            "the optimum needs bare walks that end on E: task.reward=solved, no task.instruct."
        )
    shown = prompt.rstrip("\n")
    hidden = [at for at, cell in enumerate(shown) if cell == maze.HIDDEN]
    if len(hidden) > MOST_HIDDEN:
        raise ValueError(
            f"a prompt hides {len(hidden)} cells, and at most {MOST_HIDDEN} can be enumerated. "
            "Lower task.fog or task.max_side."
        )
    free, weights = _posterior(shown, hidden, task)
    walks, crossed = _walks(shown, hidden, longest)
    solves = (crossed[:, None] & ~free) == 0
    kinds, kind = np.unique(solves, axis=1, return_inverse=True)
    # Some versions of NumPy return `kind` as [1, M].
    return Choices(walks, kinds.astype(float), np.bincount(kind.ravel(), weights))


def _posterior(shown: str, hidden: Sequence[int], task: Maze) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mazes behind a prompt: [M] free hidden cells, as bits, and [M] weights.

    The task makes each cell a wall independently, rejects mazes without a path of the right
    length, and hides cells whatever they hold. So the weights are the prior of the cells,
    restricted to the mazes that are not rejected.
    """
    free, weights = [], []
    for bits in range(2 ** len(hidden)):
        cells = list(shown)
        for i, at in enumerate(hidden):
            cells[at] = maze.FREE if bits >> i & 1 else maze.WALL
        length = maze.distances("".join(cells)).get(shown.index(maze.START), 0)
        walls = len(hidden) - bits.bit_count()
        weight = task.wall_density**walls * (1 - task.wall_density) ** bits.bit_count()
        if weight and task.min_path <= length <= (task.max_path or math.inf):
            free.append(bits)
            weights.append(weight)
    if not sum(weights):
        raise ValueError(f"no maze of the task has this prompt:\n{shown}")
    return np.array(free), np.array(weights) / sum(weights)


def _walks(shown: str, hidden: Sequence[int], longest: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns one walk to E for each minimal set of hidden cells, and [A] the sets, as bits.

    The search is breadth first over (cell, hidden cells crossed so far). It drops a walk if another
    one that is no longer reached the same cell over a subset of its hidden cells.
    """
    bit = {at: 1 << i for i, at in enumerate(hidden)}
    start, goal = shown.index(maze.START), shown.index(maze.GOAL)
    best: dict[int, dict[int, str]] = {start: {0: ""}}
    front = [(start, 0, "")]
    for _ in range(longest):
        reached = []
        for at, crossed, moves in front:
            if at == goal:
                continue
            for step in maze.MOVES:
                # `maze.walk` treats a hidden cell as free.
                cell = maze.walk(shown, moves + step)
                if cell is None:
                    continue
                now = crossed | bit.get(cell, 0)
                known = best.setdefault(cell, {})
                if not any(_within(other, now) for other in known):
                    known[now] = moves + step
                    reached.append((cell, now, moves + step))
        front = reached
    # A longer walk may cross fewer hidden cells than one found before it.
    found = best.get(goal, {})
    kept = {c: w for c, w in found.items() if not any(_within(o, c) for o in found if o != c)}
    # If no walk is short enough, an empty one stands in, which solves no maze.
    kept = kept or {-1: ""}
    return tuple(kept.values()), np.array(list(kept))


def _within(some: int, others: int) -> bool:
    return some & ~others == 0


@dataclasses.dataclass(frozen=True)
class Best:
    """A policy [A] over `Choices.walks` whose pass@k is at most `gap` below the optimum."""

    policy: np.ndarray
    gap: float


def maximise(prompt: Choices, k: int) -> Best:
    """Returns the distribution over walks with the highest pass@k.

    Each step moves probability from the worst walk that has any to the best one, as far as that
    helps, until the duality gap max_a g_a - sum_a pi_a g_a, with g the gradient of f, is within
    TOLERANCE. f is concave, so no policy is better by more than the gap. For k = 1 the result is
    the best single walk, the first if several are equal; mixtures of equal walks are as good at
    k = 1 and better at k > 1.

    Raises:
      RuntimeError: the gap is larger after MOST_STEPS.
    """
    solves, weights = prompt.solves, prompt.weights
    count = len(prompt.walks)
    if k == 1:
        return Best(np.eye(count)[np.argmax(solves @ weights)], 0.0)
    policy, gap = np.full(count, 1 / count), np.inf
    for _ in range(MOST_STEPS):
        missed = prompt.missed(policy)
        gradient = solves @ (k * weights * missed ** (k - 1))
        gap = float(gradient.max() - policy @ gradient)
        if gap <= TOLERANCE:
            return Best(policy, max(gap, 0.0))
        to = np.argmax(gradient)
        source = np.argmin(np.where(policy > 0, gradient, np.inf))
        moved = _moved(weights, missed, solves[to] - solves[source], policy[source], k)
        policy[source] -= moved
        policy[to] += moved
    raise RuntimeError(f"pass@{k} may be {gap:.1e} below its optimum after {MOST_STEPS} steps")


def _moved(weights: np.ndarray, missed: np.ndarray, gain: np.ndarray, most: float, k: int) -> float:
    """Returns the probability, up to `most`, to move between walks that differ by `gain` [M]."""

    def slope(moved: float) -> float:
        return float((weights * gain) @ np.clip(missed - moved * gain, 0, 1) ** (k - 1))

    if slope(most) >= 0:
        return most
    root: Any = optimize.brentq(slope, 0.0, most, xtol=1e-15)
    return float(root)


def optimum(task: Maze, *, ks: Sequence[int], longest: int, problems: int) -> dict[str, Any]:
    """Returns pass@j, for all j of `ks`, of the best policies for each k on held-out problems.

    Values are means over what the fog may hide, not over what it hides on these problems.

    Args:
      task: fogged mazes with the reward "solved".
      ks: numbers of samples, at least 1 each.
      longest: the most letters of a response.
      problems: how many of the first held-out problems to use.

    Returns:
      matrix: {k: {j: mean over problems of pass@j of the policies that maximise pass@k}}. Its
        diagonal is the optimum. For k = 1 the policies are single walks.
      mixed: {j: pass@j of the policies that are best at pass@2 among those best at pass@1}.
      tied: share of the problems on which several walks have the best pass@1.
      gap: the largest duality gap, which bounds the error of the diagonal.
      sure: share of the problems with a walk that is right whatever the fog hides.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={list(ks)}; expected numbers of samples, at least 1 each.")
    held_out = task.problems("test")
    if not 1 <= problems <= len(held_out):
        raise ValueError(f"problems={problems}; expected 1..{len(held_out)}, the held-out ones.")
    prompts = [choices(held_out[i]["prompt"], task, longest) for i in range(problems)]
    firsts = [_first_equals(prompt) for prompt in prompts]
    rows = {k: _row(prompts, k, ks) for k in ks}
    return {
        "matrix": {k: row for k, (row, _) in rows.items()},
        "mixed": _row(firsts, 2, ks)[0],
        "tied": float(np.mean([len(prompt.walks) > 1 for prompt in firsts])),
        "gap": max(gap for _, gap in rows.values()),
        "sure": float(np.mean([prompt.solves.all(1).any() for prompt in prompts])),
    }


def _row(prompts: Sequence[Choices], k: int, ks: Sequence[int]) -> tuple[dict[int, float], float]:
    """Returns mean pass@j, j in `ks`, of the best policies at pass@k, and the largest gap."""
    best = [maximise(prompt, k) for prompt in prompts]
    pairs = list(zip(prompts, best, strict=True))
    means = {j: float(np.mean([p.pass_at_k(b.policy, j) for p, b in pairs])) for j in ks}
    return means, max(b.gap for b in best)


def _first_equals(prompt: Choices) -> Choices:
    """Returns the choices with only the walks of the highest pass@1."""
    values = prompt.solves @ prompt.weights
    kept = np.flatnonzero(values >= values.max() - 1e-12)
    walks = tuple(prompt.walks[i] for i in kept)
    return dataclasses.replace(prompt, walks=walks, solves=prompt.solves[kept])


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = flags.FLAGS.config
    try:
        ks = [int(k) for k in flags.FLAGS.ks]
        task = tasks.make(config.task)
        if not isinstance(task, Maze):
            raise ValueError(f"task.name={config.task.name!r}; expected maze.")
        longest, problems = config.rollout.max_response, flags.FLAGS.problems
        found = optimum(task, ks=ks, longest=longest, problems=problems)
    except ValueError as e:
        raise app.UsageError(str(e)) from e
    results.publish(found, flags.FLAGS.output)


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    config_flags.DEFINE_config_file("config", "configs/maze_tiny.py")
    flags.DEFINE_list("ks", [str(k) for k in KS], "Values of k, each at least 1.")
    flags.DEFINE_integer("problems", 512, "Held-out mazes.", lower_bound=1)
    flags.DEFINE_string("output", "", "JSON file to write the numbers to; none if empty.")
    app.run(main)
