"""Official Gemma-2 checkpoints, read shard by shard onto a mesh, and written.

Two formats: Orbax, as Google publishes them (and `gm.ckpts.save_params` writes them), and the
safetensors of google/gemma-2-* on Hugging Face. Each process reads the parts of each array that its
devices hold; no array is whole on a host unless a device holds it whole.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pkpo_jax.policy import gemma2, hugging_face

WHERE = (
    "a directory with an Orbax checkpoint (kaggle.com/models/google/gemma-2/flax, or "
    "gs://gemma-data/checkpoints/gemma2-2b-it) or with the safetensors of "
    "huggingface.co/google/gemma-2-2b-it; both ask you to accept Gemma's terms first"
)

Path = tuple[str, ...]


class CheckpointError(ValueError):
    """A checkpoint that is not there, or not of this network."""


class Checkpoint(Protocol):
    """A checkpoint whose names and shapes have been checked, not yet its numbers."""

    def read(self, like: Any) -> Any:
        """Returns parameters with the shapes, dtypes and shardings of `like`, ShapeDtypeStructs.

        Raises:
          CheckpointError: they cannot be read, or hold a number that is not finite.
        """
        ...


def find(path: str, config: gemma2.Gemma2Config) -> Checkpoint:
    """The checkpoint at `path`, of either format; reads its metadata alone.

    Raises:
      CheckpointError: there is none, or its parameters are not those of `config`.
    """
    directory = locate(path)
    if directory.is_dir() and any(directory.glob("*.safetensors")):
        return _HuggingFace(directory, config)
    return _Orbax(directory, config)


def locate(path: str) -> epath.Path:
    """The directory at `path`; CheckpointError if it is not there."""
    try:
        directory = epath.Path(path).expanduser()
        exists = directory.exists()
    except ImportError as e:
        raise CheckpointError(f"{path} cannot be reached ({e}).") from None
    if not exists:
        raise CheckpointError(f"{path} does not exist; expected {WHERE}.")
    return directory


def write(path: str, params: Any) -> None:
    """Writes parameters as `gm.ckpts.save_params` does, to a directory that does not exist yet."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(path).expanduser().resolve(), Stacked(params).unstack(params))


class Stacked:
    """To and from the layout of files, layer by layer, for parameters placed like these.

    Attributes:
      like: their shapes, dtypes and shardings in files.
    """

    def __init__(self, like: Any) -> None:
        self._like = like
        self.like = _unstacked_like(like)

    @functools.cached_property
    def unstack(self) -> Callable[[Any], Any]:
        """Compiled when first asked for, not when first called."""
        shardings = jax.tree.map(lambda x: x.sharding, self.like)
        return jax.jit(gemma2.unstack, out_shardings=shardings).lower(self._like).compile()

    def stack(self, params: Any) -> Any:
        """Stacks one kind of parameter at a time, and deletes the parts: no second copy of all."""
        flat = _flatten(params)
        stacked = {}
        for path, like in _flatten(self._like).items():
            parts = [flat[name] for name in _layer_paths(path, like.shape)]
            if path[0] != "layers":
                stacked[path] = parts[0]
                continue
            stacked[path] = jax.jit(_stack, out_shardings=like.sharding)(*parts)
            for part in parts:
                part.delete()
        return traverse_util.unflatten_dict(stacked)


def _stack(*parts: jax.Array) -> jax.Array:
    """A function of its own, for JAX to know again what it has compiled."""
    return jnp.stack(parts)


def _flatten(tree: Any) -> dict[Path, Any]:
    """Returns the leaves of a tree of dicts by their paths."""
    return traverse_util.flatten_dict(tree)


def _layer_paths(path: Path, shape: tuple[int, ...]) -> list[Path]:
    """What the stacked parameter at `path` consists of in a tree of single layers."""
    if path[0] != "layers":
        return [path]
    place = gemma2.KINDS.index(path[1])
    return [(f"layer_{2 * pair + place}", *path[2:]) for pair in range(shape[0])]


def _unstacked_like(like: Any) -> Any:
    flat = {}
    for path, x in _flatten(like).items():
        shape, sharding = x.shape, x.sharding
        if path[0] == "layers":
            shape = shape[1:]
            if isinstance(sharding, NamedSharding):
                sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        single = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        flat |= dict.fromkeys(_layer_paths(path, x.shape), single)
    return traverse_util.unflatten_dict(flat)


