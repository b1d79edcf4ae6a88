"""Every config key, declared once: its default, what it may be, and what it means.

The sections are frozen dataclasses whose fields are the keys. Users hold a ConfigDict, which
`default` builds from them; the code computes with the sections themselves, see `freeze`. What one
key may be is checked from its declaration, and what several may be together, in checks.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from ml_collections import config_dict

from pkpo_jax import tasks
from pkpo_jax.estimators import passk_training, pkpo, schedules
from pkpo_jax.policy import sizes

Dtype = Literal["float32", "bfloat16"]
Returns = Literal["weights", "advantages"]
Policy = Literal["reinforce", "ppo"]
Aggregation = Literal["sequence-sum", "sequence-mean", "token-mean", "constant-length"]
Divergence = Literal["none", "k1", "k2", "k3"]


class ConfigError(ValueError):
    """A config that cannot run: names the key, the value and what was expected."""


class Key(NamedTuple):
    """What one key may be.

    Attributes:
      type: bool, int, float or str; any other type is checked together with other keys.
      optional: whether None is a value, too.
      choices: the strings that are allowed, of a Literal type or of a list.
      at_least, above, at_most: the bounds of a number; `above` itself is excluded.
      may_change: whether a run may go on with another value.
    """

    type: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    may_change: bool = False


def key(default: Any, **limits: Any) -> Any:
    """Declares a key whose values have `limits`, attributes of `Key`, beside its default."""
    return dataclasses.field(default=default, metadata=limits)


@dataclasses.dataclass(frozen=True)
class Model:
    """The policy: its size, where its parameters come from, and how it is computed."""

    # The tiny policy is trained from scratch; the others are the official Gemma-2.
    size: str = key("tiny", choices=tuple(sizes.SIZES))
    # The run starts from these weights: official ones, or DIR/checkpoints/<step>/params of a run.
    # If it is empty, it starts from random weights, which the tiny policy alone can do.
    checkpoint: str = ""
    # This is the path of Gemma-2's tokenizer.model; if it is empty, that is downloaded. The tiny
    # policy reads characters instead.
    tokenizer: str = ""
    # Prompts are put as a user's turn if True, as the instruction-tuned models expect them.
    chat: bool = False
    # Activations have this type. Norms, softmax, soft-caps, the head and log-probs are float32
    # whatever it is.
    dtype: Dtype = "float32"
    # The parameters and the optimiser's state have this type.
    param_dtype: Dtype = "float32"
    # The backward pass computes each layer again if True, and keeps one layer's activations.
    remat: bool = key(False, may_change=True)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How responses are sampled."""

    # Each prompt gets this many responses: its group.
    n: int = key(16, at_least=1)
    # A prompt has at most this many tokens, BOS included.
    max_prompt: int = key(32, at_least=1)
    # A response has at most this many tokens, its end included.
    max_response: int = key(16, at_least=1)
    # Problems with a longer prompt are left out, and counted, if True; they stop the run otherwise.
    drop_long_prompts: bool = False
    # Logits are divided by the temperature, in sampling and in the loss alike.
    temperature: float = key(1.0, at_least=0.01)
    # The next batch is sampled while this one is graded if True: responses are then one update old,
    # which loss.importance_cap corrects for in part.
    ahead: bool = False


