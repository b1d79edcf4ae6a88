"""Sweeps, which train a config for several k and seeds on this machine and compare pass@k."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags

from pkpo_jax import command_line
from pkpo_jax.reporting import page, plots
from pkpo_jax.training import checks, files, metrics, run_directory, saved_run


class Request(NamedTuple):
    """The request of the command line.

    Attributes:
      config: the value of `--config`, with its argument.
      overrides: the arguments of the form `--config.key=value`.
      ks: the k to train for.
      seeds: the seeds to train with.
      jobs: the number of runs at the same time.
      options: other arguments of each run.
    """

    config: str
    overrides: Sequence[str]
    ks: Sequence[int]
    seeds: Sequence[int]
    jobs: int = 1
    options: Sequence[str] = ()


class Run(NamedTuple):
    """A run of a sweep, with its directory and the arguments that describe it."""

    k: int
    seed: int
    workdir: pathlib.Path
    config: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.workdir.name


# Figures of an evaluation map k, or the name of another column, to a value.
Figures = dict[Any, float]


class Result(NamedTuple):
    """The held-out figures of a run, before RL and after its last step."""

    before: Figures
    after: Figures


class Spread(NamedTuple):
    """The mean over seeds, and the standard deviation, which is 0 for a single seed."""

    mean: float
    std: float


# Rows map the label of a row to the spread of each figure.
Rows = dict[str, dict[Any, Spread]]


def requested() -> Request:
    """Returns the request that the flags make."""
    return Request(
        config_flags.get_config_filename(flags.FLAGS["config"]),
        command_line.overrides(),
        command_line.ks(),
        command_line.seeds(),
        flags.FLAGS.jobs,
        [f"--compilation_cache={flags.FLAGS.compilation_cache}"],
    )


def run(workdir: pathlib.Path, request: Request) -> int:
    """Runs all runs that are not finished, and then writes and prints the comparison.

    If it is interrupted, it makes the runs save and end. Started again, it resumes them.

    Returns:
      The exit code of the process, 1 if a run failed. The other runs do not stop for a failed one.

    Raises:
      ConfigError: a config cannot run, or a directory holds a run of another config. This is raised
        before any run starts.
    """
    runs = describe(workdir, request)
    todo = [one for one in runs if not _is_finished(one)]
    codes = _run_all(todo, request)
    failed = {one.name: code for one in todo if (code := codes[one.name])}
    done = {(one.k, one.seed): metrics.read(one.workdir) for one in runs if one.name not in failed}
    if done:
        results = {key: _result(lines, page.pass_at_k) for key, lines in done.items()}
        modes = {key: _result(lines, _modes) for key, lines in done.items()}
        rows, mode_rows = compare(results), compare(modes)
        _write(workdir, request, rows, results, mode_rows, modes, failed)
        console = rich.console.Console(width=100)
        console.print(_table("pass@k", rows, request.seeds))
        if _have_modes(rows, mode_rows):
            console.print(_table("distinct correct@k", mode_rows, request.seeds))
        print(f"{workdir / 'sweep.png'} shows it, and {workdir / 'sweep.json'} holds the numbers.")
    for name, code in failed.items():
        print(f"{name} failed, with exit code {code}.", file=sys.stderr)
    return 1 if failed else 0


def describe(workdir: pathlib.Path, request: Request) -> list[Run]:
    """Returns the runs of every k with every seed.

    For a config with an argument, k becomes a part of the argument, as in
    gemma2_2b_math:anneal,k=4, because `--config.k` would replace the schedule.
    """
    runs = []
    for k in request.ks:
        for seed in request.seeds:
            config, overrides = request.config, [*request.overrides, f"--config.seed={seed}"]
            if ":" in config:
                config = f"{config},k={k}"
            else:
                overrides.append(f"--config.k={k}")
            runs.append(Run(k, seed, workdir / f"k{k}_seed{seed}", config, tuple(overrides)))
    return runs


def _is_finished(run: Run) -> bool:
    """Returns whether the run is finished.

    Raises:
      ConfigError: the config cannot run, or the directory holds a run of another config.
    """
    config = command_line.read_config(run.config, run.overrides)
    # The config is checked for as many devices as its mesh asks for, because this process leaves
    # the devices to the runs, which check again.
    config = checks.validate(config, devices=abs(math.prod(config.parallel.mesh)))
    if not run.workdir.exists():
        return False
    run_directory.claim(run.workdir, config)
    lines, steps = metrics.read(run.workdir), config.train.steps
    recorded = bool(lines) and lines[-1]["step"] == steps
    return recorded and (not steps or steps in saved_run.steps(run.workdir))


def _run_all(runs: Sequence[Run], request: Request) -> dict[str, int]:
    """Performs the runs, `jobs` at a time, and returns the exit code of each by its name."""
    waiting, codes = collections.deque(runs), {}
    running: dict[Run, subprocess.Popen[bytes]] = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        while waiting or running:
            while waiting and len(running) < request.jobs:
                one = waiting.popleft()
                running[one] = _start(one, request)
            time.sleep(0.1)
            for one, process in list(running.items()):
                if process.poll() is not None:
                    codes[one.name] = process.returncode
                    del running[one]
                    how = f"failed with exit code {codes[one.name]}" if codes[one.name] else "done"
                    print(f"{one.name}: {how}, {len(codes)} of {len(runs)}.", flush=True)
    finally:
        _end(running.values())
    return codes


def _start(run: Run, request: Request) -> subprocess.Popen[bytes]:
    """Starts a run, whose output goes to the terminal, or to a log if several run at once."""
    arguments = [f"--config={run.config}", f"--workdir={run.workdir}"]
    command = [sys.executable, "-m", "pkpo_jax.main", *arguments, *run.overrides, *request.options]
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    log = run.workdir.with_name(f"{run.name}.log")
    several = request.jobs > 1
    print(f"{run.name}: started{f', and logs to {log}' if several else ''}.", flush=True)
    # The run has a separate process group, so that Ctrl-C reaches only this process, which makes
    # the run save and end.
    if not several:
        return subprocess.Popen(command, process_group=0)
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, process_group=0)


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Makes runs save and end, and waits for them. A second Ctrl-C kills them."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()


def _result(
    lines: Iterable[Mapping[str, Any]], figures: Callable[[Mapping[str, Any]], Figures]
) -> Result:
    found = [figures(line) for line in lines if page.pass_at_k(line)]
    return Result(found[0], found[-1])


def _modes(line: Mapping[str, Any]) -> Figures:
    """Returns distinct correct@k for each k, and the coverage of modes if it is known."""
    figures: Figures = {**page.at_k(line, "distinct_correct")}
    coverage = line.get("eval/mode_coverage")
    return figures if coverage is None else figures | {"coverage": coverage}


def _have_modes(rows: Rows, mode_rows: Rows) -> bool:
    """Returns whether right responses have several modes; else their number among k is pass@k."""
    return any(
        not math.isclose(x.mean, mode_rows[label][k].mean, abs_tol=1e-6)
        for label, row in rows.items()
        for k, x in row.items()
        if k in mode_rows[label]
    )


def compare(results: Mapping[tuple[int, int], Result]) -> Rows:
    """Returns the spread over seeds before RL, and after RL for each k that was trained for.

    Args:
      results: the results by (k, seed). Before RL, a seed has the same policy for every k, which
        counts once.
    """
    before = {seed: result.before for (_, seed), result in results.items()}
    # Values that were not finite are missing, so only the k that all results have are compared.
    every = [values for result in results.values() for values in result]
    ks = [k for k in every[0] if all(k in values for values in every)]
    groups = {"before RL": list(before.values())}
    for (k, _), result in results.items():
        groups.setdefault(f"k = {k}", []).append(result.after)
    return {
        label: {k: _spread([one[k] for one in group]) for k in ks}
        for label, group in groups.items()
    }


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _table(name: str, rows: Rows, seeds: Sequence[int]) -> rich.table.Table:
    over = f"mean (standard deviation) over seeds {', '.join(map(str, seeds))}"
    table = rich.table.Table("", title=f"held-out {name}, {over}")
    for k in rows["before RL"]:
        table.add_column(k if isinstance(k, str) else f"@{k}", justify="right")
    for label, row in rows.items():
        table.add_row(label, *(f"{_short(x.mean)} ({_short(x.std)})" for x in row.values()))
    return table


def _short(value: float) -> str:
    """Formats a number with three decimals and without a leading zero.

    >>> _short(0.25), _short(1.0)
    ('.250', '1.000')
    """
    return f"{value:.3f}".removeprefix("0")


def _write(
    workdir: pathlib.Path,
    request: Request,
    rows: Rows,
    results: Mapping[tuple[int, int], Result],
    mode_rows: Rows,
    modes: Mapping[tuple[int, int], Result],
    failed: Mapping[str, int],
) -> None:
    """Writes WORKDIR/sweep.png and WORKDIR/sweep.json."""
    means = {label: {k: x.mean for k, x in row.items()} for label, row in rows.items()}
    bands = {
        label: {k: (x.mean - x.std, x.mean + x.std) for k, x in row.items()}
        for label, row in rows.items()
    }
    title = f"held-out problems, mean and standard deviation over {len(request.seeds)} seeds"
    plots.pass_at_k(workdir / "sweep.png", means, bands, title=title)
    contents: dict[str, Any] = {
        "config": request.config,
        "overrides": list(request.overrides),
        **_plain(rows, results),
        "distinct_correct": _plain(mode_rows, modes),
        "failed": dict(failed),
    }
    files.replace(workdir / "sweep.json", json.dumps(contents, indent=2) + "\n")


def _plain(rows: Rows, results: Mapping[tuple[int, int], Result]) -> dict[str, Any]:
    return {
        "rows": {label: {k: x._asdict() for k, x in row.items()} for label, row in rows.items()},
        "runs": {f"k{k}_seed{seed}": result._asdict() for (k, seed), result in results.items()},
    }
