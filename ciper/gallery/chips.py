"""The world-wide grid of chips and the cutting of chips out of rasters.

The grid is fixed to the Earth, not to a raster: tiles of one mosaic, overlapping rasters and
rasters that are appended next year all share it, and a chip's (row, col) names the same place for
ever. The ellipsoid is cut into *bands* of 16 rows between parallels that lie 16 strides apart along
the meridian; a band is cut at equal longitudes into the number of columns (a multiple of 16) that
makes cells square at its middle. Cells are therefore rectangles of latitude and longitude: they
tile the Earth without gap or overlap, their sides run true north and true east, and a cell is the
central `stride_m` square of exactly one chip. From one band to the next columns do not line up,
which nothing needs.

Pixels are equally spaced in latitude and longitude within a band, so that one resampled *block*
(at most 16 x 16 cells) serves all of its chips without another interpolation. Against the
azimuthal equidistant frame at its own centre, a 128 m chip of a band of 1 km is off by less than
2e-4 tan(lat) of its size, 1 cm tan(lat) at its corner: 0.02 px of 0.5 m at 45 degrees and 0.04 px
at 65; its axes are exactly true.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray

from ciper.errors import ConfigError, GeoError, RasterError
from ciper.gallery.raster import Canvas, Mosaic, RasterInfo

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Geometries = NDArray[np.object_]

BAND_ROWS = 16
MAX_LATITUDE = 85.0

# A chip whose central square holds less imagery than this is not worth a place in the gallery.
MIN_VALID_FRACTION = 0.02

_GEOD = pyproj.Geod(ellps="WGS84")
_OVERLAP_TOLERANCE = 1e-9
_COLUMNS_BOUND = 1 << 32  # more columns than any band has, also after one turn too many


@dataclass(frozen=True)
class Band:
    """Sixteen rows of cells: their southern and northern parallels and the number of columns."""

    index: int
    south: float
    north: float
    num_columns: int

    def lat(self, row: ArrayLike) -> FloatArray:
        """Latitude of a (fractional) row; row r spans [r, r + 1], growing to the north."""
        t = (np.asarray(row, np.float64) - self.index * BAND_ROWS) / BAND_ROWS
        return self.south + t * (self.north - self.south)

    def lon(self, col: ArrayLike) -> FloatArray:
        """Longitude of a (fractional) column, unwrapped; column 0 begins at -180."""
        return np.asarray(col, np.float64) * (360.0 / self.num_columns) - 180.0

    def row(self, lat: ArrayLike) -> FloatArray:
        """Inverse of `lat`."""
        t = (np.asarray(lat, np.float64) - self.south) / (self.north - self.south)
        return (self.index + t) * BAND_ROWS

    def col(self, lon: ArrayLike) -> FloatArray:
        """Inverse of `lon`."""
        return (np.asarray(lon, np.float64) + 180.0) * (self.num_columns / 360.0)


@lru_cache(maxsize=4096)
def _band(index: int, stride_m: float) -> Band:
    height_m = BAND_ROWS * stride_m
    arcs = np.array([index, index + 0.5, index + 1]) * height_m
    zero = np.zeros(3)
    south, middle, north = _GEOD.fwd(zero, zero, zero, arcs)[1]
    # Circumference of the middle parallel: a chord's length has no part in it, so by the formula.
    sin = math.sin(math.radians(middle))
    radius = _GEOD.a * math.cos(math.radians(middle)) / math.sqrt(1.0 - _GEOD.es * sin * sin)
    num_blocks = max(1, round(2.0 * math.pi * radius / height_m))
    return Band(index, float(south), float(north), num_blocks * BAND_ROWS)


@dataclass(frozen=True)
class ChipGrid:
    """The grid of chips of `chip_m` every `stride_m` metres at `gsd` metres per pixel.

    Raises:
        ConfigError: sizes that are not whole pixels, or chips that leave gaps.
    """

    chip_m: float = 128.0
    stride_m: float = 64.0
    gsd: float = 0.5

    def __post_init__(self) -> None:
        for name, size_m in (("chip_m", self.chip_m), ("stride_m", self.stride_m)):
            num_px = size_m / self.gsd if self.gsd > 0 else 0.0
            if not (0 < num_px < math.inf and abs(num_px - round(num_px)) < 1e-6):
                raise ConfigError(
                    f"{name}={size_m:g} is not a whole number of pixels of {self.gsd:g} m; "
                    "expected a positive multiple of the gsd."
                )
        if self.stride_m > self.chip_m or (self.chip_px - self.stride_px) % 2:
            raise ConfigError(
                f"stride_m={self.stride_m:g} does not fit chip_m={self.chip_m:g}; expected at most "
                "the chip's size and an even number of pixels less."
            )

    @property
    def chip_px(self) -> int:
        """Pixels along a chip's side."""
        return round(self.chip_m / self.gsd)

    @property
    def stride_px(self) -> int:
        """Pixels along the side of a chip's central square."""
        return round(self.stride_m / self.gsd)

    @property
    def margin_px(self) -> int:
        """Pixels from a chip's border to its central square."""
        return (self.chip_px - self.stride_px) // 2

    @property
    def margin_cells(self) -> float:
        """The margin in units of the stride."""
        return self.margin_px / self.stride_px

    def band(self, index: int) -> Band:
        """The band of rows [16 index, 16 (index + 1))."""
        return _band(int(index), self.stride_m)

    def band_indexes(self, lat: ArrayLike) -> IntArray:
        """Index of the band that holds each latitude."""
        lats = np.atleast_1d(np.asarray(lat, np.float64))
        zero = np.zeros_like(lats)
        arcs = np.asarray(_GEOD.inv(zero, zero, zero, lats)[2]) * np.sign(lats)
        return np.floor(arcs / (BAND_ROWS * self.stride_m)).astype(np.int64)

    def cells_at(self, *, lat: ArrayLike, lon: ArrayLike) -> tuple[IntArray, IntArray]:
        """(row, col) of the chip whose central square holds each position.

        Raises:
            GeoError: a position is not a number or beyond a pole.
        """
        lats, lons = np.broadcast_arrays(np.atleast_1d(lat), np.atleast_1d(lon))
        is_place = np.isfinite(lons) & (np.abs(lats) <= 90)
        if not is_place.all():
            first = int(np.flatnonzero(~is_place)[0])
            raise GeoError(
                f"position {first} (lat {lats.flat[first]}, lon {lons.flat[first]}) is not on "
                "Earth; expected finite degrees with a latitude in [-90, 90]."
            )
        bands = self.band_indexes(lats)
        rows, cols = np.empty(lats.shape, np.int64), np.empty(lats.shape, np.int64)
        for index in np.unique(bands):
            band, here = self.band(index), bands == index
            first = index * BAND_ROWS
            rows[here] = np.clip(np.floor(band.row(lats[here])), first, first + BAND_ROWS - 1)
            cols[here] = np.floor(band.col(lons[here])).astype(np.int64) % band.num_columns
        return rows, cols

    def centers(self, rows: ArrayLike, cols: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Latitude and longitude of the chips' centres."""
        r, c = np.broadcast_arrays(np.atleast_1d(rows), np.atleast_1d(cols))
        lat, lon = np.empty(r.shape), np.empty(r.shape)
        bands = np.floor_divide(r, BAND_ROWS)
        for index in np.unique(bands):
            band, here = self.band(index), bands == index
            lat[here] = band.lat(r[here] + 0.5)
            lon[here] = (band.lon(c[here] + 0.5) + 180.0) % 360.0 - 180.0
        return lat, lon

    def footprints(self, rows: IntArray, cols: IntArray, *, is_whole: bool = True) -> Geometries:
        """Outlines of whole chips, or of their central squares, as polygons of (lon, lat)."""
        half = 0.5 + (self.margin_cells if is_whole else 0.0)
        corners = []
        for index, row, col in zip(rows // BAND_ROWS, rows, cols, strict=True):
            band = self.band(index)
            corners.append(
                (
                    band.lon(col + 0.5 - half),
                    band.lat(row + 0.5 - half),
                    band.lon(col + 0.5 + half),
                    band.lat(row + 0.5 + half),
                )
            )
        return np.asarray(shapely.box(*np.array(corners, np.float64).reshape(-1, 4).T))


def chip_ids(rows: IntArray, cols: IntArray) -> list[str]:
    """Names of chips: their place in the grid, the same in every gallery of one stride."""
    return [f"r{row}c{col}" for row, col in zip(rows, cols, strict=True)]


@dataclass(frozen=True)
class Block:
    """Cells of one band between columns 16 `column` and 16 (`column` + 1), resampled together.

    `rasters` are the indexes, in order of precedence, of the rasters that any of its chips meets.
    """

    band: int
    column: int
    rasters: tuple[int, ...]
    rows: IntArray
    cols: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, max_chips: int) -> Iterator[Block]:
        """The block in runs of rows of at most `max_chips` chips (or of one row)."""
        rows, counts = np.unique(self.rows, return_counts=True)
        num_rows = max(1, max_chips // int(counts.max()))
        for start in range(0, len(rows), num_rows):
            here = np.isin(self.rows, rows[start : start + num_rows])
            yield replace(self, rows=self.rows[here], cols=self.cols[here])


def plan_chips(
    rasters: Sequence[RasterInfo], grid: ChipGrid, *, first_new: int = 0
) -> tuple[Block, ...]:
    """The cells that the rasters' outlines cover, block by block from south to north.

    Cells of which the outlines cover less than `MIN_VALID_FRACTION` are left out; nodata inside of
    a raster is only known when its pixels are read.

    Args:
        rasters: in order of precedence.
        grid: the grid of chips.
        first_new: keep only cells whose chips meet rasters[first_new:].

    Raises:
        RasterError: a raster reaches beyond 85 degrees of latitude.
    """
    outlines = _outlines_by_band(rasters, grid)
    blocks: dict[tuple[int, int], Block] = {}
    for index, polygons in sorted(outlines.items()):
        band = grid.band(index)
        rows, cols = _covered_cells(band, list(polygons.values()))
        new = [polygon for raster, polygon in polygons.items() if raster >= first_new]
        if first_new and rows.size:
            is_met = _meets(new, _boxes(rows, cols), grid.margin_cells)
            rows, cols = rows[is_met], cols[is_met]
        for column in np.unique(cols // BAND_ROWS):
            here = cols // BAND_ROWS == column
            block = _block(band, int(column), rows[here], cols[here])
            area = shapely.box(
                block.cols.min(), block.rows.min(), block.cols.max() + 1, block.rows.max() + 1
            )
            near = shapely.dwithin(np.array(list(polygons.values())), area, grid.margin_cells)
            names = [raster for raster, is_near in zip(polygons, near, strict=True) if is_near]
            key = (index, block.column)
            blocks[key] = _merged(blocks.get(key), block, names)
    return tuple(blocks[key] for key in sorted(blocks))


def _outlines_by_band(
    rasters: Sequence[RasterInfo], grid: ChipGrid
) -> dict[int, dict[int, shapely.Geometry]]:
    """{band: {raster: its outline in that band's (col, row), cut to the band and the margin}}."""
    outlines: dict[int, dict[int, shapely.Geometry]] = defaultdict(dict)
    margin = grid.margin_cells
    for number, raster in enumerate(rasters):
        lat, lon = raster.outline()
        if np.abs(lat).max() > MAX_LATITUDE:
            raise RasterError(
                f"{raster.path}: reaches to latitude {lat[np.abs(lat).argmax()]:.2f}; expected "
                f"rasters between {-MAX_LATITUDE:g} and {MAX_LATITUDE:g} degrees."
            )
        # Start in [-180, 180): what crosses the antimeridian then leaves it to one side only.
        lon = lon - 360.0 * math.floor((lon.min() + 180.0) / 360.0)
        first, last = grid.band_indexes([lat.min(), lat.max()])
        spill = math.ceil(margin / BAND_ROWS)
        for index in range(int(first) - spill, int(last) + spill + 1):
            band = grid.band(index)
            low, high = index * BAND_ROWS - margin, (index + 1) * BAND_ROWS + margin
            polygon = shapely.Polygon(np.column_stack([band.col(lon), band.row(lat)]))
            if not polygon.is_valid:
                polygon = shapely.make_valid(polygon)
            bounds = polygon.bounds
            polygon = shapely.clip_by_rect(polygon, bounds[0] - 1, low, bounds[2] + 1, high)
            if not polygon.is_empty:
                outlines[index][number] = polygon
    return outlines


def _covered_cells(band: Band, polygons: list[shapely.Geometry]) -> tuple[IntArray, IntArray]:
    """Cells of a band (columns unwrapped) that the union of polygons covers well enough."""
    keys = [np.empty(0, np.int64)]
    for polygon in polygons:
        west, south, east, north = polygon.bounds
        first = max(math.floor(south), band.index * BAND_ROWS)
        last = min(math.ceil(north), (band.index + 1) * BAND_ROWS)
        columns = np.arange(math.floor(west), math.ceil(east), dtype=np.int64)
        keys.append((np.arange(first, last)[:, None] * _COLUMNS_BOUND + columns).ravel())
    rows, cols = np.divmod(np.unique(np.concatenate(keys)), _COLUMNS_BOUND)
    covered, boxes = shapely.union_all(polygons), _boxes(rows, cols)
    shapely.prepare(covered)
    fraction = shapely.covers(covered, boxes).astype(np.float64)
    is_partial = (fraction == 0) & shapely.intersects(covered, boxes)
    fraction[is_partial] = shapely.area(shapely.intersection(covered, boxes[is_partial]))
    is_kept = fraction >= MIN_VALID_FRACTION
    return rows[is_kept], cols[is_kept]


def _boxes(rows: IntArray, cols: IntArray) -> Geometries:
    return np.asarray(shapely.box(cols, rows, cols + 1, rows + 1))


def _meets(polygons: list[shapely.Geometry], boxes: Geometries, margin: float) -> NDArray[np.bool_]:
    """Whether chips, their central squares widened by the margin, overlap any polygon."""
    reach = shapely.union_all(polygons)
    shapely.prepare(reach)
    return np.asarray(shapely.dwithin(boxes, reach, margin - _OVERLAP_TOLERANCE))


def _block(band: Band, column: int, rows: IntArray, cols: IntArray) -> Block:
    """A block with its columns wrapped once around the Earth."""
    num_blocks = band.num_columns // BAND_ROWS
    turns = column // num_blocks
    return Block(band.index, column - turns * num_blocks, (), rows, cols - turns * band.num_columns)


def _merged(known: Block | None, block: Block, rasters: Sequence[int]) -> Block:
    """One block of the cells of two: both sides of the antimeridian may plan the same cells."""
    if known is None:
        return Block(block.band, block.column, tuple(rasters), block.rows, block.cols)
    cells = {*zip(known.rows.tolist(), known.cols.tolist(), strict=True)}
    cells.update(zip(block.rows.tolist(), block.cols.tolist(), strict=True))
    rows, cols = np.array(sorted(cells), np.int64).T
    names = tuple(sorted({*known.rasters, *rasters}))
    return Block(block.band, block.column, names, rows, cols)


def raster_bounds(rasters: Sequence[RasterInfo]) -> FloatArray:
    """(west, south, east, north) of every raster in degrees, (n, 4), longitudes unwrapped."""
    bounds = np.empty((len(rasters), 4))
    for number, raster in enumerate(rasters):
        lat, lon = raster.outline()
        bounds[number] = lon.min(), lat.min(), lon.max(), lat.max()
    return bounds


def rasters_within(bounds: FloatArray, area: FloatArray) -> tuple[int, ...]:
    """Indexes of the rasters whose bounds overlap an area (west, south, east, north)."""
    west, south, east, north = bounds.T
    # Turn every raster to the copy that begins last before the area's eastern end.
    turn = 360.0 * np.floor((area[2] - west) / 360.0)
    is_met = (east + turn >= area[0]) & (south <= area[3]) & (north >= area[1])
    return tuple(np.flatnonzero(is_met).tolist())


def plan_cell(bounds: FloatArray, grid: ChipGrid, row: int, col: int) -> Block:
    """The block of one chip, from the rasters' bounds as `raster_bounds` gives them."""
    rows, cols = np.array([row], np.int64), np.array([col], np.int64)
    area = np.array(grid.footprints(rows, cols)[0].bounds)
    return Block(row // BAND_ROWS, col // BAND_ROWS, rasters_within(bounds, area), rows, cols)


@dataclass(frozen=True)
class BlockImage:
    """The pixels of a block: its chips overlap in it and are cut out when they are needed."""

    grid: ChipGrid
    block: Block
    canvas: Canvas

    def __len__(self) -> int:
        return len(self.block)

    def chips(
        self, indexes: Sequence[int] | IntArray
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """RGB (n, chip_px, chip_px, 3) and validity (n, chip_px, chip_px) of some of its chips."""
        slices = [self._slices(index) for index in indexes]
        size = self.grid.chip_px
        rgb = np.empty((len(slices), size, size, 3), np.uint8)
        is_valid = np.empty((len(slices), size, size), np.bool_)
        for i, area in enumerate(slices):
            rgb[i], is_valid[i] = self.canvas.rgb[area], self.canvas.is_valid[area]
        return rgb, is_valid

    def valid_fractions(self) -> tuple[FloatArray, FloatArray]:
        """Fraction of valid pixels of every whole chip and of its central square, (n,) each."""
        margin = self.grid.margin_px
        inner = slice(margin, margin + self.grid.stride_px)
        whole, central = np.empty(len(self)), np.empty(len(self))
        for i in range(len(self)):
            is_valid = self.canvas.is_valid[self._slices(i)]
            whole[i], central[i] = is_valid.mean(), is_valid[inner, inner].mean()
        return whole, central

    def _slices(self, index: int) -> tuple[slice, slice]:
        block, stride = self.block, self.grid.stride_px
        top = int(block.rows.max() - block.rows[index]) * stride
        left = int(block.cols[index] - block.cols.min()) * stride
        size = self.grid.chip_px
        return slice(top, top + size), slice(left, left + size)


def read_block(mosaic: Mosaic, grid: ChipGrid, block: Block) -> BlockImage:
    """Resample a block of at most 16 x 16 cells with its margin.

    That takes 20 MB where the stride is 128 px, 80 MB where it is 256.
    """
    band = grid.band(block.band)
    north, west = int(block.rows.max()) + 1, int(block.cols.min())
    stride, margin = grid.stride_px, grid.margin_px
    height = (north - int(block.rows.min())) * stride + 2 * margin
    width = (int(block.cols.max()) + 1 - west) * stride + 2 * margin

    def geographic_from_pixel(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        return band.lat(north - (v - margin) / stride), band.lon(west + (u - margin) / stride)

    canvas = Canvas.empty(height, width)
    mosaic.fill(canvas, geographic_from_pixel, block.rasters)
    return BlockImage(grid, block, canvas)
