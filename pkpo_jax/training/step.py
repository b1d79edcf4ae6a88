"""The compiled steps: sampling, scoring, RL update and supervised update.

Each compiles once for every shape of its arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pkpo_jax import parallel
from pkpo_jax.estimators import Mixture, max_at_k, pass_at_k_curve
from pkpo_jax.policy import gemma, sampling, scoring
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import losses, token_weights
from pkpo_jax.training import weights as weights_lib
from pkpo_jax.training.state import TrainState, apply_gradients


class Batch(NamedTuple):
    """A batch of prompts and responses, to which the parts of a step add what they compute.

    Attributes:
      prompts: [P, L] int32; lengths: [P] int32.
      rows: [P] int32, the numbers of the prompts in the whole batch.
      rollout: the responses, [P, n, T].
      rewards: [P, n] float32; valid: [P, n] bool, True for responses that could be graded. Both
        are None until the responses are graded.
      old: [P, n, T] log-probs of the tokens under the policy before the first update of the batch.
        None if there is only one update, which computes them itself.
      reference: [P, n, T] log-probs under the reference policy, or None.
      weights: [P, n] reward weights of the estimator. None until an update has computed them; it
        then also removes from the rollout's mask the tokens that do not enter the loss.
      classes: [P, n] int32, equal for equal answers of a group, if the estimator needs them.
      earlier: two arrays [P] float32, how many responses were right and wrong at earlier visits to
        each problem, if the estimator needs them.
    """

    prompts: jax.Array
    lengths: jax.Array
    rows: jax.Array
    rollout: sampling.Rollout
    rewards: jax.Array | None = None
    valid: jax.Array | None = None
    old: jax.Array | None = None
    reference: jax.Array | None = None
    weights: jax.Array | None = None
    classes: jax.Array | None = None
    earlier: tuple[jax.Array, jax.Array] | None = None


def make_sampler(
    model: gemma.Gemma,
    devices: parallel.Devices,
    *,
    n: int,
    max_response: int,
    stop_tokens: tuple[int, ...],
    top_p: float = 1.0,
) -> Callable[..., sampling.Rollout]:
    """Returns a compiled (params, (prompts, lengths, rows), (key, step, temperature)) -> Rollout.

    Args:
      model: the network.
      devices: where the sampler runs.
      n: how many responses each prompt gets.
      max_response: the largest number of tokens of a response.
      stop_tokens: the tokens that end a response.
      top_p: the probability mass of the most likely tokens from which each token is sampled.
    """

    def sampler(params: Any, batch: tuple[jax.Array, ...], scalars: tuple) -> sampling.Rollout:
        prompts, lengths, rows = batch
        key, step, temperature = scalars
        # Every decoding step reads all parameters, so they are cast and gathered only once.
        params = gemma.cast(params, model.config.dtype)
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
            top_p=top_p,
            head_rows=_at_once(model, devices, len(prompts), n),
            compact=devices.spread == 1,
            rows=rows,
        )
        return jax.tree.map(devices.place, rollout)

    return devices.step(sampler, changes_state=False)


def make_scorer(model: gemma.Gemma, devices: parallel.Devices) -> Callable[..., jax.Array]:
    """Returns a compiled function that computes the log-probs [P, n, T] of responses.

    It maps (params, (prompts, lengths, responses), (temperature,)) to the log-probs.
    """

    def scorer(params: Any, batch: tuple[jax.Array, ...], scalars: tuple) -> jax.Array:
        params = gemma.cast(params, model.config.dtype)
        chunk = _head_chunk(model, devices, batch[-1].shape)
        log_probs, _ = scoring.score(model, params, *batch, *scalars, head_chunk=chunk)
        return devices.place(log_probs)

    return devices.step(scorer, changes_state=False)


class Recipe(NamedTuple):
    """The options of an update: the estimator (see weights.py) and two sections of a config.

    `embeds` says whether the estimator is given the mean hidden states of responses.
    """

    weigh: weights_lib.Weigh
    loss: config_lib.Loss = config_lib.Loss()
    train: config_lib.Train = config_lib.Train()
    embeds: bool = False


def make_update(
    model: gemma.Gemma,
    optimizer: optax.GradientTransformation,
    devices: parallel.Devices,
    recipe: Recipe,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns a compiled (state, Batch, (k, key, temperature, learning_rate)) -> (state, metrics).

    One program computes the reward weights, and for each minibatch scores the responses and updates
    the parameters. An update whose loss or gradient is not finite changes nothing and is counted in
    the metric "skipped". The state is donated.
    """
    return devices.step(_Update(model, optimizer, devices, recipe).update, changes_state=True)


