"""Tests of the optimum against all walks, all fillings of the fog, and another optimiser."""

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from scipy import optimize, stats

from experiments.study import optimum
from pkpo_jax.tasks import Maze, maze

KS = (1, 2, 4, 8, 16)
SIDE_3 = Maze(min_side=3, max_side=3, fog=0.5, test_problems=6)


@dataclasses.dataclass(frozen=True)
class Generated(Maze):
    """Mazes whose test split comes without TFDS."""

    def problems(self, split):
        return list(maze.generate(self, split))


def prompts_of(task):
    return [problem["prompt"] for problem in maze.generate(task, "test")]


def brute_force(prompt, task, longest):
    """Returns the mazes, [walks, mazes] whether each walk solves each, and [mazes] weights."""
    shown = prompt.strip()
    grids, solved, weights = [], [], []
    most = max(longest, task.max_path)
    walks = ["".join(w) for n in range(most + 1) for w in itertools.product("LRUD", repeat=n)]
    for filling in itertools.product("*.", repeat=shown.count("?")):
        cells = iter(filling)
        grid = "".join(next(cells) if c == "?" else c for c in shown)
        rewards = [task.grade({"grid": grid}, walk) for walk in walks]
        shortest = next((len(w) for w, r in zip(walks, rewards, strict=True) if r), 0)
        if task.min_path <= shortest <= task.max_path:
            grids.append(grid)
            solved.append(rewards)
            walls, free = filling.count("*"), filling.count(".")
            weights.append(task.wall_density**walls * (1 - task.wall_density) ** free)
    allowed = [i for i, walk in enumerate(walks) if len(walk) <= longest]
    return grids, np.array(solved).T[allowed], np.array(weights) / sum(weights)


