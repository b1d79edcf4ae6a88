"""Gemma-2 9B learns MATH with PKPO, k = 8: gemma2_2b_math with a larger policy.

    python -m pkpo_jax.main --config=configs/gemma2_9b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

The rows of the experiment are those of gemma2_2b_math.

A chip needs these GiB of its 16, and a step has these predicted seconds, as in gemma2_2b_math:

    topology   mesh       GiB: sampling  update  peak   s: sampling  update  step
    v5e:8x16   (1,16,8)   4.2            6.9     7.4    2.40         1.22    4.19
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, gemma2_2b_math


def get_config(argument: str = "") -> config_dict.ConfigDict:
    return gemma2.resize(gemma2_2b_math.get_config(argument), "9b")
