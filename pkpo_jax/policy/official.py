"""The `gemma` package, imported only when needed because its TensorFlow takes seconds to load."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def gemma() -> ModuleType:
    """Imports and returns `gemma.gm`.

    Raises:
      ImportError: the package cannot be imported. The message says how to install it.
    """
    try:
        import kauldron.checkpoints

        if not hasattr(kauldron.checkpoints, "AbstractPartialLoader"):
            # kauldron 1.4 renamed a class that gemma 3.3 imports.
            checkpoints: Any = kauldron.checkpoints
            checkpoints.AbstractPartialLoader = checkpoints.InitTransform
        from gemma import gm
    except ImportError as e:
        raise ImportError(
            f'the gemma package cannot be imported ({e}); pip install -e ".[gemma]" installs it.'
        ) from e
    return gm
