"""Jobs of a study, side by side on one core each or in turn on all; none is done twice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm
from ml_collections import config_dict

from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics, policies, saved_run

_NO_MATTER = ("log.", "checkpoint.", "model.unroll")


class JobError(RuntimeError):
    """Says which job failed and where its output is, or that its directory holds another run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the trainer on a config with some keys changed, in its own directory.

    Attributes:
      workdir: its directory.
      config: path of the config.
      changes: {key: value} of the config keys that are changed.
      keep: whether its last policy is kept.
    """

    workdir: pathlib.Path
    config: str
    changes: Mapping[str, Any]
    keep: bool = True

    @property
    def log(self) -> pathlib.Path:
        """The file that the program's output goes to."""
        return self.workdir.with_name(f"{self.workdir.name}.log")

    def command(self) -> list[str]:
        """Returns the program and its arguments."""
        keys = [f"--config.{key}={value}" for key, value in self.changes.items()]
        where = [f"--config={self.config}", f"--workdir={self.workdir}"]
        return [sys.executable, "-m", "pkpo_jax.main", *where, *keys]

    @property
    def steps(self) -> int:
        """The number of RL steps."""
        return self.changes["train.steps"]

    def complete(self) -> bool:
        """Returns whether the run is done.

        Raises:
          JobError: the directory holds a run with another config.
        """
        if not saved_run.is_run(self.workdir):
            return False
        # A run writes its config with the size that follows from its checkpoint.
        config = policies.resolve(saved_run.override(_config(self.config), self.changes))
        wanted = _leaves(config.to_dict())
        there = _leaves(saved_run.read_config(self.workdir).to_dict())
        for key, value in wanted.items():
            # Logging, which checkpoints are kept, and whether layers are compiled one by one change
            # no result, or its last digits.
            if not key.startswith(_NO_MATTER) and there.get(key) != value:
                raise JobError(
                    f"{self.workdir} holds a run with {key}={there.get(key)!r}, and this study "
                    f"has {value!r}; give another --workdir, or remove that directory."
                )
        lines = metrics.read(self.workdir)
        return bool(lines) and lines[-1]["step"] == self.steps and self._saved()

    def finish(self) -> None:
        """Deletes the policies of a run that has ended well, if they are not kept."""
        if not self.keep:
            shutil.rmtree(self.workdir / "checkpoints", ignore_errors=True)

    def _saved(self) -> bool:
        if not self.keep:
            return True
        if not self.steps:
            return (self.workdir / "warm_start").exists()
        return (self.workdir / "checkpoints" / str(self.steps) / "params").exists()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A module of this study, or of the package, that writes a file."""

    output: pathlib.Path
    module: str
    arguments: Sequence[str]

    @property
    def log(self) -> pathlib.Path:
        """The file that the program's output goes to."""
        return self.output.with_suffix(".log")

    def command(self) -> list[str]:
        """Returns the program and its arguments."""
        return [sys.executable, "-m", self.module, *self.arguments]

    def complete(self) -> bool:
        """Returns whether the output was made with these arguments."""
        return self._done_with.exists() and self._done_with.read_text() == self._arguments

    def finish(self) -> None:
        """Records, after the program has ended well, the arguments it was run with."""
        if not self.complete():
            self._done_with.write_text(self._arguments)

    @property
    def _done_with(self) -> pathlib.Path:
        return self.output.with_suffix(".arguments")

    @property
    def _arguments(self) -> str:
        return shlex.join(self.arguments)


Job = Run | Measurement


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {key: value} as JSON holds them: tuples are lists, the steps of k are strings."""
    return dict(config_lib.flatten(json.loads(json.dumps(config))))


@functools.cache
def _config(path: str) -> config_dict.ConfigDict:
    return runpy.run_path(path)["get_config"]()


def run_all(
    jobs: Sequence[Job],
    *,
    workers: int,
    cache: pathlib.Path,
    title: str,
    attempts: int = 2,
    all_cores: bool = False,
) -> None:
    """Does the jobs that are not complete; an interrupt ends the programs that it has started.

    Args:
      jobs: those with the same log are one job.
      workers: how many run at the same time.
      cache: folder of JAX's compilation cache.
      title: of the progress bar.
      attempts: how often a failing job is started.
      all_cores: whether each job may use all cores, instead of one of its own.

    Raises:
      JobError: a job failed at every attempt. The others are finished first.
    """
    todo = []
    for job in {job.log: job for job in jobs}.values():
        if job.complete():
            # A study may have been stopped between a job's end and this.
            job.finish()
        else:
            todo.append(job)
    if not todo:
        return
    # A job takes a set of cores from here, and puts it back.
    cores: queue.Queue[set[int]] = queue.Queue()
    for core in (_cores() * workers)[:workers]:
        cores.put(set(_cores()) if all_cores else {core})
    running, stopped = set(), threading.Event()

    def attempt(job: Job) -> bool:
        own = cores.get()
        try:
            return any(
                not stopped.is_set() and _done(job, own, cache, running, stopped)
                for _ in range(attempts)
            )
        finally:
            cores.put(own)

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
            stopped.set()
            pool.shutdown(cancel_futures=True, wait=False)
            for process in list(running):
                process.kill()
            raise
    if failed:
        raise JobError(
            f"{len(failed)} of {len(todo)} jobs failed; the output of the first is in "
            f"{failed[0].log}, and its command is {shlex.join(failed[0].command())}"
        )


def runner(
    folder: pathlib.Path, workers: int | None = None, *, all_cores: bool = False
) -> Callable[[Sequence[Job], str], None]:
    """Returns a function that does jobs under a title, whose compilation cache is in `folder`.

    Args:
      folder: where runs are.
      workers: how many run at the same time; as many as there are cores by default.
      all_cores: whether each job may use all cores. They then run in turn.
    """
    workers = 1 if all_cores else workers or count_cores()

    def run(jobs: Sequence[Job], title: str) -> None:
        cache = folder / "compiled"
        run_all(jobs, workers=workers, cache=cache, title=title, all_cores=all_cores)

    return run


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Ends the script with one line if a job fails in the body, or on Ctrl-C or SIGTERM."""
    # SIGTERM then ends the programs that were started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except JobError as e:
        sys.exit(f"stopped: {e}")
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes from here.", file=sys.stderr)
        sys.exit(130)


def _cores() -> list[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_cores() -> int:
    """Returns how many jobs fit side by side."""
    return len(_cores())


def _done(
    job: Job,
    cores: set[int],
    cache: pathlib.Path,
    running: set[subprocess.Popen],
    stopped: threading.Event,
) -> bool:
    """Runs the job's program once, and returns whether the job is complete."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        # Jobs have CPU cores, because jobs side by side cannot share an accelerator.
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with job.log.open("a") as log:
        print(shlex.join(job.command()), file=log, flush=True)
        # A new session keeps Ctrl-C from the program: the study ends its programs itself.
        process = subprocess.Popen(
            job.command(),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        running.add(process)
        if stopped.is_set():
            # The programs that ran at that time have been ended, but not this one.
            process.kill()
        try:
            if hasattr(os, "sched_setaffinity"):
                # This comes before JAX starts a thread for each core that it may use.
                os.sched_setaffinity(process.pid, cores)
            if process.wait() != 0:
                return False
        finally:
            running.discard(process)
    job.finish()
    return job.complete()
