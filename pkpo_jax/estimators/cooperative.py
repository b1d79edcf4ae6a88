"""Cooperative credit: Shapley values of what a group of samples covers together.

The Shapley value phi of a set function v with v(empty) = 0 gives each sample its marginal
contribution, averaged over the orders in which the samples may come. As reward weights in the SUM
convention, phi estimates the gradient of sum_{k=1}^{n} E v(k samples) / k without bias (derived
here): phi_i = sum_k (1/k) (1/C(n,k)) sum over k-subsets S holding i of [v(S) - v(S without i)].
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _answers, _groups, subset_scores


def distinct_shapley_weights(
    correct: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the Shapley values of the number of distinct right answers.

    A right sample gets 1/m, where m right samples gave its answer, and a wrong one 0 (derived
    here). The values add up to the number of distinct right answers.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      classes: [..., n] integers, equal for equal answers of a group.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.distinct_shapley_weights([1, 1, 1, 0], [0, 0, 1, 2]))
    [0.5 0.5 1.  0. ]
    """
    correct, _ = _groups.as_correct(correct, where)
    classes = _answers.as_classes(classes, correct.shape)
    return jnp.where(correct, 1.0 / jnp.maximum(_answers.class_sizes(classes, correct), 1.0), 0.0)


def volume_weights(
    rewards: jax.typing.ArrayLike,
    embeddings: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    delta: float = 1.0,
    key: jax.Array | None = None,
    permutations: int = 64,
) -> jax.Array:
    """Computes the Shapley values of the volume that a group's rewarded embeddings span.

    v(S) = log det(I + (1/delta) sum_{i in S} r_i e_i e_i'), so that a sample is worth little if
    others of a high reward point the same way. GCPO (arXiv 2605.11461) takes a determinant volume
    of reward-weighted embeddings; its code is not public, and the form of this volume is ours.

    Args:
      rewards: [..., n] real rewards >= 0 of any dtype; negative ones count as 0. They are
        constants, and so are the embeddings.
      embeddings: [..., n, D] real.
      where: optional [..., n] bool, False for samples to leave out.
      delta: a number above 0.
      key: random key. If it is given, the average is over this many random orders, which is
        unbiased; otherwise over all of them, exactly, for n up to 12. Under vmap or shard_map over
        prompts, give each call its own key.
      permutations: how many orders are sampled with `key`.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False.

    Raises:
      ValueError: shapes that do not fit, n above 12 without a key, or delta that is not positive.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.volume_weights([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]]).round(4))
    [0.6931 0.6931]
    """
    if not delta > 0.0:
        raise ValueError(f"delta={delta}; expected a number above 0.")
    rewards = _groups.as_rewards(rewards)
    valid = _groups.as_mask(where, rewards.shape)
    given = jnp.asarray(embeddings, jnp.float32)
    if given.shape[:-1] != rewards.shape:
        raise ValueError(
            f"embeddings have shape {given.shape}; expected {(*rewards.shape, 'D')}, as rewards."
        )
    # Samples without a reward add nothing to any set, so that a mask needs nothing else.
    root = jnp.sqrt(jnp.where(valid, jnp.maximum(rewards, 0.0), 0.0) / delta)[..., None]
    scaled = root * jnp.where(valid[..., None], jax.lax.stop_gradient(given), 0.0)
    highest = jax.lax.Precision.HIGHEST
    gram = jnp.einsum("...id,...jd->...ij", scaled, scaled, precision=highest)
    gram = gram + jnp.eye(gram.shape[-1], dtype=jnp.float32)
    return _over_all(gram) if key is None else _over_some(gram, key, permutations)


def _over_all(gram: jax.Array) -> jax.Array:
    n = gram.shape[-1]
    members = subset_scores.subsets(n)
    inside = members[:, :, None] & members[:, None, :]
    # Rows and columns outside of a subset are those of the identity.
    volumes = jnp.linalg.slogdet(
        jnp.where(inside, gram[..., None, :, :], jnp.eye(n, dtype=jnp.float32))
    )[1]
    shares = [1.0 / (k * math.comb(n, k)) for k in range(1, n + 1)]
    added = jnp.array([0.0, *shares], jnp.float32)
    removed = jnp.array([*shares, 0.0], jnp.float32)
    size = members.sum(-1)
    # A subset of size s counts in v(S) of its members, and in v(S without i) of the others.
    signed = jnp.where(members, added[size][:, None], -removed[size][:, None])
    return jnp.einsum("...s,si->...i", volumes, signed, precision=jax.lax.Precision.HIGHEST)


def _over_some(gram: jax.Array, key: jax.Array, permutations: int) -> jax.Array:
    # The contribution of each sample in turn is the squared diagonal of the Cholesky factor.
    n = gram.shape[-1]
    orders = jnp.argsort(jax.random.uniform(key, (permutations, n)), -1)
    ordered = gram[..., orders[:, :, None], orders[:, None, :]]
    factors = jnp.linalg.cholesky(ordered)
    gains = 2.0 * jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1))
    back = jnp.argsort(orders, -1)
    return jnp.take_along_axis(gains, jnp.broadcast_to(back, gains.shape), -1).mean(-2)
