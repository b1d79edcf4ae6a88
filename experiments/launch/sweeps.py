"""The runs of a sweep, and the flags that describe one."""

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

# The image of a TPU VM, by generation.
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
    """One of a sweep: the name of its directory, and what it sets."""

    name: str
    overrides: tuple[str, ...]


def sweep(ks: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """Every k with every seed; without either, the config's own.

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
    """What pkpo_jax.main is given for `run`, all of whose runs are kept in `directory`."""
    workdir = "/".join(part for part in (directory.rstrip("/"), args.name, run.name) if part)
    config, overrides = described(args, run)
    return ["--distributed", f"--config={config}", f"--workdir={workdir}", *overrides]


def described(args: argparse.Namespace, run: Run) -> tuple[str, list[str]]:
    """What --config is for a run, and what is set beside it.

    A config that has an argument is told k in it, as in gemma2_2b_math.py:anneal,k=4: set beside
    it, k would take the place of the schedule.
    """
    overrides = [*args.overrides, *run.overrides]
    ks = [o for o in run.overrides if o.startswith("--config.k=")]
    if not ks or ":" not in args.config:
        return args.config, overrides
    k = ks[0].removeprefix("--config.k=")
    return f"{args.config},k={k}", [o for o in overrides if o not in ks]


class Parser(argparse.ArgumentParser):
    """Flags that all launchers have; what is wrong with them becomes a LaunchError."""

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
        self.add_argument("--execute", action="store_true", help="Run the commands; else print.")
        self.add_argument(
            "--name", type=_name, required=True, help="Of the sweep, and its directory."
        )
        self.add_argument(
            "--config",
            help="The experiment, a file of the repository; any key is set beside it, as in "
            "--config.train.steps=1000.",
        )
        self.add_argument(
            "--ks", type=_whole_numbers, default=(), help="Values of k, as in 1,2,4,8."
        )
        self.add_argument("--seeds", type=_whole_numbers, default=(), help="Values of seed.")

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message.removeprefix('argument ')}; --help says more.", 2)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags, and in `overrides` what is set beside --config."""
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
    # What Google Cloud and Kubernetes allow, with room for -k8-seed0.
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
    """A type of flag: gs://NAME."""
    if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]/?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a bucket, as in gs://my-bucket")
    return text.rstrip("/")


def directory(text: str) -> str:
    """A type of flag: an absolute path."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r}; expected an absolute path, as in /mnt/pkpo")
    return text.rstrip("/") or "/"


def accelerator(text: str) -> str:
    """A type of flag: a kind of TPU slice, as in v5litepod-128."""
    known = re.fullmatch(rf"({'|'.join(RUNTIMES)})-[1-9]\d*", text)
    if not known:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected one of {', '.join(RUNTIMES)} with a size, as in v5litepod-128 "
            "(v5e is v5litepod)"
        )
    return text


def devices(accelerator: str) -> int:
    """How many devices JAX sees on a slice: a v4 or v5p is named after cores, two a device."""
    generation, _, size = accelerator.partition("-")
    return int(size) // 2 if generation in ("v4", "v5p") else int(size)


def check_runs(args: argparse.Namespace, runs: Sequence[Run], devices: int) -> None:
    """Raises what the trainer would say of a run's config, before anything is paid for."""
    # Not needed to look at a sweep, and slow to import.
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
            checks.validate(config, devices, reads_weights=False)
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
    """Raises a ConfigError for a path that no host can have: an empty or a relative one."""
    from pkpo_jax.training.config import ConfigError

    if not path.startswith("/") and "://" not in path:
        raise ConfigError(
            f"{key} is {repr(path) if path else 'empty'}; set --config.{key} to {what}, at an "
            "absolute path that all hosts see."
        )


def paths_within(args: argparse.Namespace, directory: str) -> list[tuple[str, str]]:
    """Returns (flag, path) of all that is set beside --config to a path in `directory`."""
    split = [(override, override.partition("=")[2]) for override in args.overrides]
    return [(flag, path) for flag, path in split if path.startswith(directory.rstrip("/") + "/")]


def check_bucket(args: argparse.Namespace) -> None:
    """Raises a LaunchError if the bucket, or what the runs read from it, cannot be listed."""
    shell = commands.Shell()

    def refusal(url: str) -> str:
        run = shell.run(Command(("gcloud", "storage", "ls", url), "Is it there?"), capture=True)
        return (run.stderr.strip().splitlines() or ["gcloud failed"])[-1] if run.returncode else ""

    if (said := refusal(args.bucket)) and "matched no objects" not in said:  # It may be empty.
        raise LaunchError(
            f"--bucket={args.bucket} cannot be read ({said}); make it, as --help says, or give "
            "your own.",
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
