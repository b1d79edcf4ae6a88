"""Tests of which code blocks of a response are read, and which of them form its program."""

import textwrap
import time

import pytest

from pkpo_jax.tasks import Status
from pkpo_jax.tasks.code import Code
from pkpo_jax.tasks.code import problems as code_problems
from pkpo_jax.tasks.code.sandboxed import blocks
from pkpo_jax.tasks.grading import Grader
from tests.tasks.test_code import ROW, needs_sandbox, problem, run

WRONG_FORMAT = Status.WRONG_FORMAT

ADD = "def add(a, b):\n    return a + b\n"
DRAFT = "def add(a, b): return 0\n"
FENCED = f"```python\n{ADD}```\n"
LAYOUTS = {
    "an output behind it": FENCED + "Output:\n```\n3\n```\n",
    "a usage example behind it": FENCED + "So\n```python\nprint(add(1, 2))\n```\n",
    "an example that imports it": FENCED + "```python\nfrom mine import add\nadd(1, 2)\n```\n",
    "a session behind it": FENCED + "```pycon\n>>> def add(a, b): return 7\n>>> add(1, 2)\n```",
    "a shell command behind it": FENCED + "```bash\nadd = 3\n```\n",
    "an example that imports it from a file with a module's name": FENCED
    + "```python\nfrom code import add\nadd(1, 2)\n```\n",
    "an output that names it": FENCED + "Output:\n```\nadd = 3\n```\n",
    "an example of builtins' names before it": "```\nsum = 0\nlist = [1, 2]\n```\n"
    "```py\ndef add(*x):\n    return sum(list(x))\n```\n",
    "a helper of a builtin's name before it": "```py\ndef sum(a, b): return a + b\n```\n"
    "```py\ndef add(a, b):\n    return sum(a, b)\n```\n",
    "a first line that is indented alone": f"```\n {ADD}```",
    "another language": FENCED + "```js\nfunction add(a, b) { return a + b }\n```\n",
    "what does not parse behind it": FENCED + "```\nadd(1, 2) -> 3\ndef add(a, b):\n```\n",
    "a draft before it": "```python\ndef add(a, b):\n    return 0\n```\n" + FENCED,
    "an example before it": "```python\nprint(add(1, 2))\nexit(1)\n```\n" + FENCED,
    "a helper before it": "```py\ndef plus(a, b): return a + b\n```\n"
    "```py\ndef add(a, b):\n    return plus(a, b)\n```\n",
    "an import before it":
    "```py\nimport operator as o\n```\n```py\nadd = lambda *x: o.add(*x)\n```",
    "helpers of helpers": "```\nN = 0\n```\nthen\n```\ndef zero():\n    return N\n```\nand\n"
    "```\ndef add(a, b):\n    return a + b + zero()\n```\n",
    "tildes": f"~~~\n{ADD}~~~\n",
    "five backticks": f"`````py3\n{ADD}`````\n",
    "a docstring with a fence": '````\ndef add(a, b):\n    """\n```\n3\n```\n"""\n'
    "    return a + b\n````",
    "a tag in capitals": f"```PYTHON\n{ADD}```",
    "a tag with attributes": f'```{{.python title="x"}}\n{ADD}```',
    "a tag with a version": f"```Python3.11\n{ADD}```",
    "a tag nobody knows": f"```code\n{ADD}```",
    "no end": f"So:\n```python\n{ADD}",
    "a numbered list": "1. So:\n\n" + textwrap.indent(FENCED, "   ") + "\n2. Done.\n",
    "a list in a list": "- a\n  - b\n\n" + textwrap.indent(FENCED, "    "),
    "on the line of a list": "1. ```python\n" + textwrap.indent(ADD + "```", "   "),
    "a list whose lines fall out": f"1. So:\n   ```python\n{ADD}   ```\n",
    "indented too far": "- So:\n\n" + textwrap.indent(FENCED, "        "),
    "a quotation": "".join(f"> {line}\n" for line in FENCED.splitlines()),
    "tags around it": f"<answer>\n{FENCED}</answer>",
    "carriage returns": FENCED.replace("\n", "\r\n"),
    "code that is indented as one": "```\n" + textwrap.indent(ADD, "    ") + "```",
    "in a list whose lines fall out, behind a draft": f"```py\n{DRAFT}```\n\n"
    f"1. Better:\n   ```python\n{ADD}   ```\n",
    "in such a list, behind a draft in another": f"1. So:\n   ```py\n   {DRAFT}   ```\n"
    f"2. Better:\n   ```python\n{ADD}   ```\n",
    "a docstring with an indented fence": '```py\ndef add(a, b):\n    """Adds.\n\n    ```python\n'
    '    def add(a, b): return 0\n    ```\n    """\n    return a + b\n```\n',
    "a docstring with an untagged fence": '```py\ndef add(a, b):\n    """\n    ```\n    add(1, 2)\n'
    '    ```\n    """\n    return a + b\n```\n',
    "tags on the lines of its fences": f"<answer>```python\n{ADD}```</answer>",
    "words before its fence": f"Here it is: ```python\n{ADD}```\n",
    "a dot behind its fence": f"```python\n{ADD}```.\n",
    "a fence on the last line of code": f"```python\n{ADD.rstrip()}```\n",
    "a draft without an end before it": f"<think>\n```python\n{DRAFT}</think>\n{FENCED}",
    "an odd space before its fence": f"\u00a0{FENCED}",
    "a mark of the byte order": f"```python\n\ufeff{ADD}```",
    "a command of a notebook": f"```python\n!pip install numpy\n{ADD}```",
    "inline code with three backticks": f"Use ```add``` so:\n{FENCED}and ```add(1, 2)```\n",
    "three backticks in a string": f"```python\nTICKS = '```'\n{ADD}```\n",
    "within another block": f"````markdown\n# Answer\n{FENCED}````\n",
    "an assignment": "```\nadd = lambda a, b: a + b\n```\n```\nx = add(1, 2)\n```",
    "an import of it": "```\nfrom operator import add\n```\n```\nprint(add(1, 2))\n```",
    "a definition in a try": "```\ntry:\n    from operator import add\nexcept ImportError:\n"
    "    pass\n```\n```\nadd(1, 2)\n```",
    "a decorated one":
    "```\nimport functools\n```\n```\n@functools.cache\n" + ADD + "```\n```\n3\n```",
    "what it wraps before it": f"```\n{ADD}```\n```\nadd = __import__('math').trunc and add\n```",
    "its head behind it": FENCED + '```\ndef add(a, b):\n    """Adds."""\n    ...\n```',
    "no fence but an indentation": "So:\n\n" + textwrap.indent(ADD, "    ") + "\nDone.",
    "an indentation of two parts": "So:\n\n" + textwrap.indent("N = 0\n\n" + ADD, "    "),
    "a class with its name": "```\nclass add(int):\n    def __new__(cls, a, b):\n"
    "        return int(a + b)\n```\n```\n3\n```",
}  # fmt: skip


