"""How a run was started: time, command, commit, versions and devices, kept in runs.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

from pkpo_jax.training import files

_PACKAGE = pathlib.Path(__file__).parents[1]
_PACKAGES = ("pkpo_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_TIMEOUT = 10.0  # Seconds that git may take, on a slow file system.
# `git archive`, by which the launchers copy the repository, writes its commit here.
_ARCHIVED = "$Format:%H$"


def record(workdir: pathlib.Path, step: int) -> None:
    """Adds to DIR/runs.json that the run starts now, from `step`; a file that is torn begins anew.

    Raises:
      OSError: the file cannot be written.
    """
    starts = [*read(workdir), start(step)]
    files.replace(workdir / "runs.json", json.dumps(starts, indent=2) + "\n")


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what `record` wrote, the oldest start first; of a run from before it, nothing."""
    return [one for one in files.read_json(workdir / "runs.json", list) if isinstance(one, dict)]


def start(step: int) -> dict[str, Any]:
    """Returns what describes this process as JSON values; None for what cannot be found out."""
    commit, dirty = _commit()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.orig_argv),
        "commit": commit,
        "dirty": dirty,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def machine() -> str:
    """Returns what a script's numbers were measured on, for the last line that it prints."""
    device = jax.devices()[0].device_kind
    return f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, {platform.machine()}"


def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit of the package's checkout and whether tracked files differ from it.

    Both are None for an installed package, which can lie in another project's checkout; so is the
    second one for an unpacked archive.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py"):
        found = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return (found.removesuffix("-dirty"), found.endswith("-dirty")) if found else (None, None)
    return None if _ARCHIVED.startswith("$") else _ARCHIVED, None


def _git(*words: str) -> str:
    """Returns what git says of the package's directory; nothing if it fails, hangs or is absent."""
    command = ["git", "--no-optional-locks", "-C", str(_PACKAGE), *words]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Returns the name of the host's processor, or its architecture where that is not told."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
