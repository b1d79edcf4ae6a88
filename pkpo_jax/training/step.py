"""The jitted steps: sample, update, supervised update. Each compiles once a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.estimators import pass_at_k_curve, pkpo_weights
from pkpo_jax.policy import gemma2, sampling, scoring
from pkpo_jax.training import losses


@flax.struct.dataclass
class TrainState:
    """What an update changes."""

    params: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(params=params, opt_state=optimizer.init(params))


class Batch(NamedTuple):
    """A graded rollout: [P, L] and [P] prompts, [P, n, T] responses, [P, n] rewards."""

    prompts: jax.Array
    lengths: jax.Array
    rollout: sampling.Rollout
    rewards: jax.Array
    valid: jax.Array


def make_optimizer(config: config_dict.ConfigDict) -> optax.GradientTransformation:
    """Clipped AdamW up to its learning rate, which is an argument of the step."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay),
    )


def learning_rate(
    step: int, *, peak: float, steps: int, warmup_steps: int, decay_fraction: float
) -> float:
    """Linear warm-up, a plateau, and a linear fall to 0 over the last share of the steps.

    >>> rate = dict(peak=1.0, steps=100, warmup_steps=10, decay_fraction=0.5)
    >>> [learning_rate(s, **rate) for s in (0, 9, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay = min(1.0, (steps - step) / (decay_fraction * steps)) if decay_fraction else 1.0
    return peak * warmup * decay


def make_sampler(
    model: gemma2.Gemma2, *, n: int, max_response: int, stop_tokens: tuple[int, ...]
) -> Callable[..., sampling.Rollout]:
    """A jitted (params, prompts, lengths, rows, key, step, temperature) -> Rollout."""

    @jax.jit
    def sampler(
        params: Any,
        prompts: jax.Array,
        lengths: jax.Array,
        rows: jax.Array,
        key: jax.Array,
        step: jax.typing.ArrayLike,
        temperature: jax.typing.ArrayLike,
    ) -> sampling.Rollout:
        return sampling.sample(
            model,
            params,
            prompts,
            lengths,
            jax.random.fold_in(key, step),
            temperature,
            n=n,
            max_response=max_response,
            stop_tokens=stop_tokens,
            rows=rows,
        )

    return sampler


def make_update(
    model: gemma2.Gemma2,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    baseline: str,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted (state, batch, k, temperature, learning_rate) -> (state, metrics); state is donated.

    It transforms the rewards, scores the responses and updates the parameters, in one program.
    """

    def update(
        state: TrainState,
        batch: Batch,
        k: jax.typing.ArrayLike,
        temperature: jax.typing.ArrayLike,
        learning_rate: jax.typing.ArrayLike,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rollout, valid = batch.rollout, batch.valid
        rewards = jnp.where(valid, batch.rewards, 0.0)
        mask = rollout.mask & valid[..., None]
        k = jnp.asarray(k, jnp.int32)
        weights = pkpo_weights(rewards, k, baseline=baseline, where=valid)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            log_probs, entropy = scoring.score(
                model, params, batch.prompts, batch.lengths, rollout.tokens, temperature
            )
            loss = losses.policy_gradient(log_probs, weights, rollout.mask, valid)
            return loss, (log_probs, entropy)

        (loss, (log_probs, entropy)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        state, norms = _apply(state, optimizer, grads, learning_rate, mesh)
        correct = (rewards >= 1.0) & valid
        alive = valid.any(-1)
        curve = pass_at_k_curve(correct, where=valid)
        gap = jnp.where(mask, jnp.abs(log_probs - rollout.log_probs), 0.0)
        return state, {
            "loss": loss,
            "reward_mean": losses.masked_mean(rewards, valid),
            "pass_at_k": jax.vmap(losses.masked_mean, (1, None))(curve, alive),
            "entropy": losses.masked_mean(entropy, mask),
            "dead_groups": losses.masked_mean((weights == 0.0).all(-1), alive),
            "invalid": 1.0 - valid.mean(),
            "response_length": losses.masked_mean(rollout.lengths, valid),
            "truncated": losses.masked_mean(~rollout.finished, valid),
            "log_prob_gap_mean": losses.masked_mean(gap, mask),
            "log_prob_gap_max": gap.max(),
            **norms,
        }

    return jax.jit(update, donate_argnums=0)


def make_supervised_update(
    model: gemma2.Gemma2, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted (state, prompts, lengths, responses, mask, learning_rate) -> (state, metrics).

    Responses are demonstrations [P, 1, T]; the state is donated.
    """

    def update(
        state: TrainState,
        prompts: jax.Array,
        lengths: jax.Array,
        responses: jax.Array,
        mask: jax.Array,
        learning_rate: jax.typing.ArrayLike,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_fn(params: Any) -> jax.Array:
            log_probs, _ = scoring.score(model, params, prompts, lengths, responses)
            return losses.supervised(log_probs, mask)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        state, norms = _apply(state, optimizer, grads, learning_rate, mesh)
        return state, {"loss": loss, **norms}

    return jax.jit(update, donate_argnums=0)


def _apply(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    grads: Any,
    learning_rate: jax.typing.ArrayLike,
    mesh: jax.sharding.Mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    params = optax.apply_updates(state.params, updates)
    norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
    state = TrainState(params=params, opt_state=opt_state)
    # Where it came from, or the next step would compile again for a state placed otherwise.
    state = jax.lax.with_sharding_constraint(state, parallel.placements(state, mesh))
    return state, norms
