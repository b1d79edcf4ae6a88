"""Estimators of real rewards that are built on moments, tilts and tails of a group."""

from __future__ import annotations

import functools
import math
import statistics

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax import options
from pkpo_jax.adapters.numpy import _groups

# These are those of pkpo_jax.estimators.entropic.
_LARGEST_BETA = 1e6
_HALVINGS = 60


def grpo_advantages(
    rewards: ArrayLike, where: ArrayLike | None = None, *, epsilon: float = 1e-6
) -> np.ndarray:
    """Computes the advantages of GRPO, as `pkpo_jax.grpo_advantages`."""
    centred, valid = _centre(rewards, where)
    return _over_deviation(centred, centred, valid, epsilon)


def dr_grpo_advantages(rewards: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the advantages of Dr. GRPO, as `pkpo_jax.dr_grpo_advantages`."""
    return _centre(rewards, where)[0]


def rloo_advantages(rewards: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the advantages of RLOO, as `pkpo_jax.rloo_advantages`."""
    centred, valid = _centre(rewards, where)
    n = _groups.count(valid)
    # In a group of one sample the centred reward is 0.
    return centred * (n / np.maximum(n - 1, 1))


def quantile_baseline_advantages(
    rewards: ArrayLike,
    quantile: float = 0.4,
    where: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """Computes the advantages of QAE, as `pkpo_jax.quantile_baseline_advantages`."""
    options.check("quantile", quantile, above=0, at_most=1)
    centred, valid = _centre(rewards, where)
    up_to = (centred[..., None, :] <= centred[..., :, None]) & valid[..., None, :]
    enough = valid & (up_to.sum(-1) >= quantile * valid.sum(-1, keepdims=True) - 1e-4)
    lowest = np.where(enough, centred, np.inf).min(-1, keepdims=True)
    above = np.where(valid, centred - lowest, 0.0)
    return _over_deviation(above, centred, valid, epsilon)


def entropic_advantages(
    rewards: ArrayLike, where: ArrayLike | None = None, *, nats: float = math.log(2.0)
) -> np.ndarray:
    """Computes the advantages of the entropic objective, as `pkpo_jax.entropic_advantages`."""
    options.check("nats", nats, above=0)
    rewards, valid = _groups.as_rewards(rewards, where)
    low = np.where(valid, rewards, np.inf).min(-1, keepdims=True)
    high = np.where(valid, rewards, -np.inf).max(-1, keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    below = np.where(valid, (rewards - high) / span, 0.0)
    n = _groups.count(valid)
    target = np.minimum(nats, 0.5 * np.log(n))
    least, most = np.zeros_like(span), np.full_like(span, _LARGEST_BETA)
    for _ in range(_HALVINGS):
        middle = 0.5 * (least + most)
        tilt = np.where(valid, np.exp(middle * below), 0.0)
        total = np.maximum(tilt.sum(-1, keepdims=True), 1.0)
        moment = (tilt * middle * below).sum(-1, keepdims=True)
        enough = np.log(n / total) + moment / total >= target
        least, most = np.where(enough, least, middle), np.where(enough, middle, most)
    tilt = np.where(valid, np.exp(most * below), 0.0)
    others = (tilt.sum(-1, keepdims=True) - tilt) / np.maximum(n - 1, 1)
    advantages = tilt / np.where(others > 0, others, 1.0) - 1.0
    # high > low would be False for a NaN, and hide it.
    return np.where(valid & ~(high <= low), advantages, 0.0)


def tail_extrapolated_weights(
    rewards: ArrayLike, k: ArrayLike, where: ArrayLike | None = None, *, share: float = 0.25
) -> np.ndarray:
    """Computes reward weights for k beyond n, as `pkpo_jax.tail_extrapolated_weights`."""
    options.check("share", share, above=0, below=1)
    rewards, valid = _groups.as_rewards(rewards, where)
    size = rewards.shape[-1]
    k = _groups.check_k(k, rewards.shape[:-1], size, largest=None, smallest=2)[..., None]
    count = valid.sum(-1, keepdims=True)
    # Halves round up; the rest of .5001 outweighs the rounding of float32.
    in_tail = np.maximum(np.floor(share * count + 0.5001), 2).astype(int)
    ordered = np.sort(np.where(valid, rewards, -np.inf), -1)
    outside, inside = (
        np.take_along_axis(ordered, np.maximum(size - in_tail - at, 0), -1) for at in (1, 0)
    )
    few = count <= 2
    threshold = np.where(few, 0.0, 0.5 * outside + 0.5 * inside)
    tail = valid & (rewards > threshold) & ~few
    mu = _groups.mean(rewards, tail)
    sigma = np.sqrt(_groups.mean(np.square(rewards - mu), tail))
    normal = statistics.NormalDist()
    z = normal.inv_cdf(1.0 - share)
    lam = normal.pdf(z) / share
    best = np.vectorize(_expected_maximum, otypes=[np.float64])(k)
    c = (best - lam) / math.sqrt(1.0 + z * lam - lam * lam)
    slope = c / (2.0 * np.where(sigma > 0, sigma, 1.0))
    curved = np.square(rewards - mu) - np.square(threshold - mu)
    weights = (rewards - threshold + slope * curved) / in_tail
    return np.where(tail & (sigma > 0), weights, 0.0)


@functools.lru_cache(maxsize=256)
def _expected_maximum(k: int) -> float:
    """Returns the expected maximum of k standard normal samples, by quadrature."""
    # The mean is the integral of 1 - F(x)^k over x > 0 minus that of F(x)^k over x < 0.
    limit, points = 10.0, 2001
    x = np.linspace(-limit, limit, points)
    at_most = np.array([0.5 * math.erfc(-v / math.sqrt(2.0)) for v in x]) ** k
    step = 2.0 * limit / (points - 1)
    return limit - step * (at_most.sum() - 0.5 * at_most[-1] - 0.5 * at_most[0])


def _centre(rewards: ArrayLike, where: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns r - mean over the valid samples, 0 off the mask, and the mask."""
    rewards, valid = _groups.as_rewards(rewards, where)
    # Subtracting the lowest reward first makes groups of equal rewards exactly 0.
    rewards = rewards - np.where(valid, rewards, np.inf).min(-1, keepdims=True)
    return np.where(valid, rewards - _groups.mean(rewards, valid), 0.0), valid


def _over_deviation(
    x: np.ndarray, centred: np.ndarray, valid: np.ndarray, epsilon: float
) -> np.ndarray:
    """Returns x over the population deviation of a group plus epsilon, or 0 if that is 0."""
    options.check("epsilon", epsilon, at_least=0)
    deviation = np.sqrt(_groups.mean(np.square(centred), valid)) + epsilon
    return x / np.where(deviation > 0, deviation, 1.0)
