"""Gemma-2 9B learns MATH with PKPO, k = 8: gemma2_2b_math with the larger policy.

    python -m pkpo_jax.main --config=configs/gemma2_9b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

Its rows are those of gemma2_2b_math.

What a chip needs, compiled as gemma2_2b_math says, in GiB of 16:

    topology  mesh       tokens      sampling  update  peak  collectives: sampling, update
    v5e:8x16  (1,16,8)   256 + 512   3.6       7.1     7.1   10, 37
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, gemma2_2b_math


def get_config(argument: str = "") -> config_dict.ConfigDict:
    return gemma2.resize(gemma2_2b_math.get_config(argument), "9b")
