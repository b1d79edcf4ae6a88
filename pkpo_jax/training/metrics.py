"""The records of a run: metrics.jsonl, TensorBoard events, memory and the count of compilations."""

from __future__ import annotations

import json
import math
import os
import pathlib
import resource
import secrets
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from pkpo_jax.training import files
from pkpo_jax.training.config import ConfigError


class MetricWriter:
    """Writes each step's metrics to DIR/metrics.jsonl, one JSON object a line, and to TensorBoard.

    A line survives a crash of the process once `write` has returned, and a crash of the machine
    once `sync` has. Lines after `resume_step` are dropped, so that a resumed run has neither gaps
    nor duplicates. `wandb` names a project of Weights & Biases to which metrics are logged as well.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        resume_step: int,
        *,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resume_step]
        files.replace(path, "".join(kept))
        self._file = path.open("a")
        self._events = _EventFile(workdir / "tensorboard")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write(event_pb2.Event(step=resume_step + 1, session_log=start))
        self._wandb = _start_wandb(wandb, workdir, config) if wandb else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # JSON has no NaN or infinity, so values that are not finite become null.
        line = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._events.write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))
        if self._wandb:
            self._wandb.log({"step": step, **metrics})

    def sync(self) -> None:
        """Waits until everything written so far is on disk."""
        os.fsync(self._file.fileno())
        self._events.sync()

    def close(self) -> None:
        try:
            self._file.close()
            self._events.close()
        finally:
            if self._wandb:
                self._wandb.finish()


class _EventFile:
    """Writes a file of TensorBoard events, as TFRecords.

    The writers of tensorboardX either sync the disk with every event, which takes milliseconds, or
    write in a thread, which would fail silently if the disk is full. Here the operating system has
    an event once `write` returns, and the disk has it once `sync` returns.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = (directory / name).open("ab")
        self.write(event_pb2.Event(file_version="brain.Event:2"))

    def write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(length + checks[0] + data + checks[1])
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _start_wandb(project: str, workdir: pathlib.Path, config: Mapping[str, Any] | None) -> Any:
    import wandb

    # A directory has one run there, even if it is resumed. The step is a metric, since steps that
    # are repeated after a crash are logged again.
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(8))
    try:
        run = wandb.init(
            project=project,
            name=workdir.absolute().name,
            id=path.read_text(),
            resume="allow",
            dir=str(workdir),
            config=json.loads(json.dumps(config)),
        )
    except Exception as e:  # It can be any error of the library or of the network.
        raise ConfigError(
            f"log.wandb={project!r}: Weights & Biases did not start ({e}); log in, set "
            "WANDB_MODE=offline, or set log.wandb=''."
        ) from e
    run.define_metric("*", step_metric="step")
    return run


class NullWriter:
    """Writes nothing. All processes except the first use it."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def memory() -> dict[str, float]:
    """Returns the peak memory use so far of this process and of its first device, in GiB.

    The entry of the device is missing if the device does not report it.
    """
    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peaks = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        peaks["memory/device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return peaks


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, without an incomplete last one."""
    return [json.loads(line) for line in _lines(workdir / "metrics.jsonl")]


def write_intervals(
    workdir: pathlib.Path, step: int, intervals: Mapping[str, tuple[float, float]]
) -> None:
    """Adds the intervals of the evaluation after `step` to DIR/eval_intervals.json.

    The file holds {step: {metric: [low, high]}} for intervals that are finite. If a step is
    repeated after a crash, its new intervals replace the old ones.
    """
    path = workdir / "eval_intervals.json"
    finite = {
        f"eval/{name}": ends for name, ends in intervals.items() if all(map(math.isfinite, ends))
    }
    files.replace(path, json.dumps({**files.read_json(path, dict), str(step): finite}) + "\n")


def read_intervals(workdir: pathlib.Path) -> dict[int, dict[str, tuple[float, float]]]:
    """Returns {step: {metric: (low, high)}} of a run's evaluations.

    It is empty for runs from before the file existed.
    """
    found = files.read_json(workdir / "eval_intervals.json", dict)
    return {
        int(step): {name: (low, high) for name, (low, high) in ends.items()}
        for step, ends in found.items()
    }


def _lines(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    # A run that was killed can leave an incomplete line.
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


class CompilationCounter:
    """Counts the programs that XLA compiles in this process, from construction until `close`."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
