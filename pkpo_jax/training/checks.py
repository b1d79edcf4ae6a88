"""Checks of a config before anything compiles. Each error names the key and how to fix it."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

from absl import logging
from ml_collections import config_dict

from pkpo_jax import mixtures, parallel, schedules, tasks
from pkpo_jax.policy import checkpoints, sizes
from pkpo_jax.tasks import code
from pkpo_jax.tasks.base import literals
from pkpo_jax.tasks.code import sandbox
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import evaluation, policies, prompts, token_weights, weights
from pkpo_jax.training.config import Config, ConfigError, get


def validate(
    config: config_dict.ConfigDict, devices: int, *, reads_weights: bool = True
) -> config_dict.ConfigDict:
    """Checks whether a config can run on `devices` devices.

    Args:
      config: the config to check.
      devices: how many devices the run has.
      reads_weights: whether the run reads the parameters of a policy. Compiling alone does not.

    Returns:
      The config with what follows from its checkpoint; see policies.resolve.

    Raises:
      ConfigError: a key has a value that cannot run. The message is of one line.
    """
    _check_names(config)
    for name, key in config_lib.KEYS.items():
        _check_value(name, get(config, name), key)
    config = policies.resolve(config, reads_weights=reads_weights)
    frozen = config_lib.freeze(config)
    _check_estimator(frozen)
    _check_grading(frozen)
    _check_loss(frozen)
    _check_token_weights(frozen)
    _check_logs(frozen)
    _check_model(frozen, reads_weights)
    _check_prompt(frozen)
    _check_batches(frozen, devices)
    return config


def _check_names(config: config_dict.ConfigDict) -> None:
    task = (config.get("task") or {}).get("name", "")
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


def _check_value(name: str, value: Any, key: config_lib.Key) -> None:
    """Raises a ConfigError if the value of one key is not what its declaration allows."""
    if key.optional and value is None:
        return
    bounds = {"above": key.above, "at least": key.at_least, "at most": key.at_most}
    said = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key.choices:
        good, expected = value in key.choices, f"one of {', '.join(key.choices)}"
    elif key.type is bool:
        good, expected = isinstance(value, bool), "True or False"
    elif key.type is str:
        good, expected = isinstance(value, str), "a string"
    elif key.type is int:
        good = number and isinstance(value, int) and _within(value, key) and value < 2**32
        expected = f"a whole number, {' and '.join([*said, 'below 2^32'])}"
    elif key.type is float:
        good = number and math.isfinite(value) and _within(value, key)
        expected = f"a number {' and '.join(said)}" if said else "a finite number"
    else:
        return
    if not good:
        or_none = ", or None" if key.optional else ""
        raise ConfigError(f"{name}={value!r}; expected {expected}{or_none}.")


def _within(value: float, key: config_lib.Key) -> bool:
    return (
        (key.above is None or value > key.above)
        and (key.at_least is None or value >= key.at_least)
        and (key.at_most is None or value <= key.at_most)
    )


def _check_model(config: Config, reads_weights: bool) -> None:
    if config.model.size == "tiny" and (config.model.chat or config.model.tokenizer):
        raise ConfigError(
            f"model.chat={config.model.chat}, model.tokenizer={config.model.tokenizer!r}; the tiny "
            "policy reads characters and has no turns: leave them False and ''."
        )
    if reads_weights and config.model.checkpoint:
        try:
            checkpoints.locate(config.model.checkpoint)
        except checkpoints.CheckpointError as e:
            needed = " Adapters need the parameters that their training started from."
            raise ConfigError(
                f"model.checkpoint: {e}{needed if config.model.lora.rank else ''}"
            ) from None
    rank, size = config.model.lora.rank, sizes.SIZES.get(config.model.size)
    if rank and reads_weights and not config.model.checkpoint:
        raise ConfigError(
            f"model.lora.rank={rank}, and model.checkpoint is empty; adapters change pretrained "
            "parameters: set model.checkpoint, or model.lora.rank=0."
        )
    if size and rank > (least := min(size.embed_dim, size.num_kv_heads * size.head_dim)):
        raise ConfigError(
            f"model.lora.rank={rank}; the smallest matrices of Gemma {config.model.size} have the "
            f"rank {least}: set a lower one, or 0 to train the matrices themselves."
        )
    if reads_weights and config.model.size != "tiny" and not config.model.checkpoint:
        raise ConfigError(
            f"model.checkpoint is empty; Gemma {config.model.size} starts from official weights: "
            f"set --config.model.checkpoint to {checkpoints.WHERE}."
        )


def _check_prompt(config: Config) -> None:
    prompts.Template.parse(config.prompt.template)
    stop: Any = config.prompt.stop
    if not isinstance(stop, tuple) or not all(isinstance(s, str) and s for s in stop):
        raise ConfigError(
            f"prompt.stop={stop!r}; expected a tuple of strings that are not empty, such as "
            "('\\n',), or ()."
        )


def _check_batches(config: Config, devices: int) -> None:
    """Checks that every batch splits over the devices: first its prompts, then their responses."""
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
    for key, rows, n, parts in (
        ("train.prompts", config.train.prompts, config.rollout.n, micro * config.train.minibatches),
        ("warm_start.batch", config.warm_start.batch, None, micro),
        ("eval.prompts", config.eval.prompts, config.eval.n, 1),
    ):
        if key == "warm_start.batch" and not config.warm_start.steps:
            continue
        if rows % parts:
            into = f"train.minibatches={parts // micro} of " if parts > micro else ""
            raise ConfigError(
                f"{key}={rows} does not split into {into}train.micro_batches={micro} equal parts; "
                f"make it a multiple of {parts}, or that fewer."
            )
        prompt_axes, response_axes = parallel.batch_axes(sizes, rows // parts, n or 1)
        split = math.prod(sizes[a] for a in (prompt_axes if pmap else prompt_axes + response_axes))
        if split == data * fsdp:
            continue
        in_parts = f" in {parts} parts" if parts > 1 else ""
        if n is None and not pmap:
            logging.warning(
                f"{key}={rows}{in_parts} does not split over {data * fsdp} devices, and several "
                f"compute the same demonstrations; make it a multiple of {data * fsdp}."
            )
            continue
        raise ConfigError(
            f"{key}={rows}{in_parts} does not split over {data * fsdp} devices, nor do the "
            f"responses; make it a multiple of {data * fsdp}, use fewer (micro-)batches, or "
            f"change parallel.mesh={mesh}."
        )


def _check_grading(config: Config) -> None:
    """Checks that a program that runs out of time is graded before the pool stops waiting for it.

    Such a program is graded as wrong, whereas one that the pool has to end gets no grade.
    """
    task = config.task
    if task["name"] == "revision":
        inner = task["inner"]
        task = {"name": inner, **tasks.options(inner), **(literals(task["options"]) or {})}
    if task["name"] != "code" or not config.grading.workers:
        return
    timeout = task["timeout"]
    needed = code.PATIENCE * timeout + sandbox.START_TIMEOUT
    if config.grading.timeout < needed:
        raise ConfigError(
            f"grading.timeout={config.grading.timeout} with task.timeout={timeout}; "
            f"{code.PATIENCE:g} times task.timeout may pass on a busy machine until it is used up, "
            f"and {sandbox.START_TIMEOUT:g} seconds until a sandbox starts: set grading.timeout to "
            f"{needed:g} or more, or task.timeout lower."
        )


def _check_estimator(config: Config) -> None:
    n, estimator = config.rollout.n, config.estimator
    alone = (estimator.name == "pkpo" and estimator.baseline == "none") or ":" in estimator.name
    alone |= estimator.name in ("shapley", "distinct_shapley", "volume")
    if n < 2 and not alone:
        raise ConfigError(
            f"rollout.n={n}: the estimator compares the samples of a prompt; set rollout.n to 2 or "
            "more, or estimator.name='pkpo' and estimator.baseline='none'."
        )
    try:
        ks = config_lib.k_by_step(config.k)
        schedules.step(ks)
    except ValueError as e:
        raise ConfigError(f"k={config.k!r}: {e}") from None
    try:
        largest = weights.largest_k(estimator, n)
        weights.check(estimator, n, list(dict.fromkeys(ks.values())))
    except ValueError as e:
        raise ConfigError(f"estimator.name={estimator.name!r}: {e}") from None
    for k in (max(mixtures.components(value)) for value in ks.values()):
        if k > largest:
            baseline = largest < n and estimator.name in ("pkpo", "pass_hat_k")
            reason = f" with baseline {estimator.baseline!r}" if baseline else ""
            raise ConfigError(
                f"k={config.k!r}: {k} is above {largest}, the largest k that rollout.n={n} samples "
                f"serve{reason}; lower k or raise rollout.n."
            )
    adaptive = estimator.name == "passk_training" and estimator.method == "adaptive"
    if adaptive and config.parallel.mode == "pmap":
        raise ConfigError(
            "estimator.method='adaptive' ranks all prompts of a batch, and parallel.mode='pmap' "
            "sees those of a device; set parallel.mode='jit'."
        )


def _check_loss(config: Config) -> None:
    loss, updates = config.loss, config.train.epochs * config.train.minibatches
    if updates > 1 and loss.policy == "reinforce":
        raise ConfigError(
            f"train.epochs={config.train.epochs}, train.minibatches={config.train.minibatches} "
            "with loss.policy='reinforce', which does not know that the policy has moved; set "
            "loss.policy='ppo', 'gspo' or 'cispo', or both to 1."
        )
    if loss.policy == "gspo" and loss.aggregation == "token-mean":
        raise ConfigError(
            "loss.policy='gspo' with loss.aggregation='token-mean'; the ratios are of whole "
            "responses, which token-mean does not know: set loss.aggregation='sequence-mean', as "
            "in the paper, or 'sequence-sum'."
        )
    if loss.policy in ("gspo", "cispo") and loss.dual_clip:
        raise ConfigError(
            f"loss.dual_clip={loss.dual_clip} with loss.policy={loss.policy!r}, which has no such "
            "bound; set loss.dual_clip=0, or loss.policy='ppo'."
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
            f"{loss.kl_in_reward}; set loss.kl to k1, k2, k3 or sage."
        )
    if loss.kl_in_reward and loss.kl != "k1":
        raise ConfigError(
            f"loss.kl_in_reward with loss.kl={loss.kl!r}; the sum over a response is its KL "
            "divergence for k1 alone: set loss.kl='k1', or loss.kl_in_reward=False."
        )
    if loss.kl_in_reward and config.estimator.name in (
        *weights.BINARY,
        *weights.SHAPED,
    ):
        raise ConfigError(
            f"loss.kl_in_reward with estimator.name={config.estimator.name!r}, which reads rewards "
            "as right or wrong; set loss.kl_in_reward=False, or use another estimator."
        )
    off_policy = config.estimator.name == "off_policy"
    if off_policy and loss.importance_cap:
        raise ConfigError(
            f"loss.importance_cap={loss.importance_cap} with estimator.name='off_policy', whose "
            "weights hold the importance ratios already; set loss.importance_cap to 0."
        )
    if config.rollout.ahead and not loss.importance_cap and not off_policy:
        raise ConfigError(
            "rollout.ahead with loss.importance_cap=0; responses are one update old then: set "
            "loss.importance_cap, for example to 2.0, or estimator.name='off_policy'."
        )


def _check_token_weights(config: Config) -> None:
    name, n, estimator = config.loss.token_weights, config.rollout.n, config.estimator
    try:
        token_weights.check(name, n)
    except ValueError as e:
        raise ConfigError(f"loss.token_weights={name!r}: {e}") from None
    if name != "resrl":
        return
    if n < 2:
        raise ConfigError(
            f"loss.token_weights='resrl' with rollout.n={n}; it compares wrong responses to a "
            "prompt with right ones: set rollout.n to 2 or more, or loss.token_weights=''."
        )
    later = any(k != 1 for k in config_lib.k_by_step(config.k).values())
    plain = estimator.name == "pkpo" and estimator.baseline == "loo_minus_one" and later
    if plain or estimator.name == "tang":
        raise ConfigError(
            f"loss.token_weights='resrl' with estimator.name={estimator.name!r}, which gives the "
            "worst responses the weight 0; set estimator.name='pkpo' and "
            "estimator.baseline='centered', or another estimator with negative weights."
        )


def _check_logs(config: Config) -> None:
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
    """Returns the names of the metrics of an n-sample evaluation for which higher is better."""
    at_k = [f"{kind}_{k}" for kind in evaluation.AT_K for k in evaluation.reported_ks(n)]
    return [*at_k, "reward_mean", "majority"]
