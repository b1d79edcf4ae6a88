"""Tests of policy losses against plain Python, and of their gradients against expectations."""

import itertools
import math
from typing import get_args

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.training import losses
from pkpo_jax.training.config import Aggregation, Loss, Policy

P, N, T = 3, 4, 5


def tokens(seed=0, **changes):
    """Returns random tokens of three groups. The last response of the first group is not valid."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, (P, N))
    valid = np.ones((P, N), bool)
    valid[0, 3] = False
    fields = {
        "log_probs": -rng.exponential(1.0, (P, N, T)),
        "entropy": rng.exponential(1.0, (P, N, T)),
        "old": -rng.exponential(1.0, (P, N, T)),
        "sampled": -rng.exponential(1.0, (P, N, T)),
        "reference": -rng.exponential(1.0, (P, N, T)),
        "mask": (np.arange(T) < lengths[..., None]) & valid[..., None],
        "weights": rng.normal(size=(P, N)) * valid,
        "sizes": np.maximum(valid.sum(-1, keepdims=True), 1.0),
    }
    cast = {
        k: jnp.asarray(v, v.dtype if v.dtype == bool else jnp.float32) for k, v in fields.items()
    }
    return losses.Tokens(**{**cast, **changes})


def by_hand(t, aggregation, per_token):
    """Computes the mean loss with the advantage n u in loops over groups, responses and tokens.

    The objective of a token is per_token(p, i, j).
    """
    mask = np.asarray(t.mask)
    groups = []
    for p in range(P):
        responses = []
        for i in range(N):
            terms = [per_token(p, i, j) for j in range(T) if mask[p, i, j]]
            if terms:
                divisor = {"sequence-mean": len(terms), "constant-length": T}.get(aggregation, 1)
                responses.append(sum(terms) / divisor)
        groups.append(sum(responses) / float(t.sizes[p, 0]))
    if aggregation == "token-mean":
        every = [
            per_token(p, i, j)
            for p, i, j in itertools.product(range(P), range(N), range(T))
            if mask[p, i, j]
        ]
        return -sum(every) / mask.sum()
    return -sum(groups) / P


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_aggregations(aggregation):
    t = tokens()
    advantages = np.asarray(t.weights * t.sizes, np.float64)
    log_probs, entropy = np.asarray(t.log_probs), np.asarray(t.entropy)
    loss = Loss(aggregation=aggregation, entropy_coef=0.3)
    expected = by_hand(
        t,
        aggregation,
        lambda p, i, j: advantages[p, i] * log_probs[p, i, j] + 0.3 * entropy[p, i, j],
    )
    ours, sums = losses.policy_loss(loss, t, P, t.mask.sum())
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(sums["entropy"], entropy[np.asarray(t.mask)].sum(), rtol=1e-5)


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_the_losses_of_parts_add_up(aggregation):
    t = tokens()
    loss = Loss("ppo", aggregation=aggregation, kl="k3", kl_coef=0.1)
    whole, _ = losses.policy_loss(loss, t, P, t.mask.sum())
    parts = [jax.tree.map(lambda x, p=p: x[p : p + 1], t) for p in range(P)]
    np.testing.assert_allclose(
        sum(losses.policy_loss(loss, x, P, t.mask.sum())[0] for x in parts), whole, rtol=1e-5
    )


def ppo(ratio, weight, low, high, dual):
    """Returns the papers' clipped objective of one token, and its derivative in log pi."""
    clipped = min(max(ratio, 1 - low), 1 + high)
    value, slope = min(
        (ratio * weight, ratio * weight), (clipped * weight, 0.0), key=lambda x: x[0]
    )
    if clipped == ratio:
        slope = ratio * weight
    if dual and weight < 0 and dual * weight > value:
        value, slope = dual * weight, 0.0
    return value, slope


