"""The time that the programs of a config take on a chip, predicted from their compiled text.

An instruction takes as long as its matrix products at the chip's peak rate, or its memory traffic
at the rate of HBM, whichever is longer: the roofline model of Williams et al., "Roofline: An
Insightful Visual Performance Model" (Communications of the ACM, 2009). Its collectives come on top.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import rich.table

from pkpo_jax.reporting import costs
from pkpo_jax.reporting.chips import Chip

# Seconds that a transfer takes to reach a neighbour, however small it is.
HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds, by the resource that bounds them.

    Attributes:
      products: of instructions that are bounded by the rate of matrix products.
      memory: of instructions that are bounded by the rate of HBM.
      transfers: of collectives between chips.
    """

    products: float = 0.0
    memory: float = 0.0
    transfers: float = 0.0

    @property
    def seconds(self) -> float:
        return self.products + self.memory + self.transfers

    @property
    def bound(self) -> str:
        """The resource that bounds most of the time."""
        seconds = dataclasses.asdict(self)
        return max(seconds, key=lambda resource: seconds[resource])

    def __add__(self, other: Time) -> Time:
        return Time(
            self.products + other.products,
            self.memory + other.memory,
            self.transfers + other.transfers,
        )

    def __mul__(self, times: float) -> Time:
        return Time(self.products * times, self.memory * times, self.transfers * times)


def time(work: Iterable[costs.Work], chip: Chip) -> Time:
    """Returns the time of instructions that run one after the other on a chip."""
    total = Time()
    for one in work:
        products, memory = one.flops / chip.flops, one.memory / chip.bandwidth
        transfers = sum(t.carried / chip.ici + t.hops * HOP for t in one.transfers)
        longer = Time(products=products) if products > memory else Time(memory=memory)
        total += (longer + Time(transfers=transfers)) * one.times
    return total


def phases(
    work: Mapping[str, Iterable[costs.Work]],
    chip: Chip,
    *,
    tokens: int,
    scorings: int,
    evaluations: float,
) -> dict[str, Time]:
    """Predicts the parts of a training step, and the step.

    Args:
      work: the work of the programs "sampling" and "update", of "scoring" if there is one, and of
        "evaluation" if that is not the program of sampling.
      chip: the chip that runs it.
      tokens: the largest number of tokens of a response. All responses are taken to be that long.
      scorings: how many times a step scores its responses beside the update.
      evaluations: how many batches of the evaluation there are for each step.
    """
    prefill, decoding = [], []
    for one in work["sampling"]:
        # The loops over tokens, one for each size of the cache, are the only ones outside the
        # network.
        scope = r"jit\(\w+\)(/cond/branch_\d_fun)*/while"
        part = decoding if re.fullmatch(scope, one.loop) else prefill
        part.append(one)
    times = {"prefill": time(prefill, chip)}
    times["a decoded token"] = time(decoding, chip) * (1 / tokens)
    times["sampling"] = time(work["sampling"], chip)
    if scorings:
        times["scoring"] = time(work["scoring"], chip) * scorings
    times["update"] = time(work["update"], chip)
    evaluation = time(work.get("evaluation", work["sampling"]), chip) * evaluations
    times["evaluation's share"] = evaluation
    parts = [part for name, part in times.items() if name not in ("prefill", "a decoded token")]
    times["a step"] = sum(parts, Time())
    return times


def table(times: Mapping[str, Time]) -> rich.table.Table:
    """Returns a table of the parts of a step, in seconds."""
    columns = ("predicted", "seconds", "products", "memory", "transfers", "bound by")
    rows = rich.table.Table(*columns, title="predicted time, in seconds")
    for name, part in times.items():
        seconds = (part.seconds, part.products, part.memory, part.transfers)
        rows.add_row(name, *(f"{x:.3g}" for x in seconds), part.bound)
    return rows


def assumptions(chip: Chip) -> str:
    """Returns what a prediction takes for granted, for the report."""
    return (
        f"Assumed: {chip.flops / 1e12:.0f} TFLOP/s of matrix products in bfloat16, "
        f"{chip.bandwidth / 1e9:.0f} GB/s of HBM, {chip.ici / 1e9:.0f} GB/s received over a ring "
        f"of chips and {HOP * 1e6:.0f} us a hop; transfers do not overlap with other work, all "
        "responses have the full length, and element-wise arithmetic, the host and graders take no "
        "time. Rates are peaks, so a chip is slower where its kernels are."
    )
