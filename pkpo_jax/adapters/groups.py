"""Advantages of groups of rewards, made from the name of an estimator, for every adapter."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.adapters import numpy as estimators

# Maps rewards [P, n] and the training step to advantages [P, n].
Advantages = Callable[[np.ndarray, int], np.ndarray]
Estimator = str | Callable[..., ArrayLike]

# The estimators that need nothing but rewards and, for the first ones, k.
WITH_K = (
    *("pkpo_weights", "pass_hat_k_weights", "quantile_weights", "top_mean_weights"),
    *("trimmed_mean_weights", "tail_extrapolated_weights", "passk_training_advantages"),
    *("pacevolve_advantages", "mahdavi_advantages", "bbg_advantages"),
)
WITHOUT_K = (
    *("tang_weights", "shapley_weights", "tailrl_advantages", "maxrl_advantages"),
    *("rloo_advantages", "dr_grpo_advantages", "grpo_advantages", "entropic_advantages"),
    "quantile_baseline_advantages",
)


def make(estimator: Estimator = "pkpo_weights", k: Any = None, **options: Any) -> Advantages:
    """Returns a function (rewards [P, n], step) -> advantages [P, n] in the MEAN convention.

    Trainers average over samples, so that the weights of estimators named `*_weights`, which are to
    be added up, are multiplied by n. Without this factor the steps are n times too small, and their
    size jumps when k is annealed to 1. Rewards that are NaN are left out of their groups, and their
    advantages are 0.

    Args:
      estimator: a name of WITH_K or WITHOUT_K; or a function of your own, (rewards [P, n], k) ->
        advantages [P, n], or (rewards) if k is None, with a keyword `where` [P, n] bool if rewards
        may be missing.
      k: int, `Mixture`, or a schedule of `pkpo_jax.schedules`, which is called with the training
        step; None for estimators without k.
      options: further keyword arguments of the estimator, such as `baseline`.

    Raises:
      ValueError: there is no such estimator, or it needs a k, or takes none. The function that is
        returned raises it if k does not fit the size of the groups, or if an estimator of binary
        rewards is given others.

    >>> advantages = make("pkpo_weights", k=2)
    >>> advantages(np.array([[0.0, 4.0, 0.0, 0.0]]), 0)
    array([[0., 8., 0., 0.]])
    """
    if isinstance(estimator, str):
        if estimator not in WITH_K + WITHOUT_K:
            names = ", ".join(WITH_K + WITHOUT_K)
            raise ValueError(f"estimator={estimator!r}; expected one of {names}, or a function.")
        if (k is None) != (estimator in WITHOUT_K):
            fix = "give one, such as k=8" if k is None else "leave it out"
            raise ValueError(f"k={k}, but {estimator} takes {'a' if k is None else 'no'} k; {fix}.")
    function = getattr(estimators, estimator) if isinstance(estimator, str) else estimator
    added_up = isinstance(estimator, str) and estimator.endswith("_weights")

    def advantages(rewards: np.ndarray, step: int = 0) -> np.ndarray:
        at = () if k is None else (k(step) if callable(k) else k,)
        missing = np.isnan(rewards)
        where = {"where": ~missing} if missing.any() else {}
        result = np.asarray(function(rewards, *at, **where, **options), np.float64)
        if result.shape != rewards.shape:
            raise ValueError(f"the estimator gives {result.shape}; expected {rewards.shape}.")
        return result * rewards.shape[-1] if added_up else result

    return advantages


def by_group(advantages: Advantages, rewards: ArrayLike, ids: ArrayLike) -> np.ndarray:
    """Computes the advantages [B] of rows whose groups may be interleaved.

    Args:
      advantages: what `make` returns.
      rewards: [B] real.
      ids: [B], equal for the rows of one group.

    Raises:
      ValueError: the groups differ in size.
    """
    rewards = np.asarray(rewards, np.float64)
    _, place, sizes = np.unique(np.asarray(ids), return_inverse=True, return_counts=True)
    if sizes.min() != sizes.max():
        raise ValueError(
            f"groups have {sizes.min()} to {sizes.max()} samples; expected as many for every "
            "prompt. Turn off what filters or repeats single responses."
        )
    order = np.argsort(place.ravel(), kind="stable")
    result = np.empty(rewards.shape)
    result[order] = advantages(rewards[order].reshape(-1, sizes[0]), 0).ravel()
    return result


def import_trainer(module: str, command: str) -> ModuleType:
    """Imports a module of a trainer, or raises an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ImportError(f"{e}; this adapter needs {module}: {command}") from e


def refuse_schedule(k: Any, trainer: str) -> None:
    """Raises a ValueError if k is a schedule, which needs the step."""
    if callable(k):
        raise ValueError(f"k is a schedule, but {trainer} tells no step; give an int or a Mixture.")
