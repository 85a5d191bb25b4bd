"""Writing galleries so that nothing is lost and nothing half-done is ever read."""

from __future__ import annotations

import json
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


class GalleryWriter:
    """Writes a gallery shard by shard and takes up where a killed run has stopped."""

    def __init__(self, folder: Path, header: GalleryHeader, command: str) -> None:
        """Prepare a folder for a command, identified by a hash of all that matters to its result.

        Raises:
            OutputError: the folder holds something else or cannot be written.
        """
        self.folder, self.header = folder, header
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; expected a folder to write the gallery to.")
        unfinished = _read_unfinished(folder)
        is_empty = not folder.exists() or not any(folder.iterdir())
        if not is_empty and unfinished is None and not (folder / MANIFEST).is_file():
            raise OutputError(
                f"{folder}: is a folder with other files; expected a new or empty one, or "
                "a gallery."
            )
        if unfinished is not None and unfinished != command:
            raise OutputError(
                f"{folder}: holds the unfinished gallery of another command (other rasters, model "
                "or options); finish that one, delete the folder or choose another --out."
            )
        try:
            (folder / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        write_atomically(
            folder / UNFINISHED, json.dumps({"format": FORMAT, "command": command}).encode()
        )

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
        files = [self.open_shard(record.file) for record in shards]
        kept = [record.kept() for record in shards]

        def column(name: str) -> NDArray[Any]:
            return np.concatenate(
                [file[name][rows] for file, rows in zip(files, kept, strict=True)]
            )

        table = ChipTable.of_cells(
            self.header.grid,
            column("rows"),
            column("cols"),
            rasters=column("rasters"),
            valid_fractions=column("valid_fractions"),
        )
        index = DescriptorIndex.build(column("descriptors"))
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
            shapes={name: tuple(files[0][name].shape[1:]) for name in FEATURES},
        )
        write_atomically(self.folder / MANIFEST, manifest.to_json())
        settle(self.folder, manifest)
        return manifest

    def _write_next(self, name: str, data: bytes) -> FileRecord:
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


def _read_unfinished(folder: Path) -> str | None:
    """The command that was writing here, None if no one was."""
    try:
        body = json.loads((folder / UNFINISHED).read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise OutputError(
            f"{folder / UNFINISHED}: cannot be read; expected what an interrupted `ciper index` "
            "left. Delete the folder and index again."
        ) from error
    return str(body.get("command")) if isinstance(body, dict) else ""
