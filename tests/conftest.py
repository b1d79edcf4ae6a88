"""Keeps what tests prepare apart from the user's data, and compiles each program once."""

import gc
import importlib.metadata
import os
import tempfile

import hypothesis
import pytest

# One cache for all tests, their workers and subprocesses: most of the suite's time is compilation.
# Workers of pytest-xdist inherit what the first process sets, which is before jax is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Unoptimised code compiles in half the time, in one piece a program and unfused in two thirds of
# that. XLA ends the process on a flag that it does not know.
_flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])

# Tracing makes millions of small objects that live on, which Python would walk again and again.
gc.set_threshold(200_000, 20, 100)

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ci")

# Modules of minutes go first: one of them left to the end keeps the other workers waiting.
_LONG = {f"test_{name}.py" for name in ("parallel", "run", "step", "survival", "configs")}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """TFDS writes under the test session's own directory, in subprocesses too."""
    path = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(path))
        import tensorflow_datasets.core.constants as constants

        patch.setattr(constants, "DATA_DIR", str(path))
        yield path


@pytest.fixture(scope="session", autouse=True)
def made_programs():
    """What the runs of a test session share, see tests/shared_programs.py."""
    from tests import shared_programs

    with pytest.MonkeyPatch.context() as patch:
        yield shared_programs.share(patch)
