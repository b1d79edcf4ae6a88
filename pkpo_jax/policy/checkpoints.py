"""Checkpoints of Gemma in the official formats, read shard by shard onto a mesh, and written.

Three formats can be read: Orbax, in which Google publishes checkpoints and `gm.ckpts.save_params`
writes them, the safetensors of google/gemma-* on Hugging Face, and GGUF files of llama.cpp. Each
process reads the parts of each array that its devices hold. No array is whole on a host unless a
device holds it whole.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pkpo_jax.policy import checkpoint_checks as checks
from pkpo_jax.policy import gemma, gguf, hugging_face, safetensors_files
from pkpo_jax.policy.checkpoint_checks import CheckpointError as CheckpointError
from pkpo_jax.policy.checkpoint_checks import Path

WHERE = (
    "a directory with an Orbax checkpoint (kaggle.com/models/google/gemma-2/flax, or "
    "gs://gemma-data/checkpoints/gemma2-2b-it) or with the safetensors of "
    "huggingface.co/google/gemma-2-2b-it, or a GGUF file; all are under Gemma's terms"
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


def find(path: str, config: gemma.GemmaConfig) -> Checkpoint:
    """Returns the checkpoint at `path`, of any format, having read only its metadata.

    Raises:
      CheckpointError: there is no checkpoint, or its parameters are not those of `config`.
    """
    place = locate(path)
    named = _hugging_face(place)
    return hugging_face.Parameters(place, *named, config) if named else _Orbax(place, config)


def _hugging_face(path: epath.Path) -> tuple[Any, dict[str, Any]] | None:
    """Returns the tensors and the config.json of a checkpoint of Hugging Face or of a GGUF file."""
    if path.suffix == ".gguf":
        return gguf.tensors(path), gguf.config(path)
    if path.is_dir() and any(path.glob("*.safetensors")):
        return safetensors_files.read(path)
    return None


def size(path: str) -> str:
    """Returns the name in SIZES of the network that the checkpoint at `path` belongs to.

    Raises:
      CheckpointError: there is no checkpoint, or its size has no name.
    """
    place = locate(path)
    named = _hugging_face(place)
    layers, width = hugging_face.dimensions(named[0]) if named else _Tree(place).dimensions()
    name = checks.size_of(layers, width)
    if name is None:
        raise CheckpointError(
            f"{path} holds {layers} layers of width {width}; expected a checkpoint of one of "
            f"{', '.join(gemma.SIZES)}."
        )
    return name


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


@contextlib.contextmanager
def without_abandoned_reads() -> Iterator[None]:
    """Keeps quiet about reads that Orbax abandons in the body because another one has failed.

    Orbax reads arrays side by side, and raises the first error. The others then report to an event
    loop that is closed, which Python would show as a traceback each.
    """
    previous = sys.unraisablehook

    def show(unraisable: Any) -> None:
        if repr(unraisable.exc_value) != repr(RuntimeError("Event loop is closed")):
            previous(unraisable)

    sys.unraisablehook = show
    try:
        yield
    finally:
        sys.unraisablehook = previous


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
        return jax.jit(gemma.unstack, out_shardings=shardings).lower(self._like).compile()

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
    return [(f"layer_{i}", *path[1:]) for i in range(shape[0])]


def _without_layers(sharding: Any) -> Any:
    """Returns the sharding of one layer of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def _unstacked_like(like: Any) -> Any:
    flat = {}
    for path, x in checks.flatten(like).items():
        shape, sharding = x.shape, x.sharding
        if path[0] == "layers":
            shape, sharding = shape[1:], _without_layers(sharding)
        single = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        flat |= dict.fromkeys(_layer_paths(path, x.shape), single)
    return traverse_util.unflatten_dict(flat)


