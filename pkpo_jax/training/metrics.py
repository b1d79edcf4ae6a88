"""What a run records: metrics.jsonl, TensorBoard events, memory, the count of compilations."""

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
    """Writes each step's metrics to DIR/metrics.jsonl, a JSON object a line, and to TensorBoard.

    A line outlives the process once `write` returns, and the machine once `sync` does. Lines after
    `resume_step` are dropped, so that a resumed run has neither gap nor duplicate. `wandb` names a
    project of Weights & Biases to log to as well.
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
        # JSON has no NaN: what is not finite is null there.
        line = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._events.write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))
        if self._wandb:
            self._wandb.log({"step": step, **metrics})

    def sync(self) -> None:
        """Puts on disk what was written."""
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
    write in a thread, which would die of a full disk without anybody knowing. Here an event is with
    the operating system once `write` returns, and on disk once `sync` does.
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

    # One run a directory: what is logged again when it goes on has its step as a metric.
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
    except Exception as e:  # Of the library's own types, or of the network.
        raise ConfigError(
            f"log.wandb={project!r}: Weights & Biases did not start ({e}); log in, set "
            "WANDB_MODE=offline, or set log.wandb=''."
        ) from e
    run.define_metric("*", step_metric="step")
    return run


class NullWriter:
    """Writes nothing: for the processes beside the first."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def memory() -> dict[str, float]:
    """The most memory in use so far, GiB: of this process, and of its first device if it tells."""
    # In KiB, but on macOS.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    figures = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["memory/device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return figures


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, a torn last one left out."""
    return [json.loads(line) for line in _lines(workdir / "metrics.jsonl")]


def write_intervals(
    workdir: pathlib.Path, step: int, intervals: Mapping[str, tuple[float, float]]
) -> None:
    """Puts the intervals of the evaluation after `step` into DIR/eval_intervals.json.

    It holds {step: {metric: [low, high]}}, without those that are not finite; the evaluation of a
    step that is done again takes the place of the first.
    """
    path = workdir / "eval_intervals.json"
    finite = {
        f"eval/{name}": ends for name, ends in intervals.items() if all(map(math.isfinite, ends))
    }
    files.replace(path, json.dumps({**files.read_json(path, dict), str(step): finite}) + "\n")


def read_intervals(workdir: pathlib.Path) -> dict[int, dict[str, tuple[float, float]]]:
    """Returns {step: {metric: (low, high)}} of a run's evaluations; empty for older runs."""
    found = files.read_json(workdir / "eval_intervals.json", dict)
    return {
        int(step): {name: (low, high) for name, (low, high) in ends.items()}
        for step, ends in found.items()
    }


def _lines(path: pathlib.Path) -> list[str]:
    if not path.exists():
        return []
    # A run that was killed can leave half a line.
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


class CompilationCounter:
    """Counts the programs XLA compiles in this process, from when it is made until `close`."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
