"""Grading in worker processes, so that an answer can hang, crash or fail at its own cost alone."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import math
import multiprocessing
import numbers
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import connection, resource_tracker, util
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from pkpo_jax.tasks.base import Grade, Problem, Status, Task

# A worker is replaced after this many answers, against what graders and their libraries leak.
RECYCLE = 10_000
# Seconds for a worker to start and import the task, or to read the answers that it is sent.
START_TIMEOUT = 300.0
# Seconds that a worker has to clean up after SIGTERM, before it is killed.
GRACE = 0.5
# So many workers in a row that end before they are ready are taken for the task's fault.
FAILED_STARTS = 3
# A grader that ends its worker on this many answers in a row is taken to be at fault: it would
# otherwise cost a new process for every answer of the run.
FAILED_ANSWERS = 32

_LARGEST = float(np.finfo(np.float32).max)


class StartError(RuntimeError):
    """Grading workers cannot start, or end on every answer."""


class Grades(NamedTuple):
    """The rewards of P problems with n responses each, and how each was come by.

    Attributes:
      rewards: [P, n] float32; NaN for a response that could not be graded.
      statuses: [P, n] int8 of `Status`.
    """

    rewards: np.ndarray
    statuses: np.ndarray


class Grader:
    """Grades groups of responses; a context manager, for one thread at a time.

    Without workers, answers are graded in the calling thread: for tasks that cannot hang or crash,
    since no deadline applies. Workers are spawned processes, each of which grades in its main
    thread: the task has to be picklable, and a script needs `if __name__ == "__main__":`. On Linux
    they end with the thread that started them, and the next `grade` starts others.

    Args:
      task: an answer is ERROR if `task.grade` raises, ends its process, or gives no finite number.
      workers: how many; they start at once, and the first `grade` waits for them.
      timeout: seconds for an answer, from when its worker begins it; then it is TIMEOUT.
      batch_timeout: seconds for a call of `grade`; what is unfinished then is TIMEOUT.
    """

    def __init__(
        self, task: Task, *, workers: int = 0, timeout: float = 10, batch_timeout: float = math.inf
    ) -> None:
        if workers < 0 or not (timeout > 0 and batch_timeout > 0):
            raise ValueError(
                f"workers={workers}, timeout={timeout}, batch_timeout={batch_timeout}; expected "
                "0 or more workers and more than 0 seconds."
            )
        self._task, self._count = task, workers
        self._timeout, self._batch_timeout = timeout, batch_timeout
        self._failures = self._deaths = 0
        self._said: set[str] = set()
        self._closed = False
        self._workers: list[_Worker] = []
        # Runs also when the grader is dropped, and at Python's exit before multiprocessing waits
        # there, for ever if a worker ignores SIGTERM.
        self._end_workers = util.Finalize(self, _end, [self._workers], exitpriority=10)
        if workers:
            try:
                self._pickled = pickle.dumps(task)
            except Exception as e:
                raise ValueError(
                    f"workers={workers}, but {type(task).__name__} cannot be pickled ({e}); "
                    "define it at the top of a module, or set workers=0."
                ) from e
            self._fill()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, whatever they are at."""
        self._closed = True
        self._end_workers()

    def grade(self, problems: Sequence[Problem], responses: Sequence[Sequence[str]]) -> Grades:
        """Grades n responses to each of P problems.

        Raises StartError if workers cannot start, or end on `FAILED_ANSWERS` answers in a row. The
        grader can be used again after this and any other exception, Ctrl-C among them.
        """
        if self._closed:
            raise ValueError("the grader is closed.")
        sizes = {len(group) for group in responses} or {0}
        if len(responses) != len(problems) or len(sizes) > 1:
            raise ValueError(
                f"{len(problems)} problems, and {len(responses)} groups of {sorted(sizes)} "
                "responses; expected a group to each problem, all of one size."
            )
        shape = len(problems), *sizes
        grades = Grades(np.full(shape, np.nan, np.float32), np.full(shape, Status.TIMEOUT, np.int8))
        groups = [_Job(*group) for group in zip(problems, responses, *grades, strict=True)]
        if self._count:
            # Parts of groups, where whole ones are too few to keep all workers busy.
            size = max(1, grades.rewards.size // (4 * self._count))
            self._run(collections.deque(part for group in groups for part in group.split(size)))
        else:
            for group in groups:
                for i, response in enumerate(group.responses):
                    self._record(group, i, *_grade(self._task, group.problem, response, Exception))
        return grades

    def _run(self, queue: collections.deque[_Job]) -> None:
        """Has the workers do the jobs; what is not done in time keeps the status it has."""
        end = time.monotonic() + self._batch_timeout
        self._failures = 0
        try:
            while (queue or any(w.job for w in self._workers)) and time.monotonic() < end:
                self._fill()
                self._receive(queue, end)
                for worker in self._idle()[: len(queue)]:
                    worker.send(queue.popleft())
        finally:
            self._discard([w for w in self._workers if w.job])
        self._fill()

    def _receive(self, queue: collections.deque[_Job], end: float) -> None:
        """Takes in a message of each worker that has one, and gives up those that are late."""
        wake = min(end, *(w.deadline for w in self._workers))
        if queue and self._idle():
            wake = 0.0  # There is work to send: only find out who is dead.
        workers: dict[Any, _Worker] = {w.pipe: w for w in self._workers}
        # At most an hour: poll cannot count the milliseconds of a very large timeout.
        for pipe in connection.wait(workers, min(max(0.0, wake - time.monotonic()), 3600.0)):
            worker = workers[pipe]
            try:
                message = worker.pipe.recv()
            except Exception:  # The end, or a message that a crash broke off.
                message = ""
            if isinstance(message, str):
                self._lose(worker, queue, Status.ERROR, message)
                continue
            self._failures = 0
            worker.ready = True
            if message and worker.job:
                self._record(worker.job, worker.done, *message)
                worker.done += 1
                worker.graded += 1
                if worker.done == len(worker.job.responses):
                    worker.job = None
            worker.deadline = time.monotonic() + (self._timeout if worker.job else math.inf)
            if worker.graded >= RECYCLE and not worker.job:
                self._discard([worker])
        now = time.monotonic()
        # Not late if its message waits to be read, as it does when this process was kept busy.
        for worker in [w for w in self._workers if w.deadline <= now and not w.pipe.poll()]:
            self._lose(worker, queue, Status.TIMEOUT, "no sign of life")

    def _lose(
        self, worker: _Worker, queue: collections.deque[_Job], status: Status, reason: str
    ) -> None:
        """Discards a worker: the answer it was at gets the status, others grade the rest."""
        terminated = False
        if status is Status.ERROR:
            worker.process.join(GRACE)
            terminated = worker.process.exitcode == -signal.SIGTERM
        self._discard([worker])
        reason = reason or f"exit code {worker.process.exitcode}"
        if worker.job:
            # One by one, for such answers seldom come alone.
            rest = worker.job.split(1)[worker.done :]
            if terminated and not worker.job.again:
                # Not by us: the whole job was told to end, and the answer is not to blame.
                queue.append(rest.pop(0)._replace(again=True))
            else:
                rest.pop(0).statuses[0] = status
            queue.extend(rest)
            if status is Status.ERROR and not terminated:
                self._say_once("a worker died while grading", reason)
                self._deaths += 1
                if self._deaths >= FAILED_ANSWERS:
                    raise StartError(
                        f"{self._deaths} answers in a row ended their grading worker ({reason}), "
                        "and none was graded; mend task.grade, which has to return."
                    )
        elif not worker.ready:
            self._failures += 1
            if self._failures >= FAILED_STARTS:
                raise StartError(
                    f"{self._failures} grading workers in a row could not start ({reason}); stderr "
                    "may say more. They have to be able to import the task, and a script needs "
                    '`if __name__ == "__main__":`.'
                )

    def _record(self, job: _Job, i: int, reward: float, status: int, error: str) -> None:
        self._deaths = 0
        job.rewards[i] = reward
        job.statuses[i] = status
        if error:
            self._say_once("task.grade failed", error)

    def _say_once(self, what: str, detail: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logging.warning("%s, which is only counted from here on: %s", what, detail)

    def _idle(self) -> list[_Worker]:
        return [w for w in self._workers if w.ready and not w.job]

    def _discard(self, workers: list[_Worker]) -> None:
        _end(workers)
        self._workers[:] = [w for w in self._workers if w not in workers]

    def _fill(self) -> None:
        """Starts workers for those that are missing, and waits for none."""
        # Some ended but were not forgotten, if Ctrl-C came between.
        self._workers[:] = [w for w in self._workers if not w.pipe.closed]
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._pickled))


