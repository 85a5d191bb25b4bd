"""Grids of tiles: what z, x and y of an address mean on the ground."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from affine import Affine

from ciper.errors import ConfigError, DependencyError, GeoError
from ciper.geodesic import SEMI_MAJOR_M
from ciper.imagery.place import Bounds, Frame, Span, covering, pixels_of, scaled, shifted

if TYPE_CHECKING:
    from morecantile import TileMatrixSet

WEB_MERCATOR = "WebMercatorQuad"
TILE_PX = 256
# Beyond, Web Mercator's square ends: atan(sinh(pi)).
_MAX_LAT = 85.0511287798066
_NUM_ZOOMS = 25


@dataclass(frozen=True, order=True)
class Tile:
    """A tile of one zoom: columns from the left, rows from the top."""

    row: int
    col: int


@dataclass(frozen=True)
class TileMatrix:
    """One zoom of a grid.

    Attributes:
        zoom: its number.
        name: what servers call it.
        crs: as PROJ reads it.
        transform: CRS coordinates from (column, row) of tiles.
        num_cols: tiles from left to right.
        num_rows: tiles from top to bottom.
    """

    zoom: int
    name: str
    crs: str
    transform: Affine
    num_cols: int
    num_rows: int

    def pixels(self, tile_px: tuple[int, int]) -> Affine:
        """CRS coordinates from pixels of the whole grid, for tiles of (height, width) pixels."""
        height, width = tile_px
        return scaled(self.transform, across=1.0 / width, down=1.0 / height)

    def frame(self, span: Span, tile_px: tuple[int, int]) -> Frame:
        """A rectangle of pixels of the whole grid."""
        transform = shifted(self.pixels(tile_px), span.left, span.top)
        return Frame(self.crs, transform, span.size_px)

    def tiles_over(self, bounds: Bounds) -> Span:
        """The columns and rows of tiles below a place.

        Raises:
            GeoError: it reaches beyond the grid, or is smaller than a pixel.
        """
        span = self.pixels_over(bounds, (TILE_PX, TILE_PX))
        return Span(
            span.left // TILE_PX,
            span.top // TILE_PX,
            -(-span.right // TILE_PX),
            -(-span.bottom // TILE_PX),
        )

    def pixels_over(self, bounds: Bounds, tile_px: tuple[int, int]) -> Span:
        """The pixels of the whole grid below a place.

        Raises:
            GeoError: it reaches beyond the grid, or is smaller than a pixel.
        """
        span = covering(bounds, self.crs, self.pixels(tile_px))
        height, width = tile_px
        right, bottom = self.num_cols * width, self.num_rows * height
        if span.left < 0 or span.top < 0 or span.right > right or span.bottom > bottom:
            limit = f"; Web Mercator ends at latitude {_MAX_LAT:.4f}" if self.is_mercator else ""
            raise GeoError(
                f"bbox {bounds} reaches beyond the tiles of zoom {self.zoom}{limit}; choose a "
                "smaller one"
            )
        return span

    @property
    def is_mercator(self) -> bool:
        """Whether it is of Web Mercator."""
        return self.crs == "EPSG:3857"

    def tile_at(self, *, lat: float, lon: float) -> Tile:
        """The tile below a point."""
        u, v = pixels_of(self.crs, self.transform, lat=lat, lon=lon)
        return Tile(math.floor(v), math.floor(u))

    def gsd(self, bounds: Bounds, tile_px: int = TILE_PX) -> float:
        """True metres per pixel in the middle of a place, for square tiles."""
        lat, lon = bounds.middle
        transform = self.pixels((tile_px, tile_px))
        u, v = pixels_of(self.crs, transform, lat=lat, lon=lon)
        around = shifted(transform, float(u) - 0.5, float(v) - 0.5)
        return Frame(self.crs, around, (1, 1)).gsd


@dataclass(frozen=True)
class TileGrid:
    """All zooms of a grid, coarsest first; `matrices[i].zoom` need not be i."""

    name: str
    matrices: tuple[TileMatrix, ...]

    def __iter__(self) -> Iterator[TileMatrix]:
        return iter(self.matrices)

    def matrix(self, zoom: int) -> TileMatrix:
        """One zoom.

        Raises:
            ConfigError: the grid has no such zoom.
        """
        for matrix in self.matrices:
            if matrix.zoom == zoom:
                return matrix
        raise ConfigError(
            f"--zoom {zoom}: {self.name} has the zooms {self.matrices[0].zoom} to "
            f"{self.matrices[-1].zoom}; choose one of them"
        )

    def fine_enough(self, bounds: Bounds, gsd: float, tile_px: int = TILE_PX) -> TileMatrix:
        """The coarsest zoom whose pixels are not larger than `gsd` there, else the finest."""
        found = (matrix for matrix in self if matrix.gsd(bounds, tile_px) <= gsd)
        return next(found, self.matrices[-1])

    def finest_within(self, bounds: Bounds, max_tiles: int) -> int | None:
        """The highest zoom that needs at most so many tiles; None if none does."""
        fitting = []
        for matrix in self:
            try:
                num_tiles = matrix.tiles_over(bounds).num
            except GeoError:
                continue  # the place is smaller than one of its pixels
            if num_tiles <= max_tiles:
                fitting.append(matrix.zoom)
        return max(fitting, default=None)


def web_mercator() -> TileGrid:
    """The grid of nearly all web maps: zoom z has 2^z x 2^z tiles over the square world."""
    half = math.pi * SEMI_MAJOR_M
    matrices = []
    for zoom in range(_NUM_ZOOMS):
        side = 2.0 * half / 2**zoom
        transform = Affine(side, 0.0, -half, 0.0, -side, half)
        matrices.append(TileMatrix(zoom, str(zoom), "EPSG:3857", transform, 2**zoom, 2**zoom))
    return TileGrid(WEB_MERCATOR, tuple(matrices))


def load_grid(name: str) -> TileGrid:
    """A grid by its OGC name, or from a file of OGC's TileMatrixSet JSON.

    Raises:
        ConfigError: there is no such grid, or it is of a kind that is not read.
        DependencyError: the library that knows the others than Web Mercator is not installed.
    """
    if name == WEB_MERCATOR:
        return web_mercator()
    tms = _tile_matrix_set(name)
    if tms.is_variable or any(m.cornerOfOrigin != "topLeft" for m in tms.tileMatrices):
        raise ConfigError(
            f"--tile-matrix-set {name}: its rows are not of equal tiles counted from the top; "
            "expected such a grid"
        )
    return TileGrid(_folder_name(name), tuple(_matrices(tms)))


def _folder_name(name: str) -> str:
    """A file's grid under a name that changes with it: tiles are kept by it."""
    if not name.endswith(".json"):
        return name
    path = Path(name)
    return f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def _tile_matrix_set(name: str) -> TileMatrixSet:
    try:
        import morecantile
        from morecantile.errors import InvalidIdentifier
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"--tile-matrix-set {name} needs morecantile, which is not installed; run: "
            "pip install 'ciper-geo[imagery]'"
        ) from error
    try:
        if name.endswith(".json"):
            text = Path(name).read_text(encoding="utf-8")
            return morecantile.TileMatrixSet.model_validate_json(text)
        return morecantile.tms.get(name)
    except InvalidIdentifier as error:
        known = ", ".join(sorted(morecantile.tms.list()))
        raise ConfigError(
            f"--tile-matrix-set {name} is unknown; expected one of {known}, or a .json file"
        ) from error
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--tile-matrix-set {name} cannot be read ({reason[:200]}); expected OGC's "
            "TileMatrixSet 2.0 as JSON"
        ) from error


def _matrices(tms: TileMatrixSet) -> Iterator[TileMatrix]:
    import morecantile

    crs = tms.crs.to_wkt()
    for zoom in range(tms.minzoom, tms.maxzoom + 1):
        matrix = tms.matrix(zoom)
        first = tms.xy_bounds(morecantile.Tile(0, 0, zoom))
        width, height = first.right - first.left, first.top - first.bottom
        transform = Affine(width, 0.0, first.left, 0.0, -height, first.top)
        yield TileMatrix(zoom, matrix.id, crs, transform, matrix.matrixWidth, matrix.matrixHeight)
