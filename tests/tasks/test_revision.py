"""Tests of the prompts, the grades and the file of answers of the task that wraps another one."""

import collections
import dataclasses
import json
import pickle
import random
import re

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import pytest

from pkpo_jax.policy.tokenizers import CharacterTokenizer
from pkpo_jax.tasks import Arithmetic, Grade, Maze, Revision, Status, grading

OPTIONS = "digits=1, train_problems=40, test_problems=10"
SUMS = Arithmetic(digits=1, train_problems=40, test_problems=10)
MAZES = "max_path=4, train_problems=30, test_problems=5"


def by_kind(problems):
    found = collections.defaultdict(list)
    for problem in problems:
        found[problem["kind"]].append(problem)
    return found


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(problem, *attempts):
    responses, rewards = zip(*attempts, strict=True)
    given = {"id": problem["id"], "prompt": problem["prompt"]}
    return {**given, "responses": responses, "rewards": rewards}


@pytest.mark.parametrize(("inner", "options"), [("arithmetic", OPTIONS), ("maze", MAZES)])
def test_demonstrations_of_the_wrapped_task_give_prompts_of_every_kind(inner, options):
    task = Revision(inner=inner, options=options)
    plain = task.wrapped.problems("train")
    found = by_kind(task.problems("train"))
    assert [p["prompt"] for p in found["problem"]] == [p["prompt"] for p in plain]
    assert [p["problem"] for p in found["problem"]] == list(plain)
    # A problem has one wrong answer to revise, and a right and a wrong one to verify.
    assert len(found["revision"]) == len(plain) and len(found["verification"]) == 2 * len(plain)
    assert [p["right"] for p in found["verification"]].count(True) == len(plain)
    for kind, mark in (("revision", "!"), ("verification", "?")):
        for prompt in found[kind]:
            start = prompt["problem"]["prompt"]
            assert prompt["prompt"].startswith(start) and prompt["prompt"].endswith(mark)
            attempt = prompt["prompt"][len(start) : -1]
            assert task.wrapped.grade(prompt["problem"], attempt) == prompt["right"]
    ids = [p["id"] for problems in found.values() for p in problems]
    assert len(set(ids)) == len(ids)
    # A policy from scratch can read the prompts and write the demonstrations.
    tokenizer, rng = CharacterTokenizer(task.alphabet), random.Random(0)
    for prompt in task.problems("train"):
        tokenizer.encode(prompt["prompt"] + task.demonstration(prompt, rng))
    assert task.problems("train") == pickle.loads(pickle.dumps(task)).problems("train")
    # The test split asks the same problems as the wrapped task's.
    test = task.problems("test")
    assert [p["prompt"] for p in test] == [p["prompt"] for p in task.wrapped.problems("test")]
    assert {p["kind"] for p in test} == {"problem"}


def test_a_file_of_answers_gives_the_prompts_of_reves(tmp_path):
    problems, held_out = SUMS.problems("train"), SUMS.problems("test")
    right = problems[0]["answer"]
    rows = [
        # This chain fails twice, of which once with a text that is no number, and ends right.
        row(problems[0], ("77", 0.0), ("7 7", 0.0), ("77", 0.0), (right, 1.0)),
        # These have nothing to revise, never end right, or were not graded.
        row(problems[1], (problems[1]["answer"], 1.0)),
        row(problems[2], ("77", 0.0), ("78", 0.0)),
        row(problems[3], ("77", None), (problems[3]["answer"], 1.0)),
        row(held_out[0], ("77", 0.0), (held_out[0]["answer"], 1.0)),
        # The prompt is that of no problem with this id.
        {**row(problems[4], ("77", 0.0), ("4", 1.0)), "prompt": "4+4="},
    ]
    task = Revision(options=OPTIONS, attempts=write(tmp_path / "chains.jsonl", *rows))
    found = by_kind(task.problems("train"))
    prompt = problems[0]["prompt"]
    assert len(found["problem"]) == len(problems)
    assert [p["prompt"] for p in found["revision"]] == [f"{prompt}77!"]
    assert {p["prompt"]: p["right"] for p in found["verification"]} == {
        f"{prompt}77?": False,
        f"{prompt}{right}?": True,
    }
    later = dataclasses.replace(task, kinds=("revision",), evaluate_on="verification")
    assert [p["prompt"] for p in later.problems("train")] == [f"{prompt}77!"]
    assert [p["right"] for p in later.problems("test")] == [False, True]


