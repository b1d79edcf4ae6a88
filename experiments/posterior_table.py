"""Measures estimators of pass@64 from 16 samples and earlier visits, by enumeration, as two tables.

python -m experiments.posterior_table

Rewards are binary, and a prompt has the pass rate p. The gradient of pass@k is k (1-p)^(k-1) times
that of p. The script prints by how much an estimator multiplies that of p: the mean and the
standard deviation of sum_i A_i (r_i - p) / (n p (1-p)) over all groups of n = 16 and all counts of
earlier visits, of 16 samples each. The second table has a p that changes by the same factor at each
of 16 visits. Discounted counts are rounded, up or down at random, to multiples of 1/32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import scipy.special
import scipy.stats
from absl import app

import pkpo_jax as pkpo

N, K = 16, 64
RATES = (0.003, 0.01, 0.03, 0.1)
VISITS = (0, 1, 4, 16)
PRIORS = (1.0, 0.5)
NOW, FACTOR, DISCOUNTS = 0.03, 10.0, (1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.0)
# A whole number has this many steps of the grid on which counts lie.
STEPS = 32
# These are all groups, by their number of right samples.
GROUPS = np.arange(N) < np.arange(N + 1)[:, None]


def gradient_factor(p: float) -> float:
    return K * (1 - p) ** (K - 1)


def rloo() -> np.ndarray:
    return np.asarray(pkpo.rloo_advantages(GROUPS), np.float64)


def history(rates: Sequence[float], discount: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the distribution of discounted right counts after visits at these pass rates.

    Returns:
      The counts [S] and their chances [S], and the discounted number of all samples.
    """
    chances, total = np.ones(1), 0.0
    for rate in rates:
        group = np.zeros(N * STEPS + 1)
        group[::STEPS] = scipy.stats.binom.pmf(np.arange(N + 1), N, rate)
        chances = np.convolve(chances, group)
        at = discount * np.arange(len(chances))
        below = np.floor(at).astype(int)
        moved = np.zeros(len(chances) + 1)
        np.add.at(moved, below, chances * (1 - at + below))
        np.add.at(moved, below + 1, chances * (at - below))
        chances, total = moved, discount * (total + N)
    kept = chances > 1e-12
    return np.flatnonzero(kept) / STEPS, chances[kept], total


def moments(advantages: np.ndarray, p: float, chances: np.ndarray | None = None) -> str:
    """Returns the mean and the deviation of an estimate as text.

    Args:
      advantages: [S, n+1, n] for each count of earlier visits and each of GROUPS; S may be missing.
      p: the pass rate of the group.
      chances: [S], those of the counts.
    """
    estimates = (advantages * (GROUPS - p)).sum(-1) / (N * p * (1 - p))
    joint = (1.0 if chances is None else chances[:, None]) * scipy.stats.binom.pmf(
        np.arange(N + 1), N, p
    )
    mean = (joint * estimates).sum()
    return f"{mean:.2f} ± {np.sqrt((joint * estimates**2).sum() - mean**2):.2f}"


@functools.partial(jax.jit, static_argnames="prior")
def _posterior(right: jax.Array, wrong: jax.Array, prior: float) -> jax.Array:
    groups = jnp.broadcast_to(GROUPS, (len(right), *GROUPS.shape))
    counts = (right[:, None], wrong[:, None])
    return pkpo.posterior_advantages(groups, K, *counts, prior=(prior, prior))


def posterior(
    rates: Sequence[float], p: float, *, discount: float = 1.0, prior: float = 1.0
) -> str:
    """Returns the moments of `posterior_advantages` after visits at these pass rates."""
    right, chances, total = history(rates, discount)
    # Few shapes compile few times.
    size = -len(right) % 512
    padded = np.pad(right, (0, size))
    advantages = _posterior(jnp.asarray(padded), jnp.asarray(total - padded), prior)
    return moments(np.asarray(advantages, np.float64)[: len(right)], p, chances)


def pooled(visits: int, p: float) -> str:
    """Returns the moments of the factor without bias, from k-1 or more other samples."""
    others = visits * N + N - 1
    if others < K - 1:
        return "-"
    right, chances, _ = history([p] * visits, 1.0)
    wrong = others - right[:, None, None] - GROUPS.sum(-1, keepdims=True) + GROUPS
    share = scipy.special.binom(wrong, K - 1) / scipy.special.binom(others, K - 1)
    return moments(K * share * rloo(), p, chances)


def first_table() -> rich.table.Table:
    table = rich.table.Table("estimator", *(f"p = {p}" for p in RATES), title="p stays")
    table.add_row("gradient of pass@64", *(f"{gradient_factor(p):.2f}" for p in RATES))
    table.add_row("known p", *(moments(gradient_factor(p) * rloo(), p) for p in RATES))
    alone = {
        f"pkpo, k = {N}": N * pkpo.pkpo_weights(GROUPS, N),
        "mahdavi (plug-in)": pkpo.mahdavi_advantages(GROUPS, K),
        "bbg": pkpo.bbg_advantages(GROUPS, K),
    }
    for label, advantages in alone.items():
        table.add_row(label, *(moments(np.asarray(advantages, np.float64), p) for p in RATES))
    for prior in PRIORS:
        for visits in VISITS:
            label = f"posterior, prior {prior:g}, earlier visits: {visits}"
            table.add_row(label, *(posterior([p] * visits, p, prior=prior) for p in RATES))
    for visits in VISITS[2:]:
        label = f"without bias, earlier visits: {visits}"
        table.add_row(label, *(pooled(visits, p) for p in RATES))
    return table


def second_table() -> rich.table.Table:
    visits = VISITS[-1]
    ages = np.arange(visits, 0, -1) / visits
    paths = {
        f"from {NOW / FACTOR:g}": NOW * FACTOR**-ages,
        "as before": NOW * FACTOR ** (0 * ages),
        f"from {NOW * FACTOR:g}": NOW * FACTOR**ages,
    }
    title = f"p = {NOW} after {visits} visits; gradient of pass@{K}: {gradient_factor(NOW):.2f}"
    table = rich.table.Table("estimator", *paths, title=title)
    for discount in DISCOUNTS:
        cells = [posterior(list(rates), NOW, discount=discount) for rates in paths.values()]
        table.add_row(f"posterior, discount {discount:g}", *cells)
    return table


def main(argv: Sequence[str]) -> None:
    del argv
    console = rich.console.Console(width=120)
    console.print(first_table())
    console.print(second_table())


if __name__ == "__main__":
    app.run(main)
