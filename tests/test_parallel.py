"""Eight forced CPU devices against one: same tokens, same figures."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, pathlib, sys
from pkpo_jax.training import loop, metrics
from tests.training.test_run import small_config, comparable
config = small_config()
config.warm_start.steps = 0
config.train.prompts = config.eval.prompts = 8
config.rollout.n = config.eval.n = 4
config.train.steps = 3
# Orbax compiles slices of its own when it first saves replicated arrays.
config.checkpoint.every = 0
config.parallel.mesh = tuple(json.loads(sys.argv[1]))
workdir = pathlib.Path(sys.argv[2])
loop.train(config, workdir)
counts = {line["compilations"] for line in metrics.read(workdir)[1:]}
assert len(counts) == 1, counts
print(json.dumps(comparable(workdir)))
"""


def run(devices, mesh, workdir):
    flags = f"--xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(mesh), str(workdir)],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return run(1, (1, 1, 1), tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_mesh_gives_the_run_of_one_device(mesh, one_device, tmp_path):
    lines = run(8, mesh, tmp_path / "run")
    assert len(lines) == len(one_device) == 4
    for line, expected in zip(lines, one_device, strict=True):
        assert line == pytest.approx(expected, abs=2e-5)
