"""Fixtures that keep the tests' files apart from the user's data, and compile each program once."""

import gc
import importlib.metadata
import os
import tempfile

import hypothesis
import pytest

# All tests, their workers and subprocesses share one cache, since most of the suite's time is
# compilation. Workers of pytest-xdist inherit what the first process sets before it imports jax.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Unoptimised code compiles in half the time. With one code generator for each program and without
# fusion, it takes two thirds of that. XLA ends the process on a flag that it does not know, so the
# second flag depends on the version.
_flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])

# Tracing makes millions of small objects that stay alive, which Python would visit repeatedly.
gc.set_threshold(200_000, 20, 100)

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ci")

# Modules that take minutes run first, since one at the end would keep the other workers waiting.
_LONG = {f"test_{name}.py" for name in ("parallel", "run", "step", "survival", "configs")}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Makes TFDS write under a directory of the test session, in subprocesses too."""
    path = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(path))
        import tensorflow_datasets.core.constants as constants

        patch.setattr(constants, "DATA_DIR", str(path))
        yield path


@pytest.fixture(scope="session", autouse=True)
def made_programs():
    """Shares programs among the runs of a test session, see tests/shared_programs.py."""
    from tests import shared_programs

    with pytest.MonkeyPatch.context() as patch:
        yield shared_programs.share(patch)
