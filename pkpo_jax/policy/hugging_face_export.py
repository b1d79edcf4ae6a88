"""Writes parameters in the layout of Hugging Face, for `transformers` and others to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pkpo_jax.policy import gemma, gguf
from pkpo_jax.policy.hugging_face import HEAD_NORMS, NORMS, TABLE, describe

# A file holds at most this many bytes, as files that `transformers` writes.
_LARGEST_FILE = 5 * 10**9
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
# These files belong to a tokenizer too.
_BESIDE = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_GENERATION = "generation_config.json"


def write(
    directory: epath.Path,
    params: Any,
    config: gemma.GemmaConfig,
    *,
    tokenizer: str = "",
    beside: epath.Path | None = None,
    stop_tokens: Sequence[int] = (),
    largest_file: int = _LARGEST_FILE,
) -> None:
    """Writes parameters such that `transformers.AutoModelForCausalLM` loads them.

    Args:
      directory: where to write; it must not exist yet.
      params: parameters in memory, float32 or bfloat16; the files have the same dtype.
      config: the network that they belong to.
      tokenizer: path of a tokenizer.model to copy, or of a GGUF file to write it from, or "".
      beside: a directory of Hugging Face whose tokenizer and generation settings are copied, or
        None.
      stop_tokens: the ids at which generation stops. If there are none, it stops where that of
        `beside` does, or at the end of a text or of a turn.
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
    generation = {
        "bos_token_id": 2,
        "eos_token_id": [1, 107 if config.generation == 2 else 106],
        "pad_token_id": 0,
        "do_sample": True,
    }
    if beside is not None and (beside / _GENERATION).exists():
        generation = json.loads((beside / _GENERATION).read_text())
    if stop_tokens:
        generation["eos_token_id"] = list(stop_tokens)
    _write_json(directory / _GENERATION, generation)
    if beside is not None:
        for name in _BESIDE:
            if (beside / name).exists():
                (beside / name).copy(directory / name, overwrite=True)
    if tokenizer:
        place, to = epath.Path(tokenizer).expanduser(), directory / "tokenizer.model"
        if place.suffix == ".gguf":
            gguf.write_tokenizer(place, to)
        else:
            place.copy(to, overwrite=True)
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


def _tensors(params: Any, config: gemma.GemmaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor and its name, fetching one layer at a time."""
    yield TABLE, np.asarray(params["embedder"]["input_embedding"][: config.vocab_size])
    for layer in range(config.num_layers):
        one = jax.device_get(jax.tree.map(lambda x, i=layer: x[i], params["layers"]))
        for name, x in _layer_tensors(one, config):
            yield f"model.layers.{layer}.{name}.weight", x
    yield "model.norm.weight", np.asarray(params["final_norm"]["scale"])


def _layer_tensors(layer: Any, config: gemma.GemmaConfig) -> Iterator[tuple[str, np.ndarray]]:
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
    if config.use_qk_norm:
        for ours, theirs in HEAD_NORMS.items():
            yield theirs, attention[ours]["scale"]


def _config_json(config: gemma.GemmaConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": [f"Gemma{config.generation}ForCausalLM"],
        **describe(config),
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192 if config.generation == 2 else 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": str(jnp.dtype(dtype)),
    }


def _write_json(path: epath.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
