"""Tests of metrics against their definitions, by hand and by brute force, and of intervals."""

import math

import jax
import numpy as np
import pytest

from pkpo_jax import parallel
from pkpo_jax.policy.sampling import Rollout
from pkpo_jax.policy.tokenizers import CharacterTokenizer
from pkpo_jax.tasks.grading import Grades
from pkpo_jax.training import evaluation
from tests import reference

# A letter stands for each reward. The letter "x" cannot be graded, and a response without a letter
# has no answer.
REWARDS = {
    "r": 1.0,
    "R": 1.0,
    "T": 1.0,
    "t": 1.0,
    "h": 0.5,
    "w": 0.0,
    "v": 0.0,
    "x": math.nan,
    "": 0.0,
}

REWARD_AND_MODE = {
    letter: (reward, "t" if letter in "Tt" else letter) for letter, reward in REWARDS.items()
}


class Letters:
    """A task, sampler and tokenizer whose responses are given in advance.

    An answer is a letter, whose reward is the one that it stands for.
    """

    alphabet = "p" + "".join(REWARDS)

    def __init__(self, *responses):
        self.responses, self.modes = responses, {}
        self.counts = [None] * len(responses)
        self.problems = [{"id": i, "prompt": "p"} for i in range(len(responses))]
        self.events = []

    def answer(self, response):
        return response[:1] or None

    def mode_of(self, problem, response):
        return self.modes.get(response[:1], response[:1])

    def mode_count(self, problem):
        return self.counts[problem["id"]]

    def grade(self, problems, responses):
        self.events.append(("grade", [problem["id"] for problem in problems]))
        rewards = [[REWARDS[text[:1]] for text in group] for group in responses]
        statuses = [[0 if text[:1] else 1 for text in group] for group in responses]
        return Grades(np.array(rewards, np.float32), np.array(statuses, np.int8))

    def evaluate(self, batch=2):
        tokenizer = CharacterTokenizer(self.alphabet)

        def sample(prompts, lengths, rows):
            rows = np.asarray(rows) % len(self.problems)
            self.events.append(("sample", rows.tolist()))
            texts = [self.responses[row] for row in rows]
            shape = (len(texts), len(texts[0]), 3)
            tokens = np.zeros(shape, np.int32)
            lengths = np.zeros(shape[:2], np.int32)
            for where in np.ndindex(shape[:2]):
                ids = [*tokenizer.encode(texts[where[0]][where[1]]), tokenizer.eos_id][:3]
                tokens[where][: len(ids)], lengths[where] = ids, len(ids)
            mask = np.arange(3) < lengths[..., None]
            finished = (tokens == tokenizer.eos_id).any(-1)
            arrays = tokens, lengths, mask, mask * -1.0, mask * 0.25, finished
            return Rollout(*map(jax.numpy.asarray, arrays))

        return evaluation.evaluate(
            sample,
            parallel.Jitted(parallel.make_mesh((1, 1, 1), jax.devices()[:1])),
            self,
            self.grade,
            tokenizer,
            self.problems,
            batch=batch,
            max_prompt=4,
        )


