"""Public implementations of weights for pass@k, each with the fault it is known for, beside ours.

They are rewritten from their formulas, in the plainest form, for one group at a time.
"""

import itertools
import math

import numpy as np
import pytest

import pkpo_jax as pkpo

N = 6
GROUPS = [[0.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0.5, -1.0, 2.0, 2.0, 0.0, 0.25], [0.0] * 5 + [1.0]]
BINARY = [GROUPS[0], GROUPS[2], [1.0] * 5 + [0.0], [0.0] * N, [1.0] * N]


def shares(g, k):
    """Returns s of the PKPO paper, equation 19: a sample's share of the maxima of k-subsets."""
    n, order = len(g), np.argsort(g, kind="stable")
    chances = np.zeros((n, n))
    for i in range(n):
        chances[i, i] = math.comb(i, k - 1) / max(math.comb(n, k), 1)
        for j in range(i + 1, n):
            chances[i, j] = math.comb(j - 1, k - 2) / max(math.comb(n, k), 1) if k > 1 else 0.0
    result = np.empty(n)
    result[order] = chances @ np.asarray(g)[order]
    return result


def paper_listing(g, k, baseline):
    """Follows the listing of "Pass@K Policy Optimization" (arXiv 2505.15201).

    It has rho_m of a group as the sum of its shares over m, and divides by m = k - 1.
    """
    n, size = len(g), k if baseline == "loo" else k - 1
    sums = np.array([shares(g[:i] + g[i + 1 :], size).sum() if size else 0.0 for i in range(n)])
    if baseline == "loo":
        return shares(g, k) - sums / (n - 1)
    with np.errstate(invalid="ignore"):
        return shares(g, k) - k / n * (sums / np.float64(k - 1))


def rllm(g, k):
    """Subtracts the mean of the group from the shares, as "pkpo" of rllm-org/rllm#743 does."""
    return shares(g, k) - shares(g, k).mean()


def passk_training(rewards, k):
    """Computes the analytical advantages as Passk_Training, the code of arXiv 2508.10751."""
    rewards = np.array(rewards)
    n, right = len(rewards), int((rewards == 1).sum())
    mean = 1 - math.comb(n - right, k) / math.comb(n, k)
    sigma = math.sqrt(mean * (1 - mean)) + 1e-6
    wrong = math.comb(n - right - 1, k - 1) / math.comb(n - 1, k - 1) if right < n else 0.0
    # Samples are looked for by their value, in two passes.
    advantages = np.where(rewards == 1, (1 - mean) / sigma, rewards)
    return np.where(advantages == 0, (1 - mean - wrong) / sigma, advantages)


def easy_r1(rewards):
    """Writes the lead of the best sample over its reward, as hiyouga/EasyR1 did until #585."""
    result, order = np.array(rewards), np.argsort(rewards)
    lead = rewards[order[-1]] - rewards[order[-2]]
    result[order[-1]] = lead / (np.std(rewards, ddof=1) + 1e-6)
    return result


def verl(rewards):
    """Returns the lead of the best sample, as "grpo_passk" of verl without its deviation."""
    result, order = np.zeros(len(rewards)), np.argsort(rewards)
    result[order[-1]] = rewards[order[-1]] - rewards[order[-2]]
    return result


def ordergrad(g, k):
    """Subtracts the mean without a sample from that with it, as paavo5/ordergrad does."""
    n = len(g)
    if k > n - 1:
        raise ValueError("Leave-one-out requires k <= N-1")
    held = shares(g, k) * n / k
    left = [shares(g[:i] + g[i + 1 :], k).sum() / k for i in range(n)]
    return held - np.array(left)


def maxrl(rewards):
    """Divides centred rewards by their mean, as tajwarfahim/maxrl, prime-rl and SkyRL do."""
    rewards = np.array(rewards)
    mean = rewards.mean()
    return (rewards - mean) / mean if mean else np.zeros(len(rewards))


