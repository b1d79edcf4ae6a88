"""A short run in processes of its own, on forced CPU devices, for runs to be compared."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pkpo_jax.training import metrics
from tests.training.test_run import comparable

# One run of three steps; each process writes down the problems it read and graded.
PROGRAM = """
import json, pathlib, sys, time
import numpy as np
from pkpo_jax import parallel
from pkpo_jax.tasks import Maze
from pkpo_jax.training import loop
from pkpo_jax.training.trainer import Trainer
from tests.training.test_run import small_config
settings, workdir = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
if settings.pop("distributed", False):
    parallel.join_other_processes()
config = small_config()
config.warm_start.steps, config.warm_start.batch = 2, 16
config.train.prompts = config.eval.prompts = 8
config.rollout.n = config.eval.n = 8
config.train.steps = config.eval.every = 3
config.train.micro_batches = 1
# Orbax compiles slices of its own when it first saves replicated arrays.
config.checkpoint.every = settings.get("every", 0)
# Several updates a batch, a reference, and what each loss is divided by over all devices.
config.k, config.estimator.name, config.estimator.method = 2, "passk_training", "bootstrap"
config.loss.policy, config.loss.aggregation, config.train.epochs = "ppo", "token-mean", 2
config.loss.kl, config.loss.kl_coef, config.loss.entropy_coef = "k3", 0.1, 0.01
config.loss.drop_equal_groups = config.loss.mask_truncated = True
config.parallel.mesh, config.parallel.mode = tuple(settings["mesh"]), settings["mode"]
tokens, read, graded = [], [], []
sample, grade = Trainer._sample, Maze.grade
start, restore = Trainer.start, Trainer.restore
def recording_sample(self, *arguments, **options):
    time.sleep(settings.get("pause", 0))
    rollout = sample(self, *arguments, **options)
    tokens.append(self.devices.fetch(rollout.tokens).tolist())
    return rollout
def recording_grade(self, problem, response):
    graded.append(problem["prompt"])
    return grade(self, problem, response)
def record_reading(self):
    order = self.order
    class Order:
        def __getitem__(self, i):
            read.append(i)
            return order[i]
    self.order = Order()
def recording_start(self, workdir):
    state = start(self, workdir)
    record_reading(self)
    return state
def recording_restore(self, *arguments):
    record_reading(self)
    return restore(self, *arguments)
Trainer._sample, Maze.grade = recording_sample, recording_grade
Trainer.start, Trainer.restore = recording_start, recording_restore
code = 0
try:
    loop.train(config, workdir)
except loop.Stopped as e:
    print(e, file=sys.stderr)
    code = e.code
print(json.dumps({"tokens": tokens, "read": read, "graded": len(graded)}))
sys.exit(code)
"""


def start(settings, workdir, devices, **environment):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(settings), str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, **environment},
    )


def finish(process, code=0, says=""):
    stdout, stderr = process.communicate()
    assert process.returncode == code and says in stderr, stderr
    return json.loads(stdout.splitlines()[-1])


def params(workdir):
    path = workdir / "checkpoints" / "3" / "params"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, restore_args=as_numpy)


def assert_same_run(workdir, expected):
    lines, others = comparable(workdir), comparable(expected)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line, other in zip(lines, others, strict=True):
        assert line == pytest.approx(other, abs=1e-5, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params(workdir), params(expected)
    )


def assert_compiled_once(workdir):
    counts = {line["compilations"] for line in metrics.read(workdir)[1:3]}
    assert len(counts) == 1, counts


def run_one_device(directory):
    """The run of one device, with a checkpoint after two of its three steps: its directory, and
    what it recorded."""
    workdir = directory / "run"
    settings = {"mesh": (1, 1, 1), "mode": "jit", "every": 2}
    return workdir, finish(start(settings, workdir, devices=1))
