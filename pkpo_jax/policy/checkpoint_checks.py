"""Checks of parameters that were found in a checkpoint against those that a network has."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from pkpo_jax.policy.sizes import SIZES, GemmaConfig

# The names on the way to a parameter in a tree of dicts.
Path = tuple[str, ...]


class CheckpointError(ValueError):
    """An error for a checkpoint that is missing, damaged, or of another network."""


def flatten(tree: Any) -> dict[Path, Any]:
    """Returns the leaves of a tree of dicts by their paths."""
    return traverse_util.flatten_dict(tree)


def size_of(layers: int, width: int) -> str | None:
    """Returns the name in SIZES of the network of so many layers and this width, or None."""
    for name, config in SIZES.items():
        if (config.num_layers, config.embed_dim) == (layers, width):
            return name
    return None


def check_size(where: Any, layers: int, width: int, config: GemmaConfig) -> None:
    """Raises CheckpointError if a checkpoint is that of another size than `config`."""
    name = size_of(layers, width)
    if name and (layers, width) != (config.num_layers, config.embed_dim):
        raise CheckpointError(
            f"{where} is of the size {name} ({layers} layers of width {width}), where model.size "
            f"has {config.num_layers} layers of width {config.embed_dim}; set "
            f"model.size={name!r}, or leave it 'auto'."
        )


def check_shapes(
    where: Any, expected: dict[Any, tuple[int, ...]], found: dict[Any, tuple[int, ...]]
) -> None:
    """Raises CheckpointError unless exactly the expected parameters exist, with their shapes."""
    name = lambda key: key if isinstance(key, str) else "/".join(key)  # noqa: E731
    for key, shape in expected.items():
        if key not in found:
            some = ", ".join(sorted(map(name, found))[:3]) or "nothing"
            raise CheckpointError(
                f"{where} has no parameter {name(key)!r} (it holds {some}, ...); expected a "
                "Gemma checkpoint of the size that model.size says."
            )
        if tuple(found[key]) != shape:
            raise CheckpointError(
                f"{where}: {name(key)!r} has shape {tuple(found[key])}, where the network of "
                f"model.size has {shape}; set model.size to the checkpoint's."
            )
    extra = sorted(name(key) for key in found if key not in expected)
    if extra:
        raise CheckpointError(
            f"{where} holds {extra[0]!r}, which the network of model.size does not have; set "
            "model.size to the checkpoint's."
        )


def check_dtypes(where: Any, found: dict[Any, Any]) -> None:
    """Refuses quantised parameters, whose numbers mean nothing without their scales."""
    for key, dtype in found.items():
        if str(dtype).lower() not in _DTYPES:
            name = key if isinstance(key, str) else "/".join(key)
            raise CheckpointError(
                f"{where}: {name!r} has dtype {dtype}; expected float32, bfloat16 or float16; give "
                "a checkpoint that is not quantised."
            )


_DTYPES = ("float32", "bfloat16", "float16", "f32", "bf16", "f16")


def check_finite(where: Any, params: Any) -> Any:
    """Returns the parameters, or raises CheckpointError if any value is not finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params)
    for path, good in flatten(finite).items():
        if not good:
            raise CheckpointError(
                f"{where}: {'/'.join(path)!r} holds NaN or infinity; download or write it again."
            )
    return params
