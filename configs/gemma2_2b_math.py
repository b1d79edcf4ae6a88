"""Gemma-2 2B learns MATH with PKPO, k = 8, from official weights: paper A's first experiment.

    python -m pkpo_jax.main --config=configs/gemma2_2b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

with CHECKPOINT and MATH as docs/gemma.md says. On several hosts add --distributed, and give paths
that all of them see. The rows of the experiment are `:k=1`, `:k=2`, `:k=4`, `:k=8`, `:tang`,
`:entropy=.001` to `:entropy=.1`, and `:k=8,anneal`; see recipes.py.

Official weights could not be reached where this was written, so there is no measured result. The
steps were compiled for TPUs ahead of time (`--mode=compile --topology=...`; jax 0.10.2, libtpu
0.0.42.1), for prompts of 256 and responses of 512 tokens. This is what a chip needs in GiB, of 16,
and the predicted seconds, where a step has its share of the evaluations:

    topology  mesh       GiB: sampling  update  peak   s: sampling  update  step
    v5e:4x4   (1,4,4)    4.4            9.2     12.8   1.66         1.85    4.18
    v5e:8x16  (8,4,4)    2.7            4.6     4.6    .97          .32     1.50

v5e:8x16 is the paper's slice, on which it reports 14.4 seconds a step. With the mesh (8,16,1) and
eval.prompts=16 a step was predicted to take 5.3. docs/devices.md says what these figures assume,
and which version was compiled.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma2.base("2b", "math")
    # Paper A trains on 12,000 problems, the split of OpenAI's prm800k, of which an epoch takes 750
    # steps. It does not state the number of epochs; we choose two.
    config.train.steps = 1500
    return recipes.apply(config, argument, "paper_a")
