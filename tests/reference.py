"""The estimators by brute force, which enumerates every subset in exact rationals.

For groups that are too large to enumerate, there are formulas on sorted rewards in big integers.
"""

import itertools
import math
import statistics
from fractions import Fraction


def subsets(n, k):
    return list(itertools.combinations(range(n), k))


def max_at_k(rewards, k):
    """Returns the mean over k-subsets of their maximum."""
    chosen = subsets(len(rewards), k)
    return sum((max(rewards[i] for i in c) for c in chosen), Fraction(0)) / len(chosen)


def pass_at_k(correct, k):
    return max_at_k([Fraction(bool(c)) for c in correct], k)


def _without(rewards, i):
    return rewards[:i] + rewards[i + 1 :]


def pkpo_weights(rewards, k, baseline):
    """Computes the definitions in the docstring of `pkpo_weights` literally."""
    rewards = [Fraction(r) for r in rewards]
    n = len(rewards)
    everything = subsets(n, k)
    weights = []
    for i in range(n):
        holding = [c for c in everything if i in c]
        s = sum(max(rewards[j] for j in c) for c in holding) / Fraction(len(everything))
        if baseline == "none":
            weights.append(s)
        elif baseline == "loo":
            weights.append(s - Fraction(k, n - 1) * max_at_k(_without(rewards, i), k))
        elif baseline == "centered" or k == 1:
            q = Fraction(n, k) * s
            weights.append(Fraction(k, n) * (q - max_at_k(_without(rewards, i), k)))
        else:
            assert baseline == "loo_minus_one"
            gained = [
                max(rewards[j] for j in c) - max(rewards[j] for j in c if j != i) for c in holding
            ]
            weights.append(sum(gained) / Fraction(len(everything)))
    return weights


