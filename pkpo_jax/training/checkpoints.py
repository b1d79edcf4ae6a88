"""Orbax checkpoints of a run: the training state, and the host's values that belong to it.

Parameters have the layout of official checkpoints, layer by layer: DIR/checkpoints/300/params can
be the `model.checkpoint` of another run, and `gm.ckpts.load_params` can read it. Runs that train
adapters keep the adapters alone, and the checksum of the parameters that these belong to.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from pkpo_jax import host_memory, parallel
from pkpo_jax.policy import lora
from pkpo_jax.policy.checkpoints import CheckpointError, Stacked, without_abandoned_reads
from pkpo_jax.policy.sampling import Rollout
from pkpo_jax.training import pairs
from pkpo_jax.training.files import first_line, read_json, replace, writing
from pkpo_jax.training.state import TrainState


class Restored(NamedTuple):
    """A checkpoint: its step, the state, the host's JSON values, and the rollout in flight."""

    step: int
    state: TrainState
    progress: dict[str, Any]
    in_flight: Rollout | None


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint of the best step so far, which the run sets as `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of a run in DIR/checkpoints/<step>, which are written in the background.

    The newest `keep` checkpoints and the best one are kept.

    Args:
      like: the state as a tree of ShapeDtypeStruct with shardings.
      in_flight: arrays of the shapes and dtypes of a rollout in flight, if the run samples ahead.

    Raises:
      WriteError: the directory cannot be made.
    """

    def __init__(
        self, workdir: pathlib.Path, keep: int, like: TrainState, in_flight: Rollout | None = None
    ) -> None:
        self._like, self._in_flight = like, in_flight
        self._stacked = Stacked(like.saved)
        self._fingerprint = jax.jit(lambda s: fingerprint((s.saved, s.opt_state)))
        self._workdir, self._best = workdir, _Best()
        kept = [checkpoint_managers.LatestN(keep), self._best]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept), create=True
        )
        with writing("a checkpoint"):
            self._manager = ocp.CheckpointManager(
                (workdir / "checkpoints").absolute(), options=options
            )

    def save(
        self,
        step: int,
        state: TrainState,
        progress: dict[str, Any],
        *,
        best: int | None = None,
        in_flight: Rollout | None = None,
    ) -> None:
        """Starts to save arrays (`state`, `in_flight`) and JSON values (`progress`).

        `best` is the step of the checkpoint that is kept in addition to the newest ones.

        Raises:
          WriteError: this checkpoint, or the one before it, could not be written.
        """
        with writing("a checkpoint"):
            # The manager would wait too. Waiting here lets the memory that the last save has freed
            # go back before this save allocates as much again.
            self._manager.wait_until_finished()
        host_memory.return_freed()
        self._best.step = best
        sums = {
            "arrays": self._fingerprint_of(state),
            "progress": _crc(progress),
            "in_flight": _crc(in_flight),
        }
        items = {
            "params": ocp.args.StandardSave(self._stacked.unstack(state.saved)),
            "opt_state": ocp.args.StandardSave(state.opt_state),
            "progress": ocp.args.JsonSave({**progress, "sums": sums}),
        }
        if in_flight is not None:
            items["in_flight"] = ocp.args.StandardSave(in_flight._asdict())
        with writing("a checkpoint"):
            self._manager.save(step, args=ocp.args.Composite(**items))

    def check(self) -> None:
        """Raises a WriteError if a checkpoint could not be written in the background."""
        with writing("a checkpoint"):
            self._manager.check_for_errors()

    @without_abandoned_reads()
    def restore_newest(self) -> Restored | None:
        """Restores the newest checkpoint that can be read, or returns None if there are none.

        Newer checkpoints that cannot be read, or do not hold what was saved, are moved to
        DIR/corrupt.

        Raises:
          CheckpointError: there are checkpoints, but none can be read; then nothing is moved. Or
            one of several processes cannot read a checkpoint; it leaves a note, by which the next
            start skips that checkpoint.
        """
        reasons: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            note = self._note(step)
            if note.exists():
                reasons[step] = note.read_text()
                continue
            restored, reasons[step] = self._restore(step)
            if restored:
                for bad in list(reasons)[:-1]:
                    logging.warning(
                        "the checkpoint of step %d cannot be used (%s): it is moved to %s, and the "
                        "run goes on from step %d.",
                        bad,
                        reasons[bad],
                        self._workdir / "corrupt",
                        step,
                    )
                    self._set_aside(bad)
                return restored
        if reasons:
            newest = max(reasons)
            raise CheckpointError(
                f"none of the checkpoints in {self._workdir / 'checkpoints'} can be used (step "
                f"{newest}: {reasons[newest]}); nothing was changed: repair the disk that they are "
                "on, or give another --workdir to start from the beginning."
            )
        return None

    def _restore(self, step: int) -> tuple[Restored | None, str]:
        """Returns a checkpoint, or None and the reason why it cannot be used.

        The result is the same on every process.
        """
        try:
            items = self._read(step)
        except Exception as e:  # Torn files raise errors of many libraries.
            reason = first_line(e)
            if jax.process_count() == 1:
                return None, reason
            # The other processes wait for this one in Orbax, and end when it does.
            with writing("a note"):
                self._note(step).write_text(f"process {jax.process_index()}: {reason}")
            raise CheckpointError(
                f"process {jax.process_index()} cannot read the checkpoint of step {step} "
                f"({reason}); the same command goes on from the one before."
            ) from e
        state = self._like.restore(self._stacked.stack(items["params"]), items["opt_state"])
        progress = dict(items["progress"])
        in_flight = Rollout(**items["in_flight"]) if "in_flight" in items else None
        sums = progress.pop("sums")
        arrays = self._fingerprint_of(state)
        if len(arrays) != len(sums["arrays"]):
            arrays = np.asarray(
                jax.jit(lambda s: fingerprint(pairs.split((s.policy, s.opt_state))))(state)
            ).tolist()
        ours = {"arrays": arrays, "progress": _crc(progress), "in_flight": _crc(in_flight)}
        if not parallel.on_all(sums == ours):
            return None, "it reads well, but does not hold what was saved"
        return Restored(step, state, progress, in_flight), ""

    def _read(self, step: int) -> Mapping[str, Any]:
        directory, opt_state = self._manager.directory / str(step), self._like.opt_state
        in_pairs = _in_pairs(directory / "opt_state")
        if in_pairs:
            mesh = jax.tree.leaves(opt_state)[0].sharding.mesh
            opt_state = parallel.abstract(jax.eval_shape(pairs.split, opt_state), mesh)
        items = {
            "params": ocp.args.StandardRestore(self._stacked.like),
            "opt_state": ocp.args.StandardRestore(opt_state),
            "progress": ocp.args.JsonRestore(),
        }
        if (directory / "in_flight").exists():
            like = self._in_flight._asdict() if self._in_flight else None
            items["in_flight"] = ocp.args.StandardRestore(like)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        # Waiting here makes a read that fails raise its error now, where it is handled.
        jax.block_until_ready(restored["params"])
        items = {name: restored[name] for name in items}
        if in_pairs:
            places = jax.tree.map(lambda x: x.sharding, self._like.opt_state)
            items["opt_state"] = jax.jit(pairs.join, out_shardings=places)(items["opt_state"])
        return items

    def _note(self, step: int) -> pathlib.Path:
        """Returns the path of the note that says that a process could not read a checkpoint."""
        return self._workdir / f"unreadable_{step}"

    def _set_aside(self, step: int) -> None:
        with writing("a checkpoint"):
            if parallel.is_first_process():
                corrupt = self._workdir / "corrupt"
                corrupt.mkdir(exist_ok=True)
                taken = len(list(corrupt.glob(f"{step}*")))
                source = pathlib.Path(self._manager.directory) / str(step)
                source.rename(corrupt / (f"{step}.{taken}" if taken else str(step)))
                self._note(step).unlink(missing_ok=True)
        parallel.on_all(True)
        self._manager.reload()

    def _fingerprint_of(self, state: TrainState) -> list[int]:
        return np.asarray(jax.device_get(self._fingerprint(state))).tolist()

    def warm_up(self, state: TrainState) -> None:
        """Compiles the programs that saving needs, so that the first save need not wait for them.

        A resumed run would compile them at its first save otherwise, in the middle of training.
        """
        _ = self._stacked.unstack
        self._fingerprint_of(state)

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
          WriteError: it could not be written.
        """
        with writing("a checkpoint"):
            self._manager.close()


def verify(path: pathlib.Path, params: Any) -> None:
    """Checks that parameters read from DIR/checkpoints/<step>/params are those that were saved.

    Parameters without a `progress` next to them do not come from a run and are not checked.

    Args:
      path: the directory of the parameters.
      params: the parameters, in the dtypes that they were saved in.

    Raises:
      CheckpointError: they differ from what was saved, or the checksums cannot be read.
    """
    sums = _read_progress(path).get("sums")
    if sums is None:
        return
    sums = sums["arrays"]
    # The fingerprint of a state begins with its parameters.
    for layout in (lambda tree: tree, pairs.split):
        ours = np.asarray(jax.jit(lambda x, f=layout: fingerprint(f(x)))(params)).tolist()
        if ours == sums[: len(ours)]:
            return
    raise CheckpointError(f"{path} reads well, but does not hold what was saved.")


def read_adapters(path: pathlib.Path, like: Any) -> dict[str, Any]:
    """Reads the adapters at DIR/checkpoints/<step>/params, or at DIR/warm_start, and verifies them.

    Args:
      path: the directory of the adapters.
      like: the part {"lora": ...} of a policy, as a tree of ShapeDtypeStructs with shardings.

    Raises:
      CheckpointError: they cannot be read, or are not those that were saved.
    """
    try:
        adapters = lora.read(str(path), like)
    except Exception as e:  # Torn files raise errors of many libraries.
        raise CheckpointError(f"{path} cannot be read ({first_line(e)}).") from e
    verify(path, adapters)
    return adapters


def verify_base(path: pathlib.Path, where: str, params: Any) -> None:
    """Checks that parameters are those with which the adapters at `path` were trained.

    Adapters whose run is older than the record of this are not checked.

    Args:
      path: the directory of the adapters, DIR/checkpoints/<step>/params or DIR/warm_start.
      where: the checkpoint that holds the parameters.
      params: the parameters; adapters among them do not count.

    Raises:
      CheckpointError: they are others.
    """
    recorded = _read_progress(path) or read_json(_record(path), dict)
    check_base(recorded.get("base"), where, params)


def record_base(path: pathlib.Path, params: Any) -> None:
    """Records the parameters that the adapters of a warm start belong to, for `verify_base`.

    Args:
      path: the directory of the adapters, DIR/warm_start.
      params: the parameters; adapters among them do not count.
    """
    base = check_base(None, "", params)
    if parallel.is_first_process():
        replace(_record(path), json.dumps({"base": base}) + "\n")


def _record(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def check_base(saved: int | None, where: str, params: Any) -> int:
    """Returns the checksum of the parameters that a run started from.

    Adapters belong to them, and `loss.kl` measures the divergence from them.

    Raises:
      CheckpointError: it is not the one that was saved, which is None if none was recorded.
    """
    base = {name: params[name] for name in params if name != "lora"}
    found = zlib.crc32(np.asarray(jax.device_get(jax.jit(fingerprint)(base))).tobytes())
    if saved is not None and not parallel.on_all(saved == found):
        raise CheckpointError(
            f"model.checkpoint={where} holds other parameters than those that the run started "
            "from, which its adapters or its loss.kl need; put that checkpoint there again."
        )
    return found


def _read_progress(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON values beside DIR/checkpoints/<step>/params, {} outside of a run."""
    progress = path.absolute().parent / "progress"
    if not progress.exists():
        return {}
    try:
        values = ocp.JsonCheckpointHandler().restore(epath.Path(progress))
        return {"base": values.get("base"), "sums": {"arrays": values["sums"]["arrays"]}}
    except Exception as e:  # Torn files raise errors of many libraries.
        raise CheckpointError(f"{progress} cannot be read ({first_line(e)}).") from e


def _in_pairs(path: epath.Path) -> bool:
    """Returns whether the optimiser's state at `path` has the layout of version 0.1."""
    try:
        return pairs.are_in(ocp.StandardCheckpointHandler().metadata(path).tree)
    except Exception:  # Reading the values says what is wrong, if they cannot be read either.
        return False


def fingerprint(tree: Any) -> jax.Array:
    """Returns the sum of the bits of each leaf, [leaves] uint32.

    Neither the mesh nor the order of the additions changes it.
    """

    def total(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return x.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([total(x) for x in jax.tree.leaves(tree)])


def _crc(value: dict[str, Any] | Rollout | None) -> int:
    """Returns the CRC-32 of JSON values or of a rollout's arrays, and 0 for None."""
    if value is None:
        return 0
    if isinstance(value, Rollout):
        return zlib.crc32(b"".join(np.ascontiguousarray(x).tobytes() for x in value))
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
