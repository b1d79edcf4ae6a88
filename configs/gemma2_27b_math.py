"""Gemma-2 27B learns MATH with PKPO, k = 8: gemma2_2b_math with the largest policy.

    python -m pkpo_jax.main --config=configs/gemma2_27b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

A chip needs these GiB of its 16, and a step has these predicted seconds, as in gemma2_2b_math:

    topology   mesh       GiB: sampling  update  peak   s: sampling  update  step
    v5e:16x16  (1,16,16)  7.0            9.1     9.1    3.33         1.58    5.62
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, gemma2_2b_math


def get_config(argument: str = "") -> config_dict.ConfigDict:
    return gemma2.resize(gemma2_2b_math.get_config(argument), "27b")
