"""Runs the study: every run, table and plot of RESULTS.md.

python -m experiments.study --workdir=runs/study
python -m experiments.study --workdir=runs/study_quick --quick
python -m experiments.study --render=experiments/study

Learning rates are tuned on some seeds and problems, and everything is reported on others. Every run
is the trainer on a config, in a directory below WORKDIR. Complete runs are read and not repeated,
so the command resumes where it stopped. WORKDIR receives results.json, figures/, RESULTS.md and
TABLES.md.

--quick trains PKPO with five k on fogged mazes, at one rate, and shows claims a and b.
--render runs nothing: it makes the page again from a folder's results.json, to which --join adds
those of other seeds or problems, from their WORKDIR.
"""

from __future__ import annotations

import functools

from absl import app, flags

from experiments.study import command

flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    app.run(functools.partial(command.main, "experiments.study"))
