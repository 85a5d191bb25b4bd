"""Writing galleries so that nothing is lost and nothing half-done is ever read."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.errors import OutputError
from ciper.gallery.manifest import (
    CHIPS,
    FORMAT,
    INDEX,
    MANIFEST,
    UNFINISHED,
    GalleryHeader,
    Manifest,
    ShardRecord,
    resolve_file,
)
from ciper.gallery.raster import RasterInfo
from ciper.gallery.search import DescriptorIndex
from ciper.gallery.shards import (
    FEATURES,
    FileRecord,
    Shard,
    ShardFile,
    check_file,
    find_shard,
    output_error,
    sha256_of,
    sync_folder,
    write_atomically,
    write_shard,
)
from ciper.gallery.store import ChipTable

_SHARD_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.safetensors")
_CELLS = ("rows", "cols", "rasters", "valid_fractions")


class GalleryWriter:
    """Writes a gallery shard by shard and takes up where a killed run has stopped."""

    def __init__(self, folder: Path, header: GalleryHeader) -> None:
        """Prepare a folder, new or of a run that was interrupted.

        An unfinished gallery of the same model and grid is gone on with, whatever has become of its
        rasters: the keys of its shards tell which of them still hold.

        Raises:
            OutputError: the folder holds something else or cannot be written.
        """
        self.folder, self.header = folder, header
        try:
            _check_folder(folder, header)
            (folder / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        body = {"format": FORMAT, "header": dataclasses.asdict(header)}
        write_atomically(folder / UNFINISHED, json.dumps(body).encode())

    def find(self, key: str) -> FileRecord | None:
        """A whole shard of an earlier run under this key."""
        return find_shard(self.folder, key)

    def open_shard(self, record: FileRecord) -> ShardFile:
        """A shard's arrays."""
        return ShardFile(check_file(self.folder, record, deep=False))

    def add(self, key: str, shard: Shard) -> FileRecord:
        """Write a shard."""
        return write_shard(self.folder, key, shard)

    def finish(self, shards: Sequence[ShardRecord], rasters: Sequence[RasterInfo]) -> Manifest:
        """Write the table, the index and, last, the manifest; remove what no longer counts."""
        columns, shapes = self._gather(shards)
        table = ChipTable.of_cells(
            self.header.grid,
            columns["rows"],
            columns["cols"],
            rasters=columns["rasters"],
            valid_fractions=columns["valid_fractions"],
        )
        index = DescriptorIndex.build(columns.pop("descriptors"))
        records = [
            self._write_next(CHIPS, table.to_parquet(self.header.grid, rasters)),
            self._write_next(INDEX, index.to_bytes()),
        ]
        manifest = Manifest(
            header=self.header,
            rasters=tuple(rasters),
            shards=tuple(shards),
            files=tuple(records),
            num_chips=len(table),
            shapes=shapes,
        )
        write_atomically(self.folder / MANIFEST, manifest.to_json())
        settle(self.folder, manifest)
        return manifest

    def _gather(
        self, shards: Sequence[ShardRecord]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[int, ...]]]:
        """Cells and descriptors of all chips, and the shapes of one chip's features."""
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_CELLS, "descriptors")}
        shapes: dict[str, tuple[int, ...]] = {}
        for record in shards:
            # One at a time: a mapped file keeps a descriptor, of which a process has few.
            file, kept = self.open_shard(record.file), record.kept()
            for name, found in parts.items():
                found.append(np.array(file[name])[kept])
            shapes = shapes or {name: tuple(file[name].shape[1:]) for name in FEATURES}
        return {name: np.concatenate(found) for name, found in parts.items()}, shapes

    def _write_next(self, name: str, data: bytes | memoryview) -> FileRecord:
        write_atomically(self.folder / f"{name}.next", data)
        return FileRecord(name, len(data), sha256_of(data))


def settle(folder: Path, manifest: Manifest) -> None:
    """Rename what waits for its manifest and remove files that no manifest names."""
    try:
        for record in manifest.files:
            path = resolve_file(folder, record)
            if path.name != record.name:
                path.replace(folder / record.name)
            (folder / f"{record.name}.next").unlink(missing_ok=True)
        named = {record.file.name for record in manifest.shards}
        for path in (folder / "shards").iterdir():
            if f"shards/{path.name}" not in named:
                path.unlink()
        for path in folder.glob(".*.tmp"):
            path.unlink()
        (folder / UNFINISHED).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise output_error(folder, error) from error


def _check_folder(folder: Path, header: GalleryHeader) -> None:
    """Refuse a folder in which a gallery of this header can be neither begun nor continued."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; expected a folder to write the gallery to.")
    unfinished = _read_unfinished(folder)
    if unfinished is None:
        if not _is_free(folder) and not (folder / MANIFEST).is_file():
            raise OutputError(
                f"{folder}: is a folder with other files; expected a new or empty one, or "
                "a gallery."
            )
        return
    # Weights are told by their hash, not by what they are called.
    wanted = dataclasses.asdict(header)
    names = [name for name in wanted if name != "model_name"]
    if any(unfinished.get(name) != wanted[name] for name in names):
        raise OutputError(
            f"{folder}: holds the unfinished gallery of another command (another model, --chip-m "
            "or --stride-m); finish that one, delete the folder or choose another --out."
        )


def _is_free(folder: Path) -> bool:
    """Whether a folder is absent, empty, or holds no more than a run left that got nowhere."""
    if not folder.exists():
        return True
    for path in folder.iterdir():
        if path.name == "shards" and path.is_dir():
            files = [file.name for file in path.iterdir()]
            if not all(_SHARD_NAME.fullmatch(name) or _is_temporary(name) for name in files):
                return False
        elif not _is_temporary(path.name):
            return False
    return True


def _is_temporary(name: str) -> bool:
    """Whether `written_whole` may have left a file of this name."""
    return name.startswith(".") and name.endswith(".tmp")


def _read_unfinished(folder: Path) -> dict[str, Any] | None:
    """The header of the gallery that was being written here, None if there was none."""
    try:
        body = json.loads((folder / UNFINISHED).read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except (ValueError, OSError) as error:
        raise OutputError(
            f"{folder / UNFINISHED}: cannot be read; expected what an interrupted `ciper index` "
            "left. Delete the folder and index again."
        ) from error
    found = body.get("header") if isinstance(body, dict) else None
    return found if isinstance(found, dict) else {}
