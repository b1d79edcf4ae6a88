"""Tests of the record of how a run was started."""

import datetime
import json
import subprocess
import sys

import jax

import pkpo_jax
from pkpo_jax.training import provenance


def git(directory, *words):
    command = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_each_start_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pkpo_jax.main", "--config.k={0: 8}"])
    provenance.record(tmp_path, 0)
    provenance.record(tmp_path, 7)
    first, second = json.loads((tmp_path / "runs.json").read_text())
    assert (first["step"], second["step"]) == (0, 7)
    assert first["command"] == "python -m pkpo_jax.main '--config.k={0: 8}'"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(first["started"])
    assert abs(age) < datetime.timedelta(hours=1)
    assert first["versions"]["jax"] == jax.__version__
    assert first["versions"]["pkpo_jax"] == pkpo_jax.__version__
    assert None not in first["versions"].values()
    assert (first["devices"], first["processes"]) == (jax.device_count(), 1)


def test_a_torn_file_stops_nothing(tmp_path):
    for text in ('[{"step": 0', "{}", "null", "\x00"):
        (tmp_path / "runs.json").write_text(text)
        provenance.record(tmp_path, 3)
        assert [one["step"] for one in provenance.read(tmp_path)] == [3]


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._commit() == (None, None)
    # The package is installed within another project's checkout.
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another's")
    assert provenance._commit() == (None, None)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "ours")
    head = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "tag", "v1")
    (tmp_path / "notes").touch()
    assert provenance._commit() == (head, False)
    (package / "__init__.py").write_text("x = 1")
    assert provenance._commit() == (head, True)
    # In turn, git hangs and is not installed.
    monkeypatch.setattr(provenance, "_TIMEOUT", 0.0)
    assert provenance._commit() == (None, None)
    monkeypatch.setenv("PATH", "")
    assert provenance._commit() == (None, None)


def test_an_archive_knows_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    monkeypatch.setattr(provenance, "_ARCHIVED", "0123456789abcdef0123456789abcdef01234567")
    assert provenance._commit() == ("0123456789abcdef0123456789abcdef01234567", None)
