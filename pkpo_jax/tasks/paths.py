"""Simple paths on a grid, and their homotopy classes: ways around obstacles that cannot be bent.

A cell is an index into the text of a grid, whose rows are joined by newlines. A path is a list of
cells, each one beside the one before it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

WALL = "*"


def without_loops(path: Sequence[int]) -> list[int]:
    """Erases the loops of a path in the order in which it closes them (loop erasure, Lawler 1980).

    >>> without_loops([0, 1, 2, 1, 6])
    [0, 1, 6]
    """
    kept: list[int] = []
    for cell in path:
        if cell in kept:
            del kept[kept.index(cell) :]
        kept.append(cell)
    return kept


def simple_paths(
    graph: Mapping[int, Sequence[int]], start: int, goal: int, limit: int
) -> list[list[int]] | None:
    """Returns all paths from start to goal that visit no cell twice.

    Returns None if the search enters more than `limit` cells. `graph` maps a cell to those beside
    it that can be entered.
    """
    found: list[list[int]] = []
    path, untried = [start], [iter(graph.get(start, ()))]
    entered = 0
    while untried:
        cell = next(untried[-1], None)
        if cell is None:
            path.pop()
            untried.pop()
        elif cell == goal:
            found.append([*path, cell])
        elif cell not in path:
            entered += 1
            if entered > limit:
                return None
            path.append(cell)
            untried.append(iter(graph[cell]))
    return found


def homotopy_class(grid: str, path: Sequence[int]) -> str:
    """Names the homotopy class of a path, its ends held fixed, in the free cells of a grid.

    Two paths have one name iff one can be bent into the other without crossing a wall. A ray goes
    up from each obstacle, and the name is the reduced word of the rays that the path crosses: the
    number of the obstacle, with + to the right and - to the left. These words decide it, because
    the fundamental group of the plane without a point in each obstacle is free on these letters.

    >>> grid = "S..\\n.*.\\n..E"
    >>> homotopy_class(grid, [0, 1, 2, 6, 10]), homotopy_class(grid, [0, 4, 8, 9, 10])
    ('+1', '')
    """
    width = (grid + "\n").index("\n") + 1
    word: list[int] = []
    for at, to in itertools.pairwise(path):
        row, column = divmod(min(at, to), width)
        if abs(to - at) != 1:
            continue  # Steps up and down run along the rays.
        # Rays of one column are side by side in the order of their obstacles.
        crossed = [
            number
            for number, base in enumerate(obstacles(grid), 1)
            if base % width == column and row < base // width
        ]
        for letter in crossed if to > at else [-number for number in reversed(crossed)]:
            if word and word[-1] == -letter:
                word.pop()
            else:
                word.append(letter)
    return " ".join(f"{letter:+d}" for letter in word)


@functools.lru_cache(maxsize=4096)
def obstacles(grid: str) -> list[int]:
    """Returns the first cell of each obstacle that a path can go around.

    An obstacle is a set of walls that touch by an edge or a corner, none of them on the border of
    the grid: a path cannot go between two walls that touch, nor outside the grid.
    """
    width = (grid + "\n").index("\n") + 1
    bases: list[int] = []
    seen: set[int] = set()
    for base, cell in enumerate(grid):
        if cell == WALL and base not in seen:
            obstacle = [base]
            seen.add(base)
            for wall in obstacle:  # The list grows as walls are found.
                new = [c for c in _around(grid, width, wall) if grid[c] == WALL and c not in seen]
                obstacle += new
                seen.update(new)
            if not any(_is_on_border(grid, width, wall) for wall in obstacle):
                bases.append(base)
    return bases


def _around(grid: str, width: int, cell: int) -> Iterator[int]:
    """Yields the indices of the eight characters around a cell, as far as they are in the text."""
    for row in (-width, 0, width):
        for column in (-1, 0, 1):
            if (row or column) and 0 <= cell + row + column < len(grid):
                yield cell + row + column


def _is_on_border(grid: str, width: int, cell: int) -> bool:
    row, column = divmod(cell, width)
    return row == 0 or row == len(grid) // width or column == 0 or column == width - 2
