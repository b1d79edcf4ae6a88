"""Results of a study: read from the metrics of its runs, and kept in results.json."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import experiments
from experiments.study.base import KS
from experiments.study.runs import Run
from pkpo_jax.training import files, metrics

# The layout of results.json has this version.
FORMAT = 2
# Numbers are kept with this many significant digits.
DIGITS = 5
# A learning curve has this many points, each the mean over the steps since the point before.
POINTS = 20
_PASS = tuple(f"pass_at_{k}" for k in KS)
EVALUATED = (*_PASS, "entropy", "distinct_wrong")
# Training metrics of which the last point of the curve is always kept.
LAST = ("dead_groups", "entropy", "equal_groups", "pass_at_1", "pass_at_16")


class FormatError(ValueError):
    """Says that a file is no results.json that this version can read."""


class JoinError(ValueError):
    """Says that results are not those of two parts of one study."""


def evaluations(
    runs: Sequence[Run], more: Sequence[str] = ()
) -> dict[str, dict[str, list[float | None]]]:
    """Returns {step: {metric: a value for each run}} of runs that are evaluated at equal steps.

    The metrics are EVALUATED and `more`. A value is None where the metric is not defined:
    diversity, if no answer is wrong.
    """
    logs = [[x for x in metrics.read(run.workdir) if "eval/entropy" in x] for run in runs]
    return {
        str(lines[0]["step"]): {
            name: [x[f"eval/{name}"] for x in lines] for name in (*EVALUATED, *more)
        }
        for lines in zip(*logs, strict=True)
    }


def of_runs(runs: Sequence[Run], curves: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the results of one method, with a value or a curve for each of its runs.

    Returns:
      {"eval": {step: {metric: values}} after step 0, "last": {metric: values} at the end of
      training, "train": {metric: curves} for the metrics in `curves`, "step_s": seconds a step}.
    """
    logs = [[line for line in metrics.read(run.workdir) if "train/entropy" in line] for run in runs]
    return {
        "eval": {step: found for step, found in evaluations(runs, more).items() if step != "0"},
        "last": {name: [_curve(steps, name)[-1] for steps in logs] for name in LAST},
        "train": {name: [_curve(steps, name) for steps in logs] for name in curves},
        "step_s": [_step_seconds(steps) for steps in logs],
    }


