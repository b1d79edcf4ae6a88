"""How noisy single estimates of the gradient of pass@k are, on the policy itself.

python -m experiments.study.variance --workdir=RUN [--step=0] [--k=4] [--output=FILE.json]

A kept policy of a run answers one training batch of P prompts, over and over: each time n responses
a prompt, from which every estimator makes its gradient of the whole policy. All of them see the
same samples. Each gradient is of mean over prompts of sum_i w_i log p(x_i), weights in the SUM
convention (paper A, arXiv 2505.15201, equation 19): what a plain training step follows, before it
is clipped. The prompts stay the same, so that what varies are the samples alone. Of R such
estimates, the columns are

  noise            the trace of the covariance of one: the sum over parameters of its variance
  ratio            of that to loo_minus_one's, and the standard error of its logarithm
  signal           the squared norm of the expected gradient, that of the mean less noise / R, and
                   its standard error
  noise / signal   so many estimates must be averaged for as much signal as noise
  cosine           between the mean gradient and that of loo_minus_one; as it is, and without the
                   noise that is left in both, which is 1 for two unbiased estimators of the same

each unbiased but for the quotients. tang and rloo estimate the gradients of other objectives. About
two minutes on one core for 256 estimates of the tiny policy.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import tqdm
from absl import app, flags, logging

import experiments
import pkpo_jax as pkpo
from experiments.study import files
from experiments.study.estimators import disjoint_groups
from pkpo_jax import command_line
from pkpo_jax.estimators.pkpo import Baseline
from pkpo_jax.policy import checkpoints, scoring
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import data, saved_run, weights
from pkpo_jax.training.trainer import Trainer

REFERENCE = "loo_minus_one"
# The standard error of a ratio is taken from its spread over so many parts of the estimates.
BLOCKS = 8


class Estimator(NamedTuple):
    """weigh: (rewards [P, n], valid [P, n]) -> weights [P, n] in the SUM convention; k: of the
    max@k whose gradient they estimate."""

    weigh: Callable[[jax.Array, jax.Array], jax.Array]
    k: int


def estimators(n: int, k: int) -> dict[str, Estimator]:
    """Those that there are for n samples and this k."""
    found = {}
    for baseline in get_args(Baseline):
        if k <= weights.largest_k(config_lib.Estimator(baseline=baseline), n):
            weigh = functools.partial(_pkpo, k=k, baseline=baseline)
            found[baseline] = Estimator(weigh, k)
    found["disjoint groups"] = Estimator(lambda r, valid: naive_groups(r, k, valid), k)
    if k <= n // 2:
        weigh = lambda r, valid: disjoint_groups(r, k, valid)  # noqa: E731
        found["disjoint groups, baseline"] = Estimator(weigh, k)
    # Of other objectives: max@n, and the mean reward.
    found["tang"] = Estimator(pkpo.tang_weights, n)
    found["rloo"] = Estimator(lambda r, valid: _pkpo(r, valid, k=1), 1)
    return found


def _pkpo(
    rewards: jax.Array, valid: jax.Array, *, k: int, baseline: Baseline = "loo_minus_one"
) -> jax.Array:
    return pkpo.pkpo_weights(rewards, k, baseline=baseline, where=valid)


def naive_groups(rewards: jax.Array, k: int, where: jax.Array) -> jax.Array:
    """Each disjoint group's maximum for all its samples, over the number of groups: grad max@k.

    Groups are consecutive, samples left over weigh nothing, nor does a prompt with a response that
    could not be graded. Args: rewards [P, n]; k <= n; where [P, n] bool. Returns [P, n].
    """
    n = rewards.shape[-1]
    groups = rewards[:, : n // k * k].reshape(-1, n // k, k)
    best = jnp.repeat(groups.max(-1), k, axis=-1) / (n // k)
    best = jnp.pad(best, ((0, 0), (0, n % k)))
    return jnp.where(where.all(-1, keepdims=True), best, 0.0)


def make_gradients(
    log_prob: Callable[..., jax.Array], weighers: Sequence[Callable[..., jax.Array]]
) -> Callable[..., jax.Array]:
    """A compiled (params, samples, rewards, valid) -> [E, D], the gradient of each estimator.

    Args:
      log_prob: (params, samples) -> [P, n], of whole responses.
      weighers: E functions (rewards [P, n], valid [P, n]) -> weights [P, n].
    """

    @jax.jit
    def gradients(params: Any, samples: Any, rewards: jax.Array, valid: jax.Array) -> jax.Array:
        stacked = jnp.stack([weigh(rewards, valid) for weigh in weighers])
        # Scored once; what is left for each estimator is the backward pass. One after the other:
        # side by side they take half as long again on a CPU.
        _, pull_back = jax.vjp(lambda p: log_prob(p, samples), params)
        (grads,) = jax.lax.map(pull_back, stacked / rewards.shape[0])
        leaves = [g.reshape(len(weighers), -1) for g in jax.tree.leaves(grads)]
        return jnp.concatenate(leaves, -1)

    return gradients


class Moments:
    """Sums over estimates of E gradients of D parameters, in float64.

    Attributes:
      count: of the estimates; total: [E, D] their sum; products: [E, E] the sum of their inner
        products, of each pair of estimators.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: np.ndarray = np.zeros(())
        self.products: np.ndarray = np.zeros(())

    def add(self, gradients: jax.typing.ArrayLike) -> None:
        """One estimate by each estimator, [E, D]."""
        gradients = np.asarray(gradients, np.float64)
        self.count += 1
        self.total = self.total + gradients
        self.products = self.products + gradients @ gradients.T

    def __add__(self, other: Moments) -> Moments:
        result = Moments()
        result.count = self.count + other.count
        result.total = self.total + other.total
        result.products = self.products + other.products
        return result

    @property
    def of_means(self) -> np.ndarray:
        """[E, E] inner products of the mean gradients."""
        return self.total @ self.total.T / self.count**2

    @property
    def noise(self) -> np.ndarray:
        """[E, E] traces of the covariances of one estimate, unbiased; variances on the diagonal."""
        return (self.products / self.count - self.of_means) * self.count / (self.count - 1)

    @property
    def signal(self) -> np.ndarray:
        """[E, E] inner products of the expected gradients, unbiased: those on the diagonal are
        squared norms, and can be below 0 where noise outweighs them."""
        return self.of_means - self.noise / self.count


