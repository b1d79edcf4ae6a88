"""The process of the tests, which runs them with handles on the answer's objects.

Each assertion is a test; `pkpo_jax.tasks.code.problems` has replaced it by a call of `__record__`.
"""

from __future__ import annotations

import builtins
import os

from pkpo_jax.tasks.code.sandboxed import lockdown, protocol
from pkpo_jax.tasks.code.sandboxed.handles import Handle, Side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


def main(job_fd: int) -> None:
    """Reports the outcome and, on a second line, the numbers of the tests that passed."""
    job = lockdown.start(job_fd)
    requests, replies = os.fdopen(job["requests"], "wb"), os.fdopen(job["replies"], "rb")
    side = Side(replies, requests, job["classes"], job["attributes"])
    passed: dict[int, bool] = {}
    try:
        found = protocol.decode(protocol.receive(replies), side.find)
        end = _check(job, side, found, passed)
    except protocol.Lost:
        end = "lost"
    # Tests may catch even `Lost`, but an answer that ends its process passes none of them.
    end = "lost" if side.lost else end
    numbers = " ".join(str(number) for number, holds in passed.items() if holds)
    os.write(job["report"], f"{end}\n{numbers}\n".encode())
    os._exit(0)


def _check(job: dict, side: Side, found: Any, passed: dict[int, bool]) -> str:
    """Runs the tests if the answer defines all names, records which pass, returns the outcome."""
    if not isinstance(found, dict):
        return "syntax" if found == "syntax" else "raised"
    if not all(name in found for name in job["names"]):
        return "missing"

    def record(number: int, holds: Any) -> None:
        # A test in a loop has to hold every time.
        passed[number] = bool(holds) and passed.get(number, True)

    ended: list[tuple[BaseException, range]] = []

    space: dict = {
        "__name__": "tests",
        "__record__": record,
        "__whole__": lambda first, end: _Whole(range(first, end), ended),
        "__changing__": _changing,
        "__data__": lambda name: side.ask("value", side.find(name)),
        "__same__": _same,
        "__builtins__": {**vars(builtins), "map": _map, "filter": _filter},
    }
    try:
        exec(job["setup"], space)
        # A base class is defined before the classes that derive from it.
        for name in sorted(job["names"], key=lambda name: len(found[name])):
            if found[name]:
                space[name] = side.define_error(name, found[name])
            else:
                space[name] = side.named(name, changes=name in job["changing"])
        exec(job["tests"], space)
    except Exception as e:
        # Tests that were not reached have not passed, nor have those in a loop that it ended, or
        # that the exception ended from which the tests made this one. What follows the last test,
        # such as a call that must not raise, is a part of that test.
        cause: BaseException | None = e
        while cause is not None:
            for error, numbers in ended:
                if error is cause:
                    passed.update(dict.fromkeys(numbers, False))
            cause = cause.__context__
        passed[job["count"] - 1] = False
    return "done"


class _Whole:
    """Surrounds a loop or a function of the tests, and notes which exceptions end it.

    Args:
      numbers: the numbers of the tests inside.
      ended: the list of exceptions, each with such numbers.
    """

    def __init__(self, numbers: range, ended: list[tuple[BaseException, range]]) -> None:
        self._numbers, self._ended = numbers, ended

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._ended.append((error, self._numbers))


def _changing(function: Any) -> Any:
    """Returns a handle on a function of the answer that applies its changes to the arguments."""
    if not isinstance(function, Handle):
        return function
    return type(function)(function._side, function._key, changes=True)


def _same(left: Any, right: Any) -> bool:
    """Returns whether both are one object, or handles on one object, in place of `is`."""
    both = isinstance(left, Handle) and isinstance(right, Handle)
    return left._key == right._key if both else left is right


# A StopIteration raised by the function would silently end Python's own map and filter. In a
# generator it becomes an error.


def _map(function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
    return (function(*arguments) for arguments in zip(*iterables, strict=False))


def _filter(function: Callable[..., Any] | None, values: Iterable[Any]) -> Iterator[Any]:
    return (value for value in values if (value if function is None else function(value)))
