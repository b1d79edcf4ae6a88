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

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/maze_tiny.py",
    "The experiment: a file with get_config(). Any of its keys can be set beside it, as in "
    "--config.k=1 or --config.k='{0: 8, 1500: 1}'.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run keeps its config, metrics, plots and checkpoints. A run that was interrupted "
    "goes on from its newest checkpoint when started again with the same config.",
)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; what is wrong with them becomes one line."""
    try:
        # Orbax logs dozens of lines a checkpoint at INFO; -v=0 shows them.
        logging.set_verbosity(logging.WARNING)
        rest = flags.FLAGS(argv)
        if _WORKDIR.value is None:
            raise config_lib.ConfigError("--workdir is missing; give a directory for the run.")
        if len(rest) > 1:
            raise config_lib.ConfigError(f"unexpected argument {rest[1]!r}; flags start with --.")
        return rest
    except AttributeError:
        known = [key for key, _ in config_lib.flatten(_CONFIG.value.to_dict())]
        given = [arg.removeprefix("--config.").split("=")[0] for arg in argv if "config." in arg]
        _stop(config_lib.unknown_key(next((k for k in given if k not in known), "?"), known))
    except (flags.Error, config_lib.ConfigError, OSError) as e:
        _stop(e)


def _stop(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def main(argv: Sequence[str]) -> None:
    # Imported after the flags are parsed, so that --help and a mistyped key answer at once.
    from pkpo_jax.training import loop

    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    try:
        loop.train(_CONFIG.value, workdir)
    except config_lib.ConfigError as e:
        _stop(e)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted: the metrics so far are in {workdir}; the same command goes on from "
            "the newest checkpoint there.",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