def summarize(
    blocks: Sequence[Moments], names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """{estimator: figures} of estimates in blocks of one size; None where one is not defined.

    `log_ratio` is the log of the noise over that of loo_minus_one; it and the signal have standard
    errors, by their spread over the blocks. The names hold REFERENCE.
    """
    every, base = functools.reduce(operator.add, blocks), names.index(REFERENCE)
    noise, signal = np.diag(every.noise), np.diag(every.signal)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratios = [np.log(np.diag(b.noise) / b.noise[base, base]) for b in blocks]
        figures = {
            "noise": noise,
            "signal": signal,
            "signal_error": _error([np.diag(b.signal) for b in blocks]),
            "noise_to_signal": np.where(signal > 0, noise / signal, np.nan),
            "log_ratio": np.log(noise / noise[base]),
            "log_ratio_error": _error(log_ratios),
            "cosine": _cosines(every.of_means, base),
            "cosine_without_noise": _cosines(every.signal, base),
        }
    return {
        name: {key: float(x[i]) if math.isfinite(x[i]) else None for key, x in figures.items()}
        for i, name in enumerate(names)
    }


def _error(by_block: Sequence[np.ndarray]) -> np.ndarray:
    """The standard error of the mean over blocks."""
    return np.std(by_block, axis=0, ddof=1) / math.sqrt(len(by_block))


def _cosines(products: np.ndarray, base: int) -> np.ndarray:
    norms = np.sqrt(np.diag(products))
    return products[base] / (norms * norms[base])


def measure(
    workdir: pathlib.Path,
    step: int,
    *,
    k: int,
    replicates: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Figures of the estimators of the gradient of pass@k, for the policy of a run at `step`.

    The prompts are those of the run's first training step.

    Args:
      workdir: of the run; step: of a policy that it keeps, 0 for the one before RL.
      k: of pass@k, 1 to n, the run's rollout.n; loo and centered take part up to n-1, disjoint
        groups with a baseline up to n/2.
      replicates: gradient estimates, a multiple of BLOCKS and two of each at least.
      seed: of the samples.

    Returns:
      {"step", "k", "n", "prompts", "replicates", "seed", "parameters", "max_at_1", "max_at_k" (of
      the prompts, from all samples), "estimators": {name: {"k", and as `summarize` says}}}.

    Raises:
      ConfigError: the run keeps no such policy, or it cannot be run.
      ValueError: k or replicates out of range.
    """
    if replicates < 2 * BLOCKS or replicates % BLOCKS:
        raise ValueError(f"replicates={replicates}; expected a multiple of {BLOCKS} above it.")
    config = saved_run.read_config(workdir)
    n, count = config.rollout.n, config.train.prompts
    if not 1 <= k <= n:
        raise ValueError(f"k={k}; expected 1 to {n}, which rollout.n={n} samples serve.")
    _, config.model.checkpoint = saved_run.policy(workdir, config, str(step))
    config.warm_start.steps = 0
    # Of the training alone.
    config.checkpoint.best = config.log.wandb = ""
    compared = estimators(n, k)
    blocks = [Moments() for _ in range(BLOCKS)]
    rewards = []
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
            rewards.append(graded)
    pooled = np.concatenate(rewards, -1)
    at = {j: float(pkpo.max_at_k(pooled, j, where=np.isfinite(pooled)).mean()) for j in {1, k}}
    found = summarize(blocks, list(compared))
    return {
        "step": step,
        "k": k,
        "n": n,
        "prompts": count,
        "replicates": replicates,
        "seed": seed,
        "parameters": blocks[0].total.shape[-1],
        "max_at_1": at[1],
        "max_at_k": at[k],
        "estimators": {name: {"k": compared[name].k, **found[name]} for name in compared},
    }


def first_prompts(trainer: Trainer) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompts [P, L], lengths [P] and row numbers [P] of the first training step, placed."""
    count = trainer.config.train.prompts
    order: Any = trainer.order
    texts = [order[row]["prompt"] for row in range(count)]
    encoded = data.encode_prompts(trainer.tokenizer, texts, trainer.config.rollout.max_prompt)
    return trainer.devices.put((*encoded, np.arange(count, dtype=np.int32)), count)


def grade(trainer: Trainer, rollout: Any) -> np.ndarray:
    """Rewards [P, n] float32 of responses to `first_prompts`; NaN where there is no grade."""
    tokens, lengths = trainer.devices.fetch((rollout.tokens, rollout.lengths))
    responses = data.decode_responses(trainer.tokenizer, tokens, lengths)
    order: Any = trainer.order
    return trainer.grader.grade([order[row] for row in range(len(tokens))], responses).rewards


def policy_gradients(
    trainer: Trainer, weighers: Sequence[Callable[..., jax.Array]]
) -> Callable[..., jax.Array]:
    """`make_gradients` of the trainer's policy; samples are (prompts, lengths, rollout)."""
    model, temperature = trainer.programs.model, trainer.config.rollout.temperature

    def log_prob(params: Any, samples: tuple) -> jax.Array:
        prompts, lengths, rollout = samples
        log_probs, _ = scoring.score(model, params, prompts, lengths, rollout.tokens, temperature)
        return jnp.where(rollout.mask, log_probs, 0.0).sum(-1)

    return make_gradients(log_prob, weighers)


def table(results: Mapping[str, Any]) -> rich.table.Table:
    """What `measure` found, an estimator a row."""
    found, k = results["estimators"], results["k"]
    title = (
        f"one gradient estimate at step {results['step']}: {results['prompts']} prompts x "
        f"{results['n']}, {results['replicates']} estimates, max@1 {results['max_at_1']:.3f}"
        + (f", max@{k} {results['max_at_k']:.3f}" if k > 1 else "")
    )
    columns = ("noise", "ratio (log error)", "signal (error)", "noise / signal")
    columns += ("cosine", "without noise")
    made = rich.table.Table("estimator", "of", *columns, title=title)
    for name, row in found.items():
        ratio = None if row["log_ratio"] is None else math.exp(row["log_ratio"])
        made.add_row(
            name,
            f"max@{row['k']}",
            _shown(row["noise"], ".3g"),
            f"{_shown(ratio, '.3g')} ({_shown(row['log_ratio_error'], '.3f')})",
            f"{_shown(row['signal'], '.3g')} ({_shown(row['signal_error'], '.2g')})",
            _shown(row["noise_to_signal"], ".3g"),
            _shown(row["cosine"], ".3f"),
            _shown(row["cosine_without_noise"], ".3f"),
        )
    return made


def _shown(x: float | None, form: str) -> str:
    return "-" if x is None else format(x, form)


def _parse(argv: Sequence[str]) -> list[str]:
    # Not at the top: other scripts import this one, and have flags of the same names.
    flags.DEFINE_string("workdir", None, "A run's directory.", required=True)
    flags.DEFINE_integer("step", 0, "Of a policy that the run keeps; 0 is the one before RL.")
    flags.DEFINE_integer("k", 4, "Of pass@k.", lower_bound=1)
    flags.DEFINE_integer("replicates", 256, f"Gradient estimates, a multiple of {BLOCKS}.")
    flags.DEFINE_integer("seed", 0, "Of the samples.")
    flags.DEFINE_string("output", None, "A file that the figures are written to, as JSON.")
    return flags.FLAGS(argv)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        results = measure(
            pathlib.Path(options.workdir),
            options.step,
            k=options.k,
            replicates=options.replicates,
            seed=options.seed,
            progress=True,
        )
    except (ValueError, checkpoints.CheckpointError) as e:  # A ConfigError is a ValueError.
        command_line.stop(e)
    if options.output:
        files.write(options.output, json.dumps(results, indent=2, allow_nan=False) + "\n")
    console = rich.console.Console(width=120)
    console.print(table(results))
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
