"""The process of the answer, which runs it and then calls its functions for the checker's process.

Whatever the answer does to this process, it can send only values and exceptions.
"""

from __future__ import annotations

import builtins
import operator
import os
import sys

from pkpo_jax.tasks.code.sandboxed import blocks, lockdown, peer, protocol, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Module = type(sys)
# fmt: off
_OPERATORS = [
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_",
    "xor", "or_", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow",
    "ilshift", "irshift", "iand", "ixor", "ior", "lt", "le", "gt", "ge", "eq", "ne", "neg", "pos",
    "invert", "index", "contains",
]
# fmt: on
OPERATIONS = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "value": lambda value: value,
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    "instance": isinstance,
    "subclass": issubclass,
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value, kind, args: type(value).__exit__(value, kind, kind and kind(*args), None),
    **{f.__name__: f for f in (iter, next, len, bool, str, repr, bytes, format, hash, int, float)},
    **{f.__name__: f for f in (complex, abs, round, reversed, divmod)},
    **{name: getattr(operator, name) for name in _OPERATORS},
}


class Remote:
    """A function or an iterator of the tests."""

    def __init__(self, side: peer.Peer, number: int) -> None:
        self._peer, self._number = side, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self._number, args, kwargs)

    def __iter__(self) -> Remote:
        return self

    def __next__(self) -> Any:
        return self._peer.ask("next", self._number)


class Made:
    """Marks a value that stays in this process, even if it is plain data."""

    def __init__(self, value: Any) -> None:
        self.value = value


def main(job_fd: int) -> None:
    """Sends the ancestors of each of `names` that exists, or "syntax" or "raised"; then serves."""
    job = lockdown.start(job_fd)
    os.close(job["report"])
    requests, replies = os.fdopen(job["requests"], "rb"), os.fdopen(job["replies"], "wb")
    module = sys.modules["answer"] = Module("answer")
    failure = _run(job, module)
    found = failure or {
        name: _ancestors(getattr(module, name), module, job["names"])
        for name in job["names"]
        if hasattr(module, name)
    }
    protocol.send(replies, protocol.encode(found, id))
    _serve(requests, replies, module, job["names"])


def _run(job: dict, module: Module) -> str:
    """Runs the program that the response contains; returns "", or "syntax" or "raised"."""
    try:
        sources = blocks.choose(job["blocks"], job["names"], job["head"], job["stub"])
        programs = [compile(s, "answer.py", "exec", dont_inherit=True) for s in sources]
    except BaseException:
        return "syntax"
    try:
        for program in programs:
            exec(program, module.__dict__)
    except BaseException:
        return "raised"
    return ""


def _ancestors(kind: Any, module: Module, names: list[str]) -> list[tuple[str, str]]:
    """Returns the module and name of an exception class and of each class that it derives from.

    Classes of the answer that the tests do not name are left out. Other values have no ancestors.
    """
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return []
    found = []
    for ancestor in kind.__mro__:
        name, home = ancestor.__name__, ancestor.__module__
        mine = [n for n in names if getattr(module, n, None) is ancestor]
        if mine:
            found.append(("answer", mine[0]))
        elif home != "answer" and getattr(sys.modules.get(home), name, None) is ancestor:
            found.append((home, name))
    return found


def _serve(requests: Any, replies: Any, module: Module, names: list[str]) -> None:
    objects: list = []
    numbers: dict[int, int] = {}
    remotes: dict[int, Remote] = {}

    def name(value: Any) -> int | tuple[int, int]:
        if type(value) is Remote:
            return value._number
        if type(value) is Made:
            value = value.value
        number = numbers.setdefault(id(value), len(objects))
        if number == len(objects):
            objects.append(value)
        return number, values.abilities(value)

    def find(name: int | str) -> Any:
        if isinstance(name, str):
            return getattr(module, name)
        if name < 0:
            return remotes.setdefault(name, Remote(side, name))
        return objects[name]

    def serve(operation: str, *operands: Any) -> Any:
        if operation == "make":
            return Made(OPERATIONS["call"](*operands))
        return OPERATIONS[operation](*operands)

    def describe(error: BaseException) -> Any:
        ancestors = _ancestors(type(error), module, names)
        described = [ancestors, str(error), Made(error), tuple(error.args)]
        try:
            protocol.encode(described, id)
        except Exception:
            described[-1] = ()
        return described

    side = peer.Peer(
        requests, replies, name=name, find=find, serve=serve, describe=describe, revive=_revive
    )
    side.listen()


def _revive(operation: str, described: Any) -> BaseException:
    """Makes the exception that a function of the tests raised from its description."""
    del operation
    ancestors, text = described or ([], "in the tests")
    for kind in (getattr(builtins, name, None) for name in ancestors):
        try:
            return kind(text)  # pyrefly: ignore  What is no class raises a TypeError.
        except TypeError:
            continue
    return RuntimeError(text)
