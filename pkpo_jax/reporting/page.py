"""The report of a run: its plots, a table of pass@k before and after RL, and an HTML page."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import rich.console
import rich.table
from matplotlib.figure import Figure
from ml_collections import config_dict

import pkpo_jax
from pkpo_jax import tasks
from pkpo_jax.policy import sizes
from pkpo_jax.reporting import page_format, plots
from pkpo_jax.reporting.labels import LABELS
from pkpo_jax.tasks.drawing import printable
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import files, metrics, provenance, saved_run
from pkpo_jax.training.evaluation import Evaluation, k_of, reported_ks

# The page shows this many characters of a file of samples.
_SHOWN = 20_000
_HEALTH = (
    *("skipped", "invalid", "truncated", "dead_groups", "equal_groups", "clip_fraction"),
    "log_prob_gap_max",
)


def write(workdir: pathlib.Path, config: config_dict.ConfigDict, last: Evaluation) -> None:
    """Writes DIR/plots and DIR/report.html of a finished run, and prints the table."""
    task = tasks.make(config.task.to_dict())
    lines = metrics.read(workdir)
    rows, bands = before_and_after(lines), intervals(workdir, lines)
    plots.learning_curves(workdir / "plots" / "learning_curves.png", lines, config.rollout.n)
    if rows:
        plots.pass_at_k(workdir / "plots" / "pass_at_k.png", rows, bands)
    plots.samples(workdir / "plots" / "samples.png", task, last)
    page = write_page(workdir)
    count, n = last.rewards.shape
    title = f"pass@k on {count} held-out problems, {n} samples each"
    if any(bands.values()):
        title += "; 95% intervals over problems"
    table = rich.table.Table("")
    for label in rows:
        table.add_column(label, justify="right")
    for k in _ks(rows):
        cells = [page_format.with_interval(v.get(k), bands[x].get(k)) for x, v in rows.items()]
        table.add_row(f"pass@{k}", *cells)
    console = rich.console.Console(highlight=False)
    console.print(title, table, sep="\n")
    console.print(f"metrics, plots and checkpoints are in {workdir}, and {page.name} shows them")


def before_and_after(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns {label: {k: pass@k}} of a run's first and last evaluation, empty before the first."""
    return {label: pass_at_k(line) for label, line in _ends(lines).items()}


def intervals(
    workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]]
) -> dict[str, dict[int, tuple[float, float]]]:
    """Returns {label: {k: (low, high)}}, the intervals of `before_and_after` that were recorded."""
    by_step = metrics.read_intervals(workdir)
    return {label: pass_at_k(by_step.get(line["step"], {})) for label, line in _ends(lines).items()}


