"""A Gaussian bandit whose policy maximises the expected best of two tries under its beliefs.

python -m experiments.toy_bandit [--rounds=2000] [--bandits=200] [--arms=5]

The beliefs about the means of the arms are independent Normal(m_i, v_i). The retry-aware policy of
ReMax (arXiv 2606.00151), as a bandit (Tong et al., arXiv 2605.20854), draws arms from the p that
maximises p'Qp, where Q_ij = E max(i, j) is the expected larger mean of two arms, and Q_ii = m_i. As
Q_ij = m_j + EI_ij with the expected improvement EI_ij, sum_j p_j EI_ij is equal for all arms that p
plays (balance). For two arms this is p_1 / p_2 = EI_12 / EI_21. The script prints the regret of
this policy, of Thompson sampling and of KL-UCB (arXiv 1102.2490, for Gaussian rewards), as means
and standard errors over bandits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.table
from absl import app, flags
from scipy import special

import experiments

_ROUNDS = flags.DEFINE_integer("rounds", 2000, "Pulls of each bandit.", lower_bound=1)
_BANDITS = flags.DEFINE_integer(
    "bandits", 200, "Bandits, whose means are from Normal(0, 1).", lower_bound=2
)
_ARMS = flags.DEFINE_integer("arms", 5, "Arms of a bandit.", lower_bound=2)

NOISE = 1.0


class Beliefs(NamedTuple):
    """Beliefs about the arms of S bandits after `pulls` [S, arms] of each arm.

    Attributes:
      mean, variance: [S, arms], of the posterior for the prior Normal(0, 1).
      average: [S, arms], of the rewards so far, 0 without any.
    """

    mean: np.ndarray
    variance: np.ndarray
    average: np.ndarray
    pulls: np.ndarray


def beliefs(total: np.ndarray, pulls: np.ndarray) -> Beliefs:
    """Returns the beliefs after rewards that add up to `total` [S, arms]."""
    variance = 1.0 / (1.0 + pulls / NOISE**2)
    return Beliefs(
        total / NOISE**2 * variance, variance, total / np.maximum(pulls, 1), pulls.astype(float)
    )


def expected_improvement(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns E max(x_i - x_j, 0) for independent normal x, [..., arms, arms], with 0 for i = j."""
    d = mean[..., :, None] - mean[..., None, :]
    s = np.sqrt(variance[..., :, None] + variance[..., None, :])
    density = np.exp(-0.5 * (d / s) ** 2) / np.sqrt(2 * np.pi)
    return (s * density + d * special.ndtr(d / s)) * (1 - np.eye(mean.shape[-1]))


def best_of_two(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Returns the p [..., arms] that maximises the expected larger mean of two independent draws.

    It is the best of the policies that are balanced over a set of arms, which solve EI p = 1 up to
    a factor; the optimum is one of them. All sets of arms are tried.
    """
    arms = mean.shape[-1]
    improvement = expected_improvement(mean, variance)
    q = mean[..., None, :] + improvement
    best, highest = np.eye(arms)[mean.argmax(-1)], mean.max(-1)
    for size in range(2, arms + 1):
        # The tiny diagonal serves matrices whose improvements underflow to 0.
        ones, diagonal = np.ones((*mean.shape[:-1], size, 1)), 1e-30 * np.eye(size)
        for chosen in itertools.combinations(range(arms), size):
            block = improvement[..., np.array(chosen)[:, None], chosen] + diagonal
            p = np.zeros(mean.shape)
            with np.errstate(all="ignore"):
                p[..., chosen] = np.linalg.solve(block, ones)[..., 0]
                p /= p.sum(-1, keepdims=True)
                value = (p[..., None, :] @ q @ p[..., None])[..., 0, 0]
            better = (p >= 0).all(-1) & (value > highest)
            best = np.where(better[..., None], p, best)
            highest = np.where(better, value, highest)
    return best


def retry_aware(now: Beliefs, round_: int, rng: np.random.Generator) -> np.ndarray:
    """Draws an arm from `best_of_two`."""
    below = best_of_two(now.mean, now.variance).cumsum(-1)
    return (rng.random((len(below), 1)) * below[:, -1:] >= below).sum(-1)


def thompson(now: Beliefs, round_: int, rng: np.random.Generator) -> np.ndarray:
    """Takes the best arm of a sample from the posterior."""
    return rng.normal(now.mean, np.sqrt(now.variance)).argmax(-1)


def kl_ucb(now: Beliefs, round_: int, rng: np.random.Generator) -> np.ndarray:
    """Takes the arm with the largest mean whose divergence from the average is log(t) / pulls."""
    width = NOISE * np.sqrt(2 * np.log(round_) / np.maximum(now.pulls, 1))
    return np.where(now.pulls == 0, np.inf, now.average + width).argmax(-1)


POLICIES: dict[str, Callable[[Beliefs, int, np.random.Generator], np.ndarray]] = {
    "retry-aware": retry_aware,
    "Thompson sampling": thompson,
    "KL-UCB": kl_ucb,
}


def regrets(policy: str, arms: int, rounds: int, bandits: int) -> np.ndarray:
    """Returns the regret [bandits, rounds] up to each round, the same bandits for all policies."""
    means = np.random.default_rng(0).normal(size=(bandits, arms))
    rng, rows = np.random.default_rng(1), np.arange(bandits)
    total, pulls = np.zeros((bandits, arms)), np.zeros((bandits, arms))
    lost = np.empty((bandits, rounds))
    for t in range(rounds):
        arm = POLICIES[policy](beliefs(total, pulls), t + 1, rng)
        total[rows, arm] += means[rows, arm] + NOISE * rng.normal(size=bandits)
        pulls[rows, arm] += 1
        lost[:, t] = means.max(-1) - means[rows, arm]
    return lost.cumsum(-1)


def main(argv: Sequence[str]) -> None:
    del argv
    arms, rounds, bandits = _ARMS.value, _ROUNDS.value, _BANDITS.value
    shown = sorted({max(rounds // 100, 1), max(rounds // 10, 1), rounds})
    title = f"regret of {arms} arms: mean (standard error) over {bandits} bandits"
    table = rich.table.Table("policy", *(f"round {t}" for t in shown), "seconds", title=title)
    for policy in POLICIES:
        started = time.perf_counter()
        found = regrets(policy, arms, rounds, bandits)
        errors = found.std(0, ddof=1) / np.sqrt(bandits)
        cells = (f"{found[:, t - 1].mean():.1f} ({errors[t - 1]:.1f})" for t in shown)
        table.add_row(policy, *cells, f"{time.perf_counter() - started:.0f}")
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main)
