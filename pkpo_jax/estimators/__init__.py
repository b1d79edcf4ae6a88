"""Estimators of pass@k and max@k, and the reward weights and advantages that maximise them.

Every function takes groups of rewards or of correctness [..., n], with the n samples of one prompt
in the last dimension. Nothing here knows a model or a config, or imports more than jax and numpy.
"""

from pkpo_jax.estimators import schedules
from pkpo_jax.estimators.baselines import (
    dr_grpo_advantages,
    grpo_advantages,
    mahdavi_advantages,
    rloo_advantages,
    tang_weights,
)
from pkpo_jax.estimators.mixtures import Mixture
from pkpo_jax.estimators.off_policy import off_policy_weights
from pkpo_jax.estimators.pass_at_k import (
    pass_at_k,
    pass_at_k_curve,
    pass_hat_k,
    pass_hat_k_curve,
)
from pkpo_jax.estimators.passk_training import passk_training_advantages
from pkpo_jax.estimators.pkpo import max_at_k, pkpo_weights
from pkpo_jax.estimators.shapley import (
    maxrl_advantages,
    shapley_weights,
    tailrl_advantages,
)

__all__ = [
    "Mixture",
    "dr_grpo_advantages",
    "grpo_advantages",
    "mahdavi_advantages",
    "max_at_k",
    "maxrl_advantages",
    "off_policy_weights",
    "pass_at_k",
    "pass_at_k_curve",
    "pass_hat_k",
    "pass_hat_k_curve",
    "passk_training_advantages",
    "pkpo_weights",
    "rloo_advantages",
    "schedules",
    "shapley_weights",
    "tailrl_advantages",
    "tang_weights",
]
