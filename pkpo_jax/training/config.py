"""Every config key, declared once: its default, the values it may have, and its meaning.

The sections are frozen dataclasses whose fields are the keys. Users work with a ConfigDict, which
`default` builds from the sections; the code computes with the sections themselves, see `freeze`.
The module checks.py checks the value of each key against its declaration here, and checks which
values of several keys fit together.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import config_dict

from pkpo_jax import schedules, tasks
from pkpo_jax.estimators import passk_training, pkpo
from pkpo_jax.policy import lora, sizes

Dtype = Literal["float32", "bfloat16"]
Returns = Literal["weights", "advantages"]
Base = Literal["grpo", "dr_grpo", "rloo", "maxrl", "passk_training", "pkpo"]
Policy = Literal["reinforce", "ppo", "gspo", "cispo"]
Aggregation = Literal["sequence-sum", "sequence-mean", "token-mean", "constant-length"]
Divergence = Literal["none", "k1", "k2", "k3", "sage"]


class ConfigError(ValueError):
    """The error of a config that cannot run, which names the key, its value and how to fix it."""


class Key(NamedTuple):
    """The declaration of one key: its type and the values that it may have.

    Attributes:
      type: bool, int, float or str; values of any other type are checked with other keys.
      optional: whether the value may also be None.
      choices: the strings that are allowed, from a Literal type or from a list.
      at_least, above, at_most: the bounds of a number; `above` itself is excluded.
      may_change: whether a run may be resumed with another value.
    """

    type: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    may_change: bool = False


def key(default: Any, **limits: Any) -> Any:
    """Declares a key by its default and the limits of its values, which are attributes of `Key`."""
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA), which are trained in place of the policy's parameters."""

    # The adapters have this rank; with 0 there are none, and the parameters themselves are trained.
    # With adapters, nothing else is trained: neither the embedding table nor the norms.
    rank: int = key(0, at_least=0)
    # The outputs of the adapters are multiplied by alpha / rank.
    alpha: float = key(32.0, above=0)
    # The matrices of "attention", of the feed-forward networks ("mlp"), or "all" have adapters.
    targets: lora.Targets = "all"


@dataclasses.dataclass(frozen=True)
class Model:
    """The policy: its size, where its parameters come from, and how it is computed."""

    # The tiny policy is trained from scratch; 2b, 9b and 27b are the official Gemma 2. "auto" is
    # the size of the checkpoint, or tiny without one.
    size: str = key("auto", choices=("auto", *sizes.SIZES))
    # The run starts from these parameters: official ones, or DIR/checkpoints/<step>/params of a
    # run. If it is empty, the run starts from random ones, which only the tiny policy can do.
    checkpoint: str = ""
    # This is the path of the official tokenizer.model. If it is empty, the one beside the
    # checkpoint is read, or else that of the gemma package, which downloads it. The tiny policy
    # reads characters instead.
    tokenizer: str = ""
    # If True, each prompt is wrapped as a user's turn, as instruction-tuned models expect.
    chat: bool = False
    # If False, the embedding table, which is also the head, stays as it is. Its gradient and the
    # optimiser's state of it then take neither time nor memory, which counts in small models.
    train_embedding: bool = True
    # The low-rank adapters, which are float32. A run with adapters keeps them alone in its
    # checkpoints, and reads `checkpoint` again whenever it is resumed or evaluated.
    lora: Lora = Lora()
    # Activations have this dtype. Norms, softmax, soft-caps, logits and log-probs are always
    # float32.
    dtype: Dtype = "float32"
    # The parameters and the optimiser's state have this dtype.
    param_dtype: Dtype = "float32"
    # If True, the backward pass recomputes each layer and keeps one layer's activations at a time.
    remat: bool = key(False, may_change=True)
    # With "dots", remat also keeps the results of dense products, which takes less time and more
    # memory than "full". Without remat this has no effect.
    remat_policy: Literal["full", "dots"] = key("full", may_change=True)
    # If True, scoring and updates compile the layers one by one, and not as a loop. This saves time
    # on CPUs, where remat then has no effect. The more layers, the longer it takes to compile.
    unroll: bool = key(False, may_change=True)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a problem is put to the policy, and where its response ends."""

    # Every prompt starts with this many worked examples (few-shot prompting), the same for all.
    # They are training problems with right demonstrations, and are not trained on. A model without
    # instruction tuning needs them.
    shots: int = key(0, at_least=0)
    # The choice of the worked examples depends on this seed.
    seed: int = key(0, at_least=0)
    # A worked example is written like this. A prompt ends where {response} begins, or at the spaces
    # before it: the policy writes these, and they are removed from its response.
    template: str = "{prompt}{response}\n\n"
    # A response ends at the first of these strings, which is not a part of it. Sampling stops at
    # every token whose text contains one of them, and each has to be contained in some token. If
    # several tokens spell one together, sampling goes on, and what follows is not graded.
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How responses are sampled."""

    # Each prompt gets this many responses, which are its group.
    n: int = key(16, at_least=1)
    # A prompt has at most this many tokens, including BOS.
    max_prompt: int = key(32, at_least=1)
    # A response has at most this many tokens, including its stop token.
    max_response: int = key(16, at_least=1)
    # Problems with a longer prompt are left out and counted if this is True. Otherwise they stop
    # the run before it starts.
    drop_long_prompts: bool = False
    # Logits are divided by the temperature, both in sampling and in the loss.
    temperature: float = key(1.0, at_least=0.01)
    # If True, the next batch is sampled while this one is graded. The policy that samples it is
    # then one update old, for which loss.importance_cap or the estimator off_policy corrects in
    # part.
    ahead: bool = False