def test_as_many_wrong_answers_as_right_ones_are_verified_if_balanced(tmp_path):
    problem = SUMS.problems("train")[0]
    given = row(problem, ("77", 0.0), ("78", 0.0), ("79", 0.0), (problem["answer"], 1.0))
    attempts = write(tmp_path / "chains.jsonl", given)
    for balanced, wrong in ((False, 3), (True, 1)):
        found = by_kind(
            Revision("arithmetic", OPTIONS, attempts, balanced=balanced).problems("train")
        )
        assert len(found["revision"]) == 3
        assert [p["right"] for p in found["verification"]] == [False] * wrong + [True]
    # All of few wrong answers are verified.
    attempts = write(tmp_path / "other.jsonl", row(problem, ("77", 0.0), (problem["answer"], 1.0)))
    found = by_kind(Revision("arithmetic", OPTIONS, attempts, balanced=True).problems("train"))
    assert [p["right"] for p in found["verification"]] == [False, True]


def test_only_prompts_about_the_kinds_that_are_asked_for_need_answers(tmp_path):
    missing = str(tmp_path / "missing.jsonl")
    task = Revision(options=OPTIONS, attempts=missing, kinds=("problem",))
    assert len(task.problems("train")) == 40 and len(task.problems("test")) == 10
    with pytest.raises(ValueError, match=r"missing.jsonl' cannot be read \(No such file"):
        dataclasses.replace(task, kinds=("revision",)).problems("train")


HOSTILE = ["", "y\n", " y", "Y", "yy", "yn", "ny", "true", "1", "y\x00", "\uff59", "y" * 100_000]


@pytest.mark.parametrize("right", [True, False])
def test_a_verdict_has_one_spelling(right):
    task = Revision(options=OPTIONS)
    problem = SUMS.problems("train")[0]
    prompt = task.ask("verification", problem, "77", right=right)
    assert task.grade(prompt, "y") == (float(right), Status.OK)
    assert task.grade(prompt, "n") == (float(not right), Status.OK)
    # The right number is no verdict.
    for response in [*HOSTILE, problem["answer"]]:
        assert task.grade(prompt, response) == (0.0, Status.WRONG_FORMAT)
    assert task.demonstration(prompt, random.Random(0)) == "ny"[right]
    assert task.mode_of(prompt, "y") == "y" and task.mode_count(prompt) == 1


def test_a_boxed_verdict_is_the_last_box():
    task = Revision(options=f"{OPTIONS}, instruct=True", instruct=True)
    problem = task.wrapped.problems("train")[0]
    prompt = task.ask("verification", problem, r"It is \boxed{True}.", right=False)
    assert problem["prompt"].strip() in prompt["prompt"] and r"\boxed{True}." in prompt["prompt"]
    assert task.grade(prompt, r"\boxed{True}, no, \boxed{False}.") == (1.0, Status.OK)
    assert task.grade(prompt, r"\boxed{False} or \boxed{True}") == (0.0, Status.OK)
    for response in ("False", r"\boxed{false}", r"\boxed{False", r"\boxed{True or False}", "n"):
        assert task.grade(prompt, response) == (0.0, Status.WRONG_FORMAT)
    assert task.grade(prompt, task.demonstration(prompt, random.Random(0))).reward == 1.0


@hypothesis.given(st.text() | st.sampled_from([*HOSTILE, "y", "n"]))
def test_any_response_to_a_problem_or_a_revision_has_the_grade_of_the_wrapped_task(response):
    task = Revision(options=OPTIONS)
    problem = SUMS.problems("test")[0]
    for kind in ("problem", "revision"):
        prompt = task.ask(kind, problem, "77")
        ours = grading.Grader(task).grade([prompt], [[response]])
        own = grading.Grader(SUMS).grade([problem], [[response]])
        assert (ours.rewards, ours.statuses) == (own.rewards, own.statuses)


