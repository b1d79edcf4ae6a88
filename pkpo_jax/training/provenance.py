"""A record of how a run was started: time, command, commit, versions and devices, in runs.json."""

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
_TIMEOUT = 10.0  # The seconds that git may take on a slow file system.
# The launchers copy the repository with `git archive`, which writes the commit here.
_ARCHIVED = "$Format:%H$"


def record(workdir: pathlib.Path, step: int) -> None:
    """Adds to DIR/runs.json that the run starts now, from `step`.

    A damaged file is replaced by a new one.

    Raises:
      OSError: the file cannot be written.
    """
    starts = [*read(workdir), start(step)]
    files.replace(workdir / "runs.json", json.dumps(starts, indent=2) + "\n")


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the starts that `record` wrote, oldest first, or none for older runs."""
    return [one for one in files.read_json(workdir / "runs.json", list) if isinstance(one, dict)]


def start(step: int) -> dict[str, Any]:
    """Returns a description of this process as JSON values, with None for unknown ones."""
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
    """Returns a line that describes the machine, for scripts to print below what they measured."""
    device = jax.devices()[0].device_kind
    return f"jax {jax.__version__}, {device}, {os.cpu_count()} cores, {platform.machine()}"


def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit of the package's checkout and whether tracked files differ from it.

    Both are None for an installed package, which may be inside another project's checkout. For an
    unpacked archive only the second one is None.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py"):
        commit = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        if not commit:
            return None, None
        return commit.removesuffix("-dirty"), commit.endswith("-dirty")
    return None if _ARCHIVED.startswith("$") else _ARCHIVED, None


def _git(*words: str) -> str:
    """Runs git in the package's directory, and returns its output.

    The output is empty if git fails, hangs or is not installed.
    """
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
    """Returns the name of the host's processor, or its architecture if the name is unknown."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
