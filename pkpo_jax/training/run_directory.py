"""A run's directory belongs to one config."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import config_dict

from pkpo_jax.training.config import ConfigError, flatten


def claim(workdir: pathlib.Path, config: config_dict.ConfigDict) -> None:
    """Writes config.json to a new directory, or checks that it is there and the same."""
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(config.to_dict()))
    if path.exists():
        _check_same(path, json.loads(path.read_text()), wanted)
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ConfigError(
            f"--workdir={workdir} holds files but no config.json, so it is not a run's directory; "
            "give a new or empty one."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    temporary.replace(path)


def _check_same(path: pathlib.Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    stored, wanted = dict(flatten(stored)), dict(flatten(wanted))
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            raise ConfigError(
                f"--workdir={path.parent} belongs to another config: {key} is "
                f"{stored.get(key)!r} there and {wanted.get(key)!r} here; give another --workdir, "
                "or delete that one."
            )
