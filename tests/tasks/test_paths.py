"""Tests of simple paths and homotopy classes against enumeration on small grids."""

import collections
import itertools
import random

import pytest

from pkpo_jax.tasks import Maze, maze, paths

STEPS = [(0, 1), (1, 0), (0, -1), (-1, 0)]


def free_cells(grid):
    rows = grid.split("\n")
    return {(y, x) for y, row in enumerate(rows) for x, cell in enumerate(row) if cell != "*"}


def find(grid, cell):
    return next((y, row.index(cell)) for y, row in enumerate(grid.split("\n")) if cell in row)


def all_simple_paths(grid):
    """Returns every simple path from S to E as a tuple of (row, column), by recursion."""
    free, goal = free_cells(grid), find(grid, "E")

    def go(path):
        if path[-1] == goal:
            return [path]
        y, x = path[-1]
        near = [(y + dy, x + dx) for dy, dx in STEPS]
        return [p for c in near if c in free and c not in path for p in go((*path, c))]

    return go((find(grid, "S"),))


def squares(grid):
    """Returns the corners, in order around it, of each square of four free cells."""
    free = free_cells(grid)
    around = [((y, x), (y, x + 1), (y + 1, x + 1), (y + 1, x)) for y, x in free]
    return [square for square in around if set(square) <= free]


def bent(path, square):
    """Yields the path with one, two or three of its steps around a square replaced by the rest."""
    for turned in (square, square[::-1]):
        for start, length in itertools.product(range(4), (1, 2, 3)):
            side = tuple(turned[(start + i) % 4] for i in range(length + 1))
            other = tuple(turned[(start - i) % 4] for i in range(5 - length))
            for at in range(len(path) - length):
                if path[at : at + length + 1] == side:
                    yield path[:at] + other + path[at + length + 1 :]


def classes_by_bending(grid):
    """Returns the sets of simple paths that can be bent into each other over free squares."""
    left, found = set(all_simple_paths(grid)), []
    while left:
        queue = [left.pop()]
        one = set(queue)
        while queue:
            path = queue.pop()
            for square in squares(grid):
                for other in bent(path, square):
                    if other in left:
                        left.remove(other)
                        one.add(other)
                        queue.append(other)
        found.append(one)
    return found


def random_grid(rng, height, width, density):
    cells = ["*" if rng.random() < density else "." for _ in range(height * width)]
    for letter, at in zip("SE", rng.sample(range(height * width), 2), strict=True):
        cells[at] = letter
    return "\n".join("".join(cells[i : i + width]) for i in range(0, len(cells), width))


def as_indices(grid, path):
    return [y * (grid.index("\n") + 1) + x for y, x in path]


# The grid after the random ones has four obstacles, of which two share each column.
GRIDS = [random_grid(random.Random(i), 4 + i % 2, 5, 0.25 + 0.05 * (i % 3)) for i in range(60)]
GRIDS += ["S....\n.*.*.\n.....\n.*.*.\n....E", "S...\n.**.\n.*..\n...E", "S*\n*E", "S.\n.E"]


def test_homotopy_classes_are_the_paths_that_can_be_bent_into_each_other():
    several = 0
    for grid in GRIDS:
        by_name = collections.defaultdict(set)
        for path in all_simple_paths(grid):
            by_name[paths.homotopy_class(grid, as_indices(grid, path))].add(path)
        expected = classes_by_bending(grid)
        assert sorted(map(sorted, by_name.values())) == sorted(map(sorted, expected)), grid
        several += len(expected) > 1
    assert several >= 10


def test_bending_and_returning_do_not_change_the_class_of_any_walk():
    grid = GRIDS[60]
    rng, free = random.Random(0), free_cells(grid)
    for _ in range(200):
        walk = [find(grid, "S")]
        for _ in range(20):
            y, x = walk[-1]
            walk.append(rng.choice([c for c in ((y + a, x + b) for a, b in STEPS) if c in free]))
        name = paths.homotopy_class(grid, as_indices(grid, walk))
        for square in squares(grid):
            for other in bent(tuple(walk), square):
                assert paths.homotopy_class(grid, as_indices(grid, other)) == name
        at = rng.randrange(1, len(walk))
        returned = [*walk[: at + 1], walk[at - 1], *walk[at:]]
        assert paths.homotopy_class(grid, as_indices(grid, returned)) == name


def test_going_around_an_obstacle_again_is_another_class():
    grid = "S..\n.*.\n..E"
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    once, twice = (as_indices(grid, [*around * n, (0, 0)]) for n in (1, 2))
    assert [paths.homotopy_class(grid, p) for p in (once, twice)] == ["+1", "+1 +1"]
    assert paths.homotopy_class(grid, once[::-1]) == "-1"


def test_modes_of_mazes_count_every_simple_path_and_class():
    for grid in GRIDS:
        problem, found = {"grid": grid}, all_simple_paths(grid)
        assert Maze().mode_count(problem) == len(found)
        assert Maze(modes="homotopy").mode_count(problem) == len(classes_by_bending(grid))
        names = {(0, 1): "R", (1, 0): "D", (0, -1): "L", (-1, 0): "U"}
        for path in found[:20]:
            moves = "".join(names[b[0] - a[0], b[1] - a[1]] for a, b in itertools.pairwise(path))
            assert Maze().grade(problem, moves) == 1.0
            assert Maze().mode_of(problem, moves) == moves


def test_a_detour_that_comes_back_is_no_other_mode():
    problem = {"grid": "S.\n..\n.E"}
    for walk in ("DDR", "DUDDR", "DDUDR", "RLDDR", "DDRLR"):
        assert Maze().grade(problem, walk) == 1.0
        assert Maze().mode_of(problem, walk) == "DDR"
    boxed = Maze(instruct=True).mode_of(problem, r"I go \boxed{RLDDR}.")
    assert boxed == "DDR" and Maze().mode_of(problem, "RDD") == "RDD"


def test_large_mazes_are_not_counted():
    side = 12
    cells = ["."] * (side * side)
    cells[0], cells[-1] = "S", "E"
    grid = "\n".join("".join(cells[i : i + side]) for i in range(0, side * side, side))
    assert Maze().mode_count({"grid": grid}) is None
    with pytest.raises(ValueError, match=r"task\.modes='paths'; expected path or homotopy"):
        Maze(modes="paths")


def test_modes_do_not_change_the_mazes():
    one, other = Maze(test_problems=5), Maze(test_problems=5, modes="homotopy")
    assert list(maze.generate(one, "test")) == list(maze.generate(other, "test"))