def _expected_shapes(config: gemma2.Gemma2Config) -> dict[Path, tuple[int, ...]]:
    """Of the parameters, stacked."""
    model = gemma2.Gemma2(config)
    tree = jax.eval_shape(functools.partial(gemma2.init_params, model), jax.random.key(0))
    return {path: x.shape for path, x in _flatten(tree).items()}


def _check(
    where: Any, expected: dict[Any, tuple[int, ...]], found: dict[Any, tuple[int, ...]]
) -> None:
    """Every expected parameter with its shape, and none beside them."""
    name = lambda key: key if isinstance(key, str) else "/".join(key)  # noqa: E731
    for key, shape in expected.items():
        if key not in found:
            some = ", ".join(sorted(map(name, found))[:3]) or "nothing"
            raise CheckpointError(
                f"{where} has no parameter {name(key)!r} (it holds {some}, ...); expected a "
                "Gemma-2 checkpoint of the size that model.size says."
            )
        if tuple(found[key]) != shape:
            raise CheckpointError(
                f"{where}: {name(key)!r} has shape {tuple(found[key])}, where the network of "
                f"model.size has {shape}; set model.size to the checkpoint's."
            )
    extra = sorted(name(key) for key in found if key not in expected)
    if extra:
        raise CheckpointError(
            f"{where} holds {extra[0]!r}, which the network of model.size has not; set model.size "
            "to the checkpoint's."
        )


def _check_dtypes(where: Any, found: dict[Any, Any]) -> None:
    """Refuses quantised parameters: their numbers mean nothing without their scales."""
    for key, dtype in found.items():
        if str(dtype).lower() not in _DTYPES:
            name = key if isinstance(key, str) else "/".join(key)
            raise CheckpointError(
                f"{where}: {name!r} has dtype {dtype}; expected float32, bfloat16 or float16: give "
                "the checkpoint that has not been quantised."
            )


_DTYPES = ("float32", "bfloat16", "float16", "f32", "bf16", "f16")


