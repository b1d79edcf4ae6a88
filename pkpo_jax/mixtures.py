"""Mixtures of k, which turn max@k into any weighted sum of max@k over several k."""

from __future__ import annotations

from typing import Any, NamedTuple


class Mixture(NamedTuple):
    """The objective sum_c weights_c max@(ks_c), to be given to estimators in place of k.

    Every objective that depends on the best of a random number of samples is one: if the number of
    samples is k with probability w_k, its value is sum_k w_k max@k. The weights need not sum to 1.
    For example, the weights 1/k for k = 1..n give the Shapley value of the maximum.

    A mixture is a pytree, so that it passes through jit, and nothing recompiles when its values
    change. Only the number C of its components is static; components that are not needed have the
    weight 0.

    Attributes:
      ks: [..., C] integers; the leading dimensions broadcast against those of the rewards.
      weights: [..., C] real numbers, the weight of each k, whose leading dimensions do so too.

    >>> import pkpo_jax as pkpo
    >>> both = pkpo.Mixture(ks=[1, 2], weights=[0.5, 0.5])
    >>> print(pkpo.max_at_k([0.0, 0.0, 3.0], k=both))  # (1 + 2) / 2
    1.5
    """

    ks: Any
    weights: Any

    def __str__(self) -> str:
        """Returns the text that `schedules.parse_k` reads, of a mixture of numbers."""
        pairs = zip(self.ks, self.weights, strict=True)
        return f"mixture({', '.join(f'{k}: {w:g}' for k, w in pairs)})"


def components(k: int | Mixture) -> dict[int, float]:
    """Returns {k: weight} of a number, or of a mixture of numbers, without weights of 0.

    >>> components(8), components(Mixture(ks=(1, 8), weights=(0.25, 0.75)))
    ({8: 1.0}, {1: 0.25, 8: 0.75})
    """
    if not isinstance(k, Mixture):
        return {k: 1.0}
    found: dict[int, float] = {}
    for one, weight in zip(k.ks, k.weights, strict=True):
        if weight:
            found[int(one)] = found.get(int(one), 0.0) + float(weight)
    return found


def mean_k(k: int | Mixture) -> float:
    """Returns k, or the mean of k under the weights of a mixture of numbers.

    >>> mean_k(8), mean_k(Mixture(ks=(1, 8), weights=(0.25, 0.75)))
    (8, 6.25)
    """
    if not isinstance(k, Mixture):
        return k
    parts = components(k)
    return sum(k * w for k, w in parts.items()) / sum(parts.values())
