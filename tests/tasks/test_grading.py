import gc
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import logging

from pkpo_jax.tasks import Grade, Math, Maze, Task, grading, maze
from pkpo_jax.tasks.grading import Grader, Status

OK, WRONG_FORMAT, TIMEOUT, ERROR = Status
# This is long enough for any answer that ends, even on a busy machine.
TIMEOUT_S = 3.0


class Hostile(Task):
    """A task whose `grade` misbehaves in the way that the first word of the response names."""

    def grade(self, problem, response):
        return getattr(self, response.split(" ", 1)[0])(problem, response)

    def ok(self, problem, response):
        return problem["reward"]

    def length(self, problem, response):
        return len(response)

    def hang(self, problem, response):
        print("hanging", flush=True)
        while True:
            pass

    def sleep_through_sigterm(self, problem, response):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)

    def leave_a_child(self, problem, response):
        subprocess.run(["sh", "-c", f"exec > {response.split()[1]}; echo here; sleep 600"])

    def exit(self, problem, response):
        os._exit(1)

    def kill(self, problem, response):
        os.kill(os.getpid(), signal.SIGKILL)

    def crash_later(self, problem, response):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return 0.0

    def fail(self, problem, response):
        raise ZeroDivisionError("of the grader")

    def raise_unprintable(self, problem, response):
        raise Unprintable

    def sys_exit(self, problem, response):
        sys.exit(1)

    def interrupt(self, problem, response):
        raise KeyboardInterrupt

    def nan(self, problem, response):
        return math.nan

    def huge(self, problem, response):
        return 1e300  # Not finite in float32.

    def text(self, problem, response):
        return "1.0"

    def none(self, problem, response):
        return None

    def numpy(self, problem, response):
        return np.float32(0.5)

    def late(self, problem, response):
        return Grade(0.0, TIMEOUT)

    def given_up(self, problem, response):
        return Grade(math.nan, TIMEOUT)

    def no_status(self, problem, response):
        return Grade(1.0, 7)

    def pid(self, problem, response):
        return os.getpid()

    def surroundings(self, problem, response):
        import jax

        return (
            threading.current_thread() is threading.main_thread()
            and jax.config.jax_platforms == "cpu"
            and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        )


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


class Unreadable(Hostile):
    """A task that cannot be unpickled."""

    def __setstate__(self, state):
        raise LookupError("nowhere to be found")

    def __getstate__(self):
        return {"some": "state"}


class Deadly(Unreadable):
    """A task that ends the process that unpickles it."""

    def __setstate__(self, state):
        os._exit(7)


def problems(count):
    return [{"reward": float(i)} for i in range(1, count + 1)]


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_no_writer(fifo):
    try:
        return os.read(fifo, 10) == b""
    except BlockingIOError:
        return False


def pids(grader):
    return {worker.process.pid for worker in grader._workers}


@pytest.fixture(scope="module")
def pool():
    with Grader(Hostile(), workers=2, timeout=TIMEOUT_S) as grader:
        yield grader


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


RETURNS = {
    "ok": (2.0, OK),
    "numpy": (0.5, OK),
    "late": (0.0, TIMEOUT),
    "given_up": (math.nan, TIMEOUT),
    "fail": (math.nan, ERROR),
    "no_status": (math.nan, ERROR),
    "raise_unprintable": (math.nan, ERROR),
    "nan": (math.nan, ERROR),
    "huge": (math.nan, ERROR),
    "text": (math.nan, ERROR),
    "none": (math.nan, ERROR),
}
WORKERS_ONLY = {
    "surroundings": (1.0, OK),
    "hang": (math.nan, TIMEOUT),
    "exit": (math.nan, ERROR),
    "sys_exit": (math.nan, ERROR),
    "kill": (math.nan, ERROR),
    "sleep_through_sigterm": (math.nan, TIMEOUT),
    "interrupt": (math.nan, ERROR),
}


def assert_grades(grades, expected):
    rewards, statuses = zip(*expected, strict=True)
    assert grades.rewards.dtype == np.float32 and grades.statuses.dtype == np.int8
    np.testing.assert_array_equal(grades.statuses.ravel(), statuses)
    np.testing.assert_array_equal(grades.rewards.ravel(), np.array(rewards, np.float32))


