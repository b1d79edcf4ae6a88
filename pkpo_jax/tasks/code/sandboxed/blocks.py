"""Chooses which of a response's code blocks form the program.

It parses untrusted text, so it runs in the answer's process.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any


def choose(blocks: list[str], names: list[str], head: str, stub: str) -> list[str]:
    """Returns the programs to run, in order; raises SyntaxError if no block is a program.

    It goes from the last block to the first, and takes a block if it defines a name that is still
    wanted: one of the names that the tests call, or one that a block taken before uses without
    defining it. So helpers and imports are run; usage examples, outputs and sessions are not. A
    literal, as in `f = 3`, defines a name that the tests call only if no other block defines it.

    Args:
      blocks: the blocks of code, in the order of the response.
      names: the names that the tests call.
      head: code that runs before a whole program.
      stub: the code that a block with an indented first line continues; "" for none.
    """
    if len(blocks) == 1:
        return _sources(blocks[0], names, head, stub)
    parts = []
    for block in blocks:
        source = _sources(block, names, head, stub)[-1]
        try:
            parts.append((source, *_meanings(source, names)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    surely = {name for _, defined, _, _ in parts for name in defined}
    wanted, programs = set(names), []
    for source, defined, perhaps, used in reversed(parts):
        defined |= perhaps - surely
        if defined & wanted:
            programs.insert(0, source)
            wanted = (wanted - defined) | used
    if not programs:
        raise SyntaxError("no block defines what the tests call")
    continues = bool(stub) and any(program.startswith(stub) for program in programs)
    return programs if continues else [head, *programs]


def _sources(block: str, names: list[str], head: str, stub: str) -> list[str]:
    """Returns the programs to run if this block is the only one.

    A block continues the stub if its first line is indented and it does not contain the head of the
    function. Such a block ends before its first line that is not indented.
    """
    lines = block.strip("\n")
    if lines[:1] not in (" ", "\t"):
        return [head, block]
    # These imports are local so that most answers need not wait for them.
    import re
    import textwrap

    # Python requires a program's first line to be unindented, also where it alone is indented.
    program = textwrap.dedent(lines).lstrip(" \t")
    if not stub or re.search(rf"^(async )?def {names[0]}\b", program, re.MULTILINE):
        return [head, program]
    return [stub + re.split(r"\n+(?=\S)", lines)[0] + "\n"]


def _meanings(program: str, names: list[str]) -> tuple[set[str], set[str], set[str]]:
    """Returns the names that a program defines or perhaps defines, and those that it needs.

    An import from outside the standard library counts as no definition, for it belongs to a usage
    example. Nor does a function without a body, which only shows a signature, nor an assignment to
    the name of a builtin, as in `sum = 0`, for a program that uses this name means the builtin. It
    perhaps defines those of `names` that it sets to a literal.
    """
    import ast
    import builtins
    import symtable
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top = symtable.symtable(program, "answer.py", "exec")
        tree = ast.parse(program)
    symbols = top.get_symbols()
    defined = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    made = {s.get_name() for s in symbols if s.is_namespace() or s.is_imported()}
    used = {s.get_name() for s in symbols if s.is_referenced()}
    used.update(
        symbol.get_name()
        for table in _tables(top)
        for symbol in table.get_symbols()
        if symbol.is_global() and symbol.is_referenced()
    )
    defined -= _foreign(ast.walk(tree), names) | {
        getattr(s, "name", None) for s in tree.body if _is_empty(s)
    }
    defined -= set(dir(builtins)) - made - set(names)
    perhaps = _literals(tree.body).intersection(names) - made
    return defined - perhaps, perhaps, (used - defined) | _redefined(tree.body)


def _literals(statements: list) -> set[str]:
    """Returns the names that are set to literals."""
    import ast

    return {
        target.id
        for s in statements
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Constant | ast.List | ast.Dict)
        for target in s.targets
        if isinstance(target, ast.Name)
    }


def _tables(table: Any) -> Iterator[Any]:
    for child in table.get_children():
        yield child
        yield from _tables(child)


def _is_empty(statement: Any) -> bool:
    """Returns whether a statement is a function with only a docstring or an ellipsis as body."""
    import ast

    function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
    return function and all(
        isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in statement.body
    )


def _redefined(statements: list) -> set[str]:
    """Returns the names that are first assigned in terms of their own value, as in f = g(f)."""
    import ast

    known, redefined = set(), set()
    for statement in statements:
        names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
        stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
        if isinstance(statement, ast.Assign):
            used = {n.id for n in names if isinstance(n.ctx, ast.Load)}
            redefined |= (stored & used) - known
        known |= stored | {getattr(statement, "name", "")}
    return redefined


def _foreign(nodes: Iterable[Any], names: list[str]) -> set[str]:
    """Returns the names that are imported from outside the standard library.

    If these are names that the tests call, its module has to have them: `from code import f` names
    a file of the user's.
    """
    found = set()
    for node in nodes:
        kind = type(node).__name__
        if kind in ("Import", "ImportFrom"):
            for alias in node.names:
                module = alias.name if kind == "Import" else node.module or ""
                name = alias.asname or alias.name.partition(".")[0]
                known = module.partition(".")[0] in sys.stdlib_module_names
                if known and kind == "ImportFrom" and name in names:
                    known = _has(module, alias.name)
                if not known:
                    found.add(name)
    return found


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(__import__(module, fromlist=[name]), name)
    except Exception:
        return False
