"""From a config to a running sweep: Cloud TPU (tpu_vm), GKE (xpk) and GPU clusters (slurm).

Each prints the commands that it would run; --execute runs them.
"""
