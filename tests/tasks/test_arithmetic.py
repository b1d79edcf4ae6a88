import dataclasses
import pickle
import random
import re

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import pytest

from pkpo_jax.tasks.arithmetic import Arithmetic

SMALL = dict(train_problems=60, test_problems=40)

tasks = st.builds(
    lambda operators, digits, terms, seed, instruct: Arithmetic(
        operators="".join(operators),
        digits=digits,
        terms=terms,
        seed=seed,
        instruct=instruct,
        train_problems=20,
        test_problems=10,
    ),
    st.lists(st.sampled_from("+-*"), min_size=1, max_size=3, unique=True),
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(0, 99),
    st.booleans(),
)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(tasks)
def test_answers_are_python_s_own(task):
    for problem in [*task.problems("train"), *task.problems("test")]:
        if task.instruct:
            text = re.match(r"What is ([-+*0-9 ]+)\?\n", problem["prompt"])[1]
            assert r"\boxed{}" in problem["prompt"]
        else:
            text = problem["prompt"].removesuffix("=")
        assert problem["answer"] == str(eval(text))
        numbers = re.findall("[0-9]+", text)
        assert len(numbers) == task.terms and max(map(len, numbers)) <= task.digits
        assert set(text) <= set(task.operators + "0123456789 ")
        assert set(problem["prompt"] + problem["answer"]) <= set(task.alphabet)


def test_problems_are_distinct_and_no_prompt_leaks():
    # These are all possible problems: 10 x 10 operands, one operator.
    task = Arithmetic(operators="+", digits=1, **SMALL)
    train, test = task.problems("train"), task.problems("test")
    assert [p["id"] for p in train] == list(range(60)) and len(test) == 40
    assert len({p["prompt"] for p in [*train, *test]}) == 100
    assert dataclasses.replace(task, train_problems=5).problems("test") == test


def test_the_seed_decides_the_problems():
    task = pickle.loads(pickle.dumps(Arithmetic(**SMALL)))
    assert task.problems("train") == Arithmetic(**SMALL).problems("train")
    other = dataclasses.replace(task, seed=1)
    for split in ("train", "test"):
        assert other.problems(split) != task.problems(split)


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        ("-7", "-7", 1.0),
        ("7", "7", 0.0),
        ("0", "0", 0.0),
        *((text, None, 0.0) for text in ("", " -7", "-7\n", "+7", "-07", "-0", "--7", "-7.0", "-")),
        *(
            (text, None, 0.0)
            for text in ("-1_0", "-\u0667", "-\uff17", "-\u00b2", "\u22127", "-7 or 8", "minus 7")
        ),
        ("9" * 100_000, "9" * 100_000, 0.0),
    ],
)
def test_an_integer_has_one_spelling(response, answer, reward):
    task = Arithmetic()
    assert task.answer(response) == answer
    assert task.grade({"answer": "-7"}, response) == reward


@hypothesis.given(st.text() | st.text(alphabet="-0123456789", max_size=4))
def test_any_text_is_graded(response):
    problem = {"answer": "-7"}
    assert Arithmetic().grade(problem, response) == float(response == "-7")
    boxed = Arithmetic(instruct=True).grade(problem, f"so \\boxed{{{response}}}")
    assert boxed == float(response.strip() == "-7")


def test_a_box_holds_the_answer_of_those_that_are_asked_for_one():
    task, problem = Arithmetic(instruct=True), {"answer": "1234"}
    assert task.grade(problem, r"First \boxed{7}, no, \boxed{1,234}.") == 1.0
    assert task.grade(problem, r"\boxed{1234} or \boxed{1235}") == 0.0
    assert task.answer("1234") is None and task.grade(problem, "1234") == 0.0


@pytest.mark.parametrize(
    ("answer", "spellings", "others"),
    [
        (
            "1234",
            ["1{,}234", "$1234$", r"\text{1,234}", r"\mathbf{1234}"],
            ["12,34", "1,2,3,4", ",1234,", "1234,", "1,234,", "01,234", "1,234 or 5", "1$234$"],
        ),
        ("12", [r"\text{ 12 }"], ["1,2", "1{,}2", ",12", "12.", r"\text{12} 3", r"\sqrt{12}"]),
        ("-5", ["- 5", "\u22125", "\u2212 5", r"\text{-5}"], ["--5", "-", "5", "5-", "+-5"]),
    ],
)
def test_an_integer_in_a_box_may_be_written_as_in_latex(answer, spellings, others):
    task, problem = Arithmetic(instruct=True), {"answer": answer}
    assert [s for s in spellings if task.grade(problem, f"\\boxed{{{s}}}") != 1.0] == []
    assert [s for s in others if task.grade(problem, f"\\boxed{{{s}}}") != 0.0] == []


@pytest.mark.parametrize("instruct", [False, True])
def test_demonstrations_are_of_mixed_quality_and_well_formed(instruct):
    rng = random.Random(0)
    problem = {"answer": "-407"}
    clean = Arithmetic(demonstration_noise=(0.0,), instruct=instruct)
    assert all(clean.grade(problem, clean.demonstration(problem, rng)) for _ in range(9))
    mixed = Arithmetic(instruct=instruct)
    shown = [mixed.demonstration(problem, rng) for _ in range(900)]
    assert all(len(mixed.answer(text)) == 4 for text in shown)
    share = sum(mixed.grade(problem, text) for text in shown) / len(shown)
    # A third of them is clean. In another third each digit is replaced with probability 0.3; a 0 is
    # never replaced by itself.
    assert share == pytest.approx((1 + (0.7 + 0.3 / 9) ** 2 * 0.7) / 3, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(operators=""), "task.operators=''; expected one or more of +-*"),
        (dict(operators="+/"), "task.operators='+/'"),
        (dict(operators="++"), "task.operators='++'"),
        (dict(digits=0), "task.digits=0; expected at least 1"),
        (dict(terms=1), "task.terms=1; expected at least 2"),
        (dict(train_problems=0), "task.train_problems=0"),
        (dict(test_problems=0), "task.test_problems=0"),
        (dict(demonstration_noise=(2,)), "task.demonstration_noise=(2,); expected probabilities"),
        (
            dict(operators="+", digits=1, train_problems=61, test_problems=40),
            "task.train_problems=61; expected at most 60, for there are 100 distinct problems",
        ),
        (dict(digits=10), "task.digits=10; expected fewer"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Arithmetic(**options)


def test_problems_are_drawn():
    task = Arithmetic(**SMALL)
    problem = task.problems("test")[0]
    axes = matplotlib.figure.Figure().subplots()
    task.draw(axes, problem, ["7", "\ud800"], [0.0, 0.0])
    assert problem["prompt"] in axes.texts[0].get_text()
