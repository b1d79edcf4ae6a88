"""Meshes, and where parameters and batches live on them.

Axes: `data` and `fsdp` split the prompts of a batch, `fsdp` and `tensor` the parameters. The
programs are written for one device; XLA partitions them by these placements.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# First match wins; a pattern is searched in the path of a leaf, such as "layer_0/attn/q_einsum/w".
# The optimiser's moments have the parameter's path at their end, and so its placement.
RULES = (
    (r"embedder/input_embedding$", PartitionSpec("tensor", "fsdp")),
    (r"attn/q_einsum/w$", PartitionSpec("tensor", "fsdp", None)),
    (r"attn/kv_einsum/w$", PartitionSpec(None, "tensor", "fsdp", None)),
    (r"attn/attn_vec_einsum/w$", PartitionSpec("tensor", None, "fsdp")),
    (r"mlp/gating_einsum$", PartitionSpec(None, "tensor", "fsdp")),
    (r"mlp/linear$", PartitionSpec("tensor", "fsdp")),
    (r"", PartitionSpec()),
)


def make_mesh(shape: tuple[int, int, int]) -> Mesh:
    """A mesh of all devices, (data, fsdp, tensor)."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def placements(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of parameters, or of a state that holds them, by RULES.

    A dimension that its axis does not divide stays whole.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, np.shape(leaf), strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree_util.tree_map_with_path(place, tree)


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Places parameters, or a state that holds them, by RULES."""
    return jax.device_put(tree, placements(tree, mesh))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Places arrays [prompts, ...] with their prompts split over data and fsdp."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
