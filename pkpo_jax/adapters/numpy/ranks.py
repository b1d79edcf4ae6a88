"""Estimators that are sums of multiples of the gaps of sorted rewards."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax import options
from pkpo_jax.adapters.numpy import _gaps, _groups
from pkpo_jax.mixtures import Mixture

# As in pkpo_jax.estimators, the product of a share and an integer k is an integer up to _ROUNDING,
# and importance ratios are clipped to _LARGEST_RATIO.
_ROUNDING = 1e-4
_LARGEST_RATIO = 1e6


def max_at_k(
    rewards: ArrayLike, k: ArrayLike | Mixture, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes the estimates [...] of max@k, as `pkpo_jax.max_at_k`."""
    groups = _gaps.sort(rewards, where)
    return (groups.coefficients(_mean_of_maxima, k)[..., 0, :] * groups.gaps).sum(-1)


def pkpo_weights(
    rewards: ArrayLike,
    k: ArrayLike | Mixture,
    *,
    baseline: str = "loo_minus_one",
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes the reward weights of PKPO, as `pkpo_jax.pkpo_weights`."""
    if baseline not in _COEFFICIENTS:
        raise ValueError(f"baseline={baseline!r}; expected one of {', '.join(_COEFFICIENTS)}.")
    groups = _gaps.sort(rewards, where)
    rest = baseline in ("loo", "centered")
    tables = groups.coefficients(_COEFFICIENTS[baseline], k, largest=lambda n: n - rest)
    return groups.combine(tables)


def pass_hat_k_weights(
    correct: ArrayLike,
    k: ArrayLike | Mixture,
    *,
    baseline: str = "loo_minus_one",
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes reward weights for pass^k, as `pkpo_jax.pass_hat_k_weights`."""
    correct, valid = _groups.as_correct(correct, where)
    mask = None if where is None else valid
    return -pkpo_weights(valid & ~correct, k, baseline=baseline, where=mask)


def tang_weights(rewards: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes reward weights for max@n, as `pkpo_jax.tang_weights`."""
    return pkpo_weights(rewards, _groups.as_group(rewards, "rewards").shape[-1], where=where)


def off_policy_weights(
    rewards: ArrayLike,
    k: ArrayLike | Mixture,
    ratios: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes reward weights from samples of another policy, as `pkpo_jax.off_policy_weights`."""
    groups = _gaps.sort(rewards, where)
    ratios = _groups.as_group(ratios, "ratios").astype(np.float64)
    if ratios.shape != groups.valid.shape:
        raise ValueError(f"ratios have shape {ratios.shape}; expected {groups.valid.shape}.")
    ratios = np.where(groups.valid, np.clip(ratios, 0.0, _LARGEST_RATIO), 1.0)
    sums = np.cumsum(np.take_along_axis(ratios - 1.0, groups.order, -1), -1)
    # The mean deviation of the samples below each gap; below the lowest sample there are none.
    deviation = np.zeros_like(sums)
    deviation[..., 1:] = sums[..., :-1] / np.arange(1, sums.shape[-1])
    tables = groups.coefficients(_loo_minus_one, k)
    others = groups.coefficients(_times_others, k)
    own = dataclasses.replace(groups, gaps=groups.gaps * deviation)
    return ratios * (groups.combine(tables) + own.combine(others))


def quantile_weights(
    rewards: ArrayLike,
    k: ArrayLike | Mixture,
    quantile: float = 0.5,
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes reward weights for a quantile of k samples, as `pkpo_jax.quantile_weights`."""
    options.check("quantile", quantile, above=0, at_most=1)
    return _l_statistic(rewards, k, where, _quantile, quantile)


def top_mean_weights(
    rewards: ArrayLike, k: ArrayLike | Mixture, top: float = 2, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes reward weights for the mean of the best, as `pkpo_jax.top_mean_weights`."""
    options.check("top", top, at_least=1, whole=True)
    return _l_statistic(rewards, k, where, _top_mean, top)


def trimmed_mean_weights(
    rewards: ArrayLike, k: ArrayLike | Mixture, trim: float = 0.25, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes reward weights for a trimmed mean, as `pkpo_jax.trimmed_mean_weights`."""
    options.check("trim", trim, at_least=0, below=0.5)
    return _l_statistic(rewards, k, where, _trimmed_mean, trim)


def shapley_weights(rewards: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the Shapley values of the best reward, as `pkpo_jax.shapley_weights`."""
    groups = _gaps.sort(rewards, where)
    return groups.combine(groups.coefficients(_shapley, 1))


def tailrl_advantages(rewards: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the advantages of TailRL, as `pkpo_jax.tailrl_advantages`."""
    groups = _gaps.sort(rewards, where)
    return groups.combine(groups.coefficients(_tailrl, 1))


def maxrl_advantages(correct: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the advantages of MaxRL, as `pkpo_jax.maxrl_advantages`."""
    correct, valid = _groups.as_correct(correct, where)
    return tailrl_advantages(correct, None if where is None else valid)


def pacevolve_advantages(
    rewards: ArrayLike, k: ArrayLike | Mixture, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes the advantages of PACEvolve++, as `pkpo_jax.pacevolve_advantages`."""
    groups = _gaps.sort(rewards, where)
    batch, size = groups.valid.shape[:-1], groups.valid.shape[-1]
    n = _groups.count(groups.valid)
    total: Any = np.zeros(groups.valid.shape)
    for one, weight in _groups.components(k, batch, size, size):
        advantages = n * groups.combine(groups.coefficients(_loo_minus_one, one))
        centred = np.where(groups.valid, advantages - _groups.mean(advantages, groups.valid), 0.0)
        deviation = np.sqrt(_groups.mean(np.square(centred), groups.valid))
        standard = np.where(deviation < 1e-6, 0.0, centred / (deviation + 1e-8))
        total = total + weight[..., None] * standard
    return total


def _l_statistic(
    rewards: ArrayLike, k: ArrayLike | Mixture, where: ArrayLike | None, of: Any, option: float
) -> np.ndarray:
    groups = _gaps.sort(rewards, where)
    tables = groups.coefficients(of, k, float(option), largest=lambda n: n - 1)
    return groups.combine(tables)


# The functions below return (low, up, down) for n samples and one k. `pkpo_jax.estimators` derives
# them where it has functions of the same names.


def _none(n: int, k: int) -> tuple[Any, Any, Any]:
    return k / n, k / n, k / n * (_gaps.ratios(n, k)[:-1] - 1.0)


def _loo_minus_one(n: int, k: int) -> tuple[Any, Any, Any]:
    if k == 1:
        rank = np.arange(1, n) / (n * max(n - 1, 1))
        return 0.0, rank, rank[::-1]
    return 0.0, k / n * _gaps.ratios(n, k)[1:], 0.0


def _times_others(n: int, k: int) -> tuple[Any, Any, Any]:
    return 0.0, (k - 1) * _loo_minus_one(n, k)[1], 0.0


def _centered(n: int, k: int) -> tuple[Any, Any, Any]:
    rank = np.arange(1, n)
    scaled = k / max(n - k, 1) * _gaps.ratios(n, k)[:-1] / n
    return 0.0, rank * scaled, (n - rank) * scaled


def _loo(n: int, k: int) -> tuple[Any, Any, Any]:
    rank, rest = np.arange(1, n), k / max(n - 1, 1)
    scaled = (k / n + rest * k / max(n - k, 1)) * _gaps.ratios(n, k)[:-1] / n
    constant = -rest / n if n > 1 else 0.0
    low, up, _ = _mean_of_maxima(n, k)
    return constant * low, rank * scaled + constant * up, (n - rank) * scaled - constant * up


def _mean_of_maxima(n: int, k: int) -> tuple[Any, Any, Any]:
    return 1.0, k / n * np.cumsum(_gaps.ratios(n, k)[:0:-1])[::-1], 0.0


def _shapley(n: int, k: int) -> tuple[Any, Any, Any]:
    return 1.0 / n, 1.0 / (n - np.arange(1, n)), 0.0


def _tailrl(n: int, k: int) -> tuple[Any, Any, Any]:
    rank = np.arange(1, n)
    return 0.0, rank / (n - rank), 1.0


def _quantile(n: int, k: int, quantile: float) -> tuple[Any, Any, Any]:
    rank = np.clip(np.ceil(quantile * k - _ROUNDING), 1, k)
    return _mean_of_ranks(n, k, k - rank, 1)


def _top_mean(n: int, k: int, top: float) -> tuple[Any, Any, Any]:
    return _mean_of_ranks(n, k, 0, np.clip(top, 1, k))


def _trimmed_mean(n: int, k: int, trim: float) -> tuple[Any, Any, Any]:
    drop = np.clip(np.floor(trim * k + _ROUNDING), 0, (k - 1) // 2)
    return _mean_of_ranks(n, k, drop, k - 2 * drop)


def _mean_of_ranks(n: int, k: int, drop: float, keep: float) -> tuple[Any, Any, Any]:
    """Returns the coefficients of the mean of `keep` of k ranks, after the `drop` best."""
    if n < 2:
        return 0.0, 0.0, 0.0
    rank = np.arange(1, n)
    logs = np.concatenate([[0.0], np.cumsum(np.log(rank))])

    def log_choose(total: Any, chosen: Any) -> Any:
        inside = (chosen >= 0) & (chosen <= total)
        a, b = np.where(inside, chosen, 0), np.where(inside, total - chosen, 0)
        return np.where(inside, logs[total] - logs[a] - logs[b], -np.inf)

    # The chance that t of the k-1 other members of a subset are above a gap, for t in the window.
    t = np.arange(int(drop), min(int(np.ceil(drop + keep)), k))
    above = n - 1 - rank[:, None]
    log_chances = log_choose(above, t) + log_choose(rank[:, None] - 1, k - 1 - t)
    share = np.exp(log_chances - log_choose(np.array(n - 2), np.array(k - 1))).sum(-1) / keep
    scaled = k / (n - 1) * share / n
    return 0.0, rank * scaled, (n - rank) * scaled


_COEFFICIENTS = {
    "none": _none,
    "loo": _loo,
    "loo_minus_one": _loo_minus_one,
    "centered": _centered,
}
