"""Sorted reward groups, from which every order-statistic estimator starts, and argument checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Rewards are scaled down before they are subtracted, so that the gap of two finite float32 values
# stays finite.
SCALE = 0.25


def unscale(x: jax.Array) -> jax.Array:
    """Returns `x / SCALE`, clipped to the finite float32 values."""
    limit = float(np.finfo(np.float32).max) * SCALE
    return jnp.clip(x, -limit, limit) / SCALE


@dataclasses.dataclass(frozen=True)
class SortedGroup:
    """Groups of n rewards along the last dimension, in ascending order with invalid samples last.

    Attributes:
      lowest: [...] smallest valid reward times SCALE, 0 in an empty group.
      gaps: [..., n-1] differences of neighbouring valid rewards times SCALE, 0 past the last one.
      rank: [n-1] the index j = 1..n-1 of a gap.
      v: [..., n-1] V_j = C(j-1, k-1) / C(count-1, k-1), 1 past the last valid gap.
      k: [..., 1] float32, clipped to the range that the estimator serves.
      count: [..., 1] float32, the number of valid samples, at least 1.
      place: [..., n] int32, the place of each sample in the ascending order, counted from 0. Equal
        samples all have the place of the first of them.
      valid: [..., n] bool, False for samples that are left out.
    """

    lowest: jax.Array
    gaps: jax.Array
    rank: jax.Array
    v: jax.Array
    k: jax.Array
    count: jax.Array
    place: jax.Array
    valid: jax.Array

    @property
    def w(self) -> jax.Array:
        """[..., n-1] W_j = C(j, k-1) / C(count-1, k-1) = V_{j+1}.

        Of the k-subsets that hold a given sample of a rank above j, W_j is the share whose other
        samples all have ranks up to j.
        """
        return jnp.concatenate([self.v[..., 1:], jnp.ones_like(self.v[..., :1])], -1)

    def loo_minus_one(self) -> tuple[jax.Array, jax.Array]:
        """Returns the coefficients (up, down) that `combine` takes for the baseline loo_minus_one.

        They are those of arXiv 2505.15201, equation 33, for k >= 2 and of RLOO for k = 1.
        """
        n, k = self.count, self.k
        others = n * jnp.maximum(n - 1, 1)
        up = jnp.where(k == 1, self.rank / others, k / n * self.w)
        down = jnp.where(k == 1, (n - self.rank) / others, 0.0)
        return up, down

    def combine(self, base: jax.typing.ArrayLike, up: jax.Array, down: jax.Array) -> jax.Array:
        """Returns base + sum_{j<i} up_j d_j - sum_{j>=i} down_j d_j for each sample of rank i.

        Args:
          base: [...] a constant of each group, times SCALE.
          up: [..., n-1] the coefficients of the gaps below a sample.
          down: [..., n-1] the coefficients of the gaps above a sample.

        Returns:
          [..., n] float32 in the units of the rewards and in the order that the samples were given
          in; 0 for invalid samples.
        """
        axis = self.gaps.ndim - 1
        no_pad = [(0, 0)] * axis
        gained = jnp.pad(jax.lax.cumsum(up * self.gaps, axis), [*no_pad, (1, 0)])
        lost = jnp.pad(jax.lax.cumsum(down * self.gaps, axis, reverse=True), [*no_pad, (0, 1)])
        ordered = unscale(jnp.asarray(base)[..., None] + gained - lost)
        return jnp.where(self.valid, jnp.take_along_axis(ordered, self.place, -1), 0.0)

    def max_at_k(self) -> jax.Array:
        """Returns [...] rho_k times SCALE, where rho_k = g_(1) + sum_j d_j (1 - C(j,k)/C(n,k))."""
        # C(n,k) - C(j,k) = sum_{i>=j} C(i,k-1), so the factor of d_j is (k/n) sum_{i>=j} W_i.
        w = jnp.where(self.rank < self.count, self.w, 0.0)
        reached = jax.lax.cumsum(w, w.ndim - 1, reverse=True) * self.k / self.count
        return self.lowest + (self.gaps * reached).sum(-1)


def sort(
    rewards: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None,
    largest_k: Callable[[Any], Any],
) -> SortedGroup:
    """Returns the groups of `rewards`, sorted, after checking the arguments.

    Args:
      rewards: [..., n] real rewards of any dtype.
      k: int or integer array that broadcasts against the leading dimensions.
      where: [..., n] bool, False for samples to leave out, or None.
      largest_k: maps the size of a group to the largest k that the estimator serves. It is called
        with an int for the check and with a float32 array to clip k.

    Raises:
      ValueError: static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.
    """
    rewards = as_rewards(rewards)
    n, batch = rewards.shape[-1], rewards.shape[:-1]
    k = check_k(k, batch, n, largest_k(n))
    valid = as_mask(where, rewards.shape)

    # Rewards are sorted as integers and their places found by bisection because XLA on CPU sorts a
    # single integer array many times faster than floats or than two arrays. The sort need not be
    # stable, for equal rewards have equal weights wherever they stand.
    key = jnp.where(valid, _ordered_bits(rewards), np.iinfo(np.int32).max)
    ordered_key = jax.lax.sort(key, is_stable=False)
    place = _bisect(ordered_key, key)
    ordered = jax.lax.bitcast_convert_type(_ordered_bits(ordered_key), jnp.float32)
    count = valid.sum(-1, keepdims=True)
    ordered = jnp.where(jnp.arange(n) < count, ordered, 0.0) * SCALE
    rank = jnp.arange(1, n, dtype=jnp.int32)
    gaps = jnp.where(rank < count, ordered[..., 1:] - ordered[..., :-1], 0.0)

    count = jnp.maximum(count, 1).astype(jnp.float32)
    k = jnp.clip(k[..., None].astype(jnp.float32), 1, jnp.maximum(largest_k(count), 1))
    rank = rank.astype(jnp.float32)
    ratios = jnp.where(rank < count, jnp.maximum(rank - k + 1, 0.0) / rank, 1.0)
    v = jax.lax.cumprod(ratios, ratios.ndim - 1, reverse=True)
    return SortedGroup(ordered[..., 0], gaps, rank, v, k, count, place, valid)


def _bisect(ordered: jax.Array, values: jax.Array) -> jax.Array:
    """Counts, for each of `values` [..., n], the elements of ascending `ordered` [..., n] below it.

    The bisection is written in batched gathers because a vmapped searchsorted does not compile for
    explicitly sharded arrays.
    """
    n = ordered.shape[-1]
    below = jnp.zeros_like(values)
    for bit in reversed(range(n.bit_length())):
        more = below + (1 << bit)
        last = jnp.take_along_axis(ordered, jnp.minimum(more, n) - 1, -1)
        below = jnp.where((more <= n) & (last < values), more, below)
    return below


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Maps float32 to int32 of the same order; applied to that int32, returns the float's bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & np.iinfo(np.int32).max)


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
    k: jax.typing.ArrayLike, batch: tuple[int, ...], n: int, largest: int | None
) -> jax.Array:
    """Returns k broadcast to the shape `batch`.

    The range of an int or a NumPy value is checked here. Reading a JAX array would wait for the
    device, so its range is not checked and the estimators clip it instead.

    Args:
      k: int or integer array that broadcasts against `batch`.
      batch: the leading dimensions of the rewards.
      n: size of the groups, for the message.
      largest: the largest k, or None for no upper bound.

    Raises:
      ValueError: static k out of range, or a shape that does not broadcast.
      TypeError: k is not an integer.
    """
    if not isinstance(k, jax.Array):
        k = np.asarray(k)
        high = np.inf if largest is None else largest
        if k.dtype.kind in "iu" and not np.all((k >= 1) & (k <= high)):
            bound = "" if largest is None else f" <= {largest}"
            raise ValueError(f"k={k}; expected 1 <= k{bound} for groups of n={n} samples.")
    if not jnp.issubdtype(k.dtype, jnp.integer):
        raise TypeError(f"k has dtype {k.dtype}; expected an integer, or an array of integers.")
    try:
        return jnp.broadcast_to(k, batch)
    except ValueError:
        raise ValueError(
            f"k has shape {k.shape}; expected one that broadcasts against {batch}, the leading "
            "dimensions of the rewards (one k a prompt)."
        ) from None
