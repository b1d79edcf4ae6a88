"""A policy that exercises every difference of Gemma-2 at a size where tests are quick."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pkpo_jax.policy import gemma
from pkpo_jax.training import weights
from pkpo_jax.training.config import Estimator

# The window is smaller than prompts and responses. The rows of the table from 30 on have no token.
CONFIG = dataclasses.replace(
    gemma.SIZES["tiny"],
    embed_dim=32,
    hidden_dim=48,
    head_dim=8,
    query_pre_attn_scalar=8**-0.5,
    num_embed=40,
    num_layers=4,
    vocab_size=30,
    sliding_window_size=5,
)


class Table(nn.Module):
    """A substitute for the network in tests of the arithmetic around it.

    The logits of a token depend on the previous token and on the prompt's last one. Tracing takes
    a tenth of the time that the network needs.
    """

    config: gemma.GemmaConfig

    def setup(self):
        shape, draw = (self.config.num_embed,) * 2, nn.initializers.normal(1.0)
        self.after_token = self.param("after_token", draw, shape)
        self.after_prompt = self.param("after_prompt", draw, shape)

    def respond(self, prompts, lengths, tokens):
        after_prompt = self.after_prompt[gemma.last_prompt_token(prompts, lengths)]
        return self.after_token[tokens] + after_prompt[:, None, None]

    def logits(self, hidden):
        ids = jnp.arange(self.config.num_embed)
        return jnp.where((ids != gemma.PAD_ID) & (ids < self.config.vocab_size), hidden, -1e9)


def table(config=CONFIG):
    """Returns a `Table` and its parameters."""
    model, token = Table(config), jnp.ones((1, 1, 1), jnp.int32)
    variables = model.init(jax.random.key(0), token[0], token[0, 0], token, method="respond")
    return model, variables["params"]


def policy(config=CONFIG, seed=0, **options):
    """Returns a network and parameters, with random scales of the norms instead of zeros."""
    model = gemma.Gemma(config, **options)
    params = jax.jit(gemma.init_params, static_argnums=0)(model, jax.random.key(seed))
    noise = 0.2 * jax.random.normal(jax.random.key(seed + 1), (config.embed_dim,))

    def scale(path, x):
        return x + noise if path[-1].key == "scale" else x

    return model, jax.tree_util.tree_map_with_path(scale, params)


def prompts(rows=6, length=11, seed=3):
    """Returns right-padded prompts and their lengths, which include 1 and the maximum."""
    tokens = jax.random.randint(jax.random.key(seed), (rows, length), 3, CONFIG.vocab_size)
    lengths = jnp.array([1, length, 2, 7, 4, 9])[:rows]
    return jnp.where(jnp.arange(length) < lengths[:, None], tokens, gemma.PAD_ID), lengths


def weigh(**estimator):
    """Returns the function that computes the reward weights of an estimator's config."""
    return weights.make(Estimator(**estimator))
