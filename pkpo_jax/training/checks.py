"""The checks of a config, before anything compiles: each says what was given, and the mend."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.estimators import schedules
from pkpo_jax.policy import checkpoints, gemma2
from pkpo_jax.tasks import code
from pkpo_jax.tasks.code import sandbox
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import evaluation, losses, weights
from pkpo_jax.training.config import ConfigError, get


def validate(config: config_dict.ConfigDict, devices: int, *, reads_weights: bool = True) -> None:
    """Raises a one-line ConfigError on the first key that cannot run on `devices` devices.

    `reads_weights` is whether the run reads a policy's: compiling needs none.
    """
    _check_keys(config)
    for key, low in _WHOLE_NUMBERS.items():
        value = get(config, key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**32:
            raise ConfigError(
                f"{key}={value!r}; expected a whole number, at least {low} and below 2^32."
            )
    for key, (low, high, strict) in _NUMBERS.items():
        value = get(config, key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        finite = number and math.isfinite(value)
        if not finite or not (low < value if strict else low <= value) or not value <= high:
            above = f"above {low}" if strict else f"at least {low}"
            below = "" if high == math.inf else f" and at most {high}"
            raise ConfigError(f"{key}={value!r}; expected a number {above}{below}.")
    for key, choices in _CHOICES.items():
        if get(config, key) not in choices:
            raise ConfigError(f"{key}={get(config, key)!r}; expected one of {', '.join(choices)}.")
    temperature = config.eval.temperature
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ConfigError(
            f"eval.temperature={temperature!r}; expected a number of 0 (greedy) or more, or None "
            "for that of the rollouts."
        )
    _check_estimator(config)
    _check_grading(config)
    _check_loss(config)
    _check_model(config, reads_weights)
    _check_batches(config, devices)


def _check_model(config: config_dict.ConfigDict, reads_weights: bool) -> None:
    for key in ("model.checkpoint", "model.tokenizer"):
        if not isinstance(get(config, key), str):
            raise ConfigError(f"{key}={get(config, key)!r}; expected a path, or '' for none.")
    for key in _SWITCHES:
        if not isinstance(get(config, key), bool):
            raise ConfigError(f"{key}={get(config, key)!r}; expected True or False.")
    if config.model.size == "tiny" and (config.model.chat or config.model.tokenizer):
        raise ConfigError(
            f"model.chat={config.model.chat}, model.tokenizer={config.model.tokenizer!r}; the tiny "
            "policy reads characters and has no turns: leave them False and ''."
        )
    if reads_weights and config.model.checkpoint:
        try:
            checkpoints.locate(config.model.checkpoint)
        except checkpoints.CheckpointError as e:
            raise ConfigError(f"model.checkpoint: {e}") from None
    if reads_weights and config.model.size != "tiny" and not config.model.checkpoint:
        raise ConfigError(
            f"model.checkpoint is empty; Gemma-2 {config.model.size} starts from official weights: "
            f"set --config.model.checkpoint to {checkpoints.WHERE}."
        )


def _check_batches(config: config_dict.ConfigDict, devices: int) -> None:
    """Every batch splits over the devices: prompts first, then the responses of each."""
    mesh = tuple(config.parallel.mesh)
    try:
        data, fsdp, tensor = parallel.mesh_shape(mesh, devices)
    except ValueError as e:
        raise ConfigError(f"parallel.{e}") from None
    pmap = config.parallel.mode == "pmap"
    if pmap and fsdp * tensor > 1:
        raise ConfigError(
            f"parallel.mode='pmap' with parallel.mesh={mesh}; pmap keeps all parameters on each "
            "device: set parallel.mesh to (-1, 1, 1), or parallel.mode to 'jit'."
        )
    sizes, micro = {"data": data, "fsdp": fsdp}, config.train.micro_batches
    for key, n, parts in (
        ("train.prompts", config.rollout.n, micro * config.train.minibatches),
        ("warm_start.batch", None, micro),
        ("eval.prompts", config.eval.n, 1),
    ):
        rows = get(config, key)
        if key == "warm_start.batch" and not config.warm_start.steps:
            continue
        if rows % parts:
            into = f"train.minibatches={parts // micro} of " if parts > micro else ""
            raise ConfigError(
                f"{key}={rows} does not split into {into}train.micro_batches={micro} equal parts; "
                f"make it a multiple of {parts}, or that fewer."
            )
        if n is None and not pmap:
            continue  # Demonstrations that do not split are computed by several devices alike.
        prompt_axes, response_axes = parallel.batch_axes(sizes, rows // parts, n or 1)
        split = math.prod(sizes[a] for a in (prompt_axes if pmap else prompt_axes + response_axes))
        if split != data * fsdp:
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise ConfigError(
                f"{key}={rows}{in_parts} does not split over {data * fsdp} devices, nor do the "
                f"responses; make it a multiple of {data * fsdp}, use fewer (micro-)batches, or "
                f"change parallel.mesh={mesh}."
            )


def _check_keys(config: config_dict.ConfigDict) -> None:
    task = config.get("task", {}).get("name")
    try:
        default = config_lib.default(task).to_dict()
    except ValueError as e:
        raise ConfigError(str(e)) from None
    given = [key for key, _ in config_lib.flatten(config.to_dict())]
    known = [key for key, _ in config_lib.flatten(default)]
    for key in given:
        if key not in known:
            raise config_lib.unknown_key(key, known)
    for key in known:
        if key not in given:
            raise ConfigError(f"config key {key} is missing; start from config.default().")


def _check_grading(config: config_dict.ConfigDict) -> None:
    """Checks that a program that uses up its time is graded before the pool gives it up.

    It is wrong then; one that the pool has to end is left out.
    """
    if config.task.name != "code" or not config.grading.workers:
        return
    needed = code.PATIENCE * config.task.timeout + sandbox.START_TIMEOUT
    if config.grading.timeout < needed:
        raise ConfigError(
            f"grading.timeout={config.grading.timeout} with task.timeout={config.task.timeout}; "
            f"{code.PATIENCE:g} times task.timeout may pass on a busy machine until it is used up, "
            f"and {sandbox.START_TIMEOUT:g} seconds until a sandbox starts: set grading.timeout to "
            f"{needed:g} or more, or task.timeout lower."
        )


def _check_estimator(config: config_dict.ConfigDict) -> None:
    n, estimator, ks = config.rollout.n, config.estimator, config_lib.k_spec(config)
    alone = (estimator.name == "pkpo" and estimator.baseline == "none") or ":" in estimator.name
    if n < 2 and not alone:
        raise ConfigError(
            f"rollout.n={n}: the estimator compares the samples of a prompt; set rollout.n to 2 or "
            "more, or estimator.name='pkpo' and estimator.baseline='none'."
        )
    try:
        schedules.from_spec(ks)
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"k={ks!r}: {e}") from None
    values = list(ks.values()) if isinstance(ks, Mapping) else [ks]
    try:
        largest = weights.largest_k(estimator, n)
        weights.check(estimator, n, values)
    except ValueError as e:
        raise ConfigError(f"estimator.name={estimator.name!r}: {e}") from None
    for k in values:
        if k > largest:
            reason = f" with baseline {estimator.baseline!r}" if largest < n else ""
            raise ConfigError(
                f"k={ks!r}: {k} is above {largest}, the largest k that rollout.n={n} samples "
                f"serve{reason}; lower k or raise rollout.n."
            )
    adaptive = estimator.name == "passk_training" and estimator.method == "adaptive"
    if adaptive and config.parallel.mode == "pmap":
        raise ConfigError(
            "estimator.method='adaptive' ranks all prompts of a batch, and parallel.mode='pmap' "
            "sees those of a device; set parallel.mode='jit'."
        )


def _check_loss(config: config_dict.ConfigDict) -> None:
    loss, updates = config.loss, config.train.epochs * config.train.minibatches
    if updates > 1 and loss.policy == "reinforce":
        raise ConfigError(
            f"train.epochs={config.train.epochs}, train.minibatches={config.train.minibatches} "
            "with loss.policy='reinforce', which does not know that the policy has moved; set "
            "loss.policy='ppo', or both to 1."
        )
    if 0 < loss.dual_clip <= 1:
        raise ConfigError(f"loss.dual_clip={loss.dual_clip}; expected 0 (off) or more than 1.")
    if 0 < loss.importance_cap < 1:
        raise ConfigError(
            f"loss.importance_cap={loss.importance_cap}; expected 0 (off) or at least 1."
        )
    if loss.kl == "none" and (loss.kl_coef or loss.kl_in_reward):
        raise ConfigError(
            f"loss.kl='none' with loss.kl_coef={loss.kl_coef}, loss.kl_in_reward="
            f"{loss.kl_in_reward}; set loss.kl to k1, k2 or k3."
        )
    if loss.kl_in_reward and loss.kl != "k1":
        raise ConfigError(
            f"loss.kl_in_reward with loss.kl={loss.kl!r}; the sum over a response is its KL "
            "divergence for k1 alone: set loss.kl='k1', or loss.kl_in_reward=False."
        )
    if loss.kl_in_reward and config.estimator.name in weights.BINARY:
        raise ConfigError(
            f"loss.kl_in_reward with estimator.name={config.estimator.name!r}, which reads rewards "
            "as right or wrong; set loss.kl_in_reward=False, or use another estimator."
        )
    if config.rollout.ahead and not loss.importance_cap:
        raise ConfigError(
            "rollout.ahead with loss.importance_cap=0; responses are one update old then: set "
            "loss.importance_cap, to 2.0 for one."
        )
    for key in ("checkpoint.best", "log.wandb"):
        if not isinstance(get(config, key), str):
            raise ConfigError(f"{key}={get(config, key)!r}; expected a name, or '' for none.")
    best = config.checkpoint.best
    known = [f"eval/{name}" for name in evaluation_names(config.eval.n)]
    if best and best not in known:
        raise ConfigError(
            f"checkpoint.best={best!r}; expected '' or a metric of an evaluation: "
            f"{', '.join(known)}."
        )
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"log.wandb={config.log.wandb!r}, but wandb is not installed; pip install wandb, or "
            "set log.wandb=''."
        )


def evaluation_names(n: int) -> list[str]:
    """Metrics of an evaluation of n samples, the higher the better."""
    at_k = [f"{kind}_{k}" for kind in evaluation.AT_K for k in evaluation.reported_ks(n)]
    return [*at_k, "reward_mean", "majority"]


_SWITCHES = (
    "model.chat",
    "model.remat",
    "rollout.drop_long_prompts",
    "rollout.ahead",
    "loss.kl_in_reward",
    "loss.drop_equal_groups",
    "loss.mask_truncated",
    "log.report",
)
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
    "train.epochs": 1,
    "train.minibatches": 1,
    "train.micro_batches": 1,
    "train.max_skipped": 1,
    "grading.workers": 0,
    "train.warmup_steps": 0,
    "eval.every": 1,
    "eval.problems": 1,
    "eval.n": 1,
    "eval.prompts": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "log.samples_every": 0,
    "log.samples": 1,
}
# Lowest value, highest value, whether the lowest is itself excluded.
_NUMBERS = {
    "rollout.temperature": (0.01, math.inf, False),
    "grading.timeout": (0, math.inf, True),
    "grading.batch_timeout": (0, math.inf, True),
    "loss.clip_low": (0, 1, False),
    "loss.clip_high": (0, math.inf, False),
    "loss.dual_clip": (0, math.inf, False),
    "loss.kl_coef": (0, math.inf, False),
    "loss.entropy_coef": (-math.inf, math.inf, True),
    "loss.importance_cap": (0, math.inf, False),
    "eval.top_p": (0, 1, True),
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
    "estimator.returns": weights.RETURNS,
    "estimator.baseline": weights.BASELINES,
    "estimator.method": weights.METHODS,
    "loss.policy": losses.POLICIES,
    "loss.aggregation": losses.AGGREGATIONS,
    "loss.kl": losses.DIVERGENCES,
}
