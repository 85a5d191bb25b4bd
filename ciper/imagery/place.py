"""The place that was asked for, and the pixels of a map that cover it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike
from pyproj import CRS, Transformer

from ciper.errors import GeoError
from ciper.geo import FloatArray, check_lat_lon, gsd_m

BBOX = "W,S,E,N"
# Points on each edge of a bounding box: straight in degrees, it is bent in most CRSs.
_NUM_PER_EDGE = 33
# A border that lies on a pixel's edge but for rounding errors does not pull the next pixel in.
_SLACK_PX = 1e-6


@dataclass(frozen=True)
class Bounds:
    """A rectangle of longitudes and latitudes in WGS84 degrees."""

    west: float
    south: float
    east: float
    north: float

    def __post_init__(self) -> None:
        if self.east > 180.0 or self.west < -180.0 or self.west - self.east > 180.0:
            raise GeoError(
                f"bbox {self} crosses the antimeridian or leaves [-180, 180]; fetch both sides, "
                "W,S,180,N and -180,S,E,N, into two files"
            )
        check_lat_lon(lat=self.south, lon=self.west)
        check_lat_lon(lat=self.north, lon=self.east)
        for low, high, names in (
            (self.west, self.east, "west, east"),
            (self.south, self.north, "south, north"),
        ):
            if low >= high:
                what = "is empty" if low == high else "is in another order"
                raise GeoError(
                    f"bbox {self} {what}: its {names} are {low:g}, {high:g}; expected {BBOX} in "
                    "degrees, W < E and S < N"
                )

    def __str__(self) -> str:
        return ",".join(f"{x:.10g}" for x in (self.west, self.south, self.east, self.north))

    @property
    def middle(self) -> tuple[float, float]:
        """Latitude and longitude, in this order."""
        return (self.south + self.north) / 2.0, (self.west + self.east) / 2.0

    def border(self) -> tuple[FloatArray, FloatArray]:
        """Latitudes and longitudes along the four edges."""
        lon = np.linspace(self.west, self.east, _NUM_PER_EDGE)
        lat = np.linspace(self.south, self.north, _NUM_PER_EDGE)
        west, south = np.full_like(lat, self.west), np.full_like(lon, self.south)
        east, north = np.full_like(lat, self.east), np.full_like(lon, self.north)
        return np.concatenate([south, north, lat, lat]), np.concatenate([lon, lon, west, east])


@dataclass(frozen=True)
class Frame:
    """Pixels of a result and where they lie.

    Attributes:
        crs: as PROJ reads it.
        transform: CRS coordinates from pixel coordinates.
        size_px: (height, width).
    """

    crs: str
    transform: Affine
    size_px: tuple[int, int]

    @property
    def gsd(self) -> float:
        """True metres per pixel on the ground, at the middle; Web Mercator's are not metres."""
        return gsd_m(self.transform, self.crs, size_px=self.size_px)


@dataclass(frozen=True)
class Span:
    """Columns [left, right) and rows [top, bottom) of pixels or of tiles."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def num(self) -> int:
        """How many lie inside."""
        return (self.right - self.left) * (self.bottom - self.top)

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left


# Written out because affine spells its product `*` up to version 2 and `@` from 3 on.


def scaled(transform: Affine, *, across: float, down: float) -> Affine:
    """CRS from pixels, for pixels that are so many times as wide and as high."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a * across, b * down, c, d * across, e * down, f)


def shifted(transform: Affine, u: float, v: float) -> Affine:
    """CRS from pixels, counted from pixel (u, v)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return Affine(a, b, a * u + b * v + c, d, e, d * u + e * v + f)


def pixels_of(
    crs: str, transform: Affine, *, lat: ArrayLike, lon: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates (u, v) of points; infinite where the CRS is not defined."""
    x, y = _crs_from_geographic(crs).transform(lon, lat)
    a, b, c, d, e, f = tuple(~transform)[:6]
    with np.errstate(invalid="ignore"):
        return np.asarray(a * x + b * y + c), np.asarray(d * x + e * y + f)


@lru_cache(maxsize=16)
def _crs_from_geographic(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


def covering(bounds: Bounds, crs: str, transform: Affine) -> Span:
    """The smallest rectangle of whole pixels that holds a place.

    Raises:
        GeoError: the place lies where the CRS is not defined, or within a pixel's size.
    """
    lat, lon = bounds.border()
    u, v = pixels_of(crs, transform, lat=lat, lon=lon)
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        raise GeoError(
            f"bbox {bounds} leaves the area of {CRS.from_user_input(crs).name!r}; choose a smaller "
            "one or another source"
        )
    width, height = float(np.ptp(u)), float(np.ptp(v))
    if min(width, height) < 1.0 - _SLACK_PX:
        raise GeoError(
            f"bbox {bounds} is {width:.2g} x {height:.2g} pixels there; expected at least one: "
            "choose a larger one, or a higher zoom"
        )
    return Span(
        math.floor(u.min() + _SLACK_PX),
        math.floor(v.min() + _SLACK_PX),
        math.ceil(u.max() - _SLACK_PX),
        math.ceil(v.max() - _SLACK_PX),
    )
