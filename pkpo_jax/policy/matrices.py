"""The matrices of a layer, and the products of activations with them.

The axes of activations are p (prompts), n (responses), t (tokens) and one or two of d (embedding),
f (hidden units), m (query heads), k (key heads) and h (units of a head). The axis c has the size 2:
keys and values, or the two halves of `gating_einsum`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pkpo_jax.policy.checkpoint_checks import Path
from pkpo_jax.policy.sizes import GemmaConfig


class Axes(NamedTuple):
    """The axes of an einsum of activations with a matrix.

    The result has the axes of the activations and then those of the matrix, less those that are
    summed over, because products give them in this order without a copy.
    """

    inputs: str
    matrix: str

    @property
    def summed(self) -> str:
        """The axes that are summed over, in the order of the matrix.

        >>> Axes("pntmh", "mhd").summed
        'mh'
        """
        return "".join(axis for axis in self.matrix if axis in self.inputs)

    @property
    def kept(self) -> str:
        """The other axes of the matrix."""
        return "".join(axis for axis in self.matrix if axis not in self.inputs)

    @property
    def out(self) -> str:
        """The axes of the result."""
        return "".join(axis for axis in self.inputs if axis not in self.summed) + self.kept

    @property
    def summed_first(self) -> list[int]:
        """The order of the matrix's axes in which those that are summed over come first.

        >>> Axes("pntd", "mdh").summed_first
        [1, 0, 2]
        """
        return [self.matrix.index(axis) for axis in self.summed + self.kept]


class SummedFirst(NamedTuple):
    """A matrix whose axes are in the order `Axes.summed_first`."""

    matrix: jax.Array


def axes(config: GemmaConfig) -> dict[Path, Axes]:
    """Returns the axes of each matrix of a layer, by its path."""
    gating = "cfd" if config.transpose_gating_einsum else "cdf"
    return {
        ("attn", "q_einsum", "w"): Axes("pntd", "mdh"),
        ("attn", "kv_einsum", "w"): Axes("pntd", "ckdh"),
        ("attn", "attn_vec_einsum", "w"): Axes("pntmh", "mhd"),
        ("mlp", "gating_einsum"): Axes("pntd", gating),
        ("mlp", "linear"): Axes("pntf", "fd"),
    }


def sizes(config: GemmaConfig, names: str) -> list[int]:
    """Returns the sizes of axes of matrices."""
    c = config
    all_sizes = {"c": 2, "d": c.embed_dim, "f": c.hidden_dim, "h": c.head_dim}
    all_sizes |= {"m": c.num_heads, "k": c.num_kv_heads}
    return [all_sizes[name] for name in names]


def fan_in(config: GemmaConfig, of: Axes) -> int:
    """Returns over how many inputs a product sums."""
    return math.prod(sizes(config, of.summed))


def product(of: Axes, x: jax.Array, matrix: jax.Array | SummedFirst) -> jax.Array:
    """Computes the einsum of activations x with a matrix, in the dtype of x."""
    names = of.matrix
    if isinstance(matrix, SummedFirst):
        names, matrix = of.summed + of.kept, matrix.matrix
    # An einsum would choose an order of the summed axes itself, and copy the matrix for it.
    pairs = [[string.index(axis) for axis in of.summed] for string in (of.inputs, names)]
    return jnp.tensordot(x, matrix.astype(x.dtype), pairs)
