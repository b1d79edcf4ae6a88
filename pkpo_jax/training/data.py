"""The path from problems to arrays: the order of training, and encoding at fixed lengths."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from ml_collections import config_dict

from pkpo_jax.tasks import Problem, Task
from pkpo_jax.training.config import ConfigError


def read_problems(task: Task, name: str, split: str) -> list[Problem]:
    """Reads all problems of a split of the task `name`, and checks each of them.

    Raises:
      ValueError: the problems are not a sequence, there are none, or one of them has no prompt or
        no unique id.
    """
    problems = task.problems(split)
    if not (hasattr(problems, "__len__") and hasattr(problems, "__getitem__")):
        raise ValueError(
            f"the task {name}: problems({split!r}) gave {type(problems).__name__}; expected a "
            "sequence, such as a list."
        )
    if not len(problems):
        raise ValueError(f"the task {name} has no {split} problems.")
    numbers: dict[Hashable, int] = {}
    read = []
    for number in range(len(problems)):
        problem = problems[number]
        place = f"the task {name}: {split} problem {number}"
        if not isinstance(problem, Mapping):
            kind = type(problem).__name__
            raise ValueError(f'{place} is {kind}; expected a dict with "id" and "prompt".')
        prompt, key = problem.get("prompt"), problem.get("id")
        if not isinstance(prompt, str):
            raise ValueError(f'{place}: "prompt" is {prompt!r}; expected a string.')
        if isinstance(key, bool) or not isinstance(key, int | np.integer | str):
            raise ValueError(f'{place}: "id" is {key!r}; expected a whole number or a string.')
        if numbers.setdefault(key, number) != number:
            raise ValueError(
                f'{place}: "id" is {key!r}, as that of problem {numbers[key]}; expected an id that '
                "no other problem of the split has."
            )
        read.append(problem)
    return read


def in_training_order(problems: Sequence[Problem], seed: int) -> grain.MapDataset:
    """Returns the problems in an endless order: each epoch has all of them, shuffled differently.

    The order allows random access, so a resumed run needs only its step.
    """
    return grain.MapDataset.source(problems).seed(seed).shuffle().repeat()


def encode_prompts(
    tokenizer: Any, prompts: Sequence[str], max_prompt: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes prompts as BOS and their tokens, right-padded.

    Returns:
      Tokens [P, max_prompt] int32, and lengths [P] int32.

    Raises:
      ConfigError: a prompt has more than `max_prompt` tokens.
    """
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    if lengths.max() > max_prompt:
        text = prompts[int(lengths.argmax())]
        raise ConfigError(
            f"rollout.max_prompt={max_prompt}, but a prompt has {lengths.max()} tokens, BOS "
            f"included; set rollout.max_prompt to {lengths.max()} or more, or shorten the task's "
            f"prompts (it starts {text[:40]!r})."
        )
    return _pad(encoded, max_prompt), lengths


def encode_responses(
    tokenizer: Any, responses: Sequence[str], max_response: int
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes responses as their tokens and EOS, each as a group of one response.

    Returns:
      Tokens [P, 1, max_response] int32, and their mask, bool.

    Raises:
      ConfigError: a response has more than `max_response` tokens.
    """
    encoded = [[*tokenizer.encode(response), tokenizer.eos_id] for response in responses]
    lengths = np.array([len(ids) for ids in encoded])
    if lengths.max() > max_response:
        raise ConfigError(
            f"rollout.max_response={max_response}, but a demonstration has {lengths.max()} tokens, "
            f"EOS included; set rollout.max_response to {lengths.max()} or more."
        )
    mask = np.arange(max_response) < lengths[:, None]
    return _pad(encoded, max_response)[:, None], mask[:, None]


def decode_responses(tokenizer: Any, tokens: np.ndarray, lengths: np.ndarray) -> list[list[str]]:
    """Returns the texts of responses [P, n, T] of these lengths.

    A response that was cut at T tokens is decoded, and later graded, like any other.
    """
    return [
        [tokenizer.decode(ids[:length]) for ids, length in zip(group, group_lengths, strict=True)]
        for group, group_lengths in zip(tokens.tolist(), lengths.tolist(), strict=True)
    ]


def without_long_prompts(
    tokenizer: Any, problems: Sequence[Problem], max_prompt: int
) -> Sequence[Problem]:
    """Returns the problems whose prompts have at most `max_prompt` tokens.

    Raises:
      ConfigError: there is no such problem.
    """
    kept = [p for p in problems if len(tokenizer.encode_prompt(p["prompt"])) <= max_prompt]
    if not kept:
        raise ConfigError(
            f"rollout.max_prompt={max_prompt} leaves no problem, with rollout.drop_long_prompts; "
            "raise rollout.max_prompt."
        )
    return kept


def check_lengths(
    task: Task,
    tokenizer: Any,
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    config: config_dict.ConfigDict,
) -> None:
    """Encodes every prompt, and a demonstration of each problem if there is a warm start.

    Raises:
      ConfigError: a prompt or a demonstration is too long.
      ValueError: a character has no token, or the task returns a value of the wrong type.
    """
    answer = task.answer("")
    if not isinstance(answer, str | None):
        raise ValueError(
            f"the task {config.task.name}: answer('') gave {answer!r}; expected a string, or None."
        )
    count = task.mode_count(held_out[0])
    if not (count is None or (isinstance(count, int) and count >= 0)):
        raise ValueError(
            f"the task {config.task.name}: mode_count() of the held-out problem "
            f"{held_out[0]['id']!r} is {count!r}; expected a number from 0, or None if unknown."
        )
    prompts = [problem["prompt"] for problem in [*train, *held_out]]
    encode_prompts(tokenizer, prompts, config.rollout.max_prompt)
    if config.warm_start.steps:
        rng = random.Random(0)
        demonstrations = [task.demonstration(problem, rng) for problem in train]
        for problem, text in zip(train, demonstrations, strict=True):
            if not isinstance(text, str):
                raise ValueError(
                    f"the task {config.task.name}: the demonstration of the training problem "
                    f"{problem['id']!r} is {text!r}; expected a string."
                )
        encode_responses(tokenizer, demonstrations, config.rollout.max_response)


def _pad(rows: list[list[int]], length: int) -> np.ndarray:
    padded = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
