"""Estimators of this package as advantage estimators of rLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pkpo_jax.adapters import groups

# PyPI has no rLLM.
_INSTALL = "pip install 'rllm @ git+https://github.com/rllm-org/rllm'"


def register(
    name: str = "pkpo", estimator: groups.Estimator = "pkpo_weights", k: Any = None, **options: Any
) -> None:
    """Registers an estimator with rLLM, for `traj_group_adv_estimator_map={role: name}`.

    rLLM knows the names of a config's `adv_estimator` by an enumeration, whose last member is
    "other": an estimator of that name is the default of all roles.

    Args:
      name: what the trainer calls it.
      estimator, k, options: those of `pkpo_jax.adapters.groups.make`; k is no schedule, because
        rLLM does not say which step it is at.

    Groups may differ in size, see `pkpo_jax.adapters.groups.of_any_size`.

    Raises:
      ValueError: there is no such estimator, or k is a schedule.
      ImportError: rLLM is not installed.
    """
    advantages, registry = groups.prepare(
        "rLLM", "rllm.trainer.algorithms.advantage", _INSTALL, estimator, k, options
    )
    of_groups = groups.of_any_size(advantages)

    @registry.register_rllm_adv_estimator(name)
    def of_rewards(
        rewards: Sequence[np.ndarray], **_: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        found = of_groups(rewards)
        return found, found