@dataclasses.dataclass(frozen=True)
class Grading:
    """Where responses are graded, and how long that may take."""

    # This many processes grade. With 0 the training process grades, which suits graders that
    # cannot hang.
    workers: int = key(0, at_least=0, may_change=True)
    # A response that takes more seconds than this is counted as invalid. On a busy machine, the
    # task code needs five times its task.timeout and five seconds more.
    timeout: float = key(40.0, above=0, may_change=True)
    # The responses of a batch that are not graded after this many seconds are counted as invalid.
    batch_timeout: float = key(600.0, above=0, may_change=True)


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How the rewards of a group become the reward weights of its responses."""

    # The estimator is one of pkpo_jax.training.weights.NAMES, or your function as module:function;
    # see pkpo_jax.training.weights.make.
    name: str = "pkpo"
    # Your function returns "weights", whose SUM over the group estimates the gradient, or
    # "advantages", whose mean over the group does and which are divided by its size here.
    returns: Returns = "weights"
    # If True, your function is given the answer classes of the responses as a further argument.
    classes: bool = False
    # If True, your function is given the mean hidden states of the responses as its last argument,
    # and volume takes them for directions in place of answers. They cost a pass over the network.
    embeddings: bool = False
    # Only pkpo and pass_hat_k have a baseline; see pkpo_jax.pkpo_weights.
    baseline: pkpo.Baseline = "loo_minus_one"
    # Only passk_training has methods; see pkpo_jax.passk_training_advantages.
    method: passk_training.Method = "analytical"
    # edas and rarity reshape the advantages of this estimator.
    base: Base = "grpo"
    # This is the quantile of k samples that quantile trains for, and the quantile of the group that
    # quantile_baseline subtracts.
    quantile: float = key(0.5, above=0, at_most=1)
    # top_mean trains for the mean of this many best samples of k.
    top: int = key(2, at_least=1)
    # trimmed_mean leaves out this share of the best of k samples and of the worst ones.
    trim: float = key(0.25, at_least=0, at_most=0.49)
    # posterior multiplies what it has counted of a problem by this at each visit to it, as the
    # policy moves: 1 forgets nothing, and 0 looks at the current group alone.
    discount: float = key(0.7, at_least=0, at_most=1)
    # posterior starts from so many right and so many wrong responses to each problem: 1 takes all
    # pass rates for equally likely, and 0.5 (Jeffreys) is less biased for those near 0.
    prior: float = key(1.0, above=0)


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss that an update minimises, given the reward weights of the responses."""

    # The objective is that of REINFORCE, or that of PPO, GSPO or CISPO with clipped importance
    # ratios, which several updates on one batch need; see losses.policy_loss.
    policy: Policy = "reinforce"
    # Ratios are kept within 1 - clip_low and 1 + clip_high. These defaults are PPO's: the ratios of
    # GSPO, which are of whole responses, need a range of about 3e-4 and 4e-4, and CISPO has no
    # lower bound (clip_low=1).
    clip_low: float = key(0.2, at_least=0, at_most=1)
    clip_high: float = key(0.2, at_least=0)
    # For a negative reward weight, PPO keeps the product of weight and ratio above dual_clip times
    # the weight. It is more than 1, or 0 for no such bound.
    dual_clip: float = key(0.0, at_least=0)
    # The losses of tokens are summed or averaged as losses.token_scale describes.
    aggregation: Aggregation = "sequence-sum"
    # This estimator of the KL divergence from the policy before RL (see losses.divergence) is
    # measured, multiplied by kl_coef and added to the loss. As a term of the loss, k1 has a
    # gradient of zero mean and does not regularise; k2, k3 and sage do.
    kl: Divergence = "none"
    # With 0 the divergence is only measured.
    kl_coef: float = key(0.0, at_least=0)
    # If True, the divergence (k1) is subtracted from the rewards and not added to the loss.
    kl_in_reward: bool = False
    # The reference of sage is multiplied by 1 + guide_strength * max(entropy - guide_entropy, 0),
    # within losses.GUIDE_RANGE. The entropy is that of the policy at the token, in nats.
    guide_strength: float = key(0.3)
    guide_entropy: float = key(1.2, at_least=0)
    # The policy's entropy is multiplied by this and subtracted from the loss.
    entropy_coef: float = 0.0
    # The loss of a token is multiplied by its importance ratio, at most this: its probability
    # before the batch's first update, divided by that at which it was sampled. With 0 the loss is
    # not corrected.
    importance_cap: float = key(0.0, at_least=0)
    # If this is empty, each token has the reward weight of its response. Otherwise the weights of
    # tokens are those of "resrl", or of your function as module:function; see token_weights.make.
    token_weights: str = ""
    # If True, zero-variance groups, whose rewards are all equal, are left out of the loss and of
    # the counts that it is divided by.
    drop_equal_groups: bool = False
    # If True, the tokens of responses that were cut at max_response are left out of the loss. The
    # rewards of these responses still count within their group.
    mask_truncated: bool = False


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """The SFT warm start: supervised training on the task's demonstrations before RL."""

    # The warm start takes this many supervised steps; with 0 there is none.
    steps: int = key(0, at_least=0)
    # Each step trains on this many demonstrations.
    batch: int = key(64, at_least=1)
    # The learning rate increases linearly to this value over the warm-up steps.
    learning_rate: float = key(3e-3, at_least=0)
    warmup_steps: int = key(50, at_least=0)
    # Over this last share of the steps the learning rate decreases linearly to 0.
    decay_fraction: float = key(0.3, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Train:
    """The RL steps and their optimiser."""

    # The run ends after this many steps. A run, finished or not, can be resumed with more steps
    # than it was started with, or with fewer, down to the number it has done. If decay_fraction is
    # above 0, the learning rate then follows the schedule of the new length: a finished run whose
    # learning rate had decayed to 0 resumes with the rate of the longer schedule.
    steps: int = key(300, at_least=0, may_change=True)
    # A step has this many prompts; each gets rollout.n responses.
    prompts: int = key(16, at_least=1)
    # PPO goes through a batch this many times.
    epochs: int = key(1, at_least=1)
    # Each of these epochs makes this many updates.
    minibatches: int = key(1, at_least=1)
    # The prompts of an update are scored in this many parts, one after the other, which saves
    # memory and gives the same gradient. It is best if each part still has a prompt for every
    # device of data x fsdp.
    micro_batches: int = key(1, at_least=1, may_change=True)
    # The learning rate increases linearly to this value over the warm-up steps.
    learning_rate: float = key(3e-4, at_least=0)
    warmup_steps: int = key(10, at_least=0)
    # Over this last share of the steps the learning rate decreases linearly to 0.
    decay_fraction: float = key(0.0, at_least=0, at_most=1)
    # "adam" is Adam, and "sgd" gradient descent with momentum b1, whose steps shrink with the
    # gradient. Both have decoupled weight decay. The SFT warm start has the same optimiser.
    optimizer: Literal["adam", "sgd"] = "adam"
    # These are Adam's decay rates for its averages of the gradient and of the squared gradient. The
    # momentum of SGD adds gradients up, so that a constant one moves parameters by
    # learning_rate / (1 - b1) a step; b2 is Adam's alone.
    b1: float = key(0.9, at_least=0, at_most=1)
    b2: float = key(0.95, at_least=0, at_most=1)
    weight_decay: float = key(0.0, at_least=0)
    # Gradients are clipped to this global norm.
    clip_norm: float = key(1.0, above=0)
    # Updates whose loss or gradient is not finite are skipped. The run stops and saves the batch
    # after this many steps in a row that had such an update or no response that could be graded.
    max_skipped: int = key(5, at_least=1)


@dataclasses.dataclass(frozen=True)
class Eval:
    """The evaluations on held-out problems."""

    # An evaluation takes place each time after this many steps, before the first step and after
    # the last.
    every: int = key(100, at_least=1)
    # This many held-out problems are evaluated, or all of them if there are fewer.
    problems: int = key(512, at_least=1)
    # Each problem gets this many samples.
    n: int = key(32, at_least=1)
    # A batch of the evaluation has this many problems. Samples do not depend on it.
    prompts: int = key(64, at_least=1, may_change=True)
    # Below 1, tokens are sampled from the most likely ones, whose probabilities sum to this.
    top_p: float = key(1.0, above=0, at_most=1)
    # Evaluations sample at this temperature: 0 is greedy decoding, None means rollout.temperature.
    temperature: float | None = key(None, at_least=0)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the training state is saved, and for how long it is kept."""

    # A checkpoint is saved each time after this many steps, and after the last step. With 0 only
    # the last one is saved.
    every: int = key(100, at_least=0, may_change=True)
    # This many of the newest checkpoints are kept, in addition to the best one.
    keep: int = key(2, at_least=1, may_change=True)
    # The best checkpoint is the one with the highest value of this metric. It is saved whenever an
    # evaluation is the best so far. If this is empty, no best checkpoint is kept.
    best: str = key("eval/pass_at_1", may_change=True)


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run writes in addition to metrics and checkpoints."""

    # Samples of the rollout are written to DIR/samples each time after this many steps, and never
    # with 0.
    samples_every: int = key(100, at_least=0, may_change=True)
    # Each of these files shows this many prompts.
    samples: int = key(4, at_least=1, may_change=True)
    # If True, the run ends by writing plots and report.html, which sweeps of many short runs do
    # not need.
    report: bool = key(True, may_change=True)
    # Metrics are also logged to this project of Weights & Biases, which has to be installed. If it
    # is empty, they are not.
    wandb: str = key("", may_change=True)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the work is divided among devices."""

    # These are the numbers of devices along the axes data, fsdp and tensor. One of them may be -1
    # for all remaining devices.
    mesh: tuple[int, int, int] = key((-1, 1, 1), may_change=True)
    # "jit" runs one program over the mesh. "pmap" runs one program on each device, with a copy of
    # all parameters on each, and needs the mesh (-1, 1, 1).
    mode: Literal["jit", "pmap"] = key("jit", may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config, frozen. Its sections are hashable, so compiled steps can close over them."""

    # Random parameters, the order of the data and sampling depend on this seed. The mazes have a
    # seed of their own.
    seed: int = key(0, at_least=0)
    # The section of the task holds its name and its options, which the class
    # pkpo_jax.tasks.TASKS[name] describes.
    task: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "maze"})
    model: Model = Model()
    prompt: Prompt = Prompt()
    rollout: Rollout = Rollout()
    grading: Grading = Grading()
    estimator: Estimator = Estimator()
    # The run trains for pass@k with this k, with those of a staircase {first step: k} such as
    # {0: 8, 1500: 1}, or with those of "linear(8, 1, 1500)" or "cosine(8, 1, 1500)", which go from
    # 8 to 1 in 1500 steps. "mixture(1: .5, 8: .5)" trains for the weighted sum of pass@1 and
    # pass@8, and "blend(8, 1, 1500)" goes from pass@8 to pass@1 by such sums, without a jump.
    # `k_by_step` reads each.
    k: int | Mapping[int, int] | str = 1
    loss: Loss = Loss()
    warm_start: WarmStart = WarmStart()
    train: Train = Train()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    parallel: Parallel = Parallel()


