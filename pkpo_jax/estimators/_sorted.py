"""Sorted reward groups, from which every estimator built on order statistics starts.

Let g_(1) <= ... <= g_(n) be the rewards of a group, and d_j = g_(j+1) - g_(j) >= 0 their gaps. Each
such estimator gives the sample of rank i the weight

    low g_(1) + sum_{j<i} up_j d_j - sum_{j>=i} down_j d_j

with coefficients that depend on n and k alone. Estimators differ in these coefficients, and an
objective that is a weighted sum over k has the weighted sum of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.estimators import _groups
from pkpo_jax.mixtures import Mixture

# Up to this size, comparing all pairs of a group is faster on a CPU than sorting it.
_SMALL = 32


class Ranks(NamedTuple):
    """The arguments of a function that computes the coefficients of gaps for one size and one k.

    Attributes:
      rank: [n-1] float32, the rank j = 1..n-1 of the sample below each gap.
      n: [..., 1] float32, the number of valid samples, at least 1.
      k: [..., 1] float32, clipped to the range that the estimator serves.
    """

    rank: jax.Array
    n: jax.Array
    k: jax.Array

    @property
    def v(self) -> jax.Array:
        """[..., n-1] V_j = C(j-1, k-1) / C(n-1, k-1), 1 past the last valid gap."""
        rank, n, k = self
        ratios = jnp.where(rank < n, jnp.maximum(rank - k + 1, 0.0) / rank, 1.0)
        return jax.lax.cumprod(ratios, ratios.ndim - 1, reverse=True)

    @property
    def w(self) -> jax.Array:
        """[..., n-1] W_j = C(j, k-1) / C(n-1, k-1) = V_{j+1}.

        Of the k-subsets that hold a given sample of a rank above j, W_j is the share whose other
        samples all have ranks up to j.
        """
        v = self.v
        return jnp.concatenate([v[..., 1:], jnp.ones_like(v[..., :1])], -1)


class Coefficients(NamedTuple):
    """The coefficients of a weight, see the top of this module.

    Attributes:
      low: [..., 1] or a number; 0 for estimators that do not change when all rewards shift.
      up: [..., n-1], those of the gaps below a sample.
      down: [..., n-1] or a number, those of the gaps above a sample.
    """

    low: Any
    up: jax.Array
    down: Any

    def map(self, f: Callable[[jax.Array], jax.Array]) -> Coefficients:
        """Returns f of each coefficient that is an array; numbers stay as they are."""
        low, up, down = (f(x) if jnp.ndim(x) else x for x in self)
        return Coefficients(low, up, down)


@dataclasses.dataclass(frozen=True)
class SortedGroup:
    """Groups of n rewards along the last dimension, in ascending order with invalid samples last.

    Attributes:
      lowest: [..., 1] smallest valid reward times SCALE, 0 in an empty group.
      gaps: [..., n-1] differences of neighbouring valid rewards times SCALE, 0 past the last one.
      place: [..., n] int32, the place of each sample in the ascending order, counted from 0. Equal
        samples all have the place of the first of them.
      valid: [..., n] bool, False for samples that are left out.
      masked: whether samples may be left out at all.
    """

    lowest: jax.Array
    gaps: jax.Array
    place: jax.Array
    valid: jax.Array
    masked: bool

    @property
    def count(self) -> jax.Array:
        """[..., 1] float32, the number of valid samples, at least 1."""
        return jnp.maximum(self.valid.sum(-1, keepdims=True), 1).astype(jnp.float32)

    @property
    def rank(self) -> jax.Array:
        """[n-1] float32, the rank j = 1..n-1 of the sample below each gap."""
        return jnp.arange(1, self.place.shape[-1], dtype=jnp.float32)

    def coefficients(
        self,
        k: jax.typing.ArrayLike | Mixture,
        of: Callable[[Ranks], Coefficients],
        largest_k: Callable[[Any], Any] = lambda n: n,
    ) -> Coefficients:
        """Returns the coefficients of these groups for k, or the weighted sum of those for each k.

        They are computed once for all groups where they are equal. If small groups differ only in
        their number of valid samples, they are computed once for each number.

        Args:
          k: int or integer array that broadcasts against the leading dimensions, or a mixture.
          of: the coefficients for one number of samples and one k.
          largest_k: maps the size of a group to the largest k that the estimator serves. It is
            called with an int for the check and with a float32 array to clip k.

        Raises:
          ValueError: static k out of range, or shapes that do not fit.
          TypeError: k is not an integer.
        """
        batch, size = self.place.shape[:-1], self.place.shape[-1]
        ks, weights = _groups.as_mixture(k, batch, size, largest_k(size))
        same_k = math.prod(ks.shape[1:]) * math.prod(weights.shape[1:]) == 1
        by_size = self.masked and same_k and size <= _SMALL and math.prod(batch) >= size
        if by_size:
            n = jnp.arange(1, size + 1, dtype=jnp.float32)[:, None]
            ks, weights = ks.reshape(-1, 1), weights.reshape(-1, 1)
        else:
            n = self.count if self.masked else jnp.full((1,) * (len(batch) + 1), size, jnp.float32)
        ks = ks[..., None].astype(jnp.float32)
        ks = jnp.clip(ks, 1, jnp.maximum(largest_k(n), 1))
        parts = of(Ranks(self.rank, n, ks))
        if len(ks) > 1 or isinstance(k, Mixture):
            low, up, down = (jnp.sum(weights[..., None] * x, 0) for x in parts)
            parts = Coefficients(low, up, down)
        else:
            parts = parts.map(lambda x: x[0])
        if by_size:
            # A product with a one-hot matrix selects rows under any sharding of the groups.
            own = jax.nn.one_hot(self.count[..., 0].astype(jnp.int32) - 1, size, dtype=jnp.float32)
            pick = functools.partial(jnp.matmul, own, precision=jax.lax.Precision.HIGHEST)
            parts = parts.map(lambda x: pick(x) if len(x) > 1 else x)
        return parts

    def combine(self, coefficients: Coefficients) -> jax.Array:
        """Returns the weights that the coefficients define.

        Returns:
          [..., n] float32 in the units of the rewards and in the order that the samples were given
          in; 0 for invalid samples.
        """
        low, up, down = coefficients
        sums = _sum_of_gaps(up * self.gaps, -down * self.gaps, self.place)
        return jnp.where(self.valid, _groups.unscale(low * self.lowest + sums), 0.0)


def sort(rewards: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None) -> SortedGroup:
    """Returns the groups of `rewards`, sorted, after checking the arguments.

    Args:
      rewards: [..., n] real rewards of any dtype.
      where: [..., n] bool, False for samples to leave out, or None.

    Raises:
      ValueError: shapes that do not fit.
    """
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    # Rewards are sorted as integers because XLA on CPU sorts and compares these many times faster
    # than floats. The sort need not be stable, for equal rewards have equal weights wherever they
    # stand.
    key = jnp.where(valid, _ordered_bits(rewards), np.iinfo(np.int32).max)
    n = rewards.shape[-1]
    ordered_key, place = _by_pairs(key) if n <= _SMALL else _by_sorting(key)
    ordered = jax.lax.bitcast_convert_type(_ordered_bits(ordered_key), jnp.float32)
    count = valid.sum(-1, keepdims=True)
    ordered = jnp.where(jnp.arange(n) < count, ordered, 0.0) * _groups.SCALE
    gaps = jnp.where(jnp.arange(1, n) < count, ordered[..., 1:] - ordered[..., :-1], 0.0)
    return SortedGroup(ordered[..., :1], gaps, place, valid, where is not None)


def _by_pairs(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the ascending `key` [..., n] and the place of each element, in n^2 comparisons."""
    place = (key[..., None, :] < key[..., :, None]).sum(-1, dtype=jnp.int32)
    # The element at place j is the largest of those that have at most j elements below them.
    below = place[..., None, :] <= jnp.arange(key.shape[-1])[:, None]
    return jnp.where(below, key[..., None, :], np.iinfo(np.int32).min).max(-1), place