@needs_sandbox
def test_the_program_is_the_block_that_defines_what_is_called():
    task, row = Code(allow_code_execution=True), problem(ROW["code"], *ROW["test_list"])
    with Grader(task, workers=2, timeout=60) as grader:
        grades = grader.grade([row], [list(LAYOUTS.values())])
    assert [n for n, r in zip(LAYOUTS, grades.rewards[0], strict=True) if r != 1] == []
    inside = textwrap.indent(FENCED, "    ")
    for last in (
        f"```py\n{DRAFT}```\n",
        f"1. Better:\n   ```python\n{DRAFT}   ```\n",
        f"```py\n{DRAFT}```.\n",
        f"<answer>```py\n{DRAFT}```</answer>",
        f"Better: ```py\n{DRAFT}```",
        f'```py\ndef add(a, b):\n    """Not\n{inside}    """\n    return 0\n```\n',
    ):
        assert task.grade(row, FENCED + last).reward == 0
    builtin = "```py\nsum = lambda x: 3\n```\n```py\ndef add(*x):\n    return sum(*x)\n```\n"
    assert task.grade(row, builtin).reward == 0
    wrong = {
        "none": "def add(a, b): return a + b",
        "empty": "```python\n \n```",
        "other names": "```\ndef plus(a, b): return a + b\n```\n```\nx = 1\n```",
        "a session": "```python\n>>> def add(a, b): return a + b\n```",
    }
    assert {n: task.grade(row, r) for n, r in wrong.items()} == dict.fromkeys(
        wrong, (0.0, WRONG_FORMAT)
    )


