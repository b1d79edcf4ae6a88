"""Tests of the update's gradient against the exact one, by enumerating every response."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pkpo_jax import parallel
from pkpo_jax.policy import gemma, sampling, scoring
from pkpo_jax.training import step
from pkpo_jax.training.config import Loss
from pkpo_jax.training.state import TrainState
from tests.policy import small

DEVICES = parallel.Jitted(parallel.make_mesh((1, 1, 1)))
# There are tokens 1 (the stop token), 2 and 3, and seven responses of up to two tokens.
CONFIG = dataclasses.replace(small.CONFIG, num_embed=8, vocab_size=4)
RESPONSES = [[1, 0], *([a, b] for a in (2, 3) for b in (1, 2, 3))]
REWARDS = [0.0, 1.0, 0.25, 1.0, 0.0, -0.5, 0.25]


def test_outcomes_are_all_there_are():
    model, params = small.policy(CONFIG)
    p = probabilities(model, params, jnp.array([[2, 3, 2]]), jnp.array([3]))
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model, params, prompt, length):
    responses = jnp.array(RESPONSES)[None]
    log_probs, _ = scoring.score(model, params, prompt, length, responses)
    return jnp.exp(jnp.where(responses > 0, log_probs, 0.0).sum(-1))[0]


def max_at_k(p, rewards, k):
    """Returns the expected best reward of k samples, from the distribution of the reward."""
    values = sorted(set(rewards))
    at_most = [sum(p[i] for i, r in enumerate(rewards) if r <= v) for v in values]
    steps = zip(values, at_most, [0.0, *at_most[:-1]], strict=True)
    return sum(v * (high**k - low**k) for v, high, low in steps)


@pytest.mark.parametrize(
    ("policy", "n", "ks", "baseline", "loss"),
    [
        (small.table, 2, [1], "loo_minus_one", "gspo"),
        (small.policy, 3, [1, 2, 3], "loo_minus_one", "reinforce"),
        (small.table, 3, [2], "none", "cispo"),
        (small.table, 3, [2], "loo", "ppo"),
        (small.table, 3, [2], "centered", "reinforce"),
    ],
)
def test_expected_update_is_the_gradient_of_max_at_k(policy, n, ks, baseline, loss):
    model, params = policy(CONFIG)
    prompt, length = jnp.array([[2, 3, 2]]), jnp.array([3])
    recipe = step.Recipe(small.weigh(baseline=baseline), Loss(loss))
    update = step.make_update(model, optax.identity(), DEVICES, recipe)
    state = TrainState.create(params, optax.identity())
    responses, rewards = np.array(RESPONSES), np.array(REWARDS)

    def gradient(chosen, k):
        """Returns what one group of responses adds to the parameters at a learning rate of 1."""
        tokens = jnp.asarray(responses)[chosen][None]
        mask = tokens > 0
        nothing = jnp.zeros(tokens.shape)
        rollout = sampling.Rollout(
            tokens, mask.sum(-1), mask, nothing, nothing, jnp.ones(mask.shape[:2], bool)
        )
        group_rewards = jnp.asarray(rewards)[chosen][None]
        valid = jnp.ones((1, n), bool)
        batch = step.Batch(prompt, length, jnp.arange(1), rollout, group_rewards, valid)
        new_state, _ = update(state, batch, (k, jax.random.key(0), 1.0, 1.0))
        return jax.tree.map(jnp.subtract, new_state.params, params)

    tuples = np.array(list(itertools.product(range(len(RESPONSES)), repeat=n)))
    p, pullback = jax.vjp(lambda params: probabilities(model, params, prompt, length), params)
    p = np.asarray(p, np.float64)
    chances = p[tuples].prod(-1)

    @jax.jit
    def expected_update(tuples, chances, k):
        def add(total, group):
            change = gradient(group[0], k)
            return jax.tree.map(lambda t, c: t + group[1] * c, total, change), None

        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, (tuples, chances))[0]

    for k in ks:
        ours = expected_update(jnp.asarray(tuples), jnp.asarray(chances, jnp.float32), k)
        (exact,) = pullback(jax.grad(max_at_k)(jnp.asarray(p, jnp.float32), REWARDS, k))
        scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(exact))
        assert scale > 1e-3
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def test_expected_update_of_sage_is_that_of_the_divergences_times_their_factors():
    """Sums over all responses, with no other loss, and over all tokens after each of them."""
    model, params = small.table(CONFIG)
    prompt, length = jnp.array([[2, 3, 2]]), jnp.array([3])
    responses = jnp.array(RESPONSES)[None]
    # There are reference log-probs of the first token, and of the second one after 2 and after 3.
    logits = jax.random.normal(jax.random.key(4), (3, 3))
    start, *later = jax.nn.log_softmax(logits)
    reference = jnp.array([[[start[a - 1], later[a - 3][b - 1]] for a, b in RESPONSES]])
    # These responses begin with all tokens, and those of each group continue one of them.
    first, groups = jnp.array([0, 1, 4]), (slice(1, 4), slice(4, 7))
    loss = Loss(kl="sage", kl_coef=0.7, guide_entropy=0.0)
    update = step.make_update(
        model, optax.identity(), DEVICES, step.Recipe(small.weigh(baseline="none"), loss)
    )
    mask = responses > 0
    log_p, entropy = scoring.score(model, params, prompt, length, responses)
    chances = jnp.exp(jnp.where(mask, log_p, 0.0).sum(-1))[0]
    total = jax.tree.map(jnp.zeros_like, params)
    for i, chance in enumerate(chances):
        one = lambda x, i=i: x[:, i : i + 1]  # noqa: E731
        nothing = jnp.zeros((1, 1, 2))
        rollout = sampling.Rollout(
            *(one(responses), one(mask).sum(-1), one(mask), nothing, nothing),
            jnp.ones((1, 1), bool),
        )
        batch = step.Batch(
            prompt, length, jnp.arange(1), rollout, jnp.zeros((1, 1)), jnp.ones((1, 1), bool)
        )
        state = TrainState.create(jax.tree.map(jnp.copy, params), optax.identity())
        batch = batch._replace(reference=one(reference))
        after, _ = update(state, batch, (1, jax.random.key(0), 1.0, 1.0))
        total = jax.tree.map(lambda t, a, b, c=chance: t + c * (a - b), total, after.params, params)

    factor = 1.0 + 0.3 * entropy[0]
    assert 1.05 < factor.min() < factor.max() < 1.4

    def divergences(params):
        """Returns the sum of KL(reference || policy) after each prefix, as it is weighted."""
        log_p, _ = scoring.score(model, params, prompt, length, responses)
        kl = lambda at: -(jnp.exp(reference[0][at]) * log_p[0][at]).sum()  # noqa: E731
        after = (chances[rows].sum() * factor[rows.start, 1] * kl((rows, 1)) for rows in groups)
        return factor[0, 0] * kl((first, 0)) + sum(after)

    exact = jax.grad(lambda p: -0.7 * divergences(p))(params)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(exact), strict=True):
        assert jnp.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_invalid_responses_and_empty_groups_change_nothing():
    """Checks that a batch with invalid samples and empty groups equals the batch without them."""
    model, params = small.table()
    prompts, lengths = small.prompts(rows=4)
    tokens = jax.random.randint(jax.random.key(0), (4, 5, 3), 1, 30)
    rewards = jax.random.normal(jax.random.key(1), (4, 5))
    recipe = step.Recipe(small.weigh())
    update = step.make_update(model, optax.identity(), DEVICES, recipe)

    def updated(rows, columns, valid):
        t = tokens[:rows, :columns]
        nothing = jnp.zeros(t.shape)
        rollout = sampling.Rollout(
            t, jnp.full(t.shape[:2], 3), t > 0, nothing, nothing, jnp.ones(t.shape[:2], bool)
        )
        r = jnp.where(valid, rewards[:rows, :columns], jnp.nan)
        batch = step.Batch(prompts[:rows], lengths[:rows], jnp.arange(rows), rollout, r, valid)
        state = TrainState.create(jax.tree.map(jnp.copy, params), optax.identity())
        return update(state, batch, (2, jax.random.key(0), 1.0, 1.0))

    valid = jnp.zeros((4, 5), bool).at[:3, :4].set(True)
    masked, masked_metrics = updated(4, 5, valid)
    smaller, smaller_metrics = updated(3, 4, jnp.ones((3, 4), bool))
    for a, b in zip(jax.tree.leaves(masked.params), jax.tree.leaves(smaller.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in ("loss", "reward_mean", "entropy", "dead_groups", "response_length"):
        np.testing.assert_allclose(
            masked_metrics[name], smaller_metrics[name], rtol=1e-4, err_msg=name
        )
    assert gemma.PAD_ID not in np.asarray(tokens)
