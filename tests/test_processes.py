"""Two processes joined by jax.distributed against one: the same run, each part done once."""

import socket

import pytest

from tests import one_run


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return one_run.run_one_device(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(("mode", "mesh"), [("jit", (1, 2, 2)), ("pmap", (4, 1, 1))])
def test_two_processes_give_the_run_of_one(mode, mesh, one_device, tmp_path):
    expected, record = one_device
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    settings = {"mesh": mesh, "mode": mode, "distributed": True}
    processes = [
        one_run.start(
            settings,
            tmp_path / "run",
            devices=2,
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    ours = [one_run.finish(process) for process in processes]
    assert all(process["tokens"] == record["tokens"] for process in ours)
    # Nothing read twice, nothing lost; and so with grading.
    assert sorted(ours[0]["read"] + ours[1]["read"]) == sorted(record["read"])
    assert len(ours[0]["read"]) == len(ours[1]["read"])
    assert ours[0]["graded"] + ours[1]["graded"] == record["graded"]
    # Written once: as many lines, and events, as one process writes.
    one_run.assert_same_run(tmp_path / "run", expected)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
