"""The flags of the command line, and one-line errors for mistakes in them."""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags, logging
from ml_collections import config_dict, config_flags

from pkpo_jax import configs
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import saved_run

_DEFAULT_CONFIG = "maze_tiny"
# These modes read an existing run, and use the config that it was made with.
_OF_A_RUN = ("eval", "sample", "report", "export")
# These flags belong to some modes, and the others refuse them.
_ONLY = {
    "topology": ("compile",),
    "step": ("eval", "sample", "export"),
    "to": ("export",),
    "split": ("eval", "sample"),
    "count": ("sample",),
    "ks": ("sample", "sweep"),
    "seeds": ("sweep",),
    "jobs": ("sweep",),
    "compilation_cache": ("train", "eval", "sample", "sweep"),
    "distributed": ("train", "eval", "sample", "report"),
}


def parse(argv: Sequence[str]) -> list[str]:
    """Defines and parses the flags, and ends the program with one line if they are wrong.

    Returns:
      The arguments that are not flags, which are the program's name alone.
    """
    argv = list(argv)
    try:
        argv = [argv[0], *_with_path(argv[1:])]
        _define_mode(flags.FLAGS)
        _define_others()
        _define_config(argv)
        # --help shows the flags that are registered for the main program.
        for flag in flags.FLAGS.get_key_flags_for_module(__name__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
        # At level INFO, which -v=0 sets, Orbax logs dozens of lines for each checkpoint.
        logging.set_verbosity(logging.WARNING)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise config_lib.ConfigError(f"unexpected argument {rest[1]!r}; flags start with --.")
        _check(flags.FLAGS)
        if flags.FLAGS.mode == "sweep":
            _check_sweep(flags.FLAGS, overrides())
        flags.FLAGS.config.keys()  # A file that could not be read is reported on first use.
        return rest
    except (flags.Error, config_lib.ConfigError) as e:
        # If a config file fails on its argument, the message of absl holds the whole traceback.
        said, failed = str(e).strip().splitlines(), "Traceback" in str(e)
        stop(f"the file that --config names failed: {said[-1]}" if failed else e)
    except OSError as e:
        stop(f"the file that --config names could not be read ({e.__cause__ or e}).")
    except Exception as e:  # The config file is a program, and can fail in any way.
        config = _config_of_run(argv) or config_lib.default()
        known = [key for key, _ in config_lib.flatten(config.to_dict())]
        given = [arg.partition("=")[0].lstrip("-") for arg in argv]
        given = [key.removeprefix("config.") for key in given if key.startswith("config.")]
        unknown = [key for key in given if key not in known]
        if isinstance(e, AttributeError) and unknown:
            stop(config_lib.unknown_key(unknown[0], known))
        last = str(e).strip().splitlines()[-1:] or [""]
        stop(f"the file that --config names failed: {type(e).__name__}: {last[0].strip()}")


def stop(error: Exception | str, code: int = 2, *, at_once: bool = False) -> NoReturn:
    """Ends the program with one line on stderr.

    Args:
      error: the error to print.
      code: the exit code.
      at_once: whether to end without cleaning up and without waiting for other processes.
    """
    print(f"{'error' if code == 2 else 'stopped'}: {' '.join(str(error).split())}", file=sys.stderr)
    if at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def workdirs() -> list[pathlib.Path]:
    """Returns the directories that --workdir names."""
    return _workdirs(flags.FLAGS)


def ks() -> list[int]:
    """Returns the k that --ks names."""
    return _whole_numbers(flags.FLAGS.ks or "")


def seeds() -> list[int]:
    """Returns the seeds that --seeds names."""
    return _whole_numbers(flags.FLAGS.seeds)


def overrides() -> list[str]:
    """Returns the arguments that set keys of the config, as they were given."""
    return [arg for arg in sys.argv[1:] if re.match(r"--?(no)?config\.", arg)]


def read_config(config: str, overrides: Sequence[str]) -> config_dict.ConfigDict:
    """Returns the config that `--config` and these arguments describe together.

    Raises:
      ConfigError: the config file fails, for example on an argument that it does not know.
    """
    values, argv = flags.FlagValues(), ["", f"--config={config}", *overrides]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        values.config.keys()  # A file that could not be read is reported on first use.
    except Exception as e:  # The config file is a program, and can fail in any way.
        (last,) = str(e).strip().splitlines()[-1:] or [type(e).__name__]
        raise config_lib.ConfigError(f"--config={config} failed: {last.strip()}") from None
    return values.config


def _with_path(argv: Sequence[str]) -> list[str]:
    """Replaces the name of a config file by its path, or raises a ConfigError."""
    given, rest = [], iter(argv)
    for arg in rest:
        if re.fullmatch("--?config", arg):
            arg = f"{arg}={next(rest, '')}"
        if re.match("--?config=", arg):
            arg = f"--config={configs.find(arg.partition('=')[2])}"
        given.append(arg)
    return given


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in dict.fromkeys(text.split(","))] if text else []


def _workdirs(values: flags.FlagValues) -> list[pathlib.Path]:
    given = values.workdir or ""
    # In other modes than eval, a comma is a part of the directory's name.
    names = given.split(",") if values.mode == "eval" else [given]
    return [pathlib.Path(name).expanduser() for name in names if name]


