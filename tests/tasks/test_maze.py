import collections
import dataclasses
import random
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from pkpo_jax.tasks import Maze, maze

STEPS = {"L": (0, -1), "R": (0, 1), "U": (-1, 0), "D": (1, 0)}


def reaches(grid, moves):
    """Returns where a walk ends, as (row, column), by the rules on rows and columns; or None."""
    rows = grid.split("\n")
    y, x = next((y, row.index("S")) for y, row in enumerate(rows) if "S" in row)
    for move in moves:
        if move not in STEPS:
            return None
        y, x = y + STEPS[move][0], x + STEPS[move][1]
        if not (0 <= y < len(rows) and 0 <= x < len(rows)) or rows[y][x] == "*":
            return None
    return y, x


mazes = st.builds(
    lambda seed, side: next(
        iter(
            maze.generate(
                Maze(
                    min_side=2,
                    max_side=side,
                    min_path=1,
                    max_path=0,
                    fog=0.3,
                    seed=seed,
                    test_problems=1,
                ),
                "test",
            )
        )
    ),
    st.integers(0, 10_000),
    st.integers(2, 9),
)


@hypothesis.given(mazes, st.text(alphabet="LRUD", max_size=12) | st.text(max_size=5))
def test_grades_follow_the_rules(problem, moves):
    end = reaches(problem["grid"], moves)
    solved = end is not None and problem["grid"].split("\n")[end[0]][end[1]] == "E"
    assert Maze().grade(problem, moves) == float(solved)


@hypothesis.given(mazes, st.text(alphabet="LRUD", max_size=12))
def test_progress_is_the_share_of_the_way_covered(problem, moves):
    rows = problem["grid"].split("\n")
    queue = collections.deque(
        ((y, x), 0) for y, row in enumerate(rows) for x, c in enumerate(row) if c == "E"
    )
    distance = {}
    while queue:
        (y, x), d = queue.popleft()
        inside = 0 <= y < len(rows) and 0 <= x < len(rows)
        if inside and rows[y][x] != "*" and (y, x) not in distance:
            distance[y, x] = d
            queue.extend(((y + dy, x + dx), d + 1) for dy, dx in STEPS.values())
    end = reaches(problem["grid"], moves)
    start = reaches(problem["grid"], "")
    expected = 0.0 if end is None else max(0.0, 1.0 - distance[end] / distance[start])
    assert Maze(reward="progress").grade(problem, moves) == pytest.approx(expected)


@hypothesis.given(mazes, st.randoms(use_true_random=False))
def test_shortest_paths_solve_and_are_shortest(problem, rng):
    path = maze.shortest_path(problem["grid"], rng)
    assert Maze().grade(problem, path) == 1.0
    assert len(path) == maze.distances(problem["grid"])[problem["grid"].index("S")]


def test_problems_have_the_asked_shape_and_no_prompt_leaks(data_dir):
    task = Maze(train_problems=600, test_problems=200, fog=0.6)
    train, test = task.problems("train"), task.problems("test")
    assert (len(train), len(test)) == (600, 200)
    assert sorted(p["id"] for p in train) == list(range(600))
    held_out = {p["prompt"] for p in test}
    for problem in [*train, *test]:
        grid, prompt = problem["grid"], problem["prompt"]
        assert len(grid.split("\n")) == 4 and len(prompt) == 20 and prompt[-1] == "\n"
        assert prompt.count("?") == round(0.6 * 14)
        assert all(shown in (real, "?") for shown, real in zip(prompt, grid, strict=False))
        assert prompt.count("S") == prompt.count("E") == 1
        assert 2 <= maze.distances(grid)[grid.index("S")] <= 5
        assert set(grid) | set(prompt) <= set(task.alphabet)
    assert not held_out & {p["prompt"] for p in train}


def test_several_processes_may_prepare_the_same_mazes_at_once(data_dir):
    program = (
        "from pkpo_jax.tasks import Maze; "
        "print(len(Maze(train_problems=3000, seed=77).problems('train')))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        stdout, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and stdout.splitlines()[-1].endswith("3000")


def test_the_seed_decides_the_mazes():
    task = Maze(train_problems=20, test_problems=5)
    assert list(maze.generate(task, "train")) == list(maze.generate(task, "train"))
    other = dataclasses.replace(task, seed=1)
    assert list(maze.generate(task, "train")) != list(maze.generate(other, "train"))
    assert list(maze.generate(task, "test")) != list(maze.generate(task, "train"))[:5]


def test_sides_and_full_fog():
    task = Maze(min_side=3, max_side=6, fog=1.0, max_path=0, train_problems=1, test_problems=60)
    mazes = list(maze.generate(task, "test"))
    assert {len(m["grid"].split("\n")) for m in mazes} == {3, 4, 5, 6}
    assert all(set(m["prompt"]) == {"S", "E", "?", "\n"} for m in mazes)


def test_demonstrations_are_of_mixed_quality():
    problem = next(iter(maze.generate(Maze(test_problems=1, min_path=5), "test")))
    rng = random.Random(0)
    clean = Maze(demonstration_noise=(0.0,))
    assert all(clean.grade(problem, clean.demonstration(problem, rng)) for _ in range(20))
    mixed = Maze()
    share = sum(mixed.grade(problem, mixed.demonstration(problem, rng)) for _ in range(600)) / 600
    # A third is clean; a third keeps its 5 letters with probability (.7 + .3/4)^5, a third with
    # probability 4^-5.
    assert share == pytest.approx((1 + 0.775**5 + 4**-5) / 3, abs=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fog=1.5), "task.fog=1.5; expected 0 <= fog <= 1"),
        (dict(min_side=1), "task.min_side=1"),
        (dict(wall_density=1.0), "task.wall_density=1.0"),
        (dict(min_path=4, max_path=3), "task.max_path=3"),
        (dict(reward="partial"), "task.reward='partial'; expected solved or progress"),
        (dict(train_problems=0), "task.train_problems=0; expected at least 1"),
        (dict(demonstration_noise=()), "task.demonstration_noise"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Maze(**options)


def test_language_models_are_told_the_task_and_answer_in_a_box():
    task = Maze(instruct=True, train_problems=1, test_problems=20, demonstration_noise=(0.0,))
    plain = Maze(train_problems=1, test_problems=20)
    for problem, other in zip(task.problems("test"), plain.problems("test"), strict=True):
        assert problem["prompt"] == maze.INSTRUCTION + other["prompt"]
        assert set(problem["prompt"]) <= set(task.alphabet)
        response = "So:\n" + task.demonstration(problem, random.Random(0))
        moves = task.answer(response)
        assert task.grade(problem, response) == 1.0 == plain.grade(other, moves)
        assert task.answer(moves) is None and task.grade(problem, moves) == 0.0
        assert task.answer(r"\boxed{RX}") is None


def test_mazes_that_do_not_exist_are_said_so():
    with pytest.raises(ValueError, match="no maze number 0 of 5 for the test split"):
        list(
            maze.generate(
                Maze(min_side=2, max_side=2, min_path=9, max_path=0, test_problems=5), "test"
            )
        )
