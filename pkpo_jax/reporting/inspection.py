"""Evaluation of the policies of runs and samples from them, for the modes eval and sample."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from pkpo_jax import mixtures, parallel, schedules
from pkpo_jax.reporting import plots, tables
from pkpo_jax.tasks import Problem
from pkpo_jax.training import checkpoints, checks, evaluation, files, saved_run, weights
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.config import ConfigError
from pkpo_jax.training.evaluation import Evaluation
from pkpo_jax.training.trainer import Trainer


class Request(NamedTuple):
    """The request of the command line.

    Attributes:
      config: the config of directories without a run. Those with a run use the run's config.
      overrides: values by key, which replace those of each config.
      step: "newest", "best" or the number of a step.
      split: "test" or "train".
    """

    config: config_dict.ConfigDict
    overrides: Mapping[str, Any]
    step: str = "newest"
    split: str = "test"


class _Policy(NamedTuple):
    """A policy of a directory, and the config to run it with.

    Attributes:
      workdir: the directory.
      step: the step after which the policy was saved, 0 before RL.
      config: the config, whose model.checkpoint is `path`, or where that holds adapters alone, the
        checkpoint of the parameters that they belong to.
      path: the checkpoint of the policy.
      as_saved: whether the parameters are read in the dtypes in which they were saved.
    """

    workdir: pathlib.Path
    step: int
    config: config_dict.ConfigDict
    path: str
    as_saved: bool


def evaluate(workdirs: Sequence[pathlib.Path], request: Request) -> list[Evaluation]:
    """Evaluates a policy of each directory, prints its metrics, and writes them to DIR/eval.

    DIR/eval/<split>_step<N> gets summary.json, problems.jsonl, pass_at_k.png, pass_hat_k.png, and
    max_at_k.png where rewards are not 0 and 1. With several directories, the eval/ of the first one
    also gets compare_<split>.png.

    Args:
      workdirs: directories of runs, or directories without a run for a given checkpoint.
      request: the policies and problems that the command line asks for.

    Returns:
      The evaluation of each directory.

    Raises:
      ConfigError: there is no such policy, or it cannot be run. This is raised before anything
        compiles, except for a checkpoint that does not fit its config.
    """
    with parallel.first_process_first("runs"):
        policies = [_policy(workdir, request) for workdir in workdirs]
        labels = [
            f"{label}, step {policy.step}"
            for label, policy in zip(unique_labels(workdirs), policies, strict=True)
        ]
    for policy in policies:
        checks.validate(policy.config, jax.device_count())
    results, written = {}, []
    for policy, label in zip(policies, labels, strict=True):
        output = policy.workdir / "eval" / f"{request.split}_step{policy.step}"
        with contextlib.closing(Trainer(policy.config)) as trainer:
            with parallel.first_process_first("output"):
                _make(output)
            problems = trainer.held_out
            if request.split == "train":
                problems = evaluation.spread(trainer.problems, policy.config.eval.problems)
            results[label] = _run(policy, trainer, problems, progress=True)
        if parallel.is_first_process():
            _write(output, policy, label, results[label], request)
            written.append(str(output))
    if parallel.is_first_process():
        tables.figures(results, request.split)
        if len(results) > 1:
            path = workdirs[0] / "eval" / f"compare_{request.split}.png"
            written += _plot(path, results, request.split)
        print("written:", *written, sep="\n  ")
    return list(results.values())


def sample(
    workdir: pathlib.Path, request: Request, *, count: int = 3, ks: Sequence[int] = ()
) -> Evaluation:
    """Prints responses to some problems, with the reward weight of each for every k of `ks`.

    The config's seed determines the problems and the responses.

    Args:
      workdir: the directory of a run, or one without a run for a given checkpoint.
      request: the policy and the problems that the command line asks for.
      count: number of problems.
      ks: the k to show weights for. If empty, these are 1 and the k that the run ends with, as far
        as the estimator serves them. Weights that need hidden states are not shown, and
        posterior counts no earlier visits.

    Returns:
      The evaluation that holds the problems and responses.

    Raises:
      ConfigError: there is no such policy, it cannot be run, or a k is out of range.
    """
    with parallel.first_process_first("runs"):
        policy = _policy(workdir, request)
        config = policy.config
        # Batches have the shapes of a training step, so that the reward weights are those of
        # training.
        config.eval.n, config.eval.prompts = config.rollout.n, config.train.prompts
    with contextlib.closing(Trainer(config)) as trainer:
        if ks and trainer.programs.recipe.embeds:
            raise ConfigError(
                f"--ks: estimator {config.estimator.name}: its weights need hidden states, which "
                "only training computes; drop --ks to see the responses alone."
            )
        ks = [] if trainer.programs.recipe.embeds else checked_ks(config, ks)
        problems = trainer.held_out if request.split == "test" else trainer.problems
        chosen = random.Random(config.seed).sample(range(len(problems)), min(count, len(problems)))
        result = _run(policy, trainer, [problems[i] for i in sorted(chosen)], progress=False)
        if parallel.is_first_process():
            total, tokens = result.terms["entropy"]
            entropy = total / np.maximum(tokens, 1)
            by_k = {
                k: trainer.weights(policy.step, result.rewards, entropy, k, result.classes)
                for k in ks
            }
            print(f"{workdir}, step {policy.step}: {config.rollout.n} responses to each problem")
            prompts = [trainer.tokenizer.text(problem["prompt"]) for problem in result.problems]
            tables.samples(result, prompts, by_k, request.split)
    return result


def unique_labels(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """Returns the names of the directories, with as much of their paths as makes them unique.

    Raises:
      ConfigError: a directory is given twice.

    >>> unique_labels([pathlib.Path("a/maze"), pathlib.Path("b/maze")])
    ['a/maze', 'b/maze']
    """
    paths = [path.resolve() for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"--workdir names {path} more than once; give each run once.")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return [str(pathlib.Path(*path.parts[-parts:])) for path in paths]


def checked_ks(config: config_dict.ConfigDict, ks: Sequence[int]) -> list[int]:
    """Returns `ks` in order, or if it is empty, 1 and the k that the run ends with.

    Raises:
      ConfigError: a k is out of the range that the estimator and rollout.n allow.
    """
    n, estimator = config.rollout.n, config_lib.freeze(config).estimator

    def wrong(k: int) -> str:
        largest = weights.largest_k(estimator, n)
        if not 1 <= k <= largest:
            expected = f"1 to {largest}, which rollout.n={n} samples serve"
            return f"k={k}; expected {'at least 1' if largest == np.inf else expected}."
        try:
            weights.check(estimator, n, [k])
        except ValueError as e:
            return str(e)
        return ""

    for k in ks:
        if wrong(k):
            raise ConfigError(f"--ks: estimator {estimator.name}: {wrong(k)}")
    if ks:
        return sorted(set(ks))
    schedule = schedules.step(config_lib.k_by_step(config.k))
    last = schedule(max(config.train.steps - 1, 0))
    return sorted({*mixtures.components(last)} | {k for k in (1,) if not wrong(k)})


def _policy(workdir: pathlib.Path, request: Request) -> _Policy:
    config = request.config
    if saved_run.is_run(workdir):
        if "model.checkpoint" in request.overrides:
            raise ConfigError(
                f"--workdir={workdir} is a run's directory, and --step selects its policy; drop "
                "--config.model.checkpoint, or give a new --workdir."
            )
        config = saved_run.read_config(workdir)
    config = saved_run.override(config, request.overrides)
    step, path = saved_run.policy(workdir, config, request.step)
    if not config.model.lora.rank:
        config.model.checkpoint = path
    # The parameters of another run may have been saved in another dtype, so only the run's own
    # ones are read and verified as saved.
    own = any(pathlib.Path(path).is_relative_to(workdir / d) for d in ("checkpoints", "warm_start"))
    config.warm_start.steps = 0
    # These keys are about training alone, and checkpoint.best depends on training's evaluations.
    config.checkpoint.best = config.log.wandb = ""
    as_saved = own and saved_run.is_run(workdir) and "model.param_dtype" not in request.overrides
    return _Policy(workdir, step, config, path, as_saved)


def _run(
    policy: _Policy, trainer: Trainer, problems: Sequence[Problem], *, progress: bool
) -> Evaluation:
    trainer.held_out = problems
    return trainer.evaluate(_read(policy, trainer), policy.step, progress=progress)


def _read(policy: _Policy, trainer: Trainer) -> Any:
    """Reads the parameters of a policy.

    Raises:
      CheckpointError: they cannot be read, or are damaged. The message lists the other steps.
    """
    base, path = policy.config.model.checkpoint, pathlib.Path(policy.path)
    if policy.path != base:
        params = trainer.initial_params(policy.workdir)
        with saved_run.naming_other_steps(policy.workdir, policy.step):
            adapters = checkpoints.read_adapters(path, trainer.programs.abstract_adapters())
        if policy.as_saved:
            checkpoints.verify_base(path, base, params)
        return params | adapters
    with saved_run.naming_other_steps(policy.workdir, policy.step):
        params = trainer.initial_params(policy.workdir)
        if policy.as_saved:
            checkpoints.verify(path, params)
    return params


def _make(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"{directory} cannot be made ({e.strerror}); give a --workdir that can be written."
        ) from None


def _write(
    directory: pathlib.Path, policy: _Policy, label: str, result: Evaluation, request: Request
) -> None:
    lines = [json.dumps(line, allow_nan=False) + "\n" for line in problem_lines(result)]
    (directory / "problems.jsonl").write_text("".join(lines))
    _plot(directory / "pass_at_k.png", {label: result}, request.split)
    intervals = evaluation.intervals(result.terms)
    summary = {
        "split": request.split,
        "step": policy.step,
        "checkpoint": policy.path,
        "problems": len(result.problems),
        "left_out": evaluation.left_out(result.rewards),
        "n": result.rewards.shape[1],
        "seed": policy.config.seed,
        "overrides": dict(request.overrides),
        "confidence": evaluation.CONFIDENCE,
        "replicates": evaluation.REPLICATES,
        "figures": {
            name: {"value": _finite(value), "interval": [_finite(x) for x in intervals[name]]}
            for name, value in evaluation.figures(result.terms).items()
        },
    }
    files.replace(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def problem_lines(result: Evaluation) -> list[dict[str, Any]]:
    """Returns the lines of problems.jsonl.

    The metrics of a problem are None if none of its responses was graded.
    """
    ks = evaluation.reported_ks(result.rewards.shape[1])
    at_k = [f"{kind}_{k}" for kind in evaluation.AT_K for k in ks]
    lines = []
    for i, problem in enumerate(result.problems):
        answers, rewards = result.answers[i], result.rewards[i]
        graded = bool(np.isfinite(rewards).any())
        most, right = evaluation.majority(answers, rewards)
        lines.append(
            {
                "id": problem["id"],
                "prompt": problem["prompt"],
                "rewards": [_finite(reward) for reward in rewards.tolist()],
                "correct": int((rewards >= 1.0).sum()),
                **{name: float(result.terms[name][0][i]) if graded else None for name in at_k},
                # There are several of them where votes are tied.
                "majority_answers": most,
                "majority_right": right if graded else None,
                "distinct_answers": len({a for a in answers if a is not None}),
                "modes": result.modes[i],
                "responses": result.responses[i],
            }
        )
    return lines


def _plot(path: pathlib.Path, results: Mapping[str, Evaluation], split: str) -> list[str]:
    """Draws pass@k, pass^k, and what else exists for every k and differs from pass@k.

    Each has a file of its own.

    Returns:
      The paths of the files.
    """
    targets = {}
    for kind in evaluation.informative_kinds(list(results.values())):
        stem = path.stem.replace("pass_at_k", f"{kind}_k")
        beside = kind != "pass_at" and stem == path.stem
        targets[kind] = path.with_stem(f"{stem}_{kind}_k" if beside else stem)
    for kind, target in targets.items():
        curves, bands = {}, {}
        for label, one in results.items():
            names = {k: f"{kind}_{k}" for k in range(1, one.rewards.shape[1] + 1)}
            terms = {name: one.terms[name] for name in names.values()}
            values, intervals = evaluation.figures(terms), evaluation.intervals(terms)
            curves[label] = {k: values[name] for k, name in names.items()}
            bands[label] = {k: intervals[name] for k, name in names.items()}
        title = f"{split} problems, 95% intervals over problems"
        plots.pass_at_k(target, curves, bands, name=evaluation.AT_K[kind], title=title)
    return [str(target) for target in targets.values()]


def _finite(value: float) -> float | None:
    """Returns `value`, or None if it is not finite, because JSON has no NaN."""
    return value if math.isfinite(value) else None