class _Job(NamedTuple):
    """Responses to one problem, and the rows of the grades that they fill."""

    problem: Problem
    responses: Sequence[str]
    rewards: np.ndarray
    statuses: np.ndarray
    again: bool = False

    def split(self, size: int) -> list[_Job]:
        parts = [slice(i, i + size) for i in range(0, len(self.responses), size)]
        return [
            _Job(self.problem, self.responses[p], self.rewards[p], self.statuses[p]) for p in parts
        ]


class _Worker:
    """A process that grades, as its parent knows it.

    Attributes:
      job: what it was sent, until all results are here; `done` of them are.
      ready: whether it has started, and said so.
      deadline: when its next message is due.
      graded: all its answers so far.
    """

    def __init__(self, task: bytes) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, task), name="grader", daemon=True
        )
        with theirs, _inheritance():
            self.process.start()
        self.job: _Job | None = None
        self.ready, self.done, self.graded = False, 0, 0
        self.deadline = time.monotonic() + START_TIMEOUT

    def send(self, job: _Job) -> None:
        """To an idle worker alone: it reads and has nothing left to write, so neither is stuck."""
        self.job, self.done = job, 0
        self.deadline = time.monotonic() + START_TIMEOUT
        with contextlib.suppress(OSError):  # It is dead, as the next look at its pipe will show.
            self.pipe.send((job.problem, list(job.responses)))


