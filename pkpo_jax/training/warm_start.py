"""The supervised start: a policy from scratch first learns what answers look like."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import grain
import jax
import tqdm
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.policy import gemma2
from pkpo_jax.tasks import Task
from pkpo_jax.training import checkpoints, data, step


def warm_start(
    params: Any,
    *,
    model: gemma2.Gemma2,
    task: Task,
    tokenizer: Any,
    order: grain.MapDataset,
    mesh: jax.sharding.Mesh,
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
) -> Any:
    """Parameters after `config.warm_start.steps` steps on demonstrations.

    They are kept in DIR/warm_start, and read from there if that exists.
    """
    path = workdir / "warm_start"
    if path.exists():
        return checkpoints.restore_params(path, like=params)
    options = config.warm_start
    optimizer = step.make_optimizer(config.train)
    update = step.make_supervised_update(model, optimizer, mesh)
    state = parallel.shard_params(step.TrainState.create(params, optimizer), mesh)
    bar = tqdm.tqdm(range(options.steps), desc="warm start", unit="step", dynamic_ncols=True)
    for s in bar:
        rng = random.Random(f"{config.seed} {s}")
        problems = [order[i] for i in range(s * options.batch, (s + 1) * options.batch)]
        prompts, lengths = data.encode_prompts(
            tokenizer, [problem["prompt"] for problem in problems], config.rollout.max_prompt
        )
        responses, mask = data.encode_responses(
            tokenizer,
            [task.demonstration(problem, rng) for problem in problems],
            config.rollout.max_response,
        )
        rate = step.learning_rate(
            s,
            peak=options.learning_rate,
            steps=options.steps,
            warmup_steps=options.warmup_steps,
            decay_fraction=options.decay_fraction,
        )
        batch = parallel.shard_batch((prompts, lengths, responses, mask), mesh)
        state, metrics = update(state, *batch, rate)
        if s % 50 == 0 or s == options.steps - 1:
            bar.set_postfix(loss=f"{float(metrics['loss']):.3f}")
    checkpoints.save_params(path, state.params)
    return state.params
