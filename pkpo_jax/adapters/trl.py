"""Estimators of this package in the place of the advantages of TRL's GRPOTrainer."""

from __future__ import annotations

from typing import Any

import numpy as np

from pkpo_jax.adapters import groups

# TRL has no hook for advantages, so these methods of its trainer are extended.
_EXTENDED = ("_calculate_rewards", "_generate_and_score_completions")


def grpo_trainer(
    estimator: groups.Estimator = "pkpo_weights",
    k: Any = None,
    *,
    base: type | None = None,
    **options: Any,
) -> type:
    """Returns a subclass of `trl.GRPOTrainer` that trains with an estimator's advantages.

    The rewards of a response are added up over the reward functions, with `reward_weights`, and
    groups span all processes. A response that no function can score is left out and gets the
    advantage 0. TRL's own advantages, and so `scale_rewards`, have no effect on
    training; evaluation keeps them.

    Args:
      estimator, k, options: those of `pkpo_jax.adapters.groups.make`. A schedule is called with the
        number of optimizer steps so far.
      base: the class to extend, `trl.GRPOTrainer` if None.

    Raises:
      ValueError: there is no such estimator. The trainer raises it when it is made if k does not
        fit `num_generations`, or rewards are not to be added up.
      ImportError: TRL is not installed.
      AttributeError: a version of TRL without the methods that are extended.
    """
    advantages = groups.make(estimator, k, **options)
    base = base or groups.import_trainer("trl", "pip install trl").GRPOTrainer
    missing = [name for name in _EXTENDED if not hasattr(base, name)]
    if missing:
        raise AttributeError(f"{base.__name__} has no {missing[0]}; use trl 1.16, or report this.")

    class EstimatorTrainer(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            way = getattr(self.args, "multi_objective_aggregation", "sum_then_normalize")
            if way != "sum_then_normalize":
                raise ValueError(
                    f"multi_objective_aggregation={way!r}; expected 'sum_then_normalize', because "
                    "an estimator takes one reward a response."
                )
            # The smallest and the largest k are tried here, before anything is sampled.
            for step in groups.steps_of(k, max(self.args.max_steps, 0)):
                advantages(np.zeros((1, self.num_generations)), step)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            self._rewards_per_function = super()._calculate_rewards(*args, **kwargs)
            return self._rewards_per_function

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            output = super()._generate_and_score_completions(*args, **kwargs)
            if not self.model.training:
                return output
            each = self._rewards_per_function.double()
            rewards = (each * self.reward_weights.to(each)).nansum(1)
            rewards[each.isnan().all(1)] = float("nan")
            grouped = rewards.view(-1, self.num_generations).cpu().numpy()
            found = output["advantages"].new_tensor(advantages(grouped, self.state.global_step))
            found = found.ravel()
            rows = len(output["advantages"])
            first = self.accelerator.process_index * rows
            output["advantages"] = found[first : first + rows]
            logged = self._logs["advantages"]
            for _ in range(min(len(found), len(logged))):
                logged.pop()
            logged.extend(found.tolist())
            return output

    return EstimatorTrainer