def slsqp(solved, weights, k):
    """Returns the largest pass@k of any distribution over the walks."""
    solved = np.unique(solved, axis=0)
    found = optimize.minimize(
        lambda p: -weights @ (1 - (1 - p @ solved) ** k),
        np.full(len(solved), 1 / len(solved)),
        jac=lambda p: -solved @ (weights * k * (1 - p @ solved) ** (k - 1)),
        bounds=[(0, 1)] * len(solved),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    return -found.fun


CASES = [
    *((prompt, SIDE_3, 5) for prompt in prompts_of(SIDE_3)),
    # These have nothing in sight, more walls, too few steps for some paths, or only long paths.
    ("S??\n???\n??E\n", Maze(max_path=4), 4),
    ("?S?\n???\n?E?\n", Maze(wall_density=0.6, max_path=4), 4),
    ("S.?\n?*?\n?E?\n", Maze(wall_density=0.5, max_path=5), 3),
    ("S.?\n??E\n???\n", Maze(min_path=4, max_path=5), 5),
    ("S?\n?E\n", Maze(max_path=2), 4),
    # A walk goes round the fog in six steps, or through it in two.
    ("S?E\n.*.\n...\n", Maze(max_path=6), 6),
]


@pytest.mark.parametrize("prompt, task, longest", CASES)
def test_agrees_with_brute_force(prompt, task, longest):
    grids, solved, weights = brute_force(prompt, task, longest)
    choices = optimum.choices(prompt, task, longest)
    assert choices.weights.sum() == pytest.approx(1)
    for k in KS:
        best = optimum.maximise(choices, k)
        assert best.policy.sum() == pytest.approx(1) and best.policy.min() >= 0
        assert 0 <= best.gap <= 1e-9
        value = choices.pass_at_k(best.policy, k)
        if k == 1:
            assert value == pytest.approx((solved @ weights).max(), abs=1e-12)
            assert best.policy.max() == 1
        else:
            assert value == pytest.approx(slsqp(solved, weights, k), abs=1e-6)
        # Grading the walks one by one gives the same pass@k.
        grades = [[task.grade({"grid": grid}, walk) for grid in grids] for walk in choices.walks]
        missed = np.clip(1 - best.policy @ grades, 0, 1)
        for j in KS:
            measured = weights @ (1 - missed**j)
            assert choices.pass_at_k(best.policy, j) == pytest.approx(measured, abs=1e-9)


def test_weights_are_the_frequencies_of_sampled_mazes():
    """Samples mazes with all cells in the fog, which have few prompts."""
    task = Maze(min_side=3, max_side=3, fog=1.0, max_path=4, test_problems=15_000)
    counts = {}
    for sampled in maze.generate(task, "test"):
        grids = counts.setdefault(sampled["prompt"], [])
        grids.append(sampled["grid"])
    assert len(counts) == 72 - 24  # S and E are not neighbours.
    statistic, freedom = 0.0, 0
    for prompt, grids in counts.items():
        choices = optimum.choices(prompt, task, 8)
        columns = {tuple(column): i for i, column in enumerate(choices.solves.T)}
        seen = np.zeros(len(choices.weights))
        for grid in grids:
            key = tuple(task.grade({"grid": grid}, walk) for walk in choices.walks)
            seen[columns[key]] += 1
        expected = choices.weights * len(grids)
        often = expected >= 5
        seen = np.append(seen[often], seen[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
        statistic += ((seen - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
        freedom += often.sum() - (expected[-1] == 0)
    assert stats.chi2.sf(statistic, freedom) > 1e-3


def test_optimum_is_what_the_policies_measure_on_the_mazes_behind_the_fog():
    task = Maze(test_problems=300)
    for k in (1, 4):
        measured, expected = [], []
        for problem in maze.generate(task, "test"):
            choices = optimum.choices(problem["prompt"], task, 8)
            policy = optimum.maximise(choices, k).policy
            solve = sum(
                p * task.grade(problem, w) for p, w in zip(policy, choices.walks, strict=True)
            )
            measured.append(1 - max(1 - solve, 0) ** k)
            expected.append(choices.pass_at_k(policy, k))
        difference = np.subtract(measured, expected)
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(difference))


def test_matrix():
    task = Generated(min_side=3, max_side=4, test_problems=40)
    results = optimum.optimum(task, ks=KS, longest=8, problems=30)
    matrix = np.array([[results["matrix"][k][j] for j in KS] for k in KS])
    assert 0 <= results["gap"] <= 1e-9
    assert (np.diag(matrix) >= matrix.max(0) - results["gap"] - 1e-12).all()
    assert (np.diff(matrix, axis=1) >= -1e-12).all()
    # The policy for k = 1 is one walk, so further samples add nothing.
    assert (matrix[0] == matrix[0, 0]).all()
    # The fog separates the optima.
    assert matrix[-1, 0] < matrix[0, 0] - 0.01 and matrix[0, -1] < matrix[-1, -1] - 0.05
    assert 0.2 < results["sure"] < 0.8
    # The mixture is as good at pass@1, better after that, and no better than the optima.
    mixed = np.array([results["mixed"][j] for j in KS])
    assert mixed[0] == pytest.approx(matrix[0, 0], abs=1e-9)
    assert (mixed[1:] > matrix[0, 1:] + 0.01).all() and (mixed <= np.diag(matrix) + 1e-9).all()

    firsts = [optimum.choices(prompt, task, 8) for prompt in prompts_of(task)[:30]]
    assert results["tied"] == np.mean([_tied(c) for c in firsts])
    by_hand = [c.pass_at_k(optimum.maximise(c, 4).policy, 2) for c in firsts]
    assert results["matrix"][4][2] == pytest.approx(np.mean(by_hand), abs=1e-12)


def _tied(choices):
    values = np.sort([choices.pass_at_k(policy, 1) for policy in np.eye(len(choices.walks))])
    return len(values) > 1 and values[-1] - values[-2] < 1e-9


def test_without_fog_all_is_known():
    task = Generated(fog=0.0, min_side=4, max_side=9, max_path=0, test_problems=10)
    results = optimum.optimum(task, ks=(1, 3), longest=81, problems=10)
    ones = {1: 1.0, 3: 1.0}
    rows = {"matrix": {1: ones, 3: ones}, "mixed": ones}
    assert results == {**rows, "tied": 0.0, "gap": 0.0, "sure": 1.0}


def test_without_walls_all_is_known():
    task = Generated(wall_density=0.0, test_problems=3)
    results = optimum.optimum(task, ks=(1, 3), longest=8, problems=3)
    assert results["sure"] == results["matrix"][3][1] == 1.0


def test_no_walk_is_short_enough():
    choices = optimum.choices("S?.E\n????\n....\n....\n", Maze(), 2)
    assert choices.walks == ("",)
    for k in (1, 4):
        best = optimum.maximise(choices, k)
        assert choices.pass_at_k(best.policy, k) == best.gap == 0


def test_a_detour_in_sight_is_worth_more_than_a_short_cut_through_the_fog():
    choices = optimum.choices("S?E\n.*.\n...\n", Maze(max_path=6), 6)
    assert choices.walks == ("DDRRUU",)
    assert optimum.choices("S?E\n.*.\n...\n", Maze(max_path=6), 5).walks == ("RR",)


@pytest.mark.parametrize(
    "prompt, task, says",
    [
        ("S????\n?????\n?????\n????E\n.....\n", Maze(fog=0.8), "18 cells"),
        ("S*?\n*.?\n??E\n", Maze(), "no maze"),
        ("S?E\n...\n...\n", Maze(reward="progress"), "task.reward"),
        ("S?E\n...\n...\n", Maze(instruct=True), "instruct"),
    ],
)
def test_refusals(prompt, task, says):
    with pytest.raises(ValueError, match=says):
        optimum.choices(prompt, task, 6)


@pytest.mark.parametrize("asked", [{"ks": (0, 1)}, {"ks": ()}, {"problems": 0}, {"problems": 6}])
def test_refuses_what_cannot_be_asked(asked):
    with pytest.raises(ValueError, match=next(iter(asked))):
        optimum.optimum(
            Generated(test_problems=5), **{"ks": (1,), "longest": 8, "problems": 5, **asked}
        )


def test_says_if_the_optimum_is_not_reached(monkeypatch):
    choices = optimum.choices("S??\n???\n??E\n", Maze(max_path=4), 4)
    monkeypatch.setattr(optimum, "MOST_STEPS", 1)
    with pytest.raises(RuntimeError, match="pass@4"):
        optimum.maximise(choices, 4)


def test_command(tmp_path):
    assert "problems" not in flags.FLAGS  # Importing the module defines no flag.
    output = tmp_path / "new" / "optimum.json"
    command = [sys.executable, "-m", "experiments.study.optimum", "--problems=8", "--ks=1,2"]
    sizes = ["--config.task.train_problems=20", "--config.task.test_problems=10"]
    ran = subprocess.run(
        [*command, *sizes, f"--output={output}"], capture_output=True, text=True, check=True
    )
    results = json.loads(output.read_text())
    assert list(results["matrix"]) == ["1", "2"] and output.read_text() in ran.stdout
    assert [path.name for path in output.parent.iterdir()] == ["optimum.json"]
