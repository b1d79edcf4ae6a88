"""Infers from a problem's solution and tests how its answers have to be tested.

It analyses the syntax only and runs nothing.
"""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

# Calls of these with a display make another display.
_DISPLAYS = {"list": ast.List, "tuple": ast.Tuple, "set": ast.Set}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_EQUALITIES = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)
# The values of these expressions are data.
_DATA = (
    ast.Constant,
    ast.UnaryOp,
    ast.BinOp,
    ast.JoinedStr,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
)
_DATA += (ast.ListComp, ast.SetComp, ast.DictComp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Calls of these names make a class.
_CLASS_MAKERS = {"namedtuple", "NamedTuple", "make_dataclass", "Enum", "IntEnum", "Flag", "type"}
# These methods change their object, and the functions below change an argument.
_CHANGING_METHODS = {
    *("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem"),
    *("remove", "clear", "sort", "reverse", "rotate", "add", "discard", "update", "setdefault"),
    *("intersection_update", "difference_update", "symmetric_difference_update", "subtract"),
    "move_to_end",
}
_CHANGING_FUNCTIONS = {
    *("heapify", "heappush", "heappop", "heapreplace", "heappushpop", "insort", "insort_left"),
    *("insort_right", "shuffle", "setitem", "delitem"),
}


def traits(solution: ast.Module, names: list[str]) -> dict[str, Any]:
    """Returns the "classes", "attributes" and "changing" of a problem; see `problems`."""
    changing = _changing(solution)
    return {
        "classes": [name for name in names if name in _classes(solution)],
        "attributes": sorted(_attributes(solution)),
        "changing": [name for name in names if name in changing],
    }


def data(solution: ast.Module) -> set[str]:
    """Returns the names that a solution sets to data, as in `LIMIT = 10`, and to nothing else."""
    assignments = [s for s in solution.body if isinstance(s, ast.Assign)]
    names: dict[bool, set[str]] = {False: set(), True: set()}
    for statement in assignments:
        stored = (n for t in statement.targets for n in ast.walk(t) if isinstance(n, ast.Name))
        names[isinstance(statement.value, _DATA)].update(n.id for n in stored)
    functions = {s.name for s in solution.body if isinstance(s, (*_FUNCTIONS, ast.ClassDef))}
    return names[True] - names[False] - functions


def form(assertion: str, names: list[str]) -> str:
    """Returns the form of an assertion: its text with a blank for each call of one of the names.

    Assertions that expect equal values have the same form: as in Python, True is 1 and 2.0 is 2,
    sets and dictionaries have no order, and arithmetic of numbers is carried out.

    >>> form("prime(7) == True", ["prime"]), form("True is prime(7)", ["prime"])
    ('_ == 1', '_ == 1')
    >>> form("not prime(9)", ["prime"]), form("prime(9) != True", ["prime"])
    ('_ == 0', '_ == 0')
    >>> form("{2, 1} == f(9)", ["f"]), form("not f(9) != set((1, 4 / 2))", ["f"])
    ('_ == {1, 2}', '_ == {1, 2}')
    """
    blank = ast.unparse(_Form(names).visit(ast.parse(assertion, mode="eval")).body)
    return {"_": "_ == 1", "not _": "_ == 0"}.get(blank, blank)


class _Form(ast.NodeTransformer):
    """Puts a blank in place of calls of the names, and one spelling in place of any other."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in self._names:
            return ast.Name("_", ast.Load())
        self.generic_visit(node)
        if name in _DISPLAYS and len(node.args) == 1 and not node.keywords:
            (given,) = node.args
            if isinstance(given, ast.List | ast.Tuple | ast.Set):
                return self.visit(_DISPLAYS[name](given.elts))
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        value = node.value
        whole = isinstance(value, bool | int | float) and value % 1 == 0
        return ast.Constant(int(value)) if whole else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        left, right = _number(node.left), _number(node.right)
        operation = _ARITHMETIC.get(type(node.op))
        if left is None or right is None or operation is None:
            return node
        try:
            return self.visit(ast.Constant(operation(left, right)))
        except ArithmeticError:
            return node

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        items = {ast.unparse(item): item for item in node.elts}
        return ast.Set([items[text] for text in sorted(items)])

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        self.generic_visit(node)
        # An entry that ** inserts has no key, and the order of those may matter.
        if None not in node.keys:
            order = sorted(range(len(node.keys)), key=lambda i: ast.unparse(node.keys[i] or node))
            node.keys = [node.keys[i] for i in order]
            node.values = [node.values[i] for i in order]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare) and len(inner.ops) == 1:
            if isinstance(inner.ops[0], ast.Eq):
                return self.visit(ast.Compare(inner.left, [ast.NotEq()], inner.comparators))
            if isinstance(inner.ops[0], ast.NotEq):
                return self.visit(ast.Compare(inner.left, [ast.Eq()], inner.comparators))
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [node.left, *node.comparators]
        if len(node.ops) > 1:
            texts = {ast.unparse(self.visit(copy.deepcopy(side))): side for side in sides}
            if len(texts) != 2 or not all(isinstance(o, ast.Eq) for o in node.ops):
                return self.generic_visit(node)
            # The same two sides are compared again, as in 3 == f(2) == 3.
            sides = list(texts.values())
        operation = node.ops[0]
        if isinstance(operation, _EQUALITIES) and not _calls(sides[0]):
            sides.reverse()
        left, right = sides
        if isinstance(operation, ast.Is):
            operation = ast.Eq()
        elif isinstance(operation, ast.NotEq | ast.IsNot) and _is_bool(right):
            operation, right = ast.Eq(), ast.Constant(not right.value)
        return self.generic_visit(ast.Compare(left, [operation], [right]))


def _number(node: ast.expr) -> float | None:
    """Returns the value of a number, with or without a sign, if it is not too large for a test."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) and abs(value) < 1e100 else None


def _calls(node: ast.expr) -> bool:
    return any(isinstance(n, ast.Call) for n in ast.walk(node))


def _is_bool(node: ast.expr) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _classes(solution: ast.Module) -> set[str]:
    names = {s.name for s in solution.body if isinstance(s, ast.ClassDef)}
    for statement in solution.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            maker = statement.value.func
            name = maker.attr if isinstance(maker, ast.Attribute) else getattr(maker, "id", "")
            if name in _CLASS_MAKERS:
                names.update(t.id for t in statement.targets if isinstance(t, ast.Name))
    return names


def _attributes(solution: ast.Module) -> set[str]:
    """Returns the names that classes define, and the attributes that are assigned anywhere."""
    names = set()
    for node in ast.walk(solution):
        if isinstance(node, ast.ClassDef):
            names.update(s.name for s in node.body if isinstance(s, _FUNCTIONS))
            targets = (n for s in node.body for n in ast.walk(s) if isinstance(n, ast.Name))
            names.update(n.id for n in targets if isinstance(n.ctx, ast.Store))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def _changing(solution: ast.Module) -> set[str]:
    """Returns the functions that change their arguments, as far as the syntax shows.

    A function does so if it assigns to a part of an argument (or of a name bound to a part of one),
    calls a method or function that changes it, or passes it to another function that does so.
    """
    functions = {n.name: n for n in ast.walk(solution) if isinstance(n, _FUNCTIONS)}
    changing: set[str] = set()
    while True:
        more = {name for name, f in functions.items() if _changes(f, changing)}
        if more <= changing:
            return changing
        changing |= more


def _changes(function: ast.FunctionDef | ast.AsyncFunctionDef, changing: set[str]) -> bool:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [a for a in (arguments.vararg, arguments.kwarg) if a]
    aliases = {a.arg for a in named}
    for statement in function.body:
        for _ in range(3):  # A name may be bound to a part of a part; three levels suffice.
            aliases |= _bound_to(statement, aliases)
        if any(_is_change(node, aliases, changing) for node in ast.walk(statement)):
            return True
        # From here on, a name that is bound to something else, such as a copy, is no alias.
        if isinstance(statement, ast.Assign) and not aliases & _assigned(statement):
            aliases -= {t.id for t in statement.targets if isinstance(t, ast.Name)}
    return False


def _bound_to(statement: ast.stmt, aliases: set[str]) -> set[str]:
    """Returns the names that a statement binds to parts of the objects of `aliases`."""
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Assign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if aliases & _assigned(node):
                stored = (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
                names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
    return names


def _assigned(node: ast.Assign | ast.For) -> set[str]:
    """Returns the names whose objects, or parts of them, a statement binds to other names."""
    if isinstance(node, ast.For):
        return set(_roots(node.iter))
    copied = isinstance(node.value, ast.Subscript) and isinstance(node.value.slice, ast.Slice)
    return set() if copied else set(_roots(node.value))


def _is_change(node: ast.AST, aliases: set[str], changing: set[str]) -> bool:
    """Returns whether a node changes an object that one of the `aliases` names or contains."""
    if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return bool(aliases & set(_roots(node.value)))
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        # An augmented assignment changes a list in place, but makes a new number.
        return node.target.id in aliases and isinstance(node.value, ast.List | ast.ListComp)
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    method = isinstance(function, ast.Attribute)
    name = function.attr if method else getattr(function, "id", "")
    operands = node.args if name in _CHANGING_FUNCTIONS | changing else []
    if method and name in _CHANGING_METHODS:
        operands = [function.value]
    return any(aliases & set(_roots(operand)) for operand in operands)


def _roots(value: ast.expr) -> Iterator[str]:
    """Yields the names whose objects an expression is a part of: x for x[0].y or enumerate(x)."""
    while isinstance(value, ast.Subscript | ast.Attribute | ast.Starred):
        value = value.value
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Tuple):
        for part in value.elts:
            yield from _roots(part)
    elif isinstance(value, ast.Call):
        name = getattr(value.func, "attr", getattr(value.func, "id", ""))
        if name in ("enumerate", "zip", "values", "items", "reversed", "iter"):
            parts = [value.func.value] if isinstance(value.func, ast.Attribute) else value.args
            for part in parts:
                yield from _roots(part)
