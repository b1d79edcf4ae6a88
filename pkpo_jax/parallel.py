"""Meshes, the placement of parameters and batches on them, and the two ways to run a step.

The axes `data` and `fsdp` split the prompts of a batch, and `fsdp` and `tensor` the parameters.
Where data x fsdp exceeds the number of prompts, these axes split the responses of each prompt too.

A step is a function (state, batch, scalars) that is written once for `Devices`. These are either
`Jitted`, with one program over the mesh, which XLA partitions by the placements of its arguments,
or `Pmapped`, with one program on each device, replicated parameters and explicit sums over devices.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def _gating_spec(shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Returns the spec of `gating_einsum`.

    It is [2, hidden, embed], or [2, embed, hidden] in Gemma-2 2B. Every size has more hidden
    units than units of the embedding.
    """
    return (None, "tensor", "fsdp") if shape[-2] > shape[-1] else (None, "fsdp", "tensor")


# The first pattern that matches the path of a leaf, such as "layers/attn/q_einsum/w", gives its
# spec, or a function that returns the spec of a shape. A spec describes the last dimensions,
# because stacked layers have one more before them. The path of an optimiser's moment ends with that
# of its parameter, so both have the same placement. The embedding table and the logits are split by
# tokens over both axes, so that no array of the table's size is ever gathered. The axis `tensor`
# splits heads and hidden units, so that a layer needs two sums over it.
_VOCABULARY = ("tensor", "fsdp")
RULES = (
    (r"embedder/input_embedding$", (_VOCABULARY, None)),
    (r"attn/q_einsum/w$", ("tensor", "fsdp", None)),
    (r"attn/kv_einsum/w$", (None, "tensor", "fsdp", None)),
    (r"attn/attn_vec_einsum/w$", ("tensor", None, "fsdp")),
    (r"mlp/gating_einsum$", _gating_spec),
    (r"mlp/linear$", ("tensor", "fsdp")),
    # Adapters share axes with their matrices, which are split alike. Their rank is not split.
    (r"(q_einsum/w|kv_einsum/w|gating_einsum)/a$", ("fsdp", None)),
    (r"(q_einsum/w|kv_einsum/w)/b$", ("tensor", None)),
    (r"gating_einsum/b$", ("tensor",)),
    (r"attn_vec_einsum/w/a$", ("tensor", None, None)),
    (r"linear/a$", ("tensor", None)),
    (r"(attn_vec_einsum/w|linear)/b$", ("fsdp",)),
    (r"", ()),
)