def tailrl(rewards):
    """Divides each gap by the number of samples that clear it, as the code of arXiv 2609.02987."""
    order, n = np.argsort(rewards, kind="stable"), len(rewards)
    gaps = np.diff(np.array(rewards)[order], prepend=0.0)
    result = np.empty(n)
    result[order] = n * np.cumsum(gaps / np.arange(n, 0, -1))
    return result - result.mean()


def cue(correct, classes):
    """Returns the factors of Cue-GRPO (arXiv 2608.03467) as a public port has them."""
    correct, classes = np.array(correct) == 1, np.array(classes)
    factors = np.ones(len(correct))
    if correct.sum() >= 2:
        sizes = np.array([(correct & (classes == c)).sum() for c in classes[correct]])
        rarity = sizes**-0.8
        clipped = np.clip(len(sizes) * rarity / rarity.sum(), 0.3, 3.0)
        factors[correct] = clipped * len(sizes) / clipped.sum()
    return factors


def poly_epo(rewards, classes, k):
    """Returns the marginal advantages of Poly-EPO (arXiv 2604.17654) as a public port has them."""
    subsets = [list(s) for s in itertools.combinations(range(len(rewards)), k)]
    rewards, classes = np.array(rewards), np.array(classes)
    scores = np.array([rewards[s].mean() * len(set(classes[s])) / k for s in subsets])
    held = [scores[[i in s for s in subsets]].mean() for i in range(len(rewards))]
    return np.array(held) - scores.mean()


@pytest.mark.parametrize("g", GROUPS)
def test_the_papers_listing_is_nan_at_k_1_and_lacks_a_baseline_at_k_n(g):
    for k in range(2, N + 1):
        np.testing.assert_allclose(
            pkpo.pkpo_weights(g, k), paper_listing(g, k, "loo_minus_one"), atol=1e-6
        )
    for k in range(1, N):
        ours = pkpo.pkpo_weights(g, k, baseline="loo")
        np.testing.assert_allclose(ours, paper_listing(g, k, "loo"), atol=1e-6)
    assert np.isnan(paper_listing(g, 1, "loo_minus_one")).all()
    np.testing.assert_allclose(pkpo.pkpo_weights(g, 1), pkpo.rloo_advantages(g) / N, atol=1e-6)
    np.testing.assert_array_equal(paper_listing(g, N, "loo"), shares(g, N))
    with pytest.raises(ValueError, match="k=6; expected 1 <= k <= 5"):
        pkpo.pkpo_weights(g, N, baseline="loo")


@pytest.mark.parametrize("g", GROUPS)
def test_rllm_is_too_small_by_n_minus_k_over_n_and_0_at_k_n(g):
    for k in range(1, N):
        ours = np.asarray(pkpo.pkpo_weights(g, k, baseline="centered"))
        np.testing.assert_allclose(rllm(g, k), (N - k) / N * ours, atol=1e-6)
    np.testing.assert_allclose(rllm(g, N), np.zeros(N), atol=1e-12)
    assert pkpo.pkpo_weights(GROUPS[2], N).tolist() == GROUPS[2]


def test_passk_training_leaves_credit_on_wrong_answers_that_are_not_0():
    for g in BINARY:
        for k in range(1, N + 1):
            ours = pkpo.passk_training_advantages(g, k)
            np.testing.assert_allclose(ours, passk_training(g, k), atol=1e-5)
    rewards = [1.0, 0.5, 0.0, 0.0, 0.0, -1.0]
    assert passk_training(rewards, 2)[[1, 5]].tolist() == [0.5, -1.0]
    with pytest.raises(ValueError, match=r"correct holds 0.5; expected 0 or 1"):
        pkpo.passk_training_advantages(rewards, 2)


@pytest.mark.parametrize("g", GROUPS)
def test_easy_r1_leaves_credit_on_the_losers(g):
    ours, theirs = np.asarray(pkpo.tang_weights(g)), easy_r1(g)
    losers = np.arange(N) != np.argsort(g)[-1]
    assert not ours[losers].any()
    np.testing.assert_array_equal(theirs[losers], np.array(g)[losers])


