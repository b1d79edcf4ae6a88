"""Estimators of this package as advantage estimators of verl, for `algorithm.adv_estimator`."""

from __future__ import annotations

from typing import Any

from pkpo_jax.adapters import groups


def register(
    name: str = "pkpo", estimator: groups.Estimator = "pkpo_weights", k: Any = None, **options: Any
) -> None:
    """Registers an estimator with verl, for `algorithm.adv_estimator=name`.

    Groups are the rows with one `uid`. A response's reward is the sum over its tokens, and all of
    its tokens get its advantage. Rows without a token in the mask are left out, such as those that
    verl fills a batch up with. Where rollouts have failed, groups differ in size: see
    `pkpo_jax.adapters.groups.of_any_size`.

    Args:
      name: what the config calls it.
      estimator, k, options: those of `pkpo_jax.adapters.groups.make`; k is no schedule, because
        verl does not say which step it is at.

    Raises:
      ValueError: there is no such estimator, or k is a schedule.
      ImportError: verl is not installed.
    """
    advantages, core = groups.prepare(
        "verl", "verl.trainer.ppo.core_algos", "pip install verl", estimator, k, options
    )

    of_groups = groups.of_any_size(advantages)

    @core.register_adv_est(name)
    def of_rewards(
        token_level_rewards: Any, response_mask: Any, index: Any, **_: Any
    ) -> tuple[Any, Any]:
        rewards = token_level_rewards.detach().sum(-1).double().cpu().numpy()
        counted = response_mask.bool().any(-1).cpu().numpy()
        found = groups.by_row(of_groups, rewards, index, counted)
        tokens = token_level_rewards.new_tensor(found).unsqueeze(-1) * response_mask
        return tokens, tokens
