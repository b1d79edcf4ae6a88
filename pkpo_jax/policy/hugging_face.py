"""Parameters in the layout of Hugging Face: safetensors, config.json and the tokenizer's files.

The layout is that of google/gemma-2-*: matrices are [out, in], the heads of a projection lie in one
axis, the embedding table has one row a token, and the head is tied to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pkpo_jax.policy import gemma2

TABLE = "model.embed_tokens.weight"
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
    files = _write_tensors(directory, _tensors(params, config), largest_file)
    if len(files) > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        size = dtype.itemsize * sum(x.size for x in jax.tree.leaves(params))
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", _config_json(config, str(dtype)))
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


def _write_json(path: epath.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
