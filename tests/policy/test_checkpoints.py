"""Tests of checkpoints in every layout; the library of Hugging Face wrote one (hf_golden.py)."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from etils import epath
from flax import traverse_util

from pkpo_jax import parallel
from pkpo_jax.policy import checkpoints, gemma, hugging_face_export
from tests.policy import gemma_golden, hf_golden, small

CONFIG = hf_golden.CONFIGS["9b"]


def like(config, dtype="float32", mesh=None):
    """Returns shapes, dtypes and shardings, which are on one device if no mesh is given."""
    if mesh is None:
        mesh = parallel.make_mesh((1, 1, 1), jax.devices()[:1])
    init = functools.partial(gemma.init_params, gemma.Gemma(config))
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place),
        shapes,
        parallel.placements(shapes, mesh),
    )


def read(path, config, **kwargs):
    return checkpoints.find(str(path), config).read(like(config, **kwargs))


def assert_equal(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# -- Hugging Face ----------------------------------------------------------------------------------


def tensors():
    """Returns the tensors of the tiny checkpoint by name."""
    files = sorted(hf_golden.PATH.glob("*.safetensors"))
    assert len(files) > 1
    return {k: x for file in files for k, x in safetensors.numpy.load_file(file).items()}


def written(path, tensors):
    path.mkdir()
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


def published(path, **changes):
    """A copy of the tiny checkpoint, whose config.json says something else."""
    shutil.copytree(hf_golden.PATH, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


@pytest.mark.parametrize("name", hf_golden.CONFIGS)
def test_logits_are_those_of_transformers(name, tmp_path):
    model = gemma.Gemma(hf_golden.CONFIGS[name])
    scalar = round(model.config.query_pre_attn_scalar**-2)
    params = read(published(tmp_path / "hf", query_pre_attn_scalar=scalar), model.config)

    @jax.jit
    def logits(tokens):
        hidden = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, hidden, method="logits")

    ours = logits(gemma_golden.tokens())[..., 1:]
    theirs = np.load(hf_golden.PATH / "logits.npz")[name][..., 1:]
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"query_pre_attn_scalar": 9},
            "query_pre_attn_scalar is 9, .* network .* has 8; set model",
        ),
        ({"rope_theta": 1e6}, "rope_theta is 1000000.0, .* has 10000"),
        ({"sliding_window": 4096}, "sliding_window is 4096, .* has 5"),
        ({"model_type": "gemma3_text"}, "model_type is 'gemma3_text', .* has 'gemma2'"),
    ],
)
def test_what_config_json_says_and_shapes_do_not(changes, message, tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match=message):
        checkpoints.find(str(published(tmp_path / "hf", **changes)), CONFIG)


def test_files_beside_the_index_are_refused(tmp_path):
    path = published(tmp_path / "hf")
    stray = {name: np.zeros_like(x) for name, x in tensors().items()}
    safetensors.numpy.save_file(stray, path / "model-00001-of-00009.safetensors")
    with pytest.raises(checkpoints.CheckpointError, match=r"00009.safetensors, which .* not name"):
        checkpoints.find(str(path), CONFIG)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        checkpoints.CheckpointError, match=r"4 safetensors files and no model.safet"
    ):
        checkpoints.find(str(path), CONFIG)


def test_a_file_that_the_index_names_has_to_be_there(tmp_path):
    path = published(tmp_path / "hf")
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(checkpoints.CheckpointError, match=r"no model-00002-of-00003.safetensors"):
        checkpoints.find(str(path), CONFIG)
    (path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(checkpoints.CheckpointError, match=r"index.json cannot be read as JSON"):
        checkpoints.find(str(path), CONFIG)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda table: 2 * table + 1, "'lm_head.weight' differs from 'model.embed_tokens.weight'"),
        (lambda table: table[:5].copy(), r"'lm_head.weight' has shape \(5, 24\)"),
    ],
)
def test_a_head_that_is_not_the_table_is_refused(head, message, tmp_path):
    table = tensors()["model.embed_tokens.weight"]
    path = written(tmp_path / "hf", tensors() | {"lm_head.weight": head(table)})
    with pytest.raises(checkpoints.CheckpointError, match=message):
        read(path, CONFIG)


def test_quantised_and_broken_numbers_are_refused(tmp_path):
    params = read(hf_golden.PATH, CONFIG)
    name = "model.layers.1.mlp.up_proj.weight"
    path = written(tmp_path / "int8", tensors() | {name: tensors()[name].astype(np.int8)})
    with pytest.raises(checkpoints.CheckpointError, match=f"'{name}' has dtype I8; expected float"):
        checkpoints.find(str(path), CONFIG)
    for value in (np.nan, np.inf):
        broken = tensors()[name].copy()
        broken[3, 2] = value
        path = written(tmp_path / f"hf_{value}", tensors() | {name: broken})
        with pytest.raises(checkpoints.CheckpointError, match="gating_einsum' holds NaN or infin"):
            read(path, CONFIG)
        scale = params["final_norm"]["scale"].at[0].set(value)
        checkpoints.write(str(tmp_path / f"{value}"), params | {"final_norm": {"scale": scale}})
        with pytest.raises(
            checkpoints.CheckpointError, match="'final_norm/scale' holds NaN or inf"
        ):
            read(tmp_path / f"{value}", CONFIG)


def test_the_numbers_are_cast_on_reading():
    params = read(hf_golden.PATH, CONFIG, dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), read(hf_golden.PATH, CONFIG))
    assert all(x.dtype == "bfloat16" for x in jax.tree.leaves(params))
    assert_equal(params, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_files_in_bfloat16(tmp_path, dtype):
    halved = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors().items()}
    # Files from before the head was tied also hold the head.
    halved["lm_head.weight"] = halved["model.embed_tokens.weight"]
    params = read(written(tmp_path / "hf", halved), CONFIG, dtype=dtype)
    expected = read(hf_golden.PATH, CONFIG, dtype="bfloat16")
    assert all(x.dtype == dtype for x in jax.tree.leaves(params))
    assert_equal(params, jax.tree.map(lambda x: x.astype(dtype), expected))


def test_rows_without_a_token_are_zero():
    """Checks the rows of the embedding table for which the file has no values."""
    config = dataclasses.replace(CONFIG, num_embed=64)
    table = read(hf_golden.PATH, config)["embedder"]["input_embedding"]
    expected = tensors()["model.embed_tokens.weight"]
    assert table.shape == (64, 24)
    np.testing.assert_array_equal(table[:50], expected)
    assert not table[50:].any()


@pytest.mark.parametrize("name", ["2b", "9b"])
def test_any_part_is_that_part_of_the_whole(name):
    """Checks parts along every axis, including those that no sharding splits."""
    config = dataclasses.replace(hf_golden.CONFIGS[name], num_embed=64)
    checkpoint = checkpoints.find(str(hf_golden.PATH), config)
    whole = traverse_util.flatten_dict(jax.device_get(checkpoint.read(like(config))))
    rng = np.random.default_rng(0)
    for path, x in whole.items():
        for _ in range(20):
            starts = [rng.integers(size) for size in x.shape]
            pairs = zip(starts, x.shape, strict=True)
            index = tuple(slice(i, rng.integers(i, size) + 1) for i, size in pairs)
            np.testing.assert_array_equal(checkpoint._part(path, index), x[index])


# -- Orbax -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params():
    _, params = small.policy()
    return jax.device_put(params, parallel.placements(params, parallel.make_mesh((1, 1, 1))))


def nested(params):
    return gemma.unstack(params)


def _with_slashes(tree):
    """Converts keys to those of Google's files.

    All names except the last are joined into one, and parameters of the MLP get a last name `w`.
    """
    flat = {}
    for (*path, name), x in traverse_util.flatten_dict(tree).items():
        path, name = ([*path, name], "w") if path[-1] == "mlp" else (path, name)
        flat.setdefault("/".join(["transformer", *path]), {})[name] = x
    return flat


def flat(params):
    return _with_slashes(gemma.unstack(params))


def stacked(params):
    layers = params["layers"]
    kinds = {f"attention_type_{i}": jax.tree.map(lambda x, i=i: x[i::2], layers) for i in range(2)}
    rest = {name: x for name, x in params.items() if name != "layers"}
    return _with_slashes(rest | {"stacked_layers": kinds})


LAYOUTS = (nested, flat, stacked)


def saved(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def test_what_is_written_is_read(params, tmp_path):
    checkpoints.write(str(tmp_path / "params"), params)
    assert_equal(read(tmp_path / "params", small.CONFIG), params)
    halved = read(tmp_path / "params", small.CONFIG, dtype="bfloat16")
    assert_equal(halved, jax.tree.map(lambda x: x.astype("bfloat16"), params))


def test_parameters_that_lie_on_no_mesh_are_written(params, tmp_path):
    anywhere = jax.tree.map(jnp.asarray, jax.device_get(params))
    checkpoints.write(str(tmp_path / "params"), anywhere)
    assert_equal(read(tmp_path / "params", small.CONFIG), params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(params, tmp_path, layout):
    tree = layout(params)
    keys = {
        nested: ("layer_0", "attn", "q_einsum", "w"),
        flat: ("transformer/layer_0/mlp/linear", "w"),
        stacked: ("transformer/stacked_layers/attention_type_0/attn/q_einsum", "w"),
    }
    assert keys[layout] in traverse_util.flatten_dict(tree)
    saved(tmp_path / "params", tree)
    assert_equal(read(tmp_path / "params", small.CONFIG), params)
    halved = read(tmp_path / "params", small.CONFIG, dtype="bfloat16")
    assert_equal(halved, jax.tree.map(lambda x: x.astype("bfloat16"), params))


GEMMA3 = gemma_golden.CONFIGS["gemma3, 8 layers"]


@pytest.fixture(scope="module")
def params3():
    model = gemma.Gemma(GEMMA3)
    params = jax.jit(gemma.init_params, static_argnums=0)(model, jax.random.key(0))
    return jax.device_put(params, parallel.placements(params, parallel.make_mesh((1, 1, 1))))


@pytest.mark.parametrize("period", [0, 6])
def test_the_text_of_a_model_that_reads_images(params3, tmp_path, period):
    """Google's files of Gemma 3 hold both, and stack every sixth layer."""
    single = gemma.unstack(params3)
    if period:
        groups = [[single.pop(f"layer_{i}") for i in range(kind, 8, 6)] for kind in range(6)]
        for i, layers in enumerate(groups):
            kind = jax.tree.map(lambda *x: jnp.stack(x), *layers)
            single.setdefault("stacked_layers", {})[f"attention_type_{i}"] = kind
    tree = _with_slashes(single)
    assert ("transformer/layer_7/attn/_key_norm" in tree) == (period == 0)
    tree["transformer/embedder/mm_input_projection"] = {"w": jnp.ones((3, 24))}
    tree["SigLiPFromPatches_0/siglip_encoder/embedding"] = {"bias": jnp.ones(5)}
    saved(tmp_path / "params", tree)
    assert_equal(read(tmp_path / "params", GEMMA3), params3)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_of_files_that_read_images(params3, tmp_path, prefix):
    """Hugging Face has two namings, and tables with rows for images."""
    hugging_face_export.write(epath.Path(tmp_path / "text"), params3, GEMMA3)
    held = safetensors.numpy.load_file(tmp_path / "text" / "model.safetensors")
    assert_equal(read(tmp_path / "text", GEMMA3), params3)
    renamed = {name.replace("model.", prefix): x for name, x in held.items()}
    table = f"{prefix}embed_tokens.weight"
    renamed[table] = np.pad(renamed[table], ((0, 64), (0, 0)))
    outer = prefix.partition("language_model")[0]
    renamed[f"{outer}vision_tower.patch.weight"] = np.ones((3, 3), np.float32)
    renamed[f"{outer}multi_modal_projector.mm_input_projection_weight"] = np.ones(3, np.float32)
    directory = written(tmp_path / "both", renamed)
    text = json.loads((tmp_path / "text" / "config.json").read_text())
    text.pop("rope_scaling")
    config = {"model_type": "gemma3", "text_config": text | {"vocab_size": 114}}
    (directory / "config.json").write_text(json.dumps(config))
    assert_equal(read(directory, GEMMA3), params3)
    config["text_config"]["rope_local_base_freq"] = 5
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(checkpoints.CheckpointError, match=r"rope_local_base_freq is 5, .* 10000"):
        read(directory, GEMMA3)


