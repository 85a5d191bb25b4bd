"""A gallery on disk.

    GALLERY/manifest.json        what the gallery is: model, grid, rasters, files with checksums
    GALLERY/chips.parquet        GeoParquet: one row per chip, its footprint as geometry
    GALLERY/descriptors.faiss    the descriptors, ready to be searched
    GALLERY/shards/*.safetensors features of a few hundred chips each
    GALLERY/unfinished.json      only while it is being written: by which model, on which grid

The manifest is written last, and a gallery is what its manifest says: readers never see half of
one. The two files that an append replaces are first written as `NAME.next`, with the manifest that
describes them, and then renamed; a reader takes whichever of the two its manifest describes.
Shards never change. A chip that an append encodes again (because new rasters fill what was nodata)
is *superseded* in its old shard.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.errors import GalleryDamagedError, GalleryError
from ciper.gallery.chips import ChipGrid
from ciper.gallery.raster import RasterInfo
from ciper.gallery.shards import FileRecord, check_file, sha256_of

FORMAT = "ciper-gallery"
FORMAT_VERSION = 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
CHIPS, INDEX = "chips.parquet", "descriptors.faiss"


@dataclass(frozen=True)
class GalleryHeader:
    """What all chips of a gallery have in common."""

    model_name: str
    model_hash: str
    chip_m: float
    stride_m: float
    gsd: float

    @property
    def grid(self) -> ChipGrid:
        """The grid that the chips lie on."""
        return ChipGrid(self.chip_m, self.stride_m, self.gsd)


@dataclass(frozen=True)
class ShardRecord:
    """A shard in the manifest; `superseded` are its rows that a later shard replaces."""

    file: FileRecord
    num_chips: int
    superseded: tuple[int, ...] = ()

    def kept(self) -> NDArray[np.int64]:
        """Rows of the shard that are chips of the gallery."""
        return np.setdiff1d(np.arange(self.num_chips), np.array(self.superseded, np.int64))


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    header: GalleryHeader
    rasters: tuple[RasterInfo, ...]
    shards: tuple[ShardRecord, ...]
    files: tuple[FileRecord, ...]
    num_chips: int
    shapes: dict[str, tuple[int, ...]]

    def to_json(self) -> bytes:
        """JSON with a checksum of itself."""
        body = {"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(self)}
        body["checksum"] = sha256_of(_canonical(body))
        return (json.dumps(body, indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a gallery's manifest.

        Raises:
            GalleryError: there is no gallery, it is unfinished, unreadable or of another format
                version.
            GalleryDamagedError: the file is not what was written.
        """
        path = folder / MANIFEST
        if not holds_gallery(folder):
            raise _not_a_gallery(folder)
        damaged = f"{path}: the manifest is damaged; restore it from a copy or index again."
        try:
            body = json.loads(path.read_bytes())
        except ValueError as error:
            raise GalleryDamagedError(damaged) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise GalleryError(
                f"{path}: is not the manifest of a gallery; expected one that `ciper index` wrote."
            )
        if body.get("version") != FORMAT_VERSION:
            raise GalleryError(
                f"{path}: has format version {body.get('version')}; expected {FORMAT_VERSION}. "
                "Index again with this version of ciper."
            )
        if body.pop("checksum", None) != sha256_of(_canonical(body)):
            raise GalleryDamagedError(damaged)
        return cls(
            header=GalleryHeader(**body["header"]),
            rasters=tuple(RasterInfo.from_dict(entry) for entry in body["rasters"]),
            shards=tuple(
                ShardRecord(FileRecord(**s["file"]), s["num_chips"], tuple(s["superseded"]))
                for s in body["shards"]
            ),
            files=tuple(FileRecord(**entry) for entry in body["files"]),
            num_chips=body["num_chips"],
            shapes={name: tuple(shape) for name, shape in body["shapes"].items()},
        )


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def holds_gallery(folder: Path) -> bool:
    """Whether a folder has a manifest.

    Raises:
        GalleryError: that cannot be told, for want of permission.
    """
    try:
        return (folder / MANIFEST).is_file()
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> GalleryError:
    return GalleryError(
        f"{path}: cannot be read ({error.strerror or error}); expected a gallery that you may "
        "read. Change its permissions."
    )


def _not_a_gallery(folder: Path) -> GalleryError:
    if (folder / UNFINISHED).is_file():
        return GalleryError(
            f"{folder}: the gallery is unfinished; finish it by running the same `ciper index` "
            "command again."
        )
    if not folder.exists():
        return GalleryError(f"{folder}: does not exist; expected a gallery made by `ciper index`.")
    return GalleryError(
        f"{folder}: is not a gallery (no {MANIFEST}); expected one made by `ciper index`."
    )


def resolve_file(folder: Path, record: FileRecord) -> Path:
    """The file that a manifest describes, maybe left as NAME.next by a killed append."""
    waiting = dataclasses.replace(record, name=record.name + ".next")
    if (folder / waiting.name).is_file():
        try:
            return check_file(folder, waiting)
        except GalleryDamagedError:
            pass  # of an append that has not come to its manifest: the old file still counts
    return check_file(folder, record)