@hypothesis.given(
    ratio=st.floats(0.05, 20.0),
    weight=st.floats(-3.0, 3.0),
    low=st.sampled_from([0.0, 0.2, 0.5]),
    high=st.sampled_from([0.2, 0.28, 3.0]),
    dual=st.sampled_from([0.0, 3.0]),
)
def test_ppo_clips_as_the_papers_write_it(ratio, weight, low, high, dual):
    edges = [1 - low, 1 + high, dual]
    hypothesis.assume(all(abs(ratio - edge) > 1e-3 for edge in edges))
    one = jnp.ones((1, 1, 1), bool)
    zeros = jnp.zeros((1, 1, 1))
    loss = Loss("ppo", clip_low=low, clip_high=high, dual_clip=dual)

    def objective(log_prob):
        log_probs = jnp.full((1, 1, 1), log_prob)
        old = jnp.full((1, 1, 1), -3.0)
        weights, sizes = jnp.full((1, 1), weight), jnp.ones((1, 1))
        t = losses.Tokens(log_probs, zeros, old, old, None, one, weights, sizes)
        value, sums = losses.policy_loss(loss, t, 1, 1)
        return -value, sums["clipped"]

    (value, clipped), slope = jax.value_and_grad(objective, has_aux=True)(math.log(ratio) - 3.0)
    expected, expected_slope = ppo(ratio, weight, low, high, dual)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-5)
    if abs(weight) > 1e-3:
        assert bool(clipped) == (expected_slope == 0.0)


def near(t, scale=0.3):
    """Returns tokens whose policy is near that before the update, so that some ratios are kept."""
    change = scale * jax.random.normal(jax.random.key(1), t.old.shape)
    return t._replace(old=t.log_probs + change)


def test_gspo_is_the_papers_objective_of_whole_responses():
    """Compares values and gradients with equation 5 of arXiv 2507.18071."""
    t = near(tokens())
    loss = Loss("gspo", clip_low=0.1, clip_high=0.05, aggregation="sequence-mean")

    def ours(log_probs):
        value, sums = losses.policy_loss(loss, t._replace(log_probs=log_probs), P, t.mask.sum())
        return value, sums["clipped"]

    def paper(log_probs):
        lengths = jnp.maximum(t.mask.sum(-1), 1)
        ratio = jnp.exp(jnp.where(t.mask, log_probs - t.old, 0.0).sum(-1) / lengths)
        bound = jnp.clip(ratio, 0.9, 1.05)
        objective = jnp.minimum(ratio * t.weights, bound * t.weights)
        cut = (objective < ratio * t.weights) & t.mask.any(-1)
        return -objective.sum() / P, jnp.where(cut, t.mask.sum(-1), 0).sum()

    value, slope = jax.value_and_grad(ours, has_aux=True)(t.log_probs)
    expected, expected_slope = jax.value_and_grad(paper, has_aux=True)(t.log_probs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-4, atol=1e-6)
    assert 0 < value[1] < t.mask.sum()


def test_cispo_weighs_log_probs_with_the_clipped_ratio():
    """Compares values and gradients with equations 4 and 5 of arXiv 2506.13585."""
    t = near(tokens(), 1.0)
    loss = Loss("cispo", clip_low=1.0, clip_high=0.5, aggregation="token-mean")
    ratio = np.minimum(np.exp(np.asarray(t.log_probs - t.old, np.float64)), 1.5)
    factor = ratio * np.asarray(t.weights * t.sizes, np.float64)[..., None]

    def ours(log_probs):
        return losses.policy_loss(loss, t._replace(log_probs=log_probs), P, t.mask.sum())

    (value, sums), slope = jax.value_and_grad(ours, has_aux=True)(t.log_probs)
    per_token = lambda p, i, j: factor[p, i, j] * float(t.log_probs[p, i, j])  # noqa: E731
    np.testing.assert_allclose(value, by_hand(t, "token-mean", per_token), rtol=1e-5)
    mask = np.asarray(t.mask)
    np.testing.assert_allclose(slope, np.where(mask, -factor / mask.sum(), 0.0), rtol=1e-4)
    assert sums["clipped"] == (ratio == 1.5)[mask].sum() > 0


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_all_policy_losses_have_one_gradient_before_the_policy_moves(aggregation):
    t = tokens()._replace(old=tokens().log_probs)

    def slope(policy):
        loss = Loss(policy, aggregation=aggregation)
        return jax.grad(
            lambda x: losses.policy_loss(loss, t._replace(log_probs=x), P, t.mask.sum())[0]
        )(t.log_probs)

    reinforce = slope("reinforce")
    assert (reinforce != 0).any()
    for policy in get_args(Policy):
        np.testing.assert_allclose(slope(policy), reinforce, rtol=1e-6, err_msg=policy)


