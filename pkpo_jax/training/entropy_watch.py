"""Warnings of a run whose entropy halves, or rises while the reward does not.

arXiv 2606.18487 takes a fall of the worst token's entropy by more than half between steps 10 and
150 as a sign that the SFT before the run was too long; here it is the mean entropy. That entropy
can rise while the score falls was reported for loose clipping bounds (rllm, issue 116).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# Entropy and reward are means over this many steps, since those of one batch are noisy.
WINDOW = 10
FALL, RISE = 0.5, 1.5
# Policies of less entropy, in nats per token, write one response, and their changes say nothing.
LEAST = 0.02


class _Level(NamedTuple):
    """Means over `WINDOW` steps, of which `step` is the last."""

    step: int
    entropy: float
    reward: float


class EntropyWatch:
    """Compares the policy's entropy and reward with those of earlier steps.

    They are compared with those of the first `WINDOW` steps and, once there was a warning, with
    those at the warning, so that each halving and each rise is reported once.
    """

    def __init__(self) -> None:
        self._recent: collections.deque[tuple[float, float]] = collections.deque(maxlen=WINDOW)
        self._since: _Level | None = None

    def add(self, step: int, values: Mapping[str, Any]) -> str:
        """Adds the metrics of a step, and returns a warning with what to do about it, or ""."""
        entropy, reward = values.get("train/entropy"), values.get("train/reward_mean")
        if entropy is None or reward is None or not math.isfinite(entropy + reward):
            return ""
        self._recent.append((max(entropy, LEAST), reward))
        if len(self._recent) < WINDOW:
            return ""
        entropy, reward = (sum(column) / WINDOW for column in zip(*self._recent, strict=True))
        now, since = _Level(step, entropy, reward), self._since
        if since is None:
            self._since = now
            return ""
        warning = _warning(since, now)
        if warning:
            self._since = now
        return warning


def _warning(since: _Level, now: _Level) -> str:
    change = (
        f"step {now.step}: the policy's entropy went from {since.entropy:.3g} to "
        f"{now.entropy:.3g} nats per token since step {since.step}"
    )
    if now.entropy < FALL * since.entropy:
        return (
            f"{change}, by more than half. Samples become alike, and pass@k of large k may fall: "
            "compare it in the evaluations; to keep more entropy, raise k, lower "
            "train.learning_rate, or set loss.entropy_coef or loss.kl_coef."
        )
    if now.entropy > RISE * since.entropy and now.reward <= since.reward:
        return (
            f"{change}, while the mean reward went from {since.reward:.3g} to {now.reward:.3g}. "
            "The policy becomes random without learning: lower train.learning_rate, "
            "loss.entropy_coef or loss.clip_high."
        )
    return ""