@pytest.mark.parametrize("name", ["tiny", "gemma3_270m"])
def test_the_size_follows_from_the_directory(name, tmp_path, monkeypatch):
    sized = dataclasses.replace(small.CONFIG, num_layers=2)
    names = {"tiny": sized, "gemma3_270m": GEMMA3}
    monkeypatch.setattr("pkpo_jax.policy.checkpoint_checks.SIZES", names)
    model = gemma.Gemma(names[name])
    params = jax.jit(gemma.init_params, static_argnums=0)(model, jax.random.key(0))
    checkpoints.write(str(tmp_path / "orbax"), params)
    hugging_face_export.write(epath.Path(tmp_path / "files"), params, names[name])
    other = names["tiny" if name != "tiny" else "gemma3_270m"]
    for path in (tmp_path / "orbax", tmp_path / "files"):
        assert checkpoints.size(str(path)) == name
        with pytest.raises(checkpoints.CheckpointError, match=f"set model.size='{name}', or"):
            checkpoints.find(str(path), other)


def test_a_size_without_a_name(params, tmp_path):
    checkpoints.write(str(tmp_path / "params"), params)
    with pytest.raises(checkpoints.CheckpointError, match=r"4 layers of width 32; expected"):
        checkpoints.size(str(tmp_path / "params"))


