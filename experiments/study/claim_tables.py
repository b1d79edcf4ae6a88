"""Markdown tables of this study's claims and measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.study import claims, tables
from experiments.study.base import KS
from experiments.study.design import PKPO, label
from experiments.study.measures import Set, estimate, number, paired
from experiments.study.quantities import Quarters, best_bonus, hard_measures, log_ratios


def optimum(found: Mapping[str, Any]) -> str:
    """Returns the exact optima: what the best policy for each k gives at all k."""
    rows = {f"optimal for k = {k}": found["matrix"][str(k)] for k in KS}
    rows["for k = 1, ties by pass@2"] = found["mixed"]
    return tables.markdown(
        tables.PASS_AT, [[name, *(number(row[str(k)]) for k in KS)] for name, row in rows.items()]
    )


def quarters(measure: Quarters) -> str:
    """Returns a measure of claim b at each quarter of training."""
    rows = [[label(m), *(estimate(at).cell() for at in v)] for m, v in measure.values.items()]
    if measure.before:
        rows.insert(0, [label("base"), estimate(measure.before).cell(), "", "", ""])
    return tables.markdown([measure.title, *(f"step {step}" for step in measure.steps)], rows)


def hard(problems: Set) -> str:
    """Returns the measures of claim d, and their differences from k = 1."""
    rates = problems.data["pass_rates"]
    before = {
        "solved so far": f"{estimate(rates['solved']).cell()} (1024 samples of each)",
        "pass@1, in training": estimate(rates["mean"]).cell(),
        "pass@1, held out": estimate(problems.pass_at("base", 1)).cell(),
        "pass@16, held out": estimate(problems.pass_at("base", 16)).cell(),
    }
    rows = [
        [
            measure,
            before.get(measure, ""),
            *(estimate(read(m)).cell() for m in ("k1", "k4", "k8")),
            *(paired(read(m), read("k1")).interval() for m in ("k4", "k8")),
        ]
        for measure, read in hard_measures(problems).items()
    ]
    header = [f"after {problems.last_step} steps", *map(label, ("base", "k1", "k4", "k8"))]
    return tables.markdown([*header, "4 less 1", "8 less 1"], rows)


def methods(problems: Set) -> str:
    """Returns the methods of claim f by pass@k, time of a step, and time to a level of pass@k."""
    shown = ["k2", "k4", *claims.PAPER_B, "k1", "grpo", "maxrl", best_bonus(problems)]
    fastest = min(map(problems.step_seconds, shown))
    rows = []
    for method in ["base", *shown]:
        row = [label(method), *(estimate(problems.pass_at(method, k)).cell() for k in (1, 4, 16))]
        if method == "base":
            rows.append([*row, "", "", ""])
            continue
        seconds = problems.step_seconds(method)
        time = f"{1e3 * seconds:.0f} ({seconds / fastest:.2f}x)"
        reached = (_reached(problems, method, k, level) for k, level in ((1, 0.5), (4, 0.75)))
        rows.append([*row, time, *reached])
    header = ["", "pass@1", "pass@4", "pass@16", "ms a step", "to pass@1 .5", "to pass@4 .75"]
    return tables.markdown(header, rows)


def _reached(problems: Set, method: str, k: int, level: float) -> str:
    """Returns the steps and seconds after which training batches first have this pass@k."""
    steps, seeds = problems.curve(method, f"pass_at_{k}")
    first = [
        next((s for s, v in zip(steps, values, strict=True) if v >= level), None)
        for values in seeds
    ]
    reached = [step for step in first if step is not None]
    if len(reached) < len(seeds):
        return f"{len(reached)} of {len(seeds)} seeds" if reached else "never"
    e = estimate(reached)
    spread = "" if math.isnan(e.se) else f" ± {e.se:.0f}"
    return f"{e.mean:.0f}{spread} ({e.mean * problems.step_seconds(method):.0f} s)"


def time_of_k(problems: Set) -> str:
    """Returns the range of the time of a step over the k of PKPO."""
    times = [1e3 * problems.step_seconds(m) for m in PKPO]
    return f"{min(times):.0f} to {max(times):.0f} ms"


def variance(policy: str, measured: Mapping[str, Any]) -> str:
    """Returns the variance of one gradient estimate of each estimator, on one policy."""
    ratios, rows = log_ratios(measured), []
    for name, row in sorted(measured.items(), key=lambda item: item[1]["k"] != 4):
        noise = estimate(row["noise"])
        # All estimators of one gradient share its expectation, and the one of least variance
        # estimates it best.
        best = measured["loo_minus_one"] if name in ratios else row
        signal = statistics.fmean(best["signal"])
        error = math.hypot(*best["signal_error"]) / len(best["signal_error"])
        spread = "" if math.isnan(noise.se) else f" ± {noise.se:.2g}"
        ratio = ""
        if name in ratios:
            middle, _, low, high = map(math.exp, ratios[name])
            ratio = f"{middle:.2f}" + (f" ({low:.2f} to {high:.2f})" if spread else "")
        # Where noise outweighs the signal, their quotient means nothing.
        relative = f"{noise.mean / signal:.3g}" if signal > 2 * error else ""
        rows.append([name, f"max@{row['k']}", f"{noise.mean:.3g}{spread}", ratio, relative])
    header = [policy, "of", "variance", "beside loo_minus_one's", "variance / squared mean"]
    return tables.markdown(header, rows)


def cost(measured: Mapping[str, Any]) -> str:
    """Returns the times of steps and updates for each k."""
    variants, rows = measured["variants"], []
    for name in sorted(variants, key=lambda name: (len(name), name)):
        step, update, alone = (variants[name][kind] for kind in ("step", "update", "weights"))
        low, high = update["interval"]
        ratio = f"{update['ratio']:.3f} ({low:.3f} to {high:.3f})"
        times = [f"{1e3 * kind['seconds']:.1f}" for kind in (step, update)]
        rows.append([name, *times, ratio, f"{alone['seconds'] / step['seconds']:.2%}"])
    header = ["", "ms a step", "ms an update", "beside k = 1", "reward weights alone, of a step"]
    return tables.markdown(header, rows)
