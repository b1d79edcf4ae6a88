"""Every config key with its default, and the checks that run before anything compiles."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.estimators import schedules
from pkpo_jax.estimators.pkpo import Baseline
from pkpo_jax.policy import checkpoints, gemma2


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
    # Parts in which a step's prompts are scored, one after the other: less memory, same gradient.
    # Best where each part still has a prompt for every device of data x fsdp.
    config.train.micro_batches = 1
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
    # "jit": one program over the mesh. "pmap": one program a device, parameters on each of them;
    # the mesh is (-1, 1, 1) then.
    config.parallel.mode = "jit"
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


def validate(config: config_dict.ConfigDict, devices: int, *, weights: bool = True) -> None:
    """Raises a one-line ConfigError on the first key that cannot run on `devices` devices.

    `weights` is whether the run reads weights: compiling needs none.
    """
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
    _check_model(config, weights)
    _check_batches(config, devices)


def _check_model(config: config_dict.ConfigDict, weights: bool) -> None:
    for key in ("model.checkpoint", "model.tokenizer"):
        if not isinstance(_get(config, key), str):
            raise ConfigError(f"{key}={_get(config, key)!r}; expected a path, or '' for none.")
    for key in ("model.chat", "model.remat", "rollout.drop_long_prompts"):
        if not isinstance(_get(config, key), bool):
            raise ConfigError(f"{key}={_get(config, key)!r}; expected True or False.")
    if config.model.size == "tiny" and (config.model.chat or config.model.tokenizer):
        raise ConfigError(
            f"model.chat={config.model.chat}, model.tokenizer={config.model.tokenizer!r}; the tiny "
            "policy reads characters and has no turns: leave them False and ''."
        )
    if weights and config.model.checkpoint:
        try:
            checkpoints.locate(config.model.checkpoint)
        except checkpoints.CheckpointError as e:
            raise ConfigError(f"model.checkpoint: {e}") from None
    if weights and config.model.size != "tiny" and not config.model.checkpoint:
        raise ConfigError(
            f"model.checkpoint is empty; Gemma-2 {config.model.size} starts from official weights: "
            f"set --config.model.checkpoint to {checkpoints.WHERE}."
        )


def _check_batches(config: config_dict.ConfigDict, devices: int) -> None:
    """Every batch splits over the devices: prompts first, then the responses of each."""
    mesh = tuple(config.parallel.mesh)
    data, fsdp, tensor = mesh_shape(mesh, devices)
    pmap = config.parallel.mode == "pmap"
    if pmap and fsdp * tensor > 1:
        raise ConfigError(
            f"parallel.mode='pmap' with parallel.mesh={mesh}; pmap keeps all parameters on each "
            "device: set parallel.mesh to (-1, 1, 1), or parallel.mode to 'jit'."
        )
    sizes, micro = {"data": data, "fsdp": fsdp}, config.train.micro_batches
    for key, n, parts in (
        ("train.prompts", config.rollout.n, micro),
        ("warm_start.batch", None, micro),
        ("eval.prompts", config.eval.n, 1),
    ):
        rows = _get(config, key)
        if key == "warm_start.batch" and not config.warm_start.steps:
            continue
        if rows % parts:
            raise ConfigError(
                f"{key}={rows} does not split into train.micro_batches={parts} equal parts; make "
                "one a multiple of the other."
            )
        if n is None and not pmap:
            continue  # Demonstrations that do not split are computed by several devices alike.
        prompt_axes, response_axes = parallel.batch_axes(sizes, rows // parts, n or 1)
        split = math.prod(sizes[a] for a in (prompt_axes if pmap else prompt_axes + response_axes))
        if split != data * fsdp:
            in_parts = f" in {parts} micro-batches" if parts > 1 else ""
            raise ConfigError(
                f"{key}={rows}{in_parts} does not split over {data * fsdp} devices, nor do the "
                f"responses; make it a multiple of {data * fsdp}, use fewer micro-batches, or "
                f"change parallel.mesh={mesh}."
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
    "train.micro_batches": 1,
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
    "model.param_dtype": ("float32", "bfloat16"),
    "parallel.mode": ("jit", "pmap"),
    "estimator.name": ("pkpo",),
    "estimator.baseline": get_args(Baseline),
}
