"""The safetensors and the config.json of a directory of Hugging Face, as a text model has them."""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np
from etils import epath

from pkpo_jax.policy import checkpoint_checks as checks

# Text models, and the text part of models that also read images, have these prefixes.
_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
_IMAGES = ("vision_tower.", "multi_modal_projector.")


class Tensor(Protocol):
    """A tensor in a file, of which parts are read by slicing."""

    def get_shape(self) -> Any: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


def read(directory: epath.Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Opens the safetensors of a checkpoint, without reading their values.

    Returns:
      The tensors, with the names that a text model has ("model.layers.0..."; those of the part for
      images are left out), and what config.json says, or {} without one.

    Raises:
      checks.CheckpointError: a file is missing, cannot be read or does not belong there.
    """
    from safetensors import safe_open

    tensors = {}
    for file in _files(directory):
        try:
            opened = safe_open(str(file), framework="np")
        except Exception as e:
            raise checks.CheckpointError(
                f"{file} cannot be read as safetensors ({e}); download it again."
            ) from None
        tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    config = directory / "config.json"
    return _of_text(tensors), _read_json(config) if config.exists() else {}


def _of_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of the text model, named as a model without images names them."""
    prefix = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in tensors), "model.")
    renamed = {}
    for name, tensor in tensors.items():
        if any(name.removeprefix("model.").startswith(part) for part in _IMAGES):
            continue
        if name.startswith(prefix):
            name = "model." + name.removeprefix(prefix)
        renamed[name.removeprefix("language_model.")] = tensor
    return renamed


def _files(directory: epath.Path) -> list[epath.Path]:
    """Returns the files that the index names, or the only file where there is no index.

    Raises:
      checks.CheckpointError: the directory holds other safetensors files, or one is missing.
    """
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        if len(files) > 1:
            raise checks.CheckpointError(
                f"{directory} holds {len(files)} safetensors files and no {index.name}, which "
                "lists the files of the checkpoint; download it, or keep one file."
            )
        return files
    named = set(_read_json(index).get("weight_map", {}).values())
    for file in files:
        if file.name not in named:
            raise checks.CheckpointError(
                f"{directory} holds {file.name}, which {index.name} does not name; remove it "
                "if it is no part of the checkpoint, or the index if that is another's."
            )
    missing = sorted(named - {file.name for file in files})
    if missing:
        raise checks.CheckpointError(
            f"{directory} holds no {missing[0]}, which {index.name} names; download it."
        )
    return files


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as e:
        raise checks.CheckpointError(
            f"{path} cannot be read as JSON ({e}); download it again."
        ) from None
