"""Estimators that look at which answers are equal, and scores of sets of samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.adapters.numpy import _groups

# A group of n samples has 2^n subsets.
LARGEST_ENUMERATED = 12


def edas_advantages(
    advantages: ArrayLike,
    correct: ArrayLike,
    classes: ArrayLike,
    where: ArrayLike | None = None,
    *,
    alpha: float = 0.4,
    beta: float = 0.2,
    kappa: float = 2.0,
) -> np.ndarray:
    """Reshapes the advantages of wrong answers, as `pkpo_jax.edas_advantages`."""
    correct, valid = _groups.as_correct(correct, where)
    advantages = _groups.as_rewards(advantages, valid, "advantages")[0]
    classes = _groups.as_classes(classes, advantages.shape)
    wrong = valid & ~correct
    count = wrong.sum(-1, keepdims=True)
    same = np.maximum(_class_sizes(classes, wrong), 1)
    surprise = np.log(np.maximum(count, 1) / same)
    size = _groups.mean(np.abs(advantages), wrong)
    one_answer = (np.where(wrong, same, count) == count).all(-1, keepdims=True)
    spread = surprise - _groups.mean(surprise, wrong)
    spread = alpha * size * spread / np.log(np.maximum(count, 2))
    change = np.where(one_answer, -beta * size, spread)
    change = np.sign(change) * np.minimum(np.abs(change), np.abs(advantages) / kappa)
    return advantages + np.where(wrong & (count > 1), change, 0.0)


def rarity_advantages(
    advantages: ArrayLike,
    correct: ArrayLike,
    classes: ArrayLike,
    where: ArrayLike | None = None,
    *,
    power: float = 0.8,
    smallest: float = 0.3,
    largest: float = 3.0,
) -> np.ndarray:
    """Reshapes the advantages of right answers, as `pkpo_jax.rarity_advantages`."""
    correct, valid = _groups.as_correct(correct, where)
    advantages = _groups.as_rewards(advantages, valid, "advantages")[0]
    classes = _groups.as_classes(classes, advantages.shape)
    factor = np.maximum(_class_sizes(classes, correct), 1.0) ** -power
    factor = factor / np.where(correct, _groups.mean(factor, correct), 1.0)
    factor = np.where(correct, np.clip(factor, smallest, largest), 1.0)
    return advantages * factor / np.where(correct, _groups.mean(factor, correct), 1.0)


def distinct_shapley_weights(
    correct: ArrayLike, classes: ArrayLike, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes Shapley values of right answers, as `pkpo_jax.distinct_shapley_weights`."""
    correct, _ = _groups.as_correct(correct, where)
    classes = _groups.as_classes(classes, correct.shape)
    return np.where(correct, 1.0 / np.maximum(_class_sizes(classes, correct), 1), 0.0)


