"""Every config key with its default, and the checks that run before anything compiles."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ml_collections import config_dict

from pkpo_jax import tasks
from pkpo_jax.estimators import schedules
from pkpo_jax.estimators.pkpo import Baseline
from pkpo_jax.policy import gemma2


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
    # Of activations: float32 or bfloat16. Parameters and the optimiser are float32.
    config.model.dtype = "float32"

    config.rollout = config_dict.ConfigDict()
    # Responses to a prompt: the group.
    config.rollout.n = 16
    # Tokens of a prompt (BOS included) and of a response (its end included), at most.
    config.rollout.max_prompt = 32
    config.rollout.max_response = 16
    config.rollout.temperature = 1.0

    config.estimator = config_dict.ConfigDict()
    config.estimator.name = "pkpo"
    # none, loo, loo_minus_one or centered; see pkpo_jax.pkpo_weights.
    config.estimator.baseline = "loo_minus_one"
    # The k of pass@k to train for: an int, or a staircase {step: k} such as {0: 8, 1500: 1}.
    config.k = config_dict.FieldReference(1, field_type=object)

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
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 10
    config.train.decay_fraction = 0.0
    # Adam, with decoupled weight decay; gradients are clipped to this global norm.
    config.train.b1 = 0.9
    config.train.b2 = 0.95
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0

    config.eval = config_dict.ConfigDict()
    # Steps between evaluations; there is always one before the first step and one after the last.
    config.eval.every = 100
    # Held-out problems (all if there are fewer), samples of each, and problems a batch.
    config.eval.problems = 512
    config.eval.n = 32
    config.eval.prompts = 64

    config.checkpoint = config_dict.ConfigDict()
    # Steps between checkpoints, beside the one at the end; 0 for that one alone.
    config.checkpoint.every = 100
    # How many to keep.
    config.checkpoint.keep = 2

    config.parallel = config_dict.ConfigDict()
    # Devices along the axes data, fsdp, tensor; one of them may be -1 for the rest.
    config.parallel.mesh = (-1, 1, 1)
    return config


def mesh_shape(mesh: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
    """`mesh` with its -1 filled in, or a ConfigError if `devices` do not divide so.

    >>> mesh_shape((-1, 1, 2), devices=8)
    (4, 1, 2)
    """
    valid = len(mesh) == 3 and all(type(size) is int and (size == -1 or size > 0) for size in mesh)
    free = sum(size == -1 for size in mesh)
    known = math.prod(size for size in mesh if size != -1) if valid else 1
    if not valid or free > 1 or devices % known or (not free and known != devices):
        raise ConfigError(
            f"parallel.mesh={tuple(mesh)} does not split {devices} device(s); set three sizes "
            f"(data, fsdp, tensor) whose product is {devices}, one of them -1 for the rest."
        )
    return tuple(devices // known if size == -1 else size for size in mesh)


def validate(config: config_dict.ConfigDict, devices: int) -> None:
    """Raises a one-line ConfigError on the first key that cannot run on `devices` devices."""
    _check_keys(config)
    for key, low in _WHOLE_NUMBERS.items():
        value = _get(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**32:
            raise ConfigError(
                f"{key}={value!r}; expected a whole number, at least {low} and below 2^32."
            )
    for key, (low, high, strict) in _NUMBERS.items():
        value = _get(config, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (low < value if strict else low <= value) or not value <= high:
            above = f"above {low}" if strict else f"at least {low}"
            below = "" if high == math.inf else f" and at most {high}"
            raise ConfigError(f"{key}={value!r}; expected a number {above}{below}.")
    for key, choices in _CHOICES.items():
        if _get(config, key) not in choices:
            raise ConfigError(f"{key}={_get(config, key)!r}; expected one of {', '.join(choices)}.")
    _check_k(config)
    data, fsdp, _ = mesh_shape(config.parallel.mesh, devices)
    for key in ("train.prompts", "warm_start.batch", "eval.prompts"):
        if _get(config, key) % (data * fsdp):
            raise ConfigError(
                f"{key}={_get(config, key)} does not split over {data * fsdp} devices; make it a "
                f"multiple of {data * fsdp}, or change parallel.mesh={tuple(config.parallel.mesh)}."
            )


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


def _check_keys(config: config_dict.ConfigDict) -> None:
    task = config.get("task", {}).get("name")
    if task not in tasks.TASKS:
        raise ConfigError(f"task.name={task!r}; expected one of {', '.join(tasks.TASKS)}.")
    given = [key for key, _ in flatten(config.to_dict())]
    known = [key for key, _ in flatten(default(task).to_dict())]
    for key in given:
        if key not in known:
            raise unknown_key(key, known)
    for key in known:
        if key not in given:
            raise ConfigError(f"config key {key} is missing; start from config.default().")


def _check_k(config: config_dict.ConfigDict) -> None:
    n, baseline = config.rollout.n, config.estimator.baseline
    if baseline != "none" and n < 2:
        raise ConfigError(
            f"rollout.n={n}: baseline {baseline!r} compares the samples of a prompt; set "
            "rollout.n to 2 or more, or estimator.baseline='none'."
        )
    ks = k_spec(config)
    try:
        schedules.from_spec(ks)
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"k={ks!r}: {e}") from None
    largest = n - 1 if baseline in ("loo", "centered") else n
    for k in ks.values() if isinstance(ks, Mapping) else [ks]:
        if k > largest:
            reason = f" with baseline {baseline!r}" if largest < n else ""
            raise ConfigError(
                f"k={ks!r}: {k} is above {largest}, the largest k that rollout.n={n} samples "
                f"serve{reason}; lower k or raise rollout.n."
            )


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


def _get(config: config_dict.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


_WHOLE_NUMBERS = {
    "seed": 0,
    "rollout.n": 1,
    "rollout.max_prompt": 1,
    "rollout.max_response": 1,
    "warm_start.steps": 0,
    "warm_start.batch": 1,
    "warm_start.warmup_steps": 0,
    "train.steps": 0,
    "train.prompts": 1,
    "train.warmup_steps": 0,
    "eval.every": 1,
    "eval.problems": 1,
    "eval.n": 1,
    "eval.prompts": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
}
# Lowest value, highest value, whether the lowest is itself excluded.
_NUMBERS = {
    "rollout.temperature": (0.01, math.inf, False),
    "warm_start.learning_rate": (0, math.inf, False),
    "warm_start.decay_fraction": (0, 1, False),
    "train.learning_rate": (0, math.inf, False),
    "train.decay_fraction": (0, 1, False),
    "train.b1": (0, 1, False),
    "train.b2": (0, 1, False),
    "train.weight_decay": (0, math.inf, False),
    "train.clip_norm": (0, math.inf, True),
}
_CHOICES = {
    "model.size": tuple(gemma2.SIZES),
    "model.dtype": ("float32", "bfloat16"),
    "estimator.name": ("pkpo",),
    "estimator.baseline": get_args(Baseline),
}
