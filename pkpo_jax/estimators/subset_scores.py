"""Scores of sets of samples: any function of a subset, distinct right answers, and Poly-EPO's.

For a score f of sets of k samples, the weights

    c_i = (k/n) (mean of f over the k-subsets that hold i - mean of f over those that do not)

estimate the gradient of E f(k samples) without bias, sum to zero, and do not change when f shifts.
They are k/(n-k) times the difference between the mean over the subsets that hold i and the mean
over all subsets, which papers use as an advantage. With f = max they are those of `pkpo_weights`
with the baseline "centered".
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.estimators import _answers, _groups

# A group of n samples has 2^n subsets.
LARGEST_ENUMERATED = 12


def subset_weights(
    score: Callable[[jax.Array], jax.Array],
    n: int,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for any score of sets of k samples, by scoring every subset.

    Args:
      score: maps members [2^n, n] bool, which of the samples a subset holds, to scores [..., 2^n].
        It is called once, with all subsets of any size; scores of other sizes than k are not used.
      n: number of samples, at most 12.
      k: int or integer array that broadcasts against the leading dimensions of the scores, traced
        or not. An int or NumPy value outside 1..n-1 raises. A JAX array is clipped to that range;
        so is every k in a group of which `where` keeps too few samples.
      where: optional [..., n] bool, False for samples to leave out. No used subset holds them.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False and in groups with fewer than
      two samples.

    Raises:
      ValueError: n above 12, static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> rewards = jax.numpy.array([0.0, 1.0, 5.0])
    >>> best = lambda members: jax.numpy.where(members, rewards, 0.0).max(-1)
    >>> print(pkpo.subset_weights(best, n=3, k=1))
    [-1.  -0.5  1.5]
    """
    members = subsets(n)
    scores = jax.lax.stop_gradient(jnp.asarray(score(members), jnp.float32))
    if scores.ndim < 1 or scores.shape[-1] != len(members):
        raise ValueError(f"the scores have shape {scores.shape}; expected [..., {len(members)}].")
    batch = scores.shape[:-1]
    k = _groups.check_k(k, batch, n, largest=n - 1)
    valid = _groups.as_mask(where, (*batch, n))
    count = jnp.maximum(valid.sum(-1, dtype=jnp.int32), 1)
    k = jnp.clip(k, 1, jnp.maximum(count - 1, 1))
    used = (members.sum(-1) == k[..., None]) & (members <= valid[..., None, :]).all(-1)

    def mean(among: jax.Array) -> jax.Array:
        chosen = used[..., :, None] & among
        total = jnp.where(chosen, scores[..., :, None], 0.0).sum(-2)
        return total / jnp.maximum(chosen.sum(-2), 1)

    weights = (k / count)[..., None] * (mean(members) - mean(~members))
    return jnp.where(valid & (count > 1)[..., None], weights, 0.0)


