"""Handles, which represent objects of the answer's process in the tests.

A handle forwards what the tests do with it to the answer's process. It must not let an answer pass
off a wrong value as right. A comparison or operation with plain data would reveal the expected
value to the object and leave the verdict to it. So it is forwarded only to objects that the tests
made by calling a class of the problem, whose methods they test. Any other object is equal to no
plain data, contains only the items that iterating over it yields, and has no method of plain data
(startswith, issubset) unless the problem's solution defines it.

If both operands are objects of the answer, the operation is forwarded too, for only the answer can
compare them. So a class that is equal to everything passes tests that compare the answer's objects
with each other, just as two equal constants do.
"""

from __future__ import annotations

import sys

from pkpo_jax.tasks.code.sandboxed import peer, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


class Handle:
    """A handle on an object of the answer's process, with what every object has.

    Its classes derive from it: `handle_class` adds the special methods that its object has, so that
    it is iterable or callable, say, only if its object is.
    """

    __slots__ = ("_changes", "_key", "_made", "_side")

    def __init__(
        self, side: Side, key: int | str, *, changes: bool = False, made: bool = False
    ) -> None:
        # A plain assignment would be forwarded to the answer.
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_key", key)
        # `changes` says whether a call changes the tests' own arguments, `made` whether the tests
        # made the object.
        object.__setattr__(self, "_changes", changes)
        object.__setattr__(self, "_made", made)

    def __getattr__(self, name: str) -> Any:
        # Python looks up several optional special methods, for which the answer is not asked.
        special = name.startswith("__") and name not in ("__name__", "__qualname__")
        if special or (name in values.METHODS and not self._may_have(name)):
            raise AttributeError(name)
        return self._side.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._side.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._side.ask("delete", self, name)

    def _trusts(self, other: Any) -> bool:
        """Returns whether an operation on this object and the other may be forwarded."""
        return isinstance(other, Handle) or self._made

    def _may_have(self, name: str) -> bool:
        """Returns whether the object may have a method that plain data also have."""
        known = self._made or self._key in self._side.classes
        return known or name in self._side.attributes


