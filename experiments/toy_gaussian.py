"""Reproduces the one-dimensional toy problem of "Pass@K Policy Optimization" (arXiv 2505.15201).

python -m experiments.toy_gaussian --workdir=runs/toy [--ks=1,2,4,8,16]

The problem is that of section 5.1. The policy is x ~ Normal(theta, 0.1), and the reward is x^2 on
[0, 1] and 0 outside. The script prints tables, and writes five plots and results.json with the
numbers behind them to WORKDIR, in about two minutes on two CPU cores:

  objective.png     max@k and its derivative against theta, by quadrature
  weights.png       how much the reward of each rank counts: order-statistic weights of max@k, n = 8
  variance.png      variance of single gradient estimates at theta = 1, k = 4, against n
  effective.png     effective reward (the reward weight) against raw reward, n = 32
  training.png      theta trained by each estimator and k, from a bad start, over seeds
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
from absl import app, flags, logging
from matplotlib.figure import Figure
from scipy import optimize, special

import experiments
import pkpo_jax as pkpo
from pkpo_jax.estimators.pkpo import Baseline

_WORKDIR = flags.DEFINE_string("workdir", "runs/toy", "Directory of the plots and results.json.")
_KS = flags.DEFINE_list("ks", ["1", "2", "4", "8", "16"], "Values of k, each at least 1.")
_REPLICATES = flags.DEFINE_integer("replicates", 100_000, "Gradient estimates for each variance.")
_SEEDS = flags.DEFINE_integer("seeds", 20, "Training runs of each estimator and k.")

SD = 0.1
VARIANCE_K, VARIANCE_NS = 4, (4, 8, 16, 32, 64)
TRAIN_N, TRAIN_STEPS, TRAIN_START = 32, 10_000, 0.2

# -- exact values ---------------------------------------------------------------------------------

_NODES, _MASSES = np.polynomial.legendre.leggauss(200)
_X, _MASSES = (_NODES + 1) / 2, _MASSES / 2


def value(theta: float, k: int) -> float:
    """Returns max@k at theta, the integral over rewards t = x^2 of 1 - P(reward <= t)^k."""
    at_most = 1 - special.ndtr((1 - theta) / SD) + special.ndtr((_X - theta) / SD)
    return float(np.sum(_MASSES * 2 * _X * (1 - at_most**k)))


def derivative(theta: float, k: int) -> float:
    """Returns d max@k / d theta at theta."""
    high, low = (1 - theta) / SD, (_X - theta) / SD
    at_most = 1 - special.ndtr(high) + special.ndtr(low)
    change = (np.exp(-(high**2) / 2) - np.exp(-(low**2) / 2)) / (SD * np.sqrt(2 * np.pi))
    return float(np.sum(_MASSES * 2 * _X * -k * at_most ** (k - 1) * change))


def optimum(k: int) -> float:
    """Returns the theta that maximises max@k."""
    root: Any = optimize.brentq(derivative, 0.5, 1.3, args=(k,), xtol=1e-12)
    return float(root)


# -- estimators -----------------------------------------------------------------------------------


def reward(x: jax.Array) -> jax.Array:
    return jnp.where((x >= 0) & (x <= 1), x**2, 0.0)


def _disjoint(rewards: jax.Array, k: int) -> jax.Array:
    """Splits rewards [..., n] into consecutive groups [..., n // k, k], without the remainder."""
    groups = rewards.shape[-1] // k
    return rewards[..., : groups * k].reshape(*rewards.shape[:-1], groups, k)


def _spread(weights: jax.Array, n: int) -> jax.Array:
    """Divides weights of disjoint groups by their number, and returns them as [..., n].

    Samples left over by the groups have the weight 0.
    """
    flat = (weights / weights.shape[-2]).reshape(*weights.shape[:-2], -1)
    return jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, n - flat.shape[-1])])


