"""What a run records: metrics.jsonl, TensorBoard events, the count of compilations."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import jax
from tensorboardX import SummaryWriter

from pkpo_jax import parallel


class MetricWriter:
    """Writes each step's metrics to DIR/metrics.jsonl, a JSON object a line, and to TensorBoard.

    A line is on disk once `write` returns. Lines after `resume_step` are dropped, so that a
    resumed run has neither gap nor duplicate.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int) -> None:
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resume_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(path)
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=10
        )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        # JSON has no NaN: what is not finite is null there.
        line = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        for key, value in metrics.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


class NullWriter:
    """Writes nothing: for the processes beside the first."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def make_writer(workdir: pathlib.Path, resume_step: int) -> MetricWriter | NullWriter:
    """The first process writes, the others do not."""
    return MetricWriter(workdir, resume_step) if parallel.is_first_process() else NullWriter()


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