def test_figures_by_hand():
    found = Letters(["r", "r", "w", "wvv"], ["w", "v", "v", ""], ["r", "x", "x", ""]).evaluate()
    assert found.responses == [["r", "r", "w", "wvv"], ["w", "v", "v", ""], ["r", "x", "x", ""]]
    assert found.answers[1] == ["w", "v", "v", None]
    assert found.metrics == pytest.approx(
        {
            # The third problem has two graded responses, so its pass@k stays that of k = 2.
            "pass_at_1": (1 / 2 + 0 + 1 / 2) / 3,
            "pass_at_2": (5 / 6 + 0 + 1) / 3,
            "pass_at_4": (1 + 0 + 1) / 3,
            # The probability that two of r, r, w, w are both right is 1/6.
            "pass_hat_1": (1 / 2 + 0 + 1 / 2) / 3,
            "pass_hat_2": (1 / 6 + 0 + 0) / 3,
            "pass_hat_4": 0.0,
            "reward_mean": 3 / 10,
            # In the first problem r and w are tied, in the second v is wrong, and in the third x
            # could not be graded.
            # No problem has right responses of two modes.
            "distinct_correct_1": (1 / 2 + 0 + 1 / 2) / 3,
            "distinct_correct_2": (5 / 6 + 0 + 1) / 3,
            "distinct_correct_4": (1 + 0 + 1) / 3,
            "majority": (0.5 + 0 + 0) / 3,
            "invalid": 2 / 12,
            "distinct_answers": (2 + 2 + 2) / (4 + 3 + 3),
            "distinct_wrong": (1 + 2 + 0) / (2 + 3 + 0),
            "entropy": 0.25,
            # The three tokens of "wvv" have no stop token.
            "truncated": 1 / 12,
            "response_length": (2 * 9 + 1 * 2 + 3) / 12,
            "wrong_format": 2 / 12,
            "timeout": 0.0,
            "error": 0.0,
        }
    )


@pytest.mark.parametrize("letters", ["rw", "rwx", "rhwx"])
def test_every_k_is_the_mean_over_all_subsets(letters):
    rng = np.random.default_rng(0)
    task = Letters(*rng.choice(list(letters), (5, 6)).tolist(), ["x"] * 6)
    found = task.evaluate(batch=4)
    figures = evaluation.figures(found.terms)
    groups = [row[np.isfinite(row)].astype(np.float64) for row in found.rewards]
    groups = [group for group in groups if len(group)]
    for k in range(1, 7):
        # If a group has fewer than k graded responses, k is their number.
        passed = [reference.pass_at_k(g >= 1.0, min(k, len(g))) for g in groups]
        best = [reference.max_at_k(g, min(k, len(g))) for g in groups]
        assert figures[f"pass_at_{k}"] == pytest.approx(float(np.mean(passed)), abs=1e-6)
        assert figures[f"max_at_{k}"] == pytest.approx(float(np.mean(best)), abs=1e-6)
        # All k samples are right if none of them is wrong.
        failed = [reference.pass_at_k(g < 1.0, min(k, len(g))) for g in groups]
        hat = 1.0 - float(np.mean(failed))
        assert figures[f"pass_hat_{k}"] == pytest.approx(hat, abs=1e-6)
    assert evaluation.left_out(found.rewards) == 1
    # If all rewards are 0 or 1, max@k equals pass@k and is not among the metrics.
    shown = [f"max_at_{k}" for k in (1, 2, 4, 6) if "h" in letters]
    assert [name for name in found.metrics if name.startswith("max_at_")] == shown


@pytest.mark.parametrize("letters", ["rRw", "rRTwx", "rRTthvwx"])
def test_distinct_correct_is_the_mean_over_all_subsets(letters):
    rng = np.random.default_rng(1)
    task = Letters(*rng.choice(list(letters), (8, 6)).tolist(), ["x"] * 6)
    # Two of the right letters have one mode.
    task.modes = {"T": "t"}
    task.counts = [4] * 7 + [None, 4]
    found = task.evaluate(batch=4)
    figures = evaluation.figures(found.terms)
    groups = [[REWARD_AND_MODE[c] for c in row if c != "x"] for row in task.responses]
    groups = [group for group in groups if group]
    for k in range(1, 7):
        means = []
        for group in groups:
            sets = reference.subsets(len(group), min(k, len(group)))
            counts = [len({group[i][1] for i in s if group[i][0] >= 1.0}) for s in sets]
            means.append(np.mean(counts))
        assert figures[f"distinct_correct_{k}"] == pytest.approx(np.mean(means), abs=1e-6)
    shares = [len({m for r, m in group if r >= 1.0}) / 4 for group in groups[:7]]
    assert found.metrics["mode_coverage"] == pytest.approx(np.mean(shares))


