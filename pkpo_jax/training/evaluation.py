"""Evaluation: every figure from one pass of n samples a problem, with intervals over problems."""

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
from pkpo_jax.training import data

REPLICATES, CONFIDENCE = 2000, 0.95
# The metrics that there are for every k: how their names start, and how they are written.
AT_K = {"pass_at": "pass@k", "max_at": "max@k", "pass_hat": "pass^k"}

# Of each figure, a numerator and a denominator a problem, [N] each; it is the ratio of their sums.
Terms = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Evaluation(NamedTuple):
    """Samples of held-out problems, graded.

    Attributes:
      problems: N problems; responses: n texts of each; rewards: [N, n] float32.
      metrics: figures by name, pass@k and pass^k for the k of `reported_ks` among them; max@k
        too, where rewards are not 0 and 1.
      answers: what of each response is its answer, None for none.
      terms: what the figures, and those for the other k, consist of; `intervals` takes it.
    """

    problems: list[Problem]
    responses: list[list[str]]
    rewards: np.ndarray
    metrics: dict[str, float]
    answers: list[list[str | None]]
    terms: Terms


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
    """Samples and grades `problems`, `batch` at a time; the last batch is filled up and cut.

    A batch is graded while the next one is sampled. Each process grades its own rows, and all
    return the same.

    Args:
      sample: from prompts [batch, max_prompt], lengths [batch] and row numbers [batch], placed on
        `devices`, to a Rollout.
      grade: from P problems and n responses to each, to `Grades`; responses whose reward is not
        finite are left out, and counted.
      progress: whether the first process shows a bar.
    """
    problems = list(problems)

    def sampled() -> Iterator[tuple[list[Problem], Rollout]]:
        for start in range(0, len(problems), batch):
            numbers = np.arange(start, start + batch, dtype=np.int32)
            # Filled up with the first problems, for a smaller batch would compile again.
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
    entropy, tokens, finished = np.concatenate(counts, -1)
    n = np.full(len(problems), rewards.shape[1], np.float64)
    terms = {
        **_reward_terms(rewards, answers),
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
    return Evaluation(problems, responses, rewards, metrics, answers, terms)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each once the next one is asked for: devices compute while the host does."""
    before = next(items)
    for item in items:
        yield before
        before = item
    yield before


def _reward_terms(rewards: np.ndarray, answers: Sequence[Sequence[str | None]]) -> Terms:
    """A problem without a graded sample counts for "invalid" alone."""
    n = rewards.shape[1]
    valid = np.isfinite(rewards)
    graded = valid.sum(-1, dtype=np.float64)
    solvable = np.asarray(valid.any(-1), np.float64)
    passed = np.asarray(_pass_curve(rewards >= 1.0, valid), np.float64)
    # The two are the same for rewards of 0 and 1.
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
        # arXiv 2508.10751.
        "distinct_wrong": _distinct(wrong),
    }


def _distinct(groups: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    distinct = np.array([len(set(group)) for group in groups], np.float64)
    return distinct, np.array([len(group) for group in groups], np.float64)


_pass_curve = jax.jit(pass_at_k_curve)
_hat_curve = jax.jit(pass_hat_k_curve)


@jax.jit
def _max_curve(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """[N, n] max@k for k = 1..n."""
    ks = jnp.arange(1, rewards.shape[1] + 1)
    return jax.lax.map(lambda k: max_at_k(rewards, k, valid), ks).T


def left_out(rewards: np.ndarray) -> int:
    """How many problems have no response that could be graded."""
    return int((~np.isfinite(rewards).any(-1)).sum())


def is_binary(rewards: np.ndarray) -> bool:
    """Whether every reward that was given is 0 or 1."""
    return bool(np.isin(rewards[np.isfinite(rewards)], (0.0, 1.0)).all())


def majority(answers: Sequence[str | None], rewards: np.ndarray) -> tuple[list[str], float]:
    """The answers with the most votes, and the chance that one drawn among them is right.

    None is no vote. A vote needs no grade, so a response that could not be graded has one; an
    answer is right if the responses with it that were graded are, and wrong if none was.

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
        those = rewards[[other == answer for other in answers]]
        graded = those[np.isfinite(those)]
        chances.append((graded >= 1.0).mean() if len(graded) else 0.0)
    return first, float(np.mean(chances)) if chances else 0.0


def figures(terms: Terms) -> dict[str, float]:
    """The figures; NaN for one that nothing was counted for, as wrong answers where all are right.

    >>> figures({"pass_at_1": (np.array([0.5, 1.0]), np.ones(2))})
    {'pass_at_1': 0.75}
    """
    sums = {name: (float(over.sum()), float(under.sum())) for name, (over, under) in terms.items()}
    return {name: over / under if under else float("nan") for name, (over, under) in sums.items()}


def intervals(terms: Terms, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The 95% percentile bootstrap interval of each figure, problems drawn with replacement.

    It says what other problems would have given, not what other samples of these or another
    training run would; it is too narrow on a handful of problems. NaN where the figure is.
    """
    out = dict.fromkeys(terms, (float("nan"), float("nan")))
    known = [name for name, (_, under) in terms.items() if under.any()]
    over, under = (np.stack([terms[name][i] for name in known], -1) for i in (0, 1))
    rng, count, parts = np.random.default_rng(seed), len(over), 20
    replicates = []
    for _ in range(parts):  # How often each problem is drawn is held for a part at a time.
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), REPLICATES // parts)
        drawn = drawn.astype(np.float64)
        with np.errstate(invalid="ignore"):
            replicates.append((drawn @ over) / (drawn @ under))
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.nanquantile(np.concatenate(replicates), (tail, 1.0 - tail), axis=0)
    return out | dict(zip(known, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def spread(problems: Sequence[Problem], count: int) -> list[Problem]:
    """`count` problems, or all if there are fewer, evenly over a split that may be sorted."""
    count = min(count, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def reported_ks(n: int) -> list[int]:
    """The powers of two up to n, and n.

    >>> reported_ks(12)
    [1, 2, 4, 8, 12]
    """
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return sorted({*powers, n})


def k_of(name: str) -> int | None:
    """Returns the k of a metric such as pass@k, pass^k or max@k, None for any other.

    >>> k_of("pass_at_8"), k_of("pass_hat_4"), k_of("entropy")
    (8, 4, None)
    """
    found = re.search(r"_h?at_(\d+)$", name)
    return int(found[1]) if found else None


def summarize(curve: np.ndarray) -> dict[str, float]:
    """{"pass_at_1": ..., "pass_at_2": ...} for the reported k of a curve [n]."""
    return {f"pass_at_{k}": float(curve[k - 1]) for k in reported_ks(len(curve))}
