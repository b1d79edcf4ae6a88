"""Square text mazes: S start, E goal, * wall, . free; the answer is a walk of the letters L R U D.

This is the task of "Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large
Reasoning Models" (arXiv 2508.10751), with one additional option: `fog` hides a share of the cells
from the prompt, so that no single answer is always right, and the policies that maximise pass@1
and pass@k differ by construction.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import os
import random
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pkpo_jax.tasks import paths
from pkpo_jax.tasks.base import Problem, Task, require
from pkpo_jax.tasks.boxed import boxed

START, GOAL, FREE, HIDDEN = "SE.?"
WALL = paths.WALL
MOVES = {"L": (0, -1), "R": (0, 1), "U": (-1, 0), "D": (1, 0)}
SPLITS = ("train", "test")
# The modes of a maze are counted if a search for all simple paths enters at most this many cells.
SEARCHED = 20_000
INSTRUCTION = r"""Find a walk from S to E in this maze. * is a wall, . is free and ? may be either.
A step goes one cell left, right, up or down: write L, R, U or D for it. End your answer with the
letters of the whole walk in \boxed{}, as in \boxed{RRDL}.

"""


@dataclasses.dataclass(frozen=True)
class Maze(Task):
    """Random mazes whose shortest path has a length within the given bounds.

    Attributes:
      min_side, max_side: bounds on the side of the square, which is uniform between the two.
      wall_density: the probability of a wall, for every cell but S and E.
      min_path, max_path: bounds on the length of the shortest path from S to E; 0 for no maximum.
      fog: the share of the cells other than S and E that the prompt shows as `?`.
      reward: "solved" is 1 iff the walk stays on free cells and ends on E. "progress" is one minus
        the ratio of the shortest distances to E from the end of the walk and from S, at least 0,
        and 0 for illegal walks.
      train_problems, test_problems: sizes of the splits. The train split contains no prompt of the
        test split.
      seed: the seed of the mazes, independent of the run's seed.
      demonstration_noise: probabilities, of which one is sampled for each demonstration. The
        demonstration is a shortest path, with each letter replaced by a random letter with this
        probability.
      modes: what tells right walks apart, once their loops are erased. "path" is each simple path,
        and "homotopy" each homotopy class of simple paths: the sides on which it passes obstacles.
      instruct: whether the prompt explains the task and asks for the walk in \\boxed{}, as language
        models need it.
      data_dir: the directory that stores the mazes, by default TFDS's (~/tensorflow_datasets).
    """

    min_side: int = 4
    max_side: int = 4
    wall_density: float = 0.35
    min_path: int = 2
    max_path: int = 5
    fog: float = 0.6
    reward: str = "solved"
    train_problems: int = 16_384
    test_problems: int = 512
    seed: int = 0
    demonstration_noise: tuple[float, ...] = (0.0, 0.3, 1.0)
    modes: str = "path"
    instruct: bool = False
    data_dir: str = ""

    def __post_init__(self) -> None:
        require(self, 2 <= self.min_side <= self.max_side, "min_side", "2 <= min_side <= max_side")
        require(self, 0 <= self.wall_density < 1, "wall_density", "0 <= wall_density < 1")
        require(self, self.min_path >= 1, "min_path", "min_path >= 1")
        require(
            self,
            self.max_path == 0 or self.max_path >= self.min_path,
            "max_path",
            "0 (no maximum) or max_path >= min_path",
        )
        require(self, 0 <= self.fog <= 1, "fog", "0 <= fog <= 1")
        require(self, self.reward in ("solved", "progress"), "reward", "solved or progress")
        require(self, self.modes in ("path", "homotopy"), "modes", "path or homotopy")
        require(self, self.train_problems >= 1, "train_problems", "at least 1")
        require(self, self.test_problems >= 1, "test_problems", "at least 1")
        require(
            self,
            all(0 <= p <= 1 for p in self.demonstration_noise) and self.demonstration_noise,
            "demonstration_noise",
            "probabilities",
        )

    @property
    def alphabet(self) -> str:  # pyrefly: ignore  What a task reads decides its characters.
        grids = START + GOAL + WALL + FREE + HIDDEN + "\n" + "".join(MOVES)
        return string.printable if self.instruct else grids

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of "train" or "test"; TFDS prepares them on first use in seconds."""
        builder = _builder(self)
        try:
            builder.download_and_prepare()
        except OSError:
            # Another process may have prepared the same mazes and put them in place first.
            if not os.path.exists(os.path.join(builder.data_path, "dataset_info.json")):
                raise
            builder = _builder(self)
        return _Problems(builder.as_data_source(split=split), INSTRUCTION if self.instruct else "")

    def grade(self, problem: Problem, response: str) -> float:
        """Returns the reward of a walk; any character other than L R U D makes it illegal."""
        moves = self.answer(response)
        end = None if moves is None else walk(problem["grid"], moves)
        if end is None:
            return 0.0
        if self.reward == "solved":
            return float(problem["grid"][end] == GOAL)
        distance = distances(problem["grid"])
        return max(0.0, 1.0 - distance[end] / distance[problem["grid"].index(START)])

    def answer(self, response: str) -> str | None:
        """Returns the response, or its last box with `instruct`, if it is a walk; else None."""
        moves = self._moves(response)
        return moves if moves is not None and set(moves) <= MOVES.keys() else None

    def mode_of(self, problem: Problem, response: str) -> str | None:
        """Names the simple path that a walk takes, or its homotopy class; see `modes`.

        Loops are erased first, as a detour that comes back is no other solution.
        """
        path = paths.without_loops(_cells(problem["grid"], self.answer(response) or ""))
        return _mode(problem["grid"], path, self.modes)

    def mode_count(self, problem: Problem) -> int | None:
        """Counts the simple paths from S to E of any length, or their homotopy classes.

        Returns None for large mazes, where the search enters more than `SEARCHED` cells.
        """
        return _mode_count(problem["grid"], self.modes)

    def _moves(self, response: str) -> str | None:
        return boxed(response) if self.instruct else response

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns a shortest path with some of its letters replaced at random."""
        noise = rng.choice(self.demonstration_noise)
        letters = list(MOVES)
        path = shortest_path(problem["grid"], rng)
        moves = "".join(rng.choice(letters) if rng.random() < noise else m for m in path)
        return f"\\boxed{{{moves}}}" if self.instruct else moves

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the whole maze, with `?` where the prompt hides a cell, and the walks.

        The width of a walk shows how frequent it is. A walk ends before its first illegal move;
        green walks end on E.
        """
        rows = problem["grid"].split("\n")
        shown = problem["prompt"].removeprefix(INSTRUCTION).split("\n")
        side = len(rows)
        shade = {WALL: 0.25, FREE: 1.0, START: 0.9, GOAL: 0.9}
        axes.imshow([[shade[c] for c in row] for row in rows], cmap="gray", vmin=0, vmax=1)
        for y in range(side):
            for x in range(side):
                if rows[y][x] in START + GOAL:
                    axes.text(x, y, rows[y][x], ha="center", va="center", weight="bold")
                if shown[y][x] == HIDDEN:
                    axes.text(x, y, HIDDEN, ha="center", va="center", color="tab:blue", size=7)
        walks = [self._moves(response) or "" for response in responses]
        reward_of = dict(zip(walks, rewards, strict=True))
        answers = collections.Counter(walks).most_common()
        for i, (answer, count) in enumerate(answers):
            # Each walk is shifted a little, so that none hides another.
            shift = 0.5 * ((i + 1) / (len(answers) + 1) - 0.5)
            cells = [divmod(at, side + 1) for at in _cells(problem["grid"], answer)]
            color = "tab:green" if reward_of[answer] >= 1.0 else "tab:red"
            xs, ys = [x + shift for _, x in cells], [y + shift for y, _ in cells]
            axes.plot(xs, ys, color=color, linewidth=0.7 + 5 * count / len(responses), alpha=0.6)
            axes.plot(xs[-1:], ys[-1:], color=color, marker="o" if color == "tab:green" else "x")
        axes.set(xticks=[], yticks=[])


