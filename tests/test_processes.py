"""Two processes joined by jax.distributed against one: the same run, each part done once."""

import signal
import socket
import time

import pytest

from tests import one_run


def start_two(settings, workdir):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    return [
        one_run.start(
            settings | {"distributed": True},
            workdir,
            devices=2,
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return one_run.run_one_device(tmp_path_factory.mktemp("one"))


def records(processes):
    return [one_run.finish(process) for process in processes]


def assert_same_work(ours, expected):
    """What two processes drew, read and graded, against what one did."""
    assert all(process["tokens"] == expected["tokens"] for process in ours)
    # Nothing read twice, nothing lost; and so with grading.
    assert sorted(ours[0]["read"] + ours[1]["read"]) == sorted(expected["read"])
    assert len(ours[0]["read"]) == len(ours[1]["read"])
    assert ours[0]["graded"] + ours[1]["graded"] == expected["graded"]


def test_two_processes_give_the_run_of_one_in_pmap(one_device, tmp_path):
    expected, record = one_device
    ours = records(start_two({"mesh": (4, 1, 1), "mode": "pmap"}, tmp_path / "run"))
    assert_same_work(ours, record)
    # Written once: as many lines, and events, as one process writes.
    one_run.assert_same_run(tmp_path / "run", expected)
    one_run.assert_compiled_once(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_sigterm_to_one_process_saves_and_stops_both_and_both_go_on(one_device, tmp_path):
    """As when a machine of a slice is preempted: all stop at one step, and all go on from it."""
    expected, record = one_device
    settings = {"mesh": (1, 2, 2), "mode": "jit", "pause": 0.5}
    processes = start_two(settings, tmp_path / "run")
    path, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") > 1):
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    before = [one_run.finish(process, code=143, says="SIGTERM: step") for process in processes]
    after = records(start_two(settings, tmp_path / "run"))
    parts = list(zip(before, after, strict=True))
    assert_same_work([{key: a[key] + b[key] for key in a} for a, b in parts], record)
    one_run.assert_same_run(tmp_path / "run", expected)


def test_a_failure_on_the_first_process_stops_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("Dear")
    for process in start_two({"mesh": (4, 1, 1), "mode": "jit"}, tmp_path / "run"):
        _, stderr = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "no config.json" in stderr or "not the first process's directory" in stderr
