"""Compares the speed of the sort-based kernel with the paper's listing and with a training step.

python -m experiments.benchmarks.estimators

The script prints the time of the recommended reward weights (loo_minus_one, k = n/2) for several
numbers and sizes of groups. One implementation is ours, jitted and with k traced; the other one is
the product form of arXiv 2505.15201 in NumPy, which handles a group at a time as in the paper's
listing. Times are medians of repeated calls, and both implementations run in the same process.
"""

from __future__ import annotations

import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, logging

import experiments
import pkpo_jax as pkpo
from pkpo_jax.configs import maze_tiny
from pkpo_jax.training.trainer import Trainer

SIZES = ((256, 16), (4096, 16), (256, 128), (16, 4096))
GROWTH = (64, 256, 1024, 4096, 16384)


def diagonal(n: int, k: int) -> np.ndarray:
    """Returns [n], the share of k-subsets whose maximum has rank i: C(i-1, k-1) / C(n, k)."""
    shares = np.zeros(n)
    for i in range(k, n + 1):
        shares[i - 1] = k / n * np.prod(np.arange(i - k + 1, i) / np.arange(n - k + 1, n))
    return shares


def off_diagonal(n: int, k: int) -> np.ndarray:
    """Returns [n], the share of k-subsets that hold a given sample and whose maximum has rank j.

    The rank j is higher than that of the sample, and the share is C(j-2, k-2) / C(n, k).
    """
    shares = np.zeros(n)
    if k < 2:
        return shares
    for j in range(k, n + 1):
        ratio = np.prod(np.arange(j - k + 1, j - 1) / np.arange(n - k + 1, n - 1))
        shares[j - 1] = k / n * (k - 1) / (n - 1) * ratio
    return shares


def listing_weights(rewards: np.ndarray, k: int) -> np.ndarray:
    """Returns the reward weights [n] of one group by equation 33, from sums over sorted rewards.

    The weight of sample i is s_i - k/n rho_{k-1}(g without i), for k >= 2.
    """
    n, order = len(rewards), np.argsort(rewards)
    g = rewards[order]
    later = g * off_diagonal(n, k)
    s = g * diagonal(n, k) + np.concatenate([np.cumsum(later[:0:-1])[::-1], [0.0]])
    # Without the sample of rank i, samples below it keep their rank, and the rank of those above
    # falls by one.
    shares = diagonal(n - 1, k - 1)
    below = np.concatenate([[0.0], np.cumsum(g[:-1] * shares)])
    above = np.concatenate([np.cumsum((g[1:] * shares)[::-1])[::-1], [0.0]])
    weights = np.empty(n)
    weights[order] = s - k / n * (below + above)
    return weights


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Returns the median time of a call, after one call that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def kernel_seconds(groups: int, n: int) -> float:
    weigh = jax.jit(pkpo.pkpo_weights)
    rewards = jax.random.uniform(jax.random.key(0), (groups, n))
    k = jnp.int32(n // 2)
    return seconds(lambda: weigh(rewards, k).block_until_ready(), 51)


def compare(console: rich.console.Console) -> None:
    table = rich.table.Table("groups x n", "listing, ms", "kernel, ms", "ratio", "largest error")
    for groups, n in SIZES:
        rewards = np.random.default_rng(0).random((groups, n)).astype(np.float32)
        listed = np.stack([listing_weights(g.astype(float), n // 2) for g in rewards])
        ours = np.asarray(pkpo.pkpo_weights(rewards, n // 2))
        error = np.abs(ours - listed).max() / np.abs(listed).max()
        slow = seconds(lambda r=rewards, n=n: [listing_weights(g, n // 2) for g in r], 3)
        fast = kernel_seconds(groups, n)
        table.add_row(
            f"{groups} x {n}",
            f"{1e3 * slow:.2f}",
            f"{1e3 * fast:.3f}",
            f"{slow / fast:.0f}",
            f"{error:.1e}",
        )
    console.print(table)


def growth(console: rich.console.Console) -> None:
    table = rich.table.Table("16 groups, n =", *map(str, GROWTH))
    times = [kernel_seconds(16, n) for n in GROWTH]
    table.add_row("kernel, ms", *(f"{1e3 * t:.3f}" for t in times))
    scaled = [t / (16 * n * np.log2(n)) for t, n in zip(times, GROWTH, strict=True)]
    table.add_row("ns / (groups n log2 n)", *(f"{1e9 * t:.2f}" for t in scaled))
    console.print(table)


def share_of_update(console: rich.console.Console) -> None:
    """Prints the time of the kernel on a batch of maze_tiny as a share of the whole update step."""
    config = maze_tiny.get_config()
    config.warm_start.steps = 0
    trainer = Trainer(config)
    with tempfile.TemporaryDirectory() as workdir:
        state = trainer.start(pathlib.Path(workdir))
    updates = []
    for at in range(40):
        state, figures, _ = trainer.step(state, at)
        updates.append(figures["time/update_s"])
    update = statistics.median(updates[5:])
    kernel = kernel_seconds(config.train.prompts, config.rollout.n)
    console.print(
        f"maze_tiny, {config.train.prompts} x {config.rollout.n}: kernel {1e6 * kernel:.0f} us of "
        f"an update step of {1e3 * update:.1f} ms: {100 * kernel / update:.2f}%",
        highlight=False,
    )


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    console = rich.console.Console(width=100)
    compare(console)
    growth(console)
    share_of_update(console)
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main)
