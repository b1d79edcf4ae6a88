"""Tests of runs that train low-rank adapters: what they keep, resume from, evaluate and export."""

import re
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax import export
from pkpo_jax.policy import checkpoints
from pkpo_jax.policy.checkpoints import CheckpointError
from pkpo_jax.reporting import compilation, inspection
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import loop, metrics, programs, run_directory
from pkpo_jax.training.config import ConfigError
from pkpo_jax.training.trainer import Trainer
from tests import one_run
from tests.training.test_run import comparable, small_config

RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Writes a checkpoint, and returns the config of a run that trains adapters of it."""
    config = small_config()
    config.warm_start.steps = 0
    root = tmp_path_factory.mktemp("base")
    checkpoints.write(str(root / "base"), Trainer(config).initial_params(root))
    config.model.checkpoint, config.model.lora.rank = str(root / "base"), RANK
    config.model.lora.alpha = ALPHA
    config.warm_start.steps = 2
    config.train.steps = config.eval.every = 3
    config.checkpoint.every = 1
    config.checkpoint.keep = 4
    config.loss.kl, config.loss.kl_coef, config.loss.entropy_coef = "k3", 0.1, 0.1
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Returns the directory of a finished run, its state and its trainer."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    trainer = Trainer(config)
    trainer._checkpoint = mock.Mock(wraps=trainer._checkpoint)
    run_directory.claim(workdir, trainer.config)
    run = loop.Run(trainer, workdir)
    run.start()
    while run.done < run.steps:
        run.step()
    run.close()
    return workdir, run.state, trainer


def read_base(config):
    plain = config.copy_and_resolve_references()
    plain.model.lora.rank = plain.warm_start.steps = 0
    return Trainer(plain).initial_params(None)


def test_adapters_alone_are_trained_and_kept(config, finished):
    workdir, state, trainer = finished
    jax.tree.map(np.testing.assert_array_equal, state.frozen, read_base(config))
    assert set(state.params) == {"lora"} and set(trainer._reference) == {"lora"}
    assert {x.shape for x in jax.tree.leaves(state.opt_state)} == {
        (),
        *(x.shape for x in jax.tree.leaves(state.params)),
    }
    kept = one_run.params(workdir)
    jax.tree.map(np.testing.assert_array_equal, kept, state.params)
    warm = one_run.read_arrays(workdir / "warm_start")
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), kept, warm)
    assert min(jax.tree.leaves(changes)) > 1e-5
    lines = metrics.read(workdir)[1:]
    assert abs(lines[0]["train/kl"]) < 1e-6 < abs(lines[2]["train/kl"])
    assert all(line["train/log_prob_gap_max"] < 1e-5 for line in lines)
    assert len({line["compilations"] for line in lines}) == 1


def test_the_base_is_read_once_and_is_that_of_the_reference(finished):
    _, state, trainer = finished
    assert trainer._checkpoint.read.call_count == 1
    # Steps have moved the adapters, but not the copy of them.
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, trainer._reference)
    assert min(jax.tree.leaves(changed)) > 1e-5


def matmuls(config, trainer):
    """Returns the shapes, sorted, of the results of all matrix products of an update."""
    built = programs.Programs(config, trainer.devices, trainer.tokenizer)
    text = built.update.lower(*compilation.update_arguments(built)).as_text()
    found = re.findall(r"dot_general .*-> tensor<([\dx]+)x[a-z]\w*>", text)
    return {tuple(sorted(map(int, shape.split("x")))) for shape in found}


def test_gradients_of_frozen_parts_are_not_computed(config, finished):
    _, _, trainer = finished
    size = trainer.programs.model.config
    table, matrix = (size.num_embed, size.embed_dim), (size.embed_dim, size.hidden_dim)
    config = config.copy_and_resolve_references()
    # With other numbers of rows, activations would have the shape of the table.
    config.train.prompts = config.rollout.n = 5
    assert not {table, matrix} & matmuls(config, trainer)
    config.model.lora.rank = 0
    assert {table, matrix} <= matmuls(config, trainer)
    config.model.train_embedding = False
    assert {table, matrix} & matmuls(config, trainer) == {matrix}


def test_updates_leave_what_is_frozen_where_it_is(finished):
    """The compiled update returns the base in the memory that it came in."""
    _, _, trainer = finished
    arguments = compilation.update_arguments(trainer.programs)
    compiled = trainer.programs.update.lower(*arguments).compile()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    assert compiled.memory_analysis().alias_size_in_bytes >= size(arguments[0])


def test_a_resumed_run_reads_the_base_once(config, finished, tmp_path, monkeypatch):
    workdir, state, _ = finished
    read, bases = Trainer._read_params, []

    def recording(self, *checksum):
        bases.append(read(self, *checksum))
        return bases[-1]

    monkeypatch.setattr(Trainer, "_read_params", recording)
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    loop.train(config, tmp_path / "run")
    assert len(bases) == 1
    jax.tree.map(np.testing.assert_array_equal, one_run.params(tmp_path / "run"), state.params)
    assert comparable(tmp_path / "run") == comparable(workdir)


def test_evaluation_reads_adapters_and_base(config, finished):
    workdir, _, _ = finished
    request = inspection.Request(config_lib.default(), {}, "newest", "test")
    (result,) = inspection.evaluate([workdir], request)
    assert result.metrics["entropy"] == metrics.read(workdir)[3]["eval/entropy"]


def test_an_export_is_merged(config, finished, tmp_path):
    workdir, state, trainer = finished
    export.run(workdir, str(tmp_path / "out"), "newest", {})
    size, like = trainer.programs.model.config, trainer.programs.abstract_params()
    found = checkpoints.find(str(tmp_path / "out"), size).read(like)["layers"]
    for module, name, equation in [
        ("attn", "q_einsum", "ldr,lrmh->lmdh"),
        ("attn", "kv_einsum", "lcdr,lcrkh->lckdh"),
        ("attn", "attn_vec_einsum", "lmhr,lrd->lmhd"),
    ]:
        adapter = state.params["lora"][module][name]["w"]
        change = np.einsum(equation, adapter["a"], adapter["b"]) * ALPHA / RANK
        before = np.asarray(state.frozen["layers"][module][name]["w"])
        assert np.abs(change).max() > 1e-4
        np.testing.assert_allclose(found[module][name]["w"], before + change, atol=1e-6)
    norms = lambda layers: layers["pre_ffw_norm"]["scale"]  # noqa: E731
    np.testing.assert_array_equal(norms(found), norms(state.frozen["layers"]))


def test_a_policy_of_adapters_alone_is_no_checkpoint(config, finished):
    workdir, _, _ = finished
    plain = config.copy_and_resolve_references()
    plain.model.checkpoint = str(workdir / "checkpoints" / "3" / "params")
    with pytest.raises(ConfigError, match=r"holds the adapters .* export that run .--mode=export"):
        Trainer(plain)


def test_another_base_or_none_is_refused(config, finished, tmp_path):
    workdir, state, _ = finished
    base = tmp_path / "base"
    shutil.copytree(config.model.checkpoint, base)
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace(config.model.checkpoint, str(base)))
    moved = config.copy_and_resolve_references()
    moved.model.checkpoint, moved.train.steps = str(base), 4
    request = inspection.Request(config_lib.default(), {}, "newest", "test")
    actions = {
        "train": lambda: loop.train(moved, tmp_path / "run"),
        "eval": lambda: inspection.evaluate([tmp_path / "run"], request),
        "export": lambda: export.run(tmp_path / "run", str(tmp_path / "out"), "newest", {}),
    }
    shutil.rmtree(base)
    checkpoints.write(str(base), jax.tree.map(lambda x: x * jnp.float32(1.01), state.frozen))

    def assert_all_fail(message):
        for act in actions.values():
            with pytest.raises((ConfigError, CheckpointError), match=message):
                act()

    assert_all_fail("holds other parameters than those that the run started from")
    # The adapters of the warm start are all that is left.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert_all_fail("holds other parameters than those that the run started from")
    shutil.rmtree(base)
    assert_all_fail("base does not exist; expected")


def test_another_reference_is_refused_without_adapters(config, tmp_path):
    plain, base = config.copy_and_resolve_references(), tmp_path / "base"
    plain.model.lora.rank = plain.warm_start.steps = 0
    shutil.copytree(config.model.checkpoint, base)
    plain.model.checkpoint, plain.train.steps = str(base), 1
    loop.train(plain, tmp_path / "run")
    plain.train.steps = 2
    loop.train(plain, tmp_path / "run")
    params = read_base(config)
    shutil.rmtree(base)
    checkpoints.write(str(base), jax.tree.map(lambda x: x * jnp.float32(1.01), params))
    plain.train.steps = 3
    with pytest.raises(
        CheckpointError, match="holds other parameters than those that the run started from"
    ):
        loop.train(plain, tmp_path / "run")
