"""Two processes that ask each other for operations, one at a time, over a pair of pipes.

While one waits for a reply, it serves what the other asks: so a test's function can be called by an
answer that a test has called. Objects that are no data are named by numbers: those of the answer
are a str or an int from 0 on, those of the tests a negative int.
"""

from __future__ import annotations

from pkpo_jax.tasks.code.sandboxed import protocol, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# The first byte of a message.
ASK, VALUE, RAISED = b"?", b"=", b"!"


class Peer:
    """One side of the two.

    Args:
      incoming, outgoing: the files of the pipes.
      name: gives an object its name, for `protocol.encode`.
      find: gives the object of a name, or what stands for it.
      serve: does an operation that the other side asks for.
      describe: says of an exception what the other side may know of it; plain data.
      revive: makes an exception of that, for the operation that was asked for.
    """

    def __init__(
        self,
        incoming: Any,
        outgoing: Any,
        *,
        name: Callable[[Any], int | str],
        find: Callable[[int | str], Any],
        serve: Callable[..., Any],
        describe: Callable[[BaseException], Any],
        revive: Callable[[str, Any], BaseException],
    ) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._name, self._find = name, find
        self._serve, self._describe, self._revive = serve, describe, revive
        self.lost = False

    def ask(self, operation: str, *operands: Any, changes: bool = False) -> Any:
        """Returns the value of an operation that the other side does, or raises what it raised.

        Args:
          operation: its name.
          operands: what it is done to.
          changes: whether mutable operands become what the operation made of them.
        """
        shared: list = []
        self._send(ASK, (operation, changes, operands), shared)
        while True:
            kind, message = self._receive()
            if kind == ASK:
                self._reply(message, allow_changes=False)
                continue
            # A reply may refer to operands: each side has its own copy, of the same number.
            value, states = protocol.decode(message, self._find, list(shared) if changes else None)
            if changes:
                _restore(shared, states)
            if kind == RAISED:
                raise self._revive(operation, value)
            return value

    def listen(self) -> None:
        """Serves the other side until it is gone."""
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
        """Returns the number and the state of each operand that is no longer what it was."""
        after = self._states(shared)
        return tuple(
            (number, _contents(shared[number]))  # pyrefly: ignore  Without any there is no state.
            for number, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        )

    def _send(self, kind: bytes, value: Any, shared: list | None = None) -> None:
        # The numbers that a failed attempt gave are forgotten.
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
    """Returns a copy of a container, which is sent by its values and not by its number."""
    return value.copy() if hasattr(value, "copy") else value[:]


def _restore(shared: list, states: tuple) -> None:
    for number, state in states:
        if not isinstance(number, int) or not 0 <= number < len(shared):
            raise ValueError("no operand")
        if type(state) is not type(shared[number]):
            raise TypeError("no state of the operand")
        values.restore(shared[number], state)
