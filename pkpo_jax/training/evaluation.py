"""Evaluation: metrics from one pass of n samples a problem, with intervals over the problems."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from pkpo_jax import parallel
from pkpo_jax.estimators import max_at_k, pass_at_k_curve, pass_hat_k_curve
from pkpo_jax.policy.sampling import Rollout
from pkpo_jax.tasks import Problem, Status, Task
from pkpo_jax.tasks.grading import Grades
from pkpo_jax.training import data, weights

REPLICATES, CONFIDENCE = 2000, 0.95
# This maps the prefix of each metric that exists for every k to the metric's usual notation.
AT_K = {
    "pass_at": "pass@k",
    "max_at": "max@k",
    "pass_hat": "pass^k",
    "distinct_correct": "distinct correct@k",
}

# Each metric has a numerator and a denominator for every problem, [N] each, and is the ratio of
# their sums.
Terms = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Evaluation(NamedTuple):
    """Graded samples of held-out problems.

    Attributes:
      problems: N problems; responses: n texts for each; rewards: [N, n] float32.
      metrics: metrics by name, with pass@k and pass^k for the k of `reported_ks`, and with max@k
        unless all rewards are 0 or 1.
      answers: the answer that each response gives, or None if it gives none.
      modes: the mode of each right response (`Task.mode_of`), and None for the others.
      terms: the numerators and denominators of all metrics, for every k; `figures` and
        `intervals` take them.
    """

    problems: list[Problem]
    responses: list[list[str]]
    rewards: np.ndarray
    metrics: dict[str, float]
    answers: list[list[str | None]]
    modes: list[list[str | None]]
    terms: Terms

    @property
    def classes(self) -> np.ndarray:
        """[N, n] int32, equal for equal answers to a problem, as estimators see them."""
        return weights.answer_classes(self.answers, self.modes)


def evaluate(
    sample: Callable[[jax.Array, jax.Array, jax.Array], Rollout],
    devices: parallel.Devices,
    task: Task,
    grade: Callable[[Sequence[Problem], list[list[str]]], Grades],
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    batch: int,
    max_prompt: int,
    progress: bool = False,
) -> Evaluation:
    """Samples and grades `problems`, `batch` at a time.

    The last batch is filled up with other problems, whose samples are dropped. A batch is graded
    while the next one is sampled. Each process grades its own rows, and all return the same result.

    Args:
      sample: maps prompts [batch, max_prompt], lengths [batch] and row numbers [batch], all placed
        on `devices`, to a Rollout.
      devices: where `sample` runs.
      task: extracts the answers from responses, and names and counts the modes of right ones.
      grade: maps P problems and n responses to each to `Grades`. Responses whose reward is not
        finite are left out of the metrics and counted as invalid.
      tokenizer: encodes prompts and decodes responses.
      problems: the N problems.
      batch: how many problems are sampled at a time.
      max_prompt: the length that prompts are padded to.
      progress: whether the first process shows a progress bar.
    """
    problems = list(problems)

    def sampled() -> Iterator[tuple[list[Problem], Rollout]]:
        for start in range(0, len(problems), batch):
            numbers = np.arange(start, start + batch, dtype=np.int32)
            # The first problems fill up the last batch: a smaller one would compile again.
            chosen = [problems[i % len(problems)] for i in numbers]
            rows = devices.rows(batch)
            encoded = data.encode_prompts(
                tokenizer, [chosen[row]["prompt"] for row in rows], max_prompt
            )
            rollout = sample(*devices.put((*encoded, numbers[rows]), batch))
            yield chosen[: len(problems) - start], rollout

    responses, rewards, statuses, counts = [], [], [], []
    bar = tqdm.tqdm(
        total=len(problems),
        desc="evaluation",
        unit="problem",
        dynamic_ncols=True,
        disable=not (progress and parallel.is_first_process()),
    )
    for chosen, rollout in _one_ahead(sampled()):
        real = len(chosen)
        fetched = (rollout.tokens, rollout.lengths, rollout.entropy, rollout.finished)
        tokens, lengths, entropy, finished = (x[:real] for x in devices.fetch(fetched))
        texts = data.decode_responses(tokenizer, tokens, lengths)
        owned = devices.owned(batch)
        owned = owned[owned < real]
        graded = grade([chosen[i] for i in owned], [texts[i] for i in owned])
        responses += texts
        rewards.append(parallel.gather(owned, graded.rewards, lengths.shape))
        statuses.append(parallel.gather(owned, graded.statuses, lengths.shape))
        entropy = entropy.sum((1, 2), dtype=np.float64)
        counts.append(np.stack([entropy, lengths.sum(1), finished.sum(1)]))
        bar.update(real)
    bar.close()
    rewards, statuses = np.concatenate(rewards), np.concatenate(statuses)
    answers = [[task.answer(response) for response in group] for group in responses]
    groups = zip(problems, responses, rewards, strict=True)
    modes = [weights.right_modes(task, *group) for group in groups]
    entropy, tokens, finished = np.concatenate(counts, -1)
    n = np.full(len(problems), rewards.shape[1], np.float64)
    terms = {
        **_reward_terms(rewards, answers),
        **_mode_terms(rewards, answers, modes, [task.mode_count(p) for p in problems]),
        "entropy": (entropy, tokens),
        "truncated": (n - finished, n),
        "response_length": (tokens, n),
        **{
            status.name.lower(): ((statuses == status).sum(-1, dtype=np.float64), n)
            for status in Status
            if status != Status.OK
        },
    }
    ks = reported_ks(rewards.shape[1])
    metrics = {
        name: value
        for name, value in figures(terms).items()
        if k_of(name) in (None, *ks) and not (name.startswith("max_at_") and is_binary(rewards))
    }
    return Evaluation(problems, responses, rewards, metrics, answers, modes, terms)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yields the items, each one after the next has been requested.

    The devices so sample the next batch while the host grades this one.
    """
    previous = next(items)
    for item in items:
        yield previous
        previous = item
    yield previous


