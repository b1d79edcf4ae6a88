"""Runs an experiment.

python -m pkpo_jax.main --config=configs/maze_tiny.py --workdir=runs/maze [--config.key=value ...]
python -m pkpo_jax.main --config=configs/gemma2_2b_math.py --mode=compile --topology=v5e:4x4
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from pkpo_jax.training import config as config_lib

_DEFAULT_CONFIG = "configs/maze_tiny.py"


def _parse(argv: Sequence[str]) -> list[str]:
    """Defines and parses the flags; what is wrong with them becomes one line."""
    try:
        # Defined here, for an override of the default config is read as soon as it is defined.
        config_flags.DEFINE_config_file(
            "config",
            _DEFAULT_CONFIG,
            "The experiment: a file with get_config(). Any of its keys can be set beside it, as in "
            "--config.k=1 or --config.k='{0: 8, 1500: 1}'.",
        )
        flags.DEFINE_string(
            "workdir",
            None,
            "Where the run keeps its config, metrics, plots and checkpoints. A run that was "
            "interrupted goes on from its newest checkpoint when started again with the same "
            "config.",
        )
        flags.DEFINE_enum(
            "mode",
            "train",
            ["train", "compile"],
            "train: run the experiment. compile: compile its sampling and update steps without "
            "weights or data, print what a device needs, and exit with 1 if it does not fit.",
        )
        flags.DEFINE_string(
            "topology",
            None,
            "With --mode=compile, the TPU to compile for, none of which is needed: v4, v5e, v5p or "
            "v6e and its grid, as in v5e:8x16. The local devices if not given.",
        )
        flags.DEFINE_bool(
            "distributed",
            False,
            "Join the other processes of the job first: found by itself on Cloud TPU, SLURM and "
            "GKE, else by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
        )
        # Orbax logs dozens of lines a checkpoint at INFO; -v=0 shows them.
        logging.set_verbosity(logging.WARNING)
        rest = flags.FLAGS(argv)
        training = flags.FLAGS.mode == "train"
        if training and flags.FLAGS.topology:
            raise config_lib.ConfigError("--topology is for --mode=compile; drop it to train.")
        if training and not flags.FLAGS.workdir:
            raise config_lib.ConfigError("--workdir is missing; give a directory for the run.")
        if training and "://" in flags.FLAGS.workdir:
            raise config_lib.ConfigError(
                f"--workdir={flags.FLAGS.workdir} is no directory; mount the bucket, with gcsfuse "
                "for one, and give the path it is mounted at."
            )
        if len(rest) > 1:
            raise config_lib.ConfigError(f"unexpected argument {rest[1]!r}; flags start with --.")
        flags.FLAGS.config.keys()  # A file that could not be read is reported on first use.
        return rest
    except (flags.Error, config_lib.ConfigError) as e:
        _stop(e)
    except OSError:
        _stop(
            "the file that --config names could not be read; give the path of one with "
            f"get_config(), such as {_DEFAULT_CONFIG} of the repository."
        )
    except Exception as e:  # The config file is a program, and can fail in any way.
        known = [key for key, _ in config_lib.flatten(config_lib.default().to_dict())]
        given = [arg.partition("=")[0].lstrip("-") for arg in argv]
        given = [key.removeprefix("config.") for key in given if key.startswith("config.")]
        unknown = [key for key in given if key not in known]
        if isinstance(e, AttributeError) and unknown:
            _stop(config_lib.unknown_key(unknown[0], known))
        last = str(e).strip().splitlines()[-1:] or [""]
        _stop(f"the file that --config names failed: {type(e).__name__}: {last[0].strip()}")


def _stop(error: Exception | str) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def _join_other_processes() -> None:
    from pkpo_jax import parallel

    try:
        parallel.join_other_processes()
    except ValueError as e:
        raise config_lib.ConfigError(
            f"--distributed: {e} No cluster was found; set JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or drop --distributed on a single host."
        ) from None


def main(argv: Sequence[str]) -> None:
    del argv
    # Imported after the flags are parsed, so that --help and a mistyped key answer at once.
    from pkpo_jax import parallel
    from pkpo_jax.policy import checkpoints

    try:
        if flags.FLAGS.distributed:
            _join_other_processes()
        if flags.FLAGS.mode == "compile":
            from pkpo_jax.training import compile

            sys.exit(not compile.report(flags.FLAGS.config, flags.FLAGS.topology))
        from pkpo_jax.training import loop

        loop.train(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir).expanduser())
    except (
        config_lib.ConfigError,
        checkpoints.CheckpointError,
        parallel.OtherProcessError,
    ) as e:
        _stop(e)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: what was recorded is in {flags.FLAGS.workdir}; the same command goes "
            "on from the newest checkpoint there.",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
