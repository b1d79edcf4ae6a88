"""Declares what a study is made of: problems, methods, the part that is run, and its page.

A study is a `Design`, which says what is run, and a `Study`, which adds what its results mean. The
module of each study defines both: design.py and page.py, here and in the other studies.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

KS = (1, 2, 4, 8, 16)
REPRODUCED, PARTLY, NOT = "reproduced", "partly reproduced", "not reproduced"
# A single seed has no interval.
UNTESTED = "not tested: one seed"


class Cell(NamedTuple):
    """One of the seeds that a method is run with, and the seed of its problems, `task.seed`."""

    seed: int
    draw: int = 0
    tuning: bool = False

    @property
    def name(self) -> str:
        """The end of the names of its runs' directories."""
        drawn = "" if self.tuning or not self.draw else f"_draw{self.draw}"
        return f"seed{self.seed}{drawn}"


class Seconds(NamedTuple):
    """Measured times on one core (or on all, if runs have all): of a run's start, and of a step.

    Attributes:
      start: imports, programs from the cache, the evaluations, and the last checkpoint.
      step: one RL step.
      before: the policy before RL, with its evaluation.
    """

    start: float
    step: float
    before: float


_SECONDS = Seconds(25.0, 0.1, 40.0)


@dataclasses.dataclass(frozen=True)
class Problems:
    """A set of problems: a config and the keys that are changed in it.

    Attributes:
      title: a few words for tables.
      config: path of the config in the repository.
      steps: RL steps of a run.
      evaluate_every: steps between the evaluations of reported runs of watched methods.
      changes: config keys that all runs share.
      warm_start: config keys of the SFT warm start alone, before RL.
      tuning_seeds: seeds of the runs that rates are chosen by, the same for all methods.
      fixed: whether training repeats a few problems many times. Rates are then chosen by pass@k
        in training, and otherwise by pass@k on held-out problems.
      curves: training metrics whose learning curves are kept in the results.
      evaluated: metrics of evaluations that are kept beside pass@k, entropy and diversity.
      seconds: what runs take, for the estimate that is printed first.
    """

    title: str
    config: str
    steps: int
    evaluate_every: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warm_start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuning_seeds: tuple[int, ...] = (100, 101)
    fixed: bool = False
    curves: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    seconds: Seconds = _SECONDS

    def base(self, cell: Cell) -> dict[str, Any]:
        """Returns the config keys of the policy before RL, which all methods of a cell share."""
        own = {"train.steps": 0, "seed": cell.seed, "task.seed": cell.draw}
        return {**LEAN, **self.changes, **self.warm_start, **own}

    def run(
        self, method: Method, cell: Cell, rate: float, start: str, steps: int = 0
    ) -> dict[str, Any]:
        """Returns the config keys of one RL run.

        Args:
          method: what is trained.
          cell: the seeds of the run and of its problems.
          rate: learning rate.
          start: checkpoint of the policy before RL.
          steps: RL steps; 0 stands for the `steps` of these problems.
        """
        steps = steps or self.steps
        return {
            **LEAN,
            **self.changes,
            "model.checkpoint": start,
            "warm_start.steps": 0,
            "train.steps": steps,
            "train.learning_rate": rate,
            "seed": cell.seed,
            "task.seed": cell.draw,
            **method.changes(steps),
        }


