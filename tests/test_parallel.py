"""Eight forced CPU devices, in jit and in pmap, against one device: the same run."""

import shutil

import pytest

from pkpo_jax import parallel
from tests import one_run


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return one_run.run_one_device(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(
    ("mode", "mesh"),
    [
        ("jit", (2, 2, 2)),
        ("pmap", (8, 1, 1)),
    ],
)
def test_eight_devices_give_the_run_of_one(mode, mesh, one_device, tmp_path):
    expected, record = one_device
    ours = one_run.finish(one_run.start({"mesh": mesh, "mode": mode}, tmp_path / "run", devices=8))
    assert ours == record
    one_run.assert_same_run(tmp_path / "run", expected)
    one_run.assert_compiled_once(tmp_path / "run")


def test_a_run_of_one_device_goes_on_on_eight(one_device, tmp_path):
    expected, record = one_device
    mode, mesh = "jit", (2, 2, 2)
    shutil.copytree(expected, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    ours = one_run.finish(one_run.start({"mesh": mesh, "mode": mode}, tmp_path / "run", devices=8))
    # The third batch, and the evaluation after it.
    assert ours["tokens"] == record["tokens"][-len(ours["tokens"]) :]
    assert 0 < len(ours["tokens"]) < len(record["tokens"])
    one_run.assert_same_run(tmp_path / "run", expected)


def test_responses_split_where_devices_outnumber_prompts():
    sizes = {"data": 8, "fsdp": 16, "tensor": 1}
    assert parallel.batch_axes(sizes, 16, 16) == (("fsdp",), ("data",))
    assert parallel.batch_axes(sizes, 8, 16) == (("data",), ("fsdp",))
    assert parallel.batch_axes(sizes, 3, 16) == ((), ())
