"""Gemma-2 2B learns MBPP with PKPO, k = 8, and is evaluated on HumanEval: paper A's code tasks.

    python -m pkpo_jax.main --config=configs/gemma2_2b_code.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MBPP \
        --config.task.allow_code_execution=True

with CHECKPOINT and MBPP as docs/gemma.md says. The last flag is for you to set: the policy's
programs run on the hosts, each in a sandbox (pkpo_jax/tasks/code/sandbox.py). The rows of the
experiment are those of gemma2_2b_math.

Official weights could not be reached where this was written, so there is no measured result. Memory
is that of gemma2_2b_math.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma2.base("2b", "code")
    # In paper A the reward is the fraction of tests passed. It states its counts for MATH alone; we
    # use them here too.
    config.task.reward = "fraction"
    config.task.evaluate_on = "humaneval"
    # We choose as many steps as on MATH, which are 25 epochs of the 974 problems, and prompts that
    # are long enough for HumanEval.
    config.train.steps = 1500
    config.rollout.max_prompt = 640
    config.eval.problems = 164
    return recipes.apply(config, argument, "paper_a")
