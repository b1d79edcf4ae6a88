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


@pytest.mark.parametrize(("mode", "mesh"), [("jit", (1, 2, 2)), ("pmap", (4, 1, 1))])
def test_two_processes_give_the_run_of_one(mode, mesh, one_device, tmp_path):
    expected, record = one_device
    processes = start_two({"mesh": mesh, "mode": mode}, tmp_path / "run")
    ours = [one_run.finish(process) for process in processes]
    assert all(process["tokens"] == record["tokens"] for process in ours)
    # Nothing read twice, nothing lost; and so with grading.
    assert sorted(ours[0]["read"] + ours[1]["read"]) == sorted(record["read"])
    assert len(ours[0]["read"]) == len(ours[1]["read"])
    assert ours[0]["graded"] + ours[1]["graded"] == record["graded"]
    # Written once: as many lines, and events, as one process writes.
    one_run.assert_same_run(tmp_path / "run", expected)
    one_run.assert_compiled_once(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_sigterm_to_one_process_saves_and_stops_both(one_device, tmp_path):
    """As when a machine of a slice is preempted: all stop at one step, and all go on from it."""
    expected, _ = one_device
    settings = {"mesh": (1, 2, 2), "mode": "jit", "pause": 0.5}
    processes = start_two(settings, tmp_path / "run")
    path, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") > 1):
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 143, stderr
        assert "SIGTERM: step 2 is saved" in stderr or "SIGTERM: step 1 is saved" in stderr
    for process in start_two(settings, tmp_path / "run"):
        one_run.finish(process)
    one_run.assert_same_run(tmp_path / "run", expected)


def test_a_failure_on_the_first_process_stops_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("Dear")
    for process in start_two({"mesh": (4, 1, 1), "mode": "jit"}, tmp_path / "run"):
        _, stderr = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "no config.json" in stderr or "not the first process's directory" in stderr
