"""Parameters in the layout of Hugging Face: safetensors, config.json and the tokenizer's files.

The layout is that of google/gemma-2-*: matrices are [out, in], the heads of a projection lie in one
axis, the embedding table has one row a token, and the head is tied to it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from pkpo_jax.policy import checkpoint_checks as checks
from pkpo_jax.policy import gemma2
from pkpo_jax.policy.checkpoint_checks import Path

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# A file holds at most this many bytes, as files that `transformers` writes.
_LARGEST_FILE = 5 * 10**9
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
# These files belong to a tokenizer too, or say how text is generated.
_BESIDE = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


class Files:
    """A checkpoint of google/gemma-2-* on Hugging Face, in safetensors.

    Its matrices are [out, in], all heads of a matrix share one axis, and the embedding table has
    one row for each token.
    """

    def __init__(self, path: epath.Path, config: gemma2.Gemma2Config) -> None:
        from safetensors import safe_open

        self._path, self._config = path, config
        self._tensors = {}
        for file in self._files():
            try:
                opened = safe_open(str(file), framework="np")
            except Exception as e:
                raise checks.CheckpointError(
                    f"{file} cannot be read as safetensors ({e}); download it again."
                ) from None
            self._tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        found = {name: tuple(x.get_shape()) for name, x in self._tensors.items()}
        expected = self._expected()
        if HEAD in found:
            expected[HEAD] = expected[TABLE]
        checks.check_shapes(path, expected, found)
        self._check_config()
        checks.check_dtypes(path, {name: x.get_dtype() for name, x in self._tensors.items()})

    def _files(self) -> list[epath.Path]:
        """Returns the files that the index names, or the only file where there is no index.

        Raises:
          checks.CheckpointError: the directory holds other safetensors files, or one is missing.
        """
        files = sorted(self._path.glob("*.safetensors"))
        index = self._path / "model.safetensors.index.json"
        if not index.exists():
            if len(files) > 1:
                raise checks.CheckpointError(
                    f"{self._path} holds {len(files)} safetensors files and no {index.name}, which "
                    "lists the files of the checkpoint; download it, or keep one file."
                )
            return files
        named = set(_read_json(index).get("weight_map", {}).values())
        for file in files:
            if file.name not in named:
                raise checks.CheckpointError(
                    f"{self._path} holds {file.name}, which {index.name} does not name; remove it "
                    "if it is no part of the checkpoint, or the index if that is another's."
                )
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise checks.CheckpointError(
                f"{self._path} holds no {missing[0]}, which {index.name} names; download it."
            )
        return files

    def _check_config(self) -> None:
        """Compares config.json, if the checkpoint has one, with the network of model.size."""
        path = self._path / "config.json"
        if not path.exists():
            return
        theirs, ours = _read_json(path), describe(self._config)
        # Newer versions of transformers keep the base frequency in a section for the rotation.
        theirs = {**(theirs.get("rope_parameters") or {}), **theirs}
        for name, value in ours.items():
            if name in theirs and theirs[name] != value:
                raise checks.CheckpointError(
                    f"{path}: {name} is {theirs[name]!r}, where the network of model.size has "
                    f"{value!r}; set model.size to the checkpoint's."
                )

    def _expected(self) -> dict[str, tuple[int, ...]]:
        c = self._config
        shapes = {
            "self_attn.q_proj": (c.num_heads * c.head_dim, c.embed_dim),
            "self_attn.k_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.v_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.o_proj": (c.embed_dim, c.num_heads * c.head_dim),
            "mlp.gate_proj": (c.hidden_dim, c.embed_dim),
            "mlp.up_proj": (c.hidden_dim, c.embed_dim),
            "mlp.down_proj": (c.embed_dim, c.hidden_dim),
            **dict.fromkeys(NORMS.values(), (c.embed_dim,)),
        }
        layers: dict[str, tuple[int, ...]] = {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(c.num_layers)
            for name, shape in shapes.items()
        }
        return layers | {
            TABLE: (c.vocab_size, c.embed_dim),
            "model.norm.weight": (c.embed_dim,),
        }

    def read(self, like: Any) -> Any:
        self._check_head()

        def place(path: Path, x: jax.ShapeDtypeStruct) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                index = index or (slice(None),) * len(x.shape)
                index = tuple(
                    slice(*i.indices(size)[:2]) for i, size in zip(index, x.shape, strict=True)
                )
                return self._part(path, index).astype(x.dtype, copy=False)

            return jax.make_array_from_callback(x.shape, x.sharding, part)

        flat = checks.flatten(like)
        params = traverse_util.unflatten_dict({path: place(path, x) for path, x in flat.items()})
        return checks.check_finite(self._path, params)

    def _check_head(self, rows: int = 8192) -> None:
        """Refuses a head that differs from the embedding table, which serves as the head here."""
        if HEAD not in self._tensors:
            return
        head, table = self._tensors[HEAD], self._tensors[TABLE]
        for start in range(0, self._config.vocab_size, rows):
            part = slice(start, min(start + rows, self._config.vocab_size))
            if not np.array_equal(head[part], table[part]):
                raise checks.CheckpointError(
                    f"{self._path}: {HEAD!r} differs from {TABLE!r}; Gemma-2 has one "
                    "table for both, so that this checkpoint would become another network."
                )

    def _part(self, path: Path, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of the parameter at `path` in memory from the file."""
        if path[0] == "embedder":
            rows, columns = index
            # The file lacks the rows past the vocabulary, which belong to no token, so they are 0.
            start, stop = (min(i, self._config.vocab_size) for i in (rows.start, rows.stop))
            table = np.zeros((0, columns.stop - columns.start), np.float32)
            if start < stop:
                table = self._tensors[TABLE][start:stop, columns]
            return np.pad(table, ((0, rows.stop - rows.start - len(table)), (0, 0)))
        if path[0] == "final_norm":
            return self._tensors["model.norm.weight"][index[0]]
        place = gemma2.KINDS.index(path[1])
        pairs = range(index[0].start, index[0].stop)
        return np.stack([self._layer(2 * pair + place, path[2:], *index[1:]) for pair in pairs])

    def _layer(self, layer: int, path: Path, *index: slice) -> np.ndarray:
        size = self._config.head_dim

        def tensor(name: str) -> Any:
            return self._tensors[f"model.layers.{layer}.{name}.weight"]

        def heads(i: slice) -> slice:
            return slice(i.start * size, i.stop * size)

        match path:
            case ("attn", "q_einsum", "w"):
                rows, columns, within = index
                x = tensor("self_attn.q_proj")[heads(rows), columns]
                return x.reshape(-1, size, x.shape[-1]).swapaxes(1, 2)[..., within]
            case ("attn", "kv_einsum", "w"):
                which, rows, columns, within = index
                names = ("self_attn.k_proj", "self_attn.v_proj")[which]
                x = np.stack([tensor(name)[heads(rows), columns] for name in names])
                return x.reshape(len(x), -1, size, x.shape[-1]).swapaxes(2, 3)[..., within]
            case ("attn", "attn_vec_einsum", "w"):
                rows, within, columns = index
                x = tensor("self_attn.o_proj")[columns, heads(rows)]
                return x.T.reshape(-1, size, len(x))[:, within]
            case ("mlp", "gating_einsum"):
                transposed = self._config.transpose_gating_einsum
                which, *rest = index
                rows, columns = rest if transposed else rest[::-1]
                names = ("mlp.gate_proj", "mlp.up_proj")[which]
                x = np.stack([tensor(name)[rows, columns] for name in names])
                return x if transposed else x.swapaxes(1, 2)
            case ("mlp", "linear"):
                rows, columns = index
                return tensor("mlp.down_proj")[columns, rows].T
            case (norm, "scale"):
                # Both networks scale by 1 + the parameter, so it is read as it is.
                return tensor(NORMS[norm])[index[0]]
        raise KeyError(path)


