"""The messages between the checker and the answer: plain data that contains no code of the sender.

A value is encoded as a letter, a text and a semicolon, then the bytes of a string or the values of
a container. Instances of subclasses arrive as instances of the base class, and values of the
standard library as the module `values` builds them. Any other object stays in its process, and a
handle on it arrives. A mutable container that occurs twice in a message arrives as one object, and
so does a container that already has a number on both sides.
"""

from __future__ import annotations

from pkpo_jax.tasks.code.sandboxed import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# No message has more bytes.
LONGEST = 1 << 22
_CONTAINERS = {"t": tuple, "z": frozenset, "l": list, "s": set}
_MUTABLE = {"l", "s", "d"}


class Lost(BaseException):
    """The other side has ended, or has sent an invalid message.

    This derives from BaseException because tests may catch every Exception.
    """


def send(file: Any, message: bytes) -> None:
    """Sends a message made by `encode`; raises Lost if nobody reads it."""
    try:
        file.write(len(message).to_bytes(4, "big") + message)
        file.flush()
    except OSError as e:
        raise Lost from e


def receive(file: Any) -> bytes:
    """Returns the next message, for `decode`; raises Lost if there is none."""
    try:
        size = int.from_bytes(file.read(4), "big")
        message = file.read(size) if size <= LONGEST else b""
    except OSError as e:
        raise Lost from e
    if not message or len(message) < size:
        raise Lost
    return message


def encode(value: Any, opaque: Any, shared: list | None = None) -> bytes:
    """Encodes a value as a message, in which names represent objects that are not plain data.

    Args:
      value: the value to send.
      opaque: a function that returns the name of an object, a str or int.
      shared: mutable containers that the receiver has too, in the same order; those of this message
        are appended.

    Raises:
      ValueError: the message is too long.
      RecursionError, MemoryError: the value is too deep or too large.
    """
    parts: list[bytes] = []
    shared = [] if shared is None else shared
    numbers = {id(container): number for number, container in enumerate(shared)}

    def put(value: Any) -> None:
        if value is None:
            parts.append(b"n;")
        elif isinstance(value, bool):
            parts.append(b"b1;" if value else b"b0;")
        elif isinstance(value, int):
            # Decimal digits would take quadratic time, and Python refuses to write more than 4300.
            parts.append(b"i%x;" % value)
        elif isinstance(value, float):
            parts.append(f"f{float(value)!r};".encode())
        elif isinstance(value, complex):
            parts.append(f"c{complex(value)!r};".encode())
        elif isinstance(value, str):
            put_bytes(b"u", value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, bytes):
            put_bytes(b"y", value)
        elif id(value) in numbers:
            parts.append(b"r%d;" % numbers[id(value)])
        else:
            kind = None if type(value) in (list, tuple, dict, set) else values.kind_of(value)
            if kind:
                put_number(value, kind in values.MUTABLE)
                parts.append(f"x{kind};".encode())
                put(values.to_plain(kind, value))
            elif isinstance(value, dict):
                put_number(value)
                parts.append(b"d%d;" % len(value))
                for pair in value.items():
                    put(pair[0])
                    put(pair[1])
            else:
                put_other(value)

    def put_other(value: Any) -> None:
        for letter, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                put_number(value, letter in _MUTABLE)
                parts.append(f"{letter}{len(value)};".encode())
                for item in value:
                    put(item)
                return
        name = values.type_name(value)
        if name:
            parts.append(f"k{name};".encode())
        else:
            parts.append(b"o;")
            put(opaque(value))

    def put_number(value: Any, mutable: bool = True) -> None:
        if mutable:
            numbers[id(value)] = len(shared)
            shared.append(value)

    def put_bytes(letter: bytes, data: bytes) -> None:
        parts.append(b"%b%d;" % (letter, len(data)))
        parts.append(data)

    put(value)
    message = b"".join(parts)
    if len(message) > LONGEST:
        raise ValueError("more data than a test may pass")
    return message


def decode(message: bytes, handle: Any, shared: list | None = None) -> Any:
    """Decodes a message into a value; raises an Exception of any kind for an invalid message.

    Args:
      message: the bytes that `receive` returned.
      handle: a function that returns the object, or the handle on it, that has a given name.
      shared: as for `encode`.
    """
    at = 0
    shared = [] if shared is None else shared
    number_of = {"b": lambda text: text == "1", "i": lambda text: int(text, 16)}
    number_of |= {"f": float, "c": complex, "k": values.named_type, "r": lambda t: shared[int(t)]}

    def get() -> Any:
        nonlocal at
        letter, end = chr(message[at]), message.index(b";", at)
        text, at = message[at + 1 : end].decode(), end + 1
        if letter == "n":
            return None
        if letter in number_of:
            return number_of[letter](text)
        if letter == "u":
            return get_bytes(int(text)).decode("utf-8", "surrogatepass")
        if letter == "y":
            return get_bytes(int(text))
        if letter == "o":
            return handle(get())
        if letter in ("l", "s", "d"):
            # The container gets its number before its values are read, for they may refer to it.
            shared.append({"l": [], "s": set(), "d": {}}[letter])
            return fill(shared[-1], int(text))
        if letter == "x":
            place = len(shared)
            shared.extend([None] * (text in values.MUTABLE))
            value = values.from_plain(text, get())
            if text in values.MUTABLE:
                shared[place] = value
            return value
        return _CONTAINERS[letter]([get() for _ in range(int(text))])

    def fill(container: list | set | dict, size: int) -> Any:
        for _ in range(size):
            if isinstance(container, dict):
                key = get()
                container[key] = get()
            elif isinstance(container, set):
                container.add(get())
            else:
                container.append(get())
        return container

    def get_bytes(size: int) -> bytes:
        nonlocal at
        if not 0 <= size <= len(message) - at:
            raise ValueError("no message")
        at += size
        return message[at - size : at]

    value = get()
    if at < len(message):
        raise ValueError("no message")
    return value
