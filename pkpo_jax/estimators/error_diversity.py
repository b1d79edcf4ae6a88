"""EDAS: advantages of wrong answers, reshaped by how common each wrong answer is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _answers, _groups


def edas_advantages(
    advantages: jax.typing.ArrayLike,
    correct: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    alpha: float = 0.4,
    beta: float = 0.2,
    kappa: float = 2.0,
) -> jax.Array:
    """Computes the advantages of EDAS, error-diversity advantage shaping (arXiv 2605.17333).

    Among the wrong samples W of a group, let p_i be the share of those with the answer of sample i,
    I_i = -ln p_i, H the mean of I over W, and S the mean of |A| over W. A wrong sample changes by

      Delta_i = 0                              if |W| <= 1,
                -beta S                        if all of W gave one answer,
                alpha S (I_i - H) / ln |W|     otherwise, which sums to 0 over W,

      A'_i = A_i + sign(Delta_i) min(|Delta_i|, |A_i| / kappa).

    Common errors are pushed down more, and rare ones less. The result is biased as an estimate of
    the gradient of any expected reward. It is `advantages` where these are 0 on wrong samples, as
    the weights of `pkpo_weights` with "loo_minus_one" are for k >= 2.

    Args:
      advantages: [..., n] real, those of another estimator such as `grpo_advantages`. They count as
        constants.
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      classes: [..., n] integers, equal for equal answers of a group.
      where: optional [..., n] bool, False for samples to leave out.
      alpha, beta, kappa: those of the formula. The paper has beta = 0.3 with DAPO.

    Returns:
      [..., n] float32 in the convention of `advantages`, 0 where `where` is False.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.edas_advantages([2.0, -1.0, -1.0], [1, 0, 0], [0, 1, 1]))
    [ 2.  -1.2 -1.2]
    """
    advantages = _groups.as_rewards(advantages)
    correct, valid = _groups.as_correct(correct, where)
    classes = _answers.as_classes(classes, advantages.shape)
    wrong = valid & ~correct
    count = wrong.sum(-1, keepdims=True, dtype=jnp.float32)
    same = jnp.maximum(_answers.class_sizes(classes, wrong), 1.0)
    surprise = jnp.log(jnp.maximum(count, 1.0) / same)
    size = _answers.mean(jnp.abs(advantages), wrong)
    one_answer = (jnp.where(wrong, same, count) == count).all(-1, keepdims=True)
    spread = surprise - _answers.mean(surprise, wrong)
    spread = alpha * size * spread / jnp.log(jnp.maximum(count, 2.0))
    change = jnp.where(one_answer, -beta * size, spread)
    change = jnp.sign(change) * jnp.minimum(jnp.abs(change), jnp.abs(advantages) / kappa)
    change = jnp.where(wrong & (count > 1), change, 0.0)
    return jnp.where(valid, advantages + change, 0.0)
