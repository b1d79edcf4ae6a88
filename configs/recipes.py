"""The papers' training recipes: what they set, on top of any experiment's config.

    --config=configs/maze_tiny.py:paper_b

They change the estimator, the loss, k and how often a batch is used, and leave the task, the policy
and its sizes alone.
"""

from collections.abc import Callable

from ml_collections import config_dict


def paper_a(config: config_dict.ConfigDict) -> None:
    """Pass@K Policy Optimization (arXiv 2505.15201): PPO with loo_minus_one weights.

    The paper does not state clip, epochs, KL or aggregation. Ours: the common clip of 0.2, one
    epoch of one minibatch, no KL, and the sum over a response's tokens, of which its theory is.
    """
    config.estimator.name, config.estimator.baseline = "pkpo", "loo_minus_one"
    config.loss.policy, config.loss.aggregation = "ppo", "sequence-sum"
    config.loss.clip_low = config.loss.clip_high = 0.2


def paper_b(config: config_dict.ConfigDict) -> None:
    """Pass@k Training (arXiv 2508.10751): analytical advantages, clip 0.2 below and 0.28 above, a
    mean over all tokens, four minibatches a batch (of 128 prompts there), no KL, no entropy."""
    config.estimator.name, config.estimator.method = "passk_training", "analytical"
    config.loss.policy, config.loss.aggregation = "ppo", "token-mean"
    config.loss.clip_low, config.loss.clip_high = 0.2, 0.28
    config.train.epochs, config.train.minibatches = 1, 4


RECIPES: dict[str, Callable[[config_dict.ConfigDict], None]] = {
    "": lambda config: None,
    "paper_a": paper_a,
    "paper_b": paper_b,
}


def apply(config: config_dict.ConfigDict, name: str) -> config_dict.ConfigDict:
    """The config with a recipe's changes; ValueError if there is no such recipe."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r}; expected one of {', '.join(filter(None, RECIPES))}.")
    RECIPES[name](config)
    return config
