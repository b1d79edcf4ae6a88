"""Compares the speed of the estimators' kernel with NumPy and with a training step.

python -m experiments.benchmarks.estimators

The script prints the time of the recommended reward weights (loo_minus_one, k = n/2) for several
numbers and sizes of groups. The kernel is jitted and takes k as an argument. It is compared with

  listing   the product form of arXiv 2505.15201 in NumPy, which handles a group at a time
  NumPy     `pkpo_jax.adapters.numpy` in float64, which keeps the coefficients of one n and one k
            in a table

A second table gives the time of a mixture of k, and of a group with a mask, as a multiple of that
of one k. Calls alternate within the same process, and each time is that of the fastest one, since
other processes can only slow a call down.
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
from pkpo_jax.adapters import numpy as on_numpy
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


def seconds(*calls: Callable[[], object], repeats: int = 301) -> list[float]:
    """Returns the time of the fastest of each call. The calls take turns, after a first round."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if turn:
                own.append(time.perf_counter() - started)
    return [min(own) for own in times]


def kernel(
    groups: int, n: int, k: jax.typing.ArrayLike | pkpo.Mixture, *, masked: bool = False
) -> Callable[[], object]:
    """Returns a call that weighs uniform rewards with the compiled kernel."""
    weigh = jax.jit(lambda r, k, where: pkpo.pkpo_weights(r, k, where=where))
    rewards = jax.random.uniform(jax.random.key(0), (groups, n))
    where = jnp.ones((groups, n), bool) if masked else None
    k = jax.tree.map(jnp.asarray, k)
    return lambda: weigh(rewards, k, where).block_until_ready()


def compare(console: rich.console.Console) -> None:
    output = rich.table.Table(
        "groups x n", "listing, ms", "NumPy, ms", "kernel, ms", "NumPy / kernel", "largest error"
    )
    for groups, n in SIZES:
        rewards, k = np.random.default_rng(0).random((groups, n)).astype(np.float32), n // 2
        listed = np.stack([listing_weights(g.astype(float), k) for g in rewards])
        ours = np.asarray(pkpo.pkpo_weights(rewards, k))
        error = np.abs(ours - listed).max() / np.abs(listed).max()
        np.testing.assert_allclose(on_numpy.pkpo_weights(rewards, k), listed, atol=1e-9)
        (slow,) = seconds(lambda r=rewards, k=k: [listing_weights(g, k) for g in r], repeats=3)
        numpy, ours = seconds(
            lambda r=rewards, k=k: on_numpy.pkpo_weights(r, k), kernel(groups, n, k)
        )
        output.add_row(
            f"{groups} x {n}",
            f"{1e3 * slow:.2f}",
            f"{1e3 * numpy:.3f}",
            f"{1e3 * ours:.3f}",
            f"{numpy / ours:.2f}",
            f"{error:.1e}",
        )
    console.print(output)


def mixtures(console: rich.console.Console) -> None:
    """Prints the times of mixtures as multiples of that of one k, with and without a mask."""
    output = rich.table.Table("groups x n", "one k, ms", "2 k", "n k", "mask, ms", "2 k", "n k")
    for groups, n in SIZES[:2]:
        ks = np.arange(1, n + 1)
        both = pkpo.Mixture(np.array([1, n // 2]), np.array([0.5, 0.5]))
        every = pkpo.Mixture(ks, 1.0 / ks)
        row = [f"{groups} x {n}"]
        for masked in (False, True):
            calls = [kernel(groups, n, k, masked=masked) for k in (n // 2, both, every)]
            one, *others = seconds(*calls, repeats=501)
            row += [f"{1e3 * one:.3f}", *(f"{other / one:.2f}" for other in others)]
        output.add_row(*row)
    console.print(output)


def growth(console: rich.console.Console) -> None:
    output = rich.table.Table("16 groups, n =", *map(str, GROWTH))
    times = [seconds(kernel(16, n, n // 2))[0] for n in GROWTH]
    output.add_row("kernel, ms", *(f"{1e3 * t:.3f}" for t in times))
    scaled = [t / (16 * n * np.log2(n)) for t, n in zip(times, GROWTH, strict=True)]
    output.add_row("ns / (groups n log2 n)", *(f"{1e9 * t:.2f}" for t in scaled))
    console.print(output)


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
    groups, n = config.train.prompts, config.rollout.n
    (ours,) = seconds(kernel(groups, n, n // 2, masked=True))
    console.print(
        f"maze_tiny, {groups} x {n}: kernel {1e6 * ours:.0f} us of an update step of "
        f"{1e3 * update:.1f} ms: {100 * ours / update:.2f}%",
        highlight=False,
    )


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    console = rich.console.Console(width=100)
    compare(console)
    mixtures(console)
    growth(console)
    share_of_update(console)
    console.print(f"numpy {np.__version__}, {experiments.machine()}", highlight=False)


if __name__ == "__main__":
    app.run(main)
