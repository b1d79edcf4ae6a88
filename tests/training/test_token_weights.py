"""Tests of reward weights that differ by token against plain NumPy, on many devices and in runs."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.training import losses, token_weights
from pkpo_jax.training.config import Loss
from tests.training import test_losses

N, T, D = 4, 5, 80


def responses(groups=1, seed=0, width=D):
    """Returns groups with two right responses, a wrong one and one that could not be graded."""
    rng = np.random.default_rng(seed)
    shape = (groups, N, T)
    lengths = rng.integers(2, T + 1, shape[:2])
    valid = np.tile([True, True, True, False], (groups, 1))
    return token_weights.Responses(
        weights=jnp.asarray(rng.normal(size=shape[:2]), jnp.float32),
        rewards=jnp.tile(jnp.array([1.0, 0.0, 2.0, 1.0]), (groups, 1)),
        valid=jnp.asarray(valid),
        mask=jnp.asarray((np.arange(T) < lengths[..., None]) & valid[..., None]),
        log_probs=jnp.zeros(shape),
        entropy=jnp.zeros(shape),
        hidden=jnp.asarray(rng.normal(size=(*shape, width)), jnp.float32),
    )


def factors(r, at=0, directions=64):
    """Returns ResRL's factors [n, T] of one group, as 1229095296/ResRL computes them.

    A singular value decomposition takes the place of its randomised one, and its directions without
    variance are left out.
    """
    hidden, mask = np.asarray(r.hidden[at], np.float64), np.asarray(r.mask[at])
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5)
    right = mask & np.asarray((r.rewards[at] >= 1) & r.valid[at])[:, None]
    wrong = mask & ~right
    tokens, result = hidden[right], np.where(right, 0.1, 1.0)
    if len(tokens) < 4:
        return result
    mean = tokens.mean(0)
    _, singular, rows = np.linalg.svd(tokens - mean, full_matrices=False)
    rows = rows[singular > 1e-3 * singular[0]][: min(directions, len(tokens) - 1)]
    x = hidden[wrong] - mean
    distances = ((x - x @ rows.T @ rows) ** 2).sum(-1) / hidden.shape[-1]
    low, high = np.quantile(distances, [0.2, 0.8])
    result[wrong] = 0.1 + 0.9 * np.clip((distances - low) / (high - low), 0, 1)
    return result


def moved(r):
    """Returns the responses with another scale and mean of each hidden state."""
    scale, mean = np.random.default_rng(1).uniform(1.0, 2.0, (2, *r.hidden.shape[:-1], 1))
    return r._replace(hidden=jnp.asarray(scale * r.hidden + mean, jnp.float32))


def test_resrl_is_what_the_code_of_its_authors_gives(monkeypatch):
    r = responses(groups=3)
    # The last group has three tokens of right responses, too few for wrong ones to compare with.
    few = r.mask.at[2].set(False).at[2, 0, :3].set(True).at[2, 1].set(True)
    r = r._replace(mask=few)
    for directions in (64, 2):
        monkeypatch.setattr(token_weights, "DIRECTIONS", directions)
        ours = np.asarray(token_weights.resrl(r))
        for at in range(3):
            expected = np.asarray(r.weights)[at, :, None] * factors(r, at, directions)
            mask = np.asarray(r.mask[at])
            np.testing.assert_allclose(ours[at][mask], expected[mask], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(ours[2, 1], np.tile(r.weights[2, 1], T))
    # The scale and the mean of a hidden state say nothing.
    np.testing.assert_allclose(token_weights.resrl(moved(r)), ours, rtol=1e-3, atol=1e-4)


def test_resrl_of_tokens_that_are_equally_far_or_that_are_all_right():
    r = responses()
    wrong = np.asarray(r.mask)[0, 1]
    # All hidden states of the wrong response are equal, or all lie within the directions.
    for hidden in (r.hidden.at[0, 1].set(r.hidden[0, 1, 0]), responses(width=3).hidden):
        ours = token_weights.resrl(r._replace(hidden=hidden))[0, 1] / r.weights[0, 1]
        np.testing.assert_allclose(ours[wrong], 0.55, rtol=1e-5)
    right = token_weights.resrl(r._replace(rewards=jnp.ones((1, N))))
    np.testing.assert_allclose(right, np.tile(0.1 * r.weights[..., None], T), rtol=1e-6)


def test_tokens_beyond_the_first_do_not_change_the_directions(monkeypatch):
    r = responses()
    first = int(r.mask[0, 0].sum())
    monkeypatch.setattr(token_weights, "MOST_TOKENS", first)
    monkeypatch.setattr(token_weights, "FEWEST_TOKENS", 1)
    for at, same in ((2, True), (0, False)):
        other = r._replace(hidden=r.hidden.at[0, at].set(r.hidden[0, at, :, ::-1]))
        ours, theirs = (token_weights.resrl(x)[0, 1] for x in (r, other))
        assert (ours == theirs).all() == same


def halves(r):
    """Gives the first tokens of a response its weight, and the others minus half of it."""
    return r.weights[..., None] * jnp.where(jnp.arange(r.mask.shape[-1]) < 2, 1.0, -0.5)


@pytest.mark.parametrize("policy", ["reinforce", "ppo", "gspo", "cispo"])
def test_each_token_is_trained_with_its_own_weight(policy):
    t = test_losses.tokens()
    zeros = jnp.zeros_like(t.log_probs)
    r = token_weights.Responses(
        t.weights, t.weights, t.mask.any(-1), t.mask, t.log_probs, t.entropy, zeros[..., None]
    )
    loss = Loss(policy, clip_low=0.5, clip_high=0.5)

    def value(log_probs, weights):
        given = t._replace(log_probs=log_probs, weights=weights)
        return losses.policy_loss(loss, given, test_losses.P, t.mask.sum())[0]

    gradient = jax.grad(value)
    ours = gradient(t.log_probs, token_weights.apply(f"{__name__}:halves", r))
    # The loss of the tokens with one factor is that of responses with that factor.
    whole, half = (gradient(t.log_probs, factor * t.weights) for factor in (1.0, -0.5))
    early = jnp.arange(test_losses.T) < 2
    np.testing.assert_allclose(ours, jnp.where(early, whole, half), rtol=1e-5, atol=1e-7)
    assert (ours != 0).any() and token_weights.apply("", r) is t.weights
    # The weights are constants of the loss.
    assert not jax.grad(lambda x: token_weights.apply("resrl", r._replace(hidden=x)).sum())(
        jax.random.normal(jax.random.key(0), (*t.mask.shape, 8))
    ).any()


MESHES = """
import json
import jax, numpy as np, optax
from pkpo_jax import parallel
from pkpo_jax.training import state, step
from pkpo_jax.training.config import Loss, Train
from tests.policy import small
from tests.training import test_step

