"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B for matrices W.

The adapters are the part "lora" of a policy's parameters. It mirrors the part "layers": where that
has a matrix W, "lora" has {"a": A, "b": B}, with the layers stacked. The adapters of keys and
values, and of the two halves of `gating_einsum`, are separate ones in the same arrays.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from pkpo_jax.policy import matrices
from pkpo_jax.policy.checkpoint_checks import Path, flatten
from pkpo_jax.policy.sizes import GemmaConfig

Targets = Literal["all", "attention", "mlp"]
_MODULES = {"all": ("attn", "mlp"), "attention": ("attn",), "mlp": ("mlp",)}


class Factors(NamedTuple):
    """The axes of the arrays in which a product passes through two factors of its matrix.

    Attributes:
      a: the axes of the first factor.
      hidden: those of what it computes from the inputs.
      b: those of the second factor.
    """

    a: str
    hidden: str
    b: str


def factors(of: matrices.Axes) -> Factors:
    """Returns the axes of the factors of a matrix.

    >>> factors(matrices.Axes("pntd", "ckdh"))
    Factors(a='cdr', hidden='cpntr', b='crkh')
    """
    stacked = "c" if "c" in of.matrix else ""
    rest = "".join(axis for axis in of.inputs if axis not in of.summed)
    kept = of.kept.removeprefix("c")
    return Factors(f"{stacked}{of.summed}r", f"{stacked}{rest}r", f"{stacked}r{kept}")


def low_rank(of: matrices.Axes, x: jax.Array, adapter: Any) -> jax.Array:
    """Returns (x A) B, for the product x W with a matrix W of these axes."""
    axes, a, b = factors(of), adapter["a"].astype(x.dtype), adapter["b"].astype(x.dtype)
    hidden = jnp.einsum(f"{of.inputs},{axes.a}->{axes.hidden}", x, a)
    return jnp.einsum(f"{axes.hidden},{axes.b}->{of.out}", hidden, b)


def scaled(adapters: Any, alpha: float) -> Any:
    """Returns adapters whose matrices A are multiplied by alpha / rank, for `low_rank`."""

    def scale(path: Any, x: jax.Array) -> jax.Array:
        return x * (alpha / x.shape[-1]) if path[-1].key == "a" else x

    return jax.tree_util.tree_map_with_path(scale, adapters)


def init(config: GemmaConfig, key: jax.Array, *, rank: int, targets: Targets) -> dict:
    """Returns float32 adapters that change nothing yet: A is random and B is zero.

    The elements of A have the variance 1 / (number of inputs), so that x A is as large as x.

    Args:
      config: the sizes of the network.
      key: the random key of A.
      rank: the number of columns of A and rows of B.
      targets: the matrices that are adapted: those of "attention", of the "mlp", or "all".
    """
    flat: dict[Path, jax.Array] = {}
    for i, (path, of) in enumerate(matrices.axes(config).items()):
        if path[0] not in _MODULES[targets]:
            continue
        stacked, outputs = factors(of).b.split("r")
        copies = [config.num_layers, *matrices.sizes(config, stacked)]
        a = [*copies, *matrices.sizes(config, of.summed), rank]
        b = [*copies, rank, *matrices.sizes(config, outputs)]
        scale = matrices.fan_in(config, of) ** -0.5
        flat[*path, "a"] = jax.random.normal(jax.random.fold_in(key, i), a) * scale
        flat[*path, "b"] = jnp.zeros(b)
    return traverse_util.unflatten_dict(flat)


def merge(params: dict, config: GemmaConfig, dtype: str) -> dict:
    """Returns parameters without adapters that compute the same, W + (alpha / rank) A B.

    The sum is computed in float32, and all parameters are then rounded to `dtype`.
    """
    layers = flatten(params["layers"])
    adapters = flatten(scaled(params["lora"], config.lora_alpha))
    for path, of in matrices.axes(config).items():
        if (*path, "a") not in adapters:
            continue
        axes = factors(of)
        a, b, w = adapters[*path, "a"], adapters[*path, "b"], layers[path]
        change = jnp.einsum(f"l{axes.a},l{axes.b}->l{of.matrix}", a, b, precision="highest")
        layers[path] = w.astype(jnp.float32) + change
    rest = {name: x for name, x in params.items() if name != "lora"}
    merged = rest | {"layers": traverse_util.unflatten_dict(layers)}
    return jax.tree.map(lambda x: x.astype(dtype), merged)


def read(path: str, like: Any) -> dict:
    """Reads the adapters that a run keeps at `path`, as the part {"lora": ...} of its parameters.

    Args:
      path: the directory of the adapters, such as DIR/checkpoints/<step>/params.
      like: this part, as a tree of ShapeDtypeStructs with shardings.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(epath.Path(path).expanduser().resolve(), like)
