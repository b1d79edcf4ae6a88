"""Advantages of groups of rewards, made from the name of an estimator, for every adapter."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.adapters import numpy as estimators
from pkpo_jax.mixtures import Mixture

# Maps rewards [P, n] and the training step to advantages [P, n].
Advantages = Callable[[np.ndarray, int], np.ndarray]
Estimator = str | Callable[..., ArrayLike]

# These estimators need nothing but rewards and, for the first two tuples, k.
WITH_MIXTURES = (
    *("pkpo_weights", "pass_hat_k_weights", "quantile_weights", "top_mean_weights"),
    *("trimmed_mean_weights", "pacevolve_advantages"),
)
WITH_K = (
    *WITH_MIXTURES,
    *("tail_extrapolated_weights", "passk_training_advantages", "mahdavi_advantages"),
    *("bbg_advantages", "posterior_advantages"),
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
    size jumps when k is annealed to 1. Rewards that are not finite are left out of their groups,
    and their advantages are 0. Those of the m others are multiplied by n/m where an estimator means
    an average over them, because the trainer averages over all n.

    Args:
      estimator: a name of WITH_K or WITHOUT_K, or the function of that name; or a function of your
        own, (rewards [P, n], k) -> advantages [P, n], or (rewards) if k is None, with a keyword
        `where=None` ([P, n] bool) if rewards may be missing.
      k: int, `Mixture` for estimators of WITH_MIXTURES, or a schedule of `pkpo_jax.schedules`,
        which is called with the training step; None for estimators without k.
        `near_inverse_pass_rate` is none of them, because no adapter knows pass rates.
      options: further keyword arguments of the estimator, such as `baseline`. A seed as `key` is
        the start of one random stream for all steps.

    Raises:
      ValueError: there is no such estimator, k is wrong or is missing, or an option does not exist
        or has a wrong value. The function that is returned raises it if k does not
        fit the size of the groups, or if an estimator of binary rewards is given others.

    >>> advantages = make("pkpo_weights", k=2)
    >>> advantages(np.array([[0.0, 4.0, 0.0, 0.0]]), 0)
    array([[0., 8., 0., 0.]])
    """
    own = getattr(estimator, "__name__", None)
    module = getattr(estimator, "__module__", None) or ""
    if own in WITH_K + WITHOUT_K and module.startswith("pkpo_jax."):
        # The name tells whether the weights of the function are multiplied by n.
        estimator = own
    if getattr(k, "__qualname__", "").startswith("near_inverse_pass_rate."):
        raise ValueError(
            "k=near_inverse_pass_rate is a function of pass rates, which no adapter knows; give a "
            "schedule of the step."
        )
    tried = {step: k(step) for step in steps_of(k)} if callable(k) else {0: k}
    if isinstance(estimator, str):
        if estimator not in WITH_K + WITHOUT_K:
            names = ", ".join(WITH_K + WITHOUT_K)
            raise ValueError(f"estimator={estimator!r}; expected one of {names}, or a function.")
        if (k is None) != (estimator in WITHOUT_K):
            fix = "give one, such as k=8" if k is None else "leave it out"
            raise ValueError(f"k={k}, but {estimator} takes {'a' if k is None else 'no'} k; {fix}.")
        mixed = any(isinstance(one, Mixture) for one in tried.values())
        if mixed and estimator not in WITH_MIXTURES:
            names = ", ".join(WITH_MIXTURES)
            raise ValueError(f"k is a Mixture, but {estimator} takes one k, unlike {names}.")
        if options.get("method") == "adaptive":
            raise ValueError(
                "method='adaptive' needs entropies, which no adapter has; choose another."
            )
        if options.get("key") is not None:
            options["key"] = np.random.default_rng(options["key"])
    function = getattr(estimators, estimator) if isinstance(estimator, str) else estimator
    added_up = isinstance(estimator, str) and estimator.endswith("_weights")
    _check_names(function, 1 if k is None else 2, options)

    def advantages(rewards: np.ndarray, step: int = 0) -> np.ndarray:
        at = () if k is None else (k(step) if callable(k) else k,)
        valid = np.isfinite(rewards)
        where = {} if valid.all() else {"where": valid}
        result = np.asarray(function(rewards, *at, **where, **options), np.float64)
        if result.shape != rewards.shape:
            raise ValueError(f"the estimator gives {result.shape}; expected {rewards.shape}.")
        averaged = 1 if added_up else np.maximum(valid.sum(-1, keepdims=True), 1)
        return np.where(valid, result * (rewards.shape[-1] / averaged), 0.0)

    if isinstance(estimator, str):
        # The values of the options are tried here, before anything is sampled.
        for step, one in tried.items():
            ks = _values(one)
            if ks.dtype.kind not in "iu" or (ks < 1).any():
                raise ValueError(f"k={one!r}; expected an integer >= 1, or a Mixture of such.")
            advantages(np.zeros((1, 1 + int(ks.max()))), step)
    return advantages