graded = test_step.batch()
graded = graded._replace(
    old=graded.rollout.log_probs,
    reference=graded.rollout.log_probs - 0.5,
    rewards=np.round(np.clip(graded.rewards, 0, 1)),
    earlier=(np.arange(8.0), np.arange(8.0)[::-1] ** 2),
)
names = dict(name="rloo"), dict(name="volume", embeddings=True), dict(name="posterior")
calls = [small.weigh(**name) for name in names]
def weigh(*given, **options):
    return sum(call(*given, **options) for call in calls)
loss = Loss(
    "gspo", aggregation="sequence-mean", kl="sage", kl_coef=0.1, token_weights="resrl",
    clip_low=0.9, guide_entropy=0.5,
)
norms, after = [], []
for devices, parts in (
    (parallel.Jitted(parallel.make_mesh((1, 1, 1), jax.devices()[:1])), 1),
    (parallel.Jitted(parallel.make_mesh((4, 2, 1))), 4),
    (parallel.Pmapped(), 1),
):
    model, params = small.table()
    recipe = step.Recipe(weigh, loss, Train(micro_batches=parts), embeds=True)
    update = step.make_update(model, optax.identity(), devices, recipe)
    start = state.TrainState.create(params, optax.identity())
    start = jax.device_put(start, parallel.placements(start, devices.mesh))
    batch = devices.put(jax.device_get(graded), len(graded.rows))
    new, metrics = update(start, batch, (1, jax.random.key(7), 0.9, 1.0))
    norms.append(float(metrics["grad_norm"]))
    after.append([np.asarray(x).tolist() for x in jax.tree.leaves(jax.device_get(new.params))])
errors = [max(np.abs(np.subtract(a, b)).max() for a, b in zip(after[0], x)) for x in after]
print(json.dumps([norms, errors]))
"""


def test_micro_batches_and_meshes_give_the_gradient_of_one_device():
    """Trains with responses as units, a guided reference and hidden states of whole groups.

    The weights are sums of those of estimators that need what others do not.
    """
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", MESHES],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    norms, errors = json.loads(run.stdout.splitlines()[-1])
    assert min(norms) > 0.01
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
    assert max(errors) < 1e-5 * norms[0]
