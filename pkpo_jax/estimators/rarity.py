"""Rarity among right answers: uncommon right answers are pushed up more."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _answers, _groups


def rarity_advantages(
    advantages: jax.typing.ArrayLike,
    correct: jax.typing.ArrayLike,
    classes: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
    *,
    power: float = 0.8,
    smallest: float = 0.3,
    largest: float = 3.0,
) -> jax.Array:
    """Multiplies the advantages of right answers by their rarity, as Cue-GRPO does.

    The factor of a right sample is |C|^-power, where |C| is the number of right samples with its
    answer, divided by the mean over the right samples, clipped to [smallest, largest] and divided
    by its mean again, so that this is 1 after clipping too (arXiv 2608.03467; the clipping and what
    follows are those of a public port). Wrong samples keep their advantages. The result is biased
    as an estimate of the gradient of any expected reward.

    Args:
      advantages: [..., n] real, those of another estimator such as `grpo_advantages`. They count as
        constants.
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      classes: [..., n] integers, equal for equal answers of a group.
      where: optional [..., n] bool, False for samples to leave out.
      power, smallest, largest: those of the formula.

    Returns:
      [..., n] float32 in the convention of `advantages`, 0 where `where` is False.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.rarity_advantages([1.0, 1.0, 1.0, -3.0], [1, 1, 1, 0], [0, 0, 1, 2], power=1.0))
    [ 0.75  0.75  1.5  -3.  ]
    """
    advantages = _groups.as_rewards(advantages)
    correct, valid = _groups.as_correct(correct, where)
    classes = _answers.as_classes(classes, advantages.shape)
    same = jnp.maximum(_answers.class_sizes(classes, correct), 1.0)
    # With no right sample the means are 0, and no factor is used.
    factor = jnp.where(correct, same**-power, 1.0)
    factor = factor / jnp.where(correct, _answers.mean(factor, correct), 1.0)
    factor = jnp.where(correct, jnp.clip(factor, smallest, largest), 1.0)
    factor = factor / jnp.where(correct, _answers.mean(factor, correct), 1.0)
    return jnp.where(valid, advantages * factor, 0.0)
