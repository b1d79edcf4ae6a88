"""The parts of a run, built from its config: start, step, evaluate."""

from __future__ import annotations

import dataclasses
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
from pkpo_jax.policy import gemma2, sampling, tokenizers
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import data, evaluation, step
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
            self.problems = self.task.problems("train")
            held_out = self.task.problems("test")
        except (TypeError, ValueError) as e:
            raise config_lib.ConfigError(str(e)) from None
        except OSError as e:
            where = config.task.get("data_dir") or "TFDS's default, see TFDS_DATA_DIR"
            raise config_lib.ConfigError(
                f"the problems could not be prepared ({e}); set task.data_dir (now {where}) to a "
                "directory that can be written."
            ) from None
        self.held_out = [held_out[i] for i in range(min(config.eval.problems, len(held_out)))]
        self.tokenizer = tokenizers.CharacterTokenizer(self.task.alphabet)
        data.check_lengths(self.task, self.tokenizer, self.problems, self.held_out, config)
        self.order = data.in_training_order(self.problems, config.seed)
        self.schedule = schedules.from_spec(config_lib.k_spec(config))
        self.mesh = parallel.make_mesh(
            config_lib.mesh_shape(config.parallel.mesh, jax.device_count())
        )
        vocab_size = self.tokenizer.vocab_size
        self.model = gemma2.Gemma2(
            dataclasses.replace(
                gemma2.SIZES[config.model.size],
                dtype=config.model.dtype,
                vocab_size=vocab_size,
                # As official tables, rows up to a round number.
                num_embed=-(-vocab_size // 16) * 16,
            )
        )
        self.optimizer = step.make_optimizer(config.train)
        self.update = step.make_update(
            self.model, self.optimizer, self.mesh, baseline=config.estimator.baseline
        )
        self._samplers = {
            n: step.make_sampler(
                self.model,
                n=n,
                max_response=config.rollout.max_response,
                stop_tokens=self.tokenizer.stop_tokens,
            )
            for n in (config.rollout.n, config.eval.n)
        }

    @functools.cached_property
    def _keys(self) -> jax.Array:
        return jax.random.split(jax.random.key(self.config.seed), 3)

    def abstract_state(self) -> step.TrainState:
        """Shapes, dtypes and shardings of the state, for a checkpoint to be restored into."""

        def create() -> step.TrainState:
            params = gemma2.init_params(self.model, jax.random.key(0))
            return step.TrainState.create(params, self.optimizer)

        shapes = jax.eval_shape(create)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            parallel.placements(shapes, self.mesh),
        )

    def start(self, workdir: pathlib.Path) -> step.TrainState:
        """The state before the first RL step: initial parameters, after the warm start if any."""
        params = jax.jit(gemma2.init_params, static_argnums=0)(self.model, self._keys[_INIT])
        params = parallel.shard_params(params, self.mesh)
        if self.config.warm_start.steps:
            params = warm_start(
                params,
                model=self.model,
                task=self.task,
                tokenizer=self.tokenizer,
                order=self.order,
                mesh=self.mesh,
                config=self.config,
                workdir=workdir,
            )
        state = step.TrainState.create(params, self.optimizer)
        return parallel.shard_params(state, self.mesh)

    def _sample(
        self, params: Any, batch: Sequence[jax.Array], n: int, stream: int, at: int
    ) -> sampling.Rollout:
        """n responses to each prompt of a placed (prompts, lengths, rows)."""
        return self._samplers[n](
            params, *batch, self._keys[stream], at, self.config.rollout.temperature
        )

    def step(
        self, state: step.TrainState, at: int
    ) -> tuple[step.TrainState, dict[str, Any], list[int], np.ndarray]:
        """Step number `at`: the new state, metrics, the problems' ids and their rewards [P, n]."""
        config, started = self.config, time.perf_counter()
        count = config.train.prompts
        problems = [self.order[i] for i in range(at * count, (at + 1) * count)]
        encoded = data.encode_prompts(
            self.tokenizer, [problem["prompt"] for problem in problems], config.rollout.max_prompt
        )
        rows = np.arange(count, dtype=np.int32)
        prompts, lengths, rows = parallel.shard_batch((*encoded, rows), self.mesh)
        rollout = self._sample(
            state.params, (prompts, lengths, rows), config.rollout.n, _SAMPLE, at
        )
        tokens, response_lengths = jax.device_get((rollout.tokens, rollout.lengths))
        sampled = time.perf_counter()
        responses = data.decode_responses(self.tokenizer, tokens, response_lengths)
        rewards = data.grade(self.task, problems, responses)
        graded = time.perf_counter()
        placed_rewards, valid = parallel.shard_batch((rewards, np.isfinite(rewards)), self.mesh)
        k = self.schedule(at)
        rate = step.learning_rate(
            at,
            peak=config.train.learning_rate,
            steps=config.train.steps,
            warmup_steps=config.train.warmup_steps,
            decay_fraction=config.train.decay_fraction,
        )
        state, figures = self.update(
            state,
            step.Batch(prompts, lengths, rollout, placed_rewards, valid),
            k,
            config.rollout.temperature,
            rate,
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
        return state, figures, [problem["id"] for problem in problems], rewards

    def evaluate(self, params: Any, at: int) -> evaluation.Evaluation:
        """Held-out problems, sampled with random numbers of their own."""

        def sample(*arrays: np.ndarray) -> sampling.Rollout:
            batch = parallel.shard_batch(arrays, self.mesh)
            return self._sample(params, batch, self.config.eval.n, _EVALUATE, at)

        return evaluation.evaluate(
            sample,
            self.task,
            self.tokenizer,
            self.held_out,
            batch=self.config.eval.prompts,
            max_prompt=self.config.rollout.max_prompt,
        )
