"""Parameters in the layout of Hugging Face, and what its config.json says of a network.

Matrices are [out, in], the heads of a projection lie in one axis, the embedding table has one row a
token, and the head is tied to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from pkpo_jax.policy import checkpoint_checks as checks
from pkpo_jax.policy import gemma
from pkpo_jax.policy.checkpoint_checks import Path
from pkpo_jax.policy.safetensors_files import Tensor

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Gemma 3 has these too.
HEAD_NORMS = {"_query_norm": "self_attn.q_norm", "_key_norm": "self_attn.k_norm"}
# The tables of models that read images have at most this many rows past the vocabulary.
_IMAGE_ROWS = 64


class Parameters:
    """The parameters of a checkpoint with the tensors of Hugging Face.

    Args:
      path: where the checkpoint is, for messages.
      tensors: its tensors, by their names.
      described: what its config.json says, or {}.
      config: the network that the parameters are for.

    Raises:
      checks.CheckpointError: they are not those of `config`, or are quantised.
    """

    def __init__(
        self,
        path: epath.Path,
        tensors: Mapping[str, Tensor],
        described: dict[str, Any],
        config: gemma.GemmaConfig,
    ) -> None:
        self._path, self._tensors, self._config = path, tensors, config
        found = {name: tuple(x.get_shape()) for name, x in tensors.items()}
        checks.check_size(path, *dimensions(tensors), config)
        expected = self._expected()
        rows = found.get(TABLE, (0,))[0] - config.vocab_size
        if config.generation == 3 and 0 < rows <= _IMAGE_ROWS:
            expected[TABLE] = found[TABLE]
        if HEAD in found:
            expected[HEAD] = expected[TABLE]
        checks.check_shapes(path, expected, found)
        self._check_described(described)
        checks.check_dtypes(path, {name: x.get_dtype() for name, x in tensors.items()})

    def _check_described(self, described: dict[str, Any]) -> None:
        """Compares what config.json says with the network of model.size."""
        theirs = _normalised(described)
        for name, value in describe(self._config).items():
            # The shape of the table says how many tokens there are.
            if name != "vocab_size" and name in theirs and theirs[name] != value:
                raise checks.CheckpointError(
                    f"{self._path / 'config.json'}: {name} is {theirs[name]!r}, where the network "
                    f"of model.size has {value!r}; set model.size to the checkpoint's."
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
        if c.use_qk_norm:
            shapes |= dict.fromkeys(HEAD_NORMS.values(), (c.head_dim,))
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
                    f"{self._path}: {HEAD!r} differs from {TABLE!r}; Gemma has one "
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
        layers = range(index[0].start, index[0].stop)
        return np.stack([self._layer(layer, path[1:], *index[1:]) for layer in layers])

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
            case ("attn", norm, "scale"):
                return tensor(HEAD_NORMS[norm])[index[0]]
            case (norm, "scale"):
                # Both networks scale by 1 + the parameter, so it is read as it is.
                return tensor(NORMS[norm])[index[0]]
        raise KeyError(path)


def dimensions(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns the number of layers and the width of the network that has these tensors."""
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    width = tensors[TABLE].get_shape()[-1] if TABLE in tensors else 0
    return len(layers), width


def describe(config: gemma.GemmaConfig) -> dict[str, Any]:
    """Returns the keys of config.json that say which network a checkpoint belongs to."""
    described = {
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
        "rope_theta": config.global_base_frequency,
        "layer_types": [
            "full_attention" if config.is_global(layer) else "sliding_attention"
            for layer in range(config.num_layers)
        ],
    }
    if config.generation == 2:
        return described
    factor = config.global_scale_factor
    return described | {
        "model_type": "gemma3_text",
        "rope_local_base_freq": config.local_base_frequency,
        "rope_scaling": None if factor == 1.0 else {"rope_type": "linear", "factor": factor},
    }


def _normalised(found: dict[str, Any]) -> dict[str, Any]:
    """Returns what a config.json says, with the keys of `describe`.

    Models that read images have a section for the text. Newer versions of transformers keep what
    concerns the rotation in a section, with one more for each kind of layer in Gemma 3.
    """
    found = found | (found.get("text_config") or {})
    rotation = found.get("rope_parameters") or {}
    if "full_attention" not in rotation:
        return rotation | found
    everywhere, local = rotation["full_attention"], rotation.get("sliding_attention") or {}
    kept = {name: everywhere[name] for name in ("rope_type", "factor") if name in everywhere}
    newer = {
        "rope_theta": everywhere.get("rope_theta"),
        "rope_local_base_freq": local.get("rope_theta"),
        "rope_scaling": None if kept.get("rope_type") == "default" else kept,
    }
    return newer | found