def subsets(n: int) -> jax.Array:
    """Returns [2^n, n] bool, which of n samples each subset holds, or raises ValueError."""
    if n > LARGEST_ENUMERATED:
        raise ValueError(f"n={n}; expected at most {LARGEST_ENUMERATED}, as there are 2^n subsets.")
    return jnp.asarray((np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1)


def distinct_weights(
    correct: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the expected number of distinct right answers of k samples.

    The number is the sum over answers of whether one of the k samples gave it, so that the weights
    are sums of those of `pkpo_weights` with "centered", and have the closed form (derived here)

      c_i = k/(n-1) (b_i - mean(b)),   b_i = C(n-m_i-1, k-1) / C(n-2, k-1) if i is right, 0 if not,

    with m_i the number of right samples with the answer of i. They are unbiased. If all right
    answers are equal they are the weights for pass@k.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      classes: [..., n] integers, equal for equal answers of a group.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not. An int or NumPy value outside 1..n-1 raises. A JAX array is clipped to that
        range; so is every k in a group of which `where` keeps too few samples.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False and in groups with fewer than
      two samples.

    Raises:
      ValueError: static k out of range, shapes that do not fit, or values of `correct` other than 0
        and 1, as in `pass_at_k`.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.distinct_weights([1, 1, 1, 0], [0, 0, 1, 2], k=2))
    [ 0.          0.          0.33333334 -0.33333334]
    """
    correct, valid = _groups.as_correct(correct, where)
    classes = _answers.as_classes(classes, correct.shape)
    n, k = _count_and_k(k, valid)
    same = _answers.class_sizes(classes, correct)
    unshared = jnp.where(correct, _misses(n - 2, same - 1, k - 1, valid.shape[-1]), 0.0)
    weights = k / jnp.maximum(n - 1, 1) * (unshared - _answers.mean(unshared, valid))
    return jnp.where(valid & (n > 1), weights, 0.0)


def poly_epo_weights(
    rewards: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights for the score of Poly-EPO (arXiv 2604.17654), in closed form.

    The score of k samples is their mean reward times the number of their distinct answers, right or
    wrong, over k. The paper has n = 8, k = 4 and clusters of reasoning that a judge makes, in place
    of answers, and does not count a cluster of degenerate responses. Its advantage, the mean over
    the subsets that hold i minus the mean over all, is (n-k)/k times these weights, which are
    unbiased for the gradient of the expected score.

    Args:
      rewards: [..., n] real rewards of any dtype, n samples of one prompt in the last dimension.
        They are constants: the result has no gradient in them.
      classes: [..., n] integers, equal for equal answers of a group.
      k: int or integer array, as in `distinct_weights`.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False and in groups with fewer than
      two samples.

    Raises:
      ValueError: static k out of range, or shapes that do not fit.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.poly_epo_weights([1.0, 1.0, 0.0], [0, 1, 1], k=2))
    [ 0.33333337  0.08333337 -0.41666663]
    """
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    rewards = jnp.where(valid, rewards, 0.0)
    classes = _answers.as_classes(classes, rewards.shape)
    n, k = _count_and_k(k, valid)
    size = valid.shape[-1]
    same = jnp.maximum(_answers.class_sizes(classes, valid), 1.0)
    # With one or two samples fixed, these are the chances that the rest miss the answer of i.
    miss_one = _misses(n - 1, same, k - 1, size)
    miss_two = _misses(n - 2, same, k - 2, size)
    # Summed over answers: one sample a fraction 1 / same of the time.
    found_one = jnp.where(valid, (1.0 - miss_one) / same, 0.0).sum(-1, keepdims=True)
    found_two = jnp.where(valid, (1.0 - miss_two) / same, 0.0).sum(-1, keepdims=True)
    equal = classes[..., :, None] == classes[..., None, :]
    # Distinct answers of a subset that holds i and another sample j, whose reward counts.
    both = found_two[..., None] + miss_two[..., :, None]
    both = both + jnp.where(equal, 0.0, miss_two[..., None, :])
    other = valid[..., None, :] & ~jnp.eye(size, dtype=bool)
    pairs = jnp.where(other, rewards[..., None, :] * both, 0.0).sum(-1)
    held = rewards * (found_one + miss_one) + (k - 1) / jnp.maximum(n - 1, 1) * pairs
    held = held / jnp.square(k)
    weights = k / jnp.maximum(n - k, 1) * (held - _answers.mean(held, valid))
    return jnp.where(valid & (n > 1), weights, 0.0)


def _count_and_k(k: jax.typing.ArrayLike, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two [..., 1] float32: the number of valid samples, and k clipped to 1..n-1."""
    k = _groups.check_k(k, valid.shape[:-1], valid.shape[-1], largest=valid.shape[-1] - 1)
    n = jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    return n, jnp.clip(k[..., None].astype(jnp.float32), 1.0, jnp.maximum(n - 1.0, 1.0))


def _misses(total: jax.Array, marked: jax.Array, drawn: jax.Array, size: int) -> jax.Array:
    """Returns C(total - marked, drawn) / C(total, drawn), the chance to draw no marked sample.

    Args:
      total, drawn: [..., 1] float32, how many samples there are, and how many are drawn.
      marked: [..., n] float32.
      size: an upper bound of `drawn`.
    """
    taken = jnp.arange(size, dtype=jnp.float32)
    left = (total - marked)[..., None] - taken
    ratios = jnp.maximum(left, 0.0) / jnp.maximum(total[..., None] - taken, 1.0)
    return jnp.where(taken < drawn[..., None], ratios, 1.0).prod(-1)