def test_without_workers_an_error_costs_one_answer_and_is_said_once(warnings):
    with Grader(Hostile()) as grader:
        grades = grader.grade([{"reward": 2.0}], [list(RETURNS)])
        assert_grades(grades, RETURNS.values())
        grader.grade([{"reward": 2.0}], [["fail"]])
        (said,) = warnings
        assert "ZeroDivisionError: of the grader" in said and __file__ in said
        with pytest.raises(KeyboardInterrupt):
            grader.grade([{"reward": 2.0}], [["interrupt"]])


def test_hostile_answers_cost_only_themselves(pool, warnings):
    expected = {**RETURNS, **WORKERS_ONLY}
    order = random.Random(0).sample(sorted(expected), len(expected))
    before = pids(pool)
    grades = pool.grade([{"reward": 2.0}], [order])
    assert_grades(grades, [expected[name] for name in order])
    assert not before & pids(pool)
    assert len([said for said in warnings if said.startswith("task.grade failed")]) == 1
    assert len([said for said in warnings if said.startswith("a worker died")]) == 1
    # The next call works, with every reward in its place.
    grades = pool.grade(problems(5), [["ok", "none", "ok"]] * 5)
    np.testing.assert_array_equal(grades.statuses, [[OK, ERROR, OK]] * 5)
    np.testing.assert_array_equal(grades.rewards[:, ::2], [[i, i] for i in range(1, 6)])
    assert np.isnan(grades.rewards[:, 1]).all()


def test_groups_may_be_empty_but_not_ragged(pool):
    assert pool.grade([], []).rewards.shape == (0, 0)
    assert pool.grade(problems(1), [["ok"]]).rewards == 1  # Fewer answers than workers.
    assert pool.grade(problems(2), [[], []]).statuses.shape == (2, 0)
    for texts in [["ok"]], [["ok"], ["ok", "ok"]]:
        with pytest.raises(ValueError, match=r"2 problems, and \d groups"):
            pool.grade(problems(2), texts)
    with pytest.raises(ValueError, match="expected 0 or more workers"):
        Grader(Hostile(), workers=-1)
    with pytest.raises(ValueError, match=r"timeout=0\.0"):
        Grader(Hostile(), timeout=0.0)


def test_megabytes_pass(pool):
    # Any text can be graded, even half a surrogate pair.
    responses = ["length " + text for text in ("", "\ud800", "x" * 5_000_000, "x")]
    grades = pool.grade(problems(4), [responses] * 4)
    np.testing.assert_array_equal(grades.rewards, [[len(r) for r in responses]] * 4)


def test_many_small_answers_keep_their_places(pool):
    n = 500
    rewards = pool.grade(problems(8), [["ok"] * n] * 8).rewards
    np.testing.assert_array_equal(rewards, np.repeat(np.arange(1, 9)[:, None], n, 1))


