import dataclasses
import os
import pickle
import random
import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import pytest

from pkpo_jax.tasks import Grade, Status, grading, puzzles
from pkpo_jax.tasks.puzzles import Puzzles

pytest.importorskip("reasoning_gym")

FEW = dict(train_problems=3, test_problems=2)
# There is one generator for each way to score: inherited, by equality, evaluated, lenient, graded
# in steps, and without an answer of the puzzle's own.
NAMES = [
    *("aiw", "basic_arithmetic", "boxnet", "caesar_cipher", "calendar_arithmetic", "chain_sum"),
    *("coin_flip", "complex_arithmetic", "countdown", "cryptarithm", "game_of_life_halting", "gcd"),
    *("graph_color", "gsm_symbolic", "letter_jumble", "list_functions", "mini_sudoku", "n_queens"),
    *("number_sorting", "prime_factorization", "products", "propositional_logic", "puzzle24"),
    *("rotate_matrix", "rubiks_cube", "rush_hour", "simple_integration", "spell_backward"),
    *("spiral_matrix", "string_insertion", "tower_of_hanoi", "tsumego", "word_sorting"),
]
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def problem(name, **options):
    return Puzzles(puzzle=name, **FEW, **options).problems("train")[0]


def reward(graded):
    return graded.reward if isinstance(graded, Grade) else graded


@pytest.mark.parametrize("name", NAMES)
def test_the_puzzle_s_own_answer_is_right_and_text_around_it_is_not(name):
    for kind in ("threshold", "score"):
        task = Puzzles(puzzle=name, reward=kind, **FEW)
        train, test = task.problems("train"), task.problems("test")
        assert [p["id"] for p in train] == [0, 1, 2] and len(test) == 2
        assert not {p["prompt"] for p in train} & {p["prompt"] for p in test}
        for puzzle in pickle.loads(pickle.dumps([*train, *test])):
            assert puzzle["prompt"] == puzzle["entry"]["question"] + "\n"
            assert ("answer" in puzzle) == (name not in WITHOUT_ANSWER)
            if name in WITHOUT_ANSWER:
                with pytest.raises(ValueError, match="no demonstrations"):
                    task.demonstration(puzzle, random.Random(0))
                continue
            assert task.grade(puzzle, task.demonstration(puzzle, random.Random(0))) == 1.0
            assert task.grade(puzzle, f"\n {puzzle['answer']}\n") == 1.0
            scorer = puzzles._scorer(name, "")
            for text in (f"{puzzle['answer']} or so", f"maybe {puzzle['answer']}, or 7"):
                if scorer is None or name in puzzles._CONTAINING:
                    assert task.grade(puzzle, text) == 0.0


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(
    st.text(max_size=20) | st.text(alphabet="0123456789+-*/()[]{}\"', .ei", max_size=9)
)
def test_any_text_is_graded(name, text):
    for kind in ("threshold", "score"):
        task = Puzzles(puzzle=name, reward=kind, **FEW)
        puzzle = task.problems("train")[0]
        graded = task.grade(puzzle, text)
        assert 0.0 <= reward(graded) <= 1.0
        assert not isinstance(graded, Grade) or graded == Grade(0.0, Status.ERROR)


@pytest.mark.parametrize(
    "name",
    [
        *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "puzzle24"),
        *("simple_integration", "spiral_matrix", "string_insertion"),
    ],
)
def test_answers_are_not_run(name, tmp_path):
    puzzle, trace = problem(name), tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    # The library's own scorer confirms that this text would succeed.
    puzzles._dataset(name, "", seed=0, size=1).score_answer(code, puzzle["entry"])
    assert trace.exists()
    trace.unlink()
    for text in (code, f"[{code}]", f"1+{code}", f"x+{code}", code.replace("'", '"')):
        assert Puzzles(puzzle=name).grade(puzzle, text) == 0.0
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("game_of_life_halting", "whatever"),
        ("coin_flip", "0"),
        ("complex_arithmetic", "nan"),
        ("letter_jumble", "{answer} {answer}"),
        ("spell_backward", "{answer} {answer}"),
        ("word_sorting", "{answer}, more"),
        ("puzzle24", "1*1*4*6"),
        ("rubiks_cube", "R999999999"),
        ("rush_hour", "A+9999999999999999"),
        ("fraction_simplification", "{answer}99"),
        ("fraction_simplification", "{answer} or 1/2"),
        ("fraction_simplification", "{answer}+1"),
        ("fraction_simplification", "${answer}/2$"),
        ("time_intervals", "{answer} or 7 days"),
        ("time_intervals", "{answer}:7"),
        ("time_intervals", "{answer}, 7"),
        ("countdown", "9**9**9**9"),
        ("countdown", "{answer}+0"),
    ],
)
def test_what_scorers_take_for_right_or_cannot_bear_is_wrong(name, text):
    task = Puzzles(puzzle=name, train_problems=8, test_problems=1)
    for puzzle in task.problems("train"):
        response = text.format(answer=puzzle.get("answer"))
        assert response == puzzle.get("answer") or task.grade(puzzle, response) == 0.0