def walk(grid: str, moves: str) -> int | None:
    """Returns the index in `grid` where a walk from S ends; None if it hits a wall or an edge.

    >>> grid = "S.\\n*E"
    >>> grid[walk(grid, "RD")], walk(grid, "DR"), walk(grid, "RDD"), walk(grid, "go right")
    ('E', None, None, None)
    """
    cells = _cells(grid, moves)
    return cells[-1] if len(cells) == len(moves) + 1 else None


@functools.lru_cache(maxsize=4096)
def distances(grid: str) -> dict[int, int]:
    """Returns the number of steps to E from every cell of `grid` that reaches it, by index."""
    queue = collections.deque([grid.index(GOAL)])
    steps = {queue[0]: 0}
    while queue:
        at = queue.popleft()
        for _, cell in _neighbours(grid, at):
            if cell not in steps:
                steps[cell] = steps[at] + 1
                queue.append(cell)
    return steps


def shortest_path(grid: str, rng: random.Random) -> str:
    """Returns a shortest path from S to E, each step chosen at random among the best ones."""
    distance, at, path = distances(grid), grid.index(START), ""
    while distance[at]:
        best = [(m, c) for m, c in _neighbours(grid, at) if distance[c] < distance[at]]
        move, at = rng.choice(best)
        path += move
    return path


def _neighbours(grid: str, at: int) -> Iterator[tuple[str, int]]:
    """Yields the moves to free cells beside `at`, and the cells."""
    for move, offset in _offsets(grid).items():
        if _is_free(grid, at + offset):
            yield move, at + offset


def _offsets(grid: str) -> dict[str, int]:
    """Returns the distance that each move goes in `grid`, whose rows are joined by newlines."""
    width = (grid + "\n").index("\n") + 1
    return {move: dy * width + dx for move, (dy, dx) in MOVES.items()}


