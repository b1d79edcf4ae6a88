"""Tests of programs and their behaviours against every string, and of the task made of them."""

import collections
import dataclasses
import functools
import itertools
import pickle
import random
import re
import time

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import numpy as np
import pytest

from pkpo_jax.tasks import Synthesis, programs
from pkpo_jax.tasks.grading import Grader
from pkpo_jax.training import evaluation, weights

SMALL = dict(length=7, train_problems=300, test_problems=60)
# These are the examples of x*x.
SQUARE = {"prompt": "2:4 3:9\n", "examples": ((2, 4), (3, 9))}


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
    ("digits", "inputs", "longest"), [("12", 3, 7), ("1", 10, 9), ("", 2, 9), ("05", 4, 5)]
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


@pytest.mark.parametrize("examples", [1, 2])
def test_modes_are_counted_as_all_right_programs_have_them(examples):
    task = Synthesis(**SMALL | dict(examples=examples, train_problems=9, test_problems=9))
    every = set.union(*(every_program(size, task.digits) for size in (1, 3, 5, 7)))
    for problem in task.problems("test"):
        right = [
            text
            for text in random.Random(0).sample(sorted(every), 3000) + [*_demonstrations(task)]
            if all(eval(text, {"x": x}) == y for x, y in problem["examples"])
        ]
        assert all(task.grade(problem, text) == 1.0 for text in right)
        assert len({task.mode_of(problem, text) for text in right}) <= task.mode_count(problem)


def _demonstrations(task):
    return programs.behaviours(task.length, task.digits, task.inputs).values()
