"""Grades in worker processes, so that an answer that hangs or crashes affects no other answer."""

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

# A worker is replaced after this many answers, since graders and their libraries may leak memory.
RECYCLE = 10_000
# A worker has this many seconds to start and import the task, or to read the answers it is sent.
START_TIMEOUT = 300.0
# A worker has this many seconds to clean up after SIGTERM, before it is killed.
GRACE = 0.5
# If this many workers in a row end before they are ready, the task is taken to be at fault.
FAILED_STARTS = 3
# If this many answers in a row end their worker, the task is taken to be at fault: it would
# otherwise cost a new process for every answer of the run.
FAILED_ANSWERS = 32

_LARGEST = float(np.finfo(np.float32).max)


class StartError(RuntimeError):
    """The grading workers cannot start, or every answer ends its worker."""


class Grades(NamedTuple):
    """The rewards of P problems with n responses each, and the status of each.

    Attributes:
      rewards: [P, n] float32; NaN for a response that could not be graded.
      statuses: [P, n] int8 of `Status`.
    """

    rewards: np.ndarray
    statuses: np.ndarray


class Grader:
    """Grades groups of responses; a context manager, for one thread at a time.

    Without workers, answers are graded in the calling thread. This suits tasks that cannot hang or
    crash, since no deadline applies. Workers are spawned processes, each of which grades in its
    main thread: the task has to be picklable, and a script needs `if __name__ == "__main__":`. On
    Linux they end with the thread that started them, and the next `grade` starts new ones.

    Args:
      task: an answer is ERROR if `task.grade` raises, ends its process or returns no finite number.
      workers: the number of workers; they start immediately, and the first `grade` waits for them.
      timeout: seconds for an answer, counted from when its worker begins it; then it is TIMEOUT.
      batch_timeout: seconds for a call of `grade`; answers that are unfinished then are TIMEOUT.
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
        # The finaliser also runs when the grader is garbage-collected, and at Python's exit. There
        # it runs before multiprocessing waits, which would last forever if a worker ignores
        # SIGTERM.
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
        """Ends the workers, whatever they are doing."""
        self._closed = True
        self._end_workers()

    def grade(self, problems: Sequence[Problem], responses: Sequence[Sequence[str]]) -> Grades:
        """Grades n responses to each of P problems.

        The grader can be used again after any exception, including StartError and Ctrl-C.

        Raises:
          StartError: workers cannot start, or `FAILED_ANSWERS` answers in a row ended theirs.
        """
        if self._closed:
            raise ValueError("the grader is closed.")
        sizes = {len(group) for group in responses} or {0}
        if len(responses) != len(problems) or len(sizes) > 1:
            raise ValueError(
                f"{len(problems)} problems, and {len(responses)} groups of {sorted(sizes)} "
                "responses; expected a group for each problem, all of one size."
            )
        shape = len(problems), *sizes
        grades = Grades(np.full(shape, np.nan, np.float32), np.full(shape, Status.TIMEOUT, np.int8))
        groups = [_Job(*group) for group in zip(problems, responses, *grades, strict=True)]
        if self._count:
            # Groups are split into parts if there are too few of them to keep all workers busy.
            size = max(1, grades.rewards.size // (4 * self._count))
            self._run(collections.deque(part for group in groups for part in group.split(size)))
        else:
            for group in groups:
                for i, response in enumerate(group.responses):
                    self._record(group, i, *_grade(self._task, group.problem, response, Exception))
        return grades

    def _run(self, queue: collections.deque[_Job]) -> None:
        """Sends the jobs to the workers; unfinished answers keep the status they have."""
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
        """Receives a message from each worker that has one, and gives up those that are late."""
        wake = min(end, *(w.deadline for w in self._workers))
        if queue and self._idle():
            wake = 0.0  # There is work to send, so this only detects dead workers.
        workers: dict[Any, _Worker] = {w.pipe: w for w in self._workers}
        # The wait is at most an hour, for poll() overflows on the milliseconds of larger timeouts.
        for pipe in connection.wait(workers, min(max(0.0, wake - time.monotonic()), 3600.0)):
            worker = workers[pipe]
            try:
                message = worker.pipe.recv()
            except Exception:  # The pipe has ended, or a crash truncated the message.
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
        # A worker is not late if its message waits to be read: this process may have been busy.
        for worker in [w for w in self._workers if w.deadline <= now and not w.pipe.poll()]:
            self._lose(worker, queue, Status.TIMEOUT, "no sign of life")

    def _lose(
        self, worker: _Worker, queue: collections.deque[_Job], status: Status, reason: str
    ) -> None:
        """Discards a worker: its current answer gets the status, other workers grade the rest."""
        terminated = False
        if status is Status.ERROR:
            worker.process.join(GRACE)
            terminated = worker.process.exitcode == -signal.SIGTERM
        self._discard([worker])
        reason = reason or f"exit code {worker.process.exitcode}"
        if worker.job:
            # The remaining answers become one job each, for such answers seldom come alone.
            rest = worker.job.split(1)[worker.done :]
            if terminated and not worker.job.retried:
                # Somebody else sent SIGTERM, probably to the whole run, and the answer is not to
                # blame: it is graded once more.
                queue.append(rest.pop(0)._replace(retried=True))
            else:
                rest.pop(0).statuses[0] = status
            queue.extend(rest)
            if status is Status.ERROR and not terminated:
                self._say_once("a worker died while grading", reason)
                self._deaths += 1
                if self._deaths >= FAILED_ANSWERS:
                    raise StartError(
                        f"{self._deaths} answers in a row ended their grading worker ({reason}), "
                        "and none was graded; fix task.grade, which has to return."
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
        """Starts workers in place of the missing ones, without waiting for them."""
        # If Ctrl-C interrupted `_discard`, some workers have ended but are still in the list.
        self._workers[:] = [w for w in self._workers if not w.pipe.closed]
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._pickled))


class _Job(NamedTuple):
    """Responses to one problem, and views of the grades that they fill.

    Attributes:
      retried: whether its worker was terminated from outside once already.
    """

    problem: Problem
    responses: Sequence[str]
    rewards: np.ndarray
    statuses: np.ndarray
    retried: bool = False

    def split(self, size: int) -> list[_Job]:
        parts = [slice(i, i + size) for i in range(0, len(self.responses), size)]
        return [
            _Job(self.problem, self.responses[p], self.rewards[p], self.statuses[p]) for p in parts
        ]


class _Worker:
    """A process that grades, seen from its parent.

    Attributes:
      job: the job that it was sent, until all results have arrived; `done` counts those that have.
      ready: whether it has reported that it has started.
      deadline: the time at which its next message is due.
      graded: the number of answers that it has graded so far.
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
        """Sends a job to the worker, which has to be idle.

        An idle worker reads and has nothing left to write, so neither side can block the other.
        """
        self.job, self.done = job, 0
        self.deadline = time.monotonic() + START_TIMEOUT
        # An error means that the worker is dead, which `_receive` detects.
        with contextlib.suppress(OSError):
            self.pipe.send((job.problem, list(job.responses)))