# -- errors ----------------------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(tmp_path / "nowhere"), CONFIG)
    assert_one_line(error, str(tmp_path / "nowhere"), "safetensors", "Orbax")


def test_an_empty_directory(tmp_path):
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(tmp_path), CONFIG)
    assert_one_line(error, str(tmp_path), "safetensors", "Orbax")


def test_an_orbax_checkpoint_of_something_else(tmp_path):
    path = saved(tmp_path / "list", [jnp.ones(3)])
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(path), CONFIG)
    assert_one_line(error, str(path), "expected")


def test_a_truncated_file(tmp_path):
    shutil.copytree(hf_golden.PATH, tmp_path / "hf")
    file = sorted((tmp_path / "hf").glob("*.safetensors"))[1]
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(checkpoints.CheckpointError) as error:
            checkpoints.find(str(tmp_path / "hf"), CONFIG)
        assert_one_line(error, str(file), "safetensors", "again")


def orbax_with(params, path, *, without=None, extra=None):
    tree = traverse_util.flatten_dict(gemma.unstack(params), sep="/")
    tree = {name: x for name, x in tree.items() if name != without}
    if extra:
        tree[extra] = jnp.zeros(3)
    return saved(path, traverse_util.unflatten_dict(tree, sep="/"))


def hugging_face_with(path, *, without=None, extra=None):
    tree = {name: x for name, x in tensors().items() if name != without}
    if extra:
        tree[extra] = np.zeros(3, np.float32)
    return written(path, tree)


