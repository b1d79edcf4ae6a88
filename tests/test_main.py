"""Tests of the command line, as a user types it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

import pkpo_jax.estimators
import pkpo_jax.main
from pkpo_jax import compilation_cache
from pkpo_jax.reporting import page
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import loop, metrics, run_directory

ROOT = str(pathlib.Path(__file__).parents[1])


# These options make a small run, whose programs the tests of several modules share.
SMALL = [
    "--config.train.prompts=4",
    "--config.warm_start.steps=0",
    "--config.eval.problems=4",
    "--config.eval.prompts=4",
    "--config.eval.n=16",
    "--config.task.train_problems=50",
    "--config.task.test_problems=10",
]

# This server runs the command in a fork for each line of stdin, because imports take longer than
# most of the commands that fail.
SERVER = """
import json, os, sys, traceback
import pkpo_jax.main, pkpo_jax.sweep
from pkpo_jax.reporting import compilation, inspection
for line in sys.stdin:
    arguments, directory = json.loads(line)
    if not (child := os.fork()):
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.argv, code = ["pkpo-jax", *arguments], 1
        try:
            pkpo_jax.main.run()
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """Returns a function that runs the command from an empty directory."""
    outputs, elsewhere = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "PYTHONPATH": ROOT}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=elsewhere,
        env=environment,
    )

    def run(*arguments):
        server.stdin.write(json.dumps([arguments, str(outputs)]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        texts = [(outputs / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, code, *texts)

    yield run
    server.stdin.close()
    server.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --workdir is missing"),
        (["--workdir=x", "--config.train.lr=1"], "error: unknown config key train.lr"),
        (["--workdir=x", "--config.n=8"], "key n; did you mean eval.n or rollout.n?"),
        (["--workdir=x", "--config.train.steps=many"], "--config.train.steps=many"),
        (["--workdir=x", "--config=none.py"], "--config=none.py: none.py does not exist; expected"),
        (["--workdir=x", "--config", "maze"], "one of the package's: arc_tiny, arithmetic_tiny, c"),
        (["--workdir=x", "--config=/tmp"], "--config=/tmp: /tmp is a directory"),
        (["--workdir=x", "--steps=3"], "Unknown command line flag 'steps'"),
        (["--workdir=x", "train"], "error: unexpected argument 'train'"),
        (["--workdir=x", "--config.k=17"], "error: k=17: 17 is above 16"),
        (["--workdir=gs://bucket/x"], "is no directory; mount the bucket"),
        (["--workdir=x", "--mode=run"], "one of <train|sweep|compile|eval|sample|"),
        (
            ["--workdir=x", "--topology=v5e:4x4"],
            "--topology is for --mode=compile; drop it to train",
        ),
        (
            ["--workdir=x", "--mode=eval", "--ks=1"],
            "--ks is for --mode=sample and --mode=sweep; drop it to eval.",
        ),
        (["--workdir=x", "--step=3"], "--step is for --mode=eval and --mode=sample"),
        (["--workdir=x", "--to=y"], "--to is for --mode=export; drop it to train"),
        (["--workdir=x", "--mode=export"], "--to is missing; give the directory to write"),
        (["--workdir=x", "--mode=export", "--to=."], "--to=. exists; give a directory that does"),
        (["--workdir=x", "--mode=export", "--to=y"], "config.json does not exist; give the --work"),
        (["--mode=eval"], "error: --workdir is missing"),
        (
            ["--workdir=x", "--mode=eval"],
            "x does not exist, and model.checkpoint is empty",
        ),
        (["--workdir=x", "--mode=eval", "--step=last"], "--step=last; expected newest, best, or"),
        (["--workdir=x", "--mode=sample", "--ks=1;4"], "--ks=1;4; expected whole numbers"),
        (["--workdir=x", "--mode=report"], "x does not exist; give the directory of a run"),
        (["--workdir=x", "--mode=sweep"], "--ks is missing; give the k to train for"),
        (["--workdir=x", "--mode=sweep", "--ks=1", "--seeds=a"], "--seeds=a; expected whole numb"),
        (["--workdir=x", "--mode=sweep", "--ks=1,17"], "error: k=17: 17 is above 16"),
        (
            ["--workdir=x", "--mode=sweep", "--ks=1", "--config.seed=1"],
            "--config.seed and --seeds are both given; drop --config.seed",
        ),
        (
            ["--workdir=x", "--mode=sweep", "--ks=1", "--config=maze_tiny:tang"],
            "maze_tiny.py:tang,k=1 failed: ValueError: ",
        ),
        (["--mode=compile", "--topology=v7x:4x4"], "expected a chip (v4, v5e, v5p, v6e)"),
        (
            ["--workdir=x", "--config=maze_tiny:kk=3"],
            "error: the file that --config names failed: ValueError: the argument 'kk=3'; expected",
        ),
        (["--workdir=x", "--config=code_tiny"], "set task.allow_code_execution=True"),
        (["--workdir=x", "--config=gemma2_2b_math"], "error: model.checkpoint is empty"),
        (
            ["--workdir=x", "--config=gemma2_2b_math", "--config.model.checkpoint=/nope"],
            "error: model.checkpoint: /nope does not exist; expected a directory",
        ),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(main, arguments, message, tmp_path):
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'run'}") for a in arguments]
    result = main(*arguments)
    assert result.returncode == 2, result.stderr
    message = message.replace("x does", f"--workdir={tmp_path / 'run'} does")
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_shows_every_flag(main):
    shown = main("--help").stdout
    flags = "config workdir mode topology distributed step split count ks seeds jobs"
    flags = [*flags.split(), "compilation_cache"]
    assert [flag for flag in flags if f"--{flag}:" not in shown.replace("[no]", "")] == []
    assert "pkpo-jax --config=maze_tiny" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Keys and types are those of the run, not of the default config.
        (["--mode=eval", "--config.task.fog=0.5"], "error: unknown config key task.fog"),
        (["--mode=eval", "--config.eval.n=0"], "error: eval.n=0; expected a whole number"),
        (["--mode=eval", "--step=30"], "keeps no such policy; it has 10, 20."),
        (["--mode=sample", "--config.model.checkpoint=y"], "drop --config.model.checkpoint"),
    ],
)
def test_mistakes_about_a_run_that_is_there(main, arguments, message, tmp_path):
    config = config_lib.default(task="math")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    for step in ("10", "20"):
        (tmp_path / "checkpoints" / step / "params").mkdir(parents=True)
    result = main(f"--workdir={tmp_path}", *arguments)
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
def test_config_files_that_fail_are_said_so(main, program, message, tmp_path):
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