def _by_sorting(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the ascending `key` [..., n] and the place of each element, found by bisection.

    The bisection is written in batched gathers because a vmapped searchsorted does not compile for
    explicitly sharded arrays. On a CPU it takes less time than the sort of the keys, whereas a sort
    that carries indices takes several times as long. The gathers are promised to be in bounds: with
    checks, the bisection takes up to three times as long.
    """
    ordered, n = jax.lax.sort(key, is_stable=False), key.shape[-1]
    place = jnp.zeros_like(key)
    for bit in reversed(range(n.bit_length())):
        more = place + (1 << bit)
        last = _take(ordered, jnp.minimum(more, n) - 1)
        place = jnp.where((more <= n) & (last < key), more, place)
    return ordered, place


@jax.jit
def _sum_of_gaps(below: jax.Array, above: jax.Array, place: jax.Array) -> jax.Array:
    """Sums, for each sample, `below` [..., n-1] up to its place and `above` from there on.

    The terms are added in the same order for equal places, so that equal samples have equal sums.
    """
    n = place.shape[-1]
    if n <= _SMALL:
        # XLA makes one vectorised loop of this, but not of a reduction of floats.
        total = jnp.zeros(place.shape, jnp.float32)
        for j in range(n - 1):
            gap = slice(j, j + 1)
            total += jnp.where(place > j, below[..., gap], above[..., gap])
        return total
    axis = below.ndim - 1
    no_pad = [(0, 0)] * axis
    gained = jnp.pad(jax.lax.cumsum(below, axis), [*no_pad, (1, 0)])
    lost = jnp.pad(jax.lax.cumsum(above, axis, reverse=True), [*no_pad, (0, 1)])
    return _take(gained + lost, place)


def _take(x: jax.Array, at: jax.Array) -> jax.Array:
    """Returns the elements of `x` [..., n] at `at` [..., n], all of which lie within 0..n-1."""
    return jnp.take_along_axis(x, at, -1, mode="promise_in_bounds")


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Maps float32 to int32 of the same order; applied to that int32, returns the float's bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & np.iinfo(np.int32).max)
