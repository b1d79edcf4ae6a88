"""A tiny Gemma-2 learns reasoning-gym's countdown of three small numbers with PKPO, k = 8.

python -m pkpo_jax.main --config=configs/puzzles_tiny.py --workdir=runs/puzzles

The run takes 3 minutes of processor time. On held-out problems with one seed, RL raises pass@1 from
.199 to .229 and pass@8 from .672 to .730. Most held-out puzzles are also in the train split, with
their numbers in another order.
"""

from ml_collections import config_dict

from pkpo_jax.configs import recipes
from pkpo_jax.training import config as config_lib


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = config_lib.default(task="puzzles")
    config.k = 8

    config.task.puzzle = "countdown"
    config.task.options = (
        "min_numbers=3, max_numbers=3, min_value=1, max_value=9, min_target=1, max_target=99"
    )
    # The prompt is the target and the numbers that make it, instead of a page of English.
    config.task.template = "{target}={numbers}\n"
    config.task.train_problems, config.task.test_problems = 4096, 256

    # The longest prompt is BOS, 99=[9, 9, 9] and a newline. The longest response is (9 + 9)/9, as
    # sympy writes it, and EOS.
    config.rollout.max_prompt = 14
    config.rollout.max_response = 12
    config.rollout.n = 16

    config.warm_start.steps = 300
    config.warm_start.batch = 64
    config.warm_start.learning_rate = 3e-3

    config.train.steps = 400
    config.train.prompts = 16
    config.train.learning_rate = 6e-4
    config.train.warmup_steps = 10
    config.train.decay_fraction = 1.0

    config.eval.every = 100
    config.eval.problems = 256
    config.eval.n = 32
    return recipes.apply(config, argument)
