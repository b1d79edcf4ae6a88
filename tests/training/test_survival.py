"""Tests that compare stopped, killed and damaged runs, or runs on a full disk, with others."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pkpo_jax.policy.checkpoints import CheckpointError
from pkpo_jax.reporting import inspection
from pkpo_jax.tasks import Maze
from pkpo_jax.training import checkpoints, loop, metrics, pairs
from pkpo_jax.training.trainer import Trainer
from tests.one_run import read_arrays
from tests.training.test_run import comparable, small_config

# This program runs a config in a separate process. It waits after each step, so that a test can
# interrupt it there.
PROGRAM = """
import pathlib, sys, time
from absl import app, flags
from pkpo_jax.training import loop
from pkpo_jax.training.trainer import Trainer
from tests.training.test_survival import survival_config
step = Trainer.step
def slow_step(self, state, at):
    time.sleep(0.3)
    return step(self, state, at)
Trainer.step = slow_step
try:
    loop.train(survival_config(), pathlib.Path(sys.argv[1]))
except loop.Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(e.code)
"""


def survival_config():
    """Returns a config with everything that a run has to save.

    It uses an old policy, a reference, random groups, and batches that are sampled ahead.
    """
    config = small_config()
    config.k, config.estimator.name, config.estimator.method = 2, "passk_training", "bootstrap"
    config.loss.policy, config.loss.aggregation = "ppo", "token-mean"
    config.loss.kl, config.loss.kl_coef, config.train.epochs = "k3", 0.05, 2
    config.rollout.ahead, config.loss.importance_cap = True, 2.0
    # At first all rewards are 0, so only the entropy term changes the policy.
    config.loss.entropy_coef = 0.1
    config.train.steps = 8
    config.eval.every, config.checkpoint.every = 4, 2
    config.log.samples_every = 3
    return config


def params(workdir, step):
    path = workdir / "checkpoints" / str(step)
    return {name: read_arrays(path / name) for name in ("params", "opt_state")}


def assert_same_end(workdir, expected, step):
    assert comparable(workdir) == comparable(expected)
    for ours, theirs in zip(
        jax.tree.leaves(params(workdir, step)), jax.tree.leaves(params(expected, step)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    loop.train(survival_config(), workdir)
    return workdir


def start(workdir):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(workdir)], stderr=subprocess.PIPE, text=True
    )


def wait_for(process, workdir, lines):
    deadline = time.monotonic() + 240
    while len(metrics.read(workdir)) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_then_kill_then_the_end_is_the_run_left_alone(
    undisturbed, tmp_path, monkeypatch, capsys
):
    workdir, step = tmp_path / "run", Trainer.step

    def interrupted_step(self, state, at):
        if at == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted_step)
        with pytest.raises(loop.Stopped, match="SIGTERM: step 3 is saved") as e:
            loop.train(survival_config(), workdir)
    assert e.value.code == 143 and metrics.read(workdir)[-1]["step"] == 3
    said = capsys.readouterr().err
    assert all(f"RL, {doing}:" in said for doing in ("compiling", "evaluating", "saving"))
    # The checkpoint has the batch that was sampled ahead, even after an odd step.
    assert (workdir / "checkpoints" / "3" / "in_flight").exists()
    process = start(workdir)
    wait_for(process, workdir, 6)
    process.kill()
    process.communicate(timeout=120)
    loop.train(survival_config(), workdir)
    assert_same_end(workdir, undisturbed, 8)
    names = [sorted(p.name for p in (d / "samples").iterdir()) for d in (workdir, undisturbed)]
    assert names[0] == names[1]
    for name in names[0]:
        texts = [(d / "samples" / name).read_text() for d in (workdir, undisturbed)]
        assert texts[0] == texts[1]


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, os.remove])
@pytest.mark.parametrize("item", ["params", "opt_state", "progress"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    damage, item, undisturbed, tmp_path, caplog
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    files = [p for p in (workdir / "checkpoints" / "8" / item).rglob("*") if p.is_file()]
    damage(max(files, key=lambda p: p.stat().st_size))
    found = restore_newest(workdir)
    assert found.step == 6
    assert "the checkpoint of step 8 cannot be used" in caplog.text
    assert [p.name for p in (workdir / "corrupt").iterdir()] == ["8"]
    assert not (workdir / "checkpoints" / "8").exists()


def test_a_checkpoint_without_its_index_is_passed_over_in_one_line(
    undisturbed, tmp_path, caplog, monkeypatch
):
    workdir, shown, read = tmp_path / "run", [], checkpoints.Checkpoints._read
    shutil.copytree(undisturbed, workdir)

    def abandoning_read(self, step):
        # No array is found, and Orbax may end before the reads of the others report to it.
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
        return read(self, step)

    monkeypatch.setattr(checkpoints.Checkpoints, "_read", abandoning_read)
    (workdir / "checkpoints" / "8" / "opt_state" / "manifest.ocdbt").unlink()
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    assert restore_newest(workdir).step == 6
    assert not shown and sys.unraisablehook == shown.append
    assert len([one for one in caplog.records if "step 8 cannot be used" in one.message]) == 1


def evaluate(workdir):
    return inspection.evaluate([workdir], inspection.Request(survival_config(), {}))[0].metrics


@pytest.mark.parametrize(
    ("damage", "files"), [(cut, "*/_sharding"), (os.remove, "params/_METADATA")]
)
def test_a_file_that_is_not_needed_stops_neither_training_nor_evaluation(
    damage, files, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for path in (workdir / "checkpoints" / "8").glob(files):
        damage(path)
    found, measured = evaluate(workdir), metrics.read(workdir)[-1]
    assert found == {name: measured[f"eval/{name}"] for name in found}
    assert restore_newest(workdir).step == 8


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (cut, "params/_METADATA"),
        (empty, "params/array_metadatas/process_0"),
        (empty, "params/manifest.ocdbt"),
        (flip, "params/d/*"),
        (cut, "progress/metadata"),
    ],
)
def test_what_training_passes_over_is_not_evaluated_and_the_other_steps_are_named(
    damage, name, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (path,) = (workdir / "checkpoints" / "8").glob(name)
    damage(path)
    with pytest.raises(
        CheckpointError, match=r"/8/p.* cannot be read .*--step: .* keeps 4, 6\."
    ) as e:
        evaluate(workdir)
    assert "model.checkpoint" not in str(e.value) and "\n" not in str(e.value)
    assert restore_newest(workdir).step == 6


def restore_newest(workdir):
    trainer = Trainer(survival_config())
    kept = checkpoints.Checkpoints(
        workdir, 2, trainer.programs.abstract_state(), trainer.like_in_flight()
    )
    found = kept.restore_newest()
    kept.close()
    return found


def test_what_a_checkpoint_leaves_is_returned_before_the_next_one(tmp_path, monkeypatch):
    trainer, saving = Trainer(small_config()), []
    kept = checkpoints.Checkpoints(tmp_path, 2, trainer.programs.abstract_state())
    manager = kept._manager
    monkeypatch.setattr(
        checkpoints.host_memory,
        "return_freed",
        lambda: saving.append((manager.is_saving_in_progress(), manager.all_steps())),
    )
    state = trainer.start(tmp_path)
    for step in (1, 2):
        kept.save(step, state, {})
    kept.close()
    assert saving == [(False, []), (False, [1])]


def test_where_no_checkpoint_can_be_read_nothing_is_changed(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (workdir / "checkpoints").iterdir():
        shutil.rmtree(step / "params")
    before = sorted(workdir.rglob("*")), (workdir / "metrics.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .*step 8: "):
        loop.train(survival_config(), workdir)
    assert (sorted(workdir.rglob("*")), (workdir / "metrics.jsonl").read_text()) == before


def test_a_checkpoint_that_another_process_could_not_read_is_passed_over(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "unreadable_8").write_text("process 1: torn")
    assert restore_newest(workdir).step == 6
    assert (workdir / "corrupt" / "8").exists() and not (workdir / "unreadable_8").exists()


def test_a_lost_batch_in_flight_is_noticed(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (workdir / "checkpoints").iterdir():
        shutil.rmtree(step / "in_flight" if step.name == "6" else step)
    with pytest.raises(CheckpointError, match=r"step 6: it reads well, but does not hold what"):
        restore_newest(workdir)


def test_a_silent_change_of_the_arrays_is_noticed(undisturbed, tmp_path, monkeypatch):
    """Tests files that can be read but do not hold what was saved."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    real = checkpoints.Stacked.stack

    def stack(self, layers):
        tree = real(self, layers)
        table = tree["embedder"]["input_embedding"]
        tree["embedder"]["input_embedding"] = table.at[3, 5].add(1e-7)
        return tree

    monkeypatch.setattr(checkpoints.Stacked, "stack", stack)
    with pytest.raises(CheckpointError, match="it reads well, but does not hold what was saved"):
        restore_newest(workdir)
    with pytest.raises(CheckpointError, match="/8/params reads well, but does not hold what was"):
        evaluate(workdir)


