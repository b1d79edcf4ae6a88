"""A tiny Gemma-2 learns what small grids of ARC-AGI-1 look like, with PKPO, k = 8, on two cores.

python -m pkpo_jax.main --config=configs/arc_tiny.py --workdir=runs/arc

3 minutes of processor time. It learns what a grid looks like, hardly the tasks' rules. Over 14
held-out problems, of one seed, before and after RL: the share of right cells .053 and .121, the
best of 8 .226 and .288; no grid in .667 and .442 of the responses. All cells are right in .018 and
.017 of them: no change.
"""

from ml_collections import config_dict

from pkpo_jax.configs import recipes
from pkpo_jax.training import config as config_lib


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = config_lib.default(task="arc")
    config.k = 8

    # Of 178 tasks those whose prompts have less than 200 characters: 30 to train on, each as it is
    # and in 32 variants, and 12 held out.
    config.task.subset = "easy"
    config.task.max_side = 10
    config.task.augment = 32
    # The share of right cells: hardly any answer of a tiny policy is right in all.
    config.task.reward = "cells"
    config.rollout.max_prompt = 200
    config.rollout.drop_long_prompts = True
    # The longest of their grids, with newlines, and EOS.
    config.rollout.max_response = 48
    config.rollout.n = 16

    config.warm_start.steps = 300
    config.warm_start.batch = 16
    config.warm_start.learning_rate = 3e-3

    config.train.steps = 100
    config.train.prompts = 8
    config.train.learning_rate = 6e-4
    config.train.warmup_steps = 10
    config.train.decay_fraction = 1.0

    config.eval.every = 50
    config.eval.problems = 64
    config.eval.n = 64
    config.eval.prompts = 16
    return recipes.apply(config, argument)
