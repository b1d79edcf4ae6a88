"""Short runs that tests compare, in this process or in others, on forced CPU devices."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pkpo_jax import parallel
from pkpo_jax.tasks import Maze
from pkpo_jax.training import loop, metrics
from pkpo_jax.training.trainer import Trainer
from tests import shared_programs
from tests.training.test_run import comparable, small_config


def run_config(mesh=(1, 1, 1), mode="jit", every=0, plain=False, base=""):
    """Returns the config of a run of three steps.

    `plain` leaves out what needs more programs. With a checkpoint `base`, adapters are trained.
    """
    config = small_config()
    config.warm_start.steps, config.warm_start.batch = 0 if plain else 2, 16
    config.train.prompts = config.eval.prompts = 8
    config.rollout.n = config.eval.n = 8
    config.train.steps = config.eval.every = 3
    config.train.micro_batches = 1
    # Orbax compiles slices when it first saves replicated arrays, which the count would include.
    config.checkpoint.every = every
    config.k = 2
    config.parallel.mesh, config.parallel.mode = tuple(mesh), mode
    config.loss.entropy_coef = 0.01
    if not plain:
        # The run covers several updates a batch, a reference, and losses that are divided by
        # counts over all devices.
        config.estimator.name, config.estimator.method = "passk_training", "bootstrap"
        config.loss.policy, config.loss.aggregation, config.train.epochs = "ppo", "token-mean", 2
        config.loss.kl, config.loss.kl_coef = "k3", 0.1
        config.loss.drop_equal_groups = config.loss.mask_truncated = True
    if base:
        config.model.checkpoint, config.model.lora.rank = base, 4
        config.loss.kl, config.loss.kl_coef = "k3", 0.1
        config.train.learning_rate = 1e-3
    return config


class _Order:
    """The order of problems, which records the indices that are read."""

    def __init__(self, order, read):
        self.order, self.read = order, read

    def __getitem__(self, i):
        self.read.append(i)
        return self.order[i]


def run(config, workdir, pause=0.0):
    """Runs a config, and records what it did.

    Returns:
      A dict of the sampled tokens, the indices of the problems read, the number of responses
      graded, and the exit code.
    """
    tokens, read, graded, code = [], [], [], 0
    sample, grade = Trainer._sample, Maze.grade
    start, restore = Trainer.start, Trainer.restore

    def recording_sample(self, *arguments, **options):
        time.sleep(pause)
        rollout = sample(self, *arguments, **options)
        tokens.append(self.devices.fetch(rollout.tokens).tolist())
        return rollout

    def recording_grade(self, problem, response):
        graded.append(problem["prompt"])
        return grade(self, problem, response)

    def recording_start(self, workdir):
        state = start(self, workdir)
        self.order = _Order(self.order, read)
        return state

    def recording_restore(self, *arguments):
        self.order = _Order(self.order, read)
        return restore(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_sample", recording_sample)
        patch.setattr(Maze, "grade", recording_grade)
        patch.setattr(Trainer, "start", recording_start)
        patch.setattr(Trainer, "restore", recording_restore)
        try:
            loop.train(config, pathlib.Path(workdir))
        except loop.Stopped as e:
            print(e, file=sys.stderr)
            code = e.code
    return {"tokens": tokens, "read": read, "graded": len(graded), "code": code}


def start(runs, devices, distributed=False, **environment):
    """Starts a process that runs pairs (workdir, arguments of `run_config`) one after the other."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    runs = [(str(workdir), settings) for workdir, settings in runs]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.one_run", json.dumps([distributed, runs])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags, **environment},
    )


def finish(process, code=0, says=""):
    """Waits for a process, and returns the record of each of its runs."""
    stdout, stderr = process.communicate()
    assert process.returncode == code and says in stderr, stderr
    return json.loads(stdout.splitlines()[-1])


def read_arrays(path):
    """Reads a saved tree as NumPy arrays."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, restore_args=as_numpy)


def params(workdir):
    return read_arrays(workdir / "checkpoints" / "3" / "params")


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


def _main(distributed, runs):
    if distributed:
        parallel.join_other_processes()
    with pytest.MonkeyPatch.context() as patch:
        shared_programs.share(patch)
        records = []
        for workdir, settings in runs:
            pause = settings.pop("pause", 0.0)
            records.append(run(run_config(**settings), workdir, pause))
    print(json.dumps(records))
    return max(record["code"] for record in records)


if __name__ == "__main__":
    sys.exit(_main(*json.loads(sys.argv[1])))
