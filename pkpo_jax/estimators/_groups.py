"""Checks of the arguments that every estimator takes, and the chances that pass@k is built from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.mixtures import Mixture

# Rewards are scaled down before they are subtracted, so that the gap of two finite float32 values
# stays finite.
SCALE = 0.25


def unscale(x: jax.Array) -> jax.Array:
    """Returns `x / SCALE`, clipped to the finite float32 values."""
    limit = float(np.finfo(np.float32).max) * SCALE
    return jnp.clip(x, -limit, limit) / SCALE


def as_rewards(rewards: jax.typing.ArrayLike) -> jax.Array:
    """Returns rewards as a float32 group without a gradient, or raises ValueError.

    Rewards are constants of the policy gradient, so every estimator's gradient in them is zero.
    """
    return jax.lax.stop_gradient(as_group(rewards, "rewards").astype(jnp.float32))


def as_group(values: jax.typing.ArrayLike, name: str) -> jax.Array:
    """Returns `values` as an array with a non-empty last dimension, or raises ValueError.

    Host numbers of 64 bits become float32 here, because `jnp.asarray` would wrap large integers to
    32 bits.
    """
    if not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values)):
        values = np.asarray(values)
        if values.dtype.kind in "iuf" and values.dtype.itemsize > 4:
            values = values.astype(np.float32)
    values = jnp.asarray(values)
    if values.ndim < 1 or values.shape[-1] < 1:
        raise ValueError(f"{name} has shape {values.shape}; expected [..., n] with n >= 1 samples.")
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{name} has dtype {values.dtype}; expected real numbers.")
    return values


def as_mask(where: jax.typing.ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
    """Returns `where` as a bool array of this shape, all True if None, or raises ValueError."""
    if where is None:
        return jnp.ones(shape, bool)
    where = jnp.asarray(where)
    if where.dtype != bool or where.shape != shape:
        raise ValueError(
            f"where is {where.dtype}{where.shape}; expected bool{shape}, like the rewards."
        )
    return where


def as_correct(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Returns two [..., n] bool arrays: which samples are right and valid, and which are valid.

    Raises:
      ValueError: shapes that do not fit, or a valid sample that is neither 0 nor 1. Under jit, vmap
        and grad the values are unknown, and anything but 0 counts as right.
    """
    correct = as_group(correct, "correct")
    valid = as_mask(where, correct.shape)
    if correct.dtype != bool and _is_concrete(correct) and _is_concrete(valid):
        values = np.asarray(correct)[np.asarray(valid)]
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(
                f"correct holds {float(wrong[0]):g}; expected 0 or 1 (or bool) for each "
                "sample. From rewards, compute correct = rewards >= 1."
            )
    return valid & (correct != 0), valid


def _is_concrete(x: jax.Array) -> bool:
    """Returns whether this process can read the values of `x`."""
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable


def miss_ratios(correct: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns [..., n] chances, at index i that sample i+1 is wrong if the i before it were wrong.

    Samples are taken from the group at random, without replacement. The product of the first k
    ratios is C(n-c, k) / C(n, k) for c right samples of n. Past the number of valid samples, and in
    an empty group, the ratios are 1.
    """
    n = valid.sum(-1, keepdims=True, dtype=jnp.float32)
    wrong = n - correct.sum(-1, keepdims=True, dtype=jnp.float32)
    taken = jnp.arange(correct.shape[-1], dtype=jnp.float32)
    ratios = jnp.maximum(wrong - taken, 0) / jnp.maximum(n - taken, 1)
    return jnp.where(taken < n, ratios, 1.0)


def check_k(
    k: jax.typing.ArrayLike, batch: tuple[int, ...], n: int, largest: int | None, smallest: int = 1
) -> jax.Array:
    """Returns k broadcast to the shape `batch`.

    The range of an int or a NumPy value is checked here. Reading a JAX array would wait for the
    device, so its range is not checked and the estimators clip it instead.

    Args:
      k: int or integer array that broadcasts against `batch`.
      batch: the leading dimensions of the rewards.
      n: size of the groups, for the message.
      largest: the largest k, or None for no upper bound.
      smallest: the smallest k.

    Raises:
      ValueError: static k out of range, or a shape that does not broadcast.
      TypeError: k is not an integer.
    """
    if not isinstance(k, jax.Array):
        k = np.asarray(k)
        high = np.inf if largest is None else largest
        if k.dtype.kind in "iu" and not np.all((k >= smallest) & (k <= high)):
            bound = "" if largest is None else f" <= {largest}"
            raise ValueError(f"k={k}; expected {smallest} <= k{bound} for groups of n={n} samples.")
    if not jnp.issubdtype(k.dtype, jnp.integer):
        raise TypeError(f"k has dtype {k.dtype}; expected an integer, or an array of integers.")
    try:
        return jnp.broadcast_to(k, batch)
    except ValueError:
        raise ValueError(
            f"k has shape {k.shape}; expected one that broadcasts against {batch}, the leading "
            "dimensions of the rewards (one k a prompt)."
        ) from None


def as_mixture(
    k: jax.typing.ArrayLike | Mixture, batch: tuple[int, ...], n: int, largest: int
) -> Mixture:
    """Returns k, a number or a mixture, as a mixture whose C components are its first dimension.

    Args:
      k: int, integer array that broadcasts against `batch`, or a mixture of C of them.
      batch: the leading dimensions of the rewards.
      n: size of the groups, for the message.
      largest: the largest k.

    Returns:
      A mixture with `ks` int32 and `weights` float32, both [C, ...], where the other dimensions
      broadcast against `batch`.

    Raises:
      ValueError: static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.
    """
    if not isinstance(k, Mixture):
        check_k(k, batch, n, largest)
        ks = jnp.asarray(k)
        return Mixture(
            ks.reshape(1, *(1,) * (len(batch) - ks.ndim), *ks.shape), jnp.ones(1, jnp.float32)
        )
    ks, weights = (_stack(x) for x in k)
    if min(ks.ndim, weights.ndim) < 1 or ks.shape[-1] != weights.shape[-1]:
        raise ValueError(
            f"the mixture has ks of shape {ks.shape} and weights of shape {weights.shape}; "
            "expected [..., C] for both, with C values of k and the weight of each."
        )
    for c in range(ks.shape[-1]):
        check_k(ks[..., c], batch, n, largest)

    def first(x: np.ndarray | jax.Array, dtype: type) -> jax.Array:
        x = jnp.moveaxis(jnp.asarray(x), -1, 0)
        missing = (1,) * (len(batch) + 1 - x.ndim)
        return x.reshape(x.shape[0], *missing, *x.shape[1:]).astype(dtype)

    return Mixture(first(ks, jnp.int32), first(weights, jnp.float32))


def _stack(x: jax.typing.ArrayLike) -> np.ndarray | jax.Array:
    """Returns an array, on the host unless a part of it is a JAX array."""
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
        return jnp.asarray(x)
    return np.asarray(x)
