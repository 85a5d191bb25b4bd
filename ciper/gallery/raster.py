"""Georeferenced images as RGB pixels on any grid of latitudes and longitudes.

A `RasterInfo` is what is known about a file without holding it open: it is checked once, travels
into the gallery's manifest and comes back from there. A `Raster` is the open file; a `Mosaic` is
an ordered list of them, of which only a few are open at a time. Both *fill a canvas*: every pixel
of the canvas is mapped to latitude and longitude, from there to the raster's CRS and its pixels.
Only the window below the canvas is read, averaged down where the raster is finer than the canvas,
so that memory does not depend on the raster's size.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyproj
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ciper.errors import RasterError
from ciper.gallery.sampling import SourceWindow, sample_window
from ciper.geo import LocalFrame

FloatArray = NDArray[np.float64]

# Latitude and longitude of canvas coordinates (u right, v down, (0, 0) = the top-left corner).
GeographicFromPixel = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]

# Control points of the pixel map lie this far apart. Between them the map is bilinear; a map
# projection bends by less than 1e-5 px over 16 m.
CONTROL_STEP_PX = 32


@dataclass(frozen=True)
class Canvas:
    """RGB pixels being filled, (H, W, 3) uint8, and where they hold imagery, (H, W) bool."""

    rgb: NDArray[np.uint8]
    is_valid: NDArray[np.bool_]

    @classmethod
    def empty(cls, height: int, width: int) -> Canvas:
        """A black canvas without imagery."""
        return cls(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.bool_))


class Imagery(Protocol):
    """Anything that can paint the pixels of a canvas that are not valid yet."""

    def fill(self, canvas: Canvas, geographic_from_pixel: GeographicFromPixel) -> None:
        """Paint what lies below the canvas; pixels that are valid already are kept."""


@dataclass(frozen=True)
class RasterInfo:
    """A raster that has been checked: where it lies and how its bands become RGB.

    `transform` holds the six coefficients (a, b, c, d, e, f) of CRS-from-pixel; `bands` the
    one-based indexes of grey or of red, green, blue; `stretch` the values shown as 0 and 255, None
    for 8-bit rasters.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    height: int
    width: int
    crs: str
    transform: tuple[float, float, float, float, float, float]
    bands: tuple[int, ...]
    is_palette: bool = False
    stretch: tuple[float, float] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RasterInfo:
        """The inverse of `dataclasses.asdict` after a trip through JSON."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def outline(self, num_per_edge: int = 16) -> tuple[FloatArray, FloatArray]:
        """Latitude and longitude of the raster's border, clockwise, not closed.

        Longitudes are continuous (they may leave [-180, 180] at the antimeridian).
        """
        t = np.arange(num_per_edge) / num_per_edge
        along, none, full = t, np.zeros_like(t), np.ones_like(t)
        u = np.concatenate([along, full, 1 - along, none]) * self.width
        v = np.concatenate([none, along, full, 1 - along]) * self.height
        x, y = _apply(Affine(*self.transform), u, v)
        lon, lat = _crs_from_geographic(self.crs).transform(x, y, direction="INVERSE")
        if not (np.isfinite(lat).all() and np.isfinite(lon).all()):
            raise RasterError(
                f"{self.path}: its border lies outside of what its CRS can express; expected a "
                "raster inside of the CRS's area of use. Check its transform and CRS."
            )
        return lat, lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was checked (its size and time of change)."""
        path = Path(self.path)
        if not path.is_file():
            return False
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


def open_dataset(path: Path) -> Any:
    """Open a file with rasterio.

    Raises:
        RasterError: it is no raster or cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except (RasterioError, OSError) as error:
        raise RasterError(
            f"{path}: cannot be opened as a raster ({one_line(error)}); expected a GeoTIFF, VRT, "
            "JPEG 2000 or another georeferenced image."
        ) from error


def read_planes(
    dataset: Any, info: RasterInfo, window: Window, shape: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Planes (C, h, w) as stored and their mask (h, w), averaged down to `shape`.

    GDAL averages over valid pixels only, and from overviews where the file has them.
    """
    is_reduced = shape != (window.height, window.width)
    resampling = Resampling.average if is_reduced and not info.is_palette else Resampling.nearest
    try:
        planes = dataset.read(
            list(info.bands),
            window=window,
            out_shape=(len(info.bands), *shape),
            resampling=resampling,
        )
        if all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums):
            is_valid = np.ones(shape, np.bool_)
        else:
            mask = dataset.dataset_mask(window=window, out_shape=shape, resampling=resampling)
            is_valid = mask >= 128
    except (RasterioError, OSError) as error:
        raise RasterError(
            f"{info.path}: pixels could not be read at column {window.col_off}, row "
            f"{window.row_off} ({one_line(error)}); expected a whole file of {info.width} x "
            f"{info.height} pixels. It may be cut short: copy or download it again."
        ) from error
    if planes.dtype.kind == "f":
        is_valid &= np.isfinite(planes).all(axis=0)
    return planes, is_valid


