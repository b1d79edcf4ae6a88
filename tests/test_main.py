"""The command line, as a user types it."""

import json
import signal
import subprocess
import sys
import time

import pytest

from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics, run_directory


def main(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "pkpo_jax.main", *arguments], capture_output=True, text=True, cwd=cwd
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
        (["--workdir=gs://bucket/x"], "is no directory; mount the bucket"),
        (["--workdir=x", "--mode=run"], "one of <train|compile|eval|sample|report>"),
        (
            ["--workdir=x", "--topology=v5e:4x4"],
            "--topology is for --mode=compile; drop it to train",
        ),
        (["--workdir=x", "--mode=eval", "--ks=1"], "--ks is for --mode=sample; drop it to eval."),
        (["--workdir=x", "--step=3"], "--step is for --mode=eval and --mode=sample"),
        (["--mode=eval"], "error: --workdir is missing"),
        (
            ["--workdir=x", "--mode=eval"],
            "x is not a run's directory, and model.checkpoint is empty",
        ),
        (["--workdir=x", "--mode=eval", "--step=last"], "--step=last; expected newest, best, or"),
        (["--workdir=x", "--mode=sample", "--ks=1;4"], "--ks=1;4; expected whole numbers"),
        (["--workdir=x", "--mode=report"], "so it is not a run's directory"),
        (["--mode=compile", "--topology=v7x:4x4"], "expected a chip (v4, v5e, v5p, v6e)"),
        (
            ["--workdir=x", "--config=configs/maze_tiny.py:kk=3"],
            "error: the file that --config names failed: ValueError: the argument 'kk=3'; expected",
        ),
        (["--workdir=x", "--config=configs/code_tiny.py"], "set task.allow_code_execution=True"),
        (["--workdir=x", "--config=configs/gemma2_2b_math.py"], "error: model.checkpoint is empty"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(arguments, message, tmp_path):
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'run'}") for a in arguments]
    result = main(*arguments)
    assert result.returncode == 2, result.stderr
    message = message.replace("x is not", f"{tmp_path / 'run'} is not")
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_shows_every_flag():
    shown = main("--help").stdout
    flags = ["config", "workdir", "mode", "topology", "distributed", "step", "split", "count", "ks"]
    assert [flag for flag in flags if f"--{flag}:" not in shown.replace("[no]", "")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Keys and types are those of the run, whatever the default config is.
        (["--mode=eval", "--config.task.fog=0.5"], "error: unknown config key task.fog"),
        (["--mode=eval", "--config.eval.n=0"], "error: eval.n=0; expected a whole number"),
        (["--mode=eval", "--step=30"], "keeps no such policy; it has 10, 20."),
        (["--mode=sample", "--config.model.checkpoint=y"], "drop --config.model.checkpoint"),
    ],
)
def test_mistakes_about_a_run_that_is_there(arguments, message, tmp_path):
    config = config_lib.default(task="math")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    for step in ("10", "20"):
        (tmp_path / "checkpoints" / step / "params").mkdir(parents=True)
    # From another directory: there is no config file.
    result = main(f"--workdir={tmp_path}", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "checkpoints"}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("def get_config(): pass", "NoneType"),
        ("x = 1", "get_config"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_config_files_that_fail_are_said_so(program, message, tmp_path):
    path = tmp_path / "my_config.py"
    path.write_text(program)
    result = main(f"--workdir={tmp_path / 'run'}", f"--config={path}")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: the file that --config names failed: ") and message in last


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("file", "is a file; give a new or empty directory"),
        ("file/sub", "cannot be used (Not a directory)"),
        ("broken", "config.json is not a config"),
    ],
)
def test_work_directories_that_cannot_be(workdir, message, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1, 2")
    config = config_lib.default().unlock()
    with pytest.raises(config_lib.ConfigError) as e:
        run_directory.claim(tmp_path / workdir, config)
    assert message in str(e.value)


# A shell's background job, which these tests may be, ignores the signal otherwise.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pkpo_jax.main", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_leaves_readable_metrics_and_code_130(tmp_path):
    settings = {
        "train.steps": 10_000,
        "train.prompts": 4,
        "warm_start.steps": 0,
        "eval.problems": 4,
        "eval.prompts": 4,
        "task.train_problems": 50,
        "task.test_problems": 10,
    }
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, f"--workdir={tmp_path / 'run'}", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1].startswith("interrupted: what was recorded is in ")
    steps = [line["step"] for line in metrics.read(tmp_path / "run")]
    assert steps == list(range(len(steps))) and len(steps) > 3


def test_a_run_may_go_on_on_other_devices(tmp_path):
    config = config_lib.default()
    run_directory.claim(tmp_path / "run", config)
    config.parallel.mesh, config.train.micro_batches, config.model.remat = (1, 4, 2), 2, True
    run_directory.claim(tmp_path / "run", config)
    config.seed = 1
    with pytest.raises(config_lib.ConfigError, match="seed is 0 there and 1 here"):
        run_directory.claim(tmp_path / "run", config)
    with pytest.raises(config_lib.ConfigError, match="not the first process's directory"):
        run_directory.claim(tmp_path / "elsewhere", config, create=False)
    assert not (tmp_path / "elsewhere").exists()


def test_importing_the_package_loads_nothing_heavy():
    heavy = "tensorflow flax optax orbax grain tensorflow_datasets matplotlib gemma"
    program = f"import pkpo_jax, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
