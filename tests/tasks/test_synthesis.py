"""Tests of programs and their behaviours against every string, and of the task made of them."""

import collections
import dataclasses
import functools
import itertools
import pickle
import random
import re

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import numpy as np
import pytest

from pkpo_jax.tasks import Synthesis, programs, synthesis
from pkpo_jax.training import evaluation, weights

SMALL = dict(length=7, train_problems=300, test_problems=60)
# With the default options, eight behaviours have these examples.
PROBLEM, MODES = {"prompt": "0:0 2:4\n", "examples": ((0, 0), (2, 4))}, 8


@functools.cache
def every_program(size, digits):
    """Returns all programs of `size` characters: programs in parentheses, or joined by a sign."""
    if size <= 1:
        return {"x", *digits} if size else set()
    found = {f"({program})" for program in every_program(size - 2, digits)}
    for left in range(1, size - 1):
        pairs = itertools.product(
            every_program(left, digits), "+-*", every_program(size - 1 - left, digits)
        )
        found |= {"".join(parts) for parts in pairs}
    return found


def outputs(program, inputs):
    return tuple(eval(program, {"x": x}) for x in range(inputs))


@pytest.mark.parametrize(
    ("characters", "digits", "longest", "count"),
    [("x12+-*()", "12", 5, 360), ("x0_-*/ ", "0", 5, 42), ("x+*()", "", 7, 60)],
)
def test_a_string_is_a_program_iff_the_grammar_says_so(characters, digits, longest, count):
    accepted = set()
    for size in range(longest + 1):
        for text in map("".join, itertools.product(characters, repeat=size)):
            behaviour = programs.behaviour(text, longest, digits, 4)
            if behaviour is not None:
                assert behaviour == outputs(text, 4)
                accepted.add(text)
    expected = set.union(*(every_program(size, digits) for size in range(longest + 1)))
    assert accepted == {text for text in expected if set(text) <= set(characters)}
    assert len(accepted) == count


@pytest.mark.parametrize(
    ("digits", "inputs", "longest"), [("12", 3, 7), ("1", 10, 7), ("", 2, 9), ("05", 4, 5)]
)
def test_behaviours_are_those_of_all_programs(digits, inputs, longest):
    shortest = {}
    for size in range(longest + 1):
        for program in every_program(size, digits):
            shortest.setdefault(outputs(program, inputs), size)
        found = programs.behaviours(size, digits, inputs)
        assert found.keys() == shortest.keys()
    for behaviour, program in found.items():
        assert outputs(program, inputs) == behaviour and len(program) == shortest[behaviour]


@pytest.mark.parametrize("options", [dict(), dict(examples=1), dict(min_modes=1, examples=3)])
def test_modes_are_the_behaviours_of_all_right_programs(options):
    task = Synthesis(**{**SMALL, **options, "train_problems": 1, "test_problems": 9})
    every = set.union(*(every_program(size, task.digits) for size in range(8)))
    of = collections.defaultdict(list)
    for program in every:
        of[outputs(program, task.inputs)].append(program)
    for problem in task.problems("test"):
        right = [o for o in of if all(o[x] == y for x, y in problem["examples"])]
        assert task.mode_count(problem) == len(right) >= task.min_modes
        for behaviour in right:
            name = " ".join(map(str, behaviour))
            assert all(task.mode_of(problem, program) == name for program in of[behaviour])
            assert task.grade(problem, of[behaviour][0]) == 1.0
        rest = random.Random(0).sample(sorted(of.keys() - set(right)), 50)
        assert not any(task.grade(problem, of[behaviour][0]) for behaviour in rest)


@pytest.mark.parametrize(
    ("response", "outputs", "reward"),
    [
        ("x*x", "0 1 4 9 16 25 36 49 64 81", 1.0),
        ("((x)*x)", "0 1 4 9 16 25 36 49 64 81", 1.0),
        ("x*3+x-2*x", "0 2 4 6 8 10 12 14 16 18", 1.0),
        ("x+2", "2 3 4 5 6 7 8 9 10 11", 0.0),
        ("x*4-2*x", None, 0.0),  # This is right, but 4 is no digit of this task.
        ("x*x*1*1*1", "0 1 4 9 16 25 36 49 64 81", 1.0),
        ("x*x*1*1*1*1", None, 0.0),  # This is right, but too long.
        *((f"x*x{end}", None, 0.0) for end in ("\n", " ", ";", "#", "\0", "*", "+", ")", "\ud800")),
        *((f"{start}x*x", None, 0.0) for start in ("\n", " ", "+", "-", "--", "(", "1", "x", "x=")),
        *((text, None, 0.0) for text in ("", "()", "(x", "x)+(x", "x x", "2x", "x(x)", "(x)(x)")),
        *((text, None, 0.0) for text in ("x**2", "x//1", "x/1", "x%3", "x^2", "x<<1", "~x", "x,x")),
        *((text, None, 0.0) for text in ("12", "01", "1_1", "1.", "1e1", "0x1", "1j", "x*+x")),
        *(
            (text, None, 0.0)
            for text in ("y", "X", "x.real", "exit()", "[x*x]", "lambda", "x if x")
        ),
        # Python takes these for digits or for x.
        *(
            (text, None, 0.0)
            for text in ("x*\u0663", "x*\uff13", "x*\u00b2", "\uff58*x", "\U0001d465*x")
        ),
        *((text, None, 0.0) for text in ("x" * 1000, "x*" * 9999 + "x", "9" * 99_999, "9**9**9")),
        *((text, None, 0.0) for text in ("(" * 99_999, "(" * 99_999 + "x" + ")" * 99_999, "-" * 9)),
    ],
)
def test_a_response_is_a_program_and_nothing_else(response, outputs, reward):
    task = Synthesis()
    assert task.answer(response) == outputs
    assert task.grade(PROBLEM, response) == reward