def _curve(steps: Sequence[Mapping[str, float]], name: str) -> list[float]:
    width = max(len(steps) // POINTS, 1)
    windows = [steps[i : i + width] for i in range(0, len(steps), width)]
    if name == "cumulative_solve_rate":
        # The study reads the rate over the problems seen. Older runs call that rate cumulative.
        lines = [window[-1] for window in windows]
        return [x.get("train/seen_solve_rate", x[f"train/{name}"]) for x in lines]
    return [statistics.fmean(line[f"train/{name}"] for line in window) for window in windows]


def _step_seconds(steps: Sequence[Mapping[str, float]]) -> float:
    parts = ("time/sample_s", "time/grade_s", "time/update_s")
    # The median leaves out the first step, which compiles.
    return statistics.median(sum(line[part] for part in parts) for line in steps)


def score(run: Run, fixed: bool) -> float:
    """Returns the mean of pass@k over the study's k, after training.

    Args:
      run: a complete run.
      fixed: whether pass@k is that of the last training batches, instead of held-out problems.
    """
    return statistics.fmean(_after(run, fixed).values())


def _after(run: Run, fixed: bool) -> dict[str, float]:
    lines = metrics.read(run.workdir)
    last, prefix = (lines[-len(lines) // POINTS :], "train/") if fixed else (lines[-1:], "eval/")
    return {name: statistics.fmean(line[prefix + name] for line in last) for name in _PASS}


def of_grid(grid: Mapping[float, Sequence[Run]], fixed: bool) -> dict[str, dict[str, float]]:
    """Returns {rate: {"score", "pass_at_k"}} of tuning runs, means over their seeds."""
    found = {}
    for rate, runs in sorted(grid.items()):
        after = [_after(run, fixed) for run in runs]
        row = {name: statistics.fmean(one[name] for one in after) for name in _PASS}
        found[f"{rate:g}"] = {"score": statistics.fmean(row.values()), **row}
    return found


def of_pass_rates(summaries: Sequence[pathlib.Path]) -> dict[str, list[float]]:
    """Returns statistics of the pass rates of problems, a value for each seed.

    Args:
      summaries: for each seed the summary of `--mode=eval`, with problems.jsonl beside it.

    Returns:
      Quantiles over problems ("5%", ...), their "mean", the share of problems "within" .1% to
      60%, and the share "solved" by any sample.
    """
    found = []
    for path in summaries:
        lines = (path.parent / "problems.jsonl").read_text().splitlines()
        rates = [json.loads(line)["pass_at_1"] for line in lines]
        row = {f"{q}%": float(np.quantile(rates, q / 100)) for q in (5, 25, 50, 75, 95)}
        row["mean"] = statistics.fmean(rates)
        row["within"] = statistics.fmean(0.001 <= rate <= 0.6 for rate in rates)
        row["solved"] = statistics.fmean(rate > 0 for rate in rates)
        found.append(row)
    return {name: [row[name] for row in found] for name in found[0]}


def of_variance(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns {estimator: {"k", metric: a value for each seed}} of variance measurements."""
    names = ("noise", "signal", "signal_error", "log_ratio")
    rows = {name: [seed["estimators"][name] for seed in seeds] for name in seeds[0]["estimators"]}
    return {
        estimator: {"k": row[0]["k"], **{name: [seed[name] for seed in row] for name in names}}
        for estimator, row in rows.items()
    }


def dump(value: Any, indent: str = "") -> str:
    """Returns `value` as JSON: an object or array of plain values on one line, keys sorted.

    >>> print(dump({"b": [0.1234567, 2], "a": None}))
    {
     "a": null,
     "b": [0.12346, 2]
    }
    """
    if isinstance(value, float):
        value = float(f"{value:.{DIGITS}g}")
    if not isinstance(value, dict | list):
        return json.dumps(value, allow_nan=False)
    start, end = "{}" if isinstance(value, dict) else "[]"
    children = value.values() if isinstance(value, dict) else value
    flat = not any(isinstance(child, dict | list) for child in children)
    inner = "" if flat else f"{indent} "
    rows = [dump(child, inner) for child in children]
    if isinstance(value, dict):
        keys = [json.dumps(str(key)) for key in value]
        rows = [f"{key}: {row}" for key, row in sorted(zip(keys, rows, strict=True))]
    if flat:
        return start + ", ".join(rows) + end
    return f"{start}\n{inner}" + f",\n{inner}".join(rows) + f"\n{indent}{end}"


def save(path: pathlib.Path, value: Any) -> None:
    """Writes `value` as JSON to a file, whole or not at all, and makes its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, dump(value) + "\n")


def publish(measured: Mapping[str, Any], output: str) -> None:
    """Prints what a script has measured and on which machine, and saves it if `output` is given."""
    if output:
        save(pathlib.Path(output), measured)
    print(dump(measured))
    print(experiments.machine())


def load(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a results.json holds.

    Raises:
      FormatError: the file is of another version, or no such file.
    """
    try:
        found = json.loads(path.read_text())
        version = found.get("format", 1)
    except (OSError, ValueError, AttributeError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e
    if version != FORMAT:
        raise FormatError(
            f"{path} has format {version}, and this version reads format {FORMAT}. Run "
            "the study in its work directory again: it reads complete runs and rewrites the file."
        )
    return found


def join(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results of two parts of a study, run in two work directories, as those of both.

    The parts have the same seeds and different sets of problems, or different seeds and the same
    sets, methods and rates. What is measured once for all seeds is that of `a`.

    Raises:
      JoinError: they have some seeds or sets in common and others not, or differ in their rates.
    """
    draws = a.get("draws", [0])
    for name, mine, others in (
        ("draws", draws, b.get("draws", [0])),
        ("tuned", a["tuned"], b["tuned"]),
    ):
        if mine != others:
            raise JoinError(f"{name} is {mine} in one part and {others} in the other.")
    same = sorted(set(a["problems"]) & set(b["problems"]))
    if a["seeds"] == b["seeds"]:
        if same:
            raise JoinError(f"both parts have these seeds of {', '.join(same)}.")
        # These are the sets of problems of both, and what was measured on either.
        of_sets = {name: {**x, **a.get(name, {})} for name, x in b.items() if isinstance(x, dict)}
        joined = {**a, **of_sets}
    elif set(a["seeds"]) & set(b["seeds"]):
        raise JoinError(
            f"seeds are {a['seeds']} in one part and {b['seeds']} in the other; expected the same "
            "ones, or none in common."
        )
    else:
        parts = ("problems", "variance")
        ours, theirs = ({name: part[name] for name in parts if name in part} for part in (a, b))
        of_seeds = _concatenated(ours, theirs, len(draws), "")
        joined = {**a, **of_seeds, "seeds": a["seeds"] + b["seeds"]}
    machines = dict.fromkeys([*a["machine"].split("; "), *b["machine"].split("; ")])
    return {**joined, "machine": "; ".join(machines)}


def _concatenated(a: Any, b: Any, draws: int, path: str) -> Any:
    """Returns a tree whose lists have the values of `a` and then those of `b`, for each draw.

    Everything else has to be equal, except for the grids of tuning.

    Args:
      a, b: trees of one structure, with a value for each run in their lists.
      draws: how many draws of problems the runs have.
      path: where the trees are in the results, for messages.
    """
    if path.endswith("/grid/"):
        # Both parts were tuned with the same seeds. That they chose the same rate is checked at
        # "rate".
        return a
    if isinstance(a, dict) and isinstance(b, dict):
        if other := sorted(set(a) ^ set(b)):
            raise JoinError(f"only one part has {path}{other[0]}.")
        return {name: _concatenated(a[name], b[name], draws, f"{path}{name}/") for name in a}
    if isinstance(a, list) and isinstance(b, list):
        m, n = len(a) // draws, len(b) // draws
        by_draw = [a[i * m : (i + 1) * m] + b[i * n : (i + 1) * n] for i in range(draws)]
        return [value for values in by_draw for value in values]
    if a != b:
        raise JoinError(f"{path.rstrip('/')} is {a} in one part and {b} in the other.")
    return a
