"""What earlier visits of a run to each training problem have shown: how many responses were right.

The estimators that look at it (see weights.py) learn from it how hard a problem is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Visits:
    """The right and the wrong responses to each training problem, counted over a run's visits.

    What was counted v visits ago weighs discount^v, as the policy has moved since.

    Args:
      total: the number of training problems, each of which takes eight bytes.
      discount: a number from 0, with which nothing is remembered, to 1.
    """

    def __init__(self, total: int, discount: float) -> None:
        self._counts, self._discount = np.zeros((2, total), np.float32), discount

    def earlier(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the discounted counts of right and of wrong responses, [P] float32 each.

        `ids` [P] are the indices of the problems in the training split.
        """
        right, wrong = self._counts[:, ids]
        return right, wrong

    def add(self, ids: np.ndarray, rewards: np.ndarray) -> None:
        """Counts a visit to problems `ids` [P], whose responses have the rewards [P, n].

        A reward of at least 1 is right, and one that is not finite is not counted. A problem that
        occurs several times in a batch is visited once.
        """
        graded = np.isfinite(rewards)
        right = (rewards >= 1.0) & graded
        visit = np.stack([right.sum(-1), (graded & ~right).sum(-1)])
        for counts, counted in zip(self._counts, visit, strict=True):
            np.add.at(counts, ids, counted)
        self._counts[:, np.unique(ids)] *= np.float32(self._discount)

    def to_json(self) -> dict[str, list[float]]:
        """Returns the counts of the problems that have any, which JSON holds exactly."""
        seen = np.flatnonzero(self._counts.any(0))
        right, wrong = self._counts[:, seen]
        return {"ids": seen.tolist(), "right": right.tolist(), "wrong": wrong.tolist()}

    def restore(self, saved: Mapping[str, Sequence[float]]) -> None:
        """Takes over counts that `to_json` returned."""
        self._counts[:] = 0.0
        self._counts[:, np.asarray(saved["ids"], int)] = saved["right"], saved["wrong"]
