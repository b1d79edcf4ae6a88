"""Gemma-2 2B learns MATH with PKPO, k = 8, from official weights.

    python -m pkpo_jax.main --config=configs/gemma2_2b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

with CHECKPOINT as the README's "Gemma-2" says, and MATH the release of
github.com/hendrycks/math. On several hosts add --distributed, and give paths that all of them see.

Official weights could not be reached where this was written, so there is no measured result. What a
chip needs, compiled for TPUs that were not there (`--mode=compile --topology=...`; jax 0.10.2,
libtpu 0.0.42.1), in GiB of the 16 that a v5e has; collectives are what a chip receives a step:

    topology  mesh       tokens      sampling  update  peak  collectives: sampling, update
    v5e:4x4   (1,16,1)   256 + 512   7.5       7.1     8.7   13, 37
    v5e:4x4   (1,16,1)   256 + 1024  6.9       13.0    13.0  23, 45
    v5e:8x16  (8,16,1)   256 + 512   7.5       3.7     8.7   5, 23

The peak is the larger of the two, the optimiser's state counted while the policy samples. v5e:8x16
is the paper's slice; 45 TFLOP of matrix products a chip to sample and 181 to update on v5e:4x4.
"""

from ml_collections import config_dict

from configs import recipes
from pkpo_jax.training import config as config_lib


def get_config(recipe: str = "paper_a") -> config_dict.ConfigDict:
    config = config_lib.default(task="math")
    # Paper A: n = 16 responses to each of 16 prompts a step, loo_minus_one, k_opt in 1, 2, 4, 8.
    config.k = 8
    config.rollout.n = 16
    config.train.prompts = 16
    # 469 steps an epoch of the 7,500 training problems of the release.
    config.train.steps = 1500

    # Lengths, optimiser and evaluation are not stated in the paper: our choice.
    config.rollout.max_prompt = 256
    config.rollout.max_response = 512
    config.rollout.drop_long_prompts = True
    config.grading.workers = 8
    config.train.learning_rate = 1e-6
    config.train.warmup_steps = 50
    config.train.b2 = 0.99
    config.train.clip_norm = 1.0
    config.eval.every = 50
    config.eval.problems = 500
    # The shapes of a training step: one sampler serves both.
    config.eval.n = 16
    config.eval.prompts = 16
    config.checkpoint.every = 50

    # Which of the papers' models, base or instruction-tuned, is not stated: the latter here.
    config.model.size = "2b"
    config.model.chat = True
    # A bfloat16 network with float32 parameters and optimiser.
    config.model.dtype = "bfloat16"
    config.model.remat = True
    # Prompts and parameters over 16 chips; where there are more, the responses of each prompt too.
    config.parallel.mesh = (-1, 16, 1)
    return recipes.apply(config, recipe)
