"""Gemma 2 and Gemma 3 in flax.linen, with the parameters of the `gemma` package.

Arrays are [prompts, n, ...], for n responses share one prompt. All n attend to its keys and values,
which are computed once, beside their own. Sampling computes these (`Gemma.prefill`) and then token
after token (`Gemma.decode`), scoring both in one pass (`Gemma.respond`).

A scan runs over the layers, so that compile time does not grow with depth. Local and global layers
differ in their window and their rotary embeddings alone, which the scan reads as arrays. In memory
the parameters of the layers are stacked, [layers, ...]. `unstack` converts them to the tree of the
`gemma` package, with `layer_0`, `layer_1`, ..., and `stack` converts that tree back. A part "lora"
beside the layers holds low-rank adapters, see lora.py.

The networks are described in the technical reports of Gemma 2, arXiv 2408.00118, and of Gemma 3,
arXiv 2503.19786.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from pkpo_jax.policy import lora, matrices
from pkpo_jax.policy.attention import KeyValues, last_keys, soft_capped
from pkpo_jax.policy.checkpoint_checks import flatten
from pkpo_jax.policy.layers import Block, LayerKind, PairOfBlocks, RMSNorm
from pkpo_jax.policy.sizes import SIZES as SIZES
from pkpo_jax.policy.sizes import GemmaConfig as GemmaConfig

PAD_ID = 0
_MASKED = -1e30
# No sequence is longer than this window, by which global layers see all tokens.
_ALL_TOKENS = 2**30


# The keys and values of each layer.
Cache = tuple[KeyValues, ...]

Remat = Literal["none", "full", "dots"]

# A function that returns its first argument, possibly constrained to the devices where arrays of
# the kind that the second one names, "activations" or "logits", live.
Placement = Callable[[jax.Array, str], jax.Array]


def _anywhere(x: jax.Array, kind: str) -> jax.Array:
    return x


class Prefix(NamedTuple):
    """Keys and values of the prompts, which the n responses to each prompt share.

    Attributes:
      layers: keys and values of all layers, [layers, P, num_kv_heads, L, head_dim] each, or a
        tuple of those of single layers (see `for_decoding`).
      length: [P] int32, how many of the L positions hold tokens of the prefix.
    """

    layers: Any
    length: jax.Array


def layer_kinds(config: GemmaConfig) -> LayerKind:
    """Returns the window and the timescales of all layers, with a leading axis for the layers."""
    half = config.head_dim // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / half
    is_global = np.array([config.is_global(layer) for layer in range(config.num_layers)])
    return LayerKind(
        jnp.where(is_global, _ALL_TOKENS, config.sliding_window_size),
        jnp.where(
            is_global[:, None],
            config.global_base_frequency**exponents * config.global_scale_factor,
            config.local_base_frequency**exponents,
        ),
    )


class Embedder(nn.Module):
    """The embedding table, which is also the head."""

    config: GemmaConfig

    def setup(self) -> None:
        c = self.config
        self.table = self.param(
            "input_embedding",
            nn.initializers.normal(c.embed_dim**-0.5),
            (c.num_embed, c.embed_dim),
        )

    def encode(self, tokens: jax.Array) -> jax.Array:
        x = self.table[tokens].astype(self.config.dtype)
        return x * jnp.sqrt(self.config.embed_dim).astype(x.dtype)

    def decode(self, x: jax.Array) -> jax.Array:
        c = self.config
        # At JAX's default precision, accelerators multiply float32 with fewer bits (TPUs in
        # bfloat16, GPUs in TF32) and add in float32. Setting jax_default_matmul_precision="highest"
        # uses all bits.
        table = self.table.astype(c.dtype)
        logits = jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)
        logits = soft_capped(logits, c.final_logit_softcap)
        ids = jnp.arange(c.num_embed)
        sampled = ids < c.vocab_size
        for token in c.never_sampled:
            sampled &= ids != token
        return jnp.where(sampled, logits, _MASKED)


class Gemma(nn.Module):
    """The network, used through `apply(..., method=...)` with its methods.

    Attributes:
      config: the sizes of the network.
      remat: what the backward pass computes again: nothing ("none"), all of a layer but its inputs
        ("full"), or all but these and the results of dense products ("dots").
      unroll: whether the layers are compiled one by one and not as a loop, which takes longer to
        compile.
      place: applied to activations [P, n, T, D] before each layer and to logits, to constrain which
        devices they live on.
    """

    config: GemmaConfig
    remat: Remat = "none"
    unroll: bool = False
    place: Placement = _anywhere

    def setup(self) -> None:
        self.embedder = Embedder(self.config)
        self.final_norm = RMSNorm()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Computes the normalised hidden states [B, T, D] of sequences of tokens [B, T]."""
        return self.respond(tokens[:, :1], jnp.ones(len(tokens), jnp.int32), tokens[:, None])[:, 0]

    def prefill(self, prompts: jax.Array, lengths: jax.Array) -> Prefix:
        """Computes the prefix of [P, L] right-padded prompts of `lengths` [P], less the last token.

        The last token is fed with the responses, so that every response token is predicted by the
        same program, in sampling and in scoring.
        """
        layer = self._layer(prompts[:, None], 0, None)
        x = self.embedder.encode(prompts[:, None])
        _, layers = self._scan(lambda x, scanned: layer(x, *scanned), x, *self._layers())
        return Prefix(jax.tree.map(lambda x: x[:, :, 0], layers), lengths - 1)

    def respond(self, prompts: jax.Array, lengths: jax.Array, tokens: jax.Array) -> jax.Array:
        """Computes the hidden states of responses and the prefix that they share in one pass.

        The parameters of each layer are read, and gathered if they are split, only once for prompts
        and responses.

        Args:
          prompts: [P, L] int32, right-padded.
          lengths: [P] int32, the number of tokens of each prompt, at least 1.
          tokens: [P, n, T] int32, the last token of each prompt and then those of the responses.

        Returns:
          [P, n, T, D] normalised hidden states, for `logits`.
        """
        of_prompts = self._layer(prompts[:, None], 0, None)
        of_responses = self._layer(tokens, 0, lengths - 1)

        def body(x: tuple[jax.Array, jax.Array], scanned: Any) -> Any:
            prompt, kv = of_prompts(x[0], *scanned)
            shared = jax.tree.map(lambda y: y[:, 0], kv)
            response, _ = of_responses(x[1], *scanned, shared)
            return (prompt, response), None

        both = self.embedder.encode(prompts[:, None]), self.embedder.encode(tokens)
        (_, x), _ = self._scan(body, both, *self._layers())
        return self.final_norm(self.place(x, "activations"))

    def decode(
        self, tokens: jax.Array, prefix: Prefix, start: jax.typing.ArrayLike, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Computes the hidden states of one more token of each response.

        Parameters and prefix are those that `for_decoding` returns.

        Args:
          tokens: [P, n] int32.
          prefix: the prefix that the n responses share.
          start: how many tokens of each response precede these. Their keys are in the cache.
          cache: keys and values of each layer.

        Returns:
          [P, n, D] normalised hidden states, for `logits`, and the cache with the new keys.
        """
        layer = self._layer(tokens[..., None], start, prefix.length)
        variables, kinds = self._layers()
        x, new = self.embedder.encode(tokens[..., None]), []
        for i, earlier in enumerate(cache):
            one = {name: of_layers[i] for name, of_layers in variables.items()}
            kind = jax.tree.map(lambda a, i=i: a[i], kinds)
            x, own = layer(x, one, kind, prefix.layers[i], earlier)
            new.append(own)
        # The cache is written once all layers have read it, so that XLA need not copy it. The
        # zeros say so. XLA for CPUs does not keep to an `optimization_barrier`.
        zeros = 0.0 * x[:, :, None, :, :1]
        new = jax.tree.map(lambda y: y + zeros, new)
        cache = tuple(_written(old, own, start) for old, own in zip(cache, new, strict=True))
        return self.final_norm(self.place(x, "activations"))[:, :, 0], cache

    def _layers(self) -> tuple[dict[str, Any], LayerKind]:
        """Returns the variables and the kinds of all layers."""
        variables = {"params": self.get_variable("params", "layers")}
        if self.has_variable("params", "lora"):
            adapters = self.get_variable("params", "lora")
            variables["lora"] = lora.scaled(adapters, self.config.lora_alpha)
        return variables, layer_kinds(self.config)

    def _layer(
        self, tokens: jax.Array, start: jax.typing.ArrayLike, length: jax.Array | None
    ) -> Callable[..., tuple[jax.Array, KeyValues]]:
        """Returns a function that runs one layer on the activations of tokens [P, n, T].

        It maps (activations, variables, kind, keys and values of the prefix, cache) to the new
        activations and the keys and values of the tokens. The last two arguments can be left out.
        """
        block = Block(self.config, parent=None)
        offset = jnp.zeros(tokens.shape[:1], jnp.int32) if length is None else length
        positions = offset[:, None] + start + jnp.arange(tokens.shape[2])

        def layer(
            x: jax.Array, variables: Any, kind: LayerKind, shared: Any = None, cache: Any = None
        ) -> Any:
            prefix = None
            if shared is not None and length is not None:
                # A prefix that was cut holds its last tokens alone.
                prefix = shared, jnp.minimum(length, shared.keys.shape[2])
            x = self.place(x, "activations")
            return block.apply(variables, x, kind, positions, start, prefix, cache)

        return layer

    def _scan(self, body: Callable[[Any, Any], Any], x: Any, *scanned: Any) -> Any:
        """Scans over the layers, which the backward pass computes again as `remat` says."""
        if self.remat != "none":
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = keep if self.remat == "dots" else None
            # Without a loop, XLA would merge what is computed again with what it should replace.
            body = jax.checkpoint(body, prevent_cse=self.unroll, policy=policy)
        return jax.lax.scan(body, x, scanned, unroll=self.unroll)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits [..., num_embed] of hidden states [..., D].

        PAD and the rows of the table that belong to no token are masked.
        """
        return self.place(self.embedder.decode(hidden), "logits")

    def init_cache(self, prompts: int, n: int, length: int) -> Cache:
        """Returns an empty cache for `length` tokens of each response.

        Local layers keep the keys of as many tokens as their window has, if that is less. Tokens
        then have to be given one at a time.
        """
        c = self.config

        def empty(size: int) -> jax.Array:
            return jnp.zeros((prompts, n, c.num_kv_heads, size, c.head_dim), c.dtype)

        return tuple(KeyValues(empty(size), empty(size)) for size in cache_sizes(c, length))

    @nn.compact
    def initialise(self) -> None:
        """Makes random parameters, with the layers in pairs as `PairOfBlocks` names them."""
        tokens = jnp.zeros((1, 1, 1), jnp.int32)
        pairs = nn.scan(
            PairOfBlocks,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 5,
            length=-(-self.config.num_layers // 2),
        )(self.config, name="layers")
        kind = jax.tree.map(lambda x: x[0], layer_kinds(self.config))
        x, _ = pairs(self.embedder.encode(tokens), kind, tokens[0], 0, None, None)
        self.final_norm(x)


def cache_sizes(config: GemmaConfig, length: int) -> list[int]:
    """Returns for how many tokens each layer has room in a cache for `length` tokens."""
    local = min(length, config.sliding_window_size)
    return [length if config.is_global(i) else local for i in range(config.num_layers)]


def _written(old: KeyValues, new: KeyValues, start: jax.typing.ArrayLike) -> KeyValues:
    """Returns the cache of a layer with the keys and values of the tokens from `start` on."""
    at = (0, 0, 0, jnp.asarray(start) % old.keys.shape[3], 0)
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y, at), old, new)


