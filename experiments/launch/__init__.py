"""Launches a config or a sweep on Cloud TPU (tpu_vm), GKE (xpk) and GPU clusters (slurm).

Each launcher prints the commands that it would run; --execute runs them.
"""