def mesh_shape(mesh: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
    """Returns `mesh` with its -1 replaced by the size that uses all devices.

    Args:
      mesh: the sizes of the axes (data, fsdp, tensor), at most one of them -1.
      devices: the number of devices.

    Raises:
      ValueError: the sizes do not split this number of devices.

    >>> mesh_shape((-1, 1, 2), devices=8)
    (4, 1, 2)
    """
    valid = len(mesh) == 3 and all(type(size) is int and (size == -1 or size > 0) for size in mesh)
    free = sum(size == -1 for size in mesh)
    known = math.prod(size for size in mesh if size != -1) if valid else 1
    if not valid or free > 1 or devices % known or (not free and known != devices):
        raise ValueError(
            f"mesh={tuple(mesh)} does not split {devices} device(s); set three sizes "
            f"(data, fsdp, tensor) whose product is {devices}, one of them -1 for the rest."
        )
    data, fsdp, tensor = (devices // known if size == -1 else size for size in mesh)
    return data, fsdp, tensor


def make_mesh(shape: tuple[int, int, int], devices: Any = None) -> Mesh:
    """Returns a mesh of the axes (data, fsdp, tensor) over the given devices, or over all."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def placements(tree: Any, mesh: Mesh, *, gathered: bool = False) -> Any:
    """Returns the sharding by RULES of each leaf of parameters, or of a state that holds them.

    Args:
      tree: the parameters or the state. A dimension that its axes do not divide is not split.
      mesh: the mesh.
      gathered: leaves out `fsdp` for the layers. Sampling reads their parameters once for every
        token, and therefore wants them gathered.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
        shape = np.shape(leaf)
        spec = rule(shape) if callable(rule) else rule
        spec = (None,) * (len(shape) - len(spec)) + spec
        if gathered:
            spec = tuple(axis if axis != "fsdp" else None for axis in spec)
        fits = [
            _that_divide(axes, size, mesh.shape) for axes, size in zip(spec, shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract(shapes: Any, mesh: Mesh) -> Any:
    """Returns the shapes and dtypes of a tree with the placements of its leaves by RULES."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        placements(shapes, mesh),
    )


def _that_divide(
    axes: str | tuple[str, ...] | None, size: int, sizes: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the longest prefix of the axes that splits a dimension of this size evenly."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    while axes and size % math.prod(sizes[axis] for axis in axes):
        axes = axes[:-1]
    return axes


def batch_axes(
    sizes: Mapping[str, int], prompts: int, n: int = 1
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the axes that split the prompts, and those that split the responses of a batch.

    Prompts are split over data and fsdp if these divide them, or else over one of the two.
    Responses are split over the axes that remain, if these divide them.

    Args:
      sizes: the sizes of the axes.
      prompts: the number of prompts of a batch [prompts, n, ...].
      n: the number of responses to each prompt.

    >>> sizes = {"data": 8, "fsdp": 16, "tensor": 1}
    >>> batch_axes(sizes, prompts=256, n=16)
    (('data', 'fsdp'), ())
    >>> batch_axes(sizes, prompts=16, n=16)
    (('fsdp',), ('data',))
    """

    def size(axes: tuple[str, ...]) -> int:
        return math.prod(sizes[axis] for axis in axes)

    candidates = (("data", "fsdp"), ("fsdp",), ("data",), ())
    over_prompts = next(axes for axes in candidates if prompts % size(axes) == 0)
    left = tuple(a for a in ("data", "fsdp") if a not in over_prompts and sizes[a] > 1)
    return over_prompts, left if n % size(left) == 0 else ()


class OtherProcessError(RuntimeError):
    """An error for the failure of another process of the job, which stops this one too."""


class Devices(abc.ABC):
    """All devices of all processes, as seen by a step and by the host that calls it.

    A step computes with `total`, `largest`, `whole`, `place` and `place_state`. The host compiles
    it with `step`, feeds it with `put` and reads its results with `fetch`.

    Attributes:
      mesh: the devices on the axes AXES, over which parameters and prompts are split.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    @property
    @abc.abstractmethod
    def spread(self) -> int:
        """The number of devices over which one program spreads its arrays."""

    @abc.abstractmethod
    def step(self, f: Callable[..., Any], *, changes_state: bool) -> Callable[..., Any]:
        """Compiles f(state, batch, scalars).

        Args:
          f: the step.
          changes_state: whether f returns a new state. The memory of the old state is then reused,
            so that the caller must not use it again.
        """

    @abc.abstractmethod
    def total(self, x: Any) -> Any:
        """Returns, within a step, the sum of `x` over all devices."""

    @abc.abstractmethod
    def largest(self, x: jax.Array) -> jax.Array:
        """Returns, within a step, the maximum of `x` over all devices."""

    @abc.abstractmethod
    def whole(self, x: jax.Array) -> jax.Array:
        """Returns, within a step, a small batch [P, ...] as a whole on every device."""

    @abc.abstractmethod
    def place(self, x: jax.Array, kind: str = "activations") -> jax.Array:
        """Places, within a step, an array of the batch on the devices.

        Args:
          x: an array of the batch.
          kind: "activations" for [P, n, ...], which is placed as the batch is, or "logits" for
            [P, n, ..., V], which is split by tokens first.
        """

    @abc.abstractmethod
    def place_state(self, tree: Any, *, gathered: bool = False) -> Any:
        """Places, within a step, parameters or a state that holds them, by RULES.

        Args:
          tree: the parameters or the state.
          gathered: as for `placements`.
        """

    @abc.abstractmethod
    def put(self, tree: Any, count: int) -> Any:
        """Puts a batch of `count` rows on the devices, from host arrays of `rows(count)`."""

    @abc.abstractmethod
    def fetch(self, tree: Any) -> Any:
        """Returns a batch, whole, as host arrays on every process."""

    def rows(self, count: int) -> np.ndarray:
        """Returns the rows of a batch of `count` rows that this process feeds to its devices."""
        mine = [
            rows
            for device, rows in self._rows(count)
            if device.process_index == jax.process_index()
        ]
        return np.unique(np.concatenate(mine))

    def owned(self, count: int) -> np.ndarray:
        """Returns the rows of a batch of `count` rows that this process grades.

        Each row is graded by one of the processes that feed it to their devices.
        """
        feeders: list[set[int]] = [set() for _ in range(count)]
        for device, rows in self._rows(count):
            for row in rows:
                feeders[row].add(device.process_index)
        # The processes that feed a row take turns.
        owner = [sorted(ids)[row % len(ids)] for row, ids in enumerate(feeders)]
        return np.flatnonzero(np.array(owner) == jax.process_index())

    def _rows(self, count: int) -> list[tuple[Any, np.ndarray]]:
        indices = self._sharding(count).devices_indices_map((count,))
        return [(device, np.arange(count)[index]) for device, index in indices.items()]

    def _sharding(self, count: int) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(batch_axes(self.mesh.shape, count)[0]))


class Jitted(Devices):
    """One program over a mesh of all devices."""

    @property
    def spread(self) -> int:
        return self.mesh.size

    def step(self, f: Callable[..., Any], *, changes_state: bool) -> Callable[..., Any]:
        return jax.jit(f, donate_argnums=0 if changes_state else ())

    def total(self, x: Any) -> Any:
        return x  # One program sees whole arrays, whose sums are over all devices already.

    def largest(self, x: jax.Array) -> jax.Array:
        return x

    def whole(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec()))

    def place(self, x: jax.Array, kind: str = "activations") -> jax.Array:
        batch = batch_axes(self.mesh.shape, *x.shape[:2])
        last: tuple[str, ...] = ()
        if kind == "logits":
            last = _that_divide(_VOCABULARY, x.shape[-1], self.mesh.shape)
            batch = tuple(tuple(a for a in axes if a not in last) for axes in batch)
        spec = PartitionSpec(*batch, *(None,) * (x.ndim - 3), last) if x.ndim > 2 else batch
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def place_state(self, tree: Any, *, gathered: bool = False) -> Any:
        places = placements(tree, self.mesh, gathered=gathered)
        return jax.lax.with_sharding_constraint(tree, places)

    def put(self, tree: Any, count: int) -> Any:
        rows = self.rows(count)

        def put(local: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:
                return local[np.searchsorted(rows, np.arange(count)[index[0]])]

            shape = (count, *local.shape[1:])
            return jax.make_array_from_callback(shape, self._sharding(count), part)

        return jax.tree.map(put, tree)

    def fetch(self, tree: Any) -> Any:
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)


class Pmapped(Devices):
    """One program on each device, with all parameters and its share of the prompts.

    A batch on the devices has the shape [local devices, rows of a device, ...].
    """

    def __init__(self) -> None:
        # The devices are in the order of pmap's axis.
        devices = [d for p in range(jax.process_count()) for d in jax.local_devices(p)]
        super().__init__(make_mesh((len(devices), 1, 1), np.array(devices)))

    @property
    def spread(self) -> int:
        return 1

    def step(self, f: Callable[..., Any], *, changes_state: bool) -> Callable[..., Any]:
        pmapped = jax.pmap(
            f,
            axis_name="devices",
            in_axes=(None, 0, None),
            out_axes=None if changes_state else 0,
            donate_argnums=0 if changes_state else (),
        )
        if not changes_state:
            return pmapped

        @functools.wraps(f)
        def step(*arguments: Any) -> Any:
            return jax.tree.map(self._on_mesh, pmapped(*arguments))

        return step

    def _on_mesh(self, x: jax.Array) -> jax.Array:
        """Returns the same buffers as an array that is replicated over the mesh of all processes.

        Checkpoints need this form, and so does the next step, which would compile again for any
        other placement.
        """
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        local = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, local)

    def total(self, x: Any) -> Any:
        return jax.lax.psum(x, "devices")

    def largest(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmax(x, "devices")

    def whole(self, x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, "devices", tiled=True)

    def place(self, x: jax.Array, kind: str = "activations") -> jax.Array:
        return x

    def place_state(self, tree: Any, *, gathered: bool = False) -> Any:
        return tree

    def put(self, tree: Any, count: int) -> Any:
        local = jax.local_devices()
        mesh = Mesh(np.array(local), ("devices",))
        sharding = NamedSharding(mesh, PartitionSpec("devices"))
        split = jax.tree.map(lambda x: x.reshape(len(local), -1, *x.shape[1:]), tree)
        return jax.device_put(split, sharding)

    def fetch(self, tree: Any) -> Any:
        tree = jax.device_get(tree)
        if jax.process_count() > 1:
            tree = multihost_utils.process_allgather(tree, tiled=True)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def gather(rows: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Gathers rows from all processes into an array on every process.

    Args:
      rows: [m] the rows that this process contributes.
      values: [m, ...] the values of these rows.
      shape: the shape of the whole array.
    """
    whole = np.zeros(shape, values.dtype)
    if len(rows):
        whole[rows] = values
    if jax.process_count() == 1:
        return whole
    return multihost_utils.process_allgather(whole).sum(0, dtype=whole.dtype)


def join_other_processes() -> None:
    """Starts `jax.distributed`. Call it before anything else of JAX.

    On Cloud TPU, SLURM and GKE the processes are found automatically. Elsewhere set
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      ValueError: no cluster is found, and the variables are not set.
    """

    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
    )


def on_all(holds: bool) -> bool:
    """Returns whether a condition holds on every process."""
    if jax.process_count() == 1:
        return holds
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


def is_one_of_many() -> bool:
    """Returns whether there are other processes."""
    return jax.process_count() > 1


def is_first_process() -> bool:
    """Returns whether this is the first process, which alone writes files that are shared."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Runs the body on the first process, and then on the others. If it fails on one, all stop.

    Args:
      name: a name for the synchronisation, the same on all processes.

    Raises:
      OtherProcessError: the body failed on another process, whose message says why.
    """
    if jax.process_count() == 1:
        yield
        return
    if not is_first_process():
        multihost_utils.sync_global_devices(name)
    error = None
    try:
        yield
    except Exception as e:
        error = e
    if is_first_process():
        multihost_utils.sync_global_devices(name)
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None:
        raise error
    if failed.any():
        which = ", ".join(map(str, np.flatnonzero(failed)))
        raise OtherProcessError(f"process {which} stopped; its own message says why.")
