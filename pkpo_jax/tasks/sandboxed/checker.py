"""The process of the tests: runs them, with stand-ins for what the answer defines.

A stand-in asks the answer's process, and gets plain data, or a handle on an object that stays
there. Each assertion is a test; `pkpo_jax.tasks.code_tests` had them call `__record__` instead.
"""

from __future__ import annotations

import builtins
import os

from pkpo_jax.tasks.sandboxed import confine, wire


class Handle:
    """An object of the answer's process: equal to itself alone."""

    __slots__ = ("__ask", "__key")

    def __init__(self, ask: Ask, key: int | str) -> None:
        object.__setattr__(self, "_Handle__ask", ask)
        object.__setattr__(self, "_Handle__key", key)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.__ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> object:
        # Python looks for many a special method that it can do without.
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__ask("get", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self.__ask("set", self, name, value)

    def __iter__(self) -> object:
        iterator = self.__ask("iter", self)
        while True:
            try:
                value = self.__ask("next", iterator)
            except StopIteration:
                return
            yield value

    def __next__(self) -> object:
        return self.__ask("next", self)

    def __len__(self) -> int:
        return self.__ask("len", self)

    def __bool__(self) -> bool:
        return self.__ask("bool", self)

    def __getitem__(self, key: object) -> object:
        return self.__ask("item", self, key)


class Ask:
    """Has the answer's process do an operation; gives its value, or raises what it raised."""

    def __init__(self, requests: object, replies: object) -> None:
        self._requests, self._replies = requests, replies
        self._handles: dict[int | str, Handle] = {}

    def handle(self, key: int | str) -> Handle:
        return self._handles.setdefault(key, Handle(self, key))

    def receive(self) -> object:
        return wire.decode(wire.receive(self._replies), self.handle)

    def __call__(self, *request: object) -> object:
        wire.send(self._requests, wire.encode(request, _key))
        match self.receive():
            case ["value", value]:
                return value
            case ["raised", str(name)]:
                raise _exception(name)
            case _:
                raise wire.Lost


def _key(value: object) -> int | str:
    if not isinstance(value, Handle):
        raise TypeError(f"{type(value).__name__} cannot be sent to the answer's process")
    return value._Handle__key


def _exception(name: str) -> Exception:
    """An exception of this name if it is one of Python's own, else a RuntimeError."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    try:
        return kind("in the answer")
    except TypeError:  # Those of Unicode want more arguments.
        return RuntimeError(name)


def main(job_fd: int) -> None:
    """Reports how it ended, and the numbers of the tests passed: a line each."""
    job = confine.start(job_fd)
    requests, replies = os.fdopen(job["requests"], "wb"), os.fdopen(job["replies"], "rb")
    passed: dict[int, bool] = {}
    try:
        end = _check(job, Ask(requests, replies), passed)
    except wire.Lost:
        end = "lost"
    numbers = " ".join(str(number) for number, holds in passed.items() if holds)
    os.write(job["report"], f"{end}\n{numbers}\n".encode())
    os._exit(0)


def _check(job: dict, ask: Ask, passed: dict[int, bool]) -> str:
    found = ask.receive()
    if not isinstance(found, list):
        return "syntax" if found == "syntax" else "raised"
    if not all(name in found for name in job["names"]):
        return "missing"

    def record(number: int, holds: object) -> None:
        # One in a loop has to hold every time.
        passed[number] = bool(holds) and passed.get(number, True)

    space: dict = {"__name__": "tests", "__record__": record}
    try:
        exec(job["setup"], space)
        space.update({name: ask.handle(name) for name in job["names"]})
        exec(job["tests"], space)
    except Exception:  # The tests that were not reached are not passed.
        pass
    return "done"
