"""Studies and benchmarks: scripts, run as python -m experiments.NAME."""

from __future__ import annotations

import os
import platform

import jax


def machine() -> str:
    """What the figures of a script were measured on, for its last line."""
    device = jax.devices()[0].device_kind
    return f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, {platform.machine()}"
