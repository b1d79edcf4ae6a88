"""Train Gemma-2 to maximise pass@k with Pass@K Policy Optimization, in JAX.

Importing the package loads the estimators, and jax, alone. The rest is imported by name:
`pkpo_jax.policy`, `pkpo_jax.tasks`, `pkpo_jax.training`.
"""

from pkpo_jax.estimators import max_at_k, pass_at_k, pass_at_k_curve, pkpo_weights, schedules

__version__ = "0.1.0"
__all__ = ["max_at_k", "pass_at_k", "pass_at_k_curve", "pkpo_weights", "schedules"]
