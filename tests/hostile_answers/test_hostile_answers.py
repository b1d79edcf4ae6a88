import collections
import os
import resource
import signal
import time

import numpy as np
import pytest

from pkpo_jax.tasks.code import sandbox
from pkpo_jax.tasks.grading import Grader
from tests.hostile_answers import programs, run

try:
    sandbox.require()
except sandbox.Unavailable as e:
    pytest.skip(str(e), allow_module_level=True)

# Two workers have this many seconds for the whole table; endless loops take two thirds of the time.
DEADLINE = 600


def surroundings():
    """Returns the state of this process that an answer might change."""
    return (
        dict(os.environ),
        os.getcwd(),
        [signal.getsignal(s) for s in sorted(signal.Signals)],
        [resource.getrlimit(getattr(resource, n)) for n in dir(resource) if "RLIMIT_" in n],
    )


def test_every_hostile_answer_is_graded_0_or_refused():
    before = surroundings()
    with run.bait() as site, Grader(run.Either(), workers=2, timeout=run.TIMEOUT) as grader:
        answers = run.answers(site)
        started = time.monotonic()
        grades = grader.grade([a.problem for a in answers], [[a.text] for a in answers])
        taken = time.monotonic() - started
        left = [run.descendants(worker.process.pid) for worker in grader._workers]
        # The pool still grades right answers.
        right = [[programs.RIGHT], [r"\boxed{7.0}"]]
        after = grader.grade([run.DOUBLE, run.SEVEN], right)
    rewarded = {
        (a.kind, a.name): float(reward)
        for a, reward in zip(answers, grades.rewards[:, 0], strict=True)
        if not run.harmless(reward)
    }
    assert rewarded == {}
    assert taken < DEADLINE
    assert left == [[], []]
    np.testing.assert_array_equal(after.rewards, [[1], [1]])
    assert surroundings() == before


def test_the_table_is_long_and_each_name_its_own():
    site = programs.Site("/nowhere", 1, "nobody", 2)
    kinds = collections.Counter(a.kind for a in run.answers(site))
    assert kinds["code"] >= 130 and kinds["math"] >= 10
    assert len({(a.kind, a.name) for a in run.answers(site)}) == kinds.total()


def test_attacks_work_on_a_grader_without_defences():
    with run.bait(reached=True) as site:
        attacks = [a for a in run.answers(site) if a.works]
        failed = [a.name for a in attacks if not run.works_unconfined(a)]
    assert len(attacks) > 40 and failed == []
    assert not run.works_unconfined(attacks[0]._replace(text="def double(x): return x"))
