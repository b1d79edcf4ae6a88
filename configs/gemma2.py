"""The settings that the Gemma-2 experiments share.

Paper A is "Pass@K Policy Optimization" (arXiv 2505.15201). Its counts are used where they are
stated, and all other settings are our choice.
"""

from ml_collections import config_dict

from pkpo_jax.training import config as config_lib


def base(size: str, task: str) -> config_dict.ConfigDict:
    """Returns the config of Gemma-2 of a size ("2b", "9b" or "27b") on a task, with k = 8."""
    config = config_lib.default(task=task)
    # Paper A has 16 prompts a step, n = 16 responses to each, loo_minus_one, and k_opt of 1, 2, 4
    # and 8.
    config.k = 8
    config.rollout.n = 16
    config.train.prompts = 16

    # Lengths, optimiser and evaluation are not stated there. All the rest is our choice.
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
    # A token of few rows takes as long as reading the parameters. Batches of the evaluation are
    # therefore larger than those of training.
    config.eval.n = 16
    config.eval.prompts = 64
    config.checkpoint.every = 50

    # The papers do not state whether they train the base or the instruction-tuned model. We use the
    # latter.
    config.model.chat = True
    # Activations are bfloat16, while parameters and the optimiser's state are float32.
    config.model.dtype = "bfloat16"
    config.model.remat = True
    return resize(config, size)


def resize(config: config_dict.ConfigDict, size: str) -> config_dict.ConfigDict:
    """Returns the config with a policy of another size, and a mesh that fits it."""
    config.model.size = size
    # Heads are split over as many chips as there are key-value heads: a chip that samples reads its
    # share of the parameters for every token. --mode=compile predicts the time of a step for other
    # meshes. With more chips, the responses to each prompt are split too.
    config.parallel.mesh = {"2b": (-1, 4, 4), "9b": (-1, 16, 8), "27b": (-1, 16, 16)}[size]
    return config