LOGITS, REFERENCE = jnp.array([0.3, -1.0, 0.8, 0.1]), jnp.array([-0.5, 0.2, 0.4, 1.5])


def kl(a, b):
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(p) * (p - q)).sum()


def expected_gradient(kind):
    """Returns the mean gradient of the estimate over tokens sampled from the policy."""
    drawn = jax.nn.softmax(LOGITS)

    def estimates(logits):
        return losses.divergence(kind, jax.nn.log_softmax(logits), jax.nn.log_softmax(REFERENCE))

    return drawn @ jax.jacobian(estimates)(LOGITS)


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [
        ("k1", jnp.zeros(4)),
        ("k2", jax.grad(kl)(LOGITS, REFERENCE)),
        ("k3", jax.grad(kl, argnums=1)(REFERENCE, LOGITS)),
    ],
)
def test_what_the_gradient_of_each_divergence_is(kind, gradient):
    np.testing.assert_allclose(expected_gradient(kind), gradient, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        (dict(guide_strength=0.0), 1.0),
        (dict(guide_strength=0.3, guide_entropy=0.5), None),
        (dict(guide_strength=9.0, guide_entropy=0.5), 1.4),
        (dict(guide_strength=-9.0, guide_entropy=0.5), 0.6),
        (dict(guide_strength=0.3, guide_entropy=5.0), 1.0),
    ],
)
def test_sage_has_a_multiple_of_the_gradient_of_the_forward_divergence(options, factor):
    """Takes the mean of the loss's gradient over one-token responses of the policy."""
    loss = Loss(kl="sage", kl_coef=0.7, **options)
    reference = jax.nn.log_softmax(REFERENCE)

    def value(logits, token):
        log_p, one = jax.nn.log_softmax(logits), jnp.ones((1, 1, 1))
        entropy = -(jnp.exp(log_p) * log_p).sum()
        t = losses.Tokens(
            log_probs=log_p[token] * one,
            entropy=entropy * one,
            old=log_p[token] * one,
            sampled=log_p[token] * one,
            reference=reference[token] * one,
            mask=one > 0,
            weights=jnp.zeros((1, 1)),
            sizes=jnp.ones((1, 1)),
        )
        return losses.policy_loss(loss, t, 1, 1)[0]

    p = jax.nn.softmax(LOGITS)
    mean = p @ jax.vmap(jax.grad(value), (None, 0))(LOGITS, jnp.arange(4))
    if factor is None:
        factor = 1 + 0.3 * (-(p * jnp.log(p)).sum() - 0.5)
        assert factor > 1.1
    forward = jax.grad(kl, argnums=1)(REFERENCE, LOGITS)
    np.testing.assert_allclose(mean, 0.7 * factor * forward, atol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_divergences(kind):
    log_p, log_q = jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(REFERENCE)
    mean = (jnp.exp(log_p) * losses.divergence(kind, log_p, log_q)).sum()
    np.testing.assert_allclose(mean, kl(LOGITS, REFERENCE), rtol=1e-5)


def test_in_the_reward_the_gradient_is_that_of_the_divergence():
    """Tests REINFORCE on rewards minus the log-ratio, in expectation over one-token responses."""
    loss = Loss(kl="k1", kl_coef=0.7, kl_in_reward=True)
    log_p, log_q = jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(REFERENCE)
    rewards = jnp.array([1.0, 0.0, 0.5, 0.0])

    def penalised(i):
        one = jnp.ones((1, 1, 1))
        return losses.penalised(loss, rewards[i] * one[0], log_p[i] * one, log_q[i] * one, one > 0)[
            0, 0
        ]

    reinforce = sum(
        jnp.exp(log_p[i]) * penalised(i) * jax.grad(lambda x, i=i: jax.nn.log_softmax(x)[i])(LOGITS)
        for i in range(4)
    )
    objective = lambda x: jax.nn.softmax(x) @ rewards - 0.7 * kl(x, REFERENCE)  # noqa: E731
    np.testing.assert_allclose(reinforce, jax.grad(objective)(LOGITS), atol=1e-6)


def test_divergence_and_importance_in_the_loss():
    t = tokens()
    loss = Loss(kl="k2", kl_coef=0.5, importance_cap=2.0)
    log_probs, sampled, old, reference = map(
        np.asarray, (t.log_probs, t.sampled, t.old, t.reference)
    )
    weights = np.asarray(t.weights)
    sizes = np.asarray(t.sizes)

    def per_token(p, i, j):
        ratio = min(math.exp(old[p, i, j] - sampled[p, i, j]), 2.0)
        policy = ratio * sizes[p, 0] * weights[p, i] * log_probs[p, i, j]
        return policy - 0.5 * 0.5 * (log_probs[p, i, j] - reference[p, i, j]) ** 2

    ours, sums = losses.policy_loss(loss, t, P, t.mask.sum())
    np.testing.assert_allclose(ours, by_hand(t, "sequence-sum", per_token), rtol=1e-5)
    mask = np.asarray(t.mask)
    np.testing.assert_allclose(sums["kl"], (log_probs - reference)[mask].sum(), rtol=1e-4)


@pytest.mark.parametrize("gap", [-1000.0, -100.0, 100.0, 1000.0])
@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
@pytest.mark.parametrize("weight", [-1.0, 0.0, 1.0])
def test_huge_log_ratios_are_clamped_and_counted(gap, dual_clip, weight):
    """Checks that a token whose log-ratio is `gap` does not affect the other token."""
    one = jnp.ones((1, 1, 2))
    log_probs = -one
    odd = jnp.array([[[gap, 0.0]]])
    loss = Loss("ppo", dual_clip=dual_clip, kl="k3", kl_coef=0.1, importance_cap=2.0)

    def value(log_probs, odd):
        t = losses.Tokens(
            log_probs=log_probs,
            entropy=one,
            old=-one - odd,
            sampled=-one - odd + odd,
            reference=-one - odd,
            mask=one > 0,
            weights=jnp.full((1, 1), weight),
            sizes=jnp.ones((1, 1)),
        )
        return losses.policy_loss(loss, t, 1, 2)

    gradient, sums = jax.grad(value, has_aux=True)(log_probs, odd)
    total, _ = value(log_probs, odd)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert np.isfinite(list(sums.values())).all() and sums["clamped"] == 1
    near, sums = jax.grad(value, has_aux=True)(log_probs, jnp.zeros_like(odd))
    assert gradient[0, 0, 1] == near[0, 0, 1] and sums["clamped"] == 0


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_a_divergence_of_rounding_size_has_no_gradient(kind):
    """Checks that the gradient is zero, since Adam would scale it up to a whole step."""
    reference = jnp.array([-1.0, -2.0, -3.0])
    gradient = jax.grad(lambda x: losses.divergence(kind, x, reference).sum())
    near = reference + jnp.array([2e-6, -5e-6, 0.0])
    np.testing.assert_array_equal(gradient(near), np.zeros(3))
    np.testing.assert_allclose(gradient(reference + 1e-3), np.full(3, 1e-3), rtol=1e-2)


@pytest.mark.parametrize("policy", get_args(Policy))
def test_what_stands_off_the_mask_is_never_seen(policy):
    """Checks that huge values off the mask, whose ratios overflow, change no loss or gradient."""
    t = tokens()
    loss = Loss(policy, kl="k3", kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0)

    def value(log_probs, t):
        return losses.policy_loss(loss, t._replace(log_probs=log_probs), P, t.mask.sum())[0]

    huge = {
        name: jnp.where(t.mask, getattr(t, name), -1e30)
        for name in ("old", "sampled", "reference", "entropy")
    }
    clean = jax.value_and_grad(value)(t.log_probs, t)
    dirty = jax.value_and_grad(value)(t.log_probs, t._replace(**huge))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
