"""The parts of a run, built from its config, which start it, take steps and evaluate."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from pkpo_jax import mixtures, parallel, schedules, tasks
from pkpo_jax.policy import checkpoints, sampling
from pkpo_jax.tasks import grading
from pkpo_jax.training import checkpoints as run_checkpoints
from pkpo_jax.training import checks, data, evaluation, policies, programs, prompts
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import weights as weights_lib
from pkpo_jax.training.files import first_line
from pkpo_jax.training.state import TrainState, learning_rate, split
from pkpo_jax.training.step import Batch
from pkpo_jax.training.visits import Visits
from pkpo_jax.training.warm_start import warm_start

# Each use of randomness has its own stream, which is split from the run's seed.
_INIT, _SAMPLE, _EVALUATE, _WEIGH = range(4)

_fold_in = jax.jit(jax.random.fold_in)


class Graded(NamedTuple):
    """The responses of a step, with their grades and reward weights.

    Attributes:
      problems, responses: those that this process graded.
      rows: the rows of these problems in the batch.
      ids: [P], the indices of all problems of the batch in the training split.
      grades: the grades of all responses, [P, n].
      weights: [P, n] reward weights of the estimator.
      batch: the batch of an update that changed no parameters, because its loss or gradient was
        not finite or no response could be graded; None for any other update.
    """

    problems: list[tasks.Problem]
    responses: list[list[str]]
    rows: np.ndarray
    ids: np.ndarray
    grades: grading.Grades
    weights: np.ndarray
    batch: Batch | None


# This maps the rows that this process feeds to its devices to their problems.
_Problems = Mapping[int, tasks.Problem]
# Prompts, lengths and row numbers of a batch on the devices.
_Placed = tuple[jax.Array, jax.Array, jax.Array]


class Trainer:
    """The parts of a run, built from its config. Building checks everything and compiles nothing.

    Raises:
      ConfigError: the config cannot run; the message names the key, its value and how to fix it.
    """

    def __init__(self, config: config_dict.ConfigDict) -> None:
        self.config = config = checks.validate(config, jax.device_count())
        self.keys = list(jax.random.split(jax.random.key(config.seed), 4))
        self.task, train, held_out = _read_task(config)
        # These raise a ValueError if a character has no token or the task no demonstrations.
        with _config_errors("", ValueError):
            options = config_lib.freeze(config).prompt
            examples, train = prompts.worked_examples(self.task, train, held_out, options)
            tokenizer = policies.make_tokenizer(config, self.task)
            self.tokenizer = prompts.PromptTokenizer(tokenizer, options, examples)
            self.problems, held_out = self._without_long_prompts(train, held_out)
            self.held_out: Sequence[tasks.Problem] = evaluation.spread(
                held_out, config.eval.problems
            )
            data.check_lengths(self.task, self.tokenizer, self.problems, self.held_out, config)
        self._numbers = {problem["id"]: i for i, problem in enumerate(train)}
        self.order = data.in_training_order(self.problems, config.seed)
        self.schedule = schedules.step(config_lib.k_by_step(config.k))
        self.devices = make_devices(config)
        self.programs = programs.Programs(config, self.devices, self.tokenizer)
        self._visits: Visits | None = None
        if self.programs.needs_earlier:
            self._visits = Visits(len(train), config.estimator.discount)
        self._checkpoint = self._find_checkpoint()
        self._reference: Any = None
        # The checksum of the checkpoint's parameters, if a resumed run reads them again.
        self._base: int | None = None
        # This is the next step's batch, if it is sampled while this step's batch is graded.
        self._ahead: tuple[_Problems, Batch] | None = None
        # This holds the problems and prompts of a step that were read before it, by the step.
        self._prefetched: dict[int, tuple[_Problems, _Placed]] = {}
        self.grader = _make_grader(config, self.task)

    def _without_long_prompts(self, *splits: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Returns the splits without the problems that rollout.drop_long_prompts leaves out."""
        if not self.config.rollout.drop_long_prompts:
            return splits
        longest = self.config.rollout.max_prompt
        kept = [data.without_long_prompts(self.tokenizer, split, longest) for split in splits]
        if parallel.is_first_process():
            dropped = [f"{len(a) - len(b)} of {len(a)}" for a, b in zip(splits, kept, strict=True)]
            print(
                f"left out for prompts over {longest} tokens: {dropped[0]} training problems, "
                f"{dropped[1]} held-out ones.",
                flush=True,
            )
        return kept

    def _find_checkpoint(self) -> checkpoints.Checkpoint | None:
        path = self.config.model.checkpoint
        with _config_errors("model.checkpoint: ", checkpoints.CheckpointError):
            return checkpoints.find(path, self.programs.model.config) if path else None

    def initial_params(self, workdir: pathlib.Path, base: dict[str, Any] | None = None) -> Any:
        """Returns the parameters before the first RL step, the same at every call.

        They come from a checkpoint or are random. If the config has an SFT warm start, they are
        those after it, which are kept in `workdir`.

        Args:
          workdir: the directory of the run.
          base: the parameters without adapters, if they have been read; their memory is taken.
        """
        params = self._read_params() if base is None else base
        # Other random numbers than those of random parameters.
        params |= self.programs.random_adapters(jax.random.fold_in(self.keys[_INIT], 1))
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

    def _read_params(self, checksum: int | None = None) -> dict[str, Any]:
        """Returns the parameters of the checkpoint, or random ones, without adapters.

        If the run has adapters or `loss.kl`, so that it reads the checkpoint again when it is
        resumed, the checksum of the parameters is compared with the given one.
        """
        if not self._checkpoint:
            return self.programs.random_params(self.keys[_INIT])
        path = self.config.model.checkpoint
        try:
            params = self._checkpoint.read(self.programs.abstract_params())
        except Exception as e:  # Torn files raise errors of many libraries.
            raise checkpoints.CheckpointError(f"{path} cannot be read ({first_line(e)}).") from e
        if self.config.model.lora.rank or self.programs.needs_reference:
            self._base = run_checkpoints.check_base(checksum, path, params)
        return params

    def start(self, workdir: pathlib.Path) -> TrainState:
        """Returns the state before the first RL step.

        If the loss measures the divergence from this policy, its trained parts are copied. The
        others are those of the state, without a second copy.
        """
        policy = self.initial_params(workdir)
        if self.programs.needs_reference:
            self._reference = self.programs.copy_trained(policy)
        return self.programs.create(policy)

    def step(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any], Graded]:
        """Takes a step, and returns the new state, the metrics and the graded responses."""
        config, started = self.config, time.perf_counter()
        problems, batch = self._ahead or self._sample_batch(state.policy, step)
        self._ahead = None
        if config.rollout.ahead and step + 1 < config.train.steps:
            # This call only dispatches work: the device samples while the host grades.
            self._ahead = self._sample_batch(state.policy, step + 1)
        tokens, lengths = self.devices.fetch((batch.rollout.tokens, batch.rollout.lengths))
        sampled = time.perf_counter()
        # Scoring, too, runs on the device while the host grades.
        batch = self._score(state, batch)
        rows = self.devices.owned(config.train.prompts)
        owned = [problems[row] for row in rows]
        responses = data.decode_responses(self.tokenizer, tokens[rows], lengths[rows])
        ids, grades = self._grade(rows, owned, responses)
        done_grading = time.perf_counter()
        batch = self._classify(self._reward(batch, grades), rows, owned, responses, grades)
        batch = self._count(batch, ids, grades)
        k, rate = self.schedule(step), learning_rate(config.train, step)
        scalars = (k, _fold_in(self.keys[_WEIGH], step), config.rollout.temperature, rate)
        state, metrics = self.programs.update(state, batch, scalars)
        # The host reads the prompts that are sampled next while the devices update the parameters.
        following = step + 1 + config.rollout.ahead
        more = following < config.train.steps
        self._prefetched = {following: self._prompts(following)} if more else {}
        metrics = jax.device_get(metrics)
        weights = metrics.pop("weights").reshape(grades.rewards.shape)
        curve = evaluation.summarize(metrics.pop("pass_at_k"))
        metrics = {name: float(value) for name, value in metrics.items()}
        learned = not metrics["skipped"] and metrics["invalid"] < 1.0
        metrics = {"k": mixtures.mean_k(k), "learning_rate": rate, **metrics, **curve}
        metrics = {f"train/{name}": value for name, value in metrics.items()}
        for status in tasks.Status:
            metrics[f"grade/{status.name.lower()}"] = int((grades.statuses == status).sum())
        updated = time.perf_counter()
        metrics["time/sample_s"] = sampled - started
        metrics["time/grade_s"] = done_grading - sampled
        metrics["time/update_s"] = updated - done_grading
        metrics["time/tokens_per_s"] = float(lengths.sum()) / (updated - started)
        batch = None if learned else batch
        return state, metrics, Graded(owned, responses, rows, ids, grades, weights, batch)

    def _sample_batch(self, params: Any, step: int) -> tuple[_Problems, Batch]:
        """Dispatches the sampling of a step's batch, and returns its problems and the batch."""
        problems, placed = self._prefetched.get(step) or self._prompts(step)
        rollout = self._sample(params, placed, self.config.rollout.n, _SAMPLE, step)
        return problems, Batch(*placed, rollout)

    def _prompts(self, step: int) -> tuple[_Problems, _Placed]:
        """Returns a step's problems, and their prompts, lengths and row numbers on the devices."""
        count = self.config.train.prompts
        rows = self.devices.rows(count)
        problems = {int(row): self.order[step * count + int(row)] for row in rows}
        texts = [problem["prompt"] for problem in problems.values()]
        encoded = data.encode_prompts(self.tokenizer, texts, self.config.rollout.max_prompt)
        return problems, self.devices.put((*encoded, rows.astype(np.int32)), count)

    def _score(self, state: TrainState, batch: Batch) -> Batch:
        """Adds the log-probs that the update needs in addition to those of the sampler."""
        scored = (batch.prompts, batch.lengths, batch.rollout.tokens)
        temperature = (self.config.rollout.temperature,)
        if self.programs.needs_old:
            old = self.programs.scorer(state.policy, scored, temperature)
            batch = batch._replace(old=old)
        if self.programs.needs_reference:
            reference = {**state.frozen, **self._reference}
            batch = batch._replace(reference=self.programs.scorer(reference, scored, temperature))
        return batch

    def _grade(
        self, rows: np.ndarray, problems: list[tasks.Problem], responses: list[list[str]]
    ) -> tuple[np.ndarray, grading.Grades]:
        """Grades the rows that this process owns, and gathers the grades of all processes.

        Returns:
          The indices [P] of all problems of the batch in the training split, and the grades [P, n]
          of their responses, the same on every process.
        """
        count, n = self.config.train.prompts, self.config.rollout.n
        grades = self.grader.grade(problems, responses)
        ids = np.array([self._numbers[problem["id"]] for problem in problems], np.int32)
        whole = (parallel.gather(rows, values, (count, n)) for values in grades)
        return parallel.gather(rows, ids, (count,)), grading.Grades(*whole)

    def _reward(self, batch: Batch, grades: grading.Grades) -> Batch:
        """Adds the rewards to the batch, and which of them are valid."""
        count = self.config.train.prompts
        fed = grades.rewards[self.devices.rows(count)]
        rewards, valid = self.devices.put((fed, np.isfinite(fed)), count)
        return batch._replace(rewards=rewards, valid=valid)

    def _classify(
        self,
        batch: Batch,
        rows: np.ndarray,
        problems: list[tasks.Problem],
        responses: list[list[str]],
        grades: grading.Grades,
    ) -> Batch:
        """Adds to the batch which responses gave equal answers, if the estimator needs it."""
        if not self.programs.needs_classes:
            return batch
        count, n = self.config.train.prompts, self.config.rollout.n
        answers = [[self.task.answer(response) for response in group] for group in responses]
        groups = zip(problems, responses, grades.rewards[rows], strict=True)
        modes = [weights_lib.right_modes(self.task, *group) for group in groups]
        own = weights_lib.answer_classes(answers, modes).reshape(-1, n)
        whole = parallel.gather(rows, own, (count, n))
        return batch._replace(classes=self.devices.put(whole[self.devices.rows(count)], count))

    def _count(self, batch: Batch, ids: np.ndarray, grades: grading.Grades) -> Batch:
        """Adds to the batch what earlier visits have shown, if needed, and counts this visit."""
        if self._visits is None:
            return batch
        count = self.config.train.prompts
        earlier = self._visits.earlier(ids[self.devices.rows(count)])
        self._visits.add(ids, grades.rewards)
        return batch._replace(earlier=self.devices.put(earlier, count))

    def _sample(
        self,
        params: Any,
        batch: Sequence[jax.Array],
        n: int,
        stream: int,
        step: int,
        *,
        top_p: float = 1.0,
        temperature: float | None = None,
    ) -> sampling.Rollout:
        """Samples n responses to each prompt of (prompts, lengths, rows) on the devices.

        `stream` and `step` determine the random numbers. The temperature is that of the rollouts if
        it is None.
        """
        if temperature is None:
            temperature = self.config.rollout.temperature
        return self.programs.sampler(n, top_p)(
            params, batch, (self.keys[stream], step, float(temperature))
        )

    def weights(
        self, step: int, rewards: np.ndarray, entropy: np.ndarray, k: int, classes: np.ndarray
    ) -> np.ndarray:
        """Returns the reward weights [P, n] that the estimator gives these rewards for k.

        `entropy` [P] is the mean entropy of the tokens of each prompt's responses, and `classes`
        [P, n] says which of them gave equal answers. The KL divergence that `loss.kl_in_reward`
        subtracts from the rewards is left out.
        """
        weigh, valid = jax.jit(self.programs.recipe.weigh), np.isfinite(rewards)
        key = _fold_in(self.keys[_WEIGH], step)
        given = jnp.where(valid, rewards, 0.0)
        options = dict(rows=jnp.arange(len(rewards)), key=key, entropy=jnp.asarray(entropy))
        if self.programs.needs_classes:
            options["classes"] = jnp.asarray(classes)
        return np.asarray(weigh(given, jnp.int32(k), valid, **options))

    def state_dict(self) -> dict[str, Any]:
        """Returns the part of the trainer that a checkpoint holds, as JSON values."""
        state: dict[str, Any] = {"keys": [jax.random.key_data(key).tolist() for key in self.keys]}
        if self._base is not None:
            state["base"] = self._base
        if self._visits is not None:
            state["visits"] = self._visits.to_json()
        return state

    def in_flight(self) -> sampling.Rollout | None:
        """Returns the rollout that was sampled ahead, as host arrays, or None if there is none.

        Checkpoints hold it, since a resumed run does not have the policy that sampled it.
        """
        return self.devices.fetch(self._ahead[1].rollout) if self._ahead else None

    def like_in_flight(self) -> sampling.Rollout | None:
        """Returns arrays like a rollout in flight, or None if the run does not sample ahead."""
        if not self.config.rollout.ahead:
            return None
        r = self.config.rollout
        group = (self.config.train.prompts, r.n)
        tokens, empty = (*group, r.max_response), cast(Any, np.empty)
        return sampling.Rollout(
            tokens=empty(tokens, np.int32),
            lengths=empty(group, np.int32),
            mask=empty(tokens, bool),
            log_probs=empty(tokens, np.float32),
            entropy=empty(tokens, np.float32),
            finished=empty(group, bool),
        )

    def restore(
        self,
        state: TrainState,
        progress: dict[str, Any],
        step: int,
        in_flight: sampling.Rollout | None,
        workdir: pathlib.Path,
    ) -> TrainState:
        """Restores what a checkpoint held, so that `step` is the next step to take.

        The policy before RL is read too, if the loss measures the divergence from it.

        Returns:
          The state, with the parameters that adapters belong to: checkpoints do not hold these.
        """
        adapters = bool(self.config.model.lora.rank)
        needs_base = adapters or self.programs.needs_reference
        # Older checkpoints have its checksum for adapters alone.
        base = self._read_params(progress.get("base")) if needs_base else None
        if self.programs.needs_reference:
            policy = self.initial_params(workdir, base)
            self._reference, frozen = split(policy, self.programs.frozen)
            base = frozen if adapters else None
        if base is not None:
            state = TrainState(state.params, state.opt_state, base)
        self.keys = list(jax.random.wrap_key_data(jnp.asarray(progress["keys"], jnp.uint32)))
        if self._visits is not None:
            self._visits.restore(progress["visits"])
        if in_flight is not None:
            count = self.config.train.prompts
            rows = self.devices.rows(count)
            put = self.devices.put(jax.tree.map(lambda x: x[rows], in_flight), count)
            # The rollout needs the sharding of the sampler's output, or the update would compile
            # again.
            place = self.devices.step(
                lambda _, rollout, __: jax.tree.map(self.devices.place, rollout),
                changes_state=False,
            )
            problems, placed = self._prompts(step)
            self._ahead = problems, Batch(*placed, place((), put, ()))
        return state

    def evaluate(self, params: Any, step: int, *, progress: bool = False) -> evaluation.Evaluation:
        """Evaluates parameters on the held-out problems, with a separate stream of randomness."""

        def sample(*batch: jax.Array) -> sampling.Rollout:
            options = self.config.eval
            how = {"top_p": options.top_p, "temperature": options.temperature}
            return self._sample(params, batch, options.n, _EVALUATE, step, **how)

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


