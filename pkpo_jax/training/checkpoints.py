"""Orbax checkpoints of a run: the training state, and what the host keeps beside it.

Parameters are stored as official checkpoints store them, layer by layer: DIR/checkpoints/300/params
can be another run's `model.checkpoint`, or be read by `gm.ckpts.load_params`.
"""

from __future__ import annotations

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from pkpo_jax.policy.checkpoints import Stacked
from pkpo_jax.training.step import TrainState


class Checkpoints:
    """DIR/checkpoints/<step>, the newest `keep` of them.

    Args:
      like: the state as a tree of ShapeDtypeStruct with shardings.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, like: TrainState) -> None:
        self._like = like
        self._stacked = Stacked(like.params)
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves arrays (`state`) and JSON values (`progress`)."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(self._stacked.unstack(state.params)),
                opt_state=ocp.args.StandardSave(state.opt_state),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def restore(self, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State and progress of `step`."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(self._stacked.like),
                opt_state=ocp.args.StandardRestore(self._like.opt_state),
                progress=ocp.args.JsonRestore(),
            ),
        )
        params = self._stacked.stack(restored.params)
        return TrainState(params, restored.opt_state), restored.progress

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()
