"""Orbax checkpoints of a run: the training state, and what the host keeps beside it."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """DIR/checkpoints/<step>, the newest `keep` of them."""

    def __init__(self, workdir: pathlib.Path, keep: int) -> None:
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves arrays (`state`) and JSON values (`progress`)."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """State and progress of `step`; `like` is a tree of ShapeDtypeStruct with shardings."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored.state, restored.progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()


def save_params(path: pathlib.Path, params: Any) -> None:
    """Writes parameters alone to a new directory."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), params)


def restore_params(path: pathlib.Path, like: Any) -> Any:
    """Reads them back, with the shapes and placement of `like`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(
            path.absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        )
