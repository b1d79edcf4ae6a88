"""Counts what an evaluation would save by refilling its rows from the problems that wait.

python -m experiments.benchmarks.refilling

An evaluation samples batch after batch, each until its last response has ended. The last responses
of a batch go on without the others, and caches grow with them (see `sampling.sample`). With
refilling (continuous batching, Yu et al., OSDI 2022) there is one batch, whose rows are given to
other responses as soon as theirs have ended. A response then begins at any time, so that caches
have room for the longest response from the beginning, and attention reads all of it. A slot keeps
the keys of one prompt, and is given to the next one when all n responses have ended. If it is
narrower than n, it samples some of them at a time, and there are more slots.

This samples lengths and counts, for each way, as multiples of those of batches of 16 problems,

  steps   the tokens that are sampled one after the other: the time if each takes equally long,
          however many rows there are
  rows    the rows of all steps: the time if products with the parameters take all of it
  keys    the keys that attention reads in them: the time if reading these takes all of it

The time on a device lies between these. The means are over ten seeds, with standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table
from absl import app

from pkpo_jax.policy import sampling

PROBLEMS, PROMPTS, N = 128, 16, 8
LIMITS, SEEDS = (64, 256, 1024), range(10)
# Slots are refilled once an eighth of them is free.
_FREE = 8


class Counts(NamedTuple):
    """The steps, rows and keys of an evaluation, as the module's docstring defines them."""

    steps: int
    rows: int
    keys: int


def batches(lengths: np.ndarray, prompts: int, limit: int) -> Counts:
    """Counts what batches of `prompts` take, for responses [N, n] of these lengths."""
    # These are the sampler's own, so that the counts stay those of what it does.
    caches, few = sampling._cache_sizes(limit), sampling._FEW
    steps = rows = keys = 0
    for batch in lengths.reshape(-1, prompts * lengths.shape[1]):
        sizes = [batch.size // few**level for level in (1, 2)] if len(caches) > 1 else []
        for t in range(batch.max()):
            # Smaller batches have fewer sizes of caches.
            level = sum(int((batch > t).sum()) <= size for size in sizes)
            room = next(size for size in caches[:: -(2**level)][::-1] if size > t)
            count = [batch.size, *sizes][level]
            steps, rows, keys = steps + 1, rows + count, keys + count * room
    return Counts(steps, rows, keys)


def refilled(lengths: np.ndarray, prompts: int, limit: int, *, width: int) -> Counts:
    """Counts what refilling takes with as many rows as batches of `prompts` have.

    Args:
      lengths: [N, n], the lengths of the responses.
      prompts: how many prompts a batch has.
      limit: the largest length.
      width: how many of the n responses to a prompt are sampled at a time.
    """
    problems, n = lengths.shape
    slots = prompts * n // width
    left, begun = np.zeros((slots, width), int), np.full(slots, n)
    problem, waiting, steps = np.zeros(slots, int), 0, 0
    while True:
        idle = np.flatnonzero(~left.any(1) & (begun == n))
        if waiting < problems and len(idle) >= max(slots // _FREE, 1):
            chosen = idle[: problems - waiting]
            problem[chosen] = waiting + np.arange(len(chosen))
            begun[chosen], waiting = 0, waiting + len(chosen)
        number = begun[:, None] + np.cumsum(left == 0, 1) - 1
        new = (left == 0) & (number < n)
        left = np.where(new, lengths[problem[:, None], np.minimum(number, n - 1)], left)
        begun += new.sum(1)
        if not left.any():
            rows = steps * left.size
            return Counts(steps, rows, rows * limit)
        left, steps = np.maximum(left - 1, 0), steps + 1


def sample_lengths(rng: np.random.Generator, limit: int, *, by_problem: bool) -> np.ndarray:
    """Samples lengths [N, n] of a quarter of the limit on average, before they are cut at it.

    These are geometric or, with `by_problem`, normal around a mean that differs by problem.
    """
    shape, mean = (PROBLEMS, N), limit / 4
    if not by_problem:
        return np.minimum(rng.geometric(1 / mean, shape), limit)
    means = rng.gamma(2.0, mean / 2, (PROBLEMS, 1))
    return np.clip(rng.normal(means, 0.3 * means, shape).astype(int), 1, limit)


WAYS: dict[str, Callable[[np.ndarray, int], Counts]] = {
    f"batches of {PROMPTS}": lambda x, limit: batches(x, PROMPTS, limit),
    f"batches of {2 * PROMPTS}": lambda x, limit: batches(x, 2 * PROMPTS, limit),
    **{
        f"{PROMPTS * N // width} slots of {width}, refilled": (
            lambda x, limit, width=width: refilled(x, PROMPTS, limit, width=width)
        )
        for width in (N, N // 2)
    },
}


def main(argv: Sequence[str]) -> None:
    del argv
    table = rich.table.Table("lengths", "limit", "way", *Counts._fields)
    for by_problem in (False, True):
        name = "by problem" if by_problem else "geometric"
        for limit in LIMITS:
            rngs = (np.random.default_rng(seed) for seed in SEEDS)
            lengths = [sample_lengths(rng, limit, by_problem=by_problem) for rng in rngs]
            counts = {
                way: np.array([count(x, limit) for x in lengths]) for way, count in WAYS.items()
            }
            for way, found in counts.items():
                ratios = found / next(iter(counts.values()))
                cells = zip(ratios.mean(0), ratios.std(0), strict=True)
                table.add_row(name, str(limit), way, *(f"{m:.2f} ± {s:.2f}" for m, s in cells))
            table.add_section()
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    app.run(main)
