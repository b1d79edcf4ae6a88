"""Asks whether training for pass@k moves the depth at which an SFT warm start is too deep for RL.

python -m experiments.sft_ladder DIR [--quick] [--seeds=0,1,2] [--workers=2]

"SFT overtraining" (arXiv 2606.18487): the deeper the supervised training, the lower the entropy and
the group variance E[p (1 - p) (g - 1) / g] of groups of g samples, without which RL has no
gradient; pass@1 before RL still rises where pass@k after RL already falls. Here warm starts of
several depths fit clean demonstrations of a few fogged mazes. From each, RL trains on all mazes,
for pass@1 and for pass@8. DIR holds the runs, which are resumed.

The script prints entropy, pass@1, pass@16 and group variance, held out, before and after RL, as
mean ± standard error over seeds, the differences of the two RL runs with 95% intervals, and for
each k the depth that is best for pass@16 after RL. E[p (1 - p)] is pass@2 - pass@1.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence

import experiments
from experiments.study import plan, results, runs, script, tables
from experiments.study.base import Cell, Problems
from experiments.study.design import DESIGN
from experiments.study.measures import estimate, paired

DEPTHS = (50, 200, 800, 2000)
METHODS = ("k1", "k8")
GROUP = 16
# The warm starts fit this many mazes.
MAZES = 512
# The columns of the table, and what each is of the metrics of an evaluation.
MEASURES = {
    "entropy": lambda x: x["entropy"],
    "pass@1": lambda x: x["pass_at_1"],
    "pass@16": lambda x: x["pass_at_16"],
    "group variance": lambda x: (x["pass_at_2"] - x["pass_at_1"]) * (GROUP - 1) / GROUP,
}


def problems_at(depth: int, steps: int) -> Problems:
    """Returns the problems of a depth, whose warm start fits `MAZES` mazes without noise."""
    return Problems(
        f"warm start of {depth} steps",
        "configs/maze_tiny.py",
        steps=steps,
        evaluate_every=steps,
        warm_start={
            "warm_start.steps": depth,
            "task.train_problems": MAZES,
            "task.demonstration_noise": (0.0,),
        },
    )


def compare(
    folder: pathlib.Path,
    depths: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    run_all: plan.RunAll,
) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Does all runs, and returns {depth: {"base" or method: the measures for each seed}}."""
    before: list[runs.Job] = []
    after: list[runs.Job] = []
    done, cells = {}, [Cell(seed) for seed in seeds]
    for depth in depths:
        where, problems = folder / f"depth{depth}", problems_at(depth, steps)
        # The jobs of all depths run together, so that no worker waits at the end of each.
        plan.Sweep(where, DESIGN, problems, lambda jobs, _: before.extend(jobs)).before(cells)
        sweep = plan.Sweep(where, DESIGN, problems, lambda jobs, _: after.extend(jobs))
        done[depth] = sweep.report(dict.fromkeys(METHODS, DESIGN.one_rate), cells)
    run_all(before, "warm starts")
    run_all(after, "RL")
    return {
        depth: {
            # All methods start from the same policies, and evaluate them first.
            "base": _measures(of[METHODS[0]], "0"),
            **{method: _measures(of[method], str(steps)) for method in METHODS},
        }
        for depth, of in done.items()
    }


def _measures(done: Sequence[runs.Run], step: str) -> list[dict[str, float]]:
    evaluated = results.evaluations(done)[step]
    seeds = [{name: of[i] for name, of in evaluated.items()} for i in range(len(done))]
    return [{name: measure(seed) for name, measure in MEASURES.items()} for seed in seeds]


def table(found: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Returns the measures of every depth before and after RL."""
    rows = [
        [str(depth), DESIGN.label(m), *(estimate([s[x] for s in of]).cell() for x in MEASURES)]
        for depth, methods in found.items()
        for m, of in methods.items()
    ]
    return tables.markdown(["SFT steps", "", *MEASURES], rows, words=2)


def thresholds(found: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Returns for each method the best depth for pass@16, and what the deepest one loses."""
    deepest, rows = max(found), []
    for method in METHODS:
        at = {depth: [seed["pass@16"] for seed in found[depth][method]] for depth in found}
        best = max(at, key=lambda depth: statistics.fmean(at[depth]))
        each = [max(at, key=lambda depth: at[depth][i]) for i in range(len(at[best]))]
        lost = paired(at[deepest], at[best]).interval()
        rows.append([DESIGN.label(method), str(best), ", ".join(map(str, each)), lost])
    header = ["pass@16 after RL", "best depth", "for each seed", f"depth {deepest} less the best"]
    return tables.markdown(header, rows)


def gains(found: Mapping[int, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Returns at every depth what training for pass@8 gains over training for pass@1."""
    rows = []
    for depth, of in found.items():
        one, eight = of["k1"], of["k8"]
        cells = [paired([s[x] for s in eight], [s[x] for s in one]) for x in MEASURES]
        rows.append([str(depth), *(cell.interval() for cell in cells)])
    return tables.markdown(["k = 8 less k = 1, by SFT steps", *MEASURES], rows)


def main(arguments: script.Arguments) -> None:
    depths, steps = (DEPTHS[:3], 50) if arguments.quick else (DEPTHS, 100)
    found = compare(arguments.folder, depths, arguments.seeds, steps, arguments.run_all)
    print(table(found), gains(found), thresholds(found), sep="\n\n")
    print(f"\n{steps} steps of RL; {experiments.machine()}")


if __name__ == "__main__":
    script.run(main, quick="Run three depths, one seed and 50 steps of RL, in minutes.")