def write(
    directory: epath.Path,
    params: Any,
    config: gemma2.Gemma2Config,
    *,
    tokenizer: str = "",
    beside: epath.Path | None = None,
    largest_file: int = _LARGEST_FILE,
) -> None:
    """Writes parameters such that `transformers.AutoModelForCausalLM` loads them.

    Args:
      directory: where to write; it must not exist yet.
      params: parameters in memory, float32 or bfloat16; the files have the same dtype.
      config: the network that they belong to.
      tokenizer: path of a tokenizer.model to copy, or "".
      beside: a directory of Hugging Face whose tokenizer and generation settings are copied, or
        None.
      largest_file: how many bytes of tensors a file holds at most, unless one tensor has more.
    """
    directory.mkdir(parents=True)
    dtype = params["embedder"]["input_embedding"].dtype
    _write_json(directory / "config.json", _config_json(config, str(dtype)))
    files = _write_tensors(directory, _tensors(params, config), largest_file)
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        # The files leave out the rows of the table that no token has.
        unused = (config.num_embed - config.vocab_size) * config.embed_dim
        size = dtype.itemsize * (sum(x.size for x in jax.tree.leaves(params)) - unused)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0, "do_sample": True},
    )
    if beside is not None:
        for name in _BESIDE:
            if (beside / name).exists():
                (beside / name).copy(directory / name, overwrite=True)
    if tokenizer:
        epath.Path(tokenizer).expanduser().copy(directory / "tokenizer.model", overwrite=True)
        settings = directory / "tokenizer_config.json"
        if not settings.exists():
            _write_json(settings, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True})