def _ends(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns the metrics lines of the first and the last evaluation by their labels in a table."""
    evaluations = [line for line in lines if pass_at_k(line)]
    return {
        "before RL" if line["step"] == 0 else f"after step {line['step']}": line
        for line in (*evaluations[:1], *evaluations[-1:])
    }


def pass_at_k(line: Mapping[str, Any]) -> dict[int, Any]:
    """Returns {k: pass@k} of a metrics line that holds an evaluation, without null values."""
    return at_k(line, "pass_at")


def at_k(line: Mapping[str, Any], kind: str) -> dict[int, Any]:
    """Returns {k: value} of a kind of `evaluation.AT_K` in a metrics line, without null values."""
    prefix = f"eval/{kind}_"
    values = {key: v for key, v in line.items() if key.startswith(prefix) and v is not None}
    return {int(key.removeprefix(prefix)): values[key] for key in values}


def write_page(workdir: pathlib.Path) -> pathlib.Path:
    """Writes DIR/report.html of a run, finished or not, from the files in its directory alone.

    The page is a single file: it embeds its images, loads nothing and runs no script.

    Returns:
      The path of the page.

    Raises:
      ConfigError: the directory is not that of a run.
      OSError: the page cannot be written.
    """
    config = _read_config(workdir)
    lines = metrics.read(workdir)
    settings = {**dict(config_lib.flatten(config)), "k": page_format.k_text(config.get("k"))}
    rows, bands = before_and_after(lines), intervals(workdir, lines)
    page = _template().render(
        name=workdir.resolve().name,
        version=pkpo_jax.__version__,
        settings=settings,
        policy=sizes.title(str(settings.get("model.size") or "of unknown size")),
        done=lines[-1]["step"] if lines else 0,
        steps=_whole(settings.get("train.steps")),
        seconds=sum(value for key in _phases(lines) for _, value in plots.points(lines, key)),
        rows=rows,
        bands=bands,
        ks=_ks(rows),
        trained_k=config.get("k"),
        panels=_panels(lines, _whole(settings.get("rollout.n")) or 1),
        figures=_figures(workdir, rows, bands),
        evaluations=list(_evaluations(workdir)),
        times=_times(lines),
        rates=_rates(lines, settings),
        health=_health(lines),
        counts=_counts(lines),
        samples=_samples(workdir),
        checkpoints=saved_run.steps(workdir),
        starts=_starts(workdir),
        sections=_sections(settings),
    )
    path = workdir / "report.html"
    files.replace(path, page)
    return path


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
    config = files.read_json(workdir / "config.json", dict)
    if not config:
        raise config_lib.ConfigError(
            f"--workdir={workdir} holds no config.json that can be read, so it is not a run's "
            "directory; give one that a run has written."
        )
    return config


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pkpo_jax.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    for name in ("number", "duration", "with_interval"):
        environment.filters[name] = getattr(page_format, name)
    return environment.get_template("page.html.jinja")


def _whole(value: Any) -> int:
    """Returns `value` if it is an integer and 0 otherwise, for configs that hold anything."""
    return value if isinstance(value, int) else 0


def _ks(rows: Mapping[str, Mapping[int, float]]) -> list[int]:
    return sorted({k for values in rows.values() for k in values})


class _Image(NamedTuple):
    title: str
    alt: str
    uri: str


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _draw(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return _data_uri(buffer.getvalue())


def _panels(lines: Sequence[Mapping[str, Any]], n: int) -> list[_Image]:
    """Draws the learning curves, because a run that was killed has no plots in its directory."""
    images = []
    for title, series in plots.panels(lines, n).items():
        ends = [
            f"{key} {page_format.number(pairs[0][1])} at step {pairs[0][0]}, "
            f"{page_format.number(pairs[-1][1])} at step {pairs[-1][0]}"
            for key, pairs in series.items()
        ]
        images.append(_Image(title, "; ".join(ends), _draw(plots.panel(series))))
    return images


def _figures(
    workdir: pathlib.Path,
    rows: Mapping[str, Mapping[int, float]],
    bands: Mapping[str, Mapping[int, tuple[float, float]]],
) -> dict[str, _Image]:
    """Returns the plots in DIR/plots by name, without the learning curves.

    The plot of pass@k is drawn if it is missing.
    """
    ends = [
        f"{label}, {page_format.number(values[k])} at k = {k}"
        for label, values in rows.items()
        for k in (min(values), max(values))
    ]
    known = {
        "pass_at_k": ("pass@k against k", "; ".join(ends)),
        "samples": (
            "Responses to held-out problems",
            "The first held-out problems with the responses sampled to them",
        ),
    }
    uris = {path.stem: _read_png(path) for path in sorted((workdir / "plots").glob("*.png"))}
    if rows and not uris.get("pass_at_k"):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "pass_at_k.png"
            plots.pass_at_k(path, rows, bands)
            uris["pass_at_k"] = _read_png(path)
    return {
        stem: _Image(*known.get(stem, (stem.replace("_", " "),) * 2), uri)
        for stem, uri in uris.items()
        if uri and stem != "learning_curves"
    }


def _read_png(path: pathlib.Path) -> str | None:
    """Returns a PNG file as a data URI, or None if it is missing or incomplete.

    A run can be killed while it writes a plot.
    """
    png = path.read_bytes() if path.is_file() else b""
    return _data_uri(png) if png.endswith(b"IEND\xaeB`\x82") else None


class _Evaluation(NamedTuple):
    name: str
    metrics: list[tuple[str, Any, Any]]
    facts: list[tuple[str, Any, Any]]
    images: list[_Image]


def _evaluations(workdir: pathlib.Path) -> Iterator[_Evaluation]:
    """Yields what --mode=eval wrote to DIR/eval/<split>_step<N>, by split and step."""

    def order(path: pathlib.Path) -> tuple[str, int]:
        split, _, step = path.parent.name.rpartition("_step")
        return split, int(step) if step.isdecimal() else 0

    for path in sorted((workdir / "eval").glob("*/summary.json"), key=order):
        summary = files.read_json(path, dict)
        if not summary:
            continue  # The file is damaged, or not complete yet.
        rows = list(_rows(summary))
        name = re.sub(r"_step(\d+)$", r", step \1", path.parent.name)
        images = [
            _Image(image.stem, f"{image.stem.replace('_', ' ')} of the evaluation {name}", uri)
            for image in sorted(path.parent.glob("*.png"))
            if (uri := _read_png(image))
        ]
        with_intervals = [row for row in rows if row[2]]
        yield _Evaluation(name, with_intervals, [row for row in rows if not row[2]], images)


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, value, interval or None) of each leaf of a summary.

    Of the metrics that exist for every k, only those of reported k are included.
    """
    ks = {name: k for name in summary if (k := k_of(name))}
    reported = reported_ks(max(ks.values(), default=1))
    for name, value in summary.items():
        # Where rewards are 0 and 1, max@k equals pass@k and is not repeated. Nor is distinct
        # correct@k where no problem has right samples of two modes.
        passed = summary.get(f"pass_at_{ks.get(name)}")
        again = name.startswith(("max_at_", "distinct_correct_")) and value == passed
        if again or (name in ks and ks[name] not in reported):
            continue
        if isinstance(value, dict) and "value" in value:
            interval = value.get("interval")
            yield name, value["value"], interval if isinstance(interval, list) else None
        elif isinstance(value, dict) and value:
            yield from _rows(value)
        else:
            yield name, value, None


def _phases(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key for key in keys if re.fullmatch(r"time/.*(?<!_per)_s", key)]


def _times(
    lines: Sequence[Mapping[str, Any]],
) -> list[tuple[str, float, float | None, float, float]]:
    """Returns (phase, first step's seconds, mean of later steps, total, share of all) by phase."""
    values = {key: [value for _, value in plots.points(lines, key)] for key in _phases(lines)}
    total = sum(map(sum, values.values()))
    return [
        (
            key.removeprefix("time/").removesuffix("_s"),
            seconds[0],
            sum(seconds[1:]) / (len(seconds) - 1) if len(seconds) > 1 else None,
            sum(seconds),
            sum(seconds) / total if total else 0.0,
        )
        for key, seconds in values.items()
        if seconds
    ]


def _rates(lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns the throughput by name.

    It leaves out evaluations, and the first step, which waits for the compiler.
    """
    later = [line for line in lines if line["step"] > 1]
    phases = [key for key in _phases(later) if key != "time/eval_s"]
    seconds = sum(value for key in phases for _, value in plots.points(later, key))
    rates = {}
    if seconds:
        responses = _whole(settings.get("train.prompts")) * _whole(settings.get("rollout.n"))
        rates["steps a minute"] = 60.0 * len(later) / seconds
        if responses:
            rates["responses a second"] = responses * len(later) / seconds
    for key in dict.fromkeys(key for line in later for key in line if key.endswith("_per_s")):
        if values := [value for _, value in plots.points(later, key)]:
            name = key.rpartition("/")[2].removesuffix("_per_s").replace("_", " ")
            rates[f"{name} a second"] = sum(values) / len(values)
    return rates


def _health(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float, float, int]]:
    """Returns (key, meaning, mean, largest value, its step) of each recorded metric of _HEALTH."""
    rows = []
    for name in _HEALTH:
        key = f"train/{name}"
        if pairs := plots.points(lines, key):
            step, largest = max(pairs, key=lambda pair: pair[1])
            mean = math.fsum(value for _, value in pairs) / len(pairs)
            rows.append((key, LABELS[name], mean, largest, step))
    return rows


def _counts(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    programs = [value for _, value in plots.points(lines, "compilations")]
    # A run that resumes counts from 0 again, so only increases are summed.
    later = sum(max(0, b - a) for a, b in itertools.pairwise(programs))
    counts = {}
    if programs:
        counts["programs compiled by the last step"] = str(programs[-1])
        counts["of these after the first step"] = str(later)
    absent = [key for line in lines for key, value in line.items() if value is None]
    names = ", ".join(sorted(set(absent)))
    counts["values that were not finite"] = f"{len(absent)} ({names})" if absent else "0"
    for key in dict.fromkeys(key for line in lines for key in line):
        values = [value for _, value in plots.points(lines, key)]
        if key.startswith("grade/"):
            counts[f"graded with {key.removeprefix('grade/')}"] = str(sum(values))
        if key.startswith("memory/") and values:
            counts[key] = page_format.number(max(values))
    return counts


def _samples(workdir: pathlib.Path) -> list[tuple[int, str, str, int]]:
    """Returns (step, file, text, characters left out) of the first and last training samples."""
    paths = {int(p.stem): p for p in (workdir / "samples").glob("*.txt") if p.stem.isdecimal()}
    samples = []
    for step in sorted({min(paths), max(paths)} if paths else ()):
        text = paths[step].read_text(encoding="utf-8", errors="replace")
        more = max(0, len(text) - _SHOWN)
        samples.append((step, paths[step].name, text[:_SHOWN], more))
    return samples


class _Start(NamedTuple):
    time: str
    step: int
    command: str
    commit: str
    devices: str
    host: str
    versions: str


def _starts(workdir: pathlib.Path) -> list[_Start]:
    """Returns the recorded starts of the run in order; runs of old versions have none."""
    rows = []
    for one in provenance.read(workdir):
        commit = (one.get("commit") or "unknown")[:12]
        versions = one.get("versions", {}).items()
        rows.append(
            _Start(
                time=str(one.get("started", "-")).replace("T", " ").replace("+00:00", " UTC"),
                step=one.get("step", 0),
                command=one.get("command", "-"),
                commit=f"{commit}, changed" if one.get("dirty") else commit,
                devices=f"{one.get('devices')} x {one.get('device')}"
                + (f", {one['processes']} processes" if one.get("processes", 1) > 1 else ""),
                host=f"{one.get('cores')} cores of {one.get('cpu')}, {one.get('platform')}",
                versions=", ".join(f"{name} {version}" for name, version in versions if version),
            )
        )
    return rows


def _sections(settings: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str | None]]]:
    """Returns the (key, value, default if it differs) of the config's keys by section."""
    try:
        default = config_lib.default(settings.get("task.name", "")).to_dict()
    except (TypeError, ValueError):  # The task does not exist any more.
        default = config_lib.default().to_dict()
    # The defaults go through JSON, which makes tuples lists as in the saved config.
    default = json.loads(json.dumps(default))
    defaults = {**dict(config_lib.flatten(default)), "k": page_format.k_text(default["k"])}

    def shown(key: str, value: Any) -> str:
        return value if key == "k" else json.dumps(value, ensure_ascii=False)

    sections = {"run": []}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        differs = key in defaults and defaults[key] != value
        default = shown(key, defaults[key]) if differs else None
        sections.setdefault(section or "run", []).append((name, shown(key, value), default))
    return sections
