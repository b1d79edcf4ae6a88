"""Studies, benchmarks and launchers, each a script that runs as python -m experiments.NAME."""

from __future__ import annotations

from pkpo_jax.training.provenance import machine as machine
