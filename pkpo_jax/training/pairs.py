"""The layout of version 0.1, which runs that it started have in their checkpoints.

It stacked the parameters of local and global layers apart, "layers/local" and "layers/global", of
[layers / 2, ...] each, where they are now in one array [layers, ...]. Checkpoints hold the state of
the optimiser and the checksums in that layout.
"""

from __future__ import annotations

from typing import Any

import jax

from pkpo_jax.policy import gemma

_FIRST, _SECOND = "local", "global"


def split(tree: Any) -> Any:
    """Returns a tree of parameters or of optimiser states with its layers in pairs."""
    return _map_layers(tree, _split)


def join(tree: Any) -> Any:
    """Inverts `split`."""
    return _map_layers(
        tree, lambda layers: jax.tree.map(gemma.interleave, layers[_FIRST], layers[_SECOND])
    )


def are_in(tree: Any) -> bool:
    """Returns whether a tree of optimiser states, or of its metadata, has its layers in pairs."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return any(_FIRST in [getattr(part, "key", None) for part in path] for path, _ in paths)


def _split(layers: Any) -> dict[str, Any]:
    return {
        _FIRST: jax.tree.map(lambda x: x[0::2], layers),
        _SECOND: jax.tree.map(lambda x: x[1::2], layers),
    }


def _map_layers(tree: Any, f: Any) -> Any:
    """Replaces the value of each key "layers" in a tree by f(value)."""

    def has_layers(node: Any) -> bool:
        return isinstance(node, dict) and "layers" in node

    return jax.tree.map(
        lambda node: node | {"layers": f(node["layers"])} if has_layers(node) else node,
        tree,
        is_leaf=has_layers,
    )
