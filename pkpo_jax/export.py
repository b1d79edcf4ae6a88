"""Writes a run's policy in the layout of Hugging Face."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.policy import checkpoints, hugging_face, tokenizers
from pkpo_jax.training import programs, saved_run
from pkpo_jax.training.config import ConfigError


def run(workdir: pathlib.Path, to: str, step: str, overrides: Mapping[str, Any]) -> None:
    """Writes the policy of a run for `transformers`, vLLM and others that read safetensors.

    Args:
      workdir: the run's directory.
      to: the directory to write, which must not exist yet.
      step: which policy of the run: "newest", "best" or the number of a step.
      overrides: values of config keys; `model.param_dtype` is the dtype of the files.

    Raises:
      ConfigError: there is no such policy, or `to` cannot be written.
      CheckpointError: the policy cannot be read.
    """
    directory = epath.Path(to).expanduser()
    if directory.exists():
        raise ConfigError(f"--to={to} exists; give a directory that does not exist yet.")
    config = saved_run.override(saved_run.read_config(workdir), overrides)
    at, path = saved_run.policy(workdir, config, step)
    built = network(config)
    params = checkpoints.find(path, built.model.config).read(built.abstract_params())
    origin = epath.Path(config.model.checkpoint).expanduser() if config.model.checkpoint else None
    try:
        hugging_face.write(
            directory,
            params,
            built.model.config,
            tokenizer=config.model.tokenizer,
            beside=origin,
        )
    except OSError as e:
        raise ConfigError(f"--to={to} cannot be written: {e.strerror or e}.") from e
    print(f"the policy of step {at} is in {directory}")
    if config.model.size == "tiny":
        print("It has no tokenizer of Hugging Face: the tiny policy reads characters.")
    elif not any((directory / name).exists() for name in hugging_face.TOKENIZER_FILES):
        print("It has no tokenizer; copy the files of the model that the run started from.")


def network(config: config_dict.ConfigDict) -> programs.Programs:
    """Returns the network of a config on one device; nothing is compiled."""
    # The official tokenizer's class says how many tokens there are.
    tokenizer: Any = tokenizers.Gemma2Tokenizer
    if config.model.size == "tiny":
        tokenizer = tokenizers.CharacterTokenizer(tasks.make(config.task).alphabet)
    devices = parallel.Jitted(parallel.make_mesh((1, 1, 1), jax.devices()[:1]))
    return programs.Programs(config, devices, tokenizer)
