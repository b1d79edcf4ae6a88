"""Pure jnp estimators on reward groups [..., n]: no models, no config, nothing but jax."""

from pkpo_jax.estimators import schedules
from pkpo_jax.estimators.pass_at_k import pass_at_k, pass_at_k_curve
from pkpo_jax.estimators.pkpo import max_at_k, pkpo_weights

__all__ = ["max_at_k", "pass_at_k", "pass_at_k_curve", "pkpo_weights", "schedules"]
