"""Functions that write files completely or not at all, and the error if they cannot."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import TypeVar

from pkpo_jax.training.config import ConfigError

_JSON = TypeVar("_JSON", dict, list)


class WriteError(RuntimeError):
    """The error of a run whose records could not be written."""


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turns errors in the body, except a ConfigError, into a WriteError that names `what`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as e:  # Several libraries wrap the errors of the file system in their own.
        raise WriteError(f"{what}: {first_line(e)}") from e


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically: readers see the old or the new file, even after a crash."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: pathlib.Path, kind: type[_JSON]) -> _JSON:
    """Returns the JSON object or array in a file, or an empty one if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return found if isinstance(found, kind) else kind()


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
