"""Orbax checkpoints of a run: the training state, and what the host keeps beside it.

Parameters are stored as official checkpoints store them, layer by layer: DIR/checkpoints/300/params
can be another run's `model.checkpoint`, or be read by `gm.ckpts.load_params`.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from pkpo_jax import parallel
from pkpo_jax.policy.checkpoints import Stacked
from pkpo_jax.policy.sampling import Rollout
from pkpo_jax.training.run_directory import WriteError
from pkpo_jax.training.state import TrainState


class Restored(NamedTuple):
    """A checkpoint: its step, the state, the host's JSON values, and the rollout in flight."""

    step: int
    state: TrainState
    progress: dict[str, Any]
    in_flight: Rollout | None


class Checkpoints:
    """DIR/checkpoints/<step>, the newest `keep` of them and the best; written in the background.

    Args:
      like: the state as a tree of ShapeDtypeStruct with shardings.
      in_flight: a rollout in flight as ShapeDtypeStructs, where the run samples ahead.
    """

    def __init__(
        self, workdir: pathlib.Path, keep: int, like: TrainState, in_flight: Rollout | None = None
    ) -> None:
        self._like, self._in_flight = like, in_flight
        self._stacked = Stacked(like.params)
        self._fingerprint = jax.jit(fingerprint)
        self._workdir = workdir
        newest = checkpoint_managers.LatestN(keep)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics["best"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
                create=True,
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        progress: dict[str, Any],
        *,
        metric: float | None = None,
        in_flight: Rollout | None = None,
    ) -> None:
        """Begins to save arrays (`state`, `in_flight`) and JSON values (`progress`).

        `metric` is what the best checkpoint has the most of.

        Raises:
          WriteError: this checkpoint, or the one before, could not be written.
        """
        sums = {"arrays": self._fingerprint_of(state), "progress": _crc(progress)}
        progress = {**progress, "sums": sums}
        items = {
            "params": ocp.args.StandardSave(self._stacked.unstack(state.params)),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave(progress),
        }
        if in_flight is not None:
            items["in_flight"] = ocp.args.StandardSave(in_flight._asdict())
        metrics = None if metric is None else {"best": metric}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        except Exception as e:  # Of the file system, by way of several libraries.
            raise WriteError(f"a checkpoint: {_first_line(e)}") from e

    def check(self) -> None:
        """Raises the WriteError of a checkpoint that failed in the background, if one did."""
        try:
            self._manager.check_for_errors()
        except Exception as e:
            raise WriteError(f"a checkpoint: {_first_line(e)}") from e

    def restore_newest(self) -> Restored | None:
        """The newest checkpoint that can be read; None if there is none.

        One that cannot, or whose arrays are not those that were saved, is moved to DIR/corrupt with
        a warning.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, reason = None, ""
            try:
                restored = self._restore(step)
            except Exception as e:  # Torn files raise errors of many libraries.
                reason = _first_line(e)
            if parallel.on_all(restored is not None):
                return restored
            logging.warning(
                "the checkpoint of step %d cannot be used (%s); it is moved to %s, and the one "
                "before is tried.",
                step,
                reason or "on another process",
                self._workdir / "corrupt",
            )
            self._set_aside(step)
        return None

    def _restore(self, step: int) -> Restored:
        items = {
            "params": ocp.args.StandardRestore(self._stacked.like),
            "opt_state": ocp.args.StandardRestore(self._like.opt_state),
            "progress": ocp.args.JsonRestore(),
        }
        if (self._manager.directory / str(step) / "in_flight").exists():
            items["in_flight"] = ocp.args.StandardRestore(self._in_flight._asdict())
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = TrainState(self._stacked.stack(found.params), found.opt_state)
        progress = dict(found.progress)
        sums = progress.pop("sums")
        if sums != {"arrays": self._fingerprint_of(state), "progress": _crc(progress)}:
            raise ValueError("it reads well, but does not hold what was saved")
        in_flight = Rollout(**found["in_flight"]) if "in_flight" in items else None
        return Restored(step, state, progress, in_flight)

    def _set_aside(self, step: int) -> None:
        if parallel.is_first_process():
            corrupt = self._workdir / "corrupt"
            corrupt.mkdir(exist_ok=True)
            taken = len(list(corrupt.glob(f"{step}*")))
            source = pathlib.Path(self._manager.directory) / str(step)
            source.rename(corrupt / (f"{step}.{taken}" if taken else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set aside")
        self._manager.reload()

    def _fingerprint_of(self, state: TrainState) -> list[int]:
        return np.asarray(jax.device_get(self._fingerprint(state))).tolist()

    def warm_up(self, state: TrainState) -> None:
        """Compiles what saving takes."""
        self._fingerprint_of(state)

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          WriteError: it could not be written.
        """
        try:
            self._manager.close()
        except Exception as e:
            raise WriteError(f"a checkpoint: {_first_line(e)}") from e


def fingerprint(tree: Any) -> jax.Array:
    """[leaves] uint32: the bits of each leaf added up, which no mesh and no order changes."""

    def total(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return x.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([total(x) for x in jax.tree.leaves(tree)])


def _crc(progress: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
