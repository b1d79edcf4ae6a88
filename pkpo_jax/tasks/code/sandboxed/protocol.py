"""Messages between the checker and the answer: plain data, and no code of the sender's in it.

A value is a letter, a text and a semicolon; then come the bytes of a string, or a container's
values. Subclasses arrive as what they derive from, values of the standard library as the module
`values` builds them; any other object stays where it is, and what arrives is a handle on it. A
mutable container that a message holds twice arrives as one, and so does one that the two sides have
a number for.
"""

from __future__ import annotations

from pkpo_jax.tasks.code.sandboxed import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Bytes of a message.
LONGEST = 1 << 22
_CONTAINERS = {"t": tuple, "z": frozenset, "l": list, "s": set}
_MUTABLE = {"l", "s", "d"}


class Lost(BaseException):
    """The other side is gone, or sends what is no message. No Exception, for tests catch those."""


def send(file: Any, message: bytes) -> None:
    """Sends what `encode` made; Lost if nobody reads it."""
    try:
        file.write(len(message).to_bytes(4, "big") + message)
        file.flush()
    except OSError as e:
        raise Lost from e


def receive(file: Any) -> bytes:
    """Returns a message for `decode`; Lost if none comes."""
    try:
        size = int.from_bytes(file.read(4), "big")
        message = file.read(size) if size <= LONGEST else b""
    except OSError as e:
        raise Lost from e
    if not message or len(message) < size:
        raise Lost
    return message


def encode(value: Any, opaque: Any, shared: list | None = None) -> bytes:
    """Returns the message of a value, where `opaque` names objects that are no data.

    ValueError if it is too long; RecursionError and MemoryError are possible too.

    Args:
      value: what to send.
      opaque: is called with an object, and returns its name, a str or int.
      shared: mutable containers that the receiver has too, in the same order; the containers of
        this message are appended.
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
            # Decimal digits take quadratic time, and Python refuses to write more than 4300.
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
    """Returns the value of a message; some Exception if `encode` did not make it.

    Args:
      message: what was received.
      handle: is called with the name of an object, and returns what stands for it.
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
            # It has its number before its values, for they may refer to it.
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
