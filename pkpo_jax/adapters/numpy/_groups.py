"""Checks of the arguments that every estimator takes, as `pkpo_jax.estimators` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.mixtures import Mixture


def as_group(values: ArrayLike, name: str) -> np.ndarray:
    """Returns `values` as an array with a non-empty last dimension, or raises ValueError."""
    values = np.asarray(values)
    if values.ndim < 1 or values.shape[-1] < 1:
        raise ValueError(f"{name} has shape {values.shape}; expected [..., n] with n >= 1 samples.")
    if _is_extension(values.dtype):
        values = values.astype(np.float64)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {values.dtype}; expected real numbers.")
    return values


def _is_extension(dtype: np.dtype) -> bool:
    """Returns whether a dtype is a number type that NumPy lacks, such as bfloat16 of ml_dtypes."""
    return dtype.kind == "V" and dtype.type is not np.void


def as_rewards(
    rewards: ArrayLike, where: ArrayLike | None, name: str = "rewards"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rewards [..., n] in float64, 0 where they are left out, and the mask [..., n]."""
    rewards = as_group(rewards, name).astype(np.float64)
    valid = as_mask(where, rewards.shape)
    return np.where(valid, rewards, 0.0), valid


def as_mask(where: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Returns `where` as a bool array of this shape, all True if None, or raises ValueError."""
    if where is None:
        return np.ones(shape, bool)
    where = np.asarray(where)
    if where.dtype != bool or where.shape != shape:
        raise ValueError(
            f"where is {where.dtype}{where.shape}; expected bool{shape}, like the rewards."
        )
    return where


def as_correct(correct: ArrayLike, where: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns two [..., n] bool arrays: which samples are right and valid, and which are valid.

    Raises:
      ValueError: shapes that do not fit, or a valid sample that is neither 0 nor 1.
    """
    correct = as_group(correct, "correct")
    valid = as_mask(where, correct.shape)
    wrong = correct[valid & (correct != 0) & (correct != 1)]
    if wrong.size:
        raise ValueError(
            f"correct holds {float(wrong[0]):g}; expected 0 or 1 (or bool) for each sample. From "
            "rewards, compute correct = rewards >= 1."
        )
    return valid & (correct != 0), valid


def as_classes(classes: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Returns integer `classes` as an array of this shape, or raises ValueError."""
    classes = np.asarray(classes)
    if classes.shape != shape or classes.dtype.kind not in "iu":
        raise ValueError(
            f"classes is {classes.dtype}{classes.shape}; expected integers of shape {shape}, equal "
            "for equal answers of a group."
        )
    return classes


def check_k(
    k: ArrayLike, batch: tuple[int, ...], n: int, largest: int | None, smallest: int = 1
) -> np.ndarray:
    """Returns k as int64 broadcast to the shape `batch`.

    Args:
      k: int or integer array that broadcasts against `batch`.
      batch: the leading dimensions of the rewards.
      n: size of the groups, for the message.
      largest: the largest k, or None for no upper bound.
      smallest: the smallest k.

    Raises:
      ValueError: k out of range, or a shape that does not broadcast.
      TypeError: k is not an integer.
    """
    k = np.asarray(k)
    if k.dtype.kind not in "iu":
        raise TypeError(f"k has dtype {k.dtype}; expected an integer, or an array of integers.")
    if np.any(k < smallest) or (largest is not None and np.any(k > largest)):
        bound = "" if largest is None else f" <= {largest}"
        raise ValueError(f"k={k}; expected {smallest} <= k{bound} for groups of n={n} samples.")
    try:
        return np.broadcast_to(k, batch).astype(np.int64)
    except ValueError:
        raise ValueError(
            f"k has shape {k.shape}; expected one that broadcasts against {batch}, the leading "
            "dimensions of the rewards (one k a prompt)."
        ) from None


def components(
    k: ArrayLike | Mixture, batch: tuple[int, ...], n: int, largest: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the components (k, weight) of a mixture, or of a number with the weight 1.

    Each k is an int64 array of the shape `batch`, and each weight broadcasts against it.

    Raises:
      ValueError: k out of range, or shapes that do not fit.
      TypeError: k is not an integer.
    """
    if not isinstance(k, Mixture):
        return [(check_k(k, batch, n, largest), np.ones(()))]
    ks, weights = np.asarray(k.ks), np.asarray(k.weights, np.float64)
    if min(ks.ndim, weights.ndim) < 1 or ks.shape[-1] != weights.shape[-1]:
        raise ValueError(
            f"the mixture has ks of shape {ks.shape} and weights of shape {weights.shape}; "
            "expected [..., C] for both, with C values of k and the weight of each."
        )
    try:
        np.broadcast_to(weights[..., 0], batch)
    except ValueError:
        raise ValueError(
            f"the mixture has weights of shape {weights.shape}; expected leading dimensions that "
            f"broadcast against {batch}, those of the rewards."
        ) from None
    return [(check_k(ks[..., c], batch, n, largest), weights[..., c]) for c in range(ks.shape[-1])]


def count(valid: np.ndarray) -> np.ndarray:
    """Returns [..., 1] int64, the number of valid samples, at least 1."""
    return np.maximum(valid.sum(-1, keepdims=True), 1)


def mean(x: Any, among: np.ndarray) -> np.ndarray:
    """Returns [..., 1], the mean of `x` over the samples of `among`, or 0 if there are none."""
    return np.where(among, x, 0.0).sum(-1, keepdims=True) / count(among)
