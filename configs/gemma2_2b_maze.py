"""Gemma-2 2B learns mazes of 7x7 to 21x21 with Pass@k Training: paper B's maze experiment.

    python -m pkpo_jax.main --config=configs/gemma2_2b_maze.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT

with CHECKPOINT as docs/gemma.md says; the mazes are generated. The rows of the experiment are
`:k=1`, `:k=4`, `:k=8` and `:k=16`, and `:k=8,explore=200-400` for pass@1, then pass@8, then pass@1
again.

Official weights could not be reached where this was written, so there is no measured result.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma2.base("2b", "maze")
    # Paper B states prompts a step (in minibatches of 32, which are the recipe's four), responses
    # to each, learning rate, warm-up and evaluation. Its policies are other than Gemma. It trains
    # on 10,000 mazes of each of the sides 9, 11, 13 and 15, and tests on sides 7 to 21, which are
    # those of all mazes here.
    config.task.min_side, config.task.max_side = 7, 21
    config.train.prompts = 128
    config.rollout.n = 32
    config.train.learning_rate = 1e-6
    config.train.warmup_steps = 10
    config.eval.n = 32
    config.eval.top_p = 0.95

    # The distribution of the mazes and the number of steps are not stated, and are our choice.
    config.task.fog = 0.0
    config.task.wall_density = 0.3
    config.task.min_path, config.task.max_path = 4, 0
    config.task.instruct = True
    config.train.steps = 600
    config.rollout.max_prompt = 640
    # The programs have the shapes of gemma2_2b_math, with a sixteenth of the batch at a time.
    config.train.micro_batches = 4
    config.eval.prompts = 32
    # The grader of mazes cannot hang, so it needs no workers.
    config.grading.workers = 0
    return recipes.apply(config, argument, "paper_b")
