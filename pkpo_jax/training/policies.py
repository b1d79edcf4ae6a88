"""The policy that a config asks for: its size and its tokenizer."""

from __future__ import annotations

from typing import Any

from ml_collections import config_dict

from pkpo_jax import tasks
from pkpo_jax.policy import checkpoints, sizes, tokenizers
from pkpo_jax.training import prompts
from pkpo_jax.training.config import ConfigError


def resolve(
    config: config_dict.ConfigDict, *, reads_weights: bool = True
) -> config_dict.ConfigDict:
    """Returns the config with what follows from the directory of its checkpoint.

    Where `model.size` is "auto", it becomes the size of the checkpoint, or "tiny" without one.
    Where `model.tokenizer` is empty, it becomes the tokenizer.model beside the checkpoint, if there
    is one.

    Args:
      config: the config.
      reads_weights: whether the run reads the checkpoint. Launchers do not, for which it may lie on
        another machine; "auto" then remains.

    Raises:
      ConfigError: the checkpoint cannot be read, or is of no size that has a name.
    """
    config = config.copy_and_resolve_references()
    model = config.model
    if model.size == "auto":
        try:
            model.size = checkpoints.size(model.checkpoint) if model.checkpoint else "tiny"
        except checkpoints.CheckpointError as e:
            if not reads_weights:
                return config
            raise ConfigError(f"model.checkpoint: {e}") from None
    if model.checkpoint and not model.tokenizer and model.size != "tiny":
        try:
            beside = checkpoints.locate(model.checkpoint) / "tokenizer.model"
        except checkpoints.CheckpointError:
            # Launchers name directories of other machines. Where a run reads it, this is an error.
            return config
        model.tokenizer = str(beside) if beside.exists() else ""
    return config


def make_tokenizer(config: config_dict.ConfigDict, task: tasks.Task | None) -> Any:
    """Returns a character tokenizer for the tiny policy, or the official one for other sizes.

    The tiny policy reads the characters of its task; other sizes need no task.

    Raises:
      ConfigError: the official tokenizer cannot be read.
    """
    kind = _kind(config.model.size)
    if kind is None:
        assert task is not None
        return tokenizers.CharacterTokenizer(prompts.alphabet(task, config.prompt))
    try:
        return kind(config.model.tokenizer, chat=config.model.chat)
    except tokenizers.TokenizerError as e:
        raise ConfigError(f"model.tokenizer: {e}") from None


def vocabulary(config: config_dict.ConfigDict) -> Any:
    """Returns what has the `vocab_size` and the `stop_tokens` of a config, without reading a file.

    Raises:
      ConfigError: the task of the tiny policy, whose characters it reads, cannot be made.
    """
    if config.model.size == "auto":
        raise ConfigError(
            "model.size='auto', and model.checkpoint cannot be read here; set model.size."
        )
    kind = _kind(config.model.size)
    if kind is not None:
        return kind
    try:
        alphabet = prompts.alphabet(tasks.make(config.task.to_dict()), config.prompt)
        return tokenizers.CharacterTokenizer(alphabet)
    except (TypeError, ValueError) as e:
        raise ConfigError(str(e)) from None


def _kind(size: str) -> Any:
    return None if size == "tiny" else tokenizers.OFFICIAL[sizes.SIZES[size].generation]
