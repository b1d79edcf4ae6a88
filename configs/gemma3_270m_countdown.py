"""Gemma 3 270M learns to reach a number with three others with PKPO, k = 8, on two CPU cores.

python -m experiments.pretrained.fetch --to=gemma3-270m --accept-gemma-terms
pip install -e ".[puzzles]"
pkpo-jax --config=gemma3_270m_countdown --workdir=runs/countdown \
    --config.model.checkpoint=gemma3-270m

Nearly all of its guesses are wrong at first. This is the hard one.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma3_270m, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma3_270m.base("puzzles")
    config.task.puzzle = "countdown"
    config.task.options = (
        "min_numbers=3, max_numbers=3, min_value=1, max_value=9, min_target=1, max_target=99"
    )
    config.task.template = "Make {target} of {numbers}."
    config.prompt.shots = 8
    config.rollout.max_prompt = 320
    config.rollout.max_response = 16
    config.train.learning_rate = 2e-6
    return recipes.apply(config, argument)
