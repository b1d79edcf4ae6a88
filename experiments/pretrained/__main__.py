"""Runs the study on a pretrained model: every run, table and plot of RESULTS.md.

python -m experiments.pretrained.fetch --to=gemma3-270m --accept-gemma-terms
python -m experiments.pretrained --checkpoint=gemma3-270m --workdir=runs/pretrained
python -m experiments.pretrained --checkpoint=gemma3-270m --workdir=runs/pretrained \
    --problems=sums --seeds=0
python -m experiments.pretrained --estimate
python -m experiments.pretrained --render=experiments/pretrained
python -m experiments.pretrained --render=experiments/pretrained --join=runs/pretrained_seed1

A run has all cores, takes half an hour on two of them, and needs up to 11 GiB of memory. The whole
takes days: --estimate prints how many hours. The command can be stopped at any time and goes on
from the last checkpoint of the run it was in. --problems, --methods and --seeds do it in pieces,
whose page in WORKDIR says what was not run. --join adds the results of such a part, from another
machine perhaps, to those of --render.
"""

from __future__ import annotations

import functools

from absl import app, flags

from experiments.study import command

flags.adopt_module_key_flags(command)

if __name__ == "__main__":
    app.run(functools.partial(command.main, "experiments.pretrained"))
