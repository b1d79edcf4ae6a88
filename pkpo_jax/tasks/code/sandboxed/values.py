"""Converts values of the standard library to plain data, and back.

The receiver builds each value from plain data with the library's own class. So an instance of a
subclass arrives as an instance of the base class, without the methods of the subclass.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_VIEWS: dict[str, type] = {
    "dict_keys": type({}.keys()),
    "dict_values": type({}.values()),
    "dict_items": type({}.items()),
}

# Types by the module that defines them; a derived class comes before its base class.
_KINDS: dict[str, tuple[str, ...]] = {
    "builtins": ("bytearray", "range", "slice", "memoryview"),
    "collections": (
        *("Counter", "OrderedDict", "defaultdict", "deque", "ChainMap"),
        *("UserDict", "UserList", "UserString"),
    ),
    "types": ("MappingProxyType",),
    "fractions": ("Fraction",),
    "decimal": ("Decimal",),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "array": ("array",),
    "time": ("struct_time",),
    "uuid": ("UUID",),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath"),
    "ipaddress": ("IPv4Interface", "IPv6Interface", "IPv4Address", "IPv6Address"),
    "urllib.parse": ("ParseResult", "SplitResult"),
}
# Values of these types are sent as their text.
_TEXTS = ("Decimal", "UserString", *_KINDS["uuid"], *_KINDS["pathlib"], *_KINDS["ipaddress"])
# Values of these types are sent as their items.
_MAPPINGS = ("Counter", "OrderedDict", "UserDict", "MappingProxyType")
_MODULES = {name: module for module, names in _KINDS.items() for name in names}
# Calls may change values of these types in place.
MUTABLE = {"bytearray", "Counter", "OrderedDict", "defaultdict", "deque", "array"}
MUTABLE |= {"UserDict", "UserList"}

# These types are sent by name, like those above and Python's exceptions, and so is one constant.
_TYPES = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, object)
_BY_NAME: dict[str, Any] = {kind.__name__: kind for kind in (*_TYPES, type(None), type)}
_BY_NAME["Ellipsis"] = ...

# The names of the methods of plain data: startswith, issubset and so on.
METHODS = frozenset(name for kind in _TYPES for name in dir(kind))

# The special methods that make a difference to what the tests can do with an object, by the ability
# that they give: an object may have any of these abilities, and a handle on it has the same.
_ALONE = ("call", "iter", "next", "len", "bool", "contains", "getitem", "setitem", "delitem")
_ALONE += ("enter", "exit", "instancecheck", "subclasscheck", "bytes", "int", "float", "complex")
_ALONE += ("index", "neg", "pos", "abs", "invert", "round", "reversed")
_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "divmod")
_OPERATORS += ("lshift", "rshift", "and", "xor", "or")
ABILITIES: list[tuple[str, ...]] = [(f"__{name}__",) for name in _ALONE]
ABILITIES += [tuple(f"__{kind}{name}__" for kind in ("", "r", "i")) for name in _OPERATORS]


def _zone(value: Any) -> Any:
    offset = value.utcoffset()
    return None if offset is None else _plain_timezone(offset)


def _plain_timezone(offset: Any) -> tuple[int, int, int]:
    return offset.days, offset.seconds, offset.microseconds


def _clock(value: Any) -> tuple:
    return value.hour, value.minute, value.second, value.microsecond, value.fold, _zone(value)


_TO_PLAIN: dict[str, Callable[[Any], Any]] = {
    "bytearray": bytes,
    "range": lambda v: (v.start, v.stop, v.step),
    "slice": lambda v: (v.start, v.stop, v.step),
    "memoryview": lambda v: v.tobytes(),
    **dict.fromkeys(_MAPPINGS, lambda v: tuple(v.items())),
    "defaultdict": lambda v: (type_name(v.default_factory), tuple(v.items())),
    "deque": lambda v: (tuple(v), v.maxlen),
    "Fraction": lambda v: (v.numerator, v.denominator),
    "ChainMap": lambda v: tuple(v.maps),
    **dict.fromkeys(("struct_time", "UserList", "ParseResult", "SplitResult"), tuple),
    **dict.fromkeys(_TEXTS, str),
    "datetime": lambda v: (v.year, v.month, v.day, *_clock(v)),
    "date": lambda v: (v.year, v.month, v.day),
    "time": _clock,
    "timedelta": _plain_timezone,
    "timezone": lambda v: _plain_timezone(v.utcoffset(None)),
    "array": lambda v: (v.typecode, tuple(v)),
    "namedtuple": lambda v: (type(v).__name__, tuple(type(v)._fields), tuple(v)),
    "dict_keys": tuple,
    "dict_values": tuple,
    "dict_items": tuple,
}


def _class(name: str) -> type:
    module = _MODULES[name]
    return getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)


def _at_zone(kind: type, values: tuple) -> Any:
    *numbers, fold, offset = values
    zone = None if offset is None else _class("timezone")(_class("timedelta")(*offset))
    return kind(*numbers, tzinfo=zone, fold=fold)


_named: dict[tuple, type] = {}


def _named_tuple(plain: tuple) -> tuple:
    name, fields, values = plain
    # A function in a field that has the name of a method would speak for the value.
    if any(f in METHODS and callable(v) for f, v in zip(fields, values, strict=True)):
        return values
    if (name, fields) not in _named:
        _named[name, fields] = __import__("collections").namedtuple(name, fields)
    return _named[name, fields](*values)


def _default_dict(kind: type, plain: tuple) -> dict:
    factory, items = plain
    return kind(None if factory is None else named_type(factory), items)


_TAKE_ONE = ("bytearray", "memoryview", "struct_time", "UserList", *_TEXTS)
_FROM_PLAIN: dict[str, Callable[[Any], Any]] = {
    **{n: lambda p, n=n: _class(n)(dict(p)) for n in _MAPPINGS},
    "defaultdict": lambda p: _default_dict(_class("defaultdict"), p),
    "datetime": lambda p: _at_zone(_class("datetime"), p),
    "time": lambda p: _at_zone(_class("time"), p),
    "timezone": lambda p: _class("timezone")(_class("timedelta")(*p)),
    "namedtuple": _named_tuple,
    "dict_keys": lambda p: dict.fromkeys(p).keys(),
    "dict_values": lambda p: dict(enumerate(p)).values(),
    "dict_items": lambda p: dict(p).items(),
    # The classes of these take one argument; all others take the parts of a tuple.
    **{n: lambda p, n=n: _class(n)(p) for n in _TAKE_ONE},
}


def kind_of(value: Any) -> str | None:
    """Returns the name under which a value is sent, or None if its type is not one of these."""
    for module, names in _KINDS.items():
        if module in sys.modules:
            for name in names:
                if isinstance(value, getattr(sys.modules[module], name, ())):
                    return name
    if isinstance(value, tuple) and hasattr(type(value), "_fields"):
        return "namedtuple"
    return next((name for name, kind in _VIEWS.items() if isinstance(value, kind)), None)


def abilities(value: Any) -> int:
    """Returns the abilities of an object: bit i is set if it has a method of ABILITIES[i]."""
    methods: dict[str, Any] = {}
    for kind in reversed(type(value).__mro__):
        methods.update(vars(kind))
    has = (any(methods.get(name) is not None for name in names) for names in ABILITIES)
    return sum(bit << place for place, bit in enumerate(has))


def to_plain(name: str, value: Any) -> Any:
    """Returns the plain data of a value that is sent under this name."""
    return _TO_PLAIN[name](value)


def from_plain(name: str, plain: Any) -> Any:
    """Builds a value from plain data; raises an Exception of any kind if the data are invalid."""
    build = _FROM_PLAIN.get(name)
    return build(plain) if build else _class(name)(*plain)


def type_name(kind: Any) -> str | None:
    """Returns the name of a type, or None if it cannot be sent."""
    return next((name for name, known in _types() if known is kind), None)


def named_type(name: str) -> type:
    """Returns the type of this name; raises KeyError if no such type can be sent."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _MODULES:
        return _class(name)
    kind = getattr(sys.modules["builtins"], name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise KeyError(name)
    return kind


def restore(value: Any, state: Any) -> None:
    """Changes a mutable value in place, so that it equals another of its type."""
    if isinstance(value, list | bytearray) or type(value).__name__ == "array":
        value[:] = state
    elif hasattr(value, "update"):
        value.clear()
        value.update(state)
    else:
        value.clear()
        value.extend(state)


def _types() -> Iterator[tuple[str, Any]]:
    yield from _BY_NAME.items()
    for name, module in _MODULES.items():
        if module in sys.modules:
            yield name, getattr(sys.modules[module], name, None)
    for name, kind in vars(sys.modules["builtins"]).items():
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__name__ == name:
            yield name, kind