@contextlib.contextmanager
def _config_errors(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of these kinds in the body into a ConfigError that begins with `prefix`."""
    try:
        yield
    except kinds as e:
        raise config_lib.ConfigError(f"{prefix}{e}") from None


def _read_task(
    config: config_dict.ConfigDict,
) -> tuple[tasks.Task, list[tasks.Problem], list[tasks.Problem]]:
    """Returns the task, its training problems and its held-out problems."""
    where = config.task.get("data_dir") or "TFDS's default, see TFDS_DATA_DIR"
    unwritable = (
        f"the problems could not be prepared; set task.data_dir (now {where}) to a directory that "
        "can be written: "
    )
    with (
        _config_errors("", TypeError, ValueError, ImportError),
        _config_errors(unwritable, OSError),
    ):
        task = tasks.make(config.task.to_dict())
        with parallel.first_process_first("problems"):
            name = config.task.name
            train, test = (data.read_problems(task, name, split) for split in ("train", "test"))
        return task, train, test


def _make_grader(config: config_dict.ConfigDict, task: tasks.Task) -> grading.Grader:
    options = config.grading
    with _config_errors("grading.", ValueError):
        return grading.Grader(
            task,
            workers=options.workers,
            timeout=options.timeout,
            batch_timeout=options.batch_timeout,
        )


def make_devices(config: config_dict.ConfigDict) -> parallel.Devices:
    """Returns the devices of this run, with the mesh or pmap that the config asks for."""
    if config.parallel.mode == "pmap":
        return parallel.Pmapped()
    shape = parallel.mesh_shape(config.parallel.mesh, jax.device_count())
    return parallel.Jitted(parallel.make_mesh(shape))
