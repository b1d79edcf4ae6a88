"""What a run records: metrics.jsonl, TensorBoard events, memory, the count of compilations."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import resource
from collections.abc import Mapping
from typing import Any

import jax
from tensorboardX import SummaryWriter


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
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=10
        )
        self._wandb = _start_wandb(wandb, workdir, config) if wandb else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # JSON has no NaN: what is not finite is null there.
        line = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log({"step": step, **metrics})

    def sync(self) -> None:
        """Puts on disk what was written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._events.close()
        if self._wandb:
            self._wandb.finish()


def _start_wandb(project: str, workdir: pathlib.Path, config: Mapping[str, Any] | None) -> Any:
    import wandb

    # One run a directory: its steps are given as a metric, for a resumed run repeats some.
    name = "-".join(workdir.absolute().parts[-2:])
    run_id = hashlib.sha1(str(workdir.absolute()).encode()).hexdigest()[:16]
    run = wandb.init(
        project=project,
        name=name,
        id=run_id,
        resume="allow",
        dir=str(workdir),
        config=json.loads(json.dumps(config)),
    )
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
    figures = {"memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["memory/device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return figures


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, a torn last one left out."""
    return [json.loads(line) for line in _lines(workdir / "metrics.jsonl")]


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

    def _listen(self, event: str, duration: float, **kwargs: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
