"""Injects faults that a run has to survive, and compares its result with an undisturbed run.

python -m experiments.fault_injection --workdir=runs/faults

The runs are short ones of the maze task. They sample ahead, make several updates a batch, and use a
reference policy and a bootstrap estimator, so that a checkpoint has to keep every kind of state.
The faults are

  killed       SIGKILL at 20 random moments, in turn during sampling, grading, the update and the
               writing of a checkpoint; the run is started again after each
  terminated   SIGTERM at a random moment
  corrupted    a file of the newest checkpoint is truncated, changed or deleted
  full disk    a file system of a few megabytes is full until space is freed
  hanging      a grader never returns for some responses, and ignores SIGTERM
  crashing     a grader ends its process for some responses

A run survives a fault if it ends with the same metrics and parameters as the undisturbed run. With
the last two faults some responses are invalid, so those runs are compared with a run whose grader
itself returns a timeout, or an error, for the same responses. The script takes twenty to forty
minutes on two cores. Mounting the small file system needs root; without it, that fault is skipped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import config_dict

import experiments
from pkpo_jax import tasks
from pkpo_jax.tasks import Maze, grading
from pkpo_jax.training import checkpoints, loop, metrics, trainer
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.trainer import Trainer

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/faults", "Directory of the runs; it is deleted first."
)
_KILLS = flags.DEFINE_integer("kills", 20, "Number of times the first run is killed.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments.")
_CHILD = flags.DEFINE_string("child", None, "Used by the experiment itself: one run, as JSON.")

STEPS = 48
PHASES = ("sample", "grade", "update", "checkpoint")


def config(workers: int) -> config_dict.ConfigDict:
    config = config_lib.default()
    config.k, config.estimator.name, config.estimator.method = 2, "passk_training", "bootstrap"
    config.task.train_problems, config.task.test_problems = 200, 16
    config.rollout.max_prompt, config.rollout.max_response, config.rollout.n = 21, 8, 8
    config.rollout.ahead, config.loss.importance_cap = True, 2.0
    config.loss.policy, config.train.epochs = "ppo", 2
    config.loss.kl, config.loss.kl_coef = "k3", 0.01
    config.grading.workers, config.grading.timeout = workers, 0.5
    config.warm_start.steps, config.train.steps, config.train.prompts = 20, STEPS, 8
    config.eval.every, config.eval.n, config.eval.prompts = 16, 8, 16
    config.checkpoint.every = 2
    return config


def is_bad(response: str) -> bool:
    """Returns whether the graders below fail on a response; about one in sixty is bad."""
    return zlib.crc32(response.encode()) % 60 == 0


class TimeoutMaze(Maze):
    """Reports a timeout for bad responses, which is what `HangingMaze` has to lead to."""

    def grade(self, problem: tasks.Problem, response: str) -> Any:
        if is_bad(response):
            return tasks.Grade(math.nan, tasks.Status.TIMEOUT)
        return super().grade(problem, response)


class ErrorMaze(Maze):
    """Reports an error for bad responses, which is what `CrashingMaze` has to lead to."""

    def grade(self, problem: tasks.Problem, response: str) -> Any:
        if is_bad(response):
            return tasks.Grade(math.nan, tasks.Status.ERROR)
        return super().grade(problem, response)


class HangingMaze(Maze):
    """Never returns for bad responses."""

    def grade(self, problem: tasks.Problem, response: str) -> float:
        if is_bad(response):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        return super().grade(problem, response)


class CrashingMaze(Maze):
    """Ends its process for bad responses."""

    def grade(self, problem: tasks.Problem, response: str) -> float:
        if is_bad(response):
            os._exit(1)
        return super().grade(problem, response)


GRADERS = {
    task.__name__: task for task in (Maze, TimeoutMaze, ErrorMaze, HangingMaze, CrashingMaze)
}


def child(settings: dict[str, Any]) -> int:
    """Trains in this process with the grader and the fault in `settings`; returns the exit code."""
    tasks.TASKS["maze"] = GRADERS[settings["grader"]]
    # A short grace period keeps each hang down to seconds.
    grading.GRACE = 0.1
    if "signal" in settings:
        _signal_in(settings["phase"], settings["step"], settings["after"], settings["signal"])
    try:
        loop.train(config(settings["workers"]), pathlib.Path(settings["workdir"]))
    except loop.Stopped as e:
        print(e, file=sys.stderr)
        return e.code
    return 0


def _signal_in(phase: str, step: int, after: float, number: int) -> None:
    """Makes a phase send this process a signal, `after` seconds after its call number `step`."""
    owner, name = {
        "sample": (Trainer, "_sample_batch"),
        "grade": (Trainer, "_grade"),
        "update": (trainer, "learning_rate"),
        "checkpoint": (checkpoints.Checkpoints, "save"),
    }[phase]
    real, calls = getattr(owner, name), []

    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            fire = threading.Timer(after, os.kill, (os.getpid(), number))
            fire.daemon = True
            fire.start()
        return real(self, *arguments, **options)

    setattr(owner, name, wrapped)


def run(workdir: pathlib.Path, grader: str = "Maze", workers: int = 0, **settings: Any) -> Any:
    """Starts or resumes the run in `workdir` in a separate process, and waits for its end."""
    settings |= {"workdir": str(workdir), "grader": grader, "workers": workers}
    cache = workdir.parent / "jax_cache"
    return subprocess.run(
        [sys.executable, "-m", "experiments.fault_injection", f"--child={json.dumps(settings)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        timeout=900,
    )


def finish(workdir: pathlib.Path, **options: Any) -> None:
    result = run(workdir, **options)
    if result.returncode:
        raise RuntimeError(f"{workdir} ended with {result.returncode}:\n{result.stderr[-2000:]}")


def end_of(workdir: pathlib.Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Returns the metrics of a run, without those of the machine, and its final arrays."""
    kept = [
        {k: v for k, v in line.items() if not k.startswith(("time/", "memory/", "compil"))}
        for line in metrics.read(workdir)
    ]
    path = workdir / "checkpoints" / str(STEPS)
    with ocp.PyTreeCheckpointer() as checkpointer:
        trees = [checkpointer.restore(path.absolute() / name) for name in ("params", "opt_state")]
    import jax

    return kept, [np.asarray(x) for x in jax.tree.leaves(trees)]


