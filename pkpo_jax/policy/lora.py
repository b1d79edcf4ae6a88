"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B for matrices W.

The adapters are the part "lora" of a policy's parameters. It mirrors the part "layers": where that
has a matrix W, "lora" has {"a": A, "b": B}, with the layers stacked. The adapters of keys and
values, and of the two halves of `gating_einsum`, are separate ones in the same arrays.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from pkpo_jax.policy.checkpoint_checks import Path, flatten
from pkpo_jax.policy.sizes import GemmaConfig

Targets = Literal["all", "attention", "mlp"]
_MODULES = {"all": ("attn", "mlp"), "attention": ("attn",), "mlp": ("mlp",)}


class Factors(NamedTuple):
    """The axes of the arrays in which an einsum passes through two factors of its matrix.

    Attributes:
      a: the axes of the first factor.
      hidden: those of what it computes from the inputs.
      b: those of the second factor.
    """

    a: str
    hidden: str
    b: str


def factors(equation: str) -> Factors:
    """Returns the axes of the factors, for an einsum of inputs with a matrix.

    >>> factors("pntd,ckdh->cpnkth")
    Factors(a='cdr', hidden='cpntr', b='crkh')
    """
    inputs, weight, _ = re.split(",|->", equation)
    stacked = "c" if "c" in weight else ""
    summed = "".join(axis for axis in weight if axis in inputs)
    kept = "".join(axis for axis in weight if axis not in inputs + stacked)
    rest = "".join(axis for axis in inputs if axis not in summed)
    return Factors(f"{stacked}{summed}r", f"{stacked}{rest}r", f"{stacked}r{kept}")


def low_rank(equation: str, x: jax.Array, adapter: Any) -> jax.Array:
    """Returns (x A) B, for the einsum of x with W that `equation` describes."""
    inputs, _, out = re.split(",|->", equation)
    axes, a, b = factors(equation), adapter["a"].astype(x.dtype), adapter["b"].astype(x.dtype)
    hidden = jnp.einsum(f"{inputs},{axes.a}->{axes.hidden}", x, a)
    return jnp.einsum(f"{axes.hidden},{axes.b}->{out}", hidden, b)


def scaled(adapters: Any, alpha: float) -> Any:
    """Returns adapters whose matrices A are multiplied by alpha / rank, for `low_rank`."""

    def scale(path: Any, x: jax.Array) -> jax.Array:
        return x * (alpha / x.shape[-1]) if path[-1].key == "a" else x

    return jax.tree_util.tree_map_with_path(scale, adapters)


def equations(config: GemmaConfig) -> dict[Path, str]:
    """Returns the einsums of inputs with the matrices of the network, by the paths of these."""
    gating = "cfd" if config.transpose_gating_einsum else "cdf"
    return {
        ("attn", "q_einsum", "w"): "pntd,mdh->pntmh",
        ("attn", "kv_einsum", "w"): "pntd,ckdh->pntckh",
        ("attn", "attn_vec_einsum", "w"): "pntmh,mhd->pntd",
        ("mlp", "gating_einsum"): f"pntd,{gating}->pntcf",
        ("mlp", "linear"): "pntf,fd->pntd",
    }


def axis_sizes(config: GemmaConfig) -> dict[str, int]:
    """Returns the sizes of the axes of the matrices in `equations`."""
    c = config
    sizes = {"c": 2, "d": c.embed_dim, "f": c.hidden_dim, "h": c.head_dim}
    return sizes | {"m": c.num_heads, "k": c.num_kv_heads}


def init(config: GemmaConfig, key: jax.Array, *, rank: int, targets: Targets) -> dict:
    """Returns float32 adapters that change nothing yet: A is random and B is zero.

    The elements of A have the variance 1 / (number of inputs), so that x A is as large as x.

    Args:
      config: the sizes of the network.
      key: the random key of A.
      rank: the number of columns of A and rows of B.
      targets: the matrices that are adapted: those of "attention", of the "mlp", or "all".
    """
    sizes = {**axis_sizes(config), "r": rank}
    flat: dict[Path, jax.Array] = {}
    for i, (path, equation) in enumerate(equations(config).items()):
        if path[0] not in _MODULES[targets]:
            continue
        axes = factors(equation)
        a, b = ([config.num_layers, *(sizes[axis] for axis in part)] for part in (axes.a, axes.b))
        inputs = 1
        for axis in axes.a.strip("cr"):
            inputs *= sizes[axis]
        flat[*path, "a"] = jax.random.normal(jax.random.fold_in(key, i), a) * inputs**-0.5
        flat[*path, "b"] = jnp.zeros(b)
    return traverse_util.unflatten_dict(flat)


def merge(params: dict, config: GemmaConfig, dtype: str) -> dict:
    """Returns parameters without adapters that compute the same, W + (alpha / rank) A B.

    The sum is computed in float32, and all parameters are then rounded to `dtype`.
    """
    layers = flatten(params["layers"])
    adapters = flatten(scaled(params["lora"], config.lora_alpha))
    for path, equation in equations(config).items():
        if (*path, "a") not in adapters:
            continue
        axes, weight = factors(equation), re.split(",|->", equation)[1]
        a, b, w = adapters[*path, "a"], adapters[*path, "b"], layers[path]
        change = jnp.einsum(f"l{axes.a},l{axes.b}->l{weight}", a, b, precision="highest")
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