@contextlib.contextmanager
def _inheritance() -> Iterator[None]:
    """What a worker starts with: no accelerator, for its parent has that, and deaf to Ctrl-C."""
    # By the environment, for a worker imports jax before it comes to any code of ours.
    platforms = os.environ.get("JAX_PLATFORMS")
    # Else the first worker starts it, which lets Ctrl-C through again.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        yield
    finally:
        del os.environ["JAX_PLATFORMS"]
        if platforms is not None:
            os.environ["JAX_PLATFORMS"] = platforms
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end(workers: list[_Worker]) -> None:
    """Ends processes and what they have started: asks, waits a moment, then kills."""
    for worker in workers:
        worker.process.terminate()
    end = time.monotonic() + GRACE
    # Not by join, which trusts a pipe that a grader may have closed.
    while any(w.process.is_alive() for w in workers) and time.monotonic() < end:
        time.sleep(0.002)
    for worker in workers:
        if worker.process.pid:
            with contextlib.suppress(OSError):  # Its group is gone, as a rule, or not yet made.
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _work(pipe: connection.Connection, pickled: bytes) -> None:
    """A worker's life: it sends None when it is ready, then for each job None and its results.

    None starts the clock. If the worker cannot go on, it sends a string that says why.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A group of its own, so that what a grader starts can be killed with it.
    os.setpgrp()
    # An idle worker sees the pipe end with its parent; a hung one has to be killed.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:
        return
    try:
        task = pickle.loads(pickled)
        pipe.send(None)
        while True:
            problem, responses = pipe.recv()
            pipe.send(None)
            for response in responses:
                pipe.send(_grade(task, problem, response, BaseException))
    except (EOFError, ConnectionError):
        return
    except BaseException as e:
        pipe.send(_describe(e))


def _grade(
    task: Task, problem: Problem, response: str, caught: type[BaseException]
) -> tuple[float, int, str]:
    """The reward, NaN for none, the status, and what went wrong, if anything is worth telling."""
    try:
        grade = task.grade(problem, response)
        if not isinstance(grade, Grade):
            form = Status.WRONG_FORMAT if task.answer(response) is None else Status.OK
            grade = Grade(grade, form)
        reward, status = grade
        if not isinstance(reward, numbers.Real | np.bool_):
            raise TypeError(f"it gave a reward of type {type(reward).__name__}; expected float.")
        reward, status = float(reward), Status(status)
    except caught as e:
        return math.nan, Status.ERROR, _describe(e)
    # A larger one is not finite in float32.
    if not abs(reward) <= _LARGEST:
        ungraded = status if status is Status.TIMEOUT else Status.ERROR
        return math.nan, ungraded, ""
    return reward, status, ""


def _describe(error: BaseException) -> str:
    """The error and its last line of code; short, and safe from an __str__ that fails."""
    return "".join(traceback.format_exception(error, limit=-1, chain=False))[-2000:].strip()
