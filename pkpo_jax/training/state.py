"""What an update changes, and how: the optimiser, its learning rate, and one step of it."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.training.config import Train, WarmStart


@flax.struct.dataclass
class TrainState:
    """What an update changes."""

    params: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(params=params, opt_state=optimizer.init(params))


def make_optimizer(options: Train) -> optax.GradientTransformation:
    """Returns clipped AdamW up to its learning rate, which is an argument of the step."""
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        _scale_by_adam(options.b1, options.b2),
        optax.add_decayed_weights(options.weight_decay),
    )


def _scale_by_adam(b1: float, b2: float) -> optax.GradientTransformation:
    """Returns Adam with a float32 second moment, whatever the dtype of the parameters.

    The second moment changes by a share of 1 - b2 a step. In bfloat16 numbers lie 2^-8 apart, so
    that at b2 = .999 a moment rounded to the nearest number never falls. The first moment follows
    the dtype of the parameters: at b1 = .9 it moves by far more than that.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2)

    def init(params: Any) -> optax.ScaleByAdamState:
        state: Any = adam.init(params)
        return state._replace(nu=optax.tree.cast(state.nu, jnp.float32))

    return optax.GradientTransformation(init, adam.update)


def learning_rate(section: Train | WarmStart | config_dict.ConfigDict, step: int) -> float:
    """Returns the learning rate at `step`, as the section `train` or `warm_start` of a config says.

    It warms up linearly over `warmup_steps`, stays at `learning_rate`, and falls linearly to 0 over
    the last share of the steps, `decay_fraction`.

    >>> section = Train(learning_rate=1.0, steps=100, warmup_steps=10, decay_fraction=0.5)
    >>> [learning_rate(section, s) for s in (0, 9, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """
    warmup = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    decaying = section.decay_fraction * section.steps
    decay = min(1.0, (section.steps - step) / decaying) if decaying else 1.0
    return section.learning_rate * warmup * decay


def apply_gradients(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    devices: parallel.Devices,
    loss: jax.Array,
    count: jax.Array,
    grads: Any,
    learning_rate: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step along `grads`, or as it was if they or the loss are not finite, or no
    token counted: the optimiser's momentum alone would move it then."""
    grads = devices.total(grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u.astype(jnp.float32), updates)
    params = _add(state.params, updates, optax.tree.get(opt_state, "count", 0))
    stepped = TrainState(params=params, opt_state=opt_state)
    moves = finite & (count > 0)
    state = jax.tree.map(lambda new, old: jnp.where(moves, new, old), stepped, state)
    # Where it came from, or the next step would compile again for a state placed otherwise.
    return devices.place_state(state), {
        "grad_norm": norm,
        "update_norm": jnp.where(moves, optax.tree.norm(updates), 0.0),
        "skipped": 1 - finite.astype(jnp.int32),
    }


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
