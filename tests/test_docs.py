"""The documentation: its Python runs, its commands run or at least parse, and its names exist."""

import ast
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from pkpo_jax import command_line, tasks
from pkpo_jax.reporting import inspection, page
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import loop, metrics
from tests import pages
from tests.test_main import SMALL

SHARED_FLAGS = {
    "flags.adopt_module_key_flags(command)": "command.py",
    "script.run(": "script.py",
}
PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
# The text names flags without a config. Those with these keys need another one than maze_tiny.
CONFIG_OF = {
    "task.data_dir": "code_tiny",
    "task.allow_code_execution": "code_tiny",
    "task.kinds": "revision_tiny",
}

# Parses the arguments of the command once for each line of stdin, in a fork, and checks the config
# as a run does before it compiles.
PARSER = """
import json, math, os, sys, traceback
from absl import flags
from pkpo_jax import command_line
from pkpo_jax.training import checks
for line in sys.stdin:
    sys.argv = ["pkpo-jax", *json.loads(line)]
    if not (child := os.fork()):
        os.dup2(2, 1)
        try:
            command_line.parse(sys.argv)
            if flags.FLAGS.mode in ("train", "sweep", "compile"):
                config = flags.FLAGS.config
                devices = abs(math.prod(config.parallel.mesh))  # As many as the mesh asks for.
                checks.validate(config, devices, reads_weights=False)
            code = 0
        except SystemExit as e:
            code = e.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush(), os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run(*arguments, **options):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result


def documented():
    """Returns (page, words) of every command of the documentation's shell blocks."""
    return [
        (path.name, words)
        for path in pages.PAGES
        for block in pages.blocks(path, "bash")
        for words in pages.commands(block)
    ]


def trainer_arguments(words):
    """Returns the arguments of a command if it is pkpo-jax, in either spelling, or None."""
    for start in (["pkpo-jax"], ["python", "-m", "pkpo_jax.main"]):
        if words[: len(start)] == start:
            # A reader puts a config in the place of this word.
            return [re.sub("=CONFIG$", "=gemma2_2b_math", word) for word in words[len(start) :]]
    return None


def flags_in_the_text():
    """Yields (page, arguments) with each flag that sets the config outside of code blocks."""
    for path in pages.PAGES:
        for span in pages.code_spans(path):
            if re.match(r"--config(\.|=configs/)\S", span):
                ((_, *given),) = pages.commands(f"pkpo-jax {span}")
                keys = [word.removeprefix("--config.").partition("=")[0] for word in given]
                config = next((CONFIG_OF[key] for key in keys if key in CONFIG_OF), "maze_tiny")
                yield path.name, [f"--config={config}", "--workdir=runs/x", *given]


@pytest.fixture
def elsewhere(tmp_path):
    """Returns a directory with the Python files that the documentation has readers write."""
    for path in pages.PAGES:
        text = path.read_text()
        for block in re.finditer(r"`(\w+\.py)`[^`]*\n```python\n(.*?)```", text, re.DOTALL):
            (tmp_path / block[1]).write_text(block[2])
    return tmp_path


def test_the_readme_stays_short():
    assert (pages.ROOT / "README.md").stat().st_size <= 8192


def test_every_block_has_a_language_that_is_checked():
    for path in pages.PAGES:
        languages = {language for language, _ in pages.blocks(path)}
        assert languages <= {"bash", "python", "text", "json", "mermaid"}, path


def test_python_blocks_run_and_print_what_they_say(tmp_path):
    files, expected = [], []
    for path in pages.PAGES:
        for block in pages.blocks(path, "python"):
            files.append(tmp_path / f"{path.stem}_{len(files)}.py")
            files[-1].write_text(block)
            expected += re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(files) >= 4
    program = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path)"
    printed = run("-c", program, *map(str, files)).stdout.splitlines()
    assert expected and [line for line in expected if line not in printed] == []


def test_commands_of_the_trainer_parse(elsewhere):
    cases = [(name, trainer_arguments(words)) for name, words in documented()]
    cases = [case for case in cases if case[1] is not None] + list(flags_in_the_text())
    assert len(cases) > 25
    (elsewhere / "configs").symlink_to(pages.ROOT / "configs")
    (elsewhere / "runs" / "maze").mkdir(parents=True)
    parser = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", PARSER],
        input="".join(json.dumps(arguments) + "\n" for _, arguments in cases),
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(pages.ROOT)},
    )
    codes = parser.stdout.split()
    assert len(codes) == len(cases), parser.stderr
    failed = [case for case, code in zip(cases, codes, strict=True) if code != "0"]
    assert failed == [], parser.stderr