def _reward_terms(rewards: np.ndarray, answers: Sequence[Sequence[str | None]]) -> Terms:
    """Returns the terms of the metrics that depend on rewards [N, n] and answers.

    A problem without a graded sample counts only towards "invalid".
    """
    n = rewards.shape[1]
    valid = np.isfinite(rewards)
    graded = valid.sum(-1, dtype=np.float64)
    solvable = np.asarray(valid.any(-1), np.float64)
    passed = np.asarray(_pass_curve(rewards >= 1.0, valid), np.float64)
    # If all rewards are 0 or 1, max@k equals pass@k.
    best = passed if is_binary(rewards) else np.asarray(_max_curve(rewards, valid), np.float64)
    reliable = np.asarray(_hat_curve(rewards >= 1.0, valid), np.float64)
    right = [majority(*group)[1] for group in zip(answers, rewards, strict=True)]
    given = [[a for a in group if a is not None] for group in answers]
    wrong = [
        [a for a, reward in zip(*group, strict=True) if a is not None and reward < 1.0]
        for group in zip(answers, rewards, strict=True)
    ]
    return {
        **{f"pass_at_{k}": (passed[:, k - 1] * solvable, solvable) for k in range(1, n + 1)},
        **{f"max_at_{k}": (best[:, k - 1] * solvable, solvable) for k in range(1, n + 1)},
        **{f"pass_hat_{k}": (reliable[:, k - 1] * solvable, solvable) for k in range(1, n + 1)},
        "reward_mean": (np.where(valid, rewards, 0.0).sum(-1, dtype=np.float64), graded),
        "majority": (np.array(right) * solvable, solvable),
        "invalid": (n - graded, np.full(len(rewards), float(n))),
        "distinct_answers": _distinct(given),
        # arXiv 2508.10751 measures the diversity of wrong answers.
        "distinct_wrong": _distinct(wrong),
    }


def _mode_terms(
    rewards: np.ndarray,
    answers: Sequence[Sequence[str | None]],
    modes: Sequence[Sequence[str | None]],
    counts: Sequence[int | None],
) -> Terms:
    """Returns the terms of the metrics that depend on the modes of right responses.

    The estimate of distinct correct@k is the sum over modes of their pass@k, which is
    1 - C(n - c_m, k) / C(n, k) for a mode that c_m of n samples have (arXiv 2107.03374), and so it
    is unbiased. mode_coverage exists if the number of modes of some problem is known.

    Args:
      rewards: [N, n], as for `_reward_terms`.
      answers, modes: those of an `Evaluation`.
      counts: the number of modes of each problem, or None where it is unknown.
    """
    valid = np.isfinite(rewards)
    solvable = np.asarray(valid.any(-1), np.float64)
    classes = weights.answer_classes(answers, modes)
    found = np.asarray(_distinct_curve((rewards >= 1.0) & valid, classes, valid), np.float64)
    ks = range(1, rewards.shape[1] + 1)
    terms = {f"distinct_correct_{k}": (found[:, k - 1] * solvable, solvable) for k in ks}
    total = np.array([count or 0 for count in counts], np.float64)
    known = solvable * (total > 0)
    if known.any():
        terms["mode_coverage"] = (found[:, -1] * known / np.maximum(total, 1.0), known)
    return terms


