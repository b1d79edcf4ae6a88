"""The estimators by brute force: every subset enumerated, in exact rationals."""

import itertools
from fractions import Fraction


def subsets(n, k):
    return list(itertools.combinations(range(n), k))


def max_at_k(rewards, k):
    """Mean over k-subsets of their maximum; 0 of an empty group."""
    chosen = subsets(len(rewards), k)
    return sum((max(rewards[i] for i in c) for c in chosen), Fraction(0)) / len(chosen)


def pass_at_k(correct, k):
    return max_at_k([Fraction(bool(c)) for c in correct], k)


def _without(rewards, i):
    return rewards[:i] + rewards[i + 1 :]


def pkpo_weights(rewards, k, baseline):
    """The definitions of the docstring of `pkpo_weights`, literally."""
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
