"""Runs an experiment, or looks at one.

python -m pkpo_jax.main --config=configs/maze_tiny.py --workdir=runs/maze [--config.key=value ...]
python -m pkpo_jax.main --config=configs/gemma2_2b_math.py --mode=compile --topology=v5e:4x4
python -m pkpo_jax.main --mode=eval --workdir=runs/maze,runs/maze_k1 [--step=best]
python -m pkpo_jax.main --mode=sample --workdir=runs/maze [--ks=1,4,8]
python -m pkpo_jax.main --mode=report --workdir=runs/maze
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_dict, config_flags

from pkpo_jax import command_line
from pkpo_jax.training import config as config_lib


def _join_other_processes() -> None:
    from pkpo_jax import parallel

    try:
        parallel.join_other_processes()
    except ValueError as e:
        raise config_lib.ConfigError(
            f"--distributed: {e} No cluster was found; set JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or drop --distributed on a single host."
        ) from None


def _train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    from pkpo_jax import parallel
    from pkpo_jax.training import files, loop

    try:
        last = loop.train(config, workdir)
        if config.log.report and parallel.is_first_process():
            from pkpo_jax.reporting import page

            with files.writing("the report"):
                page.write(workdir, config, last)
    except files.WriteError as e:
        stopped = loop.Stopped.by_failed_write(workdir, e)
        command_line.stop(stopped, stopped.code)
    except loop.Stopped as e:
        command_line.stop(e, e.code)


def _run(mode: str) -> None:
    config, workdirs = flags.FLAGS.config, command_line.workdirs()
    if mode == "train":
        _train(config, workdirs[0])
    elif mode == "compile":
        from pkpo_jax.reporting import compilation

        sys.exit(not compilation.report(config, flags.FLAGS.topology))
    elif mode == "report":
        from pkpo_jax import parallel
        from pkpo_jax.reporting import page

        try:
            if parallel.is_first_process():
                print(page.write_page(workdirs[0]))
        except OSError as e:
            raise config_lib.ConfigError(f"report.html could not be written: {e}") from e
    else:
        from pkpo_jax.reporting import inspection

        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        request = inspection.Request(config, overrides, flags.FLAGS.step, flags.FLAGS.split)
        if mode == "eval":
            inspection.evaluate(workdirs, request)
        else:
            options = {"count": flags.FLAGS.count, "ks": command_line.ks()}
            inspection.sample(workdirs[0], request, **options)


def main(argv: Sequence[str]) -> None:
    del argv
    # Imported after the flags are parsed, so that --help and a mistyped key answer at once.
    from pkpo_jax import parallel
    from pkpo_jax.policy import checkpoints
    from pkpo_jax.tasks import grading

    mode = flags.FLAGS.mode
    try:
        if flags.FLAGS.distributed:
            _join_other_processes()
        _run(mode)
    except (config_lib.ConfigError, parallel.OtherProcessError) as e:
        command_line.stop(e)
    except (checkpoints.CheckpointError, grading.StartError) as e:
        # Others may know nothing of it: they are not waited for, and end when this process is gone.
        command_line.stop(e, at_once=parallel.is_one_of_many())
    except KeyboardInterrupt:
        goes_on = (
            f": what was recorded is in {flags.FLAGS.workdir}; the same command goes on from the "
            "newest checkpoint there."
        )
        print(f"\ninterrupted{goes_on if mode == 'train' else '.'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