def test_after_ctrl_c_the_pool_grades_on(pool):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # Python drops what is raised in a callback of the garbage collector, such as hypothesis's.
    gc.disable()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            pool.grade(problems(2), [["hang", "ok"]] * 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert not any(worker.job for worker in pool._workers)
    np.testing.assert_array_equal(pool.grade(problems(2), [["ok"]] * 2).rewards, [[1], [2]])


def test_a_worker_that_dies_idle_blames_no_answer(pool):
    assert pool.grade(problems(1), [["crash_later"]]).rewards == 0
    time.sleep(0.3)
    grades = pool.grade(problems(2), [["ok"] * 2] * 2)
    np.testing.assert_array_equal(grades.rewards, [[1, 1], [2, 2]])


def test_a_grader_that_always_ends_its_process_is_said(monkeypatch):
    monkeypatch.setattr(grading, "FAILED_ANSWERS", 4)
    with Grader(Hostile(), workers=2, timeout=TIMEOUT_S) as grader:
        # Three of four end their worker; the one that is graded resets the count.
        grades = grader.grade([{"reward": 1.0}], [["exit", "exit", "exit", "ok"]])
        assert grades.statuses.tolist() == [[ERROR] * 3 + [OK]]
        with pytest.raises(
            grading.StartError, match=r"4 answers in a row ended .*exit code 1.*fix"
        ):
            grader.grade([{"reward": 1.0}], [["exit"] * 8])
        assert grader.grade([{"reward": 1.0}], [["ok"]]).rewards.tolist() == [[1.0]]


def test_workers_are_recycled_and_end_with_what_they_started(monkeypatch, tmp_path):
    monkeypatch.setattr(grading, "RECYCLE", 4)
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with Grader(Hostile(), workers=1) as grader:
        (first,) = pids(grader)
        os.kill(first, signal.SIGINT)  # Workers ignore it, even while they start.
        rewards = grader.grade(problems(2), [["pid"] * 4] * 2).rewards
        assert (rewards[0] == first).all() and (rewards[1] == rewards[1, 0]).all()
        assert first != rewards[1, 0]
        wait_for(grader._workers[0].pipe.poll)
        grader._batch_timeout = 1.0
        start = time.monotonic()
        texts = [["ok", f"leave_a_child {tmp_path}/fifo", "ok"], ["ok"] * 3]
        grades = grader.grade(problems(2), texts)
        assert 1 <= time.monotonic() - start < 30
        np.testing.assert_array_equal(grades.statuses.ravel(), [OK] + [TIMEOUT] * 5)
        assert os.read(fifo, 10) == b"here\n"
        wait_for(lambda: has_no_writer(fifo))
        workers = pids(grader)
    os.close(fifo)
    assert not workers & {p.pid for p in multiprocessing.active_children()}
    grader.close()
    with pytest.raises(ValueError, match="closed"):
        grader.grade([], [])


@pytest.mark.parametrize(
    ("task", "times", "reason"), [(Unreadable(), 1, "nowhere to be found"), (Deadly(), 2, "code 7")]
)
def test_a_task_that_workers_cannot_read_is_said(task, times, reason, monkeypatch):
    monkeypatch.setattr(grading, "FAILED_STARTS", times)
    with Grader(task, workers=1) as grader, pytest.raises(RuntimeError, match=reason):
        grader.grade(problems(1), [["ok"]])


def test_a_task_that_cannot_be_pickled_is_said():
    class Local(Hostile):
        pass

    with pytest.raises(ValueError, match="workers=1, but Local cannot be pickled"):
        Grader(Local(), workers=1)


def test_workers_give_the_rewards_of_the_calling_thread():
    task = Maze(reward="progress", train_problems=1, test_problems=12)
    mazes, rng = list(maze.generate(task, "test")), random.Random(0)
    responses = [[task.demonstration(problem, rng) for _ in range(8)] for problem in mazes]
    responses[3][2], responses[5][0] = "no walk", ""
    expected = Grader(task).grade(mazes, responses)
    with Grader(task, workers=2) as grader:
        grades = grader.grade(mazes, responses)
    assert len(np.unique(expected.rewards)) > 3
    np.testing.assert_array_equal(grades.rewards, expected.rewards)
    np.testing.assert_array_equal(grades.statuses, expected.statuses)
    formless = np.zeros((12, 8), bool)
    formless[3, 2] = True
    np.testing.assert_array_equal(grades.statuses, np.where(formless, WRONG_FORMAT, OK))


def test_towers_of_mathematics_are_bounded():
    with Grader(Math(), workers=1, timeout=2.0) as grader:
        texts = [r"\boxed{\frac{1}{2}}", r"\boxed{2}", r"\boxed{10^{10^{10}}}"]
        grades = grader.grade([{"answer": "0.5"}], [texts])
    np.testing.assert_array_equal(grades.statuses, [[OK, OK, TIMEOUT]])
    np.testing.assert_array_equal(grades.rewards, [[1, 0, 0]])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hung worker outlives its parent")
def test_no_worker_outlives_a_killed_parent():
    program = (
        "from pkpo_jax.tasks.grading import Grader\n"
        "from tests.tasks.test_grading import Hostile\n"
        "Grader(Hostile(), workers=2).grade([{}], [['hang']])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "hanging\n"
    finally:
        process.kill()
    # The pipe ends once no worker holds it open.
    process.communicate(timeout=30)