@contextlib.contextmanager
def _inheritance() -> Iterator[None]:
    """Sets what a worker inherits: no accelerator, which its parent uses, and no Ctrl-C."""
    # The environment is the only way, for a worker imports jax before it runs our own code.
    platforms = os.environ.get("JAX_PLATFORMS")
    # Otherwise the first worker would start the tracker, which unblocks Ctrl-C again.
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
    """Ends workers and the processes they started: by SIGTERM, and after `GRACE` by SIGKILL."""
    for worker in workers:
        worker.process.terminate()
    end = time.monotonic() + GRACE
    # `join` does not serve here: it relies on a pipe that a grader may have closed.
    while any(w.process.is_alive() for w in workers) and time.monotonic() < end:
        time.sleep(0.002)
    for worker in workers:
        if worker.process.pid:
            with contextlib.suppress(
                OSError
            ):  # Its group has usually ended, or does not exist yet.
                os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _work(pipe: connection.Connection, pickled: bytes) -> None:
    """Runs a worker, which sends None when it is ready, then None and the results for each job.

    None starts the clock. If the worker cannot continue, it sends a string with the reason.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The worker leads a process group, so that processes a grader starts can be killed with it.
    os.setpgrp()
    # An idle worker notices that the pipe ends with its parent; a hung one has to be killed.
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
    """Returns the reward (NaN for none), the status, and a description of the error or ""."""
    try:
        grade = task.grade(problem, response)
        if not isinstance(grade, Grade):
            form = Status.WRONG_FORMAT if task.answer(response) is None else Status.OK
            grade = Grade(grade, form)
        reward, status = grade
        # The usual type comes first, since it takes longer to ask for the others.
        if not isinstance(reward, (float, numbers.Real, np.bool_)):
            raise TypeError(f"it gave a reward of type {type(reward).__name__}; expected float.")
        reward, status = float(reward), Status(status)
    except caught as e:
        return math.nan, Status.ERROR, _describe(e)
    # A larger reward would not be finite in float32.
    if not abs(reward) <= _LARGEST:
        ungraded = status if status is Status.TIMEOUT else Status.ERROR
        return math.nan, ungraded, ""
    return reward, status, ""


def _describe(error: BaseException) -> str:
    """Describes an error and its last line of code in short, even if its __str__ fails."""
    return "".join(traceback.format_exception(error, limit=-1, chain=False))[-2000:].strip()