@dataclasses.dataclass(frozen=True)
class _Update:
    """The components of an update. Its methods are the parts of one compiled program."""

    model: gemma.Gemma
    optimizer: optax.GradientTransformation
    devices: parallel.Devices
    recipe: Recipe

    def update(
        self, state: TrainState, batch: Batch, scalars: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Weighs the rewards of a batch, and makes the updates that the recipe asks for."""
        k, key, temperature, learning_rate = scalars
        embeddings = self._embed(state.policy, batch) if self.recipe.embeds else None
        batch, metrics = self._weigh(batch, k, key, embeddings)

        def once(state: TrainState, part: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            return self._once(state, part, temperature, learning_rate)

        if self.recipe.train.epochs * self.recipe.train.minibatches == 1:
            state, figures = once(state, batch)
        else:
            split = _split(batch, self.recipe.train.minibatches)
            epoch = lambda state, _: jax.lax.scan(once, state, split)  # noqa: E731
            state, figures = jax.lax.scan(epoch, state, None, length=self.recipe.train.epochs)
        gap, skipped = figures.pop("log_prob_gap_max").max(), figures.pop("skipped").sum()
        figures = {name: x.mean() for name, x in figures.items()}
        return state, {**metrics, **figures, "log_prob_gap_max": gap, "skipped": skipped}

    def _embed(self, params: Any, batch: Batch) -> jax.Array:
        """Returns [P, n, D] float32, the mean hidden state of the tokens of each response."""

        def embed(part: Batch) -> jax.Array:
            hidden = scoring.hidden_states(
                self.model, params, part.prompts, part.lengths, part.rollout.tokens
            )
            mask = part.rollout.mask[..., None]
            total = jnp.where(mask, hidden, 0.0).sum(2, dtype=jnp.float32)
            return total / jnp.maximum(mask.sum(2), 1)

        parts = self.recipe.train.minibatches * self.recipe.train.micro_batches
        if parts == 1:
            return embed(batch)
        embeddings = jax.lax.map(embed, _split(batch, parts))
        return embeddings.swapaxes(0, 1).reshape(-1, *embeddings.shape[2:])

    def _weigh(
        self, batch: Batch, k: jax.Array | Mixture, key: jax.Array, embeddings: jax.Array | None
    ) -> tuple[Batch, dict[str, jax.Array]]:
        """Returns the batch with its reward weights, and the metrics that no update changes."""
        recipe, rollout, valid = self.recipe, batch.rollout, batch.valid
        assert batch.rewards is not None and valid is not None
        k, rewards = jax.tree.map(jnp.asarray, k), jnp.where(valid, batch.rewards, 0.0)
        tokens = rollout.mask & valid[..., None]
        penalised = rewards
        if recipe.loss.kl_in_reward and batch.reference is not None:
            assert batch.old is not None
            penalised = losses.penalised(recipe.loss, rewards, batch.old, batch.reference, tokens)
        entropy = jnp.where(tokens, rollout.entropy, 0.0).sum((1, 2))
        weights = recipe.weigh(
            penalised,
            k,
            valid,
            rows=batch.rows,
            key=key,
            entropy=entropy / jnp.maximum(tokens.sum((1, 2)), 1),
            ratios=(
                None
                if batch.old is None
                else losses.response_ratios(batch.old, rollout.log_probs, tokens)
            ),
            classes=batch.classes,
            embeddings=embeddings,
            earlier=batch.earlier,
        )
        counted = valid
        if recipe.loss.drop_equal_groups:
            # Responses with equal rewards can have different penalties. They are trained on then.
            counted &= ~_equal(penalised, valid)[:, None]
        if recipe.loss.mask_truncated:
            counted &= rollout.finished

        def mean(x: jax.Array, where: jax.Array) -> jax.Array:
            return self._ratio(jnp.where(where, x, 0.0).sum(), where.sum())

        alive = valid.any(-1)
        curve = pass_at_k_curve((rewards >= 1.0) & valid, where=valid)
        metrics = {
            "reward_mean": mean(rewards, valid),
            "max_at_k": mean(max_at_k(rewards, k, where=valid), alive),
            "pass_at_k": jax.vmap(mean, (1, None))(curve, alive),
            "equal_groups": mean(_equal(rewards, valid), alive),
            "dead_groups": mean((weights == 0.0).all(-1), alive),
            "invalid": mean(~valid, jnp.ones_like(valid)),
            "response_length": mean(rollout.lengths, valid),
            "truncated": mean(~rollout.finished, valid),
            "weights": self.devices.whole(weights),
        }
        rollout = rollout._replace(mask=tokens & counted[..., None])
        return batch._replace(rollout=rollout, weights=weights), metrics

    def _once(
        self, state: TrainState, batch: Batch, temperature: jax.Array, learning_rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update of the parameters from all prompts of a weighed batch."""
        devices, mask = self.devices, batch.rollout.mask
        prompts = devices.total(mask.any((1, 2)).sum())
        count = devices.total(mask.sum())

        def loss_fn(params: Any, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            tokens = self._score({**state.frozen, **params}, part, temperature)
            loss, sums = losses.policy_loss(self.recipe.loss, tokens, prompts, count)
            gap = jnp.where(tokens.mask, jnp.abs(tokens.old - tokens.sampled), 0.0)
            return loss, {**sums, "gap": gap.sum(), "gap_max": gap.max()}

        loss, sums, grads = _gradient(loss_fn, state.params, batch, self.recipe.train.micro_batches)
        loss = devices.total(loss)
        state, figures = apply_gradients(
            state, self.optimizer, devices, loss, count, grads, learning_rate
        )
        names = {
            "entropy": "entropy",
            "clipped": "clip_fraction",
            "clamped": "clamp_fraction",
            "moved": "policy_kl",
            "kl": "kl",
            "gap": "log_prob_gap_mean",
        }
        means = {
            new: self._ratio(sums[old].sum(), mask.sum())
            for old, new in names.items()
            if old in sums
        }
        largest = devices.largest(sums["gap_max"].max())
        return state, {"loss": loss, **means, "log_prob_gap_max": largest, **figures}

    def _score(self, params: Any, batch: Batch, temperature: jax.Array) -> losses.Tokens:
        """Scores a weighed batch, and returns the values from which its loss is computed."""
        rollout, valid = batch.rollout, batch.valid
        assert batch.weights is not None and valid is not None and batch.rewards is not None
        hidden = scoring.hidden_states(
            self.model, params, batch.prompts, batch.lengths, rollout.tokens
        )
        log_probs, entropy = scoring.of_hidden(
            self.model,
            params,
            hidden,
            rollout.tokens,
            temperature,
            head_chunk=_head_chunk(self.model, self.devices, rollout.tokens.shape),
        )
        responses = token_weights.Responses(
            batch.weights, batch.rewards, valid, rollout.mask, log_probs, entropy, hidden
        )
        return losses.Tokens(
            log_probs=log_probs,
            entropy=entropy,
            old=jax.lax.stop_gradient(log_probs) if batch.old is None else batch.old,
            sampled=rollout.log_probs,
            reference=batch.reference,
            mask=rollout.mask,
            weights=token_weights.apply(self.recipe.loss.token_weights, responses),
            sizes=jnp.maximum(valid.sum(-1, keepdims=True), 1).astype(jnp.float32),
        )

    def _ratio(self, numerator: jax.Array, count: jax.Array) -> jax.Array:
        """Returns the ratio of two sums over all devices, or 0 if nothing was counted."""
        total = self.devices.total
        return total(numerator) / jnp.maximum(total(count), 1)


def _equal(rewards: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns [P] bool, True for zero-variance groups, whose valid rewards are all equal."""
    highest = jnp.where(valid, rewards, -jnp.inf).max(-1)
    lowest = jnp.where(valid, rewards, jnp.inf).min(-1)
    return highest <= lowest


def make_supervised_update(
    model: gemma.Gemma,
    optimizer: optax.GradientTransformation,
    devices: parallel.Devices,
    *,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns a compiled (state, batch, (learning_rate,)) -> (state, metrics) on demonstrations.

    A batch is (prompts, lengths, responses [P, 1, T], mask [P, 1, T]). The state is donated.
    """

    def update(
        state: TrainState, batch: tuple[jax.Array, ...], scalars: tuple
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        tokens = devices.total(batch[3].sum())

        def loss_fn(params: Any, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            prompts, lengths, responses, mask = part
            chunk = _head_chunk(model, devices, responses.shape)
            policy = {**state.frozen, **params}
            log_probs, _ = scoring.score(
                model, policy, prompts, lengths, responses, head_chunk=chunk
            )
            return losses.supervised(log_probs, mask, tokens), None

        loss, _, grads = _gradient(loss_fn, state.params, batch, micro_batches)
        loss = devices.total(loss)
        state, figures = apply_gradients(state, optimizer, devices, loss, tokens, grads, *scalars)
        return state, {"loss": loss, **figures}

    return devices.step(update, changes_state=True)


def _head_chunk(model: gemma.Gemma, devices: parallel.Devices, shape: tuple[int, ...]) -> int:
    """Returns for how many tokens of each of the responses [P, n, T] to score at a time."""
    prompts, n, tokens = shape
    return _at_once(model, devices, prompts * n, tokens)


def _at_once(model: gemma.Gemma, devices: parallel.Devices, rows: int, count: int) -> int:
    """Returns on how many of `count` batches of `rows` hidden states the head runs at a time.

    The logits then take at most 512 MiB on each device, unless those of a single batch already take
    more.
    """
    logits_of_one = rows * model.config.num_embed // devices.spread
    return max(1, min(count, 2**27 // max(logits_of_one, 1)))


def _gradient(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any, Any]:
    """Computes the loss and its gradient in `parts` equal parts of the batch, one after the other.

    Returns:
      The summed loss, the auxiliary outputs of all parts, stacked, and the summed gradient.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, aux), grads = gradient(params, batch)
        return loss, jax.tree.map(lambda x: x[None], aux), grads

    def add(total: Any, part: Any) -> tuple[Any, tuple[jax.Array, Any]]:
        loss_and_aux, grads = gradient(params, part)
        return jax.tree.map(lambda t, g: t + g, total, grads), loss_and_aux

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    grads, (loss, aux) = jax.lax.scan(add, zeros, _split(batch, parts))
    return loss.sum(), aux, jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params)


def _split(batch: Any, parts: int) -> Any:
    """Splits arrays [P, ...] into [parts, P / parts, ...].

    A part takes every parts-th row, so each device keeps the rows that it has.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