class _Tree:
    """The names and shapes in an Orbax checkpoint, of which three layouts are known.

    They are the tree of the `gemma` package, one with slashes in its names ("flat"), and one which
    also stacks every so many layers ("stacked"), as Google published some checkpoints.

    Attributes:
      shapes: shapes by paths, without the parameters of the part for images. None if the metadata
        is damaged.
      has_images: whether there are parameters of a part for images.
      flat: whether names hold slashes.
      period: of a stacked layout, every how many layers are stacked; otherwise 0.

    Raises:
      CheckpointError: this is no Orbax checkpoint, or one of adapters alone.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        found = self._read()
        if any(p[0] == "lora" for p in found or ()):
            raise CheckpointError(
                f"{path} holds the adapters (LoRA) of a run without the parameters that they "
                "change; export that run (--mode=export --workdir=RUN --to=DIR), and give DIR."
            )
        self.shapes = found and {p: x for p, x in found.items() if not _IMAGES.search("/".join(p))}
        self.has_images = len(self.shapes or ()) < len(found or ())
        # Where the names are unknown, the layout is assumed to be the one that `write` produces.
        self.flat = any(p[0].startswith("transformer/") for p in found or ())
        kinds = [int(m[1]) for p in found or () if (m := re.search(_KIND + r"(\d+)", p[0]))]
        self.period = 1 + max(kinds, default=-1)

    def _read(self) -> dict[Path, tuple[int, ...]] | None:
        """Returns the names and shapes in the checkpoint, or None if its metadata is damaged.

        Orbax reads more files for the metadata than for the values, such as the one that lists the
        devices of each parameter. If the values cannot be read either, `_Orbax.read` fails.
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
        flat = checks.flatten(tree)
        checks.check_dtypes(self._path, {path: x.dtype for path, x in flat.items()})
        return {path: tuple(x.shape) for path, x in flat.items()}

    def dimensions(self) -> tuple[int, int]:
        """Returns the number of layers and the width of the network, or zeros if unknown."""
        layers, width = 0, 0
        for path, shape in (self.shapes or {}).items():
            name = "/".join(path)
            if name.endswith("pre_attention_norm/scale"):
                layers, width = layers + (shape[0] if self.period else 1), shape[-1]
        return layers, width

    def parts(self, path: Path, shape: tuple[int, ...]) -> list[Path]:
        """Returns the paths in the file of the parts of the parameter at `path` in memory."""
        parts = _layer_paths(path, shape)
        if path[0] == "layers" and self.period:
            kinds = range(min(self.period, shape[0]))
            stacked: list[Path] = [
                ("stacked_layers", f"attention_type_{i}", *path[1:]) for i in kinds
            ]
            parts = stacked
        return [_flattened(part) for part in parts] if self.flat else parts


# The parameters of the part for images, in each layout.
_IMAGES = re.compile("vision_encoder|SigLiPFromPatches|embedder/mm_")
_KIND = "stacked_layers/attention_type_"


class _Orbax:
    """An Orbax checkpoint of the network of `config`."""

    def __init__(self, path: epath.Path, config: gemma.GemmaConfig) -> None:
        self._path = path.resolve()
        self._tree = _Tree(self._path)
        if self._tree.shapes is None:
            return
        checks.check_size(path, *self._tree.dimensions(), config)
        targets = self._targets(_expected(config))
        checks.check_shapes(path, {p: x.shape for p, x in targets.items()}, self._tree.shapes)

    def _targets(self, like: Any) -> dict[Path, jax.ShapeDtypeStruct]:
        """Returns the arrays in the file, for parameters that are `like` this in memory."""
        targets = {}
        for path, x in checks.flatten(like).items():
            names = self._tree.parts(path, x.shape)
            shapes, sharding = [x.shape], x.sharding
            if path[0] == "layers" and self._tree.period:
                counts = [len(range(i, x.shape[0], self._tree.period)) for i in range(len(names))]
                shapes = [(count, *x.shape[1:]) for count in counts]
            elif path[0] == "layers":
                shapes, sharding = [x.shape[1:]] * len(names), _without_layers(sharding)
            for name, shape in zip(names, shapes, strict=True):
                targets[name] = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        return targets

    def read(self, like: Any) -> Any:
        targets = traverse_util.unflatten_dict(self._targets(like))
        # The part for images stays on disk.
        arguments = ocp.args.PyTreeRestore(
            item=targets,
            restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
            partial_restore=self._tree.has_images,
        )
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        with without_abandoned_reads(), reader as checkpointer:
            tree = checkpointer.restore(self._path, arguments)
        read: dict[Path, Any] = traverse_util.flatten_dict(tree)
        single = {}
        for path, x in checks.flatten(like).items():
            parts = [read.pop(name) for name in self._tree.parts(path, x.shape)]
            if path[0] == "layers" and (period := self._tree.period):
                parts = [parts[i % period][i // period] for i in range(x.shape[0])]
            single |= zip(_layer_paths(path, x.shape), parts, strict=True)
        params = Stacked(like).stack(traverse_util.unflatten_dict(single))
        return checks.check_finite(self._path, params)


def _expected(config: gemma.GemmaConfig) -> Any:
    """Returns the shapes and dtypes of the parameters in memory."""
    init = functools.partial(gemma.init_params, gemma.Gemma(config))
    return jax.eval_shape(init, jax.random.key(0))


def _flattened(path: Path) -> Path:
    """Returns a path as flat layouts have it: names joined by slashes, then the last name.

    The parameters of the MLP have an additional last name, `w`.
    """
    path = ("transformer", *path) + (("w",) if "mlp" in path else ())
    return "/".join(path[:-1]), path[-1]
