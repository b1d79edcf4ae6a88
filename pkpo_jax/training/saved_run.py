"""Functions that read a finished or interrupted run: its config and the policies that it keeps."""

from __future__ import annotations

import contextlib
import copy
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from pkpo_jax.policy.checkpoints import CheckpointError
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics
from pkpo_jax.training.config import ConfigError


def is_run(workdir: pathlib.Path) -> bool:
    """Returns whether a run was started in this directory."""
    return (workdir / "config.json").exists()


def read_config(workdir: pathlib.Path) -> config_dict.ConfigDict:
    """Returns the config of the run in `workdir`, with defaults for keys that did not exist then.

    Raises:
      ConfigError: there is no config, or one of its keys does not exist any more.
    """
    path = workdir / "config.json"
    try:
        values = dict(config_lib.flatten(json.loads(path.read_text())))
        task = values["task.name"]
    except OSError as e:
        wrong = f"cannot be read ({e.strerror})" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {wrong}; give the --workdir of a run.") from None
    except (ValueError, KeyError, AttributeError):
        raise ConfigError(f"{path} is not a config; give the --workdir of a run.") from None
    try:
        config = config_lib.default(task)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{path}: {e}") from None
    if isinstance(values.get("k"), dict):
        values["k"] = config_lib.k_by_step(values["k"])
    try:
        return override(config, values)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def override(config: config_dict.ConfigDict, values: Mapping[str, Any]) -> config_dict.ConfigDict:
    """Returns a copy of `config` with these values for keys such as "eval.n".

    Raises:
      ConfigError: there is no such key, or it does not accept the value.
    """
    config = copy.deepcopy(config)
    known = [key for key, _ in config_lib.flatten(config.to_dict())]
    for key, value in values.items():
        if key not in known:
            raise config_lib.unknown_key(key, known)
        section, _, name = key.rpartition(".")
        try:
            (config_lib.get(config, section) if section else config)[name] = value
        except TypeError as e:
            raise ConfigError(f"{key}={value!r}; {e}") from None
    return config


def steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps whose checkpoints are kept, in order."""
    paths = (workdir / "checkpoints").glob("*/params")
    return sorted(int(path.parent.name) for path in paths if path.parent.name.isdecimal())


def policy(workdir: pathlib.Path, config: config_dict.ConfigDict, step: str) -> tuple[int, str]:
    """Returns the step and the checkpoint of a policy that a run keeps.

    Args:
      workdir: the directory of the run.
      config: the config of the run.
      step: the number of a step, "newest" or "best". Step 0 is the policy before RL, or
        `model.checkpoint` in a directory without a run.

    Raises:
      ConfigError: there is no such policy. The message lists the policies that exist.
    """
    kept = {n: str(workdir / "checkpoints" / str(n) / "params") for n in steps(workdir)}
    before = config.model.checkpoint
    if is_run(workdir) and config.warm_start.steps:
        before = str(workdir / "warm_start")
        before = before if pathlib.Path(before).exists() else ""
    policies = {**({0: before} if before else {}), **kept}
    if not policies and not is_run(workdir):
        wrong = "is not a run's directory" if workdir.exists() else "does not exist"
        raise ConfigError(
            f"--workdir={workdir} {wrong}, and model.checkpoint is empty: there is no policy; give "
            "the directory of a run, or --config.model.checkpoint."
        )
    if not policies:
        raise ConfigError(f"--workdir={workdir} holds no checkpoint yet; train on, and try again.")
    if step == "newest":
        number = max(policies)
    elif step == "best":
        number = _best(workdir, config, list(kept))
    else:
        number = int(step)
    if number not in policies:
        raise ConfigError(
            f"--step={step}: {workdir} keeps no such policy; it has "
            f"{', '.join(map(str, sorted(policies)))}."
        )
    return number, policies[number]


@contextlib.contextmanager
def naming_other_steps(workdir: pathlib.Path, step: int) -> Iterator[None]:
    """Adds the other steps that a run keeps to the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as e:
        others = [other for other in steps(workdir) if other != step]
        if not others:
            raise
        kept = ", ".join(map(str, others))
        raise CheckpointError(f"{e} Give another --step: {workdir} keeps {kept}.") from e


def _best(workdir: pathlib.Path, config: config_dict.ConfigDict, kept: list[int]) -> int:
    """Returns the kept step with the highest value of the config's metric, the last if tied."""
    metric = config.checkpoint.best or config_lib.default().checkpoint.best
    lines = [line for line in metrics.read(workdir) if line["step"] in kept]
    values = {line["step"]: line[metric] for line in lines if line.get(metric) is not None}
    if not values:
        raise ConfigError(
            f"--step=best: {workdir} has no {metric} at the steps it keeps "
            f"({', '.join(map(str, kept)) or 'none'}); give a step, or the metric as "
            "--config.checkpoint.best."
        )
    return max(values, key=lambda step: (values[step], step))
