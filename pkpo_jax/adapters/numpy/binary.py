"""Estimators of binary rewards: pass@k, pass^k, Pass@k Training, and rescaled pass@1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax import options
from pkpo_jax.adapters.numpy import _groups
from pkpo_jax.adapters.numpy.rewards import rloo_advantages

METHODS = ("full", "bootstrap", "analytical", "exceeding", "combination", "adaptive")


def pass_at_k(correct: ArrayLike, k: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the estimates [...] of pass@k, as `pkpo_jax.pass_at_k`."""
    correct, valid = _groups.as_correct(correct, where)
    return 1.0 - _misses(correct, valid, k)


def pass_at_k_curve(correct: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the estimates [..., n] of pass@1 to pass@n, as `pkpo_jax.pass_at_k_curve`."""
    correct, valid = _groups.as_correct(correct, where)
    return 1.0 - np.cumprod(_miss_ratios(correct, valid), -1)


def pass_hat_k(correct: ArrayLike, k: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the estimates [...] of pass^k, as `pkpo_jax.pass_hat_k`."""
    correct, valid = _groups.as_correct(correct, where)
    return np.where(valid.any(-1), _misses(valid & ~correct, valid, k), 0.0)


def pass_hat_k_curve(correct: ArrayLike, where: ArrayLike | None = None) -> np.ndarray:
    """Computes the estimates [..., n] of pass^1 to pass^n, as `pkpo_jax.pass_hat_k_curve`."""
    correct, valid = _groups.as_correct(correct, where)
    hits = np.cumprod(_miss_ratios(valid & ~correct, valid), -1)
    return np.where(valid.any(-1, keepdims=True), hits, 0.0)


def mahdavi_advantages(
    correct: ArrayLike, k: ArrayLike, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes pass@1 reweighted by the pass rate, as `pkpo_jax.mahdavi_advantages`."""
    correct, valid = _groups.as_correct(correct, where)
    k = _groups.check_k(k, correct.shape[:-1], correct.shape[-1], largest=None)[..., None]
    wrong_rate = (valid & ~correct).sum(-1, keepdims=True) / _groups.count(valid)
    return k * wrong_rate ** (k - 1) * rloo_advantages(correct, where)


def bbg_advantages(
    correct: ArrayLike,
    k: ArrayLike,
    where: ArrayLike | None = None,
    *,
    prior: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
    threshold: float = 0.01,
) -> np.ndarray:
    """Computes pass@1 scaled by a posterior of the pass rate, as `pkpo_jax.bbg_advantages`."""
    options.check_prior(prior)
    correct, valid = _groups.as_correct(correct, where)
    k = _groups.check_k(k, correct.shape[:-1], correct.shape[-1], largest=None)
    right, count = correct.sum(-1), valid.sum(-1)
    a, b = np.asarray(prior[0]) + right, np.asarray(prior[1]) + count - right
    u = _mean_factor(a, b, k)
    u = np.where(u >= threshold * (count + 1), u, 0.0)
    return u[..., None] * rloo_advantages(correct, where)


def posterior_advantages(
    correct: ArrayLike,
    k: ArrayLike,
    right: ArrayLike = 0.0,
    wrong: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    *,
    prior: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Computes pass@1 scaled by all visits' posterior, as `pkpo_jax.posterior_advantages`."""
    options.check_prior(prior)
    options.check("right", right, at_least=0)
    options.check("wrong", wrong, at_least=0)
    correct, valid = _groups.as_correct(correct, where)
    batch = correct.shape[:-1]
    k = _groups.check_k(k, batch, correct.shape[-1], largest=None)

    others = lambda counted: counted.sum(-1, keepdims=True) - counted  # noqa: E731
    a = prior[0] + _of_earlier(right, batch, "right") + others(correct)
    b = prior[1] + _of_earlier(wrong, batch, "wrong") + others(valid & ~correct)
    return _mean_factor(a, b, k[..., None]) * rloo_advantages(correct, where)


def passk_training_advantages(
    correct: ArrayLike,
    k: ArrayLike,
    *,
    method: str = "analytical",
    key: np.random.Generator | int | None = None,
    entropy: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes the advantages of Pass@k Training, as `pkpo_jax.passk_training_advantages`."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}; expected one of {', '.join(METHODS)}.")
    correct, valid = _groups.as_correct(correct, where)
    batch, size = correct.shape[:-1], correct.shape[-1]
    count = _groups.count(valid)[..., 0]
    k = np.minimum(_groups.check_k(k, batch, size, largest=size), count)
    if method == "full":
        return _full(correct, k, valid)
    if method == "bootstrap":
        if key is None:
            raise ValueError("method='bootstrap' samples groups; give key=a seed or a Generator.")
        return _bootstrap(correct, k, valid, np.random.default_rng(key))
    if method == "adaptive":
        if entropy is None or np.shape(entropy) != batch:
            given = None if entropy is None else np.shape(entropy)
            raise ValueError(f"entropy has shape {given}; method='adaptive' needs one of {batch}.")
        k = np.where(_higher_half(np.asarray(entropy)), 1, k)
    advantages = _analytical(correct, k, valid)
    right = correct.sum(-1, keepdims=True)
    if method == "exceeding":
        return advantages * 4.0 / (10.0 * np.log(np.maximum(right, 1) + 0.5))
    if method == "combination":
        rate = right / count[..., None]
        return rate * advantages + (1.0 - rate) * _analytical(correct, np.ones_like(k), valid)
    return advantages


def _of_earlier(counts: ArrayLike, batch: tuple[int, ...], name: str) -> np.ndarray:
    """Returns counts [...] of earlier visits as [..., 1] float64, or raises ValueError."""
    counts = np.asarray(counts, np.float64)
    try:
        return np.broadcast_to(counts, batch)[..., None]
    except ValueError:
        raise ValueError(
            f"{name} has shape {counts.shape}; expected one that broadcasts against {batch}, the "
            "leading dimensions of the samples (one count a prompt)."
        ) from None


def _mean_factor(a: np.ndarray, b: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Returns the mean of k (1-p)^(k-1) for p with the distribution Beta(a, b)."""
    u = np.ones_like(b)
    for j in range(int(k.max(initial=1)) - 1):
        u = np.where(j < k - 1, u * (b + j) / (a + b + j), u)
    return k * u


def _miss_ratios(correct: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns [..., n] chances, at index i that sample i+1 is wrong if the i before it were wrong.

    Past the number of valid samples, and in an empty group, they are 1.
    """
    n, taken = valid.sum(-1, keepdims=True), np.arange(correct.shape[-1])
    wrong = n - correct.sum(-1, keepdims=True)
    ratios = np.maximum(wrong - taken, 0) / np.maximum(n - taken, 1)
    return np.where(taken < n, ratios, 1.0)


def _misses(correct: np.ndarray, valid: np.ndarray, k: ArrayLike) -> np.ndarray:
    """Returns [...], the chances that k samples hold none of `correct`."""
    size = correct.shape[-1]
    k = _groups.check_k(k, correct.shape[:-1], size, largest=size)[..., None]
    return np.where(np.arange(size) < k, _miss_ratios(correct, valid), 1.0).prod(-1)


def _analytical(correct: np.ndarray, k: np.ndarray, valid: np.ndarray) -> np.ndarray:
    right = correct.sum(-1, keepdims=True)
    wrong = valid.sum(-1, keepdims=True) - right
    miss = _misses(correct, valid, k)[..., None]
    odds = np.sqrt(np.where(right > 0, miss / np.where(right > 0, 1.0 - miss, 1.0), 0.0))
    loss = -odds * right / np.maximum(wrong, 1)
    return np.where(valid, np.where(correct, odds, loss), 0.0)


def _full(correct: np.ndarray, k: np.ndarray, valid: np.ndarray) -> np.ndarray:
    # The valid samples, in their given order, are numbered from 0; a group is k numbers in a row.
    place = np.cumsum(valid, -1) - 1
    group = np.where(valid, place // k[..., None], -1)
    groups = np.arange(correct.shape[-1])
    member = group[..., None, :] == groups[:, None]
    used = groups < (valid.sum(-1) // k)[..., None]
    advantages = _normalise((member & correct[..., None, :]).any(-1), used)
    return (np.where(used, advantages, 0.0)[..., :, None] * member).sum(-2)


def _bootstrap(
    correct: np.ndarray, k: np.ndarray, valid: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    noise = np.where(valid[..., None, :], rng.random((*correct.shape, correct.shape[-1])), np.inf)
    rank = np.argsort(np.argsort(noise, -1), -1)
    member = (rank < k[..., None, None]) & valid[..., None, :]
    # There are as many groups as valid samples.
    solved = (member & correct[..., None, :]).any(-1)
    advantages = np.where(valid, _normalise(solved, valid), 0.0)
    return np.where(valid, (advantages[..., :, None] * member).sum(-2), 0.0)


def _normalise(solved: Any, where: np.ndarray) -> np.ndarray:
    """Normalises 0s and 1s by the moments of those in `where`, to 0 if these are equal."""
    mean: Any = _groups.mean(solved, where)
    variance = mean * (1.0 - mean)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.where(variance > 0, (solved - mean) / deviation, 0.0)


def _higher_half(entropy: np.ndarray) -> np.ndarray:
    """Returns [...] bool, True for the half of all prompts with higher entropy, rounded down."""
    rank = np.argsort(np.argsort(entropy.ravel(), kind="stable"), kind="stable")
    return (rank >= entropy.size - entropy.size // 2).reshape(entropy.shape)