def test_another_size(params, tmp_path):
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(hf_golden.PATH), dataclasses.replace(CONFIG, hidden_dim=41))
    name = "model.layers.0.mlp.gate_proj.weight"
    assert_one_line(error, str(hf_golden.PATH), name, "(40, 24)", "(41, 24)", "model.size")

    for layout in LAYOUTS:
        path = saved(tmp_path / layout.__name__, layout(params))
        with pytest.raises(checkpoints.CheckpointError) as error:
            checkpoints.find(str(path), dataclasses.replace(small.CONFIG, hidden_dim=49))
        shapes = ("(2, 2, 48, 32)", "(2, 2, 49, 32)")
        if layout is not stacked:
            shapes = ("(2, 48, 32)", "(2, 49, 32)")
        assert_one_line(error, str(path), "mlp/gating_einsum", *shapes, "model.size")
        for layers in (2, 6):
            with pytest.raises(checkpoints.CheckpointError) as error:
                checkpoints.find(str(path), dataclasses.replace(small.CONFIG, num_layers=layers))
            assert_one_line(error, str(path), "model.size")


def test_a_missing_tensor(params, tmp_path):
    name = "model.layers.3.post_feedforward_layernorm.weight"
    path = hugging_face_with(tmp_path / "hf", without=name)
    with pytest.raises(checkpoints.CheckpointError, match=re.escape(f"no parameter '{name}'")) as e:
        checkpoints.find(str(path), CONFIG)
    assert_one_line(e, str(path), "expected")

    name = "layer_3/post_ffw_norm/scale"
    path = orbax_with(params, tmp_path / "orbax", without=name)
    with pytest.raises(checkpoints.CheckpointError, match=re.escape(f"no parameter '{name}'")) as e:
        checkpoints.find(str(path), small.CONFIG)
    assert_one_line(e, str(path), "expected")