# A study needs only the metrics and the last policy of a run.
LEAN = {
    "checkpoint.every": 0,
    "checkpoint.best": "",
    "log.samples_every": 0,
    "log.report": False,
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train a policy.

    Attributes:
      label: its name in tables.
      k: an int, a schedule as {share of the steps: k}, or text such as "blend(8, 1, {steps})".
      keys: further config keys.
      watched: whether its reported runs are evaluated during training too.
      rates: learning rates to tune over, if not those of the study.
    """

    label: str
    k: int | Mapping[float, int] | str = 1
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    watched: bool = False
    rates: tuple[float, ...] = ()

    def changes(self, steps: int) -> dict[str, Any]:
        """Returns the config keys of a run of `steps` steps."""
        k = self.k
        if isinstance(k, Mapping):
            k = {round(share * steps): value for share, value in k.items()}
        elif isinstance(k, str):
            k = k.format(steps=steps)
        return {"k": k, **self.keys}


@dataclasses.dataclass(frozen=True)
class Scope:
    """The part of a study that is run.

    Attributes:
      methods: {problems: methods}, at a tuned rate or at the design's `one_rate`.
      seeds: of the reported runs.
      at_rates: {problems: {rate: methods}} that are run at other rates too.
      longer: {problems: (steps, methods)} that are run for longer too.
      tuned: whether rates are tuned.
      measured: whether what the study measures beside runs is measured.
      draws: values of `task.seed` of the reported runs; every seed has each of these problems.
    """

    methods: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    at_rates: Mapping[str, Mapping[float, tuple[str, ...]]] = dataclasses.field(
        default_factory=dict
    )
    longer: Mapping[str, tuple[int, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    tuned: bool = True
    measured: bool = True
    draws: tuple[int, ...] = (0,)

    def only(self, methods: Sequence[str]) -> Scope:
        """Returns the part of these methods, on the problems that have any of them."""

        def keep(some: Sequence[str]) -> tuple[str, ...]:
            return tuple(method for method in some if method in methods)

        rates = {
            name: {rate: keep(some) for rate, some in by_rate.items() if keep(some)}
            for name, by_rate in self.at_rates.items()
        }
        longer = {n: (steps, keep(some)) for n, (steps, some) in self.longer.items() if keep(some)}
        kept = {name: keep(some) for name, some in self.methods.items() if keep(some)}
        return dataclasses.replace(self, methods=kept, at_rates=rates, longer=longer)

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Returns what reported runs are repeated over: the seeds of the first draw come first."""
        return [Cell(seed, draw) for draw in self.draws for seed in seeds]


@dataclasses.dataclass(frozen=True)
class Design:
    """The problems, methods and rates of a study, and how they are run.

    Attributes:
      problems: {name: problems}.
      methods: {name: method}, in the order of tables.
      full, quick: the scopes without and with --quick.
      rates: learning rates that every method is tuned over. Where the best one is the first or
        the last, the grid grows by one on that side, at most `extensions` times.
      one_rate: the rate of methods that are not tuned.
      tuning_draw: `task.seed` of the problems that rates are tuned on. Tuning has its own seeds
        and problems, so that what it chooses is reported on others.
      alternatives: methods that differ in a coefficient, of which the best in tuning is reported.
      all_cores: whether a run has all cores, and runs follow each other.
      pretrained: whether all runs start from one checkpoint, which the command is given, and not
        from an SFT warm start of each seed.
      keeps_policies: whether the last policy of a run is kept. Large ones fill a disk.
    """

    problems: Mapping[str, Problems]
    methods: Mapping[str, Method]
    full: Scope
    quick: Scope
    rates: tuple[float, ...]
    one_rate: float
    extensions: int = 1
    tuning_draw: int = 1
    alternatives: tuple[str, ...] = ()
    all_cores: bool = False
    pretrained: bool = False
    keeps_policies: bool = True

    def label(self, method: str) -> str:
        """Returns the name of a method, or of the policy before RL ("base"), in tables."""
        return "before RL" if method == "base" else self.methods[method].label

    def rates_of(self, method: str) -> tuple[float, ...]:
        """Returns the learning rates that a method is tuned over at first."""
        return self.methods[method].rates or self.rates


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim or a question, and its outcome.

    Attributes:
      letter: of the claim on the page.
      claim: what is claimed.
      rule: the conditions under which it counts as reproduced.
      met: whether each condition is met.
      verdict: how it came out.
      reasons: the numbers behind the verdict, or why there is none.
    """

    letter: str
    claim: str
    rule: str
    met: Sequence[bool]
    verdict: str
    reasons: str

    def untested(self) -> Finding:
        """Returns the finding without an outcome, for results of one seed."""
        why = "With one seed there are no intervals, which the rule needs."
        return dataclasses.replace(self, verdict=UNTESTED, met=(), reasons=why)


def judged(
    letter: str,
    claim: str,
    rule: str,
    met: Sequence[bool],
    reasons: Sequence[str],
    words: tuple[str, str, str] = (REPRODUCED, PARTLY, NOT),
) -> Finding:
    """Returns the outcome of a rule that is met in part if any of its conditions is met."""
    whole, part, none = words
    verdict = whole if all(met) else part if any(met) else none
    return Finding(letter, claim, rule, met, verdict, "; ".join(reasons) + ".")


Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A design, and what its results mean.

    Attributes:
      design: what is run.
      title: of the page.
      findings: results -> outcomes of the claims that these results are enough for.
      tables: (letter, results) -> tables below the verdict of a claim.
      draw: (results, folder) -> names of the plots written there, each of which starts with the
        letter of its claim.
      pairs: (method, method) whose differences TABLES.md shows.
      measurements: results -> sections of TABLES.md about what is measured beside runs.
      measure: what is measured beside runs; see plan.run.
    """

    design: Design
    title: str
    findings: Callable[[Results], list[Finding]]
    tables: Callable[[str, Results], list[str]]
    draw: Callable[[Results, pathlib.Path], list[str]]
    pairs: Iterable[tuple[str, str]]
    measurements: Callable[[Results], list[str]]
    measure: Callable[..., dict[str, Any]]
