"""Files that are whole or not there."""

from __future__ import annotations

import os
import pathlib

from pkpo_jax.training import files


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text`, in a folder that is made if need be; nobody ever sees a part of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, text)
