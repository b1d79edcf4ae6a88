"""What the policies of runs do: the modes eval and sample."""

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

from pkpo_jax import parallel
from pkpo_jax.estimators import schedules
from pkpo_jax.reporting import plots, tables
from pkpo_jax.tasks import Problem
from pkpo_jax.training import checkpoints, checks, evaluation, files, saved_run, weights
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.config import ConfigError
from pkpo_jax.training.evaluation import Evaluation
from pkpo_jax.training.trainer import Trainer


class Request(NamedTuple):
    """What the command line asks for.

    Attributes:
      config: for directories without a run; the others have their own.
      overrides: values by key, laid over each config.
      step: "newest", "best" or a number; split: "test" or "train".
    """

    config: config_dict.ConfigDict
    overrides: Mapping[str, Any]
    step: str = "newest"
    split: str = "test"


class _Policy(NamedTuple):
    """A policy of a directory, and the config to run it with.

    Attributes:
      as_saved: whether its parameters are read in the dtypes that they were saved in.
    """

    workdir: pathlib.Path
    step: int
    config: config_dict.ConfigDict
    as_saved: bool


def evaluate(workdirs: Sequence[pathlib.Path], request: Request) -> list[Evaluation]:
    """Evaluates a policy of each directory, shows the figures, and leaves them in DIR/eval.

    DIR/eval/<split>_step<N> gets summary.json, problems.jsonl, pass_at_k.png, pass_hat_k.png, and
    max_at_k.png where rewards are not 0 and 1. Of several directories, the first one's eval/ gets
    compare_<split>.png too.

    Raises:
      ConfigError: there is no such policy, or it cannot be run; before anything compiles, but for
        a policy whose checkpoint is not one of its config's.
    """
    with parallel.first_process_first("runs"):
        policies = [_policy(workdir, request) for workdir in workdirs]
        labels = [
            f"{label}, step {policy.step}"
            for label, policy in zip(unique_labels(workdirs), policies, strict=True)
        ]
    for policy in policies:
        checks.validate(policy.config, jax.device_count())
    found, written = {}, []
    for policy, label in zip(policies, labels, strict=True):
        output = policy.workdir / "eval" / f"{request.split}_step{policy.step}"
        with contextlib.closing(Trainer(policy.config)) as trainer:
            with parallel.first_process_first("output"):
                _make(output)
            problems = trainer.held_out
            if request.split == "train":
                problems = evaluation.spread(trainer.problems, policy.config.eval.problems)
            found[label] = _run(policy, trainer, problems, progress=True)
        if parallel.is_first_process():
            _write(output, policy, label, found[label], request)
            written.append(str(output))
    if parallel.is_first_process():
        tables.figures(found, request.split)
        if len(found) > 1:
            path = workdirs[0] / "eval" / f"compare_{request.split}.png"
            written += _plot(path, found, request.split)
        print("written:", *written, sep="\n  ")
    return list(found.values())


def sample(
    workdir: pathlib.Path, request: Request, *, count: int = 3, ks: Sequence[int] = ()
) -> Evaluation:
    """Shows responses to `count` problems, and the weight of each under every k of `ks`.

    Without `ks` they are 1 and the k that the run ends with, where the estimator serves them. The
    config's seed says which problems, and what is drawn.
    """
    with parallel.first_process_first("runs"):
        policy = _policy(workdir, request)
        config = policy.config
        # The shapes of a training step.
        config.eval.n, config.eval.prompts = config.rollout.n, config.train.prompts
    with contextlib.closing(Trainer(config)) as trainer:
        ks = checked_ks(config, ks)
        problems = trainer.held_out if request.split == "test" else trainer.problems
        chosen = random.Random(config.seed).sample(range(len(problems)), min(count, len(problems)))
        found = _run(policy, trainer, [problems[i] for i in sorted(chosen)], progress=False)
        if parallel.is_first_process():
            spread, tokens = found.terms["entropy"]
            entropy = spread / np.maximum(tokens, 1)
            by_k = {k: trainer.weights(policy.step, found.rewards, entropy, k) for k in ks}
            print(f"{workdir}, step {policy.step}: {config.rollout.n} responses to each problem")
            tables.samples(found, by_k, request.split)
    return found


