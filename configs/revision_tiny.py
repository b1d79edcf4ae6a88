"""A tiny Gemma-2 learns sums, and to revise and verify its answers to them, on two CPU cores.

pkpo-jax --config=revision_tiny --workdir=runs/revision

This trains on right and wrong demonstrations. To train on the policy's own answers, as in REVES
(arXiv 2606.18910), sample its chains of revisions, and train on them:

python -m experiments.revision_chains --workdir=runs/revision --output=runs/chains.jsonl
pkpo-jax --config=revision_tiny --workdir=runs/reves --config.task.attempts=runs/chains.jsonl \
    --config.model.checkpoint=runs/revision/warm_start --config.warm_start.steps=0

`python -m experiments.toy_revision` does so on sums and on mazes, and compares with RL on the
problems alone; docs/tasks.md has the result. On sums the share of held-out problems that is solved
after up to eight revisions rises from .473 to .547 (mean of seeds 0 and 1), and with RL on the
problems alone to .530.
"""

from ml_collections import config_dict

from pkpo_jax.configs import recipes
from pkpo_jax.training import config as config_lib


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = config_lib.default(task="revision")
    config.k = 1

    # These are the sums of arithmetic_tiny.
    config.task.inner = "arithmetic"
    config.task.options = "operators='+-', digits=1, terms=3, train_problems=3000"

    # The longest prompt has BOS, 9-9-9=, an answer of a sign and three digits, and a mark.
    config.rollout.max_prompt = 12
    config.rollout.max_response = 4
    config.rollout.n = 16

    config.warm_start.steps = 600
    config.warm_start.batch = 64
    config.warm_start.learning_rate = 3e-3

    config.train.steps = 100
    config.train.prompts = 16
    config.train.learning_rate = 6e-4
    config.train.warmup_steps = 10
    config.train.decay_fraction = 1.0

    config.eval.every = 100
    config.eval.problems = 512
    config.eval.n = 32
    return recipes.apply(config, argument)
