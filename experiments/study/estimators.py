"""Estimators that the study compares: those of the package, and some that only exist here.

A config names one of this module as experiments.study.estimators:FUNCTION.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

import pkpo_jax as pkpo
from pkpo_jax.estimators.pkpo import Baseline
from pkpo_jax.training import config, weights

_k_of = pkpo.schedules.near_inverse_pass_rate


class Estimator(NamedTuple):
    """An estimator of the gradient of max@k.

    Attributes:
      weigh: (rewards [P, n], valid [P, n]) -> reward weights [P, n], to be summed.
      k: of the max@k whose gradient is estimated.
    """

    weigh: Callable[[jax.Array, jax.Array], jax.Array]
    k: int


def serving(n: int, k: int) -> dict[str, Estimator]:
    """Returns the estimators of max@k that n samples allow, and two of other objectives."""
    found = {}
    for baseline in get_args(Baseline):
        if k <= weights.largest_k(config.Estimator(baseline=baseline), n):
            weigh = functools.partial(_pkpo, k=k, baseline=baseline)
            found[baseline] = Estimator(weigh, k)
    found["disjoint groups"] = Estimator(lambda r, valid: naive_groups(r, k, valid), k)
    if k <= n // 2:
        weigh = lambda r, valid: disjoint_groups(r, k, valid)  # noqa: E731
        found["disjoint groups, baseline"] = Estimator(weigh, k)
    # These two estimate the gradients of max@n and of the mean reward.
    found["tang"] = Estimator(pkpo.tang_weights, n)
    found["rloo"] = Estimator(functools.partial(_pkpo, k=1), 1)
    return found


def _pkpo(
    rewards: jax.Array, valid: jax.Array, *, k: int, baseline: Baseline = "loo_minus_one"
) -> jax.Array:
    return pkpo.pkpo_weights(rewards, k, baseline=baseline, where=valid)


def naive_groups(rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array) -> jax.Array:
    """Gives all samples of a disjoint group its maximum, over the number of groups.

    Groups are consecutive. Samples left over have weight 0, and so do all samples of a prompt
    with a response that could not be graded.

    Args:
      rewards: [P, n].
      k: size of a group, at most n; may be traced.
      where: [P, n] bool, whether a response was graded.

    Returns:
      [P, n] reward weights, to be summed, that estimate grad max@k without bias.
    """
    best, _ = _best_of_groups(rewards, k, where)
    return best / (rewards.shape[-1] // jnp.asarray(k))


def disjoint_groups(rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array) -> jax.Array:
    """Subtracts from each disjoint group's maximum the mean maximum of the other groups.

    The papers' plain sampling has no such baseline. Arguments and result are those of
    `naive_groups`, but k is at most n / 2.
    """
    best, used = _best_of_groups(rewards, k, where)
    k = jnp.asarray(k)
    count = rewards.shape[-1] // k
    mean = best.sum(-1, keepdims=True) / (count * k)
    # The difference from the mean of the others is (best - mean) count / (count - 1), and the
    # average over groups divides it by count.
    return jnp.where(used, (best - mean) / jnp.maximum(count - 1, 1), 0.0)


def _best_of_groups(
    rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each sample's group, 0 if unused, and whether a sample is used."""
    n = rewards.shape[-1]
    k = jnp.asarray(k)
    group = jnp.arange(n) // k
    same = group[:, None] == group
    best = jnp.where(same, rewards[..., None, :], -jnp.inf).max(-1)
    used = (group < n // k) & where.all(-1, keepdims=True)
    return jnp.where(used, best, 0.0), used


def per_prompt_k(rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array) -> jax.Array:
    """Computes loo_minus_one weights for the k that suits each prompt: near 1/p, within 1..n.

    The pass rate p is measured on these very responses, so no fixed objective has these weights
    as its gradient.

    Args:
      rewards: [P, n].
      k: not used.
      where: [P, n] bool, whether a response was graded.

    Returns:
      [P, n] reward weights, to be summed.
    """
    del k
    correct = (rewards >= 1.0) & where
    rate = correct.sum(-1) / jnp.maximum(where.sum(-1), 1)
    return pkpo.pkpo_weights(rewards, _k_of(1, rewards.shape[-1])(rate), where=where)
