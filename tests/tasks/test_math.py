import json
import random
import re
import sys
import threading
import time

import hypothesis
import hypothesis.strategies as st
import matplotlib.figure
import pytest

from pkpo_jax import tasks
from pkpo_jax.tasks import Grade, Math, Status, math
from pkpo_jax.tasks.boxed import boxed


def grade(answer, response):
    grade = Math().grade({"answer": answer}, response)
    return grade.reward if isinstance(grade, Grade) else grade


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def release(path, problem, solution):
    row = {"problem": problem, "level": "Level 1", "type": "Algebra", "solution": solution}
    write(path, row)


def test_the_math_release_is_read_in_the_order_of_its_names(tmp_path):
    release(tmp_path / "train/geometry/1.json", "Side?", r"$\fbox{2}$, that is $\boxed 3$.")
    release(tmp_path / "train/algebra/2.json", "Half?", r"\boxed{1}, no: \boxed{\frac{1}{2}}.")
    release(tmp_path / "test/algebra/1.json", "Sum?", r"So \fbox{\{1, 2\}}.")
    task = tasks.make({"name": "math", "data_dir": str(tmp_path)})
    train, test = task.problems("train"), task.problems("test")
    assert [p["id"] for p in train] == [0, 1]
    assert [p["answer"] for p in [*train, *test]] == [r"\frac{1}{2}", "3", r"\{1, 2\}"]
    assert [p["problem"] for p in train] == ["Half?", "Side?"]
    for problem in [*train, *test]:
        assert problem["prompt"].startswith(problem["problem"] + "\n")
        assert r"\boxed{}" in problem["prompt"] and set(problem["prompt"]) <= set(task.alphabet)
        assert task.grade(problem, task.demonstration(problem, random.Random(0))) == 1.0


def test_lines_are_read_with_the_keys_of_their_kind(tmp_path):
    write(
        tmp_path / "train.jsonl",
        {"problem": "a", "solution": r"It is \boxed{7}."},
        "",
        {"problem": "b", "answer": r"\frac{1}{2}", "solution": "By halves."},
        {"question": "c\u2028", "answer": "5 + 3 = <<5+3=8>>8, by 1000\n#### 8,000"},
        {"question": "d", "answer": 204},
        {"question": "e", "answer": r"x \boxed{1}", "solution": r"\boxed{2} #### 3"},
    )
    task = Math(data_dir=str(tmp_path))
    problems = task.problems("train")
    assert [p["id"] for p in problems] == [0, 1, 2, 3, 4]
    answers = ["7", r"\frac{1}{2}", "8,000", "204", r"x \boxed{1}"]
    assert [p["answer"] for p in problems] == answers
    assert [task.demonstration(p, random.Random(0)) for p in problems] == [
        r"It is \boxed{7}.",
        "By halves.\n\\boxed{\\frac{1}{2}}",
        "5 + 3 = <<5+3=8>>8, by 1000\n\\boxed{8,000}",
        r"\boxed{204}",
        r"\boxed{2} #### 3",
    ]
    with pytest.raises(ValueError, match="holds no test problems"):
        task.problems("test")


@pytest.mark.parametrize("given", ["", "nowhere", "empty"])
def test_where_to_get_the_problems_is_told(tmp_path, monkeypatch, given):
    # An empty data_dir is not the current directory.
    write(tmp_path / "train.jsonl", {"problem": "a", "answer": "1"})
    (tmp_path / "empty/train/algebra").mkdir(parents=True)
    write(tmp_path / "empty/train.jsonl", "", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        Math(data_dir=given).problems("train")
    message = str(error.value)
    wrong = "does not exist" if given == "nowhere" else "holds no train problems"
    assert message.startswith(f"task.data_dir={given!r} {wrong}; expected")
    assert all(m in message for m in ("hendrycks/math", "train.jsonl", "set task.data_dir"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "a", ', "not JSON"),
        (b'{"problem": "\xff"}'.decode("latin-1"), None),
        ("[1]", "list; expected an object"),
        ('{"answer": "1"}', 'no text in "problem" or "question"'),
        ('{"problem": 1, "answer": "1"}', 'no text in "problem" or "question"'),
        ('{"problem": "a"}', 'no "answer"'),
        ('{"problem": "a", "answer": " "}', 'no "answer"'),
        ('{"problem": "a", "answer": ["1"]}', 'no "answer"'),
        ('{"problem": "a", "answer": "so ####"}', 'no "answer"'),
        ('{"problem": "a", "solution": "It is 3."}', 'no "answer"'),
        ('{"problem": "a", "solution": "\\\\boxed{3"}', 'no "answer"'),
    ],
)
def test_a_broken_line_or_file_is_named(tmp_path, line, message):
    lines, file = tmp_path / "train.jsonl", tmp_path / "test/algebra/7.json"
    write(lines, {"problem": "a", "answer": "1"}, line)
    write(file, line)
    if message is None:
        for path in (lines, file):
            path.write_bytes(path.read_text().encode("latin-1"))
        message = "not JSON"
    task = Math(data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"{lines}, line 2: {message}")):
        task.problems("train")
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        task.problems("test")