def naive(rewards: jax.Array, k: int) -> jax.Array:
    """Gives all samples of a disjoint group the maximum of the group."""
    groups = _disjoint(rewards, k)
    best = jnp.broadcast_to(groups.max(-1, keepdims=True), groups.shape)
    return _spread(best, rewards.shape[-1])


def naive_with_baseline(rewards: jax.Array, k: int) -> jax.Array:
    """Gives all samples of a disjoint group its maximum less the mean maximum of the other groups.

    Without other groups, nothing is subtracted.
    """
    best = _disjoint(rewards, k).max(-1)
    centred = pkpo.rloo_advantages(best) if best.shape[-1] > 1 else best
    shape = (*best.shape, k)
    return _spread(jnp.broadcast_to(centred[..., None], shape), rewards.shape[-1])


def disjoint_loo_minus_one(rewards: jax.Array, k: int) -> jax.Array:
    """Returns the loo_minus_one weights within each disjoint group of n = k samples.

    For k = 1 the groups have two samples, which RLOO needs.
    """
    groups = _disjoint(rewards, max(k, 2))
    return _spread(pkpo.pkpo_weights(groups, k), rewards.shape[-1])


ESTIMATORS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "none": lambda r, k: pkpo.pkpo_weights(r, k, baseline="none"),
    "disjoint groups": naive,
    "disjoint groups, baseline": naive_with_baseline,
    "disjoint loo_minus_one": disjoint_loo_minus_one,
    "loo_minus_one": lambda r, k: pkpo.pkpo_weights(r, k, baseline="loo_minus_one"),
    "loo": lambda r, k: pkpo.pkpo_weights(r, k, baseline="loo"),
    "centered": lambda r, k: pkpo.pkpo_weights(r, k, baseline="centered"),
}


def serves(name: str, n: int, k: int) -> bool:
    """Returns whether the estimator is defined for n samples and this k."""
    return n > k if name in ("loo", "centered") else n >= max(k, 2)


def gradient_estimate(name: str, x: jax.Array, theta: jax.typing.ArrayLike, k: int) -> jax.Array:
    """Returns the estimates sum_i w_i d log p(x_i) / d theta [...] of samples x [..., n]."""
    weights = ESTIMATORS[name](reward(x), k)
    return (weights * (x - theta)).sum(-1) / SD**2


# -- studies --------------------------------------------------------------------------------------


def exact_table(ks: Sequence[int]) -> dict[str, dict[str, float]]:
    return {
        str(k): {
            "theta": optimum(k),
            "value": value(optimum(k), k),
            "derivative_at_1": derivative(1.0, k),
        }
        for k in ks
    }