class _Able(Handle):
    """A handle on an object with all abilities."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._key in self._side.classes:
            value = self._side.ask("make", self, args, kwargs)
            return self._side.made(value) if isinstance(value, Handle) else value
        return self._side.ask("call", self, args, kwargs, changes=self._changes)

    def __iter__(self) -> Iterator[Any]:
        return _iterate(self._side.ask("iter", self))

    def __contains__(self, value: Any) -> bool:
        if self._trusts(value):
            return self._side.ask("contains", self, value)
        return any(value is item or value == item for item in self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        sent = self._side.sendable(kind) if kind else None
        ended = self._side.ask("exit", self, sent, getattr(error, "args", ()))
        # Only an object whose methods are tested may suppress an exception of the tests.
        return self._made and bool(ended)

    def __instancecheck__(self, instance: Any) -> bool:
        if isinstance(instance, Handle):
            return self._side.ask("instance", instance, self)
        # A named tuple of the answer has arrived by value, with the name of its class.
        return hasattr(type(instance), "_fields") and type(instance).__name__ == self._key

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Handle) and self._side.ask("subclass", kind, self)


def _iterate(iterator: Any) -> Iterator[Any]:
    if not isinstance(iterator, Handle):
        yield from iterator
        return
    while True:
        try:
            value = next(iterator)
        except StopIteration:
            return
        yield value


def _unary(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._side.ask(operation, self, *arguments)


def _binary(operation: str) -> Callable[[Handle, Any], Any]:
    def operate(self: Handle, other: Any) -> Any:
        if not self._trusts(other):
            return NotImplemented
        return self._side.ask(operation, self, other)

    return operate


def _reflected(operation: str) -> Callable[[Handle, Any], Any]:
    def operate(self: Handle, other: Any) -> Any:
        if not self._trusts(other):
            return NotImplemented
        return self._side.ask(operation, other, self)

    return operate


# These lists define the special methods of handles, and the operations that they forward.
_UNARY = ["next", "len", "bool", "bytes", "int", "float", "complex", "index"]
_UNARY += ["neg", "pos", "abs", "invert", "round", "reversed", "enter"]
_ITEMS = {"getitem": "item", "setitem": "set_item", "delitem": "delete_item"}
_ARITHMETIC = ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"]
_ARITHMETIC += ["lshift", "rshift", "and_", "xor", "or_"]
_OF_ALL = {
    **{name: _unary(name) for name in ["str", "repr", "hash", "format"]},
    **{name: _binary(name) for name in ["lt", "le", "gt", "ge", "eq", "ne"]},
}
_OF_SOME = {
    **{name: _unary(name) for name in _UNARY},
    **{name: _unary(operation) for name, operation in _ITEMS.items()},
    **{name.strip("_"): _binary(name) for name in [*_ARITHMETIC, "divmod"]},
    **{f"r{name.strip('_')}": _reflected(name) for name in [*_ARITHMETIC, "divmod"]},
    **{f"i{name.strip('_')}": _binary(f"i{name.strip('_')}") for name in _ARITHMETIC},
}
for _class, _methods in ((Handle, _OF_ALL), (_Able, _OF_SOME)):
    for _name, _method in _methods.items():
        setattr(_class, f"__{_name}__", _method)

_classes: dict[int, type[Handle]] = {}


def handle_class(abilities: int) -> type[Handle]:
    """Returns the class of handles on objects with these abilities; see `values.abilities`."""
    if abilities not in _classes:
        names = [n for i, names in enumerate(values.ABILITIES) if abilities >> i & 1 for n in names]
        methods = {name: vars(_Able)[name] for name in names if name in vars(_Able)}
        _classes[abilities] = type("Handle", (Handle,), {"__slots__": (), **methods})
    return _classes[abilities]


class Side(peer.Peer):
    """The tests' side, which holds the handles, and the objects that the answer may call.

    Args:
      incoming, outgoing: the files of the pipes.
      classes: the names of the problem's classes.
      attributes: the names of methods and attributes of the solution's classes.
    """

    def __init__(
        self, incoming: Any, outgoing: Any, classes: list[str], attributes: list[str]
    ) -> None:
        super().__init__(
            incoming,
            outgoing,
            name=self._name_of,
            find=self.find,
            serve=self._call,
            describe=lambda error: ([kind.__name__ for kind in type(error).__mro__], str(error)),
            revive=self._revived,
        )
        self.classes: frozenset[int | str] = frozenset(classes)
        self.attributes = frozenset(attributes)
        # These classes represent the exception classes of the answer that the tests name.
        self.errors: dict[str, type] = {}
        self._handles: dict[int | str, Handle] = {}
        # If the answer itself returns an object that the tests made, it gets an ordinary handle.
        self._made: dict[int | str, Handle] = {}
        self._given: list = []

    def find(self, key: Any) -> Any:
        """Returns the handle on an object of the answer, or an object that the tests gave to it."""
        if isinstance(key, int) and key < 0:
            return self._given[-1 - key]
        number, abilities = (key, None) if isinstance(key, str) else key
        if number not in self._handles:
            kind = _Able if abilities is None else handle_class(abilities)
            self._handles[number] = kind(self, number)
        return self._handles[number]

    def named(self, name: str, changes: bool) -> Handle:
        """Returns the handle on a function or class that the answer defines."""
        return _Able(self, name, changes=changes)

    def made(self, handle: Handle) -> Handle:
        """Returns the handle on an object that the tests made by calling a class."""
        key = handle._key
        if key not in self._made:
            self._made[key] = type(handle)(self, key, made=True)
        return self._made[key]

    def define_error(self, name: str, ancestors: list) -> type:
        """Makes a class that represents an exception class of the answer."""
        base = next(self._known(ancestors[1:]))
        self.errors[name] = _Raised(name, (base,), {"_side": self, "__module__": "answer"})
        return self.errors[name]

    def sendable(self, kind: type) -> type:
        """Returns the first of an exception class and its ancestors that the answer knows."""
        known = [*self.errors.values()]
        return next(k for k in kind.__mro__ if k in known or values.type_name(k))

    def _name_of(self, value: Any) -> int | str:
        if isinstance(value, Handle):
            return value._key
        if isinstance(value, type) and value.__name__ in self.errors:
            return value.__name__
        if not (callable(value) or hasattr(type(value), "__next__")):
            raise TypeError(f"{type(value).__name__} cannot be sent to the answer's process")
        places = [i for i, given in enumerate(self._given) if given is value]
        if not places:
            self._given.append(value)
            places = [len(self._given) - 1]
        return -1 - places[0]

    def _call(self, operation: str, number: int, *operands: Any) -> Any:
        given: Any = self._given[-1 - number] if number < 0 else None
        if operation == "next":
            return next(given)
        if operation != "call":
            raise TypeError("no operation")
        args, kwargs = operands
        return given(*args, **kwargs)

    def _known(self, ancestors: Any) -> Iterator[type]:
        """Yields those of these exception classes that tests can know, and finally RuntimeError.

        A class that would silently end a loop or a generator of the tests becomes a RuntimeError.
        """
        for module, name in ancestors:
            if module == "answer":
                kind = self.errors.get(name)
            else:
                kind = getattr(sys.modules.get(module), name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                if issubclass(kind, StopIteration | StopAsyncIteration):
                    break
                yield kind
        yield RuntimeError

    def _revived(self, operation: str, described: Any) -> Exception:
        if not described:
            return RuntimeError("in the answer")
        ancestors, text, handle, args = described
        if operation == "next" and ["builtins", "StopIteration"] in map(list, ancestors):
            return StopIteration()
        for kind in self._known(ancestors):
            try:
                error: Any = kind.__new__(kind, *args)
            except Exception:
                continue
            if isinstance(kind, _Raised):
                error._handle, error._text = handle, text
                return error
            try:
                kind.__init__(error, *args)
            except Exception:
                # Some constructors take other arguments than they pass on, as json's error does.
                error.args = (text,)
            return error
        return RuntimeError(text)


class _Raised(type):
    """The metaclass of classes that represent exception classes of the answer.

    Calling such a class makes the exception in the answer's process.
    """

    _side: Side

    def __new__(mcs, name: str, bases: tuple, space: dict) -> type:
        def get(self: Any, attribute: str) -> Any:
            if attribute.startswith("_"):
                raise AttributeError(attribute)
            return getattr(self._handle, attribute)

        space = {**space, "__str__": lambda self: self._text, "__getattr__": get}
        return super().__new__(mcs, name, bases, space)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        handle = cls._side.ask("make", cls._side.find(cls.__name__), args, kwargs)
        error: Any = cls.__new__(cls, *args)  # pyrefly: ignore  Not the metaclass's __new__.
        error._handle, error._text = handle, str(handle)
        return error