def test_an_extra_tensor(params, tmp_path):
    name = "model.layers.3.self_attn.q_norm.weight"
    path = hugging_face_with(tmp_path / "hf", extra=name)
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(path), CONFIG)
    assert_one_line(error, str(path), name, "model.size")

    name = "layer_3/attn/_query_norm/scale"
    path = orbax_with(params, tmp_path / "orbax", extra=name)
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.find(str(path), small.CONFIG)
    assert_one_line(error, str(path), name, "model.size")


# -- eight devices ---------------------------------------------------------------------------------

PROGRAM = """
import dataclasses, math, pathlib, sys
import jax
import numpy as np
from flax import traverse_util
from pkpo_jax import parallel
from pkpo_jax.policy import checkpoints, hugging_face
from tests.policy import hf_golden
from tests.policy import test_checkpoints as t

directory = pathlib.Path(sys.argv[1])
mesh = parallel.make_mesh((2, 2, 2))
assert mesh.size == 8
part, sizes, read = hugging_face.Parameters._part, [], []

class Counted:
    def __init__(self, tensor):
        self.tensor = tensor
    def __getitem__(self, index):
        x = self.tensor[index]
        read.append(x.size)
        return x

def recording_part(self, path, index):
    read.clear()
    x = part(self, path, index)
    sizes.append((path, x.size))
    assert sum(read) <= x.size, path
    return x

def check(path, config):
    one, like = t.read(path, config), t.like(config, mesh=mesh)
    sizes.clear()
    checkpoint = checkpoints.find(str(path), config)
    if path == hf_golden.PATH:
        checkpoint._tensors = {name: Counted(x) for name, x in checkpoint._tensors.items()}
    eight = checkpoint.read(like)
    t.assert_equal(jax.device_get(eight), jax.device_get(one))
    assert jax.tree.map(lambda x: x.sharding, eight) == jax.tree.map(lambda x: x.sharding, like)
    return eight, traverse_util.flatten_dict(like)

hugging_face.Parameters._part = recording_part
for name in ("2b", "9b"):
    # One of the table's four parts ends among the rows without a token, and one holds only those.
    config = dataclasses.replace(hf_golden.CONFIGS[name], num_embed=80)
    params, like = check(hf_golden.PATH, config)
    assert {path for path, _ in sizes} == set(like)
    whole = {path: math.prod(x.shape) for path, x in like.items()}
    for path, size in sizes:
        assert size == math.prod(like[path].sharding.shard_shape(like[path].shape)), path
    split = {path[-2:] for path, size in sizes if size < whole[path]}
    assert ("embedder", "input_embedding") in split and ("mlp", "linear") in split, split

for layout in t.LAYOUTS:
    path = t.saved(directory / layout.__name__, layout(params))
    t.assert_equal(jax.device_get(check(path, config)[0]), jax.device_get(params))
checkpoints.write(str(directory / "written"), params)
t.assert_equal(jax.device_get(check(directory / "written", config)[0]), jax.device_get(params))
"""


def test_eight_devices_read_their_parts(tmp_path):
    """Checks that eight devices read the values of one, each only the part of a file it needs."""
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_only_reads_that_are_abandoned_are_kept_quiet(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: shown.append(one.exc_value))
    others = [RuntimeError("Event loop is full"), ValueError("Event loop is closed"), None]
    with checkpoints.without_abandoned_reads():
        for error in (RuntimeError("Event loop is closed"), *others):
            sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert shown == others
