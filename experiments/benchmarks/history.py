"""The file of benchmark results by commit, by which a slowdown shows."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import experiments
from pkpo_jax.training import provenance

PATH = pathlib.Path(__file__).with_name("history.jsonl")


def describe(benchmark: str, figures: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Returns the record of a run: its figures, its options, the commit and the machine."""
    start = provenance.start(0)
    return {
        "benchmark": benchmark,
        **{name: start[name] for name in ("started", "commit", "dirty", "versions", "cpu")},
        "machine": experiments.machine(),
        **options,
        "figures": figures,
    }


def append(record: dict[str, Any]) -> None:
    with PATH.open("a") as history:
        history.write(json.dumps(record) + "\n")


def read(benchmark: str) -> list[dict[str, Any]]:
    """Returns the records of a benchmark, the oldest first."""
    lines = PATH.read_text().splitlines() if PATH.exists() else ()
    records = [json.loads(line) for line in lines]
    return [record for record in records if record["benchmark"] == benchmark]


def about(record: dict[str, Any]) -> str:
    """Returns a line that says when, where and from which commit a record was measured."""
    changed = ", with changes" if record["dirty"] else ""
    return f"{record['started']}, commit {record['commit']}{changed}, {record['machine']}"