def test_a_run_of_version_0_1_goes_on(undisturbed, tmp_path):
    """Its checkpoints hold the optimiser's state and the checksums with layers in pairs."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for step in (4, 6):
        shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
    now = restore_newest(workdir)
    directory = workdir / "checkpoints" / "8"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            directory / "opt_state", pairs.split(jax.device_get(now.state.opt_state)), force=True
        )
    of_pairs = pairs.split((now.state.params, now.state.opt_state))
    sums = np.asarray(checkpoints.fingerprint(of_pairs)).tolist()
    progress = next((directory / "progress").iterdir())
    saved = json.loads(progress.read_text())
    assert len(saved["sums"]["arrays"]) < len(sums)
    saved["sums"]["arrays"] = sums
    progress.write_text(json.dumps(saved))
    then = restore_newest(workdir)
    jax.tree.map(np.testing.assert_array_equal, then.state, now.state)
    checkpoints.verify(directory / "params", now.state.params)
    sums[2] += 1
    progress.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="it reads well, but does not hold what was saved"):
        restore_newest(workdir)
    with pytest.raises(CheckpointError, match="does not hold what was saved"):
        checkpoints.verify(directory / "params", now.state.params)


def short_run(tmp_path, **changes):
    config = survival_config()
    config.train.steps, config.log.samples_every = 6, 0
    config.update_from_flattened_dict(changes)
    return config, tmp_path / "run"


def test_a_run_whose_gradient_stays_infinite_stops_and_keeps_the_batch(tmp_path, monkeypatch):
    config, workdir = short_run(tmp_path, **{"train.max_skipped": 2, "estimator.name": "pkpo"})
    grade, calls = Maze.grade, []

    def huge(self, problem, response):
        calls.append(1)
        # From the third step on, these rewards make the gradient overflow.
        return grade(self, problem, response) if len(calls) < 82 else 3e38 * (len(calls) % 2)

    monkeypatch.setattr(Maze, "grade", huge)
    with pytest.raises(loop.Stopped, match=r"2 steps in a row, .* was not finite") as e:
        loop.train(config, workdir)
    assert e.value.code == 3
    skipped = [line["train/skipped"] for line in metrics.read(workdir)[1:]]
    # Each step has two updates.
    assert skipped[-2:] == [2, 2] and set(skipped[:-2]) == {0}
    (path,) = (workdir / "stopped").iterdir()
    with np.load(path) as kept:
        assert kept["tokens"].shape == (4, 4, 8) and kept["rewards"].max() > 1e38
        assert {"prompts", "lengths", "mask", "log_probs", "valid", "ids"} <= set(kept)


def test_a_dead_grader_stops_the_run_and_moves_nothing(tmp_path, monkeypatch):
    config, workdir = short_run(tmp_path, **{"train.max_skipped": 3})
    monkeypatch.setattr(Maze, "grade", lambda *_: 1 / 0)
    with pytest.raises(
        loop.Stopped, match=r"3 steps in a row, .* no response could be graded"
    ) as e:
        loop.train(config, workdir)
    assert e.value.code == 3
    assert [line["train/update_norm"] for line in metrics.read(workdir)[1:]] == [0, 0, 0]


@pytest.mark.parametrize("what", ["metrics", "checkpoint"])
def test_a_full_disk_stops_the_run_with_code_4_and_nothing_is_lost(
    what, undisturbed, tmp_path, monkeypatch
):
    config, workdir = survival_config(), tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device")
    owner, name = {
        "metrics": (metrics.MetricWriter, "write"),
        "checkpoint": (ocp.CheckpointManager, "save"),
    }[what]
    real = getattr(owner, name)

    def fail(self, step, *arguments, **options):
        if step == 4:
            raise full
        return real(self, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(loop.Stopped, match=r"No space left on device.*make room") as e:
            loop.train(config, workdir)
        assert e.value.code == 4
    loop.train(config, workdir)
    assert_same_end(workdir, undisturbed, 8)


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, monkeypatch):
    config, workdir = short_run(
        tmp_path, **{"checkpoint.keep": 1, "checkpoint.every": 1, "eval.every": 1}
    )
    values = iter([0.1, 0.3, 0.9, float("nan"), 0.2, 0.6, 0.4])
    real = Trainer.evaluate

    def evaluate(self, params, at, **options):
        evaluated = real(self, params, at, **options)
        evaluated.metrics["pass_at_1"] = next(values)
        return evaluated

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    real_step = Trainer.step

    def interrupted_step(self, state, at):
        if at == 4:
            raise KeyboardInterrupt
        return real_step(self, state, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, workdir)
    loop.train(config, workdir)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "6"]


def test_a_batch_sampled_ahead_is_of_the_policy_before(tmp_path, monkeypatch):
    """Checks that batches after the first are sampled with parameters exactly one update old."""
    config, workdir = short_run(tmp_path)
    sampled, updated = {}, {}
    sample, step = Trainer._sample_batch, Trainer.step

    def total(tree):
        return float(sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(tree)))

    def recording_sample(self, tree, at):
        sampled[at] = total(jax.device_get(tree))
        return sample(self, tree, at)

    def recording_step(self, state, at):
        updated[at] = total(jax.device_get(state.params))
        return step(self, state, at)

    monkeypatch.setattr(Trainer, "_sample_batch", recording_sample)
    monkeypatch.setattr(Trainer, "step", recording_step)
    loop.train(config, workdir)
    assert sampled == {0: updated[0], **{at: updated[at - 1] for at in range(1, 6)}}
    assert len(set(updated.values())) == 6
    gaps = [line["train/log_prob_gap_max"] for line in metrics.read(workdir)[1:]]
    assert gaps[0] < 1e-5 and min(gaps[1:]) > 1e-4
