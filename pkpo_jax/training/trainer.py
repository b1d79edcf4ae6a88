"""The parts of a run, built from its config: start, step, evaluate."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from pkpo_jax import parallel, tasks
from pkpo_jax.estimators import schedules
from pkpo_jax.policy import checkpoints, sampling, tokenizers
from pkpo_jax.tasks import grading
from pkpo_jax.training import checks, data, evaluation, programs, step
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.files import first_line
from pkpo_jax.training.state import TrainState, learning_rate
from pkpo_jax.training.warm_start import warm_start

# Each use of randomness has a stream of its own, split from the run's seed.
_INIT, _SAMPLE, _EVALUATE, _WEIGH = range(4)


class Graded(NamedTuple):
    """A step's responses and what became of them.

    Attributes:
      problems, responses, rows: those that this process graded, and their rows in the batch.
      ids: [P] of all problems, their places in the split; rewards, statuses, weights: [P, n], of
        all.
      batch: what the update was given, where it taught nothing: it was skipped for a loss or
        gradient that was not finite, or no response was graded; None else.
    """

    problems: list[tasks.Problem]
    responses: list[list[str]]
    rows: np.ndarray
    ids: np.ndarray
    rewards: np.ndarray
    statuses: np.ndarray
    weights: np.ndarray | None = None
    batch: step.Batch | None = None


class _Drawn(NamedTuple):
    """Prompts on the devices, and the rollout that was, or is being, drawn from them."""

    prompts: jax.Array
    lengths: jax.Array
    rows: jax.Array
    rollout: sampling.Rollout


class Trainer:
    """The parts of a run, built from its config: everything is checked, nothing compiled.

    Raises:
      ConfigError: the config cannot run; the message names the key, the value and the mend.
    """

    def __init__(self, config: config_dict.ConfigDict) -> None:
        checks.validate(config, jax.device_count())
        self.config = config
        self.keys = jax.random.split(jax.random.key(config.seed), 4)
        self._ahead: _Drawn | None = None
        self._reference: Any = None
        try:
            self.task = tasks.make(config.task.to_dict())
            with parallel.first_process_first("problems"):
                self.problems, held_out = (
                    data.read_problems(self.task, config.task.name, split)
                    for split in ("train", "test")
                )
        except (TypeError, ValueError, ImportError) as e:
            raise config_lib.ConfigError(str(e)) from None
        except OSError as e:
            where = config.task.get("data_dir") or "TFDS's default, see TFDS_DATA_DIR"
            raise config_lib.ConfigError(
                f"the problems could not be prepared ({e}); set task.data_dir (now {where}) to a "
                "directory that can be written."
            ) from None
        self._numbers = {problem["id"]: i for i, problem in enumerate(self.problems)}
        self.tokenizer = make_tokenizer(config, self.task)
        try:
            if config.rollout.drop_long_prompts:
                self.problems, held_out = self._without_long_prompts(self.problems, held_out)
            self.held_out = evaluation.spread(held_out, config.eval.problems)
            data.check_lengths(self.task, self.tokenizer, self.problems, self.held_out, config)
        except ValueError as e:  # A character without a token, or a task without demonstrations.
            raise config_lib.ConfigError(str(e)) from None
        self.order = data.in_training_order(self.problems, config.seed)
        self.schedule = schedules.step(config_lib.k_by_step(config.k))
        self.devices = make_devices(config)
        self.programs = programs.Programs(config, self.devices, self.tokenizer)
        self._checkpoint = None
        if config.model.checkpoint:
            try:
                size = self.programs.model.config
                self._checkpoint = checkpoints.find(config.model.checkpoint, size)
            except checkpoints.CheckpointError as e:
                raise config_lib.ConfigError(f"model.checkpoint: {e}") from None
        options = config.grading
        try:
            self.grader = grading.Grader(
                self.task,
                workers=options.workers,
                timeout=options.timeout,
                batch_timeout=options.batch_timeout,
            )
        except ValueError as e:
            raise config_lib.ConfigError(f"grading.{e}") from None

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

    def initial_params(self, workdir: pathlib.Path) -> Any:
        """The parameters before the first RL step: a checkpoint's, or random ones, and after them
        the warm start if any, kept in `workdir`. The same ones whenever it is called."""
        if self._checkpoint:
            try:
                params = self._checkpoint.read(self.programs.abstract_params())
            except Exception as e:  # Torn files raise errors of many libraries.
                raise checkpoints.CheckpointError(
                    f"{self.config.model.checkpoint} cannot be read ({first_line(e)})."
                ) from e
        else:
            params = self.programs.random_params(self.keys[_INIT])
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

    def start(self, workdir: pathlib.Path) -> TrainState:
        """The state before the first RL step."""
        return self.programs.create(self.initial_params(workdir))

    def read_reference(self, workdir: pathlib.Path) -> None:
        """Reads the policy before RL, if the loss measures the divergence from it."""
        if self.programs.needs_reference:
            self._reference = self.initial_params(workdir)

    def step(self, state: TrainState, at: int) -> tuple[TrainState, dict[str, Any], Graded]:
        """Step number `at`: the new state, metrics, and what was sampled and how it was graded."""
        config, started = self.config, time.perf_counter()
        count, temperature = config.train.prompts, config.rollout.temperature
        drawn = self._ahead or self._draw(state.params, at)
        self._ahead = None
        if config.rollout.ahead and at + 1 < config.train.steps:
            # Dispatched, not waited for: the device draws it while the host grades this one.
            self._ahead = self._draw(state.params, at + 1)
        rollout = drawn.rollout
        tokens, lengths = self.devices.fetch((rollout.tokens, rollout.lengths))
        sampled = time.perf_counter()
        # As the sampling ahead, scoring runs on the device beside the grading.
        scored = (drawn.prompts, drawn.lengths, rollout.tokens)
        old = reference = None
        if self.programs.needs_old:
            old = self.programs.scorer(state.params, scored, (temperature,))
        if self.programs.needs_reference:
            reference = self.programs.scorer(self._reference, scored, (temperature,))
        graded = self._grade(at, tokens, lengths)
        done_grading = time.perf_counter()
        fed = graded.rewards[self.devices.rows(count)]
        rewards, valid = self.devices.put((fed, np.isfinite(fed)), count)
        k, rate = self.schedule(at), self.learning_rate(at)
        batch = step.Batch(
            drawn.prompts, drawn.lengths, drawn.rows, rollout, rewards, valid, old, reference
        )
        key = jax.random.fold_in(self.keys[_WEIGH], at)
        state, figures = self.programs.update(state, batch, (k, key, temperature, rate))
        figures = jax.device_get(figures)
        curve = figures.pop("pass_at_k")
        graded = graded._replace(weights=figures.pop("weights").reshape(count, -1))
        figures = {name: float(value) for name, value in figures.items()}
        figures = {"k": k, "learning_rate": rate, **figures, **evaluation.summarize(curve)}
        figures = {f"train/{name}": value for name, value in figures.items()}
        for status in tasks.Status:
            figures[f"grade/{status.name.lower()}"] = int((graded.statuses == status).sum())
        updated = time.perf_counter()
        figures["time/sample_s"] = sampled - started
        figures["time/grade_s"] = done_grading - sampled
        figures["time/update_s"] = updated - done_grading
        figures["time/tokens_per_s"] = float(lengths.sum()) / (updated - started)
        if figures["train/skipped"] or figures["train/invalid"] == 1.0:
            graded = graded._replace(batch=batch)
        return state, figures, graded

    def learning_rate(self, at: int) -> float:
        """Of step number `at`."""
        options = self.config.train
        return learning_rate(
            at,
            peak=options.learning_rate,
            steps=options.steps,
            warmup_steps=options.warmup_steps,
            decay_fraction=options.decay_fraction,
        )

    def _draw(self, params: Any, at: int) -> _Drawn:
        """Dispatches the sampling of step number `at`."""
        placed = self._prompts(at)
        return _Drawn(*placed, self._sample(params, placed, self.config.rollout.n, _SAMPLE, at))

    def _prompts(self, at: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Prompts, lengths and row numbers of step number `at`, on the devices."""
        count = self.config.train.prompts
        rows = self.devices.rows(count)
        texts = [self.order[at * count + int(row)]["prompt"] for row in rows]
        encoded = data.encode_prompts(self.tokenizer, texts, self.config.rollout.max_prompt)
        return self.devices.put((*encoded, rows.astype(np.int32)), count)

    def _sample(
        self,
        params: Any,
        batch: Sequence[jax.Array],
        n: int,
        stream: int,
        at: int,
        *,
        top_p: float = 1.0,
        temperature: float | None = None,
    ) -> sampling.Rollout:
        """n responses to each prompt of a placed (prompts, lengths, rows)."""
        if temperature is None:
            temperature = self.config.rollout.temperature
        return self.programs.sampler(n, top_p)(
            params, batch, (self.keys[stream], at, float(temperature))
        )

    def _grade(self, at: int, tokens: np.ndarray, lengths: np.ndarray) -> Graded:
        """Grades the rows that this process owns; all processes return the same figures."""
        count, n = self.config.train.prompts, self.config.rollout.n
        owned = self.devices.owned(count)
        problems = [self.order[at * count + int(row)] for row in owned]
        responses = data.decode_responses(self.tokenizer, tokens[owned], lengths[owned])
        grades = self.grader.grade(problems, responses)
        ids = np.array([self._numbers[problem["id"]] for problem in problems], np.int32)
        return Graded(
            problems=problems,
            responses=responses,
            rows=owned,
            ids=parallel.gather(owned, ids, (count,)),
            rewards=parallel.gather(owned, grades.rewards, (count, n)),
            statuses=parallel.gather(owned, grades.statuses, (count, n)),
        )

    def weights(self, at: int, rewards: np.ndarray, entropy: np.ndarray, k: int) -> np.ndarray:
        """The weights [P, n] that the estimator gives these rewards for k, at step number `at`.

        `entropy` is the mean of each prompt's tokens, [P]. A KL divergence that the loss takes from
        the rewards is left out.
        """
        weigh, valid = jax.jit(self.programs.recipe.weigh), np.isfinite(rewards)
        key = jax.random.fold_in(self.keys[_WEIGH], at)
        rows = jnp.arange(len(rewards))
        rewards = jnp.where(valid, rewards, 0.0)
        return np.asarray(
            weigh(rewards, jnp.int32(k), valid, rows=rows, key=key, entropy=jnp.asarray(entropy))
        )

    def state_dict(self) -> dict[str, Any]:
        """What of the trainer a checkpoint holds after a step: JSON values."""
        return {"keys": np.asarray(jax.random.key_data(self.keys)).tolist()}

    def in_flight(self) -> sampling.Rollout | None:
        """The rollout sampled ahead, as host arrays; None if there is none.

        A checkpoint holds it, for the policy that drew it is gone when the run goes on.
        """
        return self.devices.fetch(self._ahead.rollout) if self._ahead else None

    def like_in_flight(self) -> sampling.Rollout | None:
        """Arrays of the shapes and dtypes of a rollout in flight, where there can be one."""
        if not self.config.rollout.ahead:
            return None
        r = self.config.rollout
        group = (self.config.train.prompts, r.n)
        tokens = (*group, r.max_response)
        return sampling.Rollout(
            tokens=np.empty(tokens, np.int32),
            lengths=np.empty(group, np.int32),
            mask=np.empty(tokens, bool),
            log_probs=np.empty(tokens, np.float32),
            entropy=np.empty(tokens, np.float32),
            finished=np.empty(group, bool),
        )

    def restore(
        self, progress: dict[str, Any], at: int, in_flight: sampling.Rollout | None
    ) -> None:
        """Goes on before step number `at`, from what a checkpoint held."""
        keys = np.array(progress["keys"], np.uint32)
        self.keys = jax.random.wrap_key_data(keys)
        if in_flight is not None:
            count = self.config.train.prompts
            rows = self.devices.rows(count)
            put = self.devices.put(jax.tree.map(lambda x: x[rows], in_flight), count)
            # Where the sampler would have left it, or the update would compile again.
            place = self.devices.step(
                lambda _, rollout, __: jax.tree.map(self.devices.place, rollout),
                changes_state=False,
            )
            self._ahead = _Drawn(*self._prompts(at), place((), put, ()))

    def evaluate(self, params: Any, at: int, *, progress: bool = False) -> evaluation.Evaluation:
        """Held-out problems, sampled with random numbers of their own."""

        def sample(*batch: jax.Array) -> sampling.Rollout:
            options = self.config.eval
            drawn = {"top_p": options.top_p, "temperature": options.temperature}
            return self._sample(params, batch, options.n, _EVALUATE, at, **drawn)

        return evaluation.evaluate(
            sample,
            self.devices,
            self.task,
            self.grader.grade,
            self.tokenizer,
            self.held_out,
            batch=self.config.eval.prompts,
            max_prompt=self.config.rollout.max_prompt,
            progress=progress,
        )

    def close(self) -> None:
        """Ends the grading processes."""
        self.grader.close()


def make_devices(config: config_dict.ConfigDict) -> parallel.Jitted:
    """How the config runs its steps on the devices there are."""
    if config.parallel.mode == "pmap":
        return parallel.Pmapped()
    shape = parallel.mesh_shape(config.parallel.mesh, jax.device_count())
    return parallel.Jitted(parallel.make_mesh(shape))


def make_tokenizer(config: config_dict.ConfigDict, task: tasks.Task) -> Any:
    """Characters for the tiny policy, the official tokenizer for the official sizes."""
    if config.model.size == "tiny":
        return tokenizers.CharacterTokenizer(task.alphabet)
    try:
        return tokenizers.Gemma2Tokenizer(config.model.tokenizer, chat=config.model.chat)
    except tokenizers.TokenizerError as e:
        raise config_lib.ConfigError(f"model.tokenizer: {e}") from None
