"""Estimators of this package as advantage estimators of Tunix, for its GRPOLearner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pkpo_jax.adapters import groups


def register(
    name: str = "pkpo", estimator: groups.Estimator = "pkpo_weights", k: Any = None, **options: Any
) -> None:
    """Registers an estimator with Tunix, for `GRPOConfig(advantage_estimator=name)`.

    Args:
      name: what the config calls it.
      estimator, k, options: those of `pkpo_jax.adapters.groups.make`; k is no schedule, because
        Tunix does not say which step it is at.

    Raises:
      ValueError: there is no such estimator, or k is a schedule.
      ImportError: Tunix is not installed.
    """
    advantages, registry = groups.prepare(
        "Tunix", "tunix.rl.function_registry", "pip install google-tunix", estimator, k, options
    )

    @registry.register_advantage_estimator(name)
    def of_rewards(rewards: ArrayLike, num_generations: int, **_: Any) -> np.ndarray:
        # The responses of a prompt follow each other.
        rewards = np.asarray(rewards, np.float64).reshape(-1, num_generations)
        return advantages(rewards, 0).ravel().astype(np.float32)