def one_line(error: BaseException) -> str:
    """A foreign error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


class _Opened(ABC):
    """Holds files open until `close` or the end of its `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Raster(_Opened):
    """An open raster. Not to be used by two threads at once (GDAL's rule)."""

    def __init__(self, info: RasterInfo) -> None:
        """Open the file described by `info`.

        Raises:
            RasterError: it has gone or cannot be opened any more.
        """
        self.info = info
        self._dataset = open_dataset(Path(info.path))
        self._pixel_from_crs = ~Affine(*info.transform)
        self._crs_from_geographic = _crs_from_geographic(info.crs)
        self._palette = _palette(self._dataset) if info.is_palette else None

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def pixel_from_geographic(
        self, lat: FloatArray, lon: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Pixel coordinates (u, v) of positions, NaN where the CRS cannot express them."""
        x, y = self._crs_from_geographic.transform(lon, lat)
        if _is_geographic(self.info.crs):
            # Longitudes come back in [-180, 180]; the raster may count in [0, 360].
            middle = _apply(
                Affine(*self.info.transform),
                np.array(self.info.width / 2),
                np.array(self.info.height / 2),
            )[0]
            x = middle + (np.asarray(x) - middle + 180.0) % 360.0 - 180.0
        with np.errstate(invalid="ignore"):
            u, v = _apply(self._pixel_from_crs, np.asarray(x), np.asarray(y))
        return np.where(np.isfinite(u), u, np.nan), np.where(np.isfinite(v), v, np.nan)

    def fill(self, canvas: Canvas, geographic_from_pixel: GeographicFromPixel) -> None:
        """Paint the canvas's pixels that are not valid yet and that this raster covers.

        Bilinear between pixels; where the raster is finer than the canvas its window is first
        averaged down to between one and two pixels per canvas pixel. Palettes are thinned instead.
        """
        height, width = canvas.is_valid.shape
        rows = np.arange(0, height + CONTROL_STEP_PX, CONTROL_STEP_PX, dtype=np.float64)
        cols = np.arange(0, width + CONTROL_STEP_PX, CONTROL_STEP_PX, dtype=np.float64)
        v, u = np.meshgrid(rows, cols, indexing="ij")
        control_u, control_v = self.pixel_from_geographic(*geographic_from_pixel(u, v))
        source = SourceWindow.plan(
            control_u, control_v, size=(self.info.height, self.info.width), step_px=CONTROL_STEP_PX
        )
        if source is None or canvas.is_valid[source.canvas_slices].all():
            return
        window = Window(source.left, source.top, source.width, source.height)
        planes, is_valid = read_planes(self._dataset, self.info, window, source.shape)
        sample_window(
            self._as_bytes(planes, is_valid), is_valid, source, canvas.rgb, canvas.is_valid
        )

    def _as_bytes(self, planes: NDArray[Any], is_valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        if self._palette is not None:
            colors = self._palette[planes[0]]
            is_valid &= colors[..., 3] > 0
            return np.ascontiguousarray(np.moveaxis(colors[..., :3], -1, 0))
        if self.info.stretch is None:
            return planes.astype(np.uint8, copy=False)
        low, high = self.info.stretch
        scaled = (planes.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
        levels = np.clip(np.nan_to_num(scaled) + 0.5, 0, 255)
        return np.asarray(levels.astype(np.uint8))


class Mosaic(_Opened):
    """Rasters in the order of their precedence: later ones fill only what earlier ones leave."""

    def __init__(
        self,
        rasters: Sequence[RasterInfo],
        *,
        only: Sequence[int] | None = None,
        max_open: int = 32,
    ) -> None:
        """Hold `rasters` (or `only` some of them), at most `max_open` files open at a time."""
        self.rasters = tuple(rasters)
        self._default = tuple(range(len(self.rasters)) if only is None else only)
        self._max_open = max_open
        self._open: OrderedDict[int, Raster] = OrderedDict()

    def close(self) -> None:
        """Close every open file."""
        while self._open:
            self._open.popitem()[1].close()

    def fill(
        self,
        canvas: Canvas,
        geographic_from_pixel: GeographicFromPixel,
        indexes: Iterable[int] | None = None,
    ) -> None:
        """Paint from the rasters `indexes` (default: all held), in order, until nothing is left."""
        for index in self._default if indexes is None else indexes:
            if canvas.is_valid.all():
                return
            self._raster(index).fill(canvas, geographic_from_pixel)

    def _raster(self, index: int) -> Raster:
        if index not in self._open:
            if len(self._open) >= self._max_open:
                self._open.popitem(last=False)[1].close()
            self._open[index] = Raster(self.rasters[index])
        self._open.move_to_end(index)
        return self._open[index]


def read_chip(
    imagery: Imagery, *, lat: float, lon: float, size_px: int = 256, gsd: float = 0.5
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A true-north-up square of imagery in the local metres around its centre.

    Pixel (u, v) lies at x = (u - size_px / 2) gsd, y = (size_px / 2 - v) gsd of the azimuthal
    equidistant frame at (lat, lon).

    Returns:
        RGB (size_px, size_px, 3) uint8, black without imagery, and where there is imagery
        (size_px, size_px).
    """
    frame = LocalFrame(lat=lat, lon=lon)

    def geographic_from_pixel(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        return frame.to_geographic(x=(u - size_px / 2) * gsd, y=(size_px / 2 - v) * gsd)

    canvas = Canvas.empty(size_px, size_px)
    imagery.fill(canvas, geographic_from_pixel)
    return canvas.rgb, canvas.is_valid


def _apply(transform: Affine, u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * u + b * v + c, d * u + e * v + f


@lru_cache(maxsize=64)
def _crs_from_geographic(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs("EPSG:4326", pyproj.CRS.from_wkt(crs), always_xy=True)


@lru_cache(maxsize=64)
def _is_geographic(crs: str) -> bool:
    return bool(pyproj.CRS.from_wkt(crs).is_geographic)


def _palette(dataset: Any) -> NDArray[np.uint8]:
    """RGBA of every index, (65536 or 256, 4); indexes without an entry are transparent."""
    table = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 4), np.uint8)
    for index, color in dataset.colormap(1).items():
        table[index] = color
    return table