def steps_of(k: Any, steps: int = 0) -> list[int]:
    """Returns steps at which to try k: the first, and those of its smallest and largest values.

    Args:
      k: what `make` takes. A schedule is tried at the first thousand steps and at ever rarer ones.
      steps: the length of the run, or 0 if it is not known. Schedules of this package are then
        tried up to step 1e8, and other functions at step 0 alone.
    """
    of_this_package = getattr(k, "__module__", None) == "pkpo_jax.schedules"
    end = steps or (10**8 if of_this_package else 1)
    if not callable(k) or end == 1:
        return [0]
    rare = np.geomspace(1000, end - 1, 1000).astype(int).tolist() if end > 1000 else []
    by_size = sorted([*range(min(end, 1000)), *rare], key=lambda step: _values(k(step)).max())
    return [0, by_size[0], by_size[-1]]


def _values(k: Any) -> np.ndarray:
    """Returns each k of a mixture, or of a number; 1 for None."""
    return np.asarray(1 if k is None else k.ks if isinstance(k, Mixture) else k)


def _check_names(function: Callable[..., ArrayLike], given: int, options: dict[str, Any]) -> None:
    """Raises a ValueError if a function cannot take the options after `given` arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # Some compiled functions do not tell theirs.
        return
    own = [name for name in list(signature.parameters)[given:] if name not in ("where", "entropy")]
    try:
        if "where" in options:
            raise TypeError("'where' is made from the rewards")
        signature.bind(*[None] * given, **options)
    except TypeError as e:
        name = getattr(function, "__name__", function)
        raise ValueError(f"{name}: {e}; its options are: {', '.join(own) or 'none'}.") from None


def of_any_size(advantages: Advantages) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Returns a function that maps groups of rewards, which may differ in size, to advantages.

    Each group has its own n, to which k is clipped as in a group with missing rewards, and its
    advantages are for a trainer that averages over the samples that there are. The function raises
    a ValueError for a k above the size of the largest group so far.

    Args:
      advantages: what `make` returns. A function of your own needs the keyword `where=None`.
    """
    largest = 1

    def of_groups(groups: Sequence[np.ndarray]) -> list[np.ndarray]:
        nonlocal largest
        sizes = [len(group) for group in groups]
        largest = max([largest, *sizes])
        padded = np.full((len(groups), largest), np.nan)
        for row, group in zip(padded, groups, strict=True):
            row[: len(group)] = group
        found = advantages(padded, 0)
        return [row[:n] * (n / largest) for row, n in zip(found, sizes, strict=True)]

    return of_groups


def by_row(
    of_groups: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    rewards: np.ndarray,
    ids: Sequence[Any] | np.ndarray,
    counted: np.ndarray,
) -> np.ndarray:
    """Computes the advantages [B] of rows whose groups may be interleaved.

    Args:
      of_groups: what `of_any_size` returns.
      rewards: [B] real.
      ids: [B], equal for the rows of one group.
      counted: [B] bool, False for rows to leave out, whose advantages are 0.
    """
    rows: dict[Any, list[int]] = {}
    for row in np.flatnonzero(counted).tolist():
        rows.setdefault(ids[row], []).append(row)
    result = np.zeros(len(rewards))
    found = of_groups([rewards[group] for group in rows.values()])
    for group, advantages in zip(rows.values(), found, strict=True):
        result[group] = advantages
    return result


def import_trainer(module: str, command: str) -> ModuleType:
    """Imports a module of a trainer, or raises an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ImportError(f"{e}; this adapter needs {module}: {command}") from e


def prepare(
    trainer: str, module: str, command: str, estimator: Estimator, k: Any, options: dict[str, Any]
) -> tuple[Advantages, Any]:
    """Returns what `make` returns, for a trainer that tells no step, and the trainer's module.

    Raises:
      ValueError: that of `make`, or k is a schedule, which needs the step.
      ImportError: the trainer is not installed; the message has the command that installs it.
    """
    if callable(k):
        raise ValueError(f"k is a schedule, but {trainer} tells no step; give an int or a Mixture.")
    return make(estimator, k, **options), import_trainer(module, command)
