"""The noise of single estimates of the gradient of pass@k, measured on a policy of a run.

python -m experiments.study.variance --workdir=RUN [--step=0] [--k=4] [--output=FILE.json]

The policy answers one training batch of P prompts many times. Each time it samples n responses a
prompt, and every estimator makes its gradient of the whole policy from the same samples. A
gradient is of the mean over prompts of sum_i w_i log p(x_i), with the weights in the SUM convention
(paper A, arXiv 2505.15201, equation 18): what a plain training step follows before clipping. The
prompts stay the same, so only the samples vary. It prints what `measure` returns, as JSON. 256
estimates of the tiny policy take about two minutes on one core.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags, logging

from experiments.study import estimators, results
from pkpo_jax import command_line
from pkpo_jax.policy import checkpoints, scoring
from pkpo_jax.training import data, saved_run
from pkpo_jax.training.trainer import Trainer

REFERENCE = "loo_minus_one"
# Standard errors come from the spread over this many equal parts of the estimates.
BLOCKS = 8


def make_gradients(
    log_prob: Callable[..., jax.Array], weighers: Sequence[Callable[..., jax.Array]]
) -> Callable[..., jax.Array]:
    """Compiles (params, samples, rewards, valid) -> [E, D], the gradient of each estimator.

    Args:
      log_prob: (params, samples) -> [P, n], of whole responses.
      weighers: E functions (rewards [P, n], valid [P, n]) -> reward weights [P, n].
    """

    @jax.jit
    def gradients(params: Any, samples: Any, rewards: jax.Array, valid: jax.Array) -> jax.Array:
        stacked = jnp.stack([weigh(rewards, valid) for weigh in weighers])
        # The estimators share the forward pass. Their backward passes run one after the other,
        # because side by side they take half as long again on a CPU.
        _, pull_back = jax.vjp(lambda p: log_prob(p, samples), params)
        (grads,) = jax.lax.map(pull_back, stacked / rewards.shape[0])
        leaves = [g.reshape(len(weighers), -1) for g in jax.tree.leaves(grads)]
        return jnp.concatenate(leaves, -1)

    return gradients


class Moments:
    """Sums over estimates of E gradients of D parameters, in float64.

    Attributes:
      count: number of estimates.
      total: [E, D] their sum.
      squares: [E] the sum of their squared norms.
    """

    def __init__(self, count: int = 0, total: Any = 0.0, squares: Any = 0.0) -> None:
        self.count, self.total, self.squares = count, total, squares

    def add(self, gradients: jax.typing.ArrayLike) -> None:
        """Adds one estimate by each estimator, [E, D]."""
        gradients = np.asarray(gradients, np.float64)
        self.count += 1
        self.total = self.total + gradients
        self.squares = self.squares + (gradients**2).sum(-1)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def noise(self) -> np.ndarray:
        """[E] traces of the covariances of one estimate, unbiased."""
        return (self.squares / self.count - self._of_mean) * self.count / (self.count - 1)

    @property
    def signal(self) -> np.ndarray:
        """[E] squared norms of the expected gradients, unbiased: noise can push them below 0."""
        return self._of_mean - self.noise / self.count

    @property
    def _of_mean(self) -> np.ndarray:
        return (self.total**2).sum(-1) / self.count**2


def summarize(
    blocks: Sequence[Moments], names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Returns {estimator: metrics} of estimates in blocks of equal size; None where undefined.

    The metrics are the "noise", the "signal", and the log of the noise over that of
    loo_minus_one, "log_ratio", the last two with standard errors. The names hold REFERENCE.
    """
    every, base = functools.reduce(operator.add, blocks), names.index(REFERENCE)
    with np.errstate(divide="ignore", invalid="ignore"):
        metrics = {
            "noise": every.noise,
            "signal": every.signal,
            "signal_error": _error([b.signal for b in blocks]),
            "log_ratio": np.log(every.noise / every.noise[base]),
            "log_ratio_error": _error([np.log(b.noise / b.noise[base]) for b in blocks]),
        }
    return {
        name: {key: float(x[i]) if math.isfinite(x[i]) else None for key, x in metrics.items()}
        for i, name in enumerate(names)
    }