def test_what_cannot_be_read_is_a_value_error(tmp_path):
    (tmp_path / "train/algebra/7.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"task.data_dir=.* cannot be read: .*7\.json"):
        Math(data_dir=str(tmp_path)).problems("train")
    with pytest.raises(ValueError, match=r"task\.data_dir=None; expected the path"):
        Math(data_dir=None)


# In these texts the braces close, except for \{, which is a symbol.
braced = st.recursive(
    st.text(alphabet="ab \\$1", max_size=4).filter(lambda s: not s.endswith("\\")),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + r"\{}"),
    max_leaves=8,
)


@hypothesis.given(braced, st.text(alphabet=r"ab{}\ $"), st.sampled_from(["boxed", "fbox"]))
def test_boxes_are_balanced(content, before, name):
    text = f"{before} \\{name}{{{content}}}"
    assert boxed(text + "} and {") == content.strip()
    assert boxed(r"\boxed{1}" + text[:-1]) is None


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        *[
            (r"\frac{1}{2}", box)
            for box in ("1/2", "0.5", r"\dfrac{2}{4}", r"x = \frac12", "50\\%")
        ],
        ("0.5", r"\frac{1}{2}"),
        ("1/2", "0.5"),
        (r"\sqrt{\frac{9}{4}}", r"\frac{3}{2}"),
        ("x^2+2x+1", "1 + 2x + x^2"),
        ("[1,2)", "[1, 2)"),
        (r"(-\infty, 3]", r"(-\infty,3]"),
        ("(1,2,3)", r"\left( 1, 2.0, 3 \right)"),
        ("1,2", r"\{2, 1\}"),
        ("1,234", "1234"),
        (r"$\$32,\!348$", "32348"),
        (r"\text{Tuesday}", "Tuesday"),
        (r"\text{(A)}", "A"),
        (r"15\mbox{ cm}^2", "15"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2.0 \end{pmatrix}"),
        ("3", r"\boxed{3}"),
        # These are no expressions, so they are right only in the words of the problem's own answer.
        ("}{ @ ??", "}{ @ ??"),
    ],
)
def test_answers_are_equal_up_to_form(answer, box):
    if box.startswith("}"):
        assert grade(answer, r"\boxed " + box) == 1.0
    else:
        assert grade(answer, rf"First \boxed{{77}}, then \boxed{{ {box} }}.") == 1.0


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"),
        (r"\frac{1}{2}", r"\boxed{0.51}"),
        (r"\frac{1}{2}", r"It is 1/2, or $\frac{1}{2}$."),
        (r"\frac{1}{2}", r"\boxed{1/2} or rather \boxed{2}"),
        (r"\frac{1}{2}", r"\boxed{1/2} or rather \boxed{1/2"),
        (r"\frac{1}{2}", r"\boxed{}"),
        (r"\frac{1}{2}", r"\boxed{ }"),
        (r"\frac{1}{2}", r"\boxed"),
        (r"\frac{1}{2}", ""),
        (r"\frac{1}{2}", r"\boxed{1/2 or 1/3}"),
        ("7", r"\boxed{@@ $7$}"),
        ("7", r"\boxed{I pick one of 5, 6, 7}"),
        ("7", r"\boxed{The final answer is $7$. I hope so, though it may be 8}"),
        ("[1,2)", r"\boxed{(1,2)}"),
        ("(1,2,3)", r"\boxed{(3,2,1)}"),
        ("1,2", r"\boxed{1}"),
        (r"\text{Tuesday}", r"\boxed{Monday}"),
    ],
)
def test_other_answers_are_wrong(answer, response):
    assert grade(answer, response) == 0.0


