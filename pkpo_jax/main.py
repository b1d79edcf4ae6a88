"""The command `pkpo-jax` (or `python -m pkpo_jax.main`), which trains and evaluates policies.

pkpo-jax --config=maze_tiny --workdir=runs/maze [--config.key=value ...]
pkpo-jax --mode=sweep --config=maze_tiny --ks=1,8 --seeds=0,1,2 --workdir=runs/sweep [--jobs=2]
pkpo-jax --mode=eval --workdir=runs/maze,runs/maze_k1 [--step=best]
pkpo-jax --mode=sample --workdir=runs/maze [--ks=1,4,8]
pkpo-jax --mode=report --workdir=runs/maze
pkpo-jax --mode=export --workdir=runs/maze --to=exported/maze [--step=best]
pkpo-jax --mode=compile --config=gemma2_2b_math --topology=v5e:4x4
"""

# Python's `spawn` makes grading workers import this module. Heavy modules are therefore imported
# within functions, which also lets --help and mistakes in flags answer without waiting for them.
from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

if TYPE_CHECKING:
    from ml_collections import config_dict


def _join_other_processes() -> None:
    from pkpo_jax import parallel
    from pkpo_jax.training import config as config_lib

    try:
        parallel.join_other_processes()
    except ValueError as e:
        raise config_lib.ConfigError(
            f"--distributed: {e} No cluster was found; set JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or drop --distributed on a single host."
        ) from None


def _train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    from pkpo_jax import command_line, parallel
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
        # Threads of Orbax wait minutes for the parts of a checkpoint that failed, so the process
        # ends without them.
        failed_write = e.code == loop.Stopped.NOT_WRITTEN
        command_line.stop(e, e.code, at_once=failed_write and not parallel.is_one_of_many())


def _report(workdir: pathlib.Path) -> None:
    from pkpo_jax import parallel
    from pkpo_jax.reporting import page
    from pkpo_jax.training import config as config_lib

    try:
        if parallel.is_first_process():
            print(page.write_page(workdir))
    except OSError as e:
        raise config_lib.ConfigError(f"report.html could not be written: {e}") from e


def _run(mode: str) -> None:
    from ml_collections import config_flags

    from pkpo_jax import command_line

    values, workdirs = flags.FLAGS, command_line.workdirs()
    if mode == "train":
        _train(values.config, workdirs[0])
    elif mode == "sweep":
        from pkpo_jax import sweep

        sys.exit(sweep.run(workdirs[0], sweep.requested()))
    elif mode == "compile":
        from pkpo_jax.reporting import compilation

        sys.exit(not compilation.report(values.config, values.topology))
    elif mode == "report":
        _report(workdirs[0])
    elif mode == "export":
        from pkpo_jax import export

        overrides = config_flags.get_override_values(values["config"])
        export.run(workdirs[0], values.to, values.step, overrides)
    else:
        from pkpo_jax.reporting import inspection

        overrides = config_flags.get_override_values(values["config"])
        request = inspection.Request(values.config, overrides, values.step, values.split)
        if mode == "eval":
            inspection.evaluate(workdirs, request)
        else:
            options = {"count": values.count, "ks": command_line.ks()}
            inspection.sample(workdirs[0], request, **options)


def main(argv: Sequence[str]) -> None:
    del argv
    from pkpo_jax import command_line, compilation_cache, host_memory, parallel
    from pkpo_jax.policy import checkpoints
    from pkpo_jax.tasks import grading
    from pkpo_jax.training import config as config_lib

    values, mode = flags.FLAGS, flags.FLAGS.mode
    host_memory.keep_freed()
    try:
        if mode in ("train", "eval", "sample"):  # The mode compile measures compile times.
            compilation_cache.use(values.compilation_cache, distributed=values.distributed)
        if values.distributed:
            _join_other_processes()
        _run(mode)
    except (config_lib.ConfigError, parallel.OtherProcessError) as e:
        command_line.stop(e)
    except (checkpoints.CheckpointError, grading.StartError) as e:
        # The other processes may not have failed, so this one does not wait for them. They end
        # when it is gone.
        command_line.stop(e, at_once=parallel.is_one_of_many())
    except KeyboardInterrupt:
        resume = (
            f": what was recorded is in {values.workdir}; the same command resumes from the newest "
            "checkpoint there."
        )
        print(f"\ninterrupted{resume if mode in ('train', 'sweep') else '.'}", file=sys.stderr)
        sys.exit(130)


def run() -> None:
    """Runs the command `pkpo-jax`."""
    from pkpo_jax import command_line

    # absl prints the docstring of the main module at the top of --help.
    sys.modules["__main__"].__doc__ = __doc__
    # Like `python -m`, the command finds modules in the current directory, such as a user's task.
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
    run()