def _distinct(groups: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of distinct answers of each group, and of all its answers, [N] each."""
    distinct = np.array([len(set(group)) for group in groups], np.float64)
    return distinct, np.array([len(group) for group in groups], np.float64)


_pass_curve = jax.jit(pass_at_k_curve)
_hat_curve = jax.jit(pass_hat_k_curve)


@jax.jit
def _max_curve(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns max@k for k = 1..n, [N, n]."""
    ks = jnp.arange(1, rewards.shape[1] + 1)
    return jax.lax.map(lambda k: max_at_k(rewards, k, valid), ks).T


@jax.jit
def _distinct_curve(correct: jax.Array, classes: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the expected number of classes of right samples among k, for k = 1..n, [N, n]."""

    def add(total: jax.Array, one: jax.Array) -> tuple[jax.Array, None]:
        return total + pass_at_k_curve(correct & (classes == one), valid), None

    # A class is the index of a sample, so no other numbers occur.
    total, _ = jax.lax.scan(add, jnp.zeros(correct.shape), jnp.arange(correct.shape[1]))
    return total


def left_out(rewards: np.ndarray) -> int:
    """Counts the problems without any response that could be graded."""
    return int((~np.isfinite(rewards).any(-1)).sum())


def is_binary(rewards: np.ndarray) -> bool:
    """Returns whether every finite reward is 0 or 1."""
    return bool(np.isin(rewards[np.isfinite(rewards)], (0.0, 1.0)).all())


def informative_kinds(results: Sequence[Evaluation]) -> list[str]:
    """Returns the kinds of `AT_K` that say something, for a table or plots of these evaluations.

    If all rewards are 0 or 1, max@k is pass@k. So is distinct correct@k if no problem has right
    samples of two modes.
    """

    def repeats(kind: str, one: Evaluation) -> bool:
        if kind not in ("max_at", "distinct_correct"):
            return False
        ks = range(1, one.rewards.shape[1] + 1)
        pairs = [(one.terms[f"{kind}_{k}"][0], one.terms[f"pass_at_{k}"][0]) for k in ks]
        return all(np.array_equal(ours, passed) for ours, passed in pairs)

    return [kind for kind in AT_K if not all(repeats(kind, one) for one in results)]


def majority(answers: Sequence[str | None], rewards: np.ndarray) -> tuple[list[str], float]:
    """Returns the answers with the most votes, and the probability that a random one is right.

    Each response votes for its answer, even if it could not be graded; None is not a vote. An
    answer is right if its graded responses are right, and wrong if it has none.

    >>> majority(["RD", "RD", "DR", None], np.array([1.0, 1.0, 0.0, 0.0]))
    (['RD'], 1.0)
    >>> majority(["RD", "DR"], np.array([1.0, 0.0]))
    (['RD', 'DR'], 0.5)
    """
    votes = collections.Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    first = [answer for answer, count in votes.items() if count == most]
    chances = []
    for answer in first:
        matching = rewards[[other == answer for other in answers]]
        graded = matching[np.isfinite(matching)]
        chances.append((graded >= 1.0).mean() if len(graded) else 0.0)
    return first, float(np.mean(chances)) if chances else 0.0


def figures(terms: Terms) -> dict[str, float]:
    """Returns the value of each metric from its terms.

    A metric is NaN if its denominators are all zero, as those of wrong answers if all are right.

    >>> figures({"pass_at_1": (np.array([0.5, 1.0]), np.ones(2))})
    {'pass_at_1': 0.75}
    """
    sums = {name: (float(over.sum()), float(under.sum())) for name, (over, under) in terms.items()}
    return {name: over / under if under else float("nan") for name, (over, under) in sums.items()}


def intervals(terms: Terms, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Returns the 95% percentile bootstrap interval (low, high) of each metric.

    Problems are resampled with replacement. The interval covers the choice of the problems, but not
    the sampling of responses or the training run, and it is too narrow for a handful of problems.
    It is NaN if the metric is.
    """
    out = dict.fromkeys(terms, (float("nan"), float("nan")))
    known = [name for name, (_, under) in terms.items() if under.any()]
    over, under = (np.stack([terms[name][i] for name in known], -1) for i in (0, 1))
    rng, count, parts = np.random.default_rng(seed), len(over), 20
    replicates = []
    for _ in range(parts):  # The counts of all replicates at once would take too much memory.
        counts = rng.multinomial(count, np.full(count, 1.0 / count), REPLICATES // parts)
        counts = counts.astype(np.float64)
        with np.errstate(invalid="ignore"):
            replicates.append((counts @ over) / (counts @ under))
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(np.concatenate(replicates), (tail, 1.0 - tail), axis=0)
    return out | dict(zip(known, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """Returns `count` problems, or all if there are fewer, spaced evenly over the split.

    The split may be sorted, so its first problems would not represent it.
    """
    count = min(count, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def reported_ks(n: int) -> list[int]:
    """Returns the powers of two up to n, and n.

    >>> reported_ks(12)
    [1, 2, 4, 8, 12]
    """
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return sorted({*powers, n})


def k_of(name: str) -> int | None:
    """Returns the k of a metric such as pass@k or distinct correct@k, or None for any other.

    >>> k_of("pass_at_8"), k_of("pass_hat_4"), k_of("distinct_correct_2"), k_of("entropy")
    (8, 4, 2, None)
    """
    found = re.search(r"_(?:h?at|correct)_(\d+)$", name)
    return int(found[1]) if found else None


def summarize(curve: np.ndarray) -> dict[str, float]:
    """Returns {"pass_at_1": ..., "pass_at_2": ...} for the reported k of a curve [n]."""
    return {f"pass_at_{k}": float(curve[k - 1]) for k in reported_ks(len(curve))}
