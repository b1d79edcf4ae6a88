"""Answer classes: which samples of a group gave equal answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def as_classes(classes: jax.typing.ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Returns integer `classes` as an array of this shape, or raises ValueError.

    Classes of 64 bits that are no JAX arrays are renumbered, because `jnp.asarray` would wrap them
    to 32 bits.
    """
    if not isinstance(classes, jax.Array):
        classes = np.asarray(classes)
        if classes.dtype.kind in "iu" and classes.dtype.itemsize > 4:
            classes = np.unique(classes, return_inverse=True)[1].reshape(classes.shape)
            classes = classes.astype(np.int32)
    classes = jnp.asarray(classes)
    if classes.shape != shape or not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(
            f"classes is {classes.dtype}{classes.shape}; expected integers of shape {shape}, equal "
            "for equal answers of a group."
        )
    return classes


def class_sizes(classes: jax.Array, among: jax.Array) -> jax.Array:
    """Returns [..., n] float32, how many samples of `among` share the class of each sample.

    Args:
      classes: [..., n] integers.
      among: [..., n] bool.
    """
    same = (classes[..., :, None] == classes[..., None, :]) & among[..., None, :]
    return same.sum(-1, dtype=jnp.float32)


def mean(x: jax.Array, among: jax.Array) -> jax.Array:
    """Returns [..., 1], the mean of `x` over the samples of `among`, or 0 if there are none."""
    count = jnp.maximum(among.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    return jnp.where(among, x, 0.0).sum(-1, keepdims=True) / count
