"""Gemma 3 270M learns sums and differences of three digits with PKPO, k = 8, on two CPU cores.

python -m experiments.pretrained.fetch --to=gemma3-270m --accept-gemma-terms
pkpo-jax --config=gemma3_270m_sums --workdir=runs/sums --config.model.checkpoint=gemma3-270m
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma3_270m, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma3_270m.base("arithmetic")
    config.task.digits, config.task.terms = 1, 3
    # There are 4,000 such problems.
    config.task.train_problems, config.task.test_problems = 3000, 512
    # Six worked examples, such as "3-1+7=9", precede a prompt.
    config.prompt.shots = 6
    config.prompt.template = "{prompt}{response}\n"
    config.rollout.max_prompt = 64
    config.rollout.max_response = 4
    return recipes.apply(config, argument)
