"""What the Gemma-2 experiments share: paper A's counts, and our choice of the rest."""

from ml_collections import config_dict

from pkpo_jax.training import config as config_lib


def base(size: str, task: str) -> config_dict.ConfigDict:
    """Gemma-2 of a size on a task, k = 8."""
    config = config_lib.default(task=task)
    # Paper A: n = 16 responses to each of 16 prompts a step, loo_minus_one, k_opt in 1, 2, 4, 8.
    config.k = 8
    config.rollout.n = 16
    config.train.prompts = 16

    # Lengths, optimiser and evaluation are not stated there: all the rest is our choice.
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
    config.model.chat = True
    # A bfloat16 network with float32 parameters and optimiser.
    config.model.dtype = "bfloat16"
    config.model.remat = True
    return resize(config, size)


def resize(config: config_dict.ConfigDict, size: str) -> config_dict.ConfigDict:
    """The config with a policy of another size, and a mesh to fit it."""
    config.model.size = size
    # Prompts and parameters over 16 chips, and heads over so many that each has a key-value head;
    # where there are more chips, the responses of each prompt are split over them too.
    config.parallel.mesh = (-1, 16, {"2b": 1, "9b": 8, "27b": 16}[size])
    return config
