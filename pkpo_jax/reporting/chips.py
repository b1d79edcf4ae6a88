"""TPU chips, and their topologies without the machine."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from pkpo_jax.training import config as config_lib


class Chip(NamedTuple):
    """The memory and the peak rates of a chip.

    Attributes:
      memory: bytes of HBM.
      flops: bfloat16 operations of its matrix units in a second.
      bandwidth: bytes that it reads from or writes to HBM in a second.
      ici: bytes that it receives in a second from its two neighbours on one axis of the topology.
    """

    memory: int
    flops: float
    bandwidth: float
    ici: float


# Memory, operations and bandwidth are those of Cloud TPU's documentation, and the rates of links
# those of "How to Scale Your Model" (https://jax-ml.github.io/scaling-book/tpus).
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1228e9, 90e9),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 90e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 180e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 180e9),
}


def describe(topology: str) -> tuple[list[Any], Chip]:
    """Returns the devices of a TPU topology such as "v5e:8x16", and their chip.

    Raises:
      ConfigError: there is no such topology, or libtpu is not installed.
    """
    kind, _, grid = topology.partition(":")
    sides = 2 if kind in ("v5e", "v6e") else 3
    if kind not in CHIPS or not re.fullmatch("x".join([r"\d+"] * sides), grid):
        raise config_lib.ConfigError(
            f"--topology={topology}; expected a chip ({', '.join(CHIPS)}) and its grid, which "
            "has two sides for v5e and v6e, as in v5e:8x16, and three for v4 and v5p, as in "
            "v5p:4x4x8."
        )
    # libtpu would ask a TPU VM for these values, but there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    from jax.experimental import topologies

    # libtpu takes a host to have 2 x 2 chips, unless it is told that there is one chip alone.
    options: Any = {"chips_per_host_bounds": [1, 1, 1]} if set(grid) <= set("1x") else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as e:  # libtpu raises errors of many types.
        raise config_lib.ConfigError(
            f"--topology={topology} cannot be described ({str(e).splitlines()[0]}); it needs "
            'libtpu, which pip install -e ".[tpu]" installs, and a grid that Cloud TPU offers.'
        ) from None
    return list(described.devices), CHIPS[kind]
