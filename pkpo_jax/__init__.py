"""Training of Gemma-2 to maximise pass@k with Pass@K Policy Optimization, in JAX.

The names below are the estimators of `pkpo_jax.estimators`, by what they are for:

  metrics            pass_at_k, pass_at_k_curve, pass_hat_k, pass_hat_k_curve, max_at_k
  the best of k      pkpo_weights, off_policy_weights, tang_weights; Mixture for several k
  the best of 1..n   maxrl_advantages, tailrl_advantages, shapley_weights
  the mean reward    rloo_advantages, dr_grpo_advantages, grpo_advantages,
                     quantile_baseline_advantages, entropic_advantages
  pass@k, rescaled   passk_training_advantages, mahdavi_advantages, pacevolve_advantages
  other ranks of k   quantile_weights, top_mean_weights, trimmed_mean_weights, pass_hat_k_weights
  different answers  distinct_weights, distinct_shapley_weights, poly_epo_weights, volume_weights,
                     edas_advantages, rarity_advantages
  any score of sets  subset_weights
  k beyond n         posterior_advantages, bbg_advantages, tail_extrapolated_weights
  k by the step      schedules

JAX is imported when the first of them is used, so that grading workers, which need only
`pkpo_jax.tasks`, start quickly. `pkpo_jax.adapters` has them for NumPy, without JAX, and inside
other trainers. The other packages are imported by name: `pkpo_jax.policy`, `pkpo_jax.tasks`,
`pkpo_jax.training` and `pkpo_jax.reporting`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkpo_jax.estimators import *  # noqa: F403

__version__ = "0.1.0"

# A test checks that these are the names of pkpo_jax.estimators.__all__.
__all__ = [  # noqa: F405
    "Mixture",
    "bbg_advantages",
    "distinct_shapley_weights",
    "distinct_weights",
    "dr_grpo_advantages",
    "edas_advantages",
    "entropic_advantages",
    "grpo_advantages",
    "mahdavi_advantages",
    "max_at_k",
    "maxrl_advantages",
    "off_policy_weights",
    "pacevolve_advantages",
    "pass_at_k",
    "pass_at_k_curve",
    "pass_hat_k",
    "pass_hat_k_curve",
    "pass_hat_k_weights",
    "passk_training_advantages",
    "pkpo_weights",
    "poly_epo_weights",
    "posterior_advantages",
    "quantile_baseline_advantages",
    "quantile_weights",
    "rarity_advantages",
    "rloo_advantages",
    "schedules",
    "shapley_weights",
    "subset_weights",
    "tail_extrapolated_weights",
    "tailrl_advantages",
    "tang_weights",
    "top_mean_weights",
    "trimmed_mean_weights",
    "volume_weights",
]


def __getattr__(name: str) -> Any:
    """Imports an estimator on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "schedules":
        return importlib.import_module("pkpo_jax.schedules")
    # Schedules and mixtures need no JAX.
    module = "pkpo_jax.mixtures" if name == "Mixture" else "pkpo_jax.estimators"
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