def _declared(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields the keys of a section and of its subsections, except the task's options.

    The class of the task declares those.
    """
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        arguments = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from _declared(hint, f"{name}.")
        elif typing.get_origin(hint) is Literal:
            yield name, Key(str, choices=arguments, **field.metadata)
        elif types.NoneType in arguments:
            yield name, Key(arguments[0], optional=True, **field.metadata)
        elif name != "task":
            yield name, Key(hint, **field.metadata)


# This maps names such as "train.steps" to the keys. The options of the task are not among them.
KEYS: dict[str, Key] = dict(_declared(Config))


def default(task: str = "maze") -> config_dict.ConfigDict:
    """Returns a config with all keys at their defaults; a file in configs/ changes some of them."""
    values: dict[str, Any] = dataclasses.asdict(Config())
    values["task"] = {"name": task, **tasks.options(task)}
    # A ConfigDict infers the type of a key from its value, but these two may have several types.
    values["k"] = config_dict.FieldReference(values["k"], field_type=object)
    values["eval"]["temperature"] = config_dict.placeholder(float)
    return config_dict.ConfigDict(values)


def freeze(config: config_dict.ConfigDict) -> Config:
    """Returns the config as frozen sections, with the types that their fields declare."""
    return _section(Config, config.to_dict())


def _section(kind: type, values: Mapping[str, Any]) -> Any:
    """Returns the values of a section, with its subsections, as an instance of `kind`."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(kind)}
    return kind(
        **{
            name: _section(kinds[name], value) if dataclasses.is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )


def k_by_step(k: Any) -> dict[Any, Any]:
    """Returns {first step: k} of any spelling of the key k.

    Args:
      k: a number, a staircase {first step: k}, whose steps are strings in JSON, or a text that
        `pkpo_jax.schedules.parse` reads. A staircase may hold mixtures as text. A step or a number
        that is no integer stays as it is: `pkpo_jax.schedules.step` refuses it.

    Raises:
      ValueError: a text that names no schedule.

    >>> k_by_step(8), k_by_step({"0": 8, "1500": 1}), k_by_step("linear(2, 1, 10)")
    ({0: 8}, {0: 8, 1500: 1}, {0: 2, 6: 1})
    """
    if isinstance(k, str):
        return schedules.parse(k)
    if not isinstance(k, Mapping | config_dict.ConfigDict):
        return {0: k}
    # The steps are strings in JSON.
    ks = {int(s) if str(s).isdecimal() else s: value for s, value in k.items()}
    return {s: schedules.parse_k(k) if isinstance(k, str) else k for s, k in ks.items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a pair ("a.b", value) for every leaf of a nested mapping.

    A mapping whose keys are not identifiers, such as a schedule of k, is a leaf.

    >>> list(flatten({"seed": 0, "k": {"0": 8}, "train": {"steps": 3}}))
    [('seed', 0), ('k', {'0': 8}), ('train.steps', 3)]
    """
    for name, value in config.items():
        if isinstance(value, Mapping) and value and all(str(k).isidentifier() for k in value):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get(config: config_dict.ConfigDict, key: str) -> Any:
    """Returns the value of a key such as "train.steps"."""
    for part in key.split("."):
        config = config[part]
    return config


def unknown_key(key: str, known: list[str]) -> ConfigError:
    """Returns the error for an unknown key, with the keys that are most likely meant.

    These are the most similar key, or those with the same last name, or those of the same section.
    """
    section, _, name = key.rpartition(".")
    close = difflib.get_close_matches(key, known, 1, cutoff=0.8)
    close = close or [k for k in known if k.rpartition(".")[2] == name]
    neighbours = [k for k in known if k.rpartition(".")[0] == section]
    sections = dict.fromkeys(k.partition(".")[0] for k in known)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif neighbours:
        hint = f"the keys there are {', '.join(neighbours)}."
    else:
        hint = f"the first level is {', '.join(sections)}."
    return ConfigError(f"unknown config key {key}; {hint}")
