"""Measures what every estimator estimates, how noisy it is and what it costs, as one table.

python -m experiments.estimator_table [--replicates=200000]

The toy is a policy over six answers, of which two are right and one is half right, so that rewards
are 0, 0.5 or 1 and answers have classes. For each estimator of n = 16 samples and k = 4 (64 beyond
n), the script draws groups and prints

  cosine    between the mean estimate and the gradient of the objective, which is exact: 1 if it
            points the right way
  scale     the length of the mean estimate along that gradient, over the length of the gradient: 1
            if it is unbiased, together with a cosine of 1 (these have errors of about .003)
  easy      the same ratio where right answers are common, over that where they are rare: 1 if
            prompts keep their proportions; nan if the objective is flat there
  noise     the standard deviation of an estimate over the length of its mean
  cost      microseconds for 256 groups

Estimates are sums over the group of weights, or means of advantages, times the gradient of the
log-probability. Right answers have the probability .1 where they are rare and .7 where they are
common; for k > n these are .01 and .1. The script takes two minutes on two CPU cores.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import experiments
from pkpo_jax.training import weights
from pkpo_jax.training.config import Estimator

_REPLICATES = flags.DEFINE_integer("replicates", 200_000, "Groups for each mean.")

N, K, BEYOND = 16, 4, 64
REWARDS = np.array([0.0, 0.0, 0.0, 0.5, 1.0, 1.0])
RARE = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
COMMON = np.array([0.1, 0.08, 0.02, 0.1, 0.5, 0.2])
RAREST = np.array([0.5, 0.3, 0.14, 0.05, 0.006, 0.004])

Value = Callable[[np.ndarray], float]


class Row(NamedTuple):
    """An estimator of the table: its section of a config, its k, and the value it is for.

    `beyond` is True if the value is that of more than n samples, and `visits` is the number of
    earlier visits, of n samples each, that the estimator looks back on.
    """

    estimator: Estimator
    k: int
    objective: str
    value: Value
    beyond: bool
    visits: int = 0


def expected(score: Callable[[Sequence[int]], float], k: int) -> Value:
    """Returns the expected score of k independent answers, as a function of probabilities."""
    # Answers are counted, since a score does not depend on their order.
    counts = [c for c in itertools.product(range(k + 1), repeat=len(REWARDS)) if sum(c) == k]
    outcomes = [[i for i, many in enumerate(c) for _ in range(many)] for c in counts]
    scores = np.array([score(s) for s in outcomes])
    ways = [math.factorial(k) / math.prod(map(math.factorial, c)) for c in counts]

    def value(p: np.ndarray) -> float:
        return float(np.sum(scores * ways * np.prod(p ** np.array(counts), -1)))

    return value


def max_at(k: int, rewards: np.ndarray = REWARDS) -> Value:
    """Returns max@k of these rewards, the sum over their gaps of P(some sample is above)."""
    levels = np.unique(rewards)

    def value(p: np.ndarray) -> float:
        misses = [(high - low, p[rewards <= low].sum()) for low, high in itertools.pairwise(levels)]
        return float(levels[0] + sum(gap * (1 - miss**k) for gap, miss in misses))

    return value


def harmonic(largest: int, at: Callable[[int], Value]) -> Value:
    """Returns the sum of at(k) / k over k up to `largest`."""
    parts = [(k, at(k)) for k in range(1, largest + 1)]
    return lambda p: sum(value(p) / k for k, value in parts)


def rows() -> dict[str, Row]:
    """Returns the rows of the table by their labels."""
    right = (REWARDS >= 1.0).astype(float)
    mean, best, passed = max_at(1), max_at(K), max_at(K, right)

    def reward(answers: Sequence[int]) -> np.ndarray:
        return REWARDS[list(answers)]

    def found(k: int) -> Value:
        return lambda p: float(sum(1 - (1 - p[i]) ** k for i in np.flatnonzero(right)))

    top = expected(lambda s: np.sort(reward(s))[-2:].mean(), K)
    middle = expected(lambda s: np.sort(reward(s))[1], K)
    trimmed = expected(lambda s: np.sort(reward(s))[1:-1].mean(), K)
    poly = expected(lambda s: reward(s).mean() * len(set(s)) / K, K)
    table: dict[str, tuple[dict[str, Any], int, str, Value]] = {
        f"pkpo, {baseline}": (dict(baseline=baseline), K, f"max@{K}", best)
        for baseline in ("loo_minus_one", "centered", "loo", "none")
    }
    table |= {
        "tang": (dict(), N, f"max@{N}", max_at(N)),
        "shapley": (dict(), 1, f"sum of max@k / k, k <= {N}", harmonic(N, max_at)),
        "tailrl": (dict(), 1, f"sum of max@k / k, k < {N}", harmonic(N - 1, max_at)),
        "maxrl": (dict(), 1, f"sum of pass@k / k, k < {N}",
                  harmonic(N - 1, lambda k: max_at(k, right))),
        "quantile": (dict(), K, f"median of {K}", middle),
        "top_mean": (dict(), K, f"mean of best 2 of {K}", top),
        "trimmed_mean": (dict(), K, f"mean of middle 2 of {K}", trimmed),
        "pass_hat_k": (dict(), K, f"pass^{K}", lambda p: float((p @ right) ** K)),
        "distinct": (dict(), K, f"distinct right answers of {K}", found(K)),
        "poly_epo": (dict(), K, "mean reward x distinct answers / k", poly),
        "distinct_shapley": (dict(), 1, "sum of distinct right / k", harmonic(N, found)),
        "rloo": (dict(), 1, "mean reward", mean),
        "dr_grpo": (dict(), 1, "mean reward", mean),
        "grpo": (dict(), 1, "mean reward", mean),
        "quantile_baseline": (dict(), 1, "mean reward", mean),
        "entropic": (dict(), 1, "mean reward", mean),
        "edas": (dict(), 1, "mean reward", mean),
        "rarity": (dict(), 1, "mean reward", mean),
        "pacevolve": (dict(), K, f"max@{K}", best),
        "passk_training": (dict(), K, f"pass@{K}", passed),
        "mahdavi": (dict(), K, f"pass@{K}", passed),
        "mahdavi, k=64": (dict(), BEYOND, f"pass@{BEYOND}", max_at(BEYOND, right)),
        "bbg, k=64": (dict(), BEYOND, f"pass@{BEYOND}", max_at(BEYOND, right)),
        "posterior, k=64": (dict(), BEYOND, f"pass@{BEYOND}", max_at(BEYOND, right)),
        "pkpo, k=16 for k=64": (dict(), N, f"max@{BEYOND}", max_at(BEYOND)),
    }  # fmt: skip

    made = {
        label: Row(Estimator(label.split(",")[0], **keys), k, objective, value, "=64" in label)
        for label, (keys, k, objective, value) in table.items()
    }
    made["posterior, k=64, visit 5"] = made["posterior, k=64"]._replace(visits=4)
    return made


def true_gradient(value: Value, p: np.ndarray) -> np.ndarray:
    """Returns d value / d logits at the probabilities p, by central differences in float64."""
    logits, gradient = np.log(p), []
    for i in range(len(p)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = np.exp(logits + step * (np.arange(len(p)) == i))
            ends.append(value(moved / moved.sum()))
        gradient.append((ends[0] - ends[1]) / 2e-5)
    return np.array(gradient)


def estimates(row: Row, p: np.ndarray, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean [6] of the gradient estimates, and their variance [6]."""
    weigh, batch = weights.make(row.estimator), 2000

    @jax.jit
    def sums(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = (batch, (row.visits + 1) * N)
        chosen = jax.random.choice(key, len(p), drawn, p=jnp.asarray(p))
        past = jnp.asarray(REWARDS)[chosen[:, N:]] >= 1.0
        earlier, chosen = (past.sum(-1), (~past).sum(-1)), chosen[:, :N]
        first = (chosen[..., :, None] == chosen[..., None, :]).argmax(-1)
        options = dict(rows=jnp.arange(batch), key=key, entropy=jnp.zeros(batch), earlier=earlier)
        valid = jnp.ones((batch, N), bool)
        u = weigh(jnp.asarray(REWARDS)[chosen], row.k, valid, classes=first, **options)
        score = jax.nn.one_hot(chosen, len(p)) - jnp.asarray(p)
        one = (u[..., None] * score).sum(-2)
        return one.mean(0), jnp.square(one).mean(0)

    keys = jax.random.split(jax.random.key(0), max(replicates // batch, 1))
    means, squares = zip(*(map(np.asarray, sums(key)) for key in keys), strict=True)
    mean, square = (np.asarray(x, np.float64).sum(0) / len(keys) for x in (means, squares))
    return mean, square - mean**2


def microseconds(row: Row) -> float:
    """Returns the median time of the weights of 256 groups."""
    groups = 256
    rewards = jax.random.choice(jax.random.key(0), jnp.asarray(REWARDS), (groups, N))
    weigh = weights.make(row.estimator)
    options = dict(rows=jnp.arange(groups), key=jax.random.key(0), entropy=jnp.zeros(groups))
    options["classes"] = jnp.broadcast_to(jnp.arange(N) // 2, (groups, N))
    f = jax.jit(lambda r, k: weigh(r, k, jnp.ones((groups, N), bool), **options))
    times = []
    for _ in range(102):
        started = time.perf_counter()
        f(rewards, jnp.int32(row.k)).block_until_ready()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times[1:])


def measure(row: Row, replicates: int) -> dict[str, float]:
    """Returns the numbers of a row of the table."""
    policies = (RAREST, RARE) if row.beyond else (RARE, COMMON)
    (rare, variance), (easy, _) = (estimates(row, p, replicates) for p in policies)
    exact, exact_easy = (true_gradient(row.value, p) for p in policies)
    # A flat objective has a ratio of two errors.
    slope = np.abs(exact_easy).max() > 1e-3
    scale = rare @ exact / (exact @ exact)
    return {
        "cosine": float(rare @ exact / np.sqrt((rare @ rare) * (exact @ exact))),
        "scale": float(scale),
        "easy": float(easy @ exact_easy / (exact_easy @ exact_easy) / scale) if slope else math.nan,
        "noise": float(np.sqrt(variance.sum() / (rare @ rare))),
        "cost": microseconds(row),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    console = rich.console.Console(width=120)
    table = rich.table.Table("estimator", "for", "cosine", "scale", "easy", "noise", "cost, us")
    for label, row in rows().items():
        m = measure(row, _REPLICATES.value)
        numbers = [f"{m[name]:.3f}" for name in ("cosine", "scale", "easy")]
        table.add_row(label, row.objective, *numbers, f"{m['noise']:.2f}", f"{m['cost']:.0f}")
    console.print(table)
    console.print(f"n = {N}, {_REPLICATES.value} groups; {experiments.machine()}", highlight=False)


if __name__ == "__main__":
    app.run(main)
