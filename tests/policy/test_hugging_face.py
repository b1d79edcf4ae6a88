"""Exports: files as transformers writes and reads them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from pkpo_jax import export
from pkpo_jax.policy import gemma, hugging_face_export
from pkpo_jax.tasks.maze import Maze
from pkpo_jax.training import loop, saved_run
from pkpo_jax.training.checkpoints import CheckpointError
from pkpo_jax.training.config import ConfigError
from tests.policy import gemma_golden, hf_golden
from tests.policy.test_checkpoints import CONFIG, assert_equal, read, tensors
from tests.training.test_prompts import Words
from tests.training.test_run import small_config


def written(path):
    """All tensors that a directory holds, by name."""
    files = sorted(path.glob("*.safetensors"))
    found = {}
    for file in files:
        held = safetensors.numpy.load_file(file)
        assert not set(held) & set(found)
        found |= held
    return found, [file.name for file in files]


@pytest.mark.parametrize("name", ["2b", "9b"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_is_bit_for_bit(name, dtype, tmp_path):
    """From the files of transformers and back, with either layout of the MLP in memory."""
    # The table in memory has rows that no token has, as official ones do.
    config = dataclasses.replace(hf_golden.CONFIGS[name], num_embed=64)
    params = read(hf_golden.PATH, config, dtype=dtype)
    hugging_face_export.write(epath.Path(tmp_path / "out"), params, config, largest_file=30_000)
    found, files = written(tmp_path / "out")
    expected = {key: x.astype(dtype) for key, x in tensors().items()}
    assert found.keys() == expected.keys()
    for key, x in found.items():
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, expected[key], err_msg=key)
    # As published: several files, and an index that says what is where.
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in expected.values())
    assert_equal(read(tmp_path / "out", config, dtype=dtype), params)


def test_config_json_says_what_that_of_transformers_says(tmp_path):
    params = read(hf_golden.PATH, CONFIG)
    hugging_face_export.write(epath.Path(tmp_path / "out"), params, CONFIG)
    ours, theirs = (
        json.loads((path / "config.json").read_text())
        for path in (tmp_path / "out", hf_golden.PATH)
    )
    assert written(tmp_path / "out")[1] == ["model.safetensors"]
    theirs |= theirs.pop("rope_parameters") | {"torch_dtype": theirs["dtype"]}
    # The length is that of the official models: nothing in the network depends on it.
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing <= {"max_position_embeddings"}


def test_files_of_the_tokenizer_come_along(tmp_path):
    (tmp_path / "vocabulary").write_bytes(b"pieces")
    beside = epath.Path(tmp_path / "from")
    beside.mkdir()
    (beside / "chat_template.jinja").write_text("turns")
    (beside / "generation_config.json").write_text('{"top_k": 64}')
    hugging_face_export.write(
        epath.Path(tmp_path / "out"),
        read(hf_golden.PATH, CONFIG),
        CONFIG,
        tokenizer=str(tmp_path / "vocabulary"),
        beside=beside,
    )
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "turns"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_k": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that keeps the policies of two steps."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    config = small_config()
    config.train.steps, config.checkpoint.every, config.warm_start.steps = 2, 1, 0
    # Every step moves the policy, whatever the rewards.
    config.loss.entropy_coef = 0.1
    config.prompt.stop = ("S",)
    loop.train(config, workdir)
    return workdir


def test_a_runs_policy_is_exported(run, tmp_path, capsys):
    export.run(run, str(tmp_path / "out"), "newest", {})
    assert "the policy of step 2 is in" in capsys.readouterr().out
    saved = saved_run.read_config(run)
    network = export.network(saved).model.config
    exported = read(tmp_path / "out", network)
    own = read(run / "checkpoints" / "2" / "params", network)
    # Rows of the table that no token has are not exported.
    table = own["embedder"]["input_embedding"]
    own["embedder"]["input_embedding"] = table.at[network.vocab_size :].set(0.0)
    assert_equal(exported, own)


def test_generation_stops_where_sampling_stopped(run, tmp_path):
    export.run(run, str(tmp_path / "out"), "newest", {})
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    # PAD, EOS and BOS come before the characters.
    assert settings["eos_token_id"] == [1, 3 + Maze().alphabet.index("S")]
    assert settings["do_sample"] and "stop_strings" not in settings


def test_stop_tokens_of_an_official_size_need_its_tokenizer_for_strings(monkeypatch):
    config = small_config()
    config.model.size = "gemma3_270m"
    assert export._stop_tokens(config) == (1, 106)
    config.prompt.stop = ("\n\n",)
    assert export._stop_tokens(config) == ()
    config.model.tokenizer = "tokenizer.model"
    monkeypatch.setattr(export.policies, "make_tokenizer", lambda config, task: Words())
    assert export._stop_tokens(config) == (1, 10, 6)


def test_stop_strings_without_a_tokenizer_are_told(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "_stop_tokens", lambda config: ())
    export.run(run, str(tmp_path / "out"), "newest", {})
    assert "lacks the tokens of prompt.stop=('S',)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.steps": 7},
            "train.steps: an export is of the run as it is; only model.par",
        ),
        ({"model.tokenizer": "/nope"}, "model.tokenizer='/nope' does not exist; give the path of"),
    ],
)
def test_what_an_export_cannot_serve_is_said_before_it_writes(run, overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export.run(run, str(tmp_path / "out"), "newest", overrides)
    with pytest.raises(ConfigError, match="cannot be written"):
        export.run(run, "/proc/out", "newest", {})
    assert not list(tmp_path.iterdir())


def test_a_damaged_policy_is_not_exported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    # The parameters of step 1 read well, and are not those that were saved at step 2.
    shutil.rmtree(copy / "checkpoints" / "2" / "params")
    shutil.copytree(copy / "checkpoints" / "1" / "params", copy / "checkpoints" / "2" / "params")
    with pytest.raises(CheckpointError, match=r"does not hold what was saved.*keeps 1\."):
        export.run(copy, str(tmp_path / "out"), "newest", {})
    for file in (copy / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"cannot be read .*keeps 1\."):
        export.run(copy, str(tmp_path / "out"), "newest", {})
    assert not (tmp_path / "out").exists()
    export.run(copy, str(tmp_path / "out"), "1", {"model.param_dtype": "bfloat16"})
    found, (file,) = written(tmp_path / "out")
    assert {str(x.dtype) for x in found.values()} == {"bfloat16"}
    modes = [(tmp_path / "out" / name).stat().st_mode for name in (file, "config.json")]
    assert modes[0] == modes[1]


GEMMA3 = {name: c for name, c in gemma_golden.CONFIGS.items() if c.generation == 3}


@pytest.mark.parametrize("name", [*hf_golden.CONFIGS, *GEMMA3])
def test_transformers_reads_what_is_written(name, tmp_path):
    """The logits of transformers and ours agree, where it is installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = (hf_golden.CONFIGS | GEMMA3)[name]
    model = gemma.Gemma(config)
    params = jax.jit(lambda key: gemma.init_params(model, key))(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.2 * np.cos(np.arange(x.size)).reshape(x.shape), params)
    hugging_face_export.write(epath.Path(tmp_path / "out"), params, config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    tokens = gemma_golden.tokens()
    with torch.no_grad():
        expected = theirs(torch.tensor(np.array(tokens))).logits.numpy()
    hidden = model.apply({"params": params}, tokens)
    ours = model.apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(
        ours[..., 1 : config.vocab_size], expected[..., 1:], atol=6e-5, rtol=2e-5
    )
    assert expected.std() > 0.5
