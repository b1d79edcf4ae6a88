"""Experiments, one in each file, which `--config` takes by their paths or by their names.

`pkpo_jax.configs` is this directory: a link in the repository, and a copy in an installed package.
"""

from __future__ import annotations

import pathlib

from pkpo_jax.training.config import ConfigError


def names() -> list[str]:
    """Returns the names of the experiments in this directory, without the files that they share."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if "\ndef get_config(" in path.read_text(encoding="utf-8")]


def find(config: str) -> str:
    """Returns the path of a config file, given its path or the name of an experiment here.

    Args:
      config: the value of `--config`. An argument after a colon is kept.

    Raises:
      ConfigError: there is no such file. The message lists the names.
    """
    given, colon, argument = config.partition(":")
    if not given:
        raise ConfigError(f"--config names no file; give a path, or one of {', '.join(names())}.")
    path = pathlib.Path(given).expanduser()
    if not path.is_file() and given in names():
        path = pathlib.Path(__file__).with_name(f"{given}.py")
    if not path.is_file():
        wrong = "is a directory" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"--config={config}: {given} {wrong}; expected a file with "
            f"get_config(), or one of the package's: {', '.join(names())}."
        )
    return f"{path}{colon}{argument}"
