"""Reward weights for pass^k, the chance that all of k samples are right."""

from __future__ import annotations

import jax

from pkpo_jax.estimators import _groups
from pkpo_jax.estimators.pkpo import Baseline, pkpo_weights
from pkpo_jax.mixtures import Mixture


def pass_hat_k_weights(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike | Mixture,
    *,
    baseline: Baseline = "loo_minus_one",
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes reward weights w such that E[sum_i w_i grad log p(x_i)] = grad pass^k.

    All of k samples are right if none is wrong, so the weights are those of `pkpo_weights` for the
    chance of a wrong sample, with the other sign. As pass^k = p^k for a pass rate p, its gradient
    is k p^(k-1) times that of pass@1: it works on prompts that are almost always solved.

    With "loo_minus_one" and k >= 2, right answers have the weight 0, and wrong ones a negative one,
    which is 0 if fewer than k - 1 answers are right.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      k: int, integer array or `Mixture`, as in `pkpo_weights`.
      baseline: "none", "loo", "loo_minus_one" or "centered", as in `pkpo_weights`.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32 in the SUM convention, 0 where `where` is False.

    Raises:
      ValueError: as in `pkpo_weights`, or values other than 0 and 1, as in `pass_at_k`.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.pass_hat_k_weights([1, 1, 1, 0], k=2))
    [-0.  -0.  -0.  -0.5]
    """
    correct, valid = _groups.as_correct(correct, where)
    # Groups without a mask share their coefficients, so `where` is passed on as it was given.
    mask = None if where is None else valid
    return -pkpo_weights(valid & ~correct, k, baseline=baseline, where=mask)