def _error(by_block: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the standard error of the mean over blocks."""
    return np.std(by_block, axis=0, ddof=1) / math.sqrt(len(by_block))


def measure(
    workdir: pathlib.Path,
    step: int,
    *,
    k: int,
    replicates: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures estimators of the gradient of pass@k on the prompts of a run's first step.

    Args:
      workdir: of the run.
      step: of a policy that the run keeps; 0 is the one before RL.
      k: of pass@k, 1 to n, the run's rollout.n; loo and centered need k < n, and disjoint groups
        with a baseline k <= n/2.
      replicates: gradient estimates, a multiple of BLOCKS and at least two of each block.
      seed: of the samples.
      progress: whether to show a progress bar.

    Returns:
      {"step", "k", "n", "prompts", "replicates", "seed", "parameters", "estimators": {name: {"k",
      and the metrics of `summarize`}}}.

    Raises:
      ConfigError: the run keeps no such policy, or it cannot be run.
      ValueError: k or replicates are out of range.
    """
    if replicates < 2 * BLOCKS or replicates % BLOCKS:
        raise ValueError(f"replicates={replicates}; expected a multiple of {BLOCKS} above it.")
    config = saved_run.read_config(workdir)
    n, count = config.rollout.n, config.train.prompts
    if not 1 <= k <= n:
        raise ValueError(f"k={k}; expected 1 to {n}, which rollout.n={n} samples serve.")
    _, config.model.checkpoint = saved_run.policy(workdir, config, str(step))
    config.warm_start.steps = 0
    # These keys are for training only.
    config.checkpoint.best = config.log.wandb = ""
    compared = estimators.serving(n, k)
    blocks = [Moments() for _ in range(BLOCKS)]
    with contextlib.closing(Trainer(config)) as trainer:
        params = trainer.initial_params(workdir)
        gradients = policy_gradients(trainer, [e.weigh for e in compared.values()])
        batch = first_prompts(trainer)
        sample, key = trainer.programs.sampler(n), jax.random.key(seed)
        for i in tqdm.trange(replicates, unit="estimate", disable=not progress):
            rollout = sample(params, batch, (key, i, config.rollout.temperature))
            graded = grade(trainer, rollout)
            valid = np.isfinite(graded)
            fed = trainer.devices.put((np.where(valid, graded, 0.0), valid), count)
            blocks[i * BLOCKS // replicates].add(gradients(params, (*batch[:2], rollout), *fed))
    found = summarize(blocks, list(compared))
    return {
        **{"step": step, "k": k, "n": n, "prompts": count, "replicates": replicates, "seed": seed},
        "parameters": blocks[0].total.shape[-1],
        "estimators": {name: {"k": compared[name].k, **found[name]} for name in compared},
    }


def first_prompts(trainer: Trainer) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns prompts [P, L], lengths [P] and row numbers [P] of the first step, on devices."""
    count = trainer.config.train.prompts
    order: Any = trainer.order
    texts = [order[row]["prompt"] for row in range(count)]
    encoded = data.encode_prompts(trainer.tokenizer, texts, trainer.config.rollout.max_prompt)
    return trainer.devices.put((*encoded, np.arange(count, dtype=np.int32)), count)


def grade(trainer: Trainer, rollout: Any) -> np.ndarray:
    """Returns rewards [P, n] float32 of responses to `first_prompts`; NaN without a grade."""
    tokens, lengths = trainer.devices.fetch((rollout.tokens, rollout.lengths))
    responses = data.decode_responses(trainer.tokenizer, tokens, lengths)
    order: Any = trainer.order
    return trainer.grader.grade([order[row] for row in range(len(tokens))], responses).rewards


def policy_gradients(
    trainer: Trainer, weighers: Sequence[Callable[..., jax.Array]]
) -> Callable[..., jax.Array]:
    """Returns `make_gradients` of the trainer's policy, for samples (prompts, lengths, rollout)."""
    model, temperature = trainer.programs.model, trainer.config.rollout.temperature

    def log_prob(params: Any, samples: tuple) -> jax.Array:
        prompts, lengths, rollout = samples
        log_probs, _ = scoring.score(model, params, prompts, lengths, rollout.tokens, temperature)
        return jnp.where(rollout.mask, log_probs, 0.0).sum(-1)

    return make_gradients(log_prob, weighers)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    options = {name: getattr(flags.FLAGS, name) for name in ("k", "replicates", "seed")}
    workdir = pathlib.Path(flags.FLAGS.workdir)
    try:
        found = measure(workdir, flags.FLAGS.step, **options, progress=True)
    except (ValueError, checkpoints.CheckpointError) as e:  # A ConfigError is a ValueError.
        command_line.stop(e)
    results.publish(found, flags.FLAGS.output)


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
    flags.DEFINE_integer("step", 0, "Step of a policy that the run keeps; 0 is before RL.")
    flags.DEFINE_integer("k", 4, "The k of pass@k.", lower_bound=1)
    flags.DEFINE_integer("replicates", 256, f"Gradient estimates, a multiple of {BLOCKS}.")
    flags.DEFINE_integer("seed", 0, "Seed of the samples.")
    flags.DEFINE_string("output", "", "JSON file to write the numbers to; none if empty.")
    app.run(main)