@hypothesis.given(st.text() | st.text(alphabet="x123+-*() ", max_size=9))
def test_any_text_is_graded(text):
    if len(text) <= 7:
        assert (Synthesis().answer(text) is not None) == (text in every_program(len(text), "123"))
    boxed = Synthesis(instruct=True).answer(f"so \\boxed{{{text}}}")
    if "{" not in text and "}" not in text and "\\" not in text:
        assert boxed == Synthesis().answer(text.strip().replace(" ", ""))


def test_models_that_reason_answer_in_a_box():
    task = Synthesis(instruct=True, **SMALL)
    problem = task.problems("test")[0]
    (x, y), _ = problem["examples"]
    assert f"f({x}) = {y}\n" in problem["prompt"] and "at most 7 characters" in problem["prompt"]
    assert task.grade(PROBLEM, r"It is \boxed{x+1}, no, \boxed{ x * x }.") == 1.0
    assert task.grade(PROBLEM, "x*x") == 0.0 and task.answer("x*x") is None
    assert task.grade(problem, task.demonstration(problem, random.Random(0))) == 1.0


def test_problems_are_distinct_and_no_prompt_leaks():
    task = Synthesis(**SMALL)
    train, test = task.problems("train"), task.problems("test")
    assert [p["id"] for p in train] == list(range(300)) and len(test) == 60
    assert len({p["prompt"] for p in [*train, *test]}) == 360
    for problem in [*train, *test]:
        shown = [tuple(map(int, pair.split(":"))) for pair in problem["prompt"].split()]
        assert problem["examples"] == tuple(shown) and len(shown) == 2 and shown == sorted(shown)
        assert all(0 <= x <= 9 and abs(y) <= 99 for x, y in shown)
        assert set(problem["prompt"]) <= set(task.alphabet)
    again = pickle.loads(pickle.dumps(task))
    synthesis._splits.cache_clear()
    assert again.problems("train") == train
    assert dataclasses.replace(task, train_problems=5).problems("test") == test
    assert dataclasses.replace(task, seed=1).problems("test") != test


def test_demonstrations_show_every_mode_as_often():
    task, rng = Synthesis(), random.Random(0)
    shown = collections.Counter()
    for _ in range(1000):
        program = task.demonstration(PROBLEM, rng)
        assert task.grade(PROBLEM, program) == 1.0 and set(program) <= set(task.alphabet)
        shown[task.mode_of(PROBLEM, program)] += 1
    assert len(shown) == task.mode_count(PROBLEM) == MODES
    assert min(shown.values()) > 0.7 * max(shown.values())


def test_evaluations_count_behaviours():
    """Checks the metrics against all pairs of responses, of which two right ones behave alike."""
    task = Synthesis()
    responses = ["x*x", "(x*x)", "x+x", "x+2"]
    rewards = np.array([[task.grade(PROBLEM, response) for response in responses]])
    assert rewards.tolist() == [[1, 1, 1, 0]]
    modes = [weights.right_modes(task, PROBLEM, responses, rewards[0])]
    answers = [[task.answer(response) for response in responses]]
    terms = evaluation._mode_terms(rewards, answers, modes, [task.mode_count(PROBLEM)])
    found = evaluation.figures(terms)
    pairs = [len({m for m in pair if m}) for pair in itertools.combinations(modes[0], 2)]
    assert found["distinct_correct_2"] == pytest.approx(np.mean(pairs))
    assert found["mode_coverage"] == pytest.approx(2 / MODES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(length=0), "task.length=0; expected 1 to 11"),
        (dict(length=12), "task.length=12; expected 1 to 11"),
        (dict(inputs=1), "task.inputs=1; expected 2 to 10"),
        (dict(examples=0), "task.examples=0; expected at least 1 and less than task.inputs=10"),
        (dict(examples=3, inputs=3), "task.examples=3; expected at least 1 and less than"),
        (dict(digits="1x"), "task.digits='1x'; expected some of 0123456789, each once"),
        (dict(digits="11"), "task.digits='11'"),
        (dict(digits="]"), "task.digits=']'"),
        (dict(digits="\u0663"), "task.digits='\u0663'"),
        (dict(largest=-1), "task.largest=-1; expected at least 0"),
        (dict(min_modes=0), "task.min_modes=0; expected at least 1"),
        (dict(train_problems=0), "task.train_problems=0; expected at least 1"),
        (dict(test_problems=0), "task.test_problems=0; expected at least 1"),
        (
            dict(SMALL, train_problems=410),
            "task.train_problems=410; expected at most 409, for there are 469 problems with "
            "task.min_modes=2, of which task.test_problems=60 are held out; raise task.length",
        ),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Synthesis(**options).problems("train")


def test_problems_are_drawn_with_a_program_of_each_mode():
    task = Synthesis()
    axes = matplotlib.figure.Figure().subplots()
    task.draw(axes, PROBLEM, ["x*x", "\ud800"], [1.0, 0.0])
    text = axes.texts[0].get_text()
    assert PROBLEM["prompt"].strip() in text and "Answer: x*x, " in text
