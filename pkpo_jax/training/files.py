"""Writing files whole or not at all, and what to say where they cannot be written."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import TypeVar

from pkpo_jax.training.config import ConfigError

_JSON = TypeVar("_JSON", dict, list)


class WriteError(RuntimeError):
    """Tells that what a run records could not be written."""


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns errors in the body, but for a ConfigError, into a WriteError that names `what`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as e:  # The file system's errors come by way of several libraries.
        raise WriteError(f"{what}: {first_line(e)}") from e


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a text file at once: who reads it meanwhile, or after a crash, sees the old one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: pathlib.Path, kind: type[_JSON]) -> _JSON:
    """Returns the JSON object or array in a file; an empty one if there is none, or it is torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return found if isinstance(found, kind) else kind()


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the error's type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
