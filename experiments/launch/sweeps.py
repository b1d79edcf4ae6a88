"""The runs of a sweep, and the flags that all launchers share."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from experiments.launch import commands
from experiments.launch.commands import Command, LaunchError

# Each TPU generation needs this image for its VMs.
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep: the name of its directory, and the config keys that it sets."""

    name: str
    overrides: tuple[str, ...]


def sweep(ks: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """Returns a run for each pair of k and seed; an empty list keeps the config's own value.

    >>> [run.name for run in sweep([1, 8], [0])]
    ['k1_seed0', 'k8_seed0']
    """
    axes = [("k", ks), ("seed", seeds)]
    runs = [Run("", ())]
    for key, values in axes:
        runs = [
            Run(f"{run.name}_{key}{x}".lstrip("_"), (*run.overrides, f"--config.{key}={x}"))
            for run in runs
            for x in values
        ] or runs
    return runs


def trainer_arguments(args: argparse.Namespace, run: Run, directory: str) -> list[str]:
    """Returns the arguments of pkpo_jax.main for `run`; all runs are kept in `directory`."""
    workdir = "/".join(part for part in (directory.rstrip("/"), args.name, run.name) if part)
    config, overrides = described(args, run)
    return ["--distributed", f"--config={config}", f"--workdir={workdir}", *overrides]


def described(args: argparse.Namespace, run: Run) -> tuple[str, list[str]]:
    """Returns the value of --config for a run, and the flags that override its keys.

    If the config has an argument, k becomes part of it, as in gemma2_2b_math.py:anneal,k=4, for as
    an override it would replace the schedule.
    """
    overrides = [*args.overrides, *run.overrides]
    ks = [o for o in run.overrides if o.startswith("--config.k=")]
    if not ks or ":" not in args.config:
        return args.config, overrides
    k = ks[0].removeprefix("--config.k=")
    return f"{args.config},k={k}", [o for o in overrides if o not in ks]


class Parser(argparse.ArgumentParser):
    """A parser of the flags that all launchers share, which raises LaunchErrors."""

    def __init__(self, module: str, description: str, actions: dict[str, str]) -> None:
        super().__init__(
            prog=f"python -m experiments.launch.{module}",
            usage="%(prog)s ACTION --name=NAME [--flag=value ...] [--config.key=value ...]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        text = "; ".join(f"{name}: {what}" for name, what in actions.items())
        self.add_argument("action", choices=actions, metavar="ACTION", help=text)
        self.add_argument(
            "--execute", action="store_true", help="Run the commands instead of printing."
        )
        self.add_argument(
            "--name", type=_name, required=True, help="Name of the sweep and its directory."
        )
        self.add_argument(
            "--config",
            help="The experiment, a file of the repository. Other flags set its keys, as in "
            "--config.train.steps=1000.",
        )
        self.add_argument(
            "--ks", type=_whole_numbers, default=(), help="Values of k, as in 1,2,4,8."
        )
        self.add_argument("--seeds", type=_whole_numbers, default=(), help="Values of seed.")

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message.removeprefix('argument ')}; --help says more.", 2)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Returns the flags, with those that set a key of the config as `overrides`."""
        overrides = [arg for arg in argv if arg.startswith("--config.")]
        for override in overrides:
            if "=" not in override:
                self.error(f"{override}: expected --config.key=value")
        args = self.parse_args([arg for arg in argv if arg not in overrides])
        args.overrides = overrides
        for key, values in (("k", args.ks), ("seed", args.seeds)):
            if values and any(o.startswith(f"--config.{key}=") for o in overrides):
                self.error(f"--config.{key} and --{key}s are both given: drop one")
        return args


def _name(text: str) -> str:
    # These are the rules of Google Cloud and Kubernetes, with space left for -k8-seed0.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected at most 40 lower-case letters, digits and hyphens, a letter first"
        )
    return text


def _whole_numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers, as in 1,2,4,8")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def bucket(text: str) -> str:
    """Parses a flag that is a bucket, gs://NAME."""
    if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]/?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a bucket, as in gs://my-bucket")
    return text.rstrip("/")