def _write_tensors(
    directory: epath.Path, tensors: Iterator[tuple[str, np.ndarray]], largest: int
) -> dict[str, list[str]]:
    """Writes tensors in files of at most `largest` bytes; returns the names in each file."""
    from safetensors.numpy import save_file

    written: list[list[str]] = []
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        # How many files there are is known at the end: they are named then.
        save_file(held, str(directory / f"{len(written)}.tmp"), metadata={"format": "pt"})
        written.append(list(held))
        held.clear()

    for name, x in tensors:
        if held and sum(y.nbytes for y in held.values()) + x.nbytes > largest:
            flush()
        held[name] = np.ascontiguousarray(x)
    flush()
    count, files = len(written), {}
    for i, names in enumerate(written):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        (directory / f"{i}.tmp").rename(directory / file)
        # safetensors makes files that only their owner reads.
        shutil.copymode(directory / "config.json", directory / file)
        files[file] = names
    return files


def _tensors(params: Any, config: gemma2.Gemma2Config) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor and its name, fetching one layer at a time."""
    yield TABLE, np.asarray(params["embedder"]["input_embedding"][: config.vocab_size])
    for layer in range(config.num_layers):
        stacked = params["layers"][gemma2.KINDS[layer % 2]]
        one = jax.device_get(jax.tree.map(lambda x, i=layer // 2: x[i], stacked))
        for name, x in _layer_tensors(one, config):
            yield f"model.layers.{layer}.{name}.weight", x
    yield "model.norm.weight", np.asarray(params["final_norm"]["scale"])


def _layer_tensors(layer: Any, config: gemma2.Gemma2Config) -> Iterator[tuple[str, np.ndarray]]:
    attention, mlp = layer["attn"], layer["mlp"]
    # The matrix goes from [heads, D, head_dim] to [heads * head_dim, D].
    joined = lambda w: w.swapaxes(1, 2).reshape(-1, w.shape[1])  # noqa: E731
    yield "self_attn.q_proj", joined(attention["q_einsum"]["w"])
    for name, w in zip("kv", attention["kv_einsum"]["w"], strict=True):
        yield f"self_attn.{name}_proj", joined(w)
    out = attention["attn_vec_einsum"]["w"]
    yield "self_attn.o_proj", out.reshape(-1, out.shape[-1]).T
    gating = mlp["gating_einsum"]
    gating = gating if config.transpose_gating_einsum else gating.swapaxes(1, 2)
    for name, w in zip(("gate", "up"), gating, strict=True):
        yield f"mlp.{name}_proj", w
    yield "mlp.down_proj", mlp["linear"].T
    # Both networks scale by 1 + the parameter, so it is written as it is.
    for ours, theirs in NORMS.items():
        yield theirs, layer[ours]["scale"]


def describe(config: gemma2.Gemma2Config) -> dict[str, Any]:
    """Returns the keys of config.json that say which network a checkpoint belongs to."""
    return {
        "model_type": "gemma2",
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "query_pre_attn_scalar": round(config.query_pre_attn_scalar**-2),
        "sliding_window": config.sliding_window_size,
        "attn_logit_softcapping": config.attn_logits_soft_cap,
        "final_logit_softcapping": config.final_logit_softcap,
        "rope_theta": config.rope_base_frequency,
    }


def _config_json(config: gemma2.Gemma2Config, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        **describe(config),
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": str(jnp.dtype(dtype)),
    }


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as e:
        raise checks.CheckpointError(
            f"{path} cannot be read as JSON ({e}); download it again."
        ) from None


def _write_json(path: epath.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
