"""Every config key with its default. `checks.py` says what they may be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from pkpo_jax import tasks


class ConfigError(ValueError):
    """A config that cannot run: names the key, the value, what was expected."""


def default(task: str = "maze") -> config_dict.ConfigDict:
    """A config with every key there is; a file in configs/ starts from it and changes some."""
    config = config_dict.ConfigDict()
    # Of parameters, data order and sampling. The mazes have a seed of their own.
    config.seed = 0

    # The task, and beside its name its own options: see the class `pkpo_jax.tasks.TASKS[name]`.
    config.task = config_dict.ConfigDict({"name": task, **tasks.options(task)})

    config.model = config_dict.ConfigDict()
    # tiny, 2b, 9b or 27b.
    config.model.size = "tiny"
    # Where to start from: official weights, or DIR/checkpoints/<step>/params of a run. Empty for
    # random weights, which the tiny policy alone can start from.
    config.model.checkpoint = ""
    # Gemma-2's tokenizer.model; empty to download it. The tiny policy reads characters instead.
    config.model.tokenizer = ""
    # Whether prompts are put as a user's turn, as the instruction-tuned models expect them.
    config.model.chat = False
    # Of activations, and of parameters and the optimiser: float32 or bfloat16. Norms, softmax,
    # soft-caps, the head and log-probs are float32 whatever these say.
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"
    # Whether the backward pass computes each layer again: it keeps one layer's activations then.
    config.model.remat = False

    config.rollout = config_dict.ConfigDict()
    # Responses to a prompt: the group.
    config.rollout.n = 16
    # Tokens of a prompt (BOS included) and of a response (its end included), at most.
    config.rollout.max_prompt = 32
    config.rollout.max_response = 16
    # Whether problems with a longer prompt are left out, and counted; they stop the run otherwise.
    config.rollout.drop_long_prompts = False
    config.rollout.temperature = 1.0
    # Sample the next batch while this one is graded: responses are then one update old, which
    # loss.importance_cap corrects for in part.
    config.rollout.ahead = False

    config.grading = config_dict.ConfigDict()
    # Processes that grade. 0 grades in the run's own: for graders that cannot hang.
    config.grading.workers = 0
    # Seconds for an answer, and for a whole batch; what takes longer is invalid, and counted. The
    # task code needs five times its task.timeout, and five seconds, where the machine is busy.
    config.grading.timeout = 40.0
    config.grading.batch_timeout = 600.0

    config.estimator = config_dict.ConfigDict()
    # pkpo, passk_training, grpo, dr_grpo, rloo, maxrl, mahdavi, tang, or a function of your own as
    # module:function; see pkpo_jax.training.weights.make.
    config.estimator.name = "pkpo"
    # Whether a function of your own returns "weights", whose SUM over the group estimates the
    # gradient, or "advantages", whose mean does and which are divided by n.
    config.estimator.returns = "weights"
    # Of pkpo: none, loo, loo_minus_one or centered; see pkpo_jax.pkpo_weights.
    config.estimator.baseline = "loo_minus_one"
    # Of passk_training: full, bootstrap, analytical, exceeding, combination or adaptive; see
    # pkpo_jax.passk_training_advantages.
    config.estimator.method = "analytical"
    # The k of pass@k to train for: an int, or a staircase {step: k} such as {0: 8, 1500: 1}.
    config.k = config_dict.FieldReference(1, field_type=object)

    config.loss = config_dict.ConfigDict()
    # reinforce, or ppo: clipped importance ratios, for several updates a batch.
    config.loss.policy = "reinforce"
    # PPO keeps ratios within 1 - clip_low and 1 + clip_high; where the weight is negative, their
    # product with it above dual_clip times the weight (0 for no such bound, or more than 1).
    config.loss.clip_low = 0.2
    config.loss.clip_high = 0.2
    config.loss.dual_clip = 0.0
    # sequence-sum, sequence-mean, token-mean or constant-length; see losses.token_scale.
    config.loss.aggregation = "sequence-sum"
    # KL divergence from the policy before RL: none, k1, k2 or k3 (see losses.divergence), times
    # kl_coef in the loss, or (k1) subtracted from the rewards. With kl_coef 0 it is only measured.
    # In the loss k1 has a gradient of zero mean: k2 or k3 regularise.
    config.loss.kl = "none"
    config.loss.kl_coef = 0.0
    config.loss.kl_in_reward = False
    config.loss.entropy_coef = 0.0
    # A token's loss is multiplied by the ratio of its probability before the batch's first update
    # to that at which it was sampled, at most this; 0 for no such weights.
    config.loss.importance_cap = 0.0
    # Leave out groups whose rewards are all equal, of the counts that the loss is divided by too.
    config.loss.drop_equal_groups = False
    # Leave out the tokens of responses that reached max_response; their rewards stay in the group.
    config.loss.mask_truncated = False

    config.warm_start = config_dict.ConfigDict()
    # Supervised steps on the task's demonstrations before RL; 0 for none.
    config.warm_start.steps = 0
    # Demonstrations a step.
    config.warm_start.batch = 64
    config.warm_start.learning_rate = 3e-3
    config.warm_start.warmup_steps = 50
    # Share of the steps, at the end, over which the learning rate falls linearly to 0.
    config.warm_start.decay_fraction = 0.3

    config.train = config_dict.ConfigDict()
    config.train.steps = 300
    # Prompts a step; each gets rollout.n responses.
    config.train.prompts = 16
    # Times that a batch is gone through, and updates each time: PPO's.
    config.train.epochs = 1
    config.train.minibatches = 1
    # Parts in which an update's prompts are scored, one after the other: less memory, the same
    # gradient. Best where each part still has a prompt for every device of data x fsdp.
    config.train.micro_batches = 1
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 10
    config.train.decay_fraction = 0.0
    # Adam, with decoupled weight decay; gradients are clipped to this global norm.
    config.train.b1 = 0.9
    config.train.b2 = 0.95
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0
    # Updates whose loss or gradient is not finite are skipped; after this many steps in a row with
    # one, or with no response that could be graded, the run stops, and keeps the batch.
    config.train.max_skipped = 5

    config.eval = config_dict.ConfigDict()
    # Steps between evaluations; there is always one before the first step and one after the last.
    config.eval.every = 100
    # Held-out problems (all if there are fewer), samples of each, and problems a batch.
    config.eval.problems = 512
    config.eval.n = 32
    config.eval.prompts = 64
    # Below 1, samples are drawn from the likeliest tokens that have this mass together.
    config.eval.top_p = 1.0
    # The temperature of evaluations: that of the rollouts if None, and 0 for greedy decoding.
    config.eval.temperature = config_dict.placeholder(float)

    config.checkpoint = config_dict.ConfigDict()
    # Steps between checkpoints, beside the one at the end; 0 for that one alone.
    config.checkpoint.every = 100
    # How many of the newest to keep, beside the best by this metric, the higher the better ("" for
    # none). It is saved whenever an evaluation is the best so far.
    config.checkpoint.keep = 2
    config.checkpoint.best = "eval/pass_at_1"

    config.log = config_dict.ConfigDict()
    # Steps between rollout samples in DIR/samples (0 for none), and prompts of each.
    config.log.samples_every = 100
    config.log.samples = 4
    # Whether the run ends with plots and report.html; sweeps of many short runs can do without.
    config.log.report = True
    # Project of Weights & Biases to log to as well, if it is installed; "" for none.
    config.log.wandb = ""

    config.parallel = config_dict.ConfigDict()
    # Devices along the axes data, fsdp, tensor; one of them may be -1 for the rest.
    config.parallel.mesh = (-1, 1, 1)
    # "jit": one program over the mesh. "pmap": one program a device, parameters on each of them;
    # the mesh is (-1, 1, 1) then.
    config.parallel.mode = "jit"
    return config


def unknown_key(key: str, known: list[str]) -> ConfigError:
    """The error for a key that no config has, with the likeliest one, or those beside it."""
    close = difflib.get_close_matches(key, known, 1, cutoff=0.8)
    section = key.rpartition(".")[0]
    beside = [k for k in known if k.rpartition(".")[0] == section]
    sections = dict.fromkeys(k.partition(".")[0] for k in known)
    if close:
        hint = f"did you mean {close[0]}?"
    elif beside:
        hint = f"the keys there are {', '.join(beside)}."
    else:
        hint = f"the first level is {', '.join(sections)}."
    return ConfigError(f"unknown config key {key}; {hint}")


def k_spec(config: config_dict.ConfigDict) -> Any:
    """`config.k` as an int or a dict."""
    return config.k.to_dict() if isinstance(config.k, config_dict.ConfigDict) else config.k


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) of every leaf; a mapping that is empty, or whose keys are no strings, is one.

    >>> list(flatten({"seed": 0, "k": {0: 8}, "train": {"steps": 3}}))
    [('seed', 0), ('k', {0: 8}), ('train.steps', 3)]
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get(config: config_dict.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
