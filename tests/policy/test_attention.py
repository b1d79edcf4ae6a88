"""Attention in blocks against a softmax over all keys, with its values and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.policy import attention

P, N, K, G, T, L, H = 2, 3, 2, 2, 11, 7, 4
LENGTHS = np.array([7, 3])


def softmax_over_all_keys(queries, prefix, own, window, soft_cap):
    """Computes attention query by query, from the definition."""
    out = np.zeros_like(queries)
    for p, n, k, g, t in np.ndindex(P, N, K, G, T):
        keys, values = [], []
        if prefix is not None:
            seen = [s for s in range(LENGTHS[p]) if LENGTHS[p] + t - s < window]
            keys += [prefix[0][p, k, s] for s in seen]
            values += [prefix[1][p, k, s] for s in seen]
        seen = [s for s in range(t + 1) if t - s < window]
        keys += [own[0][p, n, k, s] for s in seen]
        values += [own[1][p, n, k, s] for s in seen]
        logits = np.array(keys) @ queries[p, n, k, g, t]
        if soft_cap is not None:
            logits = soft_cap * np.tanh(logits / soft_cap)
        weights = np.exp(logits - logits.max())
        out[p, n, k, g, t] = weights @ np.array(values) / weights.sum()
    return out


@pytest.mark.parametrize("soft_cap", [None, 2.0, 50.0, 1000.0])
@pytest.mark.parametrize("window", [4, 2**30])
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("local_window", [None, 4])
def test_blocks(soft_cap, window, with_prefix, local_window, monkeypatch):
    # Eleven queries are three blocks, the last of which is shorter.
    monkeypatch.setattr(attention, "_BLOCK", 4)
    monkeypatch.setattr(attention, "_BLOCKS", 3)
    rng = np.random.default_rng(0)
    queries = 2.0 * rng.normal(size=(P, N, K, G, T, H))
    own = rng.normal(size=(2, P, N, K, T, H))
    prefix = rng.normal(size=(2, P, K, L, H)) if with_prefix else None
    above = rng.normal(size=queries.shape)

    @jax.jit
    @jax.value_and_grad
    def total(arrays):
        queries, own, prefix = arrays
        sources, length = attention.Sources(attention.KeyValues(*own)), None
        if prefix is not None:
            sources = sources._replace(prefix=attention.KeyValues(*prefix))
            length = jnp.asarray(LENGTHS)
        visible = attention.Visible(jnp.int32(window), 0, length)
        out = attention.attend(queries, sources, visible, soft_cap, local_window)
        return (above * out).sum()

    arrays = queries, own, prefix
    value, gradient = total(jax.tree.map(jnp.float32, arrays))
    expected = (above * softmax_over_all_keys(queries, prefix, own, window, soft_cap)).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    # The gradient along a random direction is a central difference of the definition in float64.
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), arrays)
    at = [
        (above * softmax_over_all_keys(q, p, o, window, soft_cap)).sum()
        for q, o, p in (
            jax.tree.map(lambda x, d, e=e: x + e * d, arrays, direction) for e in (1e-5, -1e-5)
        )
    ]
    along = sum(
        (np.asarray(g, np.float64) * d).sum()
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(along, (at[0] - at[1]) / 2e-5, rtol=1e-4, atol=1e-3)


def test_local_layers_skip_keys_out_of_the_window():
    """Counts the products of a layer whose window is known when it is compiled."""

    def flops(local_window):
        x = jax.ShapeDtypeStruct((1, 1, 1, 1, 1024, 8), jnp.float32)

        def f(x):
            sources = attention.Sources(attention.KeyValues(x[:, :, 0], x[:, :, 0]))
            visible = attention.Visible(64, 0, None)
            return attention.attend(x, sources, visible, 50.0, local_window)

        return jax.jit(f).lower(x).compile().cost_analysis()["flops"]

    assert flops(64) < 0.4 * flops(None)