def _check_finite(where: Any, params: Any) -> Any:
    """Returns the parameters, if all of them are finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params)
    for path, good in _flatten(finite).items():
        if not good:
            raise CheckpointError(
                f"{where}: {'/'.join(path)!r} holds NaN or infinity; download or write it again."
            )
    return params


class _Orbax:
    """The tree of the `gemma` package, or one of the two flatter layouts that Google published."""

    def __init__(self, path: epath.Path, config: gemma2.Gemma2Config) -> None:
        self._path = path.resolve()
        found = self._shapes()
        # Without them the layout is taken to be the one that is written here.
        self._stacked = any("stacked_layers" in p[0] for p in found or ())
        self._flat = any(p[0].startswith("transformer/") for p in found or ())
        expected = {}
        for path_in_memory, shape in _expected_shapes(config).items():
            for name in self._names(path_in_memory, shape):
                single = path_in_memory[0] == "layers" and not self._stacked
                expected[name] = shape[1:] if single else shape
        if found is not None:
            _check(path, expected, found)

    def _shapes(self) -> dict[Path, tuple[int, ...]] | None:
        """Returns the names and shapes in the file, or None if what describes them is damaged.

        Numbers can be read without some of the files that Orbax wants for this, such as the one of
        the devices that a parameter lay on; where they cannot, `read` fails.

        Raises:
          CheckpointError: this is no Orbax checkpoint.
        """
        tree, reason = None, ""
        try:
            # Of the handler, for a checkpointer warns of what a run's params leave to their parent.
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
        _check_dtypes(self._path, {path: x.dtype for path, x in _flatten(tree).items()})
        return {path: tuple(x.shape) for path, x in _flatten(tree).items()}

    def _names(self, path: Path, shape: tuple[int, ...]) -> list[Path]:
        """What the parameter at `path` in memory consists of in the file."""
        if not self._flat:
            return _layer_paths(path, shape)
        if self._stacked and path[0] == "layers":
            kind = gemma2.KINDS.index(path[1])
            return [_flattened(("stacked_layers", f"attention_type_{kind}", *path[2:]))]
        return [_flattened(p) for p in _layer_paths(path, shape)]

    def read(self, like: Any) -> Any:
        single = _flatten(_unstacked_like(like))
        targets, origin = {}, {}
        for path, x in _flatten(like).items():
            names = self._names(path, x.shape)
            in_memory = [path] if self._stacked else _layer_paths(path, x.shape)
            for name, part in zip(names, in_memory, strict=True):
                targets[name] = x if self._stacked else single[part]
                origin[name] = part
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(self._path, traverse_util.unflatten_dict(targets))
        flat = traverse_util.flatten_dict(restored)
        params = traverse_util.unflatten_dict({origin[name]: x for name, x in flat.items()})
        return _check_finite(self._path, params if self._stacked else Stacked(like).stack(params))


def _flattened(path: Path) -> Path:
    """The flat layouts: one key with slashes, the last name apart, and a `w` for the MLP."""
    path = ("transformer", *path, *(("w",) if "mlp" in path else ()))
    return "/".join(path[:-1]), path[-1]


class _HuggingFace:
    """google/gemma-2-*: matrices are [out, in], heads lie in one axis, one table row a token."""

    def __init__(self, path: epath.Path, config: gemma2.Gemma2Config) -> None:
        from safetensors import safe_open

        self._path, self._config = path, config
        self._tensors = {}
        for file in self._files():
            try:
                opened = safe_open(str(file), framework="np")
            except Exception as e:
                raise CheckpointError(
                    f"{file} cannot be read as safetensors ({e}); download it again."
                ) from None
            self._tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        found = {name: tuple(x.get_shape()) for name, x in self._tensors.items()}
        expected = self._expected()
        if _HEAD in found:
            expected[_HEAD] = expected[hugging_face.TABLE]
        _check(path, expected, found)
        self._check_config()
        _check_dtypes(path, {name: x.get_dtype() for name, x in self._tensors.items()})

    def _files(self) -> list[epath.Path]:
        """Returns the files that the index names, or all where there is no index.

        Raises:
          CheckpointError: other files lie beside them, or one of them is missing.
        """
        files = sorted(self._path.glob("*.safetensors"))
        index = self._path / "model.safetensors.index.json"
        if not index.exists():
            if len(files) > 1:
                raise CheckpointError(
                    f"{self._path} holds {len(files)} safetensors files and no {index.name}, which "
                    "says what belongs to the checkpoint; download it, or keep one file."
                )
            return files
        named = set(_json(index).get("weight_map", {}).values())
        for file in files:
            if file.name not in named:
                raise CheckpointError(
                    f"{self._path} holds {file.name}, which {index.name} does not name; move it "
                    "away if it is no part of the checkpoint, or the index if it is another's."
                )
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise CheckpointError(
                f"{self._path} holds no {missing[0]}, which {index.name} names; download it."
            )
        return files

    def _check_config(self) -> None:
        """Compares what config.json says, where there is one, with the network of model.size."""
        path = self._path / "config.json"
        if not path.exists():
            return
        theirs, ours = _json(path), hugging_face.describe(self._config)
        # Newer versions of transformers keep the base frequency in a section of its own.
        theirs = {**(theirs.get("rope_parameters") or {}), **theirs}
        for name, value in ours.items():
            if name in theirs and theirs[name] != value:
                raise CheckpointError(
                    f"{path}: {name} is {theirs[name]!r}, where the network of model.size has "
                    f"{value!r}; set model.size to the checkpoint's."
                )

    def _expected(self) -> dict[str, tuple[int, ...]]:
        c = self._config
        shapes = {
            "self_attn.q_proj": (c.num_heads * c.head_dim, c.embed_dim),
            "self_attn.k_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.v_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.o_proj": (c.embed_dim, c.num_heads * c.head_dim),
            "mlp.gate_proj": (c.hidden_dim, c.embed_dim),
            "mlp.up_proj": (c.hidden_dim, c.embed_dim),
            "mlp.down_proj": (c.embed_dim, c.hidden_dim),
            **dict.fromkeys(hugging_face.NORMS.values(), (c.embed_dim,)),
        }
        layers: dict[str, tuple[int, ...]] = {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(c.num_layers)
            for name, shape in shapes.items()
        }
        return layers | {
            hugging_face.TABLE: (c.vocab_size, c.embed_dim),
            "model.norm.weight": (c.embed_dim,),
        }

    def read(self, like: Any) -> Any:
        self._check_head()

        def place(path: Path, x: jax.ShapeDtypeStruct) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                index = index or (slice(None),) * len(x.shape)
                index = tuple(
                    slice(*i.indices(size)[:2]) for i, size in zip(index, x.shape, strict=True)
                )
                return self._part(path, index).astype(x.dtype, copy=False)

            return jax.make_array_from_callback(x.shape, x.sharding, part)

        flat = _flatten(like)
        params = traverse_util.unflatten_dict({path: place(path, x) for path, x in flat.items()})
        return _check_finite(self._path, params)

    def _check_head(self, rows: int = 8192) -> None:
        """Refuses a head that is not the embedding table, which the network has in its place."""
        if _HEAD not in self._tensors:
            return
        head, table = self._tensors[_HEAD], self._tensors[hugging_face.TABLE]
        for start in range(0, self._config.vocab_size, rows):
            part = slice(start, min(start + rows, self._config.vocab_size))
            if not np.array_equal(head[part], table[part]):
                raise CheckpointError(
                    f"{self._path}: {_HEAD!r} differs from {hugging_face.TABLE!r}; Gemma-2 has one "
                    "table for both, so that this checkpoint would be another network here."
                )

    def _part(self, path: Path, index: tuple[slice, ...]) -> np.ndarray:
        """A part of the parameter at `path` in memory, read from the file."""
        if path[0] == "embedder":
            rows, columns = index
            # The rows past the vocabulary, which no token has, are not in the file.
            start, stop = (min(i, self._config.vocab_size) for i in (rows.start, rows.stop))
            table = np.zeros((0, columns.stop - columns.start), np.float32)
            if start < stop:
                table = self._tensors[hugging_face.TABLE][start:stop, columns]
            return np.pad(table, ((0, rows.stop - rows.start - len(table)), (0, 0)))
        if path[0] == "final_norm":
            return self._tensors["model.norm.weight"][index[0]]
        place = gemma2.KINDS.index(path[1])
        pairs = range(index[0].start, index[0].stop)
        return np.stack([self._layer(2 * pair + place, path[2:], *index[1:]) for pair in pairs])

    def _layer(self, layer: int, path: Path, *index: slice) -> np.ndarray:
        size = self._config.head_dim

        def tensor(name: str) -> Any:
            return self._tensors[f"model.layers.{layer}.{name}.weight"]

        def heads(i: slice) -> slice:
            return slice(i.start * size, i.stop * size)

        match path:
            case ("attn", "q_einsum", "w"):
                rows, columns, within = index
                x = tensor("self_attn.q_proj")[heads(rows), columns]
                return x.reshape(-1, size, x.shape[-1]).swapaxes(1, 2)[..., within]
            case ("attn", "kv_einsum", "w"):
                which, rows, columns, within = index
                names = ("self_attn.k_proj", "self_attn.v_proj")[which]
                x = np.stack([tensor(name)[heads(rows), columns] for name in names])
                return x.reshape(len(x), -1, size, x.shape[-1]).swapaxes(2, 3)[..., within]
            case ("attn", "attn_vec_einsum", "w"):
                rows, within, columns = index
                x = tensor("self_attn.o_proj")[columns, heads(rows)]
                return x.T.reshape(-1, size, len(x))[:, within]
            case ("mlp", "gating_einsum"):
                transposed = self._config.transpose_gating_einsum
                which, *rest = index
                rows, columns = rest if transposed else rest[::-1]
                names = ("mlp.gate_proj", "mlp.up_proj")[which]
                x = np.stack([tensor(name)[rows, columns] for name in names])
                return x if transposed else x.swapaxes(1, 2)
            case ("mlp", "linear"):
                rows, columns = index
                return tensor("mlp.down_proj")[columns, rows].T
            case (norm, "scale"):
                # Both scale by 1 + weight.
                return tensor(hugging_face.NORMS[norm])[index[0]]
        raise KeyError(path)


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read as JSON ({e}); download it again.") from None


_HEAD = "lm_head.weight"
