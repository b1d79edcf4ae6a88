"""Train Gemma-2 to maximise pass@k with Pass@K Policy Optimization, in JAX.

Importing the package loads the estimators, and jax, alone. The rest is imported by name:
`pkpo_jax.policy`, `pkpo_jax.tasks`, `pkpo_jax.training`.
"""

from pkpo_jax.estimators import *  # noqa: F403
from pkpo_jax.estimators import __all__ as __all__

__version__ = "0.1.0"