def variances(replicates: int) -> dict[str, dict[str, float]]:
    """Returns the variances {estimator: {n: variance}} at theta = 1 and k = VARIANCE_K.

    A variance is the mean square of the estimate less the true gradient.
    """
    true = derivative(1.0, VARIANCE_K)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def mean_square(name: str, n: int, key: jax.Array) -> jax.Array:
        x = 1.0 + SD * jax.random.normal(key, (1000, n))
        return jnp.square(gradient_estimate(name, x, 1.0, VARIANCE_K) - true).mean()

    results = {}
    for name in ESTIMATORS:
        results[name] = {}
        for n in VARIANCE_NS:
            if serves(name, n, VARIANCE_K):
                keys = jax.random.split(jax.random.key(n), max(replicates // 1000, 1))
                squares = [float(mean_square(name, n, key)) for key in keys]
                results[name][str(n)] = float(np.mean(squares))
    return results


def train(name: str, k: int, seeds: int) -> np.ndarray:
    """Trains theta with Adam, and returns it after each step as [seeds, TRAIN_STEPS + 1].

    The learning rate falls to 0 along a cosine.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, TRAIN_STEPS), b2=0.99)

    def run(key: jax.Array) -> jax.Array:
        def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            theta, opt_state = state
            x = theta + SD * jax.random.normal(key, (TRAIN_N,))
            gradient = gradient_estimate(name, x, theta, k)
            updates, opt_state = optimizer.update(-gradient, opt_state)
            return (theta + updates, opt_state), theta + updates

        theta = jnp.float32(TRAIN_START)
        _, thetas = jax.lax.scan(
            step, (theta, optimizer.init(theta)), jax.random.split(key, TRAIN_STEPS)
        )
        return jnp.concatenate([theta[None], thetas])

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(k), seeds)))


def trainings(ks: Sequence[int], seeds: int) -> dict[str, dict[str, Any]]:
    """Returns {estimator: {k: results}}: the final theta over seeds, and bands along the run."""
    results: dict[str, dict[str, Any]] = {}
    for name in ESTIMATORS:
        results[name] = {}
        for k in ks:
            if serves(name, TRAIN_N, k):
                thetas = train(name, k, seeds)
                last = thetas[:, -1]
                shown = thetas[:, :: TRAIN_STEPS // 100]
                low, median, high = np.quantile(shown, (0.05, 0.5, 0.95), axis=0)
                results[name][str(k)] = {
                    "final_mean": float(last.mean()),
                    "final_sd": float(last.std(ddof=1)) if seeds > 1 else 0.0,
                    "final_value": float(np.mean([value(t, k) for t in last])),
                    "low": low.round(5).tolist(),
                    "median": median.round(5).tolist(),
                    "high": high.round(5).tolist(),
                }
    return results


def rank_weights(n: int, k: int) -> np.ndarray:
    """Returns [n], what one more unit of the reward of rank i adds to max@k.

    For rank i it is C(i-1, k-1) / C(n, k).
    """
    ranks = np.arange(1, n + 1)
    raised = [np.where(ranks >= i, 1.0, 0.0) for i in range(1, n + 2)]
    steps = np.asarray(pkpo.max_at_k(np.stack(raised), k))
    return steps[:-1] - steps[1:]


# -- plots ----------------------------------------------------------------------------------------


def draw_objective(path: pathlib.Path, ks: Sequence[int]) -> dict[str, Any]:
    thetas = np.linspace(0.0, 1.3, 261)
    data = {"theta": thetas.round(4).tolist(), "value": {}, "derivative": {}}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, k in enumerate(ks):
        values = [value(t, k) for t in thetas]
        slopes = [derivative(t, k) for t in thetas]
        data["value"][str(k)], data["derivative"][str(k)] = values, slopes
        left.plot(thetas, values, color=f"C{i}", label=f"k = {k}")
        left.plot(optimum(k), value(optimum(k), k), "o", color=f"C{i}")
        right.plot(thetas, slopes, color=f"C{i}")
    left.set(xlabel="theta", ylabel="max@k")
    right.set(xlabel="theta", ylabel="d max@k / d theta")
    left.legend()
    _save(figure, path)
    return data


def draw_weights(path: pathlib.Path) -> dict[str, Any]:
    data = {str(k): rank_weights(8, k).tolist() for k in (1, 2, 4, 8)}
    figure = Figure(figsize=(4.5, 3.4), layout="constrained")
    ax = figure.subplots()
    for k, weights in data.items():
        ax.plot(range(1, 9), weights, marker="o", label=f"k = {k}")
    ax.set(xlabel="rank of the reward, n = 8", ylabel="weight in max@k")
    ax.legend()
    _save(figure, path)
    return data


def draw_variance(path: pathlib.Path, results: dict[str, dict[str, float]]) -> None:
    figure = Figure(figsize=(4.5, 3.4), layout="constrained")
    ax = figure.subplots()
    for name, by_n in results.items():
        ax.plot([int(n) for n in by_n], list(by_n.values()), marker="o", label=name)
    ax.set(xlabel="n", ylabel=f"variance of an estimate, k = {VARIANCE_K}", yscale="log")
    ax.set_xscale("log", base=2)
    ax.set_xticks(VARIANCE_NS, [str(n) for n in VARIANCE_NS])
    ax.set_ylim(top=2000)
    ax.legend(fontsize=7, ncols=2, loc="upper right")
    _save(figure, path)


def draw_effective(path: pathlib.Path, ks: Sequence[int]) -> dict[str, Any]:
    rewards = np.sort(np.random.default_rng(0).random(32))
    ks = [k for k in ks if k < 32]
    data = {"rewards": rewards.tolist(), "loo_minus_one": {}, "centered": {}}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    baselines: tuple[Baseline, ...] = ("loo_minus_one", "centered")
    for ax, baseline in zip(figure.subplots(1, 2), baselines, strict=True):
        for k in ks:
            weights = np.asarray(pkpo.pkpo_weights(rewards, k, baseline=baseline))
            data[baseline][str(k)] = weights.tolist()
            ax.plot(rewards, weights, marker=".", label=f"k = {k}")
        ax.set(xlabel="raw reward, n = 32", ylabel="effective reward", title=baseline)
    ax.legend(fontsize=7)
    _save(figure, path)
    return data


def draw_training(path: pathlib.Path, results: dict[str, dict[str, Any]]) -> None:
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for ax, (name, by_k) in zip(axes, results.items(), strict=False):
        for i, (k, run) in enumerate(by_k.items()):
            steps = np.linspace(0, TRAIN_STEPS, len(run["median"]))
            ax.plot(steps, run["median"], color=f"C{i}", label=f"k = {k}")
            ax.fill_between(steps, run["low"], run["high"], color=f"C{i}", alpha=0.2)
            ax.axhline(optimum(int(k)), color=f"C{i}", linestyle=":", linewidth=1)
        ax.set(title=name, xlabel="step", ylabel="theta")
    axes = figure.axes
    axes[0].legend(fontsize=7)
    axes[-1].set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=100)


def print_tables(results: dict[str, Any]) -> None:
    console = rich.console.Console(width=110)
    table = rich.table.Table("k", "best theta", "max@k there", "slope at theta = 1", title="exact")
    for k, row in results["exact"].items():
        table.add_row(
            k, f"{row['theta']:.6f}", f"{row['value']:.6f}", f"{row['derivative_at_1']:.4f}"
        )
    console.print(table)

    title = f"variance at theta = 1, k = {VARIANCE_K}, {_REPLICATES.value} estimates"
    table = rich.table.Table("estimator", *(f"n = {n}" for n in VARIANCE_NS), title=title)
    for name, by_n in results["variance"].items():
        cells = (f"{by_n[str(n)]:.3g}" if str(n) in by_n else "-" for n in VARIANCE_NS)
        table.add_row(name, *cells)
    console.print(table)

    ks = list(results["exact"])
    title = f"theta after {TRAIN_STEPS} steps from {TRAIN_START}, n = {TRAIN_N}: mean (sd) over "
    table = rich.table.Table(
        "estimator", *(f"k = {k}" for k in ks), title=f"{title}{_SEEDS.value} seeds"
    )
    table.add_row("exact optimum", *(f"{results['exact'][k]['theta']:.3f}" for k in ks))
    for name, by_k in results["training"].items():
        cells = (
            f"{by_k[k]['final_mean']:.3f} ({by_k[k]['final_sd']:.3f})" if k in by_k else "-"
            for k in ks
        )
        table.add_row(name, *cells)
    console.print(table)
    console.print(experiments.machine(), highlight=False)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    ks = [int(k) for k in _KS.value]
    if min(ks) < 1:
        raise app.UsageError(f"--ks={','.join(_KS.value)}; every k must be at least 1.")
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"exact": exact_table(ks)}
    results["objective"] = draw_objective(workdir / "objective.png", ks)
    results["weights"] = draw_weights(workdir / "weights.png")
    results["effective"] = draw_effective(workdir / "effective.png", ks)
    results["variance"] = variances(_REPLICATES.value)
    draw_variance(workdir / "variance.png", results["variance"])
    results["training"] = trainings(ks, _SEEDS.value)
    draw_training(workdir / "training.png", results["training"])
    (workdir / "results.json").write_text(json.dumps(results) + "\n")
    print_tables(results)


if __name__ == "__main__":
    app.run(main)
