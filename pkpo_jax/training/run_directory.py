"""The directory of a run, which belongs to one config and has to be writable."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import config_dict

from pkpo_jax.training import files, saved_run
from pkpo_jax.training.config import KEYS, ConfigError, default, flatten, k_by_step


def claim(workdir: pathlib.Path, config: config_dict.ConfigDict, *, create: bool = True) -> None:
    """Writes config.json to a new directory, or checks that `config` can resume the run there.

    Keys that may change (see `config.KEYS`) get their new values in the file. `create` is True on
    the first process only; the file has to exist when the others call this.

    Raises:
      ConfigError: the directory belongs to another run or to none, it cannot be used, or the run
        has done more steps than `config` has.
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
            saved = json.loads(path.read_text())
            if not isinstance(saved, dict):
                raise ValueError
        except ValueError:
            raise ConfigError(f"{path} is not a config; give another --workdir.") from None
        _check_same(workdir, saved, wanted)
        _check_steps(workdir, wanted["train"]["steps"])
        if saved != wanted:
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


def _check_same(workdir: pathlib.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    # A run from before a key was added behaved like the key's default.
    defaults = json.loads(json.dumps(default(wanted["task"]["name"]).to_dict()))
    ours = dict(flatten(wanted))
    theirs = {**dict(flatten(defaults)), **dict(flatten(saved))}
    # A k can be spelled in several ways; a text is shown as it was given.
    if k_by_step(theirs["k"]) == k_by_step(ours["k"]):
        theirs["k"] = ours["k"]
    for values in (theirs, ours):
        values["k"] = values["k"] if isinstance(values["k"], str) else k_by_step(values["k"])
    for key in sorted({*theirs, *ours}):
        fixed = key not in KEYS or not KEYS[key].may_change
        if fixed and theirs.get(key) != ours.get(key):
            raise ConfigError(
                f"--workdir={workdir} belongs to another config: {key} is {theirs.get(key)!r} "
                f"there and {ours.get(key)!r} here; give another --workdir, or delete that one."
            )


def _check_steps(workdir: pathlib.Path, steps: int) -> None:
    done = max(saved_run.steps(workdir), default=0)
    if steps < done:
        raise ConfigError(
            f"train.steps={steps}, but the run in --workdir={workdir} has done {done}; set "
            f"train.steps to {done} or more, or give another --workdir."
        )
