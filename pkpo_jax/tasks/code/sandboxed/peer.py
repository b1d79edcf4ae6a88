"""Lets two processes ask each other for operations, one at a time, over a pair of pipes.

While one side waits for a reply, it serves the requests of the other. So an answer that a test has
called can call a function of the test. Objects that are not plain data have names: objects of the
answer a str, or a non-negative int with their abilities (see `values`); objects of the tests a
negative int.
"""

from __future__ import annotations

from pkpo_jax.tasks.code.sandboxed import protocol, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# A message starts with one of these bytes.
ASK, VALUE, RAISED = b"?", b"=", b"!"


class Peer:
    """One of the two sides.

    Args:
      incoming, outgoing: the files of the pipes.
      name: returns the name of an object, for `protocol.encode`.
      find: returns the object that has a name, or the handle on it.
      serve: carries out an operation that the other side asks for.
      describe: returns what the other side may know about an exception, as plain data.
      revive: makes an exception from an operation's name and such a description.
    """

    def __init__(
        self,
        incoming: Any,
        outgoing: Any,
        *,
        name: Callable[[Any], int | str | tuple[int, int]],
        find: Callable[[Any], Any],
        serve: Callable[..., Any],
        describe: Callable[[BaseException], Any],
        revive: Callable[[str, Any], BaseException],
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._name, self._find = name, find
        self._serve, self._describe, self._revive = serve, describe, revive
        self.lost = False

    def ask(self, operation: str, *operands: Any, changes: bool = False) -> Any:
        """Lets the other side carry out an operation; returns its value or raises its exception.

        Args:
          operation: the name of the operation.
          operands: the operands.
          changes: whether to apply the operation's changes to mutable operands on this side.
        """
        shared: list = []
        self._send(ASK, (operation, changes, operands), shared)
        while True:
            kind, message = self._receive()
            if kind == ASK:
                self._reply(message, allow_changes=False)
                continue
            # A reply may refer to operands by number: each side has its own copy of an operand.
            value, states = protocol.decode(message, self._find, list(shared) if changes else None)
            if changes:
                _restore(shared, states)
            if kind == RAISED:
                raise self._revive(operation, value)
            return value

    def listen(self) -> None:
        """Answers the other side's requests until `Lost` reports that it has ended."""
        while True:
            kind, message = self._receive()
            if kind != ASK:
                self._lose()
            self._reply(message, allow_changes=True)

    def _reply(self, message: bytes, allow_changes: bool) -> None:
        shared: list | None = None
        before: list[bytes] = []
        try:
            numbered: list = []
            operation, changes, operands = protocol.decode(message, self._find, numbered)
            if changes and allow_changes:
                shared = numbered
            before = self._states(shared)
            value = self._serve(operation, *operands)
            self._send(VALUE, (value, self._changed(shared, before)), shared)
        except protocol.Lost:
            raise
        except BaseException as e:
            try:
                changed = self._changed(shared, before) if shared else ()
                self._send(RAISED, (self._describe(e), changed), shared)
            except Exception:
                self._send(RAISED, (None, ()))

    def _states(self, shared: list | None) -> list[bytes]:
        return [protocol.encode(_contents(value), id) for value in shared or ()]

    def _changed(self, shared: list | None, before: list[bytes]) -> tuple:
        """Returns the number and the new state of each operand that has changed."""
        after = self._states(shared)
        return tuple(
            (number, _contents(shared[number]))  # pyrefly: ignore  No operands, no states.
            for number, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        )

    def _send(self, kind: bytes, value: Any, shared: list | None = None) -> None:
        # If encoding fails, the numbers that it assigned are dropped with this copy.
        numbered = list(shared or ())
        message = kind + protocol.encode(value, self._name, numbered)
        if shared is not None:
            shared[:] = numbered
        try:
            protocol.send(self._outgoing, message)
        except protocol.Lost:
            self._lose()

    def _receive(self) -> tuple[bytes, bytes]:
        try:
            message = protocol.receive(self._incoming)
        except protocol.Lost:
            self._lose()
        if message[:1] not in (ASK, VALUE, RAISED):
            self._lose()
        return message[:1], message[1:]

    def _lose(self) -> NoReturn:
        self.lost = True
        raise protocol.Lost


def _contents(value: Any) -> Any:
    """Returns a copy of a container, so that its values are sent instead of its number."""
    return value.copy() if hasattr(value, "copy") else value[:]


def _restore(shared: list, states: tuple) -> None:
    for number, state in states:
        if not isinstance(number, int) or not 0 <= number < len(shared):
            raise ValueError("no operand")
        if type(state) is not type(shared[number]):
            raise TypeError("no state of the operand")
        values.restore(shared[number], state)