def unique_labels(workdirs: Sequence[pathlib.Path]) -> list[str]:
    """The directories' names, with as much of the path before them as tells them apart.

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
    """`ks` in order, or 1 and the k that the run ends with; ConfigError on one out of range."""
    n, estimator = config.rollout.n, config_lib.freeze(config).estimator

    def wrong(k: int) -> str:
        largest = min(n, weights.largest_k(estimator, n))
        if not 1 <= k <= largest:
            return f"k={k}; expected 1 to {largest}, which rollout.n={n} samples serve."
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
    return sorted({last} | {k for k in (1,) if not wrong(k)})


def _policy(workdir: pathlib.Path, request: Request) -> _Policy:
    config = request.config
    if saved_run.is_run(workdir):
        if "model.checkpoint" in request.overrides:
            raise ConfigError(
                f"--workdir={workdir} is a run's directory, and --step says which of its policies; "
                "drop --config.model.checkpoint, or give a new --workdir."
            )
        config = saved_run.read_config(workdir)
    config = saved_run.override(config, request.overrides)
    step, config.model.checkpoint = saved_run.policy(workdir, config, request.step)
    # Another run's parameters may have been saved in another dtype, and other bits.
    own = pathlib.Path(config.model.checkpoint).is_relative_to(workdir / "checkpoints")
    config.warm_start.steps = 0
    # Of the training alone, and tied to the shapes that it evaluated with.
    config.checkpoint.best = config.log.wandb = ""
    as_saved = own and saved_run.is_run(workdir) and "model.param_dtype" not in request.overrides
    return _Policy(workdir, step, config, as_saved)


def _run(
    policy: _Policy, trainer: Trainer, problems: Sequence[Problem], *, progress: bool
) -> Evaluation:
    trainer.held_out = problems
    return trainer.evaluate(_read(policy, trainer), policy.step, progress=progress)


def _read(policy: _Policy, trainer: Trainer) -> Any:
    """Reads the parameters of a policy; CheckpointError, with the other steps, if it is torn."""
    try:
        params = trainer.initial_params(policy.workdir)
        if policy.as_saved:
            checkpoints.verify(pathlib.Path(policy.config.model.checkpoint), params)
    except checkpoints.CheckpointError as e:
        others = [step for step in saved_run.steps(policy.workdir) if step != policy.step]
        if not others:
            raise
        kept = ", ".join(map(str, others))
        raise checkpoints.CheckpointError(
            f"{e} Give another --step: {policy.workdir} keeps {kept}."
        ) from e
    return params


def _make(directory: pathlib.Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"{directory} cannot be made ({e.strerror}); give a --workdir that can be written."
        ) from None


def _write(
    directory: pathlib.Path, policy: _Policy, label: str, found: Evaluation, request: Request
) -> None:
    lines = [json.dumps(line, allow_nan=False) + "\n" for line in problem_lines(found)]
    (directory / "problems.jsonl").write_text("".join(lines))
    _plot(directory / "pass_at_k.png", {label: found}, request.split)
    intervals = evaluation.intervals(found.terms)
    summary = {
        "split": request.split,
        "step": policy.step,
        "checkpoint": policy.config.model.checkpoint,
        "problems": len(found.problems),
        "left_out": evaluation.left_out(found.rewards),
        "n": found.rewards.shape[1],
        "seed": policy.config.seed,
        "overrides": dict(request.overrides),
        "confidence": evaluation.CONFIDENCE,
        "replicates": evaluation.REPLICATES,
        "figures": {
            name: {"value": _finite(value), "interval": [_finite(x) for x in intervals[name]]}
            for name, value in evaluation.figures(found.terms).items()
        },
    }
    files.replace(directory / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def problem_lines(found: Evaluation) -> list[dict[str, Any]]:
    """The lines of problems.jsonl; of a problem that nothing was graded of, figures are None."""
    ks = evaluation.reported_ks(found.rewards.shape[1])
    at_k = [f"{kind}_{k}" for kind in evaluation.AT_K for k in ks]
    lines = []
    for i, problem in enumerate(found.problems):
        answers, rewards = found.answers[i], found.rewards[i]
        graded = bool(np.isfinite(rewards).any())
        most, right = evaluation.majority(answers, rewards)
        lines.append(
            {
                "id": problem["id"],
                "prompt": problem["prompt"],
                "rewards": [_finite(reward) for reward in rewards.tolist()],
                "correct": int((rewards >= 1.0).sum()),
                **{name: float(found.terms[name][0][i]) if graded else None for name in at_k},
                # Several where they are tied.
                "majority_answers": most,
                "majority_right": right if graded else None,
                "distinct_answers": len({a for a in answers if a is not None}),
                "responses": found.responses[i],
            }
        )
    return lines


def _plot(path: pathlib.Path, found: Mapping[str, Evaluation], split: str) -> list[str]:
    """Draws pass@k, and in files of their own pass^k, and max@k where it differs from pass@k.

    Returns the paths.
    """
    binary = all(evaluation.is_binary(one.rewards) for one in found.values())
    targets = {}
    for kind in evaluation.AT_K:
        if kind == "max_at" and binary:
            continue
        stem = path.stem.replace("pass_at_k", f"{kind}_k")
        beside = kind != "pass_at" and stem == path.stem
        targets[kind] = path.with_stem(f"{stem}_{kind}_k" if beside else stem)
    for kind, target in targets.items():
        curves, bands = {}, {}
        for label, one in found.items():
            names = {k: f"{kind}_{k}" for k in range(1, one.rewards.shape[1] + 1)}
            terms = {name: one.terms[name] for name in names.values()}
            values, intervals = evaluation.figures(terms), evaluation.intervals(terms)
            curves[label] = {k: values[name] for k, name in names.items()}
            bands[label] = {k: intervals[name] for k, name in names.items()}
        title = f"{split} problems, 95% intervals over problems"
        plots.pass_at_k(target, curves, bands, name=evaluation.AT_K[kind], title=title)
    return [str(target) for target in targets.values()]


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