HOSTILE = {
    "tower": r"\boxed{10^{10^{10}}}",
    "flat tower": r"\boxed{10^10^10}",
    "factorial": r"\boxed{(10^8)!}",
    "product": r"\boxed{\prod_{n=1}^{1000000} n}",
    "integral": r"\boxed{\int_0^{10^9} e^{-x^x} dx}",
    "braces": r"\boxed{" + "{" * 2000 + "8" + "}" * 2000 + "}",
    "parentheses": r"\boxed{" + "(" * 240 + "8" + ")" * 240 + "}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 40 + "8" + "}" * 40 + "}",
    "open braces": r"\boxed{" * 2000,
    "megabytes": "x" * 4_000_000 + r"\boxed{" + "8" * 4_000_000 + "}",
    "megabytes of boxes": r"\boxed{8}" * 400_000,
    "boxed long ago": r"\boxed{7}" + " " * 30_000,
    "unicode": "\\boxed{\u202e\ud8007\u0000\N{MATHEMATICAL BOLD DIGIT SEVEN}\U0010ffff\ufeff}",
    "zero division": r"\boxed{\frac{7}{0}}",
    "code": r"\boxed{__import__('os').abort()}",
    "format": r"\boxed{%s %n {0} {7!r} \\ \}",
}


PIECES = [r"\frac", r"\sqrt", "{", "}", "(", ")", "[", "^", "_8", "+", "-", "/", "=", r"\le", ","]
PIECES += ["1", "2.5", "x", "i", r"\pi", r"\infty", r"\ln", r"\tan", r"\cup", r"\pm", "!", "%", "|"]
PIECES += [
    r"\text{cm}",
    r"\binom",
    r"\sum",
    r"\gcd(",
    r"\max",
    r"\bmod",
    r"\approx",
    r"\overline{3}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_wrong_and_soon(name):
    started = time.process_time()
    assert grade("7", HOSTILE[name]) == (name == "boxed long ago")
    answer = Math().answer(HOSTILE[name])
    # Quadratic time would take minutes.
    assert time.process_time() - started < 30
    assert answer is None or len(answer) <= len(HOSTILE[name])


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.text(max_size=30)
    | st.text(alphabet=r"7\{}()^_,.=frac $%&", max_size=20)
    | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
)
def test_any_text_is_graded(text):
    assert grade("7", f"\\boxed{{{text}}}") in (0.0, 1.0)
    assert grade(text or "7", r"\boxed{7x}") in (0.0, 1.0)
    Math().answer(f"\\boxed{{{text}}}")


