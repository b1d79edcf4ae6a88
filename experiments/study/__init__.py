"""The papers' claims, tested: python -m experiments.study; what came out is in RESULTS.md."""
