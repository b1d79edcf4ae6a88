"""The SFT warm start, in which a policy from scratch learns the format of answers."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import grain
import numpy as np
import tqdm
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.policy import checkpoints, lora
from pkpo_jax.tasks import Task
from pkpo_jax.training import checkpoints as run_checkpoints
from pkpo_jax.training import data
from pkpo_jax.training.files import first_line, writing
from pkpo_jax.training.programs import Programs
from pkpo_jax.training.state import learning_rate


def warm_start(
    params: Any,
    *,
    programs: Programs,
    task: Task,
    tokenizer: Any,
    order: grain.MapDataset,
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
) -> Any:
    """Returns the parameters after `config.warm_start.steps` steps on demonstrations.

    They are saved in DIR/warm_start, in the layout of official checkpoints, and are read from there
    if it exists. Of a policy with adapters, the adapters alone are trained and saved, with the
    checksum of the other parameters in DIR/warm_start.json.

    Raises:
      CheckpointError: what is saved cannot be read, or its adapters belong to other parameters.
    """
    path = workdir / "warm_start"
    if path.exists():
        if "lora" in params:
            run_checkpoints.verify_base(path, config.model.checkpoint, params)
        return _read(path, params, programs)
    options, devices = config.warm_start, programs.devices
    state = programs.create(params)
    rows = devices.rows(options.batch)
    bar = tqdm.tqdm(
        range(options.steps),
        desc="warm start",
        unit="step",
        dynamic_ncols=True,
        disable=not parallel.is_first_process(),
    )
    for s in bar:
        problems = [order[s * options.batch + int(row)] for row in rows]
        prompts = data.encode_prompts(
            tokenizer, [problem["prompt"] for problem in problems], config.rollout.max_prompt
        )
        demonstrations = [
            task.demonstration(problem, random.Random(f"{config.seed} {s} {row}"))
            for problem, row in zip(problems, rows, strict=True)
        ]
        responses = data.encode_responses(tokenizer, demonstrations, config.rollout.max_response)
        batch = devices.put((*prompts, *responses), options.batch)
        state, metrics = programs.supervised_update(
            state, batch, (np.float32(learning_rate(options, s)),)
        )
        if s % 50 == 0 or s == options.steps - 1:
            bar.set_postfix(loss=f"{float(metrics['loss']):.3f}")
    with writing("the warm start"):
        if "lora" in state.params:
            run_checkpoints.record_base(path, state.frozen)
        checkpoints.write(str(path), state.saved)
    return state.policy


def _read(path: pathlib.Path, params: Any, programs: Programs) -> Any:
    try:
        if "lora" in params:
            return params | lora.read(str(path), programs.abstract_adapters())
        checkpoint = checkpoints.find(str(path), programs.model.config)
        return checkpoint.read(programs.abstract_params())
    except Exception as e:  # Torn files raise errors of many libraries.
        raise checkpoints.CheckpointError(
            f"{path} cannot be read ({first_line(e)}); delete it, and training makes it again."
        ) from e
