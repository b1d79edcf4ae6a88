"""Evaluation: pass@k for every k from one pass of n samples a problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pkpo_jax import parallel
from pkpo_jax.estimators import pass_at_k_curve
from pkpo_jax.policy.sampling import Rollout
from pkpo_jax.tasks import Problem, Task
from pkpo_jax.training import data

_curve = jax.jit(pass_at_k_curve)


class Evaluation(NamedTuple):
    """Samples of held-out problems, graded.

    Attributes:
      problems: N problems; responses: n texts of each; rewards: [N, n] float32.
      metrics: figures by name, pass@k for the k of `reported_ks` among them.
    """

    problems: list[Problem]
    responses: list[list[str]]
    rewards: np.ndarray
    metrics: dict[str, float]


def evaluate(
    sample: Callable[[jax.Array, jax.Array, jax.Array], Rollout],
    devices: parallel.Jitted,
    task: Task,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    batch: int,
    max_prompt: int,
) -> Evaluation:
    """Samples and grades `problems`, `batch` at a time; the last batch is filled up and cut.

    `sample` maps prompts [batch, max_prompt], lengths [batch] and row numbers [batch], placed on
    `devices`, to a Rollout. Each process grades its own rows, and all return the same.
    """
    problems = list(problems)
    responses, rewards, entropy, tokens, finished = [], [], 0.0, 0, 0
    for start in range(0, len(problems), batch):
        numbers = np.arange(start, start + batch, dtype=np.int32)
        # Filled up with the first problems, for a smaller batch would compile again.
        chosen = [problems[i % len(problems)] for i in numbers]
        real = min(batch, len(problems) - start)
        rows, owned = devices.rows(batch), devices.owned(batch)
        encoded = data.encode_prompts(
            tokenizer, [chosen[row]["prompt"] for row in rows], max_prompt
        )
        # Log-probs are not needed on the host.
        rollout = sample(*devices.put((*encoded, numbers[rows]), batch))._replace(log_probs=None)
        rollout = jax.tree.map(lambda x, real=real: x[:real], devices.fetch(rollout))
        texts = data.decode_responses(tokenizer, rollout.tokens, rollout.lengths)
        responses += texts
        owned = owned[owned < real]
        mine = data.grade(task, [chosen[i] for i in owned], [texts[i] for i in owned])
        rewards.append(parallel.gather(owned, mine, rollout.lengths.shape))
        entropy += rollout.entropy.sum()
        tokens += rollout.mask.sum()
        finished += rollout.finished.sum()
    rewards = np.concatenate(rewards)
    # As in training, a reward that is not finite marks a sample that could not be graded.
    valid = np.isfinite(rewards)
    curves = np.asarray(_curve(rewards >= 1.0, where=valid), np.float64)
    metrics = {
        **summarize(curves[valid.any(-1)].mean(0)),
        "reward_mean": float(rewards[valid].mean()),
        "invalid": float(1.0 - valid.mean()),
        "entropy": float(entropy / tokens),
        "distinct_wrong": distinct_wrong(responses, rewards),
        "truncated": float(1.0 - finished / rewards.size),
        "response_length": float(tokens / rewards.size),
    }
    return Evaluation(problems, responses, rewards, metrics)


def reported_ks(n: int) -> list[int]:
    """The powers of two up to n, and n.

    >>> reported_ks(12)
    [1, 2, 4, 8, 12]
    """
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return sorted({*powers, n})


def summarize(curve: np.ndarray) -> dict[str, float]:
    """{"pass_at_1": ..., "pass_at_2": ...} for the reported k of a curve [n]."""
    return {f"pass_at_{k}": float(curve[k - 1]) for k in reported_ks(len(curve))}


def distinct_wrong(responses: Sequence[Sequence[str]], rewards: np.ndarray) -> float:
    """Distinct wrong answers of each problem over wrong answers (arXiv 2508.10751), pooled.

    >>> distinct_wrong([["U", "U", "D", "R"]], np.array([[0.0, 0.0, 0.0, 1.0]])) == 2 / 3
    True
    """
    wrong = [
        [text for text, reward in zip(group, group_rewards, strict=True) if reward < 1.0]
        for group, group_rewards in zip(responses, rewards, strict=True)
    ]
    return sum(len(set(texts)) for texts in wrong) / max(sum(len(texts) for texts in wrong), 1)
