"""A fake gcloud for tests, which is strict about its arguments and whose slices are folders.

$FAKE/state.json holds the slices. Each has two workers, $FAKE/NAME/worker-N, in which the commands
sent to them are really executed. $FAKE/control.json says what fails; see `main`.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(os.environ.get("FAKE", ""))
WORKERS = 2
WHERE = {"--project", "--zone"}
# This maps each command to the options that it accepts besides --project and --zone, those that it
# requires, and the number of its words.
TPU = ("compute", "tpus")
COMMANDS = {
    (*TPU, "queued-resources", "create"): (
        {"--node-id", "--accelerator-type", "--runtime-version", "--spot", "--reserved"},
        {"--node-id", "--accelerator-type", "--runtime-version", *WHERE},
        1,
    ),
    (*TPU, "queued-resources", "describe"): ({"--format"}, WHERE, 1),
    (*TPU, "queued-resources", "delete"): ({"--force", "--quiet", "--async"}, WHERE, 1),
    (*TPU, "tpu-vm", "describe"): ({"--format"}, WHERE, 1),
    (*TPU, "tpu-vm", "ssh"): (
        {"--worker", "--command", "--strict-host-key-checking", "--quiet"},
        {"--command", *WHERE},
        1,
    ),
    (*TPU, "tpu-vm", "scp"): ({"--worker", "--strict-host-key-checking", "--quiet"}, WHERE, 2),
    ("storage", "ls"): (set(), set(), 1),
    ("storage", "buckets", "create"): (
        {"--location", "--uniform-bucket-level-access", "--enable-hierarchical-namespace"},
        {"--location"},
        1,
    ),
}
SWITCHES = {"--spot", "--reserved", "--force", "--quiet", "--async"}
SWITCHES |= {"--uniform-bucket-level-access", "--enable-hierarchical-namespace"}
# A request is in each of these states for one query before it is ACTIVE.
QUEUE = ["WAITING_FOR_RESOURCES", "PROVISIONING"]


def fail(message, code=1):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(code)


def parse(argv):
    command = next((c for c in COMMANDS if tuple(argv[: len(c)]) == c), None)
    if not command:
        fail(f"Invalid choice: {argv}", 2)
    takes, needs, count = COMMANDS[command]
    flags, words = {}, []
    for arg in argv[len(command) :]:
        flag, _, value = arg.partition("=")
        if not arg.startswith("-"):
            words.append(arg)
        elif flag not in takes | (WHERE if needs else set()) or (flag in SWITCHES) == ("=" in arg):
            fail(f"unrecognized arguments: {arg}", 2)
        else:
            flags[flag] = value
    if len(words) != count or not needs <= set(flags):
        fail(f"wrong number of words, or one of {needs} is missing: {argv}", 2)
    return command, flags, words


def preempt(name):
    """Removes the machines of a slice and the contents of their disks."""
    for state in (ROOT / name).glob("worker-*/.pkpo_jax"):
        pid, ended = state / "pid", state / "exit"
        while (state / "key").exists() and not pid.exists() and not ended.exists():
            time.sleep(0.01)  # The trainer was launched but does not run yet.
        if not pid.exists():
            continue
        # The trainer and the script that started it are one process group.
        os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
    shutil.rmtree(ROOT / name, ignore_errors=True)


def in_worker(name, worker, command):
    home = ROOT / name / f"worker-{worker}"
    home.mkdir(parents=True, exist_ok=True)
    env = {"HOME": str(home), "WORKER": str(worker), "FAKE": str(ROOT)}
    env["PATH"] = f"{ROOT}/worker_bin:/usr/local/bin:/usr/bin:/bin"
    run = subprocess.run(["bash", "-c", command], env=env, cwd=home, stdin=subprocess.DEVNULL)
    return run.returncode


def main(argv):
    command, flags, words = parse(argv)
    with open(ROOT / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(argv) + "\n")
    state = json.loads((ROOT / "state.json").read_text())
    control = json.loads((ROOT / "control.json").read_text())
    try:
        act(command, flags, words, state, control)
    finally:
        (ROOT / "state.json").write_text(json.dumps(state))
        (ROOT / "control.json").write_text(json.dumps(control))


def act(command, flags, words, state, control):
    verb = command[-1]
    if command[0] == "storage":
        if not f"{words[0]}/".startswith("gs://bucket/"):
            fail(f"{words[0]} not found: 404.")
        if not (ROOT / "bucket" / words[0].removeprefix("gs://bucket").strip("/")).exists():
            fail("One or more URLs matched no objects.")
        return print(words[0])
    name = words[-1].rstrip(":")
    there = state.get(name)
    if verb == "create":
        if there:
            fail(f"ALREADY_EXISTS: {name}", 1)
        state[name] = {"queue": [*QUEUE, "ACTIVE"], "machines": "READY"}
        if control.get("quota") == "later":
            state[name]["queue"] = [*QUEUE, "FAILED"]
        if control.get("quota") == "at once":
            state[name]["queue"] = ["FAILED"]
            fail("RESOURCE_EXHAUSTED: Quota 'TPUV5sLitepod' exhausted. Limit 16 in region us-west4")
        return print(f"Create request issued for: [{name}]", file=sys.stderr)
    if not there or (command[2] == "tpu-vm" and there["queue"] != ["ACTIVE"]):
        fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "delete":
        preempt(name)
        del state[name]
    elif command[2] == "queued-resources":
        now = there["queue"][0]
        there["queue"] = there["queue"][1:] or [now]
        failed = "Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0 in zone us-west4-a."
        print(failed if "failedData" in flags["--format"] else now)
    elif verb == "describe":
        print(there["machines"])
    elif there["machines"] != "READY":
        fail(f'This TPU has state "{there["machines"]}", so it cannot be currently connected to.')
    else:
        reach(verb, flags, words, there, name, control)


def reach(verb, flags, words, there, name, control):
    chosen = flags.get("--worker", "0")
    codes = []
    for worker in range(WORKERS) if chosen == "all" else [int(chosen)]:
        if control.get("unreachable", 0) > 0 and worker == 1:
            control["unreachable"] -= 1
            codes.append(255)
        elif verb == "scp":
            home = ROOT / name / f"worker-{worker}"
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(words[0], home)
        else:
            codes.append(in_worker(name, worker, flags["--command"]))
    if " status" in flags.get("--command", "") and "preempt_after" in control:
        control["preempt_after"] -= 1
        if control["preempt_after"] == 0:
            del control["preempt_after"]
            preempt(name)
            # If the machines are PREEMPTED, the request is still ACTIVE for a while. Otherwise it
            # changes its state at once.
            how = control.get("preempted_as", "SUSPENDED")
            there |= {"machines": how} if how == "PREEMPTED" else {"queue": [how]}
            (ROOT / "hold").unlink(missing_ok=True)
    if any(codes):
        sys.exit(next(code for code in codes if code))


if __name__ == "__main__":
    main(sys.argv[1:])
