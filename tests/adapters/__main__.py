"""Runs the adapters inside the real trainers, each in an environment of its own.

    python -m tests.adapters [--at=DIR] [--reuse=SITE_PACKAGES] [--rllm=SOURCE] [TRAINER ...]

For each trainer this makes a virtual environment in DIR (.venv-adapters), installs the pinned
release of the trainer, and trains a tiny random model there on the CPU, with `with_TRAINER.py`.
With --reuse, packages of another environment, such as a PyTorch of gigabytes, need not be installed
again. An environment that exists is used as it is. It exits with 1 if a run fails.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import venv

ROOT = pathlib.Path(__file__).parents[2]
REQUIREMENTS = {
    "trl": ["trl==1.16.0", "transformers==5.24.0", "torch==2.14.1"],
    # verl imports the last four without declaring them.
    "verl": [
        *("verl==0.9.1", "transformers==5.10.4", "torch==2.14.1"),
        *("cachetools", "fastapi", "prometheus-client", "uvicorn"),
    ],
    "tunix": ["google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"],
    # These are what rLLM's grouping and advantages import of its many requirements. PyPI has no
    # rLLM, so its source is installed after them, without requirements.
    "rllm": [
        *("numpy", "pydantic", "hydra-core", "pandas", "pyarrow", "polars", "click", "rich"),
        *("codetiming", "tqdm", "requests", "pillow", "pyyaml"),
    ],
}
RLLM = "git+https://github.com/rllm-org/rllm@9beb6e0f676a46d38858991fd79ac5f8e0b16d4c"


def environment(trainer, at, reuse, rllm):
    """Makes the environment of a trainer unless it exists, and returns its interpreter."""
    place = at / trainer
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        venv.create(place, with_pip=True, clear=True)
        if reuse:
            (packages,) = place.glob("lib/python*/site-packages")
            (packages / "reuse.pth").write_text(f"{reuse.resolve()}\n")
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *REQUIREMENTS[trainer]], check=True)
        if trainer == "rllm":
            subprocess.run([*pip, "--no-deps", rllm], check=True)
        (place / "installed").touch()
    return python


def run(trainer, python):
    """Returns whether the run of a trainer succeeded, and prints what it reports."""
    started = time.perf_counter()
    variables = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [python, "-m", f"tests.adapters.with_{trainer}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    seconds = round(time.perf_counter() - started)
    if result.returncode:
        print(
            f"{trainer} FAILED after {seconds} s\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
        )
        return False
    print(f"{trainer} passed in {seconds} s")
    for name, value in json.loads(result.stdout.splitlines()[-1]).items():
        print(f"  {name}: {value}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trainers", nargs="*", help=", ".join(REQUIREMENTS))
    parser.add_argument("--at", type=pathlib.Path, default=ROOT / ".venv-adapters")
    parser.add_argument("--reuse", type=pathlib.Path, help="site-packages of another environment")
    parser.add_argument("--rllm", default=RLLM, help="a URL or directory of rLLM's source")
    arguments = parser.parse_args()
    trainers = arguments.trainers or list(REQUIREMENTS)
    if unknown := set(trainers) - set(REQUIREMENTS):
        parser.error(f"no trainer {unknown.pop()!r}; expected {', '.join(REQUIREMENTS)}")
    places = arguments.at, arguments.reuse, arguments.rllm
    passed = [run(trainer, environment(trainer, *places)) for trainer in trainers]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
