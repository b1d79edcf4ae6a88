"""Tests of canonical forms of expressions against their values, which tell all forms apart."""

import collections
import itertools
import random
from fractions import Fraction

import pytest

from pkpo_jax.tasks import expressions
from pkpo_jax.tasks.puzzles import Puzzles


def every_expression(texts):
    """Returns all texts that join the given ones, in any order, by + - * / and parentheses."""
    if len(texts) == 1:
        return list(texts)
    found = []
    for size in range(1, len(texts)):
        for left in itertools.combinations(texts, size):
            rest = [text for text in texts if text not in left]
            for a, b in itertools.product(every_expression(left), every_expression(rest)):
                found += [f"({a}{operator}{b})" for operator in "+-*/"]
    return found


@pytest.mark.parametrize(
    ("numbers", "forms"), [((3, 7), 6), ((29, 53, 101), 68), ((101, 211, 353, 509), 1170)]
)
def test_forms_are_equal_iff_values_are_for_numbers_without_relations(numbers, forms):
    """Checks that the rules find all equal expressions, as each number occurs only once."""
    by_form, by_value = collections.defaultdict(set), collections.defaultdict(set)
    for text in every_expression([str(x) for x in numbers]):
        exact = eval(
            "".join(f"Fraction({t})" if t.isdigit() else t for t in _tokens(text)),
            {"Fraction": Fraction},
        )
        by_form[expressions.canonical(text)].add(text)
        by_value[exact].add(text)
    assert sorted(map(sorted, by_form.values())) == sorted(map(sorted, by_value.values()))
    assert len(by_form) == forms
    assert set(map(str, expressions._forms(tuple(sorted(numbers))))) == set(by_form)


def _tokens(text):
    return [
        "".join(group)
        for digit, run in itertools.groupby(text, str.isdigit)
        for group in ([tuple(run)] if digit else [(c,) for c in run])
    ]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("2*(3+4)", "(4 + 3)*2", True),
        ("7-(3-2)", "7+2-3", True),
        ("8/(4/2)", "2*8/4", True),
        ("(2-5)*(3-7)", "(5-2)*(7-3)", True),
        ("(2-5)*(3-7)", "(5-2)*(3-7)", False),
        ("-(3-5)*2", "2*(5-3)", True),
        ("--4+3", "3+4", True),
        # A form that equals its own negative has no sign, whatever it is multiplied by.
        ("7-(3-3)*5", "(3-3)*5+7", True),
        # Nothing is evaluated or distributed.
        ("2*3+2*4", "2*(3+4)", False),
        ("6*1", "6/1", False),
        ("2+2", "2*2", False),
        ("2-1/3", "2+1/3", False),
    ],
)
def test_rules(one, other, equal):
    assert (expressions.canonical(one) == expressions.canonical(other)) is equal


@pytest.mark.parametrize("text", ["", "2+", "x+1", "2**3", "2//3", "f(2)", "1.5+2", "(" * 9999])
def test_other_text_has_no_form(text):
    assert expressions.canonical(text) is None


@pytest.mark.parametrize(
    ("puzzle", "options"),
    [
        ("countdown", "min_numbers=3, max_numbers=3, max_value=9, min_target=1, max_target=99"),
        ("puzzle24", ""),
    ],
)
def test_all_modes_of_a_puzzle_are_found_and_right(puzzle, options):
    pytest.importorskip("reasoning_gym")
    task = Puzzles(puzzle=puzzle, options=options, train_problems=1, test_problems=4)
    rng = random.Random(0)
    for problem in task.problems("test"):
        numbers = problem["entry"]["metadata"]["numbers"]
        texts = [f"{x} " + " " * i for i, x in enumerate(numbers)]  # Spaces tell equal ones apart.
        tried = every_expression(texts)
        tried = rng.sample(tried, min(len(tried), 20_000))
        target = problem["entry"]["metadata"].get("target", 24)
        right = [text for text in tried if _is(text, target)]
        modes = {task.mode_of(problem, text) for text in right}
        solutions = expressions.solutions(tuple(sorted(numbers)), target)
        assert modes <= solutions
        if len(numbers) == 3:
            assert modes == solutions
        assert all(task.grade(problem, text) == 1.0 for text in right[:5])
        assert task.mode_of(problem, problem["answer"]) in solutions
        assert task.mode_count(problem) == len(solutions)


def _is(text, target):
    try:
        return abs(eval(text) - target) < 1e-9
    except ZeroDivisionError:
        return False


def test_more_numbers_are_not_counted():
    assert expressions.solutions((1, 2, 3, 4, 5), 100) is None
