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
    defining it. So helpers and imports are run; usage examples, outputs and sessions are not.

    Args:
      blocks: the blocks of code, in the order of the response.
      names: the names that the tests call.
      head: code that runs before a whole program.
      stub: the code that a block with an indented first line continues; "" for none.
    """
    if len(blocks) == 1:
        return _sources(blocks[0], names, head, stub)
    wanted, programs = set(names), []
    for block in reversed(blocks):
        sources = _sources(block, names, head, stub)
        try:
            defined, used = _meanings(sources[-1])
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if defined & wanted:
            programs.insert(0, sources[-1])
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
    if block.strip("\n")[:1] not in (" ", "\t"):
        return [head, block]
    # These imports are local so that most answers need not wait for them.
    import re
    import textwrap

    whole = re.search(rf"^(async )?def {names[0]}\b", block, re.MULTILINE)
    if not stub or whole:
        # Python requires a program's first line to be unindented.
        return [head, textwrap.dedent(block)]
    return [stub + re.split(r"\n+(?=\S)", block.strip("\n"))[0] + "\n"]


def _meanings(program: str) -> tuple[set[str], set[str]]:
    """Returns the names that a program defines, and those that have to be defined before it.

    An import from outside the standard library counts as no definition, for it belongs to a usage
    example. Nor does a function without a body, which only shows a signature.
    """
    import ast
    import symtable
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top = symtable.symtable(program, "answer.py", "exec")
        tree = ast.parse(program)
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    used.update(
        symbol.get_name()
        for table in _tables(top)
        for symbol in table.get_symbols()
        if symbol.is_global() and symbol.is_referenced()
    )
    defined -= _foreign(ast.walk(tree)) | {
        getattr(s, "name", None) for s in tree.body if _is_empty(s)
    }
    return defined, (used - defined) | _redefined(tree.body)


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


def _foreign(nodes: Iterable[Any]) -> set[str]:
    """Returns the names that are imported from outside the standard library."""
    names = set()
    for node in nodes:
        kind = type(node).__name__
        if kind in ("Import", "ImportFrom"):
            for alias in node.names:
                module = alias.name if kind == "Import" else node.module or ""
                if module.partition(".")[0] not in sys.stdlib_module_names:
                    names.add(alias.asname or alias.name.partition(".")[0])
    return names
