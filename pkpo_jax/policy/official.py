"""The `gemma` package, imported where it is needed: it brings TensorFlow, and takes seconds."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def gemma() -> ModuleType:
    """`gemma.gm`.

    Raises:
      ImportError: the extra is not installed; says how to.
    """
    try:
        import kauldron.checkpoints

        if not hasattr(kauldron.checkpoints, "AbstractPartialLoader"):
            # kauldron 1.4 renamed what gemma 3.3 imports.
            checkpoints: Any = kauldron.checkpoints
            checkpoints.AbstractPartialLoader = checkpoints.InitTransform
        from gemma import gm
    except ImportError as e:
        raise ImportError(
            f'the gemma package cannot be imported ({e}); pip install -e ".[gemma]" installs it.'
        ) from e
    return gm