def test_other_answers_than_the_puzzle_s_own_may_be_right():
    task = Puzzles(options="min_numbers=3, max_numbers=3, min_target=2, max_target=9")
    entry = {"metadata": {"numbers": [3, 1, 2], "target": 9}}
    puzzle = {"entry": entry, "answer": "3*(1 + 2)"}
    for text, expected in [("(2+1) * 3", 1.0), ("3*3", 0.0), ("3+1+2", 0.0), ("9", 0.0)]:
        assert task.grade(puzzle, text) == expected
    puzzle24 = {"entry": {"metadata": {"numbers": [2, 3, 4, 1]}}, "answer": "2*3*4*1"}
    assert Puzzles(puzzle="puzzle24").grade(puzzle24, "(4*3)*2/1") == 1.0
    integral = {"entry": {"metadata": {"variable": "t", "integrand": "2*t"}}, "answer": "t**2"}
    assert Puzzles(puzzle="simple_integration").grade(integral, "t*t + 7") == 1.0


@pytest.mark.parametrize(
    ("name", "answer", "others"),
    [
        (
            "fraction_simplification",
            r"$\frac{75}{118}$",
            ["75/118", "$75 / 118$", r"\dfrac{75}{118}", r"$ \frac {75} {118} $"],
        ),
        ("time_intervals", "2 days", ["2", "2 day"]),
        ("figlet_font", "EVISCERATED", ["eviscerated", "E V I S C E R A T E D"]),
        ("time_intervals", "03:22:00", ["3:22:00", "03:22"]),
        ("time_intervals", "01:45:29.840", ["1:45:29.840"]),
        ("time_intervals", "67 days, 01:04:00", ["67 days, 1:04"]),
    ],
)
def test_other_spellings_of_an_answer_are_read(name, answer, others):
    task = Puzzles(puzzle=name, train_problems=64, test_problems=1)
    like = re.compile(re.sub(r"[A-Z]+", "[A-Z]+", re.sub(r"[0-9]+", "[0-9]+", re.escape(answer))))
    puzzle = next(p for p in task.problems("train") if like.fullmatch(p["answer"]))
    entry = {**puzzle["entry"], "answer": answer}
    entry["metadata"] |= {"simplified_numerator": 75, "simplified_denominator": 118}
    given = {"answer": answer, "entry": entry}
    assert [o for o in others if task.grade(given, o) != 1.0] == []


def test_scores_are_cut_at_the_threshold_or_kept():
    entry = {"metadata": {"solution": [[1, 2], [2, 1]]}, "answer": "1 2\n2 1"}
    puzzle = {"entry": entry, "answer": entry["answer"]}
    options = dict(puzzle="mini_sudoku")
    # Three of four cells are right, times the factor 0.9 for an imperfect answer.
    expected = 0.75 * 0.9
    assert Puzzles(reward="score", **options).grade(puzzle, "1 2\n2 2") == pytest.approx(expected)
    assert Puzzles(threshold=0.6, **options).grade(puzzle, "1 2\n2 2") == 1.0
    assert Puzzles(threshold=0.7, **options).grade(puzzle, "1 2\n2 2") == 0.0


def test_a_part_of_a_word_is_not_the_word():
    puzzle = {"entry": {"answer": "EVISCERATED"}, "answer": "EVISCERATED"}
    for text, score in [("EVISCERATzzz", 0.9), ("EVISCERATE", 0.9), ("EVIL", 0.3)]:
        assert Puzzles(puzzle="figlet_font").grade(puzzle, text) == 0.0
        given = Puzzles(puzzle="figlet_font", reward="score").grade(puzzle, text)
        assert given == pytest.approx(score)


def test_a_scorer_that_raises_is_counted():
    puzzle = problem("prime_factorization")
    task = Puzzles(puzzle="prime_factorization")
    assert task.grade(puzzle, "two") == Grade(0.0, Status.ERROR)
    with grading.Grader(task) as grader:
        grades = grader.grade([puzzle], [["two", puzzle["answer"], " "]])
    assert grades.rewards.tolist() == [[0.0, 1.0, 0.0]]
    assert grades.statuses.tolist() == [[Status.ERROR, Status.OK, Status.WRONG_FORMAT]]


