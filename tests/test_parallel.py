"""Tests that eight forced CPU devices, or two processes, give the same run as one device.

They use jit and pmap, and check that no part of the work is done twice.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from pkpo_jax import parallel
from pkpo_jax.policy import checkpoints, gemma
from pkpo_jax.training.trainer import Trainer
from tests import one_run
from tests.training.test_run import comparable


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Runs on one device, with a checkpoint after two of three steps.

    Returns:
      The directory of the run and its record.
    """
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, one_run.run(one_run.run_config(every=2), workdir)


@pytest.fixture(scope="module")
def eight_devices(one_device, tmp_path_factory):
    """Runs on eight devices, one run after the other in one process.

    Returns:
      A dict of pairs (directory, record).
    """
    root = tmp_path_factory.mktemp("eight")
    # The last run resumes a run of one device.
    shutil.copytree(one_device[0], root / "resumed")
    shutil.rmtree(root / "resumed" / "checkpoints" / "3")
    settings = {
        "jit": {"mesh": (2, 2, 2), "mode": "jit"},
        "pmap": {"mesh": (8, 1, 1), "mode": "pmap"},
        "resumed": {"mesh": (2, 2, 2), "mode": "jit"},
    }
    process = one_run.start([(root / name, of) for name, of in settings.items()], devices=8)
    records = one_run.finish(process)
    return {name: (root / name, of) for name, of in zip(settings, records, strict=True)}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_give_the_run_of_one(mode, one_device, eight_devices):
    expected, record = one_device
    workdir, ours = eight_devices[mode]
    assert ours == record
    one_run.assert_same_run(workdir, expected)
    one_run.assert_compiled_once(workdir)


def test_a_run_of_one_device_goes_on_on_eight(one_device, eight_devices):
    expected, record = one_device
    workdir, ours = eight_devices["resumed"]
    # The resumed run samples only the third batch and the evaluation after it.
    assert ours["tokens"] == record["tokens"][-len(ours["tokens"]) :]
    assert 0 < len(ours["tokens"]) < len(record["tokens"])
    one_run.assert_same_run(workdir, expected)


def test_adapters_are_trained_on_eight_devices_as_on_one(tmp_path):
    plain = one_run.run_config(plain=True)
    checkpoints.write(str(tmp_path / "base"), Trainer(plain).initial_params(tmp_path))
    of = {"plain": True, "base": str(tmp_path / "base")}
    meshes = {"jit": {"mesh": (2, 2, 2)}, "pmap": {"mesh": (8, 1, 1), "mode": "pmap"}}
    process = one_run.start([(tmp_path / m, of | meshes[m]) for m in meshes], devices=8)
    record = one_run.run(one_run.run_config(**of), tmp_path / "one")
    assert one_run.finish(process) == [record] * 2
    # The adapters have changed the policy by the third step.
    assert comparable(tmp_path / "one")[3]["train/kl"] > 1e-4
    for mode in meshes:
        one_run.assert_same_run(tmp_path / mode, tmp_path / "one")
        one_run.assert_compiled_once(tmp_path / mode)


