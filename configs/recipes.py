"""The arguments of configs, which follow a colon: recipes of the papers, and k.

    --config=configs/gemma2_9b_math.py:k=8,anneal
    --config=configs/maze_tiny.py:paper_b,k=4

An argument is one or more of these words, separated by commas, in any order:

    paper_a, paper_b   train as in the paper: estimator, loss, and epochs and minibatches of a batch
    k=K                train for pass@K
    tang               train with k = rollout.n, which is the estimator of Tang et al.
    entropy=C          plain RL (k = 1) with an entropy bonus, which is paper A's baseline, with the
                       best C of .001 .005 .01 .05 .1
    anneal, anneal=S   change from k to 1 at step S, by default 1500, as in paper A's figure
    explore=S-T        pass@1, then pass@k from step S to T, then pass@1 again, as in paper B

A recipe does not change the task, the policy or its sizes. Without k, tang or entropy, k is that of
the config.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ml_collections import config_dict

ANNEAL_AT = 1500


def paper_a(config: config_dict.ConfigDict) -> None:
    """Sets Pass@K Policy Optimization (arXiv 2505.15201), PPO with loo_minus_one reward weights.

    The paper does not state clip, epochs, KL or aggregation. We choose the common clip of 0.2, one
    epoch of one minibatch, no KL, and the sum over the tokens of a response, as in its theory.
    """
    config.estimator.name, config.estimator.baseline = "pkpo", "loo_minus_one"
    config.loss.policy, config.loss.aggregation = "ppo", "sequence-sum"
    config.loss.clip_low = config.loss.clip_high = 0.2


def paper_b(config: config_dict.ConfigDict) -> None:
    """Sets Pass@k Training (arXiv 2508.10751), PPO with analytical advantages.

    The ratio is clipped at 0.2 below and 0.28 above 1, the loss is a mean over all tokens, and a
    batch (of 128 prompts in the paper) has four minibatches. There is no KL and no entropy bonus.
    """
    config.estimator.name, config.estimator.method = "passk_training", "analytical"
    config.loss.policy, config.loss.aggregation = "ppo", "token-mean"
    config.loss.clip_low, config.loss.clip_high = 0.2, 0.28
    config.train.epochs, config.train.minibatches = 1, 4


RECIPES: dict[str, Callable[[config_dict.ConfigDict], None]] = {
    "paper_a": paper_a,
    "paper_b": paper_b,
}
_EXPECTED = (
    "paper_a, paper_b, k=K, tang, entropy=C, anneal, anneal=S or explore=S-T, separated by commas"
)


def apply(
    config: config_dict.ConfigDict, argument: str, recipe: str = ""
) -> config_dict.ConfigDict:
    """Changes the config as the argument says, and returns it.

    Args:
      config: the config, which is changed in place.
      argument: words separated by commas, as the module describes.
      recipe: the recipe to use if the argument names none; "" for none.

    Raises:
      ValueError: a word is unknown, repeated or malformed, or two words contradict each other.
    """
    given = [word.partition("=") for word in filter(None, argument.split(","))]
    words = {name: value for name, _, value in given}
    repeated = len(words) < len(given)
    valued = [name for name, equals, _ in given if equals and name in (*RECIPES, "tang")]
    names = [word for word in words if word in RECIPES] or [recipe]
    if names[0]:
        RECIPES[names[0]](config)
    number = {
        name: _value(words, name, form, default)
        for name, form, default in (
            ("k", r"[1-9]\d*", ""),
            ("tang", "", ""),
            ("entropy", r"\d*\.?\d+(e-?\d+)?", ""),
            ("anneal", r"[1-9]\d*", str(ANNEAL_AT)),
            ("explore", r"[1-9]\d*-[1-9]\d*", ""),
        )
        if name in words
    }
    unknown = [word for word in words if word not in RECIPES and word not in number]
    apart = [("k", "tang", "entropy"), ("anneal", "explore", "entropy"), tuple(RECIPES)]
    if (
        unknown
        or repeated
        or valued
        or any(sum(word in words for word in group) > 1 for group in apart)
    ):
        raise ValueError(f"the argument {argument!r}; expected {_EXPECTED}.")
    k = config.k
    if "k" in number:
        k = int(number["k"])
    if "tang" in number:
        k = config.rollout.n
    if "entropy" in number:
        k, config.loss.entropy_coef = 1, float(number["entropy"])
    if "anneal" in number:
        at = int(number["anneal"])
        k = {0: k, at: 1}
        # Training goes on for at least as many steps with k = 1 as before. This is our choice.
        config.train.steps = max(config.train.steps, 2 * at)
    if "explore" in number:
        start, end = map(int, number["explore"].split("-"))
        if not start < end:
            raise ValueError(
                f"explore={number['explore']}; expected the first step before the second."
            )
        k = {0: 1, start: k, end: 1}
        # At least as many steps of pass@1 follow as precede. This is our choice.
        config.train.steps = max(config.train.steps, end + start)
    config.k = k
    return config


def _value(words: dict[str, str], name: str, form: str, default: str) -> str:
    value = words[name] or default
    if not re.fullmatch(form, value):
        raise ValueError(f"{name}={words[name]}; expected {_EXPECTED}.")
    return value
