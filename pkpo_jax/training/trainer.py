"""The parts of a run, built from its config: start, step, evaluate."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.estimators import schedules
from pkpo_jax.policy import checkpoints, sampling, tokenizers
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import data, evaluation, programs, step
from pkpo_jax.training.warm_start import warm_start

# Each use of randomness has a stream of its own, folded into the run's seed.
_INIT, _SAMPLE, _EVALUATE = range(3)


class Trainer:
    """The parts of a run, built from its config: everything is checked, nothing compiled.

    Raises:
      ConfigError: the config cannot run; the message names the key, the value and the mend.
    """

    def __init__(self, config: config_dict.ConfigDict) -> None:
        config_lib.validate(config, jax.device_count())
        self.config = config
        try:
            self.task = tasks.make(config.task.to_dict())
            with parallel.first_process_first("problems"):
                self.problems = self.task.problems("train")
                held_out = self.task.problems("test")
        except (TypeError, ValueError, ImportError) as e:
            raise config_lib.ConfigError(str(e)) from None
        except OSError as e:
            where = config.task.get("data_dir") or "TFDS's default, see TFDS_DATA_DIR"
            raise config_lib.ConfigError(
                f"the problems could not be prepared ({e}); set task.data_dir (now {where}) to a "
                "directory that can be written."
            ) from None
        self.tokenizer = make_tokenizer(config, self.task)
        if config.rollout.drop_long_prompts:
            self.problems, held_out = self._without_long_prompts(self.problems, held_out)
        # Evenly over the split, which may be sorted by subject.
        count = min(config.eval.problems, len(held_out))
        self.held_out = [held_out[i * len(held_out) // count] for i in range(count)]
        data.check_lengths(self.task, self.tokenizer, self.problems, self.held_out, config)
        self.order = data.in_training_order(self.problems, config.seed)
        self.schedule = schedules.from_spec(config_lib.k_spec(config))
        self.devices = make_devices(config)
        self.programs = programs.Programs(config, self.devices, self.tokenizer)
        self._checkpoint = None
        if config.model.checkpoint:
            try:
                size = self.programs.model.config
                self._checkpoint = checkpoints.find(config.model.checkpoint, size)
            except checkpoints.CheckpointError as e:
                raise config_lib.ConfigError(f"model.checkpoint: {e}") from None

    def _without_long_prompts(self, *splits: Sequence[Any]) -> list[Sequence[Any]]:
        kept = [
            data.without_long_prompts(self.tokenizer, split, self.config.rollout.max_prompt)
            for split in splits
        ]
        if parallel.is_first_process():
            dropped = [f"{len(a) - len(b)} of {len(a)}" for a, b in zip(splits, kept, strict=True)]
            print(
                f"left out for prompts over {self.config.rollout.max_prompt} tokens: {dropped[0]} "
                f"training problems, {dropped[1]} held-out ones.",
                flush=True,
            )
        return kept

    @functools.cached_property
    def _keys(self) -> jax.Array:
        return jax.random.split(jax.random.key(self.config.seed), 3)

    def initial_params(self, workdir: pathlib.Path) -> Any:
        """The parameters before the first RL step: a checkpoint's, or random ones, and after them
        the warm start if any, kept in `workdir`. The same ones whenever it is called."""
        if self._checkpoint:
            params = self._checkpoint.read(self.programs.abstract_params())
        else:
            params = self.programs.random_params(self._keys[_INIT])
        if self.config.warm_start.steps:
            params = warm_start(
                params,
                programs=self.programs,
                task=self.task,
                tokenizer=self.tokenizer,
                order=self.order,
                config=self.config,
                workdir=workdir,
            )
        return params

    def start(self, workdir: pathlib.Path) -> step.TrainState:
        """The state before the first RL step."""
        return self.programs.create(self.initial_params(workdir))

    def _sample(
        self, params: Any, batch: Sequence[jax.Array], n: int, stream: int, at: int
    ) -> sampling.Rollout:
        """n responses to each prompt of a placed (prompts, lengths, rows)."""
        return self.programs.sampler(n)(
            params, batch, (self._keys[stream], at, self.config.rollout.temperature)
        )

    def step(
        self, state: step.TrainState, at: int
    ) -> tuple[step.TrainState, dict[str, Any], list[int], np.ndarray]:
        """Step number `at`: the new state, metrics, the problems' ids and their rewards [P, n]."""
        config, started = self.config, time.perf_counter()
        count = config.train.prompts
        rows = self.devices.rows(count)
        problems = {int(row): self.order[at * count + int(row)] for row in rows}
        encoded = data.encode_prompts(
            self.tokenizer,
            [problem["prompt"] for problem in problems.values()],
            config.rollout.max_prompt,
        )
        prompts, lengths, placed_rows = self.devices.put((*encoded, rows.astype(np.int32)), count)
        rollout = self._sample(
            state.params, (prompts, lengths, placed_rows), config.rollout.n, _SAMPLE, at
        )
        tokens, response_lengths = self.devices.fetch((rollout.tokens, rollout.lengths))
        sampled = time.perf_counter()
        owned = self.devices.owned(count)
        mine = [problems[row] for row in owned]
        responses = data.decode_responses(self.tokenizer, tokens[owned], response_lengths[owned])
        rewards = data.grade(self.task, mine, responses)
        rewards = parallel.gather(owned, rewards, (count, config.rollout.n))
        ids = np.array([problem["id"] for problem in mine], np.int32)
        ids = parallel.gather(owned, ids, (count,))
        graded = time.perf_counter()
        fed = rewards[rows]
        placed_rewards, valid = self.devices.put((fed, np.isfinite(fed)), count)
        k = self.schedule(at)
        rate = step.learning_rate(
            at,
            peak=config.train.learning_rate,
            steps=config.train.steps,
            warmup_steps=config.train.warmup_steps,
            decay_fraction=config.train.decay_fraction,
        )
        state, figures = self.programs.update(
            state,
            step.Batch(prompts, lengths, rollout, placed_rewards, valid),
            (k, config.rollout.temperature, rate),
        )
        figures = jax.device_get(figures)
        curve = figures.pop("pass_at_k")
        figures = {name: float(value) for name, value in figures.items()}
        figures = {"k": k, "learning_rate": rate, **figures, **evaluation.summarize(curve)}
        figures = {f"train/{name}": value for name, value in figures.items()}
        updated = time.perf_counter()
        figures["time/sample_s"] = sampled - started
        figures["time/grade_s"] = graded - sampled
        figures["time/update_s"] = updated - graded
        return state, figures, ids.tolist(), rewards

    def evaluate(self, params: Any, at: int) -> evaluation.Evaluation:
        """Held-out problems, sampled with random numbers of their own."""

        def sample(*batch: jax.Array) -> sampling.Rollout:
            return self._sample(params, batch, self.config.eval.n, _EVALUATE, at)

        return evaluation.evaluate(
            sample,
            self.devices,
            self.task,
            self.tokenizer,
            self.held_out,
            batch=self.config.eval.prompts,
            max_prompt=self.config.rollout.max_prompt,
        )


def make_devices(config: config_dict.ConfigDict) -> parallel.Jitted:
    """How the config runs its steps on the devices there are."""
    if config.parallel.mode == "pmap":
        return parallel.Pmapped()
    shape = config_lib.mesh_shape(config.parallel.mesh, jax.device_count())
    return parallel.Jitted(parallel.make_mesh(shape))


def make_tokenizer(config: config_dict.ConfigDict, task: tasks.Task) -> Any:
    """Characters for the tiny policy, the official tokenizer for the official sizes."""
    if config.model.size == "tiny":
        return tokenizers.CharacterTokenizer(task.alphabet)
    try:
        return tokenizers.Gemma2Tokenizer(config.model.tokenizer, chat=config.model.chat)
    except tokenizers.TokenizerError as e:
        raise config_lib.ConfigError(f"model.tokenizer: {e}") from None
