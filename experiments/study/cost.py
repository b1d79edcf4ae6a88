"""The time that training for pass@k costs, for several k, beside training for pass@1 with RLOO.

python -m experiments.study.cost [--config=configs/maze_tiny.py] [--steps=300] [--output=FILE.json]

One process times, in rounds of random order, a whole training step (sample, grade, update), an
update alone, and the reward weights of a batch alone, for every k and for RLOO. All start from the
same policy, and the steps of a round have the same prompts, responses and rewards. Times are
medians over rounds, because other work may run on the machine; ratios are of times of the same
round, with 95% intervals by bootstrap over rounds. All k share a compiled program. RLOO has its
own, and two copies of one program can differ by some percent. The policy has no SFT warm start,
which changes no shape. It prints what `measure` returns, as JSON, in about a minute and a half on
one core.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from experiments.study import results, variance
from experiments.study.base import KS
from pkpo_jax import command_line, schedules
from pkpo_jax.policy import checkpoints
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics, step
from pkpo_jax.training import weights as weights_lib
from pkpo_jax.training.state import TrainState
from pkpo_jax.training.trainer import Trainer

BASE, PLAIN = "k = 1", "RLOO"
KINDS = ("step", "update", "weights")
_RESAMPLES = 2000
# One computation of the weights is too short to time, so a round takes the median of this many.
_CALLS = 21


def measure(
    config: config_dict.ConfigDict, *, steps: int = 300, seed: int = 0, progress: bool = False
) -> dict[str, Any]:
    """Times steps of `config` for every k of the study that its estimator serves.

    Args:
      config: what is trained; its k, schedules and warm start are not used.
      steps: whole steps to time, of all variants together, and as many updates.
      seed: of the order.
      progress: whether to show a progress bar.

    Returns:
      {"rounds", "prompts", "n", "compilations" (while timed, after one call of every program),
      "variants": {"k = 1": {"step", "update", "weights": {"seconds": median, "ratio": median over
      that of k = 1, "interval": [low, high] of the ratio}}, ..., "RLOO": ...}}.

    Raises:
      ConfigError: the config cannot run.
      ValueError: there are fewer steps than variants.
    """
    n = config.rollout.n
    largest = min(n, weights_lib.largest_k(config_lib.freeze(config).estimator, n))
    ks = [k for k in KS if k <= largest]
    rounds = steps // (len(ks) + 1)
    if not rounds:
        raise ValueError(f"steps={steps}; expected one of each variant at least, {len(ks) + 1}.")
    with contextlib.ExitStack() as stack:
        ours = _trainer(config, rounds, {}, stack)
        plain = _trainer(config, rounds, {"name": "rloo"}, stack)
        workdir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        state = ours.start(workdir)
        # A start keeps the reference policy of a loss that measures the divergence from it.
        plain.start(workdir)
        batch = graded_batch(ours, state.params)
        variants = {f"k = {k}": _calls(ours, k, state, batch) for k in ks}
        variants[PLAIN] = _calls(plain, 1, state, batch)
        for name in (BASE, PLAIN):
            for kind in KINDS:
                variants[name][kind](0)
        counter = metrics.CompilationCounter()
        stack.callback(counter.close)
        times = {name: {kind: np.empty(rounds) for kind in KINDS} for name in variants}
        order, rng = [(name, kind) for name in variants for kind in KINDS], random.Random(seed)
        for at in tqdm.trange(rounds, unit="round", disable=not progress):
            rng.shuffle(order)
            for name, kind in order:
                times[name][kind][at] = variants[name][kind](at)
    return {
        "rounds": rounds,
        "prompts": config.train.prompts,
        "n": n,
        "compilations": counter.count,
        "variants": {
            name: {kind: _summary(taken[kind], times[BASE][kind]) for kind in KINDS}
            for name, taken in times.items()
        },
    }


def _trainer(
    config: config_dict.ConfigDict,
    rounds: int,
    estimator: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> Trainer:
    config = copy.deepcopy(config)
    config.k, config.warm_start.steps = 1, 0
    config.estimator.update(estimator)
    # Sampling ahead would time the samples of the variant before.
    config.rollout.ahead = False
    config.train.steps = max(config.train.steps, rounds)
    return stack.enter_context(contextlib.closing(Trainer(config)))


def graded_batch(trainer: Trainer, params: Any) -> step.Batch:
    """Returns the first batch of a run with these parameters, as an update receives it."""
    config, programs = trainer.config, trainer.programs
    prompts, temperature = variance.first_prompts(trainer), config.rollout.temperature
    key = jax.random.key(config.seed)
    rollout = programs.sampler(config.rollout.n)(params, prompts, (key, 0, temperature))
    rewards = variance.grade(trainer, rollout)
    fed = trainer.devices.put((rewards, np.isfinite(rewards)), config.train.prompts)
    batch = step.Batch(*prompts, rollout, *fed)
    if programs.needs_old or programs.needs_reference:
        scored = programs.scorer(params, (*prompts[:2], rollout.tokens), (temperature,))
        batch = batch._replace(
            old=scored if programs.needs_old else None,
            reference=scored if programs.needs_reference else None,
        )
    return batch


def _calls(
    trainer: Trainer, k: int, state: TrainState, batch: step.Batch
) -> dict[str, Callable[[int], float]]:
    """Returns {kind: (round) -> seconds} for this k; the calls keep `state`."""
    config, key = trainer.config, jax.random.key(0)
    scalars = (k, key, config.rollout.temperature, config.train.learning_rate)
    weigh = jax.jit(trainer.programs.recipe.weigh)
    more = {"rows": batch.rows, "key": key, "entropy": jnp.zeros(batch.rows.shape)}

    def copied() -> TrainState:
        # An update donates the buffers of its state.
        return jax.block_until_ready(jax.tree.map(jnp.copy, state))

    def whole(at: int) -> float:
        given, trainer.schedule = copied(), schedules.constant(k)
        return _seconds(lambda: trainer.step(given, at)[0])

    def update(at: int) -> float:
        del at
        given = copied()
        return _seconds(lambda: trainer.programs.update(given, batch, scalars))

    def weights(at: int) -> float:
        del at
        call = functools.partial(weigh, batch.rewards, k, batch.valid, **more)
        return statistics.median(_seconds(call) for _ in range(_CALLS))

    return {"step": whole, "update": update, "weights": weights}


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def _summary(taken: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Returns the median of times [rounds], and their ratio to those of the base."""
    ratios = taken / base
    rows = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[rows], axis=-1), (0.025, 0.975))
    return {
        "seconds": float(np.median(taken)),
        "ratio": float(np.median(ratios)),
        "interval": [float(low), float(high)],
    }


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        found = measure(flags.FLAGS.config, steps=flags.FLAGS.steps, progress=True)
    except (ValueError, checkpoints.CheckpointError) as e:  # A ConfigError is a ValueError.
        command_line.stop(e)
    results.publish(found, flags.FLAGS.output)


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    config_flags.DEFINE_config_file("config", "configs/maze_tiny.py", "What is trained.")
    flags.DEFINE_integer("steps", 300, "Whole steps, and updates, that are timed.")
    flags.DEFINE_string("output", "", "JSON file to write the numbers to; none if empty.")
    app.run(main)
