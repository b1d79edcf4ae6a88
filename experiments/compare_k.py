"""Trains a config for several k and seeds, and tables held-out pass@k: mean and spread over seeds.

python -m experiments.compare_k --ks=1,8 --seeds=0,1,2 --workdir=runs/compare_k

Each run is the main job in a process of its own, in WORKDIR/k<k>_seed<seed>; a run that is complete
is read, not repeated.
"""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from pkpo_jax.reporting import page
from pkpo_jax.training import metrics

_CONFIG = flags.DEFINE_string("config", "configs/maze_tiny.py", "The config to train.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/compare_k", "Where the runs are kept.")
_KS = flags.DEFINE_list("ks", ["1", "8"], "Values of config.k.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Values of config.seed.")


def pass_at_k(k: str, seed: str) -> list[dict[int, float]]:
    """Held-out {k: pass@k} before and after RL of one run."""
    workdir = pathlib.Path(_WORKDIR.value) / f"k{k}_seed{seed}"
    arguments = [f"--config={_CONFIG.value}", f"--workdir={workdir}"]
    arguments += [f"--config.k={k}", f"--config.seed={seed}"]
    subprocess.run([sys.executable, "-m", "pkpo_jax.main", *arguments], check=True)
    return list(page.before_and_after(metrics.read(workdir)).values())


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    runs = {k: [pass_at_k(k, seed) for seed in _SEEDS.value] for k in _KS.value}
    rows = {"before RL": [before for before, _ in runs[_KS.value[0]]]}
    rows |= {f"k = {k}": [after for _, after in group] for k, group in runs.items()}
    table = rich.table.Table(
        "",
        title=f"held-out pass@k, mean (standard deviation) over seeds {', '.join(_SEEDS.value)}",
    )
    for k in rows["before RL"][0]:
        table.add_column(f"@{k}", justify="right")
    for label, seeds in rows.items():
        cells = []
        for k in seeds[0]:
            values = [run[k] for run in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ({spread:.3f})")
        table.add_row(label, *cells)
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main)
