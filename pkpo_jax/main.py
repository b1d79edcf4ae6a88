"""Runs an experiment.

python -m pkpo_jax.main --config=configs/maze_tiny.py --workdir=runs/maze [--config.key=value ...]
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
        # Orbax logs dozens of lines a checkpoint at INFO; -v=0 shows them.
        logging.set_verbosity(logging.WARNING)
        rest = flags.FLAGS(argv)
        if not flags.FLAGS.workdir:
            raise config_lib.ConfigError("--workdir is missing; give a directory for the run.")
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


def main(argv: Sequence[str]) -> None:
    # Imported after the flags are parsed, so that --help and a mistyped key answer at once.
    from pkpo_jax.training import loop

    workdir = pathlib.Path(flags.FLAGS.workdir).expanduser()
    try:
        loop.train(flags.FLAGS.config, workdir)
    except config_lib.ConfigError as e:
        _stop(e)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: what was recorded is in {workdir}; the same command goes on from the "
            "newest checkpoint there.",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
