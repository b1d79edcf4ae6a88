"""Keeps what XLA compiles from one run to the next, so that starting and resuming cost less."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import sys

OFF = "off"
# Programs that compile faster than this, in seconds, are compiled again.
_WORTH_KEEPING = 0.1


def use(directory: str = "", *, distributed: bool = False) -> None:
    """Has jax keep compiled programs; to be called before the first one is compiled.

    A directory that cannot be written is said so, and the run goes on without. Any number of
    processes can share one: jax takes an entry that is torn for one that is missing.

    Args:
      directory: where; "" is a directory of the user's cache, and "off" nowhere. The environment
        variable JAX_COMPILATION_CACHE_DIR, which jax reads by itself, goes before.
      distributed: whether several processes compute together. Then "" is "off": the first process
        alone writes, so the others only find what it compiled where all of them see the directory.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if directory == OFF or (distributed and not directory):
        return
    try:
        path = pathlib.Path(directory).expanduser() if directory else _of_the_user()
        # Of this user alone, for jax runs what it finds there.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied", str(path))
    except (OSError, RuntimeError) as e:  # RuntimeError: the user has no home.
        print(f"compiled programs are not kept: {e}; --compilation_cache=DIR.", file=sys.stderr)
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _of_the_user() -> pathlib.Path:
    """Returns the directory for this kind of processor, for homes that several machines share."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "pkpo_jax" / "xla" / _processor()


def _processor() -> str:
    """Returns a name of this kind of processor: a program for another can crash on it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # Not on Linux.
        text = platform.processor()
    # The features are in lines that all cores have alike, "flags" or, on ARM, "Features".
    features = {line for line in text.splitlines() if line.lower().startswith(("flags", "feat"))}
    digest = hashlib.sha256("".join(sorted(features) or text).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
