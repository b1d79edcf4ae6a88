"""The header of a GGUF file: its metadata, and the list of its tensors.

The format is specified in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. It is read
here because the reader of the `gguf` package makes three arrays for each of the 262,144 tokens of
Gemma 3, which takes 15 seconds; this one takes less than one.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import Any, BinaryIO

import numpy as np

from pkpo_jax.policy.checkpoint_checks import CheckpointError

Path = str | os.PathLike[str]

ARCHITECTURES = ("gemma2", "gemma3")
# The dtypes of NumPy by the numbers of the types of metadata.
_SCALARS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Entry:
    """The header's description of a tensor.

    Attributes:
      name: its name in the file.
      shape: [out, in] for a matrix.
      kind: the number of its quantisation.
      start: the offset of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


class Header:
    """The metadata of a GGUF file of Gemma, and the list of its tensors.

    Indexing returns the value of a key of the architecture: `header["block_count"]` that of
    `gemma3.block_count`.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], entries: list[Entry]) -> None:
        self.path, self.metadata, self.tensors = path, metadata, entries
        self.architecture = metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{path} holds a network of architecture {self.architecture!r}; expected "
                f"{' or '.join(ARCHITECTURES)}."
            )
        parts = metadata.get("split.count", 0)
        if parts > 1:
            raise CheckpointError(
                f"{path} is one of {parts} parts; join them with llama-gguf-split --merge."
            )

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise CheckpointError(
                f"{self.path} has no key {self.architecture}.{key}; convert the model again with a "
                "newer llama.cpp."
            )
        return value

    @classmethod
    def read(cls, path: Path) -> Header:
        """Reads the header of the file at `path`.

        Raises:
          CheckpointError: it cannot be read, is no GGUF file, ends before its header does, is one
            part of several, or holds another network.
        """
        try:
            with open(path, "rb") as file:
                return cls(path, *_Reader(file).header())
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read ({e.strerror}).") from None
        except _Damaged as e:
            raise CheckpointError(f"{path} cannot be read as GGUF: {e}.") from None


class _Damaged(Exception):
    """An error for a header that ends early or makes no sense."""


class _Reader:
    """Reads the values of a header one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, os.fstat(file.fileno()).st_size

    def header(self) -> tuple[dict[str, Any], list[Entry]]:
        magic = self._take(4)
        if magic != b"GGUF":
            raise _Damaged(f"it begins with {magic!r} where such a file begins with b'GGUF'")
        version = self._number("<I")
        if version not in (2, 3):
            raise _Damaged(f"it has version {version} where versions 2 and 3 are known")
        count, keys = self._number("<Q"), self._number("<Q")
        metadata = {self._string(): self._value(self._number("<I")) for _ in range(keys)}
        found = [self._entry() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._file.tell() // alignment) * alignment
        return metadata, [dataclasses.replace(x, start=x.start + start) for x in found]

    def _entry(self) -> Entry:
        name = self._string()
        # Dimensions are listed with the one that varies fastest first.
        shape = tuple(self._number("<Q") for _ in range(self._number("<I")))[::-1]
        return Entry(name, shape, self._number("<I"), self._number("<Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind, count = self._number("<I"), self._number("<Q")
            if kind in (_STRING, _ARRAY):
                return [self._value(kind) for _ in range(count)]
            return self._array(kind, count)
        x = self._array(kind, 1)[0]
        # The shortest decimal that stands for the number: 1e-6, not 9.99999997e-07.
        return float(str(x)) if isinstance(x, np.floating) else x.item()

    def _array(self, kind: int, count: int) -> np.ndarray:
        if _SCALARS.get(kind) is None:
            raise _Damaged(f"its metadata has a value of type {kind}, which is unknown")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        try:
            return self._take(self._number("<Q")).decode()
        except UnicodeDecodeError:
            raise _Damaged("its metadata holds a string that is not UTF-8") from None

    def _take(self, count: int) -> bytes:
        if count > self._left:
            raise _Damaged("it ends before its header does, so it was not downloaded whole")
        self._left -= count
        return self._file.read(count)