def test_a_grade_of_the_wrapped_task_passes_through():
    class Late(Arithmetic):
        def grade(self, problem, response):
            return Grade(0.0, Status.TIMEOUT)

    task = Revision(options=OPTIONS)
    task.__dict__["wrapped"] = Late()
    prompt = task.ask("problem", SUMS.problems("test")[0])
    assert task.grade(prompt, "y") == task.grade(prompt, "7") == (0.0, Status.TIMEOUT)


def test_modes_and_answers_are_those_of_the_wrapped_task():
    task, maze = Revision(inner="maze", options="max_path=4, fog=0.0"), Maze(max_path=4, fog=0.0)
    problem = {"id": 0, "prompt": "S.\n.E", "grid": "S.\n.E"}
    prompt = task.ask("revision", problem, "RR")
    assert prompt["prompt"] == "S.\n.ERR!"
    assert task.mode_of(prompt, "RLRD") == maze.mode_of(problem, "RLRD") == "RD"
    assert task.mode_count(prompt) == 2
    assert [task.answer(text) for text in ("RD", "y", "go")] == ["RD", "y", None]


def test_prompts_are_drawn():
    task = Revision(options=OPTIONS)
    for kind in ("problem", "revision", "verification"):
        axes = matplotlib.figure.Figure().subplots()
        prompt = task.ask(kind, SUMS.problems("test")[0], "77")
        task.draw(axes, prompt, ["y", "\ud800"], [0.0, 0.0])
        assert prompt["prompt"] in axes.texts[0].get_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(inner="sums"), "task.inner='sums'; expected one of arc, arithmetic"),
        (dict(inner="revision"), "task.inner='revision'; expected another task"),
        (dict(options="digits"), "task.options='digits'; expected name=value"),
        (dict(options="side=3"), "task.options='side=3' holds side; the options of arithmetic are"),
        (dict(options="digits=0"), "task.options='digits=0': task.digits=0; expected at least 1"),
        (dict(kinds=()), "task.kinds=(); expected some of problem, revision, verification"),
        (dict(kinds=("answer",)), "task.kinds=('answer',); expected some of problem"),
        (dict(evaluate_on="all"), "task.evaluate_on='all'; expected one of problem"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Revision(**options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: JSONDecodeError"),
        ("[]", "line 1: TypeError"),
        ('{"id": 1, "prompt": "", "responses": []}', "line 1: KeyError: 'rewards'; expected"),
        ('{"id": [], "prompt": "", "responses": [], "rewards": []}', "line 1: TypeError"),
        ('{"id": 1, "prompt": "", "responses": ["1"], "rewards": []}', "line 1: ValueError"),
        ('{"id": 1, "prompt": "", "responses": ["1"], "rewards": ["1"]}', "line 1: TypeError"),
        ("", "no train problem has both a right and a wrong answer there"),
    ],
)
def test_bad_files_of_answers_raise(line, message, tmp_path):
    # Other ends of lines than the newline may stand in strings, and empty lines between others.
    first = json.dumps(row({"id": 0, "prompt": "\u2028"}, ("1", 0.0)), ensure_ascii=False)
    line = f"{line}\n\n{first}\n\n"
    (tmp_path / "chains.jsonl").write_text(line, encoding="utf-8")
    task = Revision(options=OPTIONS, attempts=str(tmp_path / "chains.jsonl"))
    with pytest.raises(ValueError, match=re.escape(message)):
        task.problems("train")


def test_a_file_of_answers_that_is_no_text_raises(tmp_path):
    (tmp_path / "chains.jsonl").write_bytes(b"\xff")
    task = Revision(options=OPTIONS, attempts=str(tmp_path / "chains.jsonl"))
    with pytest.raises(ValueError, match=r"chains.jsonl' cannot be read \(it is no UTF-8"):
        task.problems("train")


def test_demonstrations_that_are_always_right_leave_nothing_to_revise():
    task = Revision(options=f"{OPTIONS}, demonstration_noise=(0.0,)")
    with pytest.raises(ValueError, match=r"task\.attempts='': no train problem"):
        task.problems("train")
