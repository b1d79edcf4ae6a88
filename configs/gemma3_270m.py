"""The settings that the experiments with Gemma 3 270M on a laptop share.

This is the base model, without instruction tuning, so that prompts show worked examples and a
response ends with its line. `python -m experiments.pretrained.fetch` gets it.
"""

from ml_collections import config_dict

from pkpo_jax.training import config as config_lib


def base(task: str) -> config_dict.ConfigDict:
    """Returns the config of a task with k = 8: 16 steps of 8 prompts with 16 responses each."""
    config = config_lib.default(task=task)
    config.k = 8
    # The head is tied to the embedding of 262,144 tokens. Without its gradient and its optimiser's
    # state, an update takes less time and less memory.
    config.model.train_embedding = False

    config.prompt.stop = ("\n",)
    config.rollout.n = 16

    config.train.steps = 16
    config.train.prompts = 8
    # This rate was tuned on sums of other seeds, for k = 1 and for k = 8 (see docs/gemma.md).
    config.train.learning_rate = 1e-6
    config.train.warmup_steps = 4
    config.train.decay_fraction = 0.0

    config.eval.every = 16
    config.eval.problems = 64
    config.eval.n = 16
    # Evaluation has the shapes of a training step, so that one compiled sampler serves both.
    config.eval.prompts = 8
    return config
