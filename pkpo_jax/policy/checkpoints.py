"""Gemma-2 checkpoints in the official formats, read shard by shard onto a mesh, and written.

Two formats can be read: Orbax, in which Google publishes checkpoints and `gm.ckpts.save_params`
writes them, and the safetensors of google/gemma-2-* on Hugging Face. Each process reads the parts
of each array that its devices hold. No array is whole on a host unless a device holds it whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pkpo_jax.policy import checkpoint_checks as checks
from pkpo_jax.policy import gemma2, hugging_face
from pkpo_jax.policy.checkpoint_checks import CheckpointError as CheckpointError
from pkpo_jax.policy.checkpoint_checks import Path

WHERE = (
    "a directory with an Orbax checkpoint (kaggle.com/models/google/gemma-2/flax, or "
    "gs://gemma-data/checkpoints/gemma2-2b-it) or with the safetensors of "
    "huggingface.co/google/gemma-2-2b-it; both ask you to accept Gemma's terms first"
)


class Checkpoint(Protocol):
    """A checkpoint whose names and shapes have been checked, but whose values are not read yet."""

    def read(self, like: Any) -> Any:
        """Reads the parameters.

        Args:
          like: a tree of ShapeDtypeStructs with the shapes, dtypes and shardings to read.

        Raises:
          CheckpointError: they cannot be read, or hold a number that is not finite.
        """
        ...


def find(path: str, config: gemma2.Gemma2Config) -> Checkpoint:
    """Returns the checkpoint at `path`, of either format, having read only its metadata.

    Raises:
      CheckpointError: there is no checkpoint, or its parameters are not those of `config`.
    """
    directory = locate(path)
    if directory.is_dir() and any(directory.glob("*.safetensors")):
        return hugging_face.Files(directory, config)
    return _Orbax(directory, config)


def locate(path: str) -> epath.Path:
    """Returns the directory at `path`.

    Raises:
      CheckpointError: it does not exist or cannot be reached.
    """
    try:
        directory = epath.Path(path).expanduser()
        exists = directory.exists()
    except ImportError as e:
        raise CheckpointError(f"{path} cannot be reached ({e}).") from None
    if not exists:
        raise CheckpointError(f"{path} does not exist; expected {WHERE}.")
    return directory


def write(path: str, params: Any) -> None:
    """Writes parameters to a new directory, in the format of `gm.ckpts.save_params`."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(path).expanduser().resolve(), Stacked(params).unstack(params))


class Stacked:
    """Conversion between the stacked layout in memory and the layer-by-layer layout of files.

    Attributes:
      like: the shapes, dtypes and shardings of the parameters in files.
    """

    def __init__(self, like: Any) -> None:
        self._like = like
        self.like = _unstacked_like(like)

    @functools.cached_property
    def unstack(self) -> Callable[[Any], Any]:
        """The compiled function that unstacks parameters; it is compiled on first access."""
        shardings = jax.tree.map(lambda x: x.sharding, self.like)
        return jax.jit(gemma2.unstack, out_shardings=shardings).lower(self._like).compile()

    def stack(self, params: Any) -> Any:
        """Stacks one kind of parameter at a time and deletes its parts, to avoid a second copy."""
        flat = checks.flatten(params)
        stacked = {}
        for path, like in checks.flatten(self._like).items():
            parts = [flat[name] for name in _layer_paths(path, like.shape)]
            if path[0] != "layers":
                stacked[path] = parts[0]
                continue
            stacked[path] = jax.jit(_stack, out_shardings=like.sharding)(*parts)
            for part in parts:
                part.delete()
        return traverse_util.unflatten_dict(stacked)


def _stack(*parts: jax.Array) -> jax.Array:
    """Stacks arrays; a module-level function, so that jax.jit reuses what it has compiled."""
    return jnp.stack(parts)


def _layer_paths(path: Path, shape: tuple[int, ...]) -> list[Path]:
    """Returns the paths, in a tree of single layers, of the parts of a stacked parameter."""
    if path[0] != "layers":
        return [path]
    place = gemma2.KINDS.index(path[1])
    return [(f"layer_{2 * pair + place}", *path[2:]) for pair in range(shape[0])]


