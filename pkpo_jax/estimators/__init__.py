"""Estimators of pass@k and max@k, and the reward weights and advantages that maximise them.

Every function takes groups of rewards or of correctness [..., n], with the n samples of one prompt
in the last dimension. Nothing here knows a model or a config, or imports more than jax and numpy.
"""

from pkpo_jax import schedules
from pkpo_jax.estimators.baselines import (
    dr_grpo_advantages,
    grpo_advantages,
    mahdavi_advantages,
    rloo_advantages,
    tang_weights,
)
from pkpo_jax.estimators.beyond_n import bbg_advantages, tail_extrapolated_weights
from pkpo_jax.estimators.cooperative import distinct_shapley_weights, volume_weights
from pkpo_jax.estimators.entropic import entropic_advantages
from pkpo_jax.estimators.error_diversity import edas_advantages
from pkpo_jax.estimators.l_statistics import (
    quantile_weights,
    top_mean_weights,
    trimmed_mean_weights,
)
from pkpo_jax.estimators.off_policy import off_policy_weights
from pkpo_jax.estimators.pacevolve import pacevolve_advantages
from pkpo_jax.estimators.pass_at_k import (
    pass_at_k,
    pass_at_k_curve,
    pass_hat_k,
    pass_hat_k_curve,
)
from pkpo_jax.estimators.passk_training import passk_training_advantages
from pkpo_jax.estimators.pkpo import max_at_k, pkpo_weights
from pkpo_jax.estimators.posterior import posterior_advantages
from pkpo_jax.estimators.quantile_baseline import quantile_baseline_advantages
from pkpo_jax.estimators.rarity import rarity_advantages
from pkpo_jax.estimators.reliability import pass_hat_k_weights
from pkpo_jax.estimators.shapley import (
    maxrl_advantages,
    shapley_weights,
    tailrl_advantages,
)
from pkpo_jax.estimators.subset_scores import distinct_weights, poly_epo_weights, subset_weights
from pkpo_jax.mixtures import Mixture

__all__ = [
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
