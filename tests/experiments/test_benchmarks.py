"""Tests that the benchmark which calls the package's programs itself still runs at a small size."""

import re
import subprocess
import sys


def test_throughput_runs():
    command = [sys.executable, "-m", "experiments.benchmarks.throughput", "--prompts=2"]
    command += ["--lengths=8,4", "--repeats=1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for program in ("sampling", "update"):
        assert re.search(rf"{program} +│ \d+\.\d+ +│", result.stdout)