def _unstacked_like(like: Any) -> Any:
    flat = {}
    for path, x in checks.flatten(like).items():
        shape, sharding = x.shape, x.sharding
        if path[0] == "layers":
            shape = shape[1:]
            if isinstance(sharding, NamedSharding):
                sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        single = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        flat |= dict.fromkeys(_layer_paths(path, x.shape), single)
    return traverse_util.unflatten_dict(flat)


def _expected_shapes(config: gemma2.Gemma2Config) -> dict[Path, tuple[int, ...]]:
    """Returns the shapes of the stacked parameters by their paths."""
    model = gemma2.Gemma2(config)
    tree = jax.eval_shape(functools.partial(gemma2.init_params, model), jax.random.key(0))
    return {path: x.shape for path, x in checks.flatten(tree).items()}


class _Orbax:
    """An Orbax checkpoint, with the tree of the `gemma` package or in a flat layout of Google's."""

    def __init__(self, path: epath.Path, config: gemma2.Gemma2Config) -> None:
        self._path = path.resolve()
        found = self._shapes()
        # Where the names are unknown, the layout is assumed to be the one that `write` produces.
        self._stacked = any("stacked_layers" in p[0] for p in found or ())
        self._flat = any(p[0].startswith("transformer/") for p in found or ())
        expected = {}
        for path_in_memory, shape in _expected_shapes(config).items():
            for name in self._names(path_in_memory, shape):
                single = path_in_memory[0] == "layers" and not self._stacked
                expected[name] = shape[1:] if single else shape
        if found is not None:
            checks.check_shapes(path, expected, found)

    def _shapes(self) -> dict[Path, tuple[int, ...]] | None:
        """Returns the names and shapes in the checkpoint, or None if its metadata is damaged.

        Orbax reads more files for the metadata than for the values, such as the one that lists the
        devices of each parameter. If the values cannot be read either, `read` fails.

        Raises:
          CheckpointError: this is no Orbax checkpoint.
        """
        tree, reason = None, ""
        try:
            # The handler is used because a checkpointer warns about metadata that the parameters of
            # a run keep in their parent directory.
            tree = ocp.StandardCheckpointHandler().metadata(self._path).tree
        except Exception as e:  # Orbax raises whatever the file system does.
            if any((self._path / name).exists() for name in ("_METADATA", "manifest.ocdbt")):
                return None
            reason = f" ({type(e).__name__})"
        if not isinstance(tree, dict):
            raise CheckpointError(
                f"{self._path} cannot be read as an Orbax checkpoint{reason}; expected {WHERE}. "
                "A run keeps its own in DIR/checkpoints/<step>/params."
            )
        checks.check_dtypes(self._path, {path: x.dtype for path, x in checks.flatten(tree).items()})
        return {path: tuple(x.shape) for path, x in checks.flatten(tree).items()}

    def _names(self, path: Path, shape: tuple[int, ...]) -> list[Path]:
        """Returns the names in the file of the parts of the parameter at `path` in memory."""
        if not self._flat:
            return _layer_paths(path, shape)
        if self._stacked and path[0] == "layers":
            kind = gemma2.KINDS.index(path[1])
            return [_flattened(("stacked_layers", f"attention_type_{kind}", *path[2:]))]
        return [_flattened(p) for p in _layer_paths(path, shape)]

    def read(self, like: Any) -> Any:
        single = checks.flatten(_unstacked_like(like))
        targets, origin = {}, {}
        for path, x in checks.flatten(like).items():
            names = self._names(path, x.shape)
            in_memory = [path] if self._stacked else _layer_paths(path, x.shape)
            for name, part in zip(names, in_memory, strict=True):
                targets[name] = x if self._stacked else single[part]
                origin[name] = part
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(self._path, traverse_util.unflatten_dict(targets))
        flat = traverse_util.flatten_dict(restored)
        params = traverse_util.unflatten_dict({origin[name]: x for name, x in flat.items()})
        params = params if self._stacked else Stacked(like).stack(params)
        return checks.check_finite(self._path, params)


def _flattened(path: Path) -> Path:
    """Returns a path as flat layouts have it: names joined by slashes, then the last name.

    The parameters of the MLP have an additional last name, `w`.
    """
    path = ("transformer", *path, *(("w",) if "mlp" in path else ()))
    return "/".join(path[:-1]), path[-1]
