"""Gemma-2 9B learns to program on MBPP, as in gemma2_2b_code, and is evaluated on HumanEval.

    python -m pkpo_jax.main --config=configs/gemma2_9b_code.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MBPP \
        --config.task.allow_code_execution=True

The rows of the experiment are those of gemma2_2b_math.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, gemma2_2b_code


def get_config(argument: str = "") -> config_dict.ConfigDict:
    return gemma2.resize(gemma2_2b_code.get_config(argument), "9b")