# The program restores the signal's handler, since the background jobs of a shell, of which these
# tests may be one, ignore the signal.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pkpo_jax.main", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_leaves_readable_metrics_and_code_130(tmp_path):
    arguments = [f"--workdir={tmp_path / 'run'}", "--config.train.steps=10000", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *arguments],
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


def test_grading_workers_load_nothing_heavy():
    """Checks that a grading worker imports nothing heavy, and that estimators import lazily."""
    heavy = "jax tensorflow flax optax orbax grain tensorflow_datasets matplotlib gemma"
    program = f"""
import sys
import pkpo_jax, pkpo_jax.main, pkpo_jax.tasks
print([module for module in {heavy.split()} if module in sys.modules])
from pkpo_jax import *
print(set(pkpo_jax.estimators.__all__) - {{*dir()}}, float(pass_at_k([1, 0], 1)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["[]", "set() 0.5"], result.stderr


def test_the_packages_names_are_the_estimators():
    assert sorted(pkpo_jax.__all__) == sorted(pkpo_jax.estimators.__all__)
    assert {*pkpo_jax.__all__, "__version__"} <= set(dir(pkpo_jax))
    with pytest.raises(AttributeError, match="no attribute 'pass_at_n'"):
        pkpo_jax.pass_at_n  # noqa: B018


@pytest.mark.parametrize(
    ("directory", "environment", "expected"),
    [
        ("", {"XDG_CACHE_HOME": "{}/cache"}, "{}/cache/pkpo_jax/xla/"),
        ("", {"HOME": "{}"}, "{}/.cache/pkpo_jax/xla/"),
        ("{}/here", {}, "{}/here"),
        ("off", {}, None),
        ("{}/here", {"JAX_COMPILATION_CACHE_DIR": "{}/there"}, None),  # JAX reads this one itself.
        ("{}/file/here", {}, None),
    ],
)
def test_where_compiled_programs_are_kept(
    directory, environment, expected, tmp_path, monkeypatch, capsys
):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    (tmp_path / "file").write_text("")
    compilation_cache.use(directory.format(tmp_path))
    found = settings.get("jax_compilation_cache_dir")
    assert found is None if expected is None else found.startswith(expected.format(tmp_path))
    # The run continues without a cache.
    assert ("compiled programs are not kept: " in capsys.readouterr().err) == ("file" in directory)


@pytest.mark.parametrize("report", [True, False])
def test_the_end_of_a_run_is_reported_if_asked_for(report, tmp_path, monkeypatch):
    config, written = config_lib.default(), []
    config.log.report = report
    monkeypatch.setattr(loop, "train", lambda *arguments: "the last evaluation")
    monkeypatch.setattr(page, "write", lambda *arguments: written.append(arguments))
    pkpo_jax.main._train(config, tmp_path)
    assert written == ([(tmp_path, config, "the last evaluation")] if report else [])


@pytest.mark.parametrize(
    ("stopped", "code"),
    [(loop.Stopped(3, "no reward"), 3), (loop.Stopped(143, "SIGTERM"), 143), (None, 4)],
)
def test_a_run_that_stops_says_why_with_its_code(stopped, code, tmp_path, monkeypatch, capsys):
    def train(*arguments):
        if stopped:
            raise stopped

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(page, "write", full)
    with pytest.raises(SystemExit) as e:
        pkpo_jax.main._train(config_lib.default(), tmp_path)
    said = capsys.readouterr().err
    assert e.value.code == code and len(said.splitlines()) == 1
    assert said.startswith("stopped: ") and (str(stopped or "No space left on device")) in said