def test_models_that_reason_answer_in_tags():
    task = Puzzles(puzzle="gcd", instruct=True, **FEW)
    puzzle = task.problems("test")[0]
    assert puzzle["prompt"].endswith("<answer> and </answer>.\n")
    right = puzzle["answer"]
    assert task.demonstration(puzzle, random.Random(0)) == f"<answer>{right}</answer>"
    for text, answer in [
        (f"So <answer>0</answer>, no, <answer> {right}\n</answer>.", right),
        (f"<answer>{right}</answer> or <answer>0</answer>", "0"),
        (f"<answer><answer>{right}</answer>", right),
        (right, None),
        (f"<answer>{right}", None),
        ("</answer><answer>", None),
        ("<answer> </answer>", None),
        ("<answer>" * 100_000, None),
        ("", None),
    ]:
        assert task.answer(text) == answer
        assert task.grade(puzzle, text) == float(answer == right)


def test_the_seed_decides_the_puzzles_and_neighbours_share_none():
    task = Puzzles(puzzle="basic_arithmetic", train_problems=40, test_problems=20)
    puzzles._splits.cache_clear()
    train = task.problems("train")
    puzzles._splits.cache_clear()
    assert task.problems("train") == train
    # In reasoning-gym, item 1 of seed 0 equals item 0 of seed 1.
    other = dataclasses.replace(task, seed=1)
    prompts = [
        {p["prompt"] for s in ("train", "test") for p in t.problems(s)} for t in (task, other)
    ]
    assert not prompts[0] & prompts[1]


def test_no_test_prompt_stands_in_train_though_puzzles_repeat():
    task = Puzzles(
        puzzle="gcd",
        options="min_value=1, max_value=4",
        template="{numbers}",
        train_problems=60,
        test_problems=5,
    )
    train, test = ({p["prompt"] for p in task.problems(s)} for s in ("train", "test"))
    assert len(train) < 16 and test and not train & test
    assert all(re.fullmatch(r"\[[1-4], [1-4]\]", prompt) for prompt in train | test)
    with pytest.raises(ValueError, match=r"task.train_problems=60, but 0 are found in 520 draws"):
        dataclasses.replace(task, template="all the same").problems("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reward="solved"), "task.reward='solved'; expected threshold or score"),
        (dict(threshold=0), "task.threshold=0; expected 0 < threshold <= 1"),
        (dict(train_problems=0), "task.train_problems=0; expected at least 1"),
        (dict(options="3"), "task.options='3'; expected name=value"),
        (dict(options="a=b"), "task.options='a=b'"),
        (dict(options="**{}"), "task.options='**{}'"),
        (dict(options="a=1)+f("), "task.options='a=1)+f('"),
        (dict(options="a=1)(b=2"), "task.options='a=1)(b=2'"),
        (dict(options="a=" + "(" * 500), "task.options="),
        (dict(options=None), "task.options=None"),
        (
            dict(puzzle="count_down"),
            "task.puzzle='count_down'; expected a generator of reasoning-gym, such as countdown",
        ),
        (dict(puzzle="composite"), "task.puzzle='composite'; expected"),
        (
            dict(options="min_number=3"),
            "task.options='min_number=3' holds min_number; the options of countdown are ",
        ),
        (dict(options="seed=3"), "task.options='seed=3' holds seed; the options of countdown are"),
        (
            dict(options="min_numbers=0"),
            "task.options='min_numbers=0' cannot be used with countdown: AssertionError",
        ),
        (dict(options="min_numbers='a'"), "cannot be used with countdown: TypeError"),
        (
            dict(template="{tarket}"),
            "task.template='{tarket}' does not fit countdown (KeyError: 'tarket'); its fields are",
        ),
        (dict(template="{"), "task.template='{' does not fit"),
    ],
)
def test_bad_options_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Puzzles(**{**FEW, **options}).problems("train")


def test_puzzles_that_differ_between_processes_are_refused(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match="set the environment variable PYTHONHASHSEED=0"):
        problem("ransom_note")
    program = (
        "from pkpo_jax.tasks.puzzles import Puzzles; "
        "print(Puzzles(puzzle='ransom_note', train_problems=3).problems('train'))"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    first, second = (subprocess.check_output(command, env=environment) for _ in range(2))
    assert first == second and b"ransom" in first


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    puzzles._reasoning_gym.cache_clear()
    puzzles._splits.cache_clear()
    try:
        with pytest.raises(ImportError, match=re.escape('pip install -e ".[puzzles]"')):
            Puzzles().problems("train")
    finally:
        puzzles._reasoning_gym.cache_clear()


def test_puzzles_are_drawn():
    puzzle = problem("countdown")
    axes = matplotlib.figure.Figure().subplots()
    Puzzles().draw(axes, puzzle, ["1+1", "\ud800"], [0.0, 0.0])
    assert puzzle["answer"] in axes.texts[0].get_text()
