"""The compiled steps of a config and the shapes that they run on, without data or parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.policy import gemma, lora
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import state, step, weights


class Programs:
    """The model, optimiser, sampler and updates of a config. Building them compiles nothing.

    Args:
      config: the whole config.
      devices: where the programs run.
      tokenizer: a tokenizer or its class, of which only `vocab_size` and `stop_tokens` are used.
    """

    def __init__(
        self,
        config: config_dict.ConfigDict,
        devices: parallel.Devices,
        tokenizer: Any,
    ) -> None:
        self.config, self.devices = config_lib.freeze(config), devices
        self._stop_tokens = tokenizer.stop_tokens
        options = self.config.model
        # A config whose checkpoint says the size has been resolved before.
        name = "tiny" if options.size == "auto" else options.size
        size = gemma.SIZES[name]
        if name == "tiny":
            # Like the official tables, this one has a round number of rows.
            rows = -(-tokenizer.vocab_size // 16) * 16
            size = dataclasses.replace(size, vocab_size=tokenizer.vocab_size, num_embed=rows)
        size = dataclasses.replace(size, dtype=options.dtype, lora_alpha=options.lora.alpha)
        remat = options.remat_policy if options.remat else "none"
        self.model = gemma.Gemma(size, remat, options.unroll, devices.place)
        self.optimizer = state.make_optimizer(self.config.train)
        self.recipe = step.Recipe(
            weights.make(self.config.estimator),
            self.config.loss,
            self.config.train,
            weights.needs_embeddings(self.config.estimator),
        )
        self.update = step.make_update(self.model, self.optimizer, devices, self.recipe)
        self.supervised_update = step.make_supervised_update(
            self.model, self.optimizer, devices, micro_batches=self.config.train.micro_batches
        )
        self.scorer = step.make_scorer(self.model, devices)
        self._samplers: dict[tuple[int, float], Any] = {}
        # Each access to a method makes a new object, by whose identity JAX knows what it has
        # traced. These are therefore bound once.
        self._init_params, self._create = self._make_params, self._make_state
        self._init_adapters = self._make_adapters
        self._copy = functools.partial(jax.tree.map, jnp.copy)

    @property
    def needs_old(self) -> bool:
        """Whether an update needs the tokens' log-probs under the policy before the update."""
        r = self.recipe
        off_policy = self.config.estimator.name == "off_policy"
        return r.train.epochs * r.train.minibatches > 1 or r.loss.kl_in_reward or off_policy

    @property
    def needs_classes(self) -> bool:
        """Whether the estimator looks at which responses of a group gave equal answers."""
        return weights.needs_classes(self.config.estimator)

    @property
    def needs_earlier(self) -> bool:
        """Whether the estimator looks at what earlier visits to a problem have shown."""
        return weights.needs_earlier(self.config.estimator)

    @property
    def needs_reference(self) -> bool:
        """Whether an update needs the tokens' log-probs under the reference policy."""
        return self.recipe.loss.kl != "none"

    def sampler(self, n: int, top_p: float = 1.0) -> Any:
        """Returns the compiled sampler of n responses to each prompt."""
        if (n, top_p) not in self._samplers:
            self._samplers[n, top_p] = step.make_sampler(
                self.model,
                self.devices,
                n=n,
                max_response=self.config.rollout.max_response,
                stop_tokens=self._stop_tokens,
                top_p=top_p,
            )
        return self._samplers[n, top_p]

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts of the policy's parameters that are not trained."""
        options = self.config.model
        if options.lora.rank:
            return "embedder", "final_norm", "layers"
        return () if options.train_embedding else ("embedder",)

    def create(self, policy: Any) -> state.TrainState:
        """Returns the state of a run that starts from this policy.

        It holds what is not trained without a copy, so that the first update, to which the state is
        donated, takes this memory from `policy` too.
        """
        params, frozen = state.split(policy, self.frozen)
        return self._placed(self._create)(params).replace(frozen=frozen)

    def copy_trained(self, policy: Any) -> dict[str, Any]:
        """Returns a copy of the parts of this policy that are trained.

        It stays when the first update takes the memory of a state that `create` has made.
        """
        params, _ = state.split(policy, self.frozen)
        return self._placed(self._copy)(params)

    def random_adapters(self, key: jax.Array) -> dict[str, Any]:
        """Returns the part {"lora": ...} of a policy, before training, or {} without adapters."""
        return self._placed(self._init_adapters)(key)

    def abstract_adapters(self) -> dict[str, Any]:
        """Returns the shapes, dtypes and shardings of `random_adapters`."""
        return self._abstract(self._init_adapters, jax.random.key(0))

    def random_params(self, key: jax.Array) -> Any:
        """Returns random parameters on the devices, each of which computes its own part.

        Neither here nor in `abstract_params` are there adapters.
        """
        return self._placed(self._init_params)(key)

    def abstract_params(self) -> Any:
        """Returns the shapes, dtypes and shardings of the parameters."""
        return self._abstract(self._init_params, jax.random.key(0))

    def abstract_policy(self) -> Any:
        """Returns the shapes, dtypes and shardings of the parameters and the adapters."""
        return self.abstract_params() | self.abstract_adapters()

    def abstract_state(self) -> state.TrainState:
        """Returns the shapes, dtypes and shardings of the state, for restoring a checkpoint."""
        params, frozen = state.split(self.abstract_policy(), self.frozen)
        return self._abstract(self._create, params).replace(frozen=frozen)

    def _abstract(self, f: Any, x: Any) -> Any:
        return parallel.abstract(jax.eval_shape(f, x), self.devices.mesh)

    def _make_params(self, key: jax.Array) -> Any:
        """Returns random parameters in `model.param_dtype`."""
        params = gemma.init_params(self.model, key)
        return jax.tree.map(lambda x: x.astype(self.config.model.param_dtype), params)

    def _make_adapters(self, key: jax.Array) -> dict[str, Any]:
        options = self.config.model.lora
        if not options.rank:
            return {}
        size = self.model.config
        return {"lora": lora.init(size, key, rank=options.rank, targets=options.targets)}

    def _make_state(self, params: Any) -> state.TrainState:
        return state.TrainState.create(params, self.optimizer)

    def _placed(self, f: Any) -> Any:
        def placed(x: Any) -> Any:
            shardings = parallel.placements(jax.eval_shape(f, x), self.devices.mesh)
            return jax.jit(f, out_shardings=shardings)(x)

        return placed