def _is_free(grid: str, cell: int) -> bool:
    """Returns whether a cell can be entered. A step off the end of a row leads to a newline."""
    return 0 <= cell < len(grid) and grid[cell] not in WALL + "\n"


def _cells(grid: str, moves: str) -> list[int]:
    """Returns the cells that a walk visits, S first, up to its first illegal move."""
    offsets, cells = _offsets(grid), [grid.index(START)]
    for move in moves:
        if move not in offsets or not _is_free(grid, cells[-1] + offsets[move]):
            break
        cells.append(cells[-1] + offsets[move])
    return cells


def _mode(grid: str, path: Sequence[int], kind: str) -> str:
    if kind == "homotopy":
        return paths.homotopy_class(grid, path)
    letters = {offset: move for move, offset in _offsets(grid).items()}
    return "".join(letters[to - at] for at, to in itertools.pairwise(path))


@functools.lru_cache(maxsize=4096)
def _mode_count(grid: str, kind: str) -> int | None:
    graph = {c: [n for _, n in _neighbours(grid, c)] for c in distances(grid)}
    found = paths.simple_paths(graph, grid.index(START), grid.index(GOAL), SEARCHED)
    return None if found is None else len({_mode(grid, path, kind) for path in found})


def generate(task: Maze, split: str) -> Iterator[dict[str, Any]]:
    """Yields the mazes of a split, in order; those of "train" repeat no prompt of "test"."""
    rng = random.Random(f"{task.seed} {split}")
    count = task.train_problems if split == "train" else task.test_problems
    taken = {m["prompt"] for m in generate(task, "test")} if split == "train" else set()
    for i in range(count):
        for _ in range(10_000):
            maze = _sample_maze(task, rng)
            if maze and maze["prompt"] not in taken:
                break
        else:
            raise ValueError(
                f"no maze number {i} of {count} for the {split} split in 10000 draws; widen "
                "task.min_path..task.max_path, or lower task.wall_density or task.test_problems."
            )
        yield {"id": i, **maze}


def _sample_maze(task: Maze, rng: random.Random) -> dict[str, str] | None:
    """Returns a random maze, or None if its shortest path is too short, too long or missing."""
    side = rng.randint(task.min_side, task.max_side)
    start, goal = rng.sample(range(side * side), 2)
    cells = [WALL if rng.random() < task.wall_density else FREE for _ in range(side * side)]
    cells[start], cells[goal] = START, GOAL
    grid = _join(cells, side)
    length = distances.__wrapped__(grid).get(grid.index(START), 0)
    if length < task.min_path or length > (task.max_path or math.inf):
        return None
    hidden = rng.sample(
        [i for i in range(side * side) if i not in (start, goal)],
        round(task.fog * (side * side - 2)),
    )
    for i in hidden:
        cells[i] = HIDDEN
    # A prompt ends with a newline, so that the answer starts on a new line.
    return {"grid": grid, "prompt": _join(cells, side) + "\n"}


def _join(cells: Sequence[str], side: int) -> str:
    return "\n".join("".join(cells[i : i + side]) for i in range(0, side * side, side))


class _Problems(Sequence):
    """The rows of a TFDS data source as problems, with decoded text."""

    def __init__(self, source: Sequence[Any], instruction: str) -> None:
        self._source, self._instruction = source, instruction

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Problem:  # pyrefly: ignore  Nobody slices them.
        if not 0 <= index < len(self):
            raise IndexError(f"problem {index} of {len(self)}")
        row = self._source[index]
        return {
            "id": int(row["id"]),
            "grid": row["grid"].decode(),
            "prompt": self._instruction + row["prompt"].decode(),
        }


def _builder(task: Maze) -> Any:
    """Returns the TFDS builder of these mazes, whose config name holds all that they depend on."""
    # The import is local because TFDS takes half a second to import.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    config = tfds.core.BuilderConfig(
        name=f"side{task.min_side}-{task.max_side}_wall{task.wall_density:g}"
        f"_path{task.min_path}-{task.max_path}_fog{task.fog:g}"
        f"_train{task.train_problems}_test{task.test_problems}_seed{task.seed}"
    )

    # The class belongs to one configuration, so it is not registered for `tfds.load`.
    with registered.skip_registration():

        class MazeBuilder(tfds.core.GeneratorBasedBuilder):
            """Square text mazes (see pkpo_jax.tasks.maze)."""

            name = "pkpo_maze"
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = (config,)

            def _info(self) -> tfds.core.DatasetInfo:
                text = tfds.features.Text()
                features = tfds.features.FeaturesDict(
                    {"id": np.int32, "grid": text, "prompt": text}
                )
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                return ((maze["id"], maze) for maze in generate(task, split))

    return MazeBuilder(
        data_dir=task.data_dir or None, config=config.name, file_format="array_record"
    )