def _define_mode(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "sweep", "compile", "eval", "sample", "report", "export"],
        "train: run the experiment. sweep: train it for every k of --ks and seed of --seeds, in "
        "DIR/k<k>_seed<seed>, and compare them in a table, DIR/sweep.png and DIR/sweep.json. "
        "compile: compile its sampling and update steps without weights or data, print what a "
        "device needs, and exit with 1 if it does not fit. The other modes read an existing run, "
        "finished or not. eval: measure pass@k for every k, majority vote and diversity, with "
        "intervals, and write them to DIR/eval/<split>_step<N>. sample: show responses to some "
        "problems, and the reward weight of each. report: write DIR/report.html. export: write the "
        "policy to --to, as safetensors that transformers, vLLM and others read.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "The directory of the run's config, metrics, plots and checkpoints. A run that was "
        "interrupted resumes from its newest checkpoint when started again with the same config. "
        "With --mode=eval, several runs to compare, as in runs/a,runs/b, or a new directory for "
        "the results of --config.model.checkpoint.",
        flag_values=values,
    )


def _define_others() -> None:
    flags.DEFINE_string(
        "topology",
        None,
        "With --mode=compile, the TPU to compile for, which need not be present: v4, v5e, v5p or "
        "v6e and its grid, as in v5e:8x16. If not given, the local devices.",
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the other processes of the job first. They are found automatically on Cloud TPU, "
        "SLURM and GKE, and elsewhere by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID.",
    )
    flags.DEFINE_string(
        "step",
        "newest",
        "With --mode=eval, sample or export, the step of the policy: newest, best (of the saved "
        "ones, by the metric checkpoint.best) or a number, where 0 is the policy before RL.",
    )
    flags.DEFINE_string(
        "to", None, "With --mode=export, the directory to write, which must not exist yet."
    )
    flags.DEFINE_enum(
        "split", "test", ["test", "train"], "With --mode=eval or sample, the split of the problems."
    )
    flags.DEFINE_integer("count", 3, "With --mode=sample, the number of problems.", lower_bound=1)
    flags.DEFINE_string(
        "ks",
        None,
        "With --mode=sweep, the k to train for, as in 1,4,8. With --mode=sample, the k to show "
        "reward weights for; if not given, 1 and the k that the run ends with.",
    )
    flags.DEFINE_string("seeds", "0,1,2", "With --mode=sweep, the seeds to train with.")
    flags.DEFINE_integer(
        "jobs",
        1,
        "With --mode=sweep, the number of runs at the same time. An accelerator serves one run.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "compilation_cache",
        "",
        "The directory in which compiled programs are kept for later starts, or off. If not given, "
        "it is ~/.cache/pkpo_jax/xla (or the same in XDG_CACHE_HOME), but off with --distributed: "
        "there a directory only helps if all processes see it. The environment variable "
        "JAX_COMPILATION_CACHE_DIR takes precedence.",
    )


def _define_config(argv: Sequence[str]) -> None:
    """Defines --config, after all other flags because defining it reads the overrides at once."""
    text = (
        "The experiment: a file with get_config(), or the name of one that comes with pkpo_jax: "
        f"{', '.join(configs.names())}. Its keys can be set by further flags, as in --config.k=1 "
        "or --config.k='{0: 8, 1500: 1}'. The modes eval, sample, report and export use the config "
        "of the run instead, with the keys that are set."
    )
    if config := _config_of_run(argv):
        config_flags.DEFINE_config_dict("config", config, text)
    else:
        default = configs.find(_DEFAULT_CONFIG)
        config_flags.DEFINE_config_file("config", default, text, sys_argv=list(argv))


def _config_of_run(argv: Sequence[str]) -> config_dict.ConfigDict | None:
    """Returns the saved config of the run, or None if the mode reads no run or --config is given.

    With the run's config, flags that set its keys are parsed with its types, and no config file is
    needed.
    """
    values = flags.FlagValues()
    _define_mode(values)
    values(argv, known_only=True)
    if values.mode not in _OF_A_RUN or any(re.match("--?config(=|$)", arg) for arg in argv):
        return None
    runs = [path for path in _workdirs(values) if saved_run.is_run(path)]
    return saved_run.read_config(runs[0]) if runs else None


def _check(values: flags.FlagValues) -> None:
    mode = values.mode
    for name, modes in _ONLY.items():
        if mode not in modes and values[name].present:
            raise config_lib.ConfigError(
                f"--{name} is for --mode={' and --mode='.join(modes)}; drop it to {mode}."
            )
    if mode != "compile" and not _workdirs(values):
        raise config_lib.ConfigError("--workdir is missing; give a directory for the run.")
    for name in map(str, (values.workdir or "").split(",")):
        if mode != "compile" and "://" in name:
            raise config_lib.ConfigError(
                f"--workdir={name} is no directory; mount the bucket, with gcsfuse for one, and "
                "give the path where it is mounted."
            )
    if not re.fullmatch(r"newest|best|\d+", values.step):
        raise config_lib.ConfigError(
            f"--step={values.step}; expected newest, best, or the number of a step."
        )
    for name in ("ks", "seeds"):
        given = values[name].value
        if given is not None and not re.fullmatch(r"\d+(,\d+)*", given):
            raise config_lib.ConfigError(f"--{name}={given}; expected whole numbers, as in 1,4,8.")
    if mode == "export" and "://" in (values.to or ""):
        raise config_lib.ConfigError(
            f"--to={values.to} is no directory; write to one, and copy it to the bucket."
        )
    if mode == "export" and not values.to:
        raise config_lib.ConfigError("--to is missing; give the directory to write.")
    if mode == "report" and not _workdirs(values)[0].exists():
        raise config_lib.ConfigError(
            f"--workdir={values.workdir} does not exist; give the directory of a run."
        )


def _check_sweep(values: flags.FlagValues, overrides: Sequence[str]) -> None:
    if not values.ks:
        raise config_lib.ConfigError("--ks is missing; give the k to train for, as in 1,2,4,8.")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise config_lib.ConfigError(f"{key}: a sweep needs the form --config.key=value.")
        if key.endswith(("config.k", "config.seed")):
            name = key.rpartition(".")[2]
            raise config_lib.ConfigError(f"{key} and --{name}s are both given; drop {key}.")