def test_kinds_that_repeat_pass_at_k_are_not_shown():
    shown = ["pass_at", "pass_hat"]
    one, two = Letters(["r", "r", "w"]).evaluate(), Letters(["r", "R", "w"]).evaluate()
    half = Letters(["r", "h", "w"]).evaluate()
    assert evaluation.informative_kinds([one]) == shown
    assert evaluation.informative_kinds([one, two]) == [*shown, "distinct_correct"]
    assert evaluation.informative_kinds([half]) == ["pass_at", "max_at", "pass_hat"]
    assert "mode_coverage" not in one.terms


def test_a_batch_is_sampled_while_the_one_before_is_graded():
    task = Letters(*[["r", "w"]] * 5)
    task.evaluate(batch=2)
    sampled = [("sample", rows) for rows in ([0, 1], [2, 3], [4, 0])]
    graded = [("grade", rows) for rows in ([0, 1], [2, 3], [4])]
    assert task.events == [*sampled[:2], graded[0], sampled[2], *graded[1:]]


def test_figures_of_nothing_are_unknown():
    found = Letters(["x", "x"], ["x", "x"]).evaluate()
    for name in ("pass_at_1", "reward_mean", "majority", "distinct_wrong"):
        assert math.isnan(found.metrics[name])
        assert all(math.isnan(bound) for bound in evaluation.intervals(found.terms)[name])
    assert found.metrics["invalid"] == 1.0


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["a", "b", "a"], [1, 0, 1], (["a"], 1.0)),
        (["a", "b", "b"], [1, 0, 0], (["b"], 0.0)),
        (["a", "b", "c", "a", "b"], [1, 0, 0, 1, 0], (["a", "b"], 0.5)),
        (["a", "b", "c"], [1, 0, 0], (["a", "b", "c"], 1 / 3)),
        # None is not a vote, however often it occurs.
        ([None, None, None, "a"], [0, 0, 0, 1], (["a"], 1.0)),
        ([None, None], [0, 0], ([], 0.0)),
        # A vote counts even if it was not graded. The graded responses decide whether it is right.
        (["a", "a", "b"], [math.nan, 1, 0], (["a"], 1.0)),
        (["a", "a", "b"], [math.nan, math.nan, 1], (["a"], 0.0)),
        (["a", "b"], [math.inf, 1], (["a", "b"], 0.5)),
        # Only a reward of 1 is right.
        (["a", "a", "b"], [0.9, 0.9, 1], (["a"], 0.0)),
    ],
)
def test_majority(answers, rewards, expected):
    most, right = evaluation.majority(answers, np.array(rewards, np.float32))
    assert most == expected[0] and right == pytest.approx(expected[1])


def test_intervals_agree_with_a_bootstrap_written_out():
    rng = np.random.default_rng(0)
    values, counts = rng.exponential(size=60), rng.integers(0, 5, 60).astype(float)
    terms = {
        "mean": (values, np.ones(60)),
        # This metric is a ratio of sums, not a mean of ratios, and some problems do not count.
        "ratio": (values * (counts > 0), counts),
        "some": (values * (counts > 1), (counts > 1).astype(float)),
    }
    found = evaluation.intervals(terms)
    assert found == evaluation.intervals(terms) != evaluation.intervals(terms, seed=1)
    for name, (over, under) in terms.items():
        drawn = [rng.choice(60, 60) for _ in range(4000)]
        low, high = np.percentile([over[i].sum() / under[i].sum() for i in drawn], [2.5, 97.5])
        width = high - low
        assert found[name] == pytest.approx((low, high), abs=0.06 * width)


def test_intervals_hold_the_truth_95_times_in_100():
    """Checks the coverage of intervals over 2000 samples of 200 problems from a population.

    Each problem has its own pass rate.
    """
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 1.0, (200, 2000))  # Their mean is 1/3.
    passed = rng.binomial(8, rates) / 8.0
    columns = {str(i): (passed[:, i], np.ones(200)) for i in range(2000)}
    held = [low <= 1 / 3 <= high for low, high in evaluation.intervals(columns).values()]
    assert 0.93 < np.mean(held) < 0.965


def test_problems_are_spread_evenly():
    assert evaluation.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert evaluation.spread(list(range(3)), 4) == [0, 1, 2]