@dataclasses.dataclass(frozen=True)
class Grading:
    """Where responses are graded, and how long that may take."""

    # This many processes grade. With 0 the run itself does, which suits graders that cannot hang.
    workers: int = key(0, at_least=0, may_change=True)
    # An answer that takes more seconds than this is invalid, and counted. The task code needs five
    # times its task.timeout, and five seconds, where the machine is busy.
    timeout: float = key(40.0, above=0, may_change=True)
    # What is left of a batch after this many seconds is invalid, and counted.
    batch_timeout: float = key(600.0, above=0, may_change=True)


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How the rewards of a group become the weights of its responses."""

    # The estimator is pkpo, passk_training, grpo, dr_grpo, rloo, maxrl, mahdavi, tang, or a
    # function of your own as module:function; see pkpo_jax.training.weights.make.
    name: str = "pkpo"
    # A function of your own returns "weights", whose SUM over the group estimates the gradient, or
    # "advantages", whose mean does and which are divided by n.
    returns: Returns = "weights"
    # Only pkpo has a baseline; see pkpo_jax.pkpo_weights.
    baseline: pkpo.Baseline = "loo_minus_one"
    # Only passk_training has methods; see pkpo_jax.passk_training_advantages.
    method: passk_training.Method = "analytical"


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the update minimises, given the weights of the responses."""

    # The objective is REINFORCE's, or PPO's clipped importance ratios, which several updates a
    # batch need.
    policy: Policy = "reinforce"
    # PPO keeps ratios within 1 - clip_low and 1 + clip_high.
    clip_low: float = key(0.2, at_least=0, at_most=1)
    clip_high: float = key(0.2, at_least=0)
    # Where the weight is negative, PPO keeps its product with the ratio above dual_clip times the
    # weight. There is no such bound with 0; it is more than 1 otherwise.
    dual_clip: float = key(0.0, at_least=0)
    # Token losses are added up or averaged as losses.token_scale says.
    aggregation: Aggregation = "sequence-sum"
    # This estimator of the KL divergence from the policy before RL (see losses.divergence) is
    # measured, and times kl_coef added to the loss. In the loss k1 has a gradient of zero mean: k2
    # and k3 regularise.
    kl: Divergence = "none"
    # With 0 the divergence is only measured.
    kl_coef: float = key(0.0, at_least=0)
    # The divergence (k1) is subtracted from the rewards if True, instead of added to the loss.
    kl_in_reward: bool = False
    # The policy's entropy, times this, is subtracted from the loss.
    entropy_coef: float = 0.0
    # A token's loss is multiplied by the ratio of its probability before the batch's first update
    # to that at which it was sampled, at most this; there are no such weights with 0.
    importance_cap: float = key(0.0, at_least=0)
    # Groups whose rewards are all equal are left out if True, also of the counts that the loss is
    # divided by.
    drop_equal_groups: bool = False
    # The tokens of responses that reached max_response are left out if True; their rewards stay in
    # the group.
    mask_truncated: bool = False


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Supervised training on the task's demonstrations before RL."""

    # There are this many supervised steps; there is no warm start with 0.
    steps: int = key(0, at_least=0)
    # A step has this many demonstrations.
    batch: int = key(64, at_least=1)
    # The learning rate rises linearly to this one over the warm-up steps.
    learning_rate: float = key(3e-3, at_least=0)
    warmup_steps: int = key(50, at_least=0)
    # Over this share of the steps, at the end, the learning rate falls linearly to 0.
    decay_fraction: float = key(0.3, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Train:
    """The RL steps and their optimiser, which is Adam with decoupled weight decay."""

    # The run ends after this many steps. A run goes on with more steps than it was started with,
    # finished or not, and with fewer, down to those it has done. If decay_fraction is above 0, its
    # learning rate follows the schedule of the new length from there on: after the fall to 0 at the
    # end of a finished run, it is back at what the longer schedule says.
    steps: int = key(300, at_least=0, may_change=True)
    # A step has this many prompts; each gets rollout.n responses.
    prompts: int = key(16, at_least=1)
    # PPO goes through a batch this many times.
    epochs: int = key(1, at_least=1)
    # Each time, it makes this many updates.
    minibatches: int = key(1, at_least=1)
    # An update's prompts are scored in this many parts, one after the other: less memory, the same
    # gradient. It is best if each part still has a prompt for every device of data x fsdp.
    micro_batches: int = key(1, at_least=1, may_change=True)
    # The learning rate rises linearly to this one over the warm-up steps.
    learning_rate: float = key(3e-4, at_least=0)
    warmup_steps: int = key(10, at_least=0)
    # Over this share of the steps, at the end, the learning rate falls linearly to 0.
    decay_fraction: float = key(0.0, at_least=0, at_most=1)
    # Adam's averages of the gradient and of its square decay by these.
    b1: float = key(0.9, at_least=0, at_most=1)
    b2: float = key(0.95, at_least=0, at_most=1)
    weight_decay: float = key(0.0, at_least=0)
    # Gradients are clipped to this global norm.
    clip_norm: float = key(1.0, above=0)
    # Updates whose loss or gradient is not finite are skipped. After this many steps in a row with
    # one, or with no response that could be graded, the run stops, and keeps the batch.
    max_skipped: int = key(5, at_least=1)


@dataclasses.dataclass(frozen=True)
class Eval:
    """The evaluations on held-out problems."""

    # There is an evaluation every so many steps, one before the first and one after the last.
    every: int = key(100, at_least=1)
    # This many held-out problems are evaluated, or all of them if there are fewer.
    problems: int = key(512, at_least=1)
    # Each problem gets this many samples.
    n: int = key(32, at_least=1)
    # A batch has this many problems.
    prompts: int = key(64, at_least=1)
    # Below 1, samples are drawn from the likeliest tokens that have this mass together.
    top_p: float = key(1.0, above=0, at_most=1)
    # This is the temperature of evaluations, 0 for greedy decoding; None for the rollouts' own.
    temperature: float | None = key(None, at_least=0)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the training state is saved, and for how long it is kept."""

    # There is a checkpoint every so many steps and one at the end, which is the only one with 0.
    every: int = key(100, at_least=0, may_change=True)
    # This many of the newest checkpoints are kept, beside the best one.
    keep: int = key(2, at_least=1, may_change=True)
    # The best checkpoint is that of the highest value of this metric; it is saved whenever an
    # evaluation is the best so far. None is kept if it is empty.
    best: str = key("eval/pass_at_1", may_change=True)


@dataclasses.dataclass(frozen=True)
class Log:
    """What is written beside metrics and checkpoints."""

    # Rollout samples go to DIR/samples every so many steps, and never with 0.
    samples_every: int = key(100, at_least=0, may_change=True)
    # They show this many prompts.
    samples: int = key(4, at_least=1, may_change=True)
    # The run ends with plots and report.html if True; sweeps of many short runs can do without.
    report: bool = key(True, may_change=True)
    # Metrics go to this project of Weights & Biases as well, if that is installed, and to none if
    # it is empty.
    wandb: str = key("", may_change=True)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the work is spread over devices."""

    # These are the devices along the axes data, fsdp and tensor; one of them may be -1 for the
    # rest.
    mesh: tuple[int, int, int] = key((-1, 1, 1), may_change=True)
    # "jit" is one program over the mesh; "pmap" is one program a device, with parameters on each of
    # them, and takes the mesh (-1, 1, 1).
    mode: Literal["jit", "pmap"] = key("jit", may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config, frozen. Its sections can be hashed and closed over by compiled steps."""

    # Parameters, data order and sampling are drawn from this seed. The mazes have one of their own.
    seed: int = key(0, at_least=0)
    # The task has a name, and beside it its own options: see the class pkpo_jax.tasks.TASKS[name].
    task: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "maze"})
    model: Model = Model()
    rollout: Rollout = Rollout()
    grading: Grading = Grading()
    estimator: Estimator = Estimator()
    # The run trains for pass@k with this k, with those of a staircase {first step: k} such as
    # {0: 8, 1500: 1}, or with those of "linear(8, 1, 1500)" or "cosine(8, 1, 1500)", which go from
    # 8 to 1 in 1500 steps; `k_by_step` reads each.
    k: int | Mapping[int, int] | str = 1
    loss: Loss = Loss()
    warm_start: WarmStart = WarmStart()
    train: Train = Train()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    parallel: Parallel = Parallel()


def _declared(section: type, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields the keys of a section and those below it, but for the task's, whose class has them."""
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


# Every key by its name, as in "train.steps", without those of the task.
KEYS: dict[str, Key] = dict(_declared(Config))


def default(task: str = "maze") -> config_dict.ConfigDict:
    """Returns a config with every key there is; a file in configs/ changes some of them."""
    values: dict[str, Any] = dataclasses.asdict(Config())
    values["task"] = {"name": task, **tasks.options(task)}
    # A ConfigDict knows by a value what may take its place; these two say nothing of it.
    values["k"] = config_dict.FieldReference(values["k"], field_type=object)
    values["eval"]["temperature"] = config_dict.placeholder(float)
    return config_dict.ConfigDict(values)


def freeze(config: config_dict.ConfigDict) -> Config:
    """Returns the config as frozen sections, with the types that their fields declare."""
    values = config.to_dict()
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.default):
            values[field.name] = type(field.default)(**values[field.name])
    return Config(**values)


def k_by_step(k: Any) -> dict[Any, Any]:
    """Returns {first step: k} of any spelling of the key k.

    Args:
      k: a number, a staircase {first step: k}, whose steps are strings in JSON, or a text that
        `pkpo_jax.schedules.parse` reads. A step or a k that is no integer stays as it is:
        `pkpo_jax.schedules.step` refuses it.

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
    return {int(s) if str(s).isdecimal() else s: value for s, value in k.items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("a.b", value) of every leaf. A mapping whose keys are no names, as k can be, is one.

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
    """Returns the error for a key that no config has, with the likeliest one, or its neighbours."""
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