def start_two(settings, workdir):
    """Starts two processes of one run, each with two devices, which jax.distributed joins."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    return [
        one_run.start(
            [(workdir, settings)],
            devices=2,
            distributed=True,
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]


def records(processes, **options):
    """Waits for the processes, and returns what each recorded of its run."""
    return [one_run.finish(process, **options)[0] for process in processes]


def assert_same_work(ours, expected):
    """Checks that two processes together sampled, read and graded the same as one."""
    assert all(process["tokens"] == expected["tokens"] for process in ours)
    # No problem is read twice or left out, and no response is graded twice or left out.
    assert sorted(ours[0]["read"] + ours[1]["read"]) == sorted(expected["read"])
    assert len(ours[0]["read"]) == len(ours[1]["read"])
    assert ours[0]["graded"] + ours[1]["graded"] == expected["graded"]


def test_two_processes_give_the_run_of_one_in_pmap(one_device, tmp_path):
    expected, record = one_device
    ours = records(start_two({"mesh": (4, 1, 1), "mode": "pmap"}, tmp_path / "run"))
    assert_same_work(ours, record)
    # Two processes write as many lines and event files as one does.
    one_run.assert_same_run(tmp_path / "run", expected)
    one_run.assert_compiled_once(tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_sigterm_to_one_process_saves_and_stops_both_and_both_go_on(tmp_path):
    """Tests what happens if a machine of a slice is preempted.

    All processes have to stop at the same step and resume from it.
    """
    expected = tmp_path / "expected"
    record = one_run.run(one_run.run_config(plain=True), expected)
    settings = {"mesh": (1, 2, 2), "mode": "jit", "plain": True}
    processes = start_two(settings | {"pause": 0.5}, tmp_path / "run")
    path, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") > 1):
        assert processes[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    before = records(processes, code=143, says="SIGTERM: step")
    after = records(start_two(settings, tmp_path / "run"))
    both = []
    for a, b in zip(before, after, strict=True):
        # When a step has ended, the prompts of the next one have been read.
        new = [row for row in b["read"] if row not in a["read"]]
        assert len(b["read"]) - len(new) == one_run.run_config(plain=True).train.prompts // 2
        both.append({key: a[key] + b[key] for key in ("tokens", "graded")})
        both[-1]["read"] = a["read"] + new
    assert_same_work(both, record)
    one_run.assert_same_run(tmp_path / "run", expected)


def test_a_failure_on_the_first_process_stops_both(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("Dear")
    for process in start_two({"mesh": (4, 1, 1), "mode": "jit"}, tmp_path / "run"):
        _, stderr = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "no config.json" in stderr or "not the first process's directory" in stderr


def test_responses_split_where_devices_outnumber_prompts():
    sizes = {"data": 8, "fsdp": 16, "tensor": 1}
    assert parallel.batch_axes(sizes, 16, 16) == (("fsdp",), ("data",))
    assert parallel.batch_axes(sizes, 8, 16) == (("data",), ("fsdp",))
    assert parallel.batch_axes(sizes, 3, 16) == ((), ())


REDUCTIONS = """
import collections, dataclasses, json
import jax, jax.numpy as jnp
from pkpo_jax import parallel
from pkpo_jax.policy import gemma
from pkpo_jax.reporting import costs
from tests.policy import small

mesh = parallel.make_mesh((1, 1, 4))
counts = []
for transposed in (True, False):
    config = dataclasses.replace(
        small.CONFIG, num_heads=8, num_kv_heads=4, transpose_gating_einsum=transposed
    )
    model = gemma.Gemma(config, place=parallel.Jitted(mesh).place)
    params = jax.eval_shape(lambda: gemma.init_params(model, jax.random.key(0)))
    placed = parallel.placements(params, mesh, gathered=True)
    prefill = lambda params, *prompts: model.apply({"params": params}, *prompts, method="prefill")
    f = jax.jit(prefill, in_shardings=(placed, None, None))
    prompts = jnp.ones((2, 3), jnp.int32), jnp.ones(2, jnp.int32)
    work, _ = costs.work(f.lower(params, *prompts).compile().as_text())
    kinds = collections.Counter()
    for w in work:
        for t in w.transfers:
            kinds[t.kind] += w.times
    counts.append(kinds)
print(json.dumps(counts))
"""


def test_a_layer_sums_twice_over_the_tensor_axis():
    """Tests both orders of gating_einsum: that of Gemma-2 2B is not that of the other sizes."""
    result = subprocess.run(
        [sys.executable, "-c", REDUCTIONS],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    assert result.returncode == 0, result.stderr
    # Each of four layers sums after its attention and its feed-forward network, and the lookup in
    # the table, whose rows are split, is a sum too.
    assert json.loads(result.stdout) == [{"all-reduce": 4 * 2 + 1}] * 2


@pytest.mark.parametrize("size", gemma.SIZES)
def test_the_tensor_axis_splits_the_hidden_units_of_every_size(size):
    config = gemma.SIZES[size]
    order = (config.hidden_dim, config.embed_dim)
    if not config.transpose_gating_einsum:
        order = order[::-1]
    mesh = jax.sharding.AbstractMesh((1, 2, 2), parallel.AXES)
    gating = {
        "mlp": {"gating_einsum": jax.ShapeDtypeStruct((config.num_layers, 2, *order), "float32")}
    }
    spec = parallel.placements(gating, mesh)["mlp"]["gating_einsum"].spec
    assert spec[2 + order.index(config.hidden_dim)] == "tensor"
    assert spec[2 + order.index(config.embed_dim)] == "fsdp"