def directory(text: str) -> str:
    """Parses a flag that is an absolute path."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected an absolute path, as in /mnt/pkpo")
    return text.rstrip("/") or "/"


def accelerator(text: str) -> str:
    """Parses a flag that is a kind of TPU slice, as in v5litepod-128."""
    known = re.fullmatch(rf"({'|'.join(RUNTIMES)})-[1-9]\d*", text)
    if not known:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected one of {', '.join(RUNTIMES)} with a size, as in v5litepod-128 "
            "(v5e is v5litepod)"
        )
    return text


def devices(accelerator: str) -> int:
    """Returns the number of JAX devices of a slice.

    The names of v4 and v5p slices count cores, of which a device has two.
    """
    generation, _, size = accelerator.partition("-")
    return int(size) // 2 if generation in ("v4", "v5p") else int(size)


def check_runs(args: argparse.Namespace, runs: Sequence[Run], devices: int) -> None:
    """Checks the configs of all runs as the trainer does, before anything is paid for.

    Raises:
      LaunchError: a config cannot run on that number of devices.
    """
    # These imports are slow, and actions that only look at a sweep do not need them.
    from pkpo_jax.training import checks
    from pkpo_jax.training import config as config_lib

    if not args.config:
        raise LaunchError("--config is missing; give a file such as configs/maze_tiny.py.", 2)
    path = pathlib.PurePath(args.config.partition(":")[0])
    if path.is_absolute() or ".." in path.parts:
        raise LaunchError(f"--config={args.config}; expected a path in the repository.", 2)
    try:
        known = [key for key, _ in config_lib.flatten(_read(args.config, ()).to_dict())]
        for override in args.overrides:
            if (key := override[len("--config.") :].partition("=")[0]) not in known:
                raise config_lib.unknown_key(key, known)
        for run in runs:
            config = _read(*described(args, run))
            config = checks.validate(config, devices, reads_weights=False)
            if config.model.size != "tiny":
                _check_path("model.checkpoint", config.model.checkpoint, "official weights")
            if config.task.name in ("code", "math"):
                _check_path("task.data_dir", config.task.data_dir, "the problems")
            if not config.task.get("allow_code_execution", True):
                raise config_lib.ConfigError(
                    "task.allow_code_execution is False; set it to True to let hosts run, in "
                    "sandboxes, what the policy writes."
                )
    except OSError:
        raise LaunchError(
            f"--config={args.config} could not be read; is it a file here?", 2
        ) from None
    except Exception as e:  # The config file is a program, and can fail in any way.
        last = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        raise LaunchError(last[-1], 2) from None


def _check_path(key: str, path: str, what: str) -> None:
    """Raises a ConfigError for an empty or a relative path, which hosts cannot share."""
    from pkpo_jax.training.config import ConfigError

    if not path.startswith("/") and "://" not in path:
        raise ConfigError(
            f"{key} is {repr(path) if path else 'empty'}; set --config.{key} to {what}, at an "
            "absolute path that all hosts see."
        )


def paths_within(args: argparse.Namespace, directory: str) -> list[tuple[str, str]]:
    """Returns (flag, path) of each override that is a path in `directory`."""
    split = [(override, override.partition("=")[2]) for override in args.overrides]
    return [(flag, path) for flag, path in split if path.startswith(directory.rstrip("/") + "/")]


def check_bucket(args: argparse.Namespace) -> None:
    """Raises a LaunchError if the bucket, or a path in it that the runs read, cannot be listed."""
    shell = commands.Shell()

    def refusal(url: str) -> str:
        run = shell.run(Command(("gcloud", "storage", "ls", url), "Is it there?"), capture=True)
        return (run.stderr.strip().splitlines() or ["gcloud failed"])[-1] if run.returncode else ""

    # An empty bucket is fine.
    if (said := refusal(args.bucket)) and "matched no objects" not in said:
        raise LaunchError(
            f"--bucket={args.bucket} cannot be read ({said}); create it as described in --help, or "
            "give your own.",
            2,
        )
    for flag, path in paths_within(args, args.shared_dir):
        url = f"{args.bucket}/{path[len(args.shared_dir) :].strip('/')}"
        if said := refusal(url):
            raise LaunchError(
                f"{flag}: {url} cannot be read ({said}); copy it there first, with gcloud storage "
                "cp -r.",
                2,
            )


def _read(config: str, overrides: Sequence[str]) -> config_dict.ConfigDict:
    values, argv = flags.FlagValues(), ["launch", f"--config={config}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config