def same_end(workdir: pathlib.Path, expected: pathlib.Path) -> bool:
    ours, theirs = end_of(workdir), end_of(expected)
    arrays = all(np.array_equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    return ours[0] == theirs[0] and arrays


def killed(workdir: pathlib.Path, rng: random.Random) -> Iterator[tuple[str, bool]]:
    """Kills the run repeatedly, and finishes it.

    Yields:
      The phase of each kill, and whether the run was killed and its metrics have no gap.
    """
    for i in range(_KILLS.value):
        phase = PHASES[i % len(PHASES)]
        # This is a random moment of the phase. A checkpoint takes longest, as it is written in the
        # background.
        after = rng.uniform(0.0, {"grade": 0.005, "checkpoint": 0.3}.get(phase, 0.05))
        step = rng.randint(1, 2 if phase == "checkpoint" else 5)
        result = run(workdir, signal=signal.SIGKILL, phase=phase, step=step, after=after)
        lines = metrics.read(workdir)
        whole = [line["step"] for line in lines] == list(range(len(lines)))
        yield phase, result.returncode == -signal.SIGKILL and whole
    finish(workdir)


def corrupted(workdir: pathlib.Path, rng: random.Random, damage: Callable) -> None:
    """Kills the run, applies `damage` to a file of its newest checkpoint, and resumes it."""
    run(workdir, signal=signal.SIGKILL, phase="sample", step=STEPS // 2, after=0.0)
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    newest = workdir / "checkpoints" / str(max(steps))
    files = (newest / rng.choice(["params", "opt_state", "progress"])).rglob("*")
    damage(max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size))
    finish(workdir)


def cut(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    for i in range(0, len(data), 64):
        data[i] ^= 0xFF
    path.write_bytes(data)


def delete(path: pathlib.Path) -> None:
    path.unlink()


@contextlib.contextmanager
def small_disk(path: pathlib.Path) -> Iterator[None]:
    """Mounts a file system of 24 MiB at `path` for the body; raises PermissionError if refused."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def full_disk(workdir: pathlib.Path) -> int:
    """Resumes a run on a full disk, and again with space; returns the first exit code."""
    disk = workdir.with_name("disk")
    with small_disk(disk):
        run(disk / "run", signal=signal.SIGKILL, phase="sample", step=STEPS // 3, after=0.0)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        # This leaves enough space for metrics, but not for a checkpoint.
        os.truncate(filler, filler.stat().st_size - 400_000)
        code = run(disk / "run").returncode
        filler.unlink()
        finish(disk / "run")
        shutil.copytree(disk / "run", workdir)
    return code


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    if _CHILD.value:
        sys.exit(child(json.loads(_CHILD.value)))
    base, rng = pathlib.Path(_WORKDIR.value).absolute(), random.Random(_SEED.value)
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    started = time.perf_counter()
    console = rich.console.Console(width=100)
    rows: list[tuple[str, int, int, str]] = []

    def record(fault: str, survived: int, total: int, note: str = "") -> None:
        rows.append((fault, survived, total, note))
        console.print(f"{fault}: {survived}/{total} {note}", highlight=False)

    undisturbed = base / "undisturbed"
    finish(undisturbed)
    outcomes = list(killed(base / "killed", rng))
    same = same_end(base / "killed", undisturbed)
    for phase in PHASES:
        of_phase = [ok for p, ok in outcomes if p == phase]
        record(f"SIGKILL, {phase}", sum(of_phase) * same, len(of_phase))
    result = run(base / "terminated", signal=signal.SIGTERM, phase="update", step=20, after=0.0)
    finish(base / "terminated")
    ok = result.returncode == 143 and same_end(base / "terminated", undisturbed)
    record("SIGTERM", int(ok), 1, f"exit code {result.returncode}")
    for damage in (cut, change, delete):
        workdir = base / f"corrupted_{damage.__name__}"
        corrupted(workdir, rng, damage)
        aside = [p.name for p in (workdir / "corrupt").glob("*")]
        ok = same_end(workdir, undisturbed)
        record(f"checkpoint file, {damage.__name__}", int(ok), 1, f"set aside: {aside}")
    try:
        code = full_disk(base / "full")
        ok = code == 4 and same_end(base / "full", undisturbed)
        record("full disk", int(ok), 1, f"exit code {code} before space was freed")
    except PermissionError as e:
        record("full disk", 0, 0, f"not tried: {e}")
    for grader, reference, column in (
        ("HangingMaze", "TimeoutMaze", "grade/timeout"),
        ("CrashingMaze", "ErrorMaze", "grade/error"),
    ):
        finish(base / reference, grader=reference)
        finish(base / grader, grader=grader, workers=2)
        count = sum(line.get(column, 0) for line in metrics.read(base / grader))
        ok = count > 0 and same_end(base / grader, base / reference)
        record(grader, int(ok), 1, f"{count} answers")
    table = rich.table.Table("fault", "survived / total", "", title="faults and survival")
    for fault, survived, total, note in rows:
        table.add_row(fault, f"{survived} / {total}", note)
    survived, total = sum(r[1] for r in rows), sum(r[2] for r in rows)
    table.add_row("all", f"{survived} / {total}", "")
    console.print(table)
    last = metrics.read(undisturbed)[-1]
    console.print(
        f"the undisturbed run ends with eval/pass_at_8 {last['eval/pass_at_8']:.4f}, loss "
        f"{last['train/loss']:.6f}; survived means equal to the last bit. Seed {_SEED.value}, "
        f"{time.perf_counter() - started:.0f} s, {experiments.machine()}",
        highlight=False,
    )
    sys.exit(survived != total)


if __name__ == "__main__":
    app.run(main)
