"""The command line, as a user types it."""

import subprocess
import sys

import pytest


def main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pkpo_jax.main", *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --workdir is missing"),
        (["--workdir=x", "--config.train.lr=1"], "error: unknown config key train.lr"),
        (["--workdir=x", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--workdir=x", "--config=configs/none.py"], "the file that --config names"),
        (["--workdir=x", "--steps=3"], "Unknown command line flag 'steps'"),
        (["--workdir=x", "train"], "error: unexpected argument 'train'"),
        (["--workdir=x", "--config.k=17"], "error: k=17: 17 is above 16"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(arguments, message, tmp_path):
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'run'}") for a in arguments]
    result = main(*arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_importing_the_package_loads_nothing_heavy():
    heavy = "tensorflow flax optax orbax grain tensorflow_datasets matplotlib gemma"
    program = f"import pkpo_jax, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