def grow_cache(config: GemmaConfig, cache: Cache, length: int) -> Cache:
    """Returns a cache with room for `length` tokens, of one that is full."""

    def grow(x: jax.Array, size: int) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * 3 + [(0, size - x.shape[3]), (0, 0)])

    sizes = cache_sizes(config, length)
    return tuple(
        KeyValues(*(grow(x, size) for x in kv)) for kv, size in zip(cache, sizes, strict=True)
    )


def log_probs_and_entropy(
    logits: jax.Array, temperature: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probs [..., V] of softmax(logits / temperature), and its entropy [...]."""
    log_p = jax.nn.log_softmax(logits / temperature)
    return log_p, -(jnp.exp(log_p) * log_p).sum(-1)


def last_prompt_token(prompts: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns [P] the last token of each of the right-padded prompts [P, L] of `lengths` [P]."""
    return jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)[:, 0]


def init_params(model: Gemma, key: jax.Array) -> dict:
    """Returns random float32 parameters scaled by fan-in, for a policy trained from scratch."""
    params = dict(model.init(key, method="initialise")["params"])
    layers = jax.tree.map(interleave, params["layers"]["local"], params["layers"]["global"])
    # Where the number of layers is odd, the last pair has one layer too many.
    layers = jax.tree.map(lambda x: x[: model.config.num_layers], layers)
    return params | {"layers": layers}


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns [2 m, ...] of which the even rows are `first` [m, ...], the odd ones `second`."""
    return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])


def for_decoding(tree: Any, config: GemmaConfig) -> Any:
    """Returns parameters or a prefix as `Gemma.decode` reads them, for a loop over tokens.

    They are tuples of single layers, which the loop reads where they are, while it would copy each
    layer from a stack. The axes of matrices are in the order in which products need no copy. Local
    layers keep the part of the prefix that is within their window.
    """

    def split(layers: Any) -> list[Any]:
        count = jax.tree.leaves(layers)[0].shape[0]
        return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count)]

    if isinstance(tree, Prefix):
        visible = [
            layer
            if config.is_global(i)
            else last_keys(layer, tree.length, config.sliding_window_size - 1)[0]
            for i, layer in enumerate(split(tree.layers))
        ]
        return tree._replace(layers=tuple(visible))
    layers = []
    for layer in split(tree["layers"]):
        flat: dict[Any, Any] = flatten(layer)
        for path, of in matrices.axes(config).items():
            flat[path] = matrices.SummedFirst(flat[path].transpose(of.summed_first))
        layers.append(traverse_util.unflatten_dict(flat))
    adapters = {"lora": tuple(split(tree["lora"]))} if "lora" in tree else {}
    return tree | {"layers": tuple(layers)} | adapters


def cast(params: dict, dtype: str) -> dict:
    """Converts all matrices, adapters and the embedding table to `dtype`, but not the norms."""

    def convert(path: Any, x: jax.Array) -> jax.Array:
        return x if path[-1].key == "scale" else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(convert, params)


def unstack(params: dict) -> dict:
    """Returns parameters as the `gemma` package names them, with `layer_0`, `layer_1`, ...

    Adapters, which that package names otherwise, stay stacked.
    """
    if "layers" not in params:
        return params
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = {
        f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
    }
    return {name: params[name] for name in params if name != "layers"} | layers


def stack(params: dict) -> dict:
    """Inverts `unstack`: returns parameters with the layers stacked."""
    count = sum(name.startswith("layer_") for name in params)
    layers = jax.tree.map(lambda *x: jnp.stack(x), *(params[f"layer_{i}"] for i in range(count)))
    rest = {name: x for name, x in params.items() if not name.startswith("layer_")}
    return rest | {"layers": layers}
