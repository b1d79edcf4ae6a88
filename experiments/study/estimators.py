"""Two estimators that the package does not have, as a config names them: module:function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import pkpo_jax as pkpo

_k_of = pkpo.schedules.near_inverse_pass_rate


def disjoint_groups(rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array) -> jax.Array:
    """Each disjoint group's maximum less the mean maximum of the other groups: grad max@k.

    Groups are consecutive, and samples left over weigh nothing, nor does a prompt with a response
    that could not be graded. The baseline is more than the papers' plain sampling has; k <= n / 2.

    Args: rewards [P, n]; k, may be traced; where [P, n] bool. Returns [P, n], to be summed.
    """
    n = rewards.shape[-1]
    index = jnp.arange(n)
    k = jnp.asarray(k)
    group, count = index // k, n // k
    same = (group[:, None] == group) & (group < count)
    best = jnp.where(same, rewards[..., None, :], -jnp.inf).max(-1)
    used = (group < count) & where.all(-1, keepdims=True)
    best = jnp.where(used, best, 0.0)
    mean = best.sum(-1, keepdims=True) / (count * k)
    # Less the mean of the others, averaged over the groups: (best - mean) count / (count - 1).
    return jnp.where(used, (best - mean) / jnp.maximum(count - 1, 1), 0.0)


def per_prompt_k(rewards: jax.Array, k: jax.typing.ArrayLike, where: jax.Array) -> jax.Array:
    """loo_minus_one weights for the k that suits each prompt: near 1/p, within 1..n.

    p is the pass rate measured on these very responses, so the weights are those of no fixed
    objective. `k` is not used.

    Args: rewards [P, n]; where [P, n] bool. Returns [P, n], to be summed.
    """
    del k
    correct = (rewards >= 1.0) & where
    rate = correct.sum(-1) / jnp.maximum(where.sum(-1), 1)
    return pkpo.pkpo_weights(rewards, _k_of(1, rewards.shape[-1])(rate), where=where)
