"""The cache of compiled programs, which makes later starts and resumed runs faster."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import sys

OFF = "off"
# Programs that compile in less than this many seconds are not cached.
_WORTH_KEEPING = 0.1


def use(directory: str = "", *, distributed: bool = False) -> None:
    """Makes JAX cache compiled programs; call it before the first one is compiled.

    If the directory cannot be written, a warning is printed and nothing is cached. Any number of
    processes can share a directory, because JAX treats an incomplete entry as a missing one.

    Args:
      directory: the directory, "" for one in the user's cache, or "off" for no cache. The
        environment variable JAX_COMPILATION_CACHE_DIR, which JAX itself reads, takes precedence.
      distributed: whether several processes compute together. Then "" means "off": only the first
        process writes, and the others profit only from a directory that all of them see.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if directory == OFF or (distributed and not directory):
        return
    try:
        path = pathlib.Path(directory).expanduser() if directory else _of_the_user()
        # Only this user may access the directory, because JAX runs the programs in it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied", str(path))
    except (OSError, RuntimeError) as e:  # RuntimeError: the user has no home.
        print(f"compiled programs are not kept: {e}; set --compilation_cache=DIR.", file=sys.stderr)
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _of_the_user() -> pathlib.Path:
    """Returns the user's directory for this kind of processor.

    Machines with other processors may share the home directory.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "pkpo_jax" / "xla" / _processor()


def _processor() -> str:
    """Returns a name of this kind of processor, on which programs for other kinds can crash."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # Not on Linux.
        text = platform.processor()
    # The features are on lines that are equal for all cores: "flags", or "Features" on ARM.
    features = {line for line in text.splitlines() if line.lower().startswith(("flags", "feat"))}
    digest = hashlib.sha256("".join(sorted(features) or text).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
