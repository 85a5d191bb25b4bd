"""Files of a gallery: checked, written whole or not at all, read without loading.

A *shard* holds the features of some chips in one safetensors file. Its name carries the key of what
it was made from and the checksum of what it holds: a writer that was killed recognises its finished
shards by their names alone, and a changed file no longer fits its name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from ciper.errors import GalleryDamagedError, OutputError
from ciper.files import written_whole

FEATURES = ("descriptors", "coarse", "fine")

_SHORT = 16  # hexadecimal digits: 64 bits of a SHA-256
_NUMPY_DTYPES = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I32": np.int32,
    "I64": np.int64,
}


@dataclass(frozen=True)
class AerialCodes:
    """What an encoder makes of B chips, float16.

    `descriptors` (B, L, D) are unit vectors of L locations, NaN where a location has no imagery.
    `coarse` (B, ...) is what a photo meets every chip with, `fine` (B, ...) what it meets the best
    chips with: feature maps (B, C, h, w) for correlation; for set prediction the cells with imagery
    (B, 16, 16) and the patches (B, P, C).
    """

    descriptors: NDArray[np.float16]
    coarse: NDArray[np.float16]
    fine: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.descriptors)

    def __getitem__(self, chips: slice) -> AerialCodes:
        return AerialCodes(self.descriptors[chips], self.coarse[chips], self.fine[chips])


@dataclass(frozen=True)
class FileRecord:
    """A file's name in the gallery, its size and its SHA-256: what the manifest says of it."""

    name: str
    num_bytes: int
    sha256: str


def sha256_of(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    try:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(data)
        sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable (a no-op where folders cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_error(path: Path, error: OSError) -> OutputError:
    """An operating system's refusal to write, as one sentence with what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"{path}: the disk is full; expected room for the gallery. What is finished is kept: "
            "free some space and run the same command again."
        )
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); expected a writable folder. "
        "Choose another --out or change its permissions."
    )


def check_file(folder: Path, record: FileRecord, *, deep: bool = True) -> Path:
    """The file's path, after its size (and, if `deep`, its checksum) was compared.

    Raises:
        GalleryDamagedError: it is missing, cut short or changed.
    """
    path = folder / record.name
    if not path.is_file():
        raise GalleryDamagedError(f"{path}: the file is missing; {_REMEDY}")
    size = path.stat().st_size
    if size != record.num_bytes:
        raise GalleryDamagedError(
            f"{path}: has {size:,} bytes; expected {record.num_bytes:,}. The file was cut short or "
            f"changed; {_REMEDY}"
        )
    if deep and (found := sha256_of_file(path)) != record.sha256:
        raise GalleryDamagedError(
            f"{path}: its checksum is {found[:12]}...; expected {record.sha256[:12]}.... The "
            f"file is damaged; {_REMEDY}"
        )
    return path


_REMEDY = "delete the gallery's folder and index again, or restore it from a copy."


@dataclass(frozen=True)
class Shard:
    """Some chips with their features: grid cells, raster indexes, valid fractions and codes.

    `rows, cols` (n,) int64; `rasters` (n,) int32; `valid_fractions` (n,) float32 of whole chips.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    rasters: NDArray[np.int32]
    valid_fractions: NDArray[np.float32]
    codes: AerialCodes

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def concatenate(cls, parts: Sequence[Shard]) -> Shard:
        """One shard of the chips of many."""
        codes = [part.codes for part in parts]
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.cols for part in parts]),
            np.concatenate([part.rasters for part in parts]),
            np.concatenate([part.valid_fractions for part in parts]),
            AerialCodes(*(np.concatenate([getattr(c, name) for c in codes]) for name in FEATURES)),
        )


def write_shard(folder: Path, key: str, shard: Shard) -> FileRecord:
    """Write a shard under the name that its key and its content give it."""
    tensors: dict[str, NDArray[Any]] = {
        "rows": shard.rows,
        "cols": shard.cols,
        "rasters": shard.rasters,
        "valid_fractions": shard.valid_fractions,
        "descriptors": shard.codes.descriptors,
        "coarse": shard.codes.coarse,
        "fine": shard.codes.fine,
    }
    # Contiguous, as safetensors writes memory as it lies.
    data = safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
    digest = sha256_of(data)
    record = FileRecord(f"shards/{key[:_SHORT]}-{digest[:_SHORT]}.safetensors", len(data), digest)
    write_atomically(folder / record.name, data)
    return record


def find_shard(folder: Path, key: str) -> FileRecord | None:
    """A whole shard that an earlier run wrote for this key; damaged ones are passed over."""
    for path in sorted((folder / "shards").glob(f"{key[:_SHORT]}-*.safetensors")):
        digest = sha256_of_file(path)
        if path.stem.endswith(f"-{digest[:_SHORT]}"):
            return FileRecord(f"shards/{path.name}", path.stat().st_size, digest)
    return None


class ShardFile:
    """A shard's arrays, mapped into memory: what is not looked at is not read."""

    def __init__(self, path: Path) -> None:
        """Map the arrays of a file whose size has been checked.

        Raises:
            GalleryDamagedError: its header is not that of a shard.
        """
        self.path = path
        self.arrays = dict(_map_safetensors(path))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]


def _map_safetensors(path: Path) -> Mapping[str, NDArray[Any]]:
    """Arrays of a safetensors file: 8 bytes of header length, JSON header, raw data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, mode="r", offset=8 + length)
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            dtype = np.dtype(_NUMPY_DTYPES[entry["dtype"]]).newbyteorder("<")
            arrays[name] = data[start:stop].view(dtype).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise GalleryDamagedError(f"{path}: is not a shard of a gallery; {_REMEDY}") from error
    return arrays
