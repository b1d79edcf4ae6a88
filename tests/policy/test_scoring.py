"""Tests of the shared-prefix scorer against one that scores prompt and response as one sequence."""

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax.policy import scoring
from tests.policy import small

N, T = 3, 8
score = jax.jit(scoring.score, static_argnums=0)


def alone(model, params, prompt, responses):
    """Computes log-probs [N, T] of responses after one prompt, each as an unpadded sequence."""
    repeated = jnp.broadcast_to(prompt, (len(responses), len(prompt)))
    sequences = jnp.concatenate([repeated, responses], -1)
    hidden = model.apply({"params": params}, sequences)
    logits = model.apply({"params": params}, hidden, method="logits")
    log_p = jax.nn.log_softmax(logits[:, len(prompt) - 1 : -1])
    return jnp.take_along_axis(log_p, responses[..., None], -1)[..., 0]


def test_values_and_gradients_equal_scoring_each_response_alone():
    model, params = small.policy()
    # The prompts have 1, 11 and 2 tokens, so they are inside the window and beyond it.
    prompts, lengths = small.prompts(rows=3)
    responses = jax.random.randint(jax.random.key(9), (len(prompts), N, T), 1, 30)
    weights = jax.random.normal(jax.random.key(10), responses.shape)
    sizes = lengths.tolist()

    def shared(params):
        log_probs, _ = scoring.score(model, params, prompts, lengths, responses, head_chunk=3)
        return (weights * log_probs).sum(), log_probs

    def repeated(params):
        log_probs = jnp.stack(
            [
                alone(model, params, prompt[:length], group)
                for prompt, length, group in zip(prompts, sizes, responses, strict=True)
            ]
        )
        return (weights * log_probs).sum(), log_probs

    (_, ours), our_grads = jax.jit(jax.value_and_grad(shared, has_aux=True))(params)
    (_, plain), plain_grads = jax.jit(jax.value_and_grad(repeated, has_aux=True))(params)
    np.testing.assert_allclose(ours, plain, atol=1e-5, rtol=0)
    for path, grad in jax.tree_util.tree_leaves_with_path(our_grads):
        expected = plain_grads
        for entry in path:
            expected = expected[entry.key]
        scale = float(jnp.abs(expected).max())
        assert scale > 0.0
        np.testing.assert_allclose(grad, expected, atol=2e-5 * scale, err_msg=str(path))


def test_what_stands_behind_a_prompts_end_does_not_matter():
    model, params = small.policy()
    prompts, lengths = small.prompts()
    responses = jax.random.randint(jax.random.key(9), (len(prompts), N, T), 1, 30)
    padding = jnp.arange(prompts.shape[1]) >= lengths[:, None]
    log_probs, _ = score(model, params, prompts, lengths, responses)
    again, _ = score(model, params, jnp.where(padding, 17, prompts), lengths, responses)
    np.testing.assert_array_equal(log_probs, again)


def test_entropy_is_that_of_the_tempered_policy():
    model, params = small.policy()
    prompts, lengths = small.prompts(rows=2)
    every = jnp.broadcast_to(jnp.arange(1, 30)[None, :, None], (2, 29, 1))
    log_p, entropy = score(model, params, prompts, lengths, every, 0.8)
    expected = -(jnp.exp(log_p) * log_p).sum(1)
    np.testing.assert_allclose(entropy[:, 0], expected, atol=1e-5)


def test_largest_array_is_a_chunk_of_logits():
    model, params = small.policy()
    prompts, lengths = small.prompts(rows=2)
    responses = jnp.ones((2, 3, 64), jnp.int32)

    def loss(params):
        return scoring.score(model, params, prompts, lengths, responses, head_chunk=8)[0].sum()

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    assert "2x3x8x40x" in text
    assert "2x3x64x40x" not in text and "8x2x3x8x40x" not in text
