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
    model: gemma2.Gemma2,
    devices: parallel.Jitted,
    *,
    n: int,
    max_response: int,
    stop_tokens: tuple[int, ...],
) -> Callable[..., sampling.Rollout]:
    """A compiled (params, (prompts, lengths, rows), (key, step, temperature)) -> Rollout."""

    def sampler(params: Any, batch: tuple[jax.Array, ...], scalars: tuple) -> sampling.Rollout:
        prompts, lengths, rows = batch
        key, step, temperature = scalars
        # Every token reads all parameters: they are cast and gathered once.
        params = gemma2.cast(params, model.config.dtype)
        rollout = sampling.sample(
            model,
            devices.place_state(params, gathered=True),
            prompts,
            lengths,
            jax.random.fold_in(key, step),
            temperature,
            n=n,
            max_response=max_response,
            stop_tokens=stop_tokens,
            rows=rows,
        )
        return jax.tree.map(devices.place, rollout)

    return devices.step(sampler, changes_state=False)


def make_update(
    model: gemma2.Gemma2,
    optimizer: optax.GradientTransformation,
    devices: parallel.Jitted,
    *,
    baseline: str,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled (state, Batch, (k, temperature, learning_rate)) -> (state, metrics).

    It transforms the rewards, scores the responses and updates the parameters, in one program.
    The state is donated. Prompts are scored in `micro_batches` parts, one after the other.
    """

    def update(
        state: TrainState, batch: Batch, scalars: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        k, temperature, learning_rate = scalars
        rollout, valid = batch.rollout, batch.valid
        rewards = jnp.where(valid, batch.rewards, 0.0)
        k = jnp.asarray(k, jnp.int32)
        weights = pkpo_weights(rewards, k, baseline=baseline, where=valid)
        alive = valid.any(-1)
        prompts = devices.total(alive.sum())

        def loss_fn(params: Any, part: tuple[Batch, jax.Array]) -> tuple[jax.Array, dict]:
            batch, weights = part
            rollout, valid = batch.rollout, batch.valid
            log_probs, entropy = scoring.score(
                model,
                params,
                batch.prompts,
                batch.lengths,
                rollout.tokens,
                temperature,
                head_chunk=_head_chunk(model, devices, rollout.tokens.shape),
            )
            loss = losses.policy_gradient(log_probs, weights, rollout.mask, valid, prompts)
            mask = rollout.mask & valid[..., None]
            gap = jnp.where(mask, jnp.abs(log_probs - rollout.log_probs), 0.0)
            return loss, {
                "entropy": jnp.where(mask, entropy, 0.0).sum(),
                "gap": gap.sum(),
                "gap_max": gap.max(),
            }

        loss, parts, grads = _gradient(loss_fn, state.params, (batch, weights), micro_batches)
        state, norms = _apply(state, optimizer, devices, grads, learning_rate)

        def mean(x: jax.Array, where: jax.Array) -> jax.Array:
            return _ratio(devices, jnp.where(where, x, 0.0).sum(), where.sum())

        curve = pass_at_k_curve((rewards >= 1.0) & valid, where=valid)
        tokens = (rollout.mask & valid[..., None]).sum()
        return state, {
            "loss": devices.total(loss),
            "reward_mean": mean(rewards, valid),
            "pass_at_k": jax.vmap(mean, (1, None))(curve, alive),
            "entropy": _ratio(devices, parts["entropy"].sum(), tokens),
            "dead_groups": mean((weights == 0.0).all(-1), alive),
            "invalid": mean(~valid, jnp.ones_like(valid)),
            "response_length": mean(rollout.lengths, valid),
            "truncated": mean(~rollout.finished, valid),
            "log_prob_gap_mean": _ratio(devices, parts["gap"].sum(), tokens),
            "log_prob_gap_max": devices.largest(parts["gap_max"].max()),
            **norms,
        }

    return devices.step(update, changes_state=True)


def make_supervised_update(
    model: gemma2.Gemma2,
    optimizer: optax.GradientTransformation,
    devices: parallel.Jitted,
    *,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A compiled (state, batch, (learning_rate,)) -> (state, metrics), on demonstrations.

    A batch is (prompts, lengths, responses [P, 1, T], mask [P, 1, T]); the state is donated.
    """

    def update(
        state: TrainState, batch: tuple[jax.Array, ...], scalars: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        tokens = devices.total(batch[3].sum())

        def loss_fn(params: Any, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            prompts, lengths, responses, mask = part
            chunk = _head_chunk(model, devices, responses.shape)
            log_probs, _ = scoring.score(
                model, params, prompts, lengths, responses, head_chunk=chunk
            )
            return losses.supervised(log_probs, mask, tokens), None

        loss, _, grads = _gradient(loss_fn, state.params, batch, micro_batches)
        state, norms = _apply(state, optimizer, devices, grads, *scalars)
        return state, {"loss": devices.total(loss), **norms}

    return devices.step(update, changes_state=True)


def _head_chunk(model: gemma2.Gemma2, devices: parallel.Jitted, shape: tuple[int, ...]) -> int:
    """How many tokens of every response [P, n, T] to compute logits of at a time: 512 MiB of them
    on a device."""
    prompts, n, tokens = shape
    logits_of_one = prompts * n * model.config.num_embed // devices.spread
    return max(1, min(tokens, 2**27 // max(logits_of_one, 1)))


def _gradient(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any, Any]:
    """The loss and its gradient, summed over `parts` of the batch; what else they gave, stacked."""
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, aux), grads = gradient(params, batch)
        return loss, jax.tree.map(lambda x: x[None], aux), grads

    def add(total: Any, part: Any) -> tuple[Any, tuple[jax.Array, Any]]:
        loss_and_aux, grads = gradient(params, part)
        return jax.tree.map(lambda t, g: t + g, total, grads), loss_and_aux

    # Every parts-th row, so that each device keeps the rows it has.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    grads, (loss, aux) = jax.lax.scan(add, zeros, split)
    return loss.sum(), aux, jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params)


def _ratio(devices: parallel.Jitted, numerator: jax.Array, count: jax.Array) -> jax.Array:
    return devices.total(numerator) / jnp.maximum(devices.total(count), 1)


def _apply(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    devices: parallel.Jitted,
    grads: Any,
    learning_rate: jax.typing.ArrayLike,
) -> tuple[TrainState, dict[str, jax.Array]]:
    grads = devices.total(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u.astype(jnp.float32), updates)
    params = _add(state.params, updates, optax.tree.get(opt_state, "count", 0))
    norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
    # Where it came from, or the next step would compile again for a state placed otherwise.
    return devices.place_state(TrainState(params=params, opt_state=opt_state)), norms


def _add(params: Any, updates: Any, step: jax.typing.ArrayLike) -> Any:
    """params + updates. In bfloat16 the sum is rounded up or down at random, with its own mean.

    A step is far less than the distance of two bfloat16 numbers: rounded to the nearest, most
    parameters would never change.
    """
    leaves, tree = jax.tree.flatten(params)
    sums = []
    for i, (x, u) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True)):
        total = x.astype(jnp.float32) + u
        if x.dtype == jnp.bfloat16:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), i)
            below = jax.random.bits(key, x.shape, jnp.uint32) >> 16
            bits = jax.lax.bitcast_convert_type(total, jnp.uint32) + below
            total = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
        sums.append(total.astype(x.dtype))
    return jax.tree.unflatten(tree, sums)
