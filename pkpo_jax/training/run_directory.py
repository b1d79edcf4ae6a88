"""A run's directory: it belongs to one config, and has to be writable."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import config_dict

from pkpo_jax.training import files
from pkpo_jax.training.config import ConfigError, default, flatten

# What may change when a run goes on: where, in which parts and how patiently it computes, not what.
_FREE = (
    "parallel.mesh",
    "parallel.mode",
    "train.micro_batches",
    "model.remat",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.best",
    "grading.workers",
    "grading.timeout",
    "grading.batch_timeout",
    "log.samples_every",
    "log.samples",
    "log.report",
    "log.wandb",
)


def claim(workdir: pathlib.Path, config: config_dict.ConfigDict, *, create: bool = True) -> None:
    """Writes config.json to a new directory, or checks that it is there and the same.

    `create` is False on the processes beside the first, which has to have written it.
    """
    try:
        if not create and not (workdir / "config.json").exists():
            raise ConfigError(
                f"--workdir={workdir} is not the first process's directory; give a path that all "
                "processes see, on a file system that they share."
            )
        _claim(workdir, json.loads(json.dumps(config.to_dict())))
    except OSError as e:
        raise ConfigError(
            f"--workdir={workdir} cannot be used ({e.strerror}); give a directory that can be "
            "made and written."
        ) from None


def _claim(workdir: pathlib.Path, wanted: dict[str, Any]) -> None:
    path = workdir / "config.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError
        except ValueError:
            raise ConfigError(f"{path} is not a config; give another --workdir.") from None
        _check_same(path, stored, wanted)
        if stored != wanted:
            _write(path, wanted)
        return
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; give a new or empty directory.")
    if workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(
            f"--workdir={workdir} holds files but no config.json, so it is not a run's directory; "
            "give a new or empty one."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    _write(path, wanted)


def _write(path: pathlib.Path, config: dict[str, Any]) -> None:
    files.replace(path, json.dumps(config, indent=2) + "\n")


def _check_same(path: pathlib.Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    # The steps of a schedule are strings in JSON; k is compared as one value.
    stored, wanted = (
        dict(flatten({**config, "k": str(config.get("k"))})) for config in (stored, wanted)
    )
    # A run that was made before a key was added did what the key's default does.
    added = json.loads(json.dumps(default(wanted["task.name"]).to_dict()))
    stored = {**dict(flatten(added)), **stored}
    for key in sorted({*stored, *wanted}):
        if key not in _FREE and stored.get(key) != wanted.get(key):
            raise ConfigError(
                f"--workdir={path.parent} belongs to another config: {key} is "
                f"{stored.get(key)!r} there and {wanted.get(key)!r} here; give another --workdir, "
                "or delete that one."
            )
