"""Jobs of a study, one core each, side by side; one that is complete is not repeated."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tqdm

from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics


class JobError(RuntimeError):
    """A job failed, or its place holds another; says which, and where its output is."""


class Job(Protocol):
    """Something to do once."""

    @property
    def log(self) -> pathlib.Path:
        """Where its output goes."""

    def command(self) -> list[str]:
        """The program and its arguments."""

    def complete(self) -> bool:
        """Whether it is done; a JobError if something else was done in its place."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the trainer on a config with some keys changed, in a directory of its own."""

    workdir: pathlib.Path
    config: str
    changes: Mapping[str, Any]

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_suffix(self.workdir.suffix + ".log")

    def command(self) -> list[str]:
        keys = [f"--config.{key}={value}" for key, value in self.changes.items()]
        where = [f"--config={self.config}", f"--workdir={self.workdir}"]
        return [sys.executable, "-m", "pkpo_jax.main", *where, *keys]

    @property
    def steps(self) -> int:
        return self.changes["train.steps"]

    def complete(self) -> bool:
        path = self.workdir / "config.json"
        if not path.exists():
            return False
        # The steps of a schedule are strings in JSON.
        asked = json.loads(json.dumps(dict(self.changes)))
        stored = dict(config_lib.flatten({**json.loads(path.read_text()), "k": None}))
        stored["k"] = json.loads(path.read_text())["k"]
        for key, value in asked.items():
            if not key.startswith("log.") and stored.get(key) != value:
                raise JobError(
                    f"{self.workdir} holds a run with {key}={stored.get(key)!r}, and this study "
                    f"has {value!r}; give another --workdir, or remove that directory."
                )
        lines = metrics.read(self.workdir)
        return bool(lines) and lines[-1]["step"] == self.steps and self._saved()

    def _saved(self) -> bool:
        if not self.steps:
            return (self.workdir / "warm_start").exists()
        return (self.workdir / "checkpoints" / str(self.steps) / "params").exists()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A module of this study, or of the package, that leaves a file."""

    output: pathlib.Path
    module: str
    arguments: Sequence[str]

    @property
    def log(self) -> pathlib.Path:
        return self.output.with_suffix(".log")

    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def complete(self) -> bool:
        return self.output.exists()


def run_all(
    jobs: Sequence[Job], *, workers: int, cache: pathlib.Path, title: str, attempts: int = 2
) -> None:
    """Does those that are not complete, `workers` at a time; what they compile is kept in `cache`.

    Raises:
      JobError: one failed `attempts` times; the others are finished first.
    """
    todo = [job for job in {job.log: job for job in jobs}.values() if not job.complete()]
    if not todo:
        return
    cores: queue.Queue[int] = queue.Queue()
    for core in (_cores() * workers)[:workers]:
        cores.put(core)

    def attempt(job: Job) -> bool:
        core = cores.get()
        try:
            return any(_done(job, core, cache) for _ in range(attempts))
        finally:
            cores.put(core)

    failed = []
    bar = tqdm.tqdm(total=len(todo), desc=title, unit="job", dynamic_ncols=True)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, bar:
        waiting = {pool.submit(attempt, job): job for job in todo}
        try:
            for done in concurrent.futures.as_completed(waiting):
                bar.update()
                if not done.result():
                    failed.append(waiting[done])
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise
    if failed:
        raise JobError(
            f"{len(failed)} of {len(todo)} jobs failed; the output of the first is in "
            f"{failed[0].log}, and its command is {shlex.join(failed[0].command())}"
        )


def _cores() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_cores() -> int:
    """How many jobs fit side by side."""
    return len(_cores())


def _done(job: Job, core: int, cache: pathlib.Path) -> bool:
    """Whether the job ended well."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with job.log.open("w") as log:
        process = subprocess.Popen(
            job.command(), stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        if hasattr(os, "sched_setaffinity"):
            # Before it imports JAX, which starts a thread for each core it may use.
            os.sched_setaffinity(process.pid, {core})
        return process.wait() == 0 and job.complete()