@pytest.mark.parametrize("g", GROUPS)
def test_verl_takes_weights_that_add_up_for_advantages_that_are_averaged(g):
    """Shows the factor n that is missing between them, so that its steps are too small."""
    np.testing.assert_allclose(pkpo.tang_weights(g), verl(g), atol=1e-6)
    np.testing.assert_allclose(pkpo.pkpo_weights(g, N), verl(g), atol=1e-6)
    advantages = N * np.asarray(pkpo.pkpo_weights(g, N))
    np.testing.assert_allclose(advantages, N * verl(g), atol=1e-5)
    # At k = 1 the advantages that trainers average have no such factor, and k may be annealed.
    np.testing.assert_allclose(N * pkpo.pkpo_weights(g, 1), pkpo.rloo_advantages(g), atol=1e-6)


@pytest.mark.parametrize("g", GROUPS)
def test_ordergrad_drops_k_over_n_and_refuses_k_n(g):
    for k in range(1, N):
        ours = pkpo.pkpo_weights(g, k, baseline="centered")
        np.testing.assert_allclose(ours, k / N * ordergrad(g, k), atol=1e-6)
        np.testing.assert_allclose(ours, pkpo.top_mean_weights(g, k, top=1), atol=1e-6)
    with pytest.raises(ValueError, match="requires k <= N-1"):
        ordergrad(g, N)
    assert np.isfinite(pkpo.pkpo_weights(g, N)).all()


def test_maxrl_divides_by_a_mean_near_0_and_is_0_for_one_sample():
    for g in BINARY:
        np.testing.assert_allclose(pkpo.maxrl_advantages(g), maxrl(g), atol=1e-5)
    near = [-1.0, 1.0 + 6e-6, 0.0, 0.0, 0.0, 0.0]
    assert np.abs(maxrl(near)).max() > 1e5
    assert np.abs(pkpo.tailrl_advantages(near)).max() < 2 * N
    with pytest.raises(ValueError, match="correct holds -1"):
        pkpo.maxrl_advantages(near)
    # The sum over k = 1..n-1 is empty for one sample; the weights of all k have no baseline there.
    assert maxrl([1.0]).tolist() == [0.0] == pkpo.maxrl_advantages([1.0]).tolist()
    assert pkpo.shapley_weights([1.0]).tolist() == [1.0]


def test_maxrl_needs_1_over_n_where_a_trainer_adds_samples_up():
    """Shows the 1/n of the paper's step 8, which tajwarfahim/maxrl#1 misses in the code."""
    for g in BINARY[:3]:
        centred = np.asarray(pkpo.shapley_weights(g) - np.mean(pkpo.shapley_weights(g)))
        np.testing.assert_allclose(maxrl(g) / N, centred, atol=1e-6)


@pytest.mark.parametrize("g", GROUPS)
def test_tailrl_is_its_code(g):
    np.testing.assert_allclose(pkpo.tailrl_advantages(g), tailrl(g), atol=1e-5)


@pytest.mark.parametrize("correct", BINARY)
def test_scores_of_classes_are_those_of_ports(correct):
    for classes in ([0, 0, 1, 2, 1, 0], [3] * N, list(range(N))):
        ours = pkpo.rarity_advantages(correct, correct, classes)
        np.testing.assert_allclose(ours, correct * cue(correct, classes), atol=1e-6)
        for k in range(1, N):
            ours = (N - k) / k * np.asarray(pkpo.poly_epo_weights(correct, classes, k))
            np.testing.assert_allclose(ours, poly_epo(correct, classes, k), atol=1e-6)
    # One answer beside eleven equal ones is so rare that its factor is clipped.
    correct, classes = [1.0] * 12, [0] * 11 + [1]
    ours = pkpo.rarity_advantages(correct, correct, classes)
    np.testing.assert_allclose(ours, cue(correct, classes), atol=1e-5)
