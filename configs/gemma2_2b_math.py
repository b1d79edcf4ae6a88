"""Gemma-2 2B learns MATH with PKPO, k = 8, from official weights: paper A's first experiment.

    python -m pkpo_jax.main --config=configs/gemma2_2b_math.py --workdir=DIR \
        --config.model.checkpoint=CHECKPOINT --config.task.data_dir=MATH

with CHECKPOINT and MATH as docs/gemma.md says. On several hosts add --distributed, and give paths
that all of them see. The rows of the experiment are `:k=1`, `:k=2`, `:k=4`, `:k=8`, `:tang`,
`:entropy=.001` to `:entropy=.1`, and `:k=8,anneal`; see recipes.py.

Official weights could not be reached where this was written, so there is no measured result. The
steps were compiled for TPUs ahead of time (`--mode=compile --topology=...`; jax 0.10.2, libtpu
0.0.42.1). A chip needs these GiB of the 16 that a v5e has, where collectives are received in a
step:

    topology  mesh       tokens      sampling  update  peak  collectives: sampling, update
    v5e:4x4   (1,16,1)   256 + 512   7.5       7.1     8.7   13, 37
    v5e:4x4   (1,16,1)   256 + 1024  6.9       13.0    13.0  23, 45
    v5e:8x16  (8,16,1)   256 + 512   7.5       3.7     8.7   5, 23

The peak is the larger of sampling and update, and includes the optimiser's state while the policy
samples. v5e:8x16 is the paper's slice. On v5e:4x4, the matrix products of a chip take 45 TFLOP to
sample and 181 TFLOP to update.
"""

from ml_collections import config_dict

from pkpo_jax.configs import gemma2, recipes


def get_config(argument: str = "") -> config_dict.ConfigDict:
    config = gemma2.base("2b", "math")
    # Paper A trains on 12,000 problems, the split of OpenAI's prm800k, of which an epoch takes 750
    # steps. It does not state the number of epochs; we choose two.
    config.train.steps = 1500
    return recipes.apply(config, argument, "paper_a")