def distinct_weights(
    correct: ArrayLike, classes: ArrayLike, k: ArrayLike, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes reward weights for distinct right answers, as `pkpo_jax.distinct_weights`."""
    correct, valid = _groups.as_correct(correct, where)
    classes = _groups.as_classes(classes, correct.shape)
    n, k = _count_and_k(k, valid)
    same = _class_sizes(classes, correct)
    unshared = np.where(correct, _misses(n - 2, same - 1, k - 1), 0.0)
    weights = k / np.maximum(n - 1, 1) * (unshared - _groups.mean(unshared, valid))
    return np.where(valid & (n > 1), weights, 0.0)


def poly_epo_weights(
    rewards: ArrayLike, classes: ArrayLike, k: ArrayLike, where: ArrayLike | None = None
) -> np.ndarray:
    """Computes reward weights for the score of Poly-EPO, as `pkpo_jax.poly_epo_weights`."""
    rewards, valid = _groups.as_rewards(rewards, where)
    classes = _groups.as_classes(classes, rewards.shape)
    n, k = _count_and_k(k, valid)
    same = np.maximum(_class_sizes(classes, valid), 1)
    # With one or two samples fixed, these are the chances that the rest miss the answer of i.
    miss_one, miss_two = _misses(n - 1, same, k - 1), _misses(n - 2, same, k - 2)
    # Summed over answers: one sample a fraction 1 / same of the time.
    found_one, found_two = (
        np.where(valid, (1.0 - miss) / same, 0.0).sum(-1, keepdims=True)
        for miss in (miss_one, miss_two)
    )
    equal = classes[..., :, None] == classes[..., None, :]
    # Distinct answers of a subset that holds i and another sample j, whose reward counts.
    both = found_two[..., None] + miss_two[..., :, None]
    both = both + np.where(equal, 0.0, miss_two[..., None, :])
    other = valid[..., None, :] & ~np.eye(valid.shape[-1], dtype=bool)
    pairs = np.where(other, rewards[..., None, :] * both, 0.0).sum(-1)
    held = rewards * (found_one + miss_one) + (k - 1) / np.maximum(n - 1, 1) * pairs
    held = held / np.square(k)
    weights = k / np.maximum(n - k, 1) * (held - _groups.mean(held, valid))
    return np.where(valid & (n > 1), weights, 0.0)


def subset_weights(
    score: Callable[[np.ndarray], ArrayLike],
    n: int,
    k: ArrayLike,
    where: ArrayLike | None = None,
) -> np.ndarray:
    """Computes reward weights for any score of subsets, as `pkpo_jax.subset_weights`."""
    members = _subsets(n)
    scores = np.asarray(score(members), np.float64)
    if scores.ndim < 1 or scores.shape[-1] != len(members):
        raise ValueError(f"the scores have shape {scores.shape}; expected [..., {len(members)}].")
    batch = scores.shape[:-1]
    valid = _groups.as_mask(where, (*batch, n))
    count, k = _count_and_k(k, valid)
    used = (members.sum(-1) == k) & (members <= valid[..., None, :]).all(-1)

    def mean(among: np.ndarray) -> np.ndarray:
        chosen = used[..., :, None] & among
        total = np.where(chosen, scores[..., :, None], 0.0).sum(-2)
        return total / np.maximum(chosen.sum(-2), 1)

    return np.where(valid & (count > 1), k / count * (mean(members) - mean(~members)), 0.0)


def volume_weights(
    rewards: ArrayLike,
    embeddings: ArrayLike,
    where: ArrayLike | None = None,
    *,
    delta: float = 1.0,
    key: np.random.Generator | int | None = None,
    permutations: int = 64,
) -> np.ndarray:
    """Computes Shapley values of a group's volume, as `pkpo_jax.volume_weights`."""
    if not delta > 0.0:
        raise ValueError(f"delta={delta}; expected a number above 0.")
    rewards, valid = _groups.as_rewards(rewards, where)
    given = np.asarray(embeddings, np.float64)
    if given.shape[:-1] != rewards.shape:
        raise ValueError(
            f"embeddings have shape {given.shape}; expected {(*rewards.shape, 'D')}, as rewards."
        )
    scaled = np.sqrt(np.maximum(rewards, 0.0) / delta)[..., None]
    scaled = scaled * np.where(valid[..., None], given, 0.0)
    gram = scaled @ np.swapaxes(scaled, -1, -2) + np.eye(scaled.shape[-2])
    if key is None:
        return _over_all_orders(gram)
    return _over_some_orders(gram, np.random.default_rng(key), permutations)


def _over_all_orders(gram: np.ndarray) -> np.ndarray:
    n = gram.shape[-1]
    members = _subsets(n)
    inside = members[:, :, None] & members[:, None, :]
    # Rows and columns outside of a subset are those of the identity.
    volumes = np.linalg.slogdet(np.where(inside, gram[..., None, :, :], np.eye(n)))[1]
    shares = [1.0 / (k * math.comb(n, k)) for k in range(1, n + 1)]
    added, removed, size = np.array([0.0, *shares]), np.array([*shares, 0.0]), members.sum(-1)
    # A subset of size s counts in v(S) of its members, and in v(S without i) of the others.
    return volumes @ np.where(members, added[size][:, None], -removed[size][:, None])


def _over_some_orders(gram: np.ndarray, rng: np.random.Generator, permutations: int) -> np.ndarray:
    # The contribution of each sample in turn is the squared diagonal of the Cholesky factor.
    orders = np.argsort(rng.random((permutations, gram.shape[-1])), -1)
    factors = np.linalg.cholesky(gram[..., orders[:, :, None], orders[:, None, :]])
    gains = 2.0 * np.log(np.diagonal(factors, axis1=-2, axis2=-1))
    back = np.broadcast_to(np.argsort(orders, -1), gains.shape)
    return np.take_along_axis(gains, back, -1).mean(-2)


def _subsets(n: int) -> np.ndarray:
    """Returns [2^n, n] bool, which of n samples each subset holds, or raises ValueError."""
    if n > LARGEST_ENUMERATED:
        raise ValueError(f"n={n}; expected at most {LARGEST_ENUMERATED}, as there are 2^n subsets.")
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1


def _class_sizes(classes: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Returns [..., n], how many samples of `among` share the class of each sample."""
    return ((classes[..., :, None] == classes[..., None, :]) & among[..., None, :]).sum(-1)


def _count_and_k(k: ArrayLike, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two [..., 1]: the number of valid samples, at least 1, and k clipped to 1..n-1."""
    size = valid.shape[-1]
    k = _groups.check_k(k, valid.shape[:-1], size, largest=size - 1)
    n = _groups.count(valid)
    return n, np.clip(k[..., None], 1, np.maximum(n - 1, 1))


def _misses(total: np.ndarray, marked: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Returns C(total - marked, drawn) / C(total, drawn), the chance to draw no marked sample.

    Args:
      total, drawn: [..., 1] integers, how many samples there are, and how many are drawn.
      marked: [..., n] integers.
    """
    taken = np.arange(drawn.max(initial=0))
    left = np.maximum((total - marked)[..., None] - taken, 0)
    ratios = left / np.maximum(total[..., None] - taken, 1)
    return np.where(taken < drawn[..., None], ratios, 1.0).prod(-1)
