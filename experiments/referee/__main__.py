"""Runs the referee: every run, table and plot of RESULTS.md.

python -m experiments.referee --workdir=runs/referee
python -m experiments.referee --workdir=runs/referee_quick --quick
python -m experiments.referee --render=experiments/referee
python -m experiments.referee --estimate

It is a study, with the methods of the field on three sets of problems and the conditions of a
collapse on a fourth. Learning rates are tuned on some seeds and problems, and everything is
reported on others: five seeds on each of three draws of problems. Complete runs are read and not
repeated, so the command resumes where it stopped. WORKDIR receives results.json, figures/,
RESULTS.md and TABLES.md.

--quick runs twelve methods on open mazes with two seeds, at one rate, and shows a part of the
questions. --render runs nothing: it makes the page again from a folder's results.json, to which
--join adds those of other seeds or problems, from their WORKDIR. --estimate prints how many runs
there are and how long they take.
"""

from __future__ import annotations

import functools

from absl import app, flags

from experiments.study import command

flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    app.run(functools.partial(command.main, "experiments.referee"))