def test_several_names_may_be_in_several_blocks():
    parts = [
        "class Node: pass\n",
        "x = Node()\n",
        "def depth(n):\n    x = 1\n    return x\n",
        "depth(1)\n",
    ]
    chosen = blocks.choose(parts, ["Node", "depth"], "head", "")
    assert chosen == ["head", parts[0], parts[2]]
    with pytest.raises(SyntaxError):
        blocks.choose(["x = 1\n", "y = 1\n"], ["depth"], "", "")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("So:\n```python\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```py\ndef f(): 1\n```\n```python\nprint(f())\n```", "def f(): 1\n"),
        ("```\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```python\r\nx = 1\r\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```python\n \n```", None),
        ("x = 1", None),
        ("So:\n\n    x = 1\n", "x = 1\n"),
        ("    x = 2\n\n```\nx = 1\n```", "x = 1\n"),
        ("", None),
    ],
)
def test_the_answer_is_the_last_block_that_defines_something(response, answer):
    assert Code().answer(response) == answer
    assert Code(instruct=False).answer(response) == (response or None)


@pytest.mark.parametrize(
    ("fence", "first", "other"),
    [("```", "", ""), ("~~~~", "", ""), ("```", "1. ", "   "), ("```", "> ", "> ")],
)
def test_a_long_response_is_cut_outside_its_blocks(fence, first, other):
    lines = f"{other}# a try\n" * 2_000
    draft = f"So:\n\n{first}{fence}python\n{lines}{other}{fence}\n\n"
    # The cut falls before, into and behind the draft.
    for words in range(18_000, 20_501, 250):
        text = draft + "Hmm, no. \n" * words + FENCED
        assert Code().answer(text) == ADD
    for tail in (60_000, 150_000):
        assert Code().answer(FENCED + "x " * (tail // 2)) == ADD


@pytest.mark.parametrize(
    "response",
    [
        "```python\n" * 200_000,
        "```\n" * 200_000,
        "\n" + " " * 300_000 + "`" * 300_000,
        "> " * 200_000,
        (">" * 200 + "\n") * 5000,
        ("- " * 30 + "x\n") * 20_000,
        "#\n" * 200_000,
        "-\n" * 200_000,
        "> - > - > - a\n" * 20_000,
        "[a]: b\n" * 100_000,
        "<a\n" * 100_000,
        "\0\ud800`" * 100_000,
    ],
)
def test_reading_any_response_is_quick(response):
    started = time.process_time()
    Code().answer(response)
    # Quadratic time would take minutes.
    assert time.process_time() - started < 30


def test_a_continuation_ends_where_its_function_does():
    (chat, *_) = code_problems.human_eval()
    assert chat["names"] == ["has_close_elements"]
    body = "\n    x = 1\n\n    return x\n"
    for after in ("", "\nprint(7)\n", "\n\ndef other():\n    return 2\n", "# so\n    y = 1"):
        assert run(chat, body + after) == [chat["stub"] + body.strip("\n") + "\n"]
        assert run(chat, body + after, "print(1)\n") == run(chat, body + after)
    whole = "def has_close_elements(a, b):\n    return 1\n"
    for program in (whole, "x = 1"):
        assert run(chat, program) == [chat["head"], program]
    # A whole function may be indented, also with its imports, or its first line alone.
    imports = "from typing import List\n\n\n" + whole
    for program in (whole, imports):
        for text in (
            textwrap.indent(program, "    "),
            textwrap.indent(program, "\t"),
            " " + program,
        ):
            head, chosen = run(chat, text)
            exec(chosen, space := {})
            assert head == chat["head"] and space["has_close_elements"](1, 2) == 1