@pytest.mark.parametrize("length", [100, 19_000, 21_000, 1_000_000])
def test_a_box_anywhere_in_a_response_is_seen(length):
    assert grade("7", "so " * (length // 3) + r"it is \boxed{7.0}") == 1.0
    assert grade("7", r"It is \boxed{7.0}. " + "Again. " * (length // 7)) == 1.0
    assert grade("7", r"It is \boxed{7}, in \boxed{}." + r" \boxed{ }" * (length // 10)) == 1.0
    assert grade("7", r"It is \boxed{7}, in \boxed{8}, in \boxed{}.") == 0.0


def test_other_threads_grade_alike():
    graded = []
    texts = [r"\boxed{0.5}", r"\boxed{\frac{3}{6}}", r"\boxed{2}", "", r"\boxed{\frac{1}{}"]
    thread = threading.Thread(target=lambda: graded.extend(grade("1/2", t) for t in texts))
    thread.start()
    thread.join(timeout=60)
    assert graded == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "text",
    ["9^{9^{9^{9}}}", "10^{10^{10}}", "(10^8)!", r"\binom{10^9}{5 \cdot 10^8}", "(a+b+c+d)^{60}"],
)
def test_too_much_arithmetic_is_a_timeout_that_no_clock_decides(text):
    # No program could compute these to the end.
    assert Math().grade({"answer": "7"}, f"\\boxed{{{text}}}") == (0.0, Status.TIMEOUT)


def test_a_timeout_is_counted_in_steps(monkeypatch):
    problem, response = {"answer": "x^4+4x^3+6x^2+4x+2"}, r"\boxed{(x+1)^4+1}"
    assert Math().grade(problem, response) == 0.0
    monkeypatch.setattr(math, "TIMEOUT", 0.001)
    assert Math().grade(problem, response) == (0.0, Status.TIMEOUT)


def test_a_formula_of_the_problem_is_no_answer():
    problem = {"answer": "0.15", "problem": r"Write $\frac{3}{20}$ as a decimal: $y = \frac12, 7$."}
    assert Math().grade(problem, r"\boxed{3/20}") == 0.0
    assert Math().grade(problem, r"\boxed{0.15}") == 1.0
    assert Math().grade({**problem, "answer": "0.5"}, r"\boxed{\dfrac{1}{2}}") == 0.0
    # The answer itself and integers are exceptions.
    assert Math().grade({**problem, "answer": r"\frac{3}{20}"}, r"\boxed{3/20}") == 1.0
    assert Math().grade({**problem, "answer": "7.0"}, r"\boxed{7}") == 1.0


# Each row has a question, its answer, and answers of responses: right ones, and copies.
RESTATED = r"""
Write $0.35$ as a fraction. | \frac{7}{20} | x = 7/20 || 0.350 | 0.35 \text{ units} | x = 0.35
Write 3/20 as a decimal. | 0.15 | 0.15 | .150 || 3/20 | \frac{3}{20}^\circ | \frac{-3}{-20}
Write \begin{align*}\frac25\end{align*} as a decimal. | 0.4 | .4 || \frac25 | \{2/5\} | \frac25 m
Rationalize $\frac{5}{3\sqrt2}$. | \frac{5\sqrt2}{6} | 5√2/6 || \frac{5}{\sqrt2\cdot 3}
Simplify $\frac{1}{\sqrt3}$. | \frac{\sqrt3}{3} | \sqrt3/3 || \frac{1}{3^{1/2}} | \frac{-1}{-\sqrt3}
If heads is $\frac12$, tails? | \frac12 | P=\frac12 | 1-\frac12=\frac12 | \frac12 || 1-\frac12
Solve it for $\theta < \frac{\pi}{2}$. | (0,\frac{\pi}{2}) | 0<x<\frac{\pi}{2} || \frac{\pi}{2}
Let $g(x) = x^2+1$. Find $f$. | x^2+1 | f(x)=x^2+1 | 1+x^2 || g(x)
"""


@pytest.mark.parametrize("row", RESTATED.strip().splitlines())
def test_a_question_in_other_spellings_is_no_answer(row):
    (question, answer, *right), wrong = (part.split(" | ") for part in row.split(" || "))
    problem = {"answer": answer, "problem": question}
    assert [Math().grade(problem, rf"\boxed{{{box}}}") for box in right] == [1.0] * len(right)
    assert [Math().grade(problem, rf"\boxed{{{box}}}") for box in wrong] == [0.0] * len(wrong)


def test_a_vote_counts_values():
    def votes(*texts):
        return {Math().answer(f"\\boxed{{{text}}}") for text in texts}

    assert votes("1/2", r"\frac12", "0.5", r"\dfrac{1}{2}", r"\tfrac{2}{4}", "x = .5") == {"1/2"}
    assert votes("3", "3.0", r"\text{3}", "$3$", "3 cm", r"3^\circ", "**3**", "3.") == {"3"}
    assert votes("(1, 2)", r"\left( 1, \frac{4}{2} \right)", "(1;2.0)") == {
        "(1, 2)",
        r"(1,\frac{4}{2})",
    }
    assert votes(r"1+\sqrt2", r"\sqrt{2} + 1", "√2+1") == {r"1+\sqrt{2}"}
    assert votes("1,2", r"\{2, 1\}", "2 and 1") == {"1, 2"}
    assert votes("[1,2)", r"1 \le x < 2") == {"[1, 2)"}
    assert votes("East", r"\text{east}") == {"east"}
    # An answer with an undone operation is a different answer, and so is one in another base.
    assert votes("7", "3+4") == {"7", "3+4"} and votes("52_8", "52") == {"52_8", "52"}
    assert Math().answer("no box") is None and Math().answer(r"\boxed{ }") is None


def test_a_missing_library_is_told(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", {"problem": "a", "answer": "1"})
    monkeypatch.setitem(sys.modules, "mpmath", None)
    with pytest.raises(ImportError, match=re.escape('pip install -e ".[math]"')):
        Math(data_dir=str(tmp_path)).problems("train")


def test_any_text_is_drawn(tmp_path):
    problem = {"problem": r"What is $\frac{1}{2 of $5?", "answer": "$ 5/2"}
    responses = [r"$\nonsense{ so \boxed{$}", "", "\ud800\u0000\u202e7\n$", "$" * 9999, "x"]
    figure = matplotlib.figure.Figure(layout="constrained")
    axes = figure.subplots()
    Math().draw(axes, problem, responses, [0.0, float("nan"), 1.0, 0.0, 0.0])
    figure.savefig(tmp_path / "drawn.png")
    shown = axes.texts[0].get_text()
    assert shown.startswith(problem["problem"]) and "5/2" in shown and r"\nonsense" in shown
    Math().draw(axes, problem, [], [])
