"""Writes a run's policy in the layout of Hugging Face."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.policy import checkpoints, hugging_face_export, lora
from pkpo_jax.training import checkpoints as run_checkpoints
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import policies, programs, prompts, saved_run
from pkpo_jax.training.config import ConfigError
from pkpo_jax.training.files import first_line

# These keys say how a policy is written; any other belongs to the run.
_KEYS = ("model.param_dtype", "model.tokenizer")


def run(workdir: pathlib.Path, to: str, step: str, overrides: Mapping[str, Any]) -> None:
    """Writes the policy of a run for `transformers`, vLLM and others that read safetensors.

    Args:
      workdir: the run's directory.
      to: the directory to write, which must not exist yet.
      step: which policy of the run: "newest", "best" or the number of a step.
      overrides: values of `model.param_dtype`, the dtype of the files, and of `model.tokenizer`.

    Raises:
      ConfigError: there is no such policy, `to` cannot be written, or another key is set.
      CheckpointError: the policy cannot be read.
    """
    directory = epath.Path(to).expanduser()
    if directory.exists():
        raise ConfigError(f"--to={to} exists; give a directory that does not exist yet.")
    for key in overrides:
        if key not in _KEYS:
            raise ConfigError(
                f"{key}: an export is of the run as it is; only {' and '.join(_KEYS)} can be set."
            )
    config = saved_run.override(saved_run.read_config(workdir), overrides)
    vocabulary = config.model.tokenizer
    if vocabulary and not epath.Path(vocabulary).expanduser().exists():
        raise ConfigError(
            f"model.tokenizer={vocabulary!r} does not exist; give the path of tokenizer.model as "
            "--config.model.tokenizer, or an empty one to export without a tokenizer."
        )
    stop_tokens = _stop_tokens(config)
    step_number, path = saved_run.policy(workdir, config, step)
    built = network(config)
    if config.model.lora.rank and path != config.model.checkpoint:
        params = _merged(workdir, step_number, path, built)
    else:
        with saved_run.naming_other_steps(workdir, step_number):
            params = _read(path, built, as_saved="model.param_dtype" not in overrides)
    origin = epath.Path(config.model.checkpoint).expanduser() if config.model.checkpoint else None
    partial = directory.with_name(directory.name + ".partial")
    try:
        hugging_face_export.write(
            partial,
            params,
            built.model.config,
            tokenizer=vocabulary,
            beside=origin,
            stop_tokens=stop_tokens,
        )
        partial.rename(directory)
    except OSError as e:
        raise ConfigError(f"--to={to} cannot be written: {e.strerror or e}.") from e
    finally:
        if partial.exists():
            partial.rmtree()
    print(f"the policy of step {step_number} is in {directory}")
    if config.model.size == "tiny":
        print("It has no tokenizer of Hugging Face: the tiny policy reads characters.")
    elif not any((directory / name).exists() for name in hugging_face_export.TOKENIZER_FILES):
        print("It has no tokenizer; copy the files of the model that the run started from.")
    if config.prompt.stop and not stop_tokens:
        print(
            f"Its generation_config.json lacks the tokens of prompt.stop={config.prompt.stop}, "
            "which take a tokenizer to find; export with --config.model.tokenizer, or end "
            "responses at these strings yourself."
        )


def _stop_tokens(config: config_dict.ConfigDict) -> tuple[int, ...]:
    """Returns the ids at which responses ended in training, or () if a tokenizer has to be given.

    They are written in place of the strings of `prompt.stop`: sampling stops at the tokens, and
    `transformers` generates with stop strings only if it is given a tokenizer.

    Raises:
      ConfigError: the tokenizer cannot be read.
    """
    if not config.prompt.stop:
        return tuple(policies.vocabulary(config).stop_tokens)
    if config.model.size != "tiny" and not config.model.tokenizer:
        return ()
    task = tasks.make(config.task.to_dict()) if config.model.size == "tiny" else None
    tokenizer = policies.make_tokenizer(config, task)
    return prompts.PromptTokenizer(tokenizer, config_lib.freeze(config).prompt).stop_tokens


def _read(path: str, built: programs.Programs, *, as_saved: bool) -> Any:
    """Reads the parameters at `path`, and checks their sums where the run has saved them."""
    try:
        params = checkpoints.find(path, built.model.config).read(built.abstract_params())
    except Exception as e:  # Torn files raise errors of many libraries.
        raise checkpoints.CheckpointError(f"{path} cannot be read ({first_line(e)}).") from e
    if as_saved:
        run_checkpoints.verify(pathlib.Path(path), params)
    return params


def _merged(workdir: pathlib.Path, step: int, path: str, built: programs.Programs) -> Any:
    """Returns the parameters of a run that trains adapters, with those at `path` merged into them.

    Until they are merged, they have the dtype that they have in the run.
    """
    config = saved_run.read_config(workdir)
    of_run, base = network(config), config.model.checkpoint
    params = _read(base, of_run, as_saved=False)
    with saved_run.naming_other_steps(workdir, step):
        adapters = run_checkpoints.read_adapters(pathlib.Path(path), of_run.abstract_adapters())
    run_checkpoints.verify_base(pathlib.Path(path), base, params)
    dtype = built.config.model.param_dtype
    merge = functools.partial(lora.merge, config=of_run.model.config, dtype=dtype)
    return jax.jit(merge)(params | adapters)


def network(config: config_dict.ConfigDict) -> programs.Programs:
    """Returns the network of a config on one device; nothing is compiled."""
    devices = parallel.Jitted(parallel.make_mesh((1, 1, 1), jax.devices()[:1]))
    return programs.Programs(config, devices, policies.vocabulary(config))
