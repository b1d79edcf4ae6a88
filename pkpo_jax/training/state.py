"""The training state, the optimiser that changes it, and the optimiser's learning rate."""

from __future__ import annotations

from collections.abc import Collection
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
    """The parameters and the optimiser's state, which an update changes.

    Attributes:
      params: the parameters that are trained.
      opt_state: the optimiser's state, of these parameters alone.
      frozen: the other parts of the policy's parameters, by their names at the top of the tree.
    """

    params: Any
    opt_state: optax.OptState
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        return cls(params, optimizer.init(params))

    def restore(self, policy: Any, opt_state: optax.OptState) -> TrainState:
        """Returns a state like this one, of another policy and another state of the optimiser.

        Frozen parts that `policy` lacks are missing in it.
        """
        params, frozen = split(policy, self.frozen)
        return TrainState(params, opt_state, frozen)

    @property
    def policy(self) -> Any:
        """All parameters of the policy."""
        return {**self.frozen, **self.params} if self.frozen else self.params

    @property
    def saved(self) -> Any:
        """The parameters that checkpoints hold: the adapters if there are any, or else all."""
        return self.params if "lora" in self.params else self.policy


def split(policy: dict[str, Any], frozen: Collection[str]) -> tuple[dict, dict]:
    """Returns the parts of a policy's parameters that are trained, and those named in `frozen`."""
    trained = {name: x for name, x in policy.items() if name not in frozen}
    return trained, {name: x for name, x in policy.items() if name in frozen}


def make_optimizer(options: Train) -> optax.GradientTransformation:
    """Returns AdamW or SGD with clipped gradients, but without the learning rate.

    The learning rate is an argument of the compiled step.
    """
    if options.optimizer == "sgd":
        # The schedule counts the steps, by which parameters in bfloat16 are rounded.
        count = optax.scale_by_schedule(lambda step: 1.0)
        scale = optax.chain(optax.trace(options.b1), count)
    else:
        scale = _scale_by_adam(options.b1, options.b2)
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        scale,
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
    """Returns the learning rate at `step` for the section `train` or `warm_start` of a config.

    It increases linearly over `warmup_steps`, stays at `learning_rate`, and decreases linearly to 0
    over the last share `decay_fraction` of the steps.

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
    """Applies one optimiser step along `grads`, and returns the new state and metrics.

    The state stays as it was if the loss or the gradient is not finite. It also stays if no token
    counted, since the optimiser's momentum alone would change it.

    Args:
      state: the state before the step.
      optimizer: the optimiser, without its learning rate.
      devices: the devices, over which `grads` are summed.
      loss: the loss of the whole batch.
      count: how many tokens of the whole batch count.
      grads: the gradient from the part of the batch that is on this device.
      learning_rate: the learning rate of this step.
    """
    grads = devices.total(grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u.astype(jnp.float32), updates)
    params = _add(state.params, updates, optax.tree.get(opt_state, "count", 0))
    moves = finite & (count > 0)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(moves, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    state = TrainState(params, opt_state, state.frozen)
    # The state has to keep its sharding, or the next step would compile again for another one.
    return devices.place_state(state), {
        "grad_norm": norm,
        "update_norm": jnp.where(moves, optax.tree.norm(updates), 0.0),
        "skipped": 1 - finite.astype(jnp.int32),
    }


def _add(params: Any, updates: Any, step: jax.typing.ArrayLike) -> Any:
    """Returns params + updates, with unbiased stochastic rounding in bfloat16.

    An update is much smaller than the distance between two bfloat16 numbers, so most parameters
    would never change if the sum were rounded to nearest.
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
