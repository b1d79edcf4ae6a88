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

    Groups may differ in size. Each has its own n, to which k is clipped as in a group with missing
    rewards; a function of your own then needs the keyword `where=None`. A k above the size of the
    largest group so far is refused.

    Raises:
      ValueError: there is no such estimator, or k is a schedule.
      ImportError: rLLM is not installed.
    """
    advantages, registry = groups.prepare(
        "rLLM", "rllm.trainer.algorithms.advantage", _INSTALL, estimator, k, options
    )
    largest = 1

    @registry.register_rllm_adv_estimator(name)
    def of_rewards(
        rewards: Sequence[np.ndarray], **_: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        nonlocal largest
        largest = max([largest, *map(len, rewards)])
        found = []
        for group in rewards:
            n = len(group)
            padded = np.full((1, largest), np.nan)
            padded[0, :n] = np.asarray(group, np.float64)
            # rLLM averages over the n samples that there are, not over the padding.
            found.append(advantages(padded, 0)[0, :n] * (n / largest))
        return found, found
