"""Galleries, opened: where the chips are, what the encoder made of them, and their pixels.

Features stay on disk until they are asked for. Which files there are and how they are written says
`ciper.gallery.manifest`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import ArrayLike, NDArray

from ciper.errors import GalleryDamagedError, GalleryError, GalleryModelMismatchError
from ciper.gallery.chips import (
    ChipGrid,
    chip_ids,
    plan_cell,
    raster_bounds,
    rasters_within,
    read_block,
)
from ciper.gallery.manifest import CHIPS, INDEX, Manifest, ShardRecord, resolve_file
from ciper.gallery.raster import Mosaic, RasterInfo, read_chip
from ciper.gallery.search import DescriptorIndex
from ciper.gallery.shards import FEATURES, ShardFile, check_file
from ciper.geo import LocalFrame

# Below this the features' checksums are compared when a gallery is opened, above on first use.
DEEP_CHECK_BYTES = 500_000_000

# A mapped file keeps a descriptor, and a process may have as few as 256 of them.
MAX_OPEN_SHARDS = 64


@dataclass(frozen=True)
class ChipTable:
    """The chips of a gallery, in the order of its features, (R,) each.

    `lat, lon` are the centres; `rows, cols` the cells of the grid; `rasters` the index of the first
    raster that shows the chip; `valid_fractions` how much of the chip holds imagery.
    """

    ids: tuple[str, ...]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    rasters: NDArray[np.int32]
    valid_fractions: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_cells(
        cls,
        grid: ChipGrid,
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        *,
        rasters: NDArray[np.int32],
        valid_fractions: NDArray[np.float32],
    ) -> ChipTable:
        """The table of some cells of a grid."""
        lat, lon = grid.centers(rows, cols)
        return cls(tuple(chip_ids(rows, cols)), lat, lon, rows, cols, rasters, valid_fractions)

    def to_parquet(self, grid: ChipGrid, rasters: Sequence[RasterInfo]) -> bytes:
        """GeoParquet that opens in QGIS, GeoPandas and DuckDB."""
        import geopandas  # takes a second, and only writers need it

        frame = geopandas.GeoDataFrame(
            {
                "chip": list(self.ids),
                "lat": self.lat,
                "lon": self.lon,
                "row": self.rows,
                "col": self.cols,
                "raster": [rasters[index].path for index in self.rasters],
                "raster_index": self.rasters,
                "valid_fraction": self.valid_fractions,
            },
            geometry=grid.footprints(self.rows, self.cols),
            crs="EPSG:4326",
        )
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, path: Path) -> ChipTable:
        """Read what `to_parquet` wrote, without geometry."""
        names = ["chip", "lat", "lon", "row", "col", "raster_index", "valid_fraction"]
        try:
            table = pyarrow.parquet.read_table(path, columns=names)
        except (pyarrow.ArrowException, OSError) as error:
            raise GalleryDamagedError(f"{path}: is not a table of chips; index again.") from error
        ids, *columns = (table[name].to_numpy() for name in names)
        return cls(tuple(str(name) for name in ids), *columns)


class ShardedArray:
    """Features of R chips in many mapped files, as one array (R, ...) of float16.

    Indexing with an int, a slice or an array of ints along the first axis copies those chips out of
    the files; further indexes apply to the copy. `np.asarray(array)` loads all of it.
    """

    def __init__(self, shards: _Shards, name: str, shape: tuple[int, ...]) -> None:
        """The array `name` of the shards; `shape` is (R, ...)."""
        self._shards, self._name = shards, name
        self.shape, self.dtype, self.ndim = shape, np.dtype(np.float16), len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float16]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, int | np.integer):
            return np.asarray(self._gather(np.arange(len(self))[int(first)][None])[0][tuple(rest)])
        return np.asarray(self._gather(np.arange(len(self))[first])[(slice(None), *rest)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _gather(self, chips: NDArray[np.int64]) -> NDArray[np.float16]:
        out = np.empty((*chips.shape, *self.shape[1:]), np.float16)
        numbers = self._shards.shard_of_chip[chips]
        for number in np.unique(numbers):
            here = numbers == number
            out[here] = self._shards.file(int(number))[self._name][
                self._shards.row_of_chip[chips[here]]
            ]
        return out


class _Shards:
    """The shards of a gallery, opened (and checked, if that is still due) on first use."""

    def __init__(self, folder: Path, records: Sequence[ShardRecord], *, check_now: bool) -> None:
        self._folder, self._records = folder, records
        self._files: dict[int, ShardFile] = {}  # the most recently used last
        self._checked = set(range(len(records))) if check_now else set()
        for record in records:
            check_file(folder, record.file, deep=check_now)
        kept = [record.kept() for record in records]
        self.row_of_chip = np.concatenate([*kept, np.empty(0, np.int64)])
        self.shard_of_chip = np.repeat(np.arange(len(records)), [len(rows) for rows in kept])

    def file(self, number: int) -> ShardFile:
        file = self._files.pop(number, None)
        if file is None:
            is_due = number not in self._checked
            file = ShardFile(check_file(self._folder, self._records[number].file, deep=is_due))
            self._checked.add(number)
            if len(self._files) >= MAX_OPEN_SHARDS:
                del self._files[next(iter(self._files))]
        self._files[number] = file
        return file


class Gallery:
    """An opened gallery. Features are mapped from disk and loaded chip by chip.

    Attributes:
        path: its folder.
        header: model, chip size, stride and gsd.
        chips: where the R chips are.
        rasters: what they were cut from.
        descriptors: (R, L, D) float16, NaN at locations without imagery.
        coarse, fine: (R, ...) float16; what they are is the model's business.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `Gallery.open`."""
        self.path, self.manifest = path, manifest
        self.header, self.rasters, self.grid = (
            manifest.header,
            manifest.rasters,
            manifest.header.grid,
        )
        self._files = {record.name: resolve_file(path, record) for record in manifest.files}
        total = sum(record.file.num_bytes for record in manifest.shards)
        shards = _Shards(path, manifest.shards, check_now=total < DEEP_CHECK_BYTES)
        self.chips = ChipTable.from_parquet(self._files[CHIPS])
        if not len(self.chips) == manifest.num_chips == len(shards.row_of_chip):
            raise GalleryDamagedError(
                f"{path}: the table lists {len(self.chips)} chips and the manifest "
                f"{manifest.num_chips}; expected the same number. Index again."
            )
        self.descriptors, self.coarse, self.fine = (
            ShardedArray(shards, name, (manifest.num_chips, *manifest.shapes[name]))
            for name in FEATURES
        )

    @classmethod
    def open(cls, path: str | Path, model_hash: str | None = None) -> Self:
        """Open and check a gallery.

        Args:
            path: its folder.
            model_hash: the hash of the model that wants to use it; None to only look.

        Raises:
            GalleryError: there is none, it is unfinished or of another format version.
            GalleryDamagedError: a file is missing, cut short or changed.
            GalleryModelMismatchError: another model made it.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        header = manifest.header
        if model_hash is not None and header.model_hash != model_hash:
            raise GalleryModelMismatchError(
                f"{folder}: was made by model {header.model_name!r} ({header.model_hash[:12]}); "
                f"expected the model in use ({model_hash[:12]}). Index again with this model or "
                "choose that one with --model."
            )
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self.manifest.num_chips

    @cached_property
    def index(self) -> DescriptorIndex:
        """The search index over the descriptors, loaded on first use."""
        return DescriptorIndex.load(
            self._files[INDEX], num_chips=len(self), num_locations=self.descriptors.shape[1]
        )

    def chips_within(self, *, lat: float, lon: float, radius_m: float) -> NDArray[np.int64]:
        """Indexes of the chips whose central square reaches into a circle, nearest first."""
        x, y = LocalFrame(lat=lat, lon=lon).to_local(lat=self.chips.lat, lon=self.chips.lon)
        half = self.header.stride_m / 2
        gap = np.hypot(np.maximum(np.abs(x) - half, 0), np.maximum(np.abs(y) - half, 0))
        order = np.argsort(np.hypot(x, y), kind="stable")
        return order[gap[order] <= radius_m].astype(np.int64)

    def chips_holding(self, *, lat: float, lon: float) -> NDArray[np.int64]:
        """All chips that contain a place, not only the one whose centre is nearest."""
        half_m = self.header.chip_m / 2
        near = self.chips_within(lat=lat, lon=lon, radius_m=half_m)
        frame = LocalFrame(lat=lat, lon=lon)
        x, y = frame.to_local(lat=self.chips.lat[near], lon=self.chips.lon[near])
        return np.asarray(near[(np.abs(x) <= half_m) & (np.abs(y) <= half_m)], dtype=np.int64)

    def nearest_chips(self, *, lat: ArrayLike, lon: ArrayLike) -> NDArray[np.int64]:
        """Index of the chip whose central square holds each position, -1 where there is none."""
        rows, cols = self.grid.cells_at(lat=lat, lon=lon)
        place = self._chip_of_cell
        return np.array(
            [place.get(cell, -1) for cell in zip(rows.tolist(), cols.tolist(), strict=True)],
            np.int64,
        )

    @cached_property
    def _chip_of_cell(self) -> dict[tuple[int, int], int]:
        cells = zip(self.chips.rows.tolist(), self.chips.cols.tolist(), strict=True)
        return {cell: index for index, cell in enumerate(cells)}

    def read_chip(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The pixels of a chip, read again from the rasters: RGB (H, W, 3) and validity (H, W).

        Raises:
            GalleryError: a raster that shows the chip has been moved or changed since.
        """
        row, col = int(self.chips.rows[index]), int(self.chips.cols[index])
        block = plan_cell(self._bounds, self.grid, row, col)
        with self._mosaic(block.rasters) as mosaic:
            rgb, is_valid = read_block(mosaic, self.grid, block).chips([0])
        return rgb[0], is_valid[0]

    def read_area(
        self, *, lat: float, lon: float, size_px: int, gsd: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A true-north-up square of the imagery about any place: RGB and validity, for pictures.

        Raises:
            GalleryError: a raster that shows it has been moved or changed since.
        """
        half = size_px * gsd / 2
        corners = LocalFrame(lat=lat, lon=lon).to_geographic(
            x=np.array([-half, half, half, -half]), y=np.array([-half, -half, half, half])
        )
        unwrapped = lon + (corners[1] - lon + 180.0) % 360.0 - 180.0
        area = np.array([unwrapped.min(), corners[0].min(), unwrapped.max(), corners[0].max()])
        with self._mosaic(rasters_within(self._bounds, area)) as mosaic:
            return read_chip(mosaic, lat=lat, lon=lon, size_px=size_px, gsd=gsd)

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        return raster_bounds(self.rasters)

    def _mosaic(self, numbers: Sequence[int]) -> Mosaic:
        """The gallery's rasters, restricted to some that are still what they were."""
        for number in numbers:
            check_raster(self.rasters[number])
        return Mosaic(self.rasters, only=numbers)


def check_raster(raster: RasterInfo) -> None:
    """Refuse a raster that is no longer the one that was indexed.

    Raises:
        GalleryError: it was moved, deleted or changed.
    """
    if not raster.is_unchanged():
        state = "has changed since it was indexed" if Path(raster.path).exists() else "has gone"
        raise GalleryError(
            f"{raster.path}: the raster {state}; expected it as it was when the gallery was made. "
            "Put it back or index again."
        )
