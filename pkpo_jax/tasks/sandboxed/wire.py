"""Messages between the checker and the answer: plain data, and no code of the sender's in it.

A value is a letter, a text and a semicolon; then come the bytes of a string, or a container's
values. Subclasses arrive as what they derive from; any other object stays where it is, and what
arrives is a handle on it.
"""

from __future__ import annotations

# Bytes of a message.
LONGEST = 1 << 22
_CONTAINERS = {"l": list, "t": tuple, "s": set, "z": frozenset}
_TYPES = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, object)


class Lost(BaseException):
    """The other side is gone, or sends what is no message. No Exception, for tests catch those."""


def send(file: object, message: bytes) -> None:
    """Sends what `encode` made; Lost if nobody reads it."""
    try:
        file.write(len(message).to_bytes(4, "big") + message)
        file.flush()
    except OSError as e:
        raise Lost from e


def receive(file: object) -> bytes:
    """A message for `decode`; Lost if none comes."""
    try:
        size = int.from_bytes(file.read(4), "big")
        message = file.read(size) if size <= LONGEST else b""
    except OSError as e:
        raise Lost from e
    if not message or len(message) < size:
        raise Lost
    return message


def encode(value: object, opaque: object) -> bytes:
    """The message of a value, where `opaque` names objects that are no data, by a str or int.

    ValueError if it is too long; RecursionError and MemoryError are possible too.
    """
    parts: list[bytes] = []

    def put(value: object) -> None:
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
        elif isinstance(value, dict):
            parts.append(b"d%d;" % len(value))
            for pair in value.items():
                put(pair[0])
                put(pair[1])
        elif any(value is kind for kind in _TYPES):
            parts.append(f"k{value.__name__};".encode())
        else:
            for letter, kind in _CONTAINERS.items():
                if isinstance(value, kind):
                    parts.append(f"{letter}{len(value)};".encode())
                    for item in value:
                        put(item)
                    return
            parts.append(b"o;")
            put(opaque(value))

    def put_bytes(letter: bytes, data: bytes) -> None:
        parts.append(b"%b%d;" % (letter, len(data)))
        parts.append(data)

    put(value)
    message = b"".join(parts)
    if len(message) > LONGEST:
        raise ValueError("more data than a test may pass")
    return message


def decode(message: bytes, handle: object) -> object:
    """The value of a message, where `handle` is called with the name of an object.

    Some Exception if `encode` did not make it.
    """
    at = 0

    def get() -> object:
        nonlocal at
        letter, end = chr(message[at]), message.index(b";", at)
        text, at = message[at + 1 : end].decode(), end + 1
        if letter == "n":
            return None
        if letter == "b":
            return text == "1"
        if letter == "i":
            return int(text, 16)
        if letter == "f":
            return float(text)
        if letter == "c":
            return complex(text)
        if letter == "u":
            return get_bytes(int(text)).decode("utf-8", "surrogatepass")
        if letter == "y":
            return get_bytes(int(text))
        if letter == "k":
            return next(kind for kind in _TYPES if kind.__name__ == text)
        if letter == "o":
            return handle(get())
        if letter == "d":
            # Of a pair, the key comes first.
            return dict([(get(), get()) for _ in range(int(text))])
        return _CONTAINERS[letter]([get() for _ in range(int(text))])

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