def commands_of_a_new_user():
    """Returns the arguments of the commands that need no more than a CPU and minutes, in order.

    A sweep is six runs, and has a test of its own.
    """
    order = ["README.md", "getting-started.md", "evaluation.md", "estimators.md"]
    found = [trainer_arguments(words) for name in order for n, words in documented() if n == name]
    needs_more = re.compile("gemma[23]|--mode=sweep")
    return [
        arguments
        for i, arguments in enumerate(found)
        if arguments and arguments not in found[:i] and not needs_more.search(" ".join(arguments))
    ]


def carry_out(arguments):
    """Does what the command does with these arguments, in this process, and returns its mode."""
    flags = dict(re.findall(r"^--(\w+)=(.*)$", "\n".join(arguments), re.MULTILINE))
    overrides = [word for word in arguments if word.startswith("--config.")]
    workdirs = [pathlib.Path(name) for name in flags["workdir"].split(",")]
    mode = flags.get("mode", "train")
    if mode == "train":
        less = [
            "--config.train.steps=2",
            "--config.warm_start.steps=2",
            "--config.log.report=False",
        ]
        path = str(pages.ROOT / "configs" / f"{flags['config']}.py")
        config = command_line.read_config(path, [*overrides, *SMALL, *less])
        loop.train(config, workdirs[0])
        assert metrics.read(workdirs[0])[-1]["step"] == 2
    elif mode == "report":
        assert page.write_page(workdirs[0]).exists()
    else:
        values = dict(word.removeprefix("--config.").split("=") for word in overrides)
        request = inspection.Request(
            config_lib.default(),
            {key: ast.literal_eval(value) for key, value in values.items()},
            flags.get("step", "newest"),
            flags.get("split", "test"),
        )
        if mode == "eval":
            assert len(inspection.evaluate(workdirs, request)) == len(workdirs)
        else:
            ks = [int(k) for k in flags["ks"].split(",")]
            inspection.sample(workdirs[0], request, count=2, ks=ks)
    return mode


def test_the_commands_of_a_new_user_work(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(elsewhere))
    modes = [carry_out(arguments) for arguments in commands_of_a_new_user()]
    assert modes.count("train") >= 5 and {"eval", "sample", "report"} < set(modes)


def test_a_task_of_your_own_trains(elsewhere):
    (words,) = [words for _, words in documented() if "--config=backwards.py" in words]
    less = ["warm_start.steps=2", "train.steps=2", "eval.problems=32", "grading.workers=1"]
    less += ["log.report=False", "eval.n=16"]
    run(*words[1:], *(f"--config.{key}" for key in less), cwd=elsewhere)
    last = metrics.read(elsewhere / "runs" / "backwards")[-1]
    assert last["step"] == 2 and "eval/pass_at_16" in last
    graded = [last[f"grade/{status}"] for status in ("ok", "wrong_format", "timeout", "error")]
    assert sum(graded) == 16 * 16 and graded[2:] == [0, 0]


def test_other_commands_name_what_exists():
    """Looks for modules, their flags, extras and paths. In test_launch.py the launchers run."""
    for name, words in documented():
        program, *arguments = words
        if program == "pip":
            for extras in re.findall(r"^\.\[(.*)\]$", "\n".join(arguments), re.MULTILINE):
                assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), (
                    name,
                    words,
                )
        elif program == "pytest":
            assert all((pages.ROOT / path).exists() for path in arguments), (name, words)
        elif program == "python" and not trainer_arguments(words):
            assert arguments[0] == "-m", (name, words)
            path = pages.ROOT / arguments[1].replace(".", "/")
            path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
            text = path.read_text()
            # Some modules share the flags of another one.
            for call, shared in SHARED_FLAGS.items():
                if call in text:
                    text = (pages.ROOT / "experiments" / "study" / shared).read_text()
            declared = re.findall(r'DEFINE_\w+\(\s*"([\w-]+)"', text)
            given = re.findall(r"^--([\w-]+)", "\n".join(arguments), re.MULTILINE)
            launcher = arguments[1].startswith("experiments.launch.")
            assert launcher or set(given) <= set(declared), (name, words)


def test_keys_and_files_in_the_prose_exist():
    options = {f"task.{field}" for name in tasks.TASKS for field in tasks.options(name)}
    keys = {*config_lib.KEYS, *options, "task.name"}
    sections = [field.name for field in dataclasses.fields(config_lib.Config)]
    for path in pages.PAGES:
        for span in pages.code_spans(path):
            key = re.match(rf"({'|'.join(sections)})\.\w+(?=$|=)", span)
            # Files are named alike.
            key = None if span.endswith((".json", ".jsonl", ".py")) else key
            assert not key or key[0] in keys, (path, span)
            if re.match(r"(pkpo_jax|experiments|configs|tests|docs)/[\w./]*$", span):
                assert (pages.ROOT / span).exists(), (path, span)
