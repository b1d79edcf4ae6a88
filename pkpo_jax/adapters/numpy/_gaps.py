"""Sorted reward groups, and the tables of coefficients that make weights of their gaps.

With g_(1) <= ... <= g_(n) the rewards of a group and g_(0) = 0, let d_j = g_(j+1) - g_(j) for
j = 0..n-1. The sample of rank i gets sum_{j<i} up_j d_j - sum_{j>=i} down_j d_j. The table [2, n]
of an estimator, up and down, depends on n and k alone, and is computed once for each of them. See
`pkpo_jax.estimators._sorted`, whose `low` is up_0 here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.adapters.numpy import _groups
from pkpo_jax.mixtures import Mixture

# The function (n, k, *options) -> (low, up [n-1], down [n-1]) that defines an estimator.
Coefficients = Callable[..., tuple[Any, Any, Any]]


@functools.lru_cache(maxsize=256)
def table(of: Coefficients, n: int, k: int, *options: float) -> np.ndarray:
    """Returns the table [2, n] of an estimator for groups of n samples and one k."""
    low, up, down = of(n, k, *options)
    result = np.zeros((2, n))
    result[0, 0], result[0, 1:], result[1, 1:] = low, up, down
    result.flags.writeable = False
    return result


def ratios(n: int, k: int) -> np.ndarray:
    """Returns [n] V_j = C(j-1, k-1) / C(n-1, k-1) for j = 1..n; V_{j+1} is W_j of the papers."""
    j = np.arange(1, n)
    below = np.maximum(j - k + 1, 0) / j
    return np.append(np.cumprod(below[::-1])[::-1], 1.0)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Groups of n rewards in ascending order, with the samples that are left out last.

    Attributes:
      order: [..., n] integers, the samples of each group in that order.
      gaps: [..., n] d_0 = g_(1), d_1, ..., d_{n-1}, 0 past the last valid sample.
      valid: [..., n] bool in the order that the samples were given in.
      masked: whether samples may be left out at all.
    """

    order: np.ndarray
    gaps: np.ndarray
    valid: np.ndarray
    masked: bool

    def coefficients(
        self,
        of: Coefficients,
        k: ArrayLike | Mixture,
        *options: float,
        largest: Callable[[Any], Any] = lambda n: n,
    ) -> np.ndarray:
        """Returns the tables [..., 2, n] of these groups, or [2, n] if all have the same.

        Args:
          of: defines the estimator.
          k: int, integer array that broadcasts against the leading dimensions, or a mixture.
          options: more arguments of `of`.
          largest: maps the number of valid samples to the largest k.

        Raises:
          ValueError: k out of range, or shapes that do not fit.
          TypeError: k is not an integer.
        """
        batch, n = self.valid.shape[:-1], self.valid.shape[-1]
        count = _groups.count(self.valid)[..., 0] if self.masked else np.full(batch, n)
        total: Any = 0.0
        for one, weight in _groups.components(k, batch, n, largest(n)):
            one = np.clip(one, 1, np.maximum(largest(count), 1))
            pairs, place = np.unique(count * (n + 1) + one, return_inverse=True)
            tables = np.zeros((len(pairs), 2, n))
            for row, pair in zip(tables, pairs.tolist(), strict=True):
                own = pair // (n + 1)
                row[:, :own] = table(of, own, pair % (n + 1), *options)
            tables = tables[0] if len(tables) == 1 else tables[place.reshape(batch)]
            total = total + weight[..., None, None] * tables
        return total

    def combine(self, tables: np.ndarray) -> np.ndarray:
        """Returns the weights [..., n] that tables define, in the given order of samples."""
        gained = np.cumsum(tables[..., 0, :] * self.gaps, -1)
        lost = np.cumsum((tables[..., 1, :] * self.gaps)[..., :0:-1], -1)
        gained[..., :-1] -= lost[..., ::-1]
        weights = np.empty_like(gained)
        np.put_along_axis(weights, self.order, gained, -1)
        return np.where(self.valid, weights, 0.0) if self.masked else weights


def sort(rewards: ArrayLike, where: ArrayLike | None) -> Groups:
    """Returns the groups of `rewards` [..., n], sorted, after checking the arguments."""
    rewards, valid = _groups.as_rewards(rewards, where)
    masked = where is not None
    order = np.argsort(np.where(valid, rewards, np.inf) if masked else rewards, -1)
    gaps = np.take_along_axis(rewards, order, -1)
    gaps[..., 1:] -= gaps[..., :-1].copy()
    if masked:
        gaps[np.arange(rewards.shape[-1]) >= valid.sum(-1, keepdims=True)] = 0.0
    return Groups(order, gaps, valid, masked)
