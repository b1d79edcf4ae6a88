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
    # Eight worked examples, such as "[7, 3, 2] = 17: 2*7 + 3", precede a prompt. It ends with the
    # colon, and has up to 194 tokens. The puzzles' own answers have up to 9.
    config.task.template = "{numbers} = {target}:"
    config.prompt.shots = 8
    config.prompt.template = "{prompt} {response}\n"
    config.rollout.max_prompt = 200
    config.rollout.max_response = 12
    return recipes.apply(config, argument)