def passk_training(correct, k, method):
    """Computes Pass@k Training (arXiv 2508.10751) from its definitions, in exact ratios."""
    n, right = len(correct), sum(correct)
    wrong = n - right
    if method == "full":
        groups = [list(range(g * k, g * k + k)) for g in range(n // k)]
        best = [max(correct[i] for i in group) for group in groups]
        deviation = statistics.pstdev(best)
        advantages = [0.0] * n
        for group, reward in zip(groups, best, strict=True):
            for i in group:
                mean = statistics.mean(best)
                advantages[i] = (reward - mean) / deviation if deviation else 0.0
        return advantages
    if method == "exceeding":
        factor = 4 / (10 * math.log(right + 0.5)) if right else 0.0
        return [factor * a for a in passk_training(correct, k, "analytical")]
    if method == "combination":
        rate = right / n
        pairs = zip(
            passk_training(correct, k, "analytical"),
            passk_training(correct, 1, "analytical"),
            strict=True,
        )
        return [rate * a + (1 - rate) * b for a, b in pairs]
    assert method == "analytical"
    if right == 0 or wrong < k:
        return [0.0] * n
    mean = 1 - Fraction(math.comb(wrong, k), math.comb(n, k))
    sigma = math.sqrt(mean * (1 - mean))
    all_wrong = Fraction(math.comb(wrong - 1, k - 1), math.comb(n - 1, k - 1))
    return [float(1 - mean) / sigma if c else float(1 - mean - all_wrong) / sigma for c in correct]


def off_policy_weights(rewards, k, ratios):
    """Sums over every subset, with the product over its other samples expanded to first order."""
    n = len(rewards)
    if k == 1:
        rloo = pkpo_weights(rewards, 1, "loo_minus_one")
        return [r * float(w) for r, w in zip(ratios, rloo, strict=True)]
    weights = []
    for i in range(n):
        total = Fraction(0)
        for c in subsets(n, k):
            if i in c:
                others = [j for j in c if j != i]
                gained = max(rewards[j] for j in c) - max(rewards[j] for j in others)
                total += (1 + sum(ratios[j] - 1 for j in others)) * gained
        weights.append(ratios[i] * total / math.comb(n, k))
    return weights


def large_pkpo_weights(ordered, k, baseline):
    """Computes `pkpo_weights` of ascending integer rewards by counting subsets, in O(n) operations.

    Of the k-subsets with the sample of rank i, C(i-1, k-1) have it as their maximum, and
    C(j-2, k-2) have the sample of rank j > i. The integers are exact, and Python rounds the
    quotient of two integers correctly.
    """
    n = len(ordered)
    if baseline == "loo_minus_one" and k > 1:
        below, weights = 0, []
        for i, g in enumerate(ordered, 1):
            weights.append((math.comb(i - 1, k - 1) * g - below) / math.comb(n, k))
            below += math.comb(i - 1, k - 2) * g
        return weights
    held = _sums_of_maxima_with_each(ordered, k)
    total, everything = sum(math.comb(i, k - 1) * g for i, g in enumerate(ordered)), math.comb(n, k)
    if baseline == "none":
        return [h / everything for h in held]
    rest = math.comb(n - 1, k)
    left = [total - h for h in held]
    if baseline == "loo":
        return [
            (h * (n - 1) * rest - k * x * everything) / (everything * (n - 1) * rest)
            for h, x in zip(held, left, strict=True)
        ]
    return [
        (h * n * rest - k * x * everything) / (everything * n * rest)
        for h, x in zip(held, left, strict=True)
    ]


def _sums_of_maxima_with_each(ordered, k):
    above, sums = 0, []
    for i in range(len(ordered), 0, -1):
        g = ordered[i - 1]
        sums.append(math.comb(i - 1, k - 1) * g + above)
        above += math.comb(i - 2, k - 2) * g if k >= 2 and i >= 2 else 0
    return sums[::-1]


def shapley(value, n):
    """Averages the marginal contribution of each of n players over all orders, in rationals."""
    shares = [Fraction(0)] * n
    for order in itertools.permutations(range(n)):
        for place, i in enumerate(order):
            shares[i] += value(order[: place + 1]) - value(order[:place])
    return [share / math.factorial(n) for share in shares]


def subset_weights(score, n, k):
    """Returns (k/n) (mean score of the k-subsets that hold i - mean of those that do not)."""
    scores = {c: Fraction(score(c)) for c in subsets(n, k)}
    weights = []
    for i in range(n):
        held = [x for c, x in scores.items() if i in c]
        rest = [x for c, x in scores.items() if i not in c]
        weights.append(Fraction(k, n) * (sum(held) / len(held) - sum(rest) / len(rest)))
    return weights


def edas(advantages, correct, classes, alpha=0.4, beta=0.2, kappa=2.0):
    """Computes EDAS (arXiv 2605.17333) sample by sample."""
    wrong = [i for i, c in enumerate(correct) if not c]
    changed = [float(a) for a in advantages]
    if len(wrong) <= 1:
        return changed
    size = statistics.fmean(abs(advantages[i]) for i in wrong)
    share = {c: sum(classes[i] == c for i in wrong) / len(wrong) for c in classes}
    found = {classes[i] for i in wrong}
    entropy = sum(-share[c] * math.log(share[c]) for c in found)
    for i in wrong:
        if len(found) == 1:
            delta = -beta * size
        else:
            surprise = -math.log(share[classes[i]])
            delta = alpha * size * (surprise - entropy) / math.log(len(wrong))
        change = min(abs(delta), abs(advantages[i]) / kappa)
        changed[i] += math.copysign(change, delta) if delta else 0.0
    return changed


def rarity(advantages, correct, classes, power=0.8, smallest=0.3, largest=3.0):
    """Computes the rarity factors of right answers sample by sample."""
    right = [i for i, c in enumerate(correct) if c]
    sizes = [sum(classes[j] == classes[i] for j in right) for i in right]
    factors = [size**-power for size in sizes]
    mean = statistics.fmean(factors) if factors else 1.0
    factors = [min(max(f / mean, smallest), largest) for f in factors]
    mean = statistics.fmean(factors) if factors else 1.0
    changed = [float(a) for a in advantages]
    for i, factor in zip(right, factors, strict=True):
        changed[i] *= factor / mean
    return changed
