"""Frames: WGS84, any map CRS, true-north local metres, pixels; and the angles between them.

Local frames are metres with x true east and y true north. Headings and bearings are degrees
clockwise from true north. Pixels are (u right, v down) with (0, 0) at the top-left *corner* of the
first pixel, so the centre of that pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.transform import Affine

from ciper.errors import GeoError

FloatArray = NDArray[np.float64]
PointMap = Callable[[ArrayLike, ArrayLike], tuple[FloatArray, FloatArray]]

WGS84 = CRS.from_epsg(4326)


# ---------------------------------------------------------------------------------------- angles


def wrap_deg(angle_deg: ArrayLike) -> FloatArray:
    """Bring angles to [0, 360)."""
    wrapped = np.mod(np.asarray(angle_deg, dtype=np.float64), 360.0)
    # A tiny negative angle plus 360 rounds to 360 itself, which lies outside the interval.
    return np.where(wrapped >= 360.0, 0.0, wrapped)


def wrap_signed_deg(angle_deg: ArrayLike) -> FloatArray:
    """Bring angles to [-180, 180)."""
    return wrap_deg(np.asarray(angle_deg, dtype=np.float64) + 180.0) - 180.0


def heading_error_deg(heading_deg: ArrayLike, true_heading_deg: ArrayLike) -> FloatArray:
    """Signed shortest turn from the true heading to the given one, in [-180, 180).

    Positive means that the given heading lies clockwise of the true one.
    """
    difference = np.asarray(heading_deg, dtype=np.float64) - np.asarray(true_heading_deg)
    return wrap_signed_deg(difference)


def forward(heading_deg: ArrayLike) -> FloatArray:
    """Unit vector (east, north) that a heading points along, shape (..., 2)."""
    heading = np.deg2rad(np.asarray(heading_deg, dtype=np.float64))
    return np.stack([np.sin(heading), np.cos(heading)], axis=-1)


def right(heading_deg: ArrayLike) -> FloatArray:
    """Unit vector (east, north) to the right of a heading, shape (..., 2)."""
    heading = np.deg2rad(np.asarray(heading_deg, dtype=np.float64))
    return np.stack([np.cos(heading), -np.sin(heading)], axis=-1)


def bearing_deg(dx: ArrayLike, dy: ArrayLike) -> FloatArray:
    """Bearing in [0, 360) of a displacement of `dx` metres east and `dy` metres north."""
    east, north = np.asarray(dx, dtype=np.float64), np.asarray(dy, dtype=np.float64)
    return wrap_deg(np.rad2deg(np.arctan2(east, north)))


# ---------------------------------------------------------------------------------- coordinates


def check_lat_lon(*, lat: float, lon: float) -> None:
    """Refuse coordinates that are not on Earth.

    Raises:
        GeoError: latitude outside [-90, 90], longitude outside [-180, 180], or either not finite.
    """
    # A comparison with NaN is false, so NaN is refused too.
    if not -90.0 <= lat <= 90.0:
        raise GeoError(
            f"latitude {lat} is not a number in [-90, 90]; are latitude and longitude swapped?"
        )
    if not -180.0 <= lon <= 180.0:
        raise GeoError(
            f"longitude {lon} is not a number in [-180, 180]; subtract 360 from eastern ones"
        )


@dataclass(frozen=True)
class Pose:
    """Where a camera stands and which way it looks.

    Attributes:
        lat: WGS84 latitude in degrees.
        lon: WGS84 longitude in degrees.
        heading_deg: degrees clockwise from true north; any finite value, kept in [0, 360).
    """

    lat: float
    lon: float
    heading_deg: float

    def __post_init__(self) -> None:
        check_lat_lon(lat=self.lat, lon=self.lon)
        if not math.isfinite(self.heading_deg):
            raise GeoError(f"heading {self.heading_deg} is not finite; give degrees from north")
        object.__setattr__(self, "heading_deg", float(wrap_deg(self.heading_deg)))


def parse_crs(crs: CRS | str | int | object) -> CRS:
    """Turn an EPSG code, WKT, PROJ text or a rasterio CRS into a pyproj one.

    Raises:
        GeoError: nothing that PROJ knows.
    """
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise GeoError(
            f"{crs!r} is not a coordinate reference system that PROJ knows; "
            "give an EPSG code such as EPSG:32633"
        ) from error


@lru_cache(maxsize=256)
def _aeqd(lat: float, lon: float) -> CRS:
    text = f"+proj=aeqd +lat_0={lat!r} +lon_0={lon!r} +datum=WGS84 +units=m +no_defs"
    return CRS.from_proj4(text)


@lru_cache(maxsize=1024)
def _transformer(source: CRS, target: CRS) -> Transformer:
    # `always_xy` makes every geographic CRS (lon, lat) and every projected one (east, north).
    return Transformer.from_crs(source, target, always_xy=True)


def _point_map(source: CRS, target: CRS) -> PointMap:
    transformer = _transformer(source, target)

    def apply(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
        x_in, y_in = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        try:
            x_out, y_out = transformer.transform(x_in, y_in, errcheck=False)
        except ProjError as error:
            raise GeoError(
                f"cannot transform from {source.name!r} to {target.name!r}: {error}; "
                "check that the CRS is right"
            ) from error
        # PROJ answers inf where a projection is undefined: the point lies off that map.
        return np.asarray(x_out, np.float64), np.asarray(y_out, np.float64)

    return apply


@dataclass(frozen=True)
class LocalFrame:
    """Metres about an origin: x true east, y true north (azimuthal equidistant, WGS84).

    Distance and bearing from the origin are those of the geodesic; 10 km away, distances between
    neighbouring points are still right to a millionth. Frames compare and hash by their origin.

    Attributes:
        lat: latitude of the origin in degrees.
        lon: longitude of the origin in degrees.
    """

    lat: float
    lon: float

    def __post_init__(self) -> None:
        check_lat_lon(lat=self.lat, lon=self.lon)

    @property
    def crs(self) -> CRS:
        """The frame as a CRS, to write into files."""
        return _aeqd(float(self.lat), float(self.lon))

    def to_local(self, *, lat: ArrayLike, lon: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Metres (x, y) of geographic points."""
        return self.local_from_crs(WGS84)(lon, lat)

    def to_geographic(self, *, x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Latitude and longitude, in this order, of points in metres."""
        lon, lat = self.crs_from_local(WGS84)(x, y)
        return lat, lon

    def local_from_crs(self, crs: CRS | str | int | object) -> PointMap:
        """A function (easting or lon, northing or lat) -> (x, y) in metres.

        Points where the projection is undefined come back as infinities.
        """
        return _point_map(parse_crs(crs), self.crs)

    def crs_from_local(self, crs: CRS | str | int | object) -> PointMap:
        """A function (x, y) in metres -> (easting or lon, northing or lat) in the CRS's unit."""
        return _point_map(self.crs, parse_crs(crs))

    def pose(self, *, x: float, y: float, heading_deg: float) -> Pose:
        """The geographic pose of a camera at metres (x, y).

        The heading is taken against true north *at the origin*, as chips and headings of this frame
        are. At 60 degrees latitude that differs from true north at the camera by 0.016 degrees for
        every kilometre east of the origin.
        """
        lat, lon = self.to_geographic(x=x, y=y)
        return Pose(lat=float(lat), lon=float(lon), heading_deg=heading_deg)


def geographic_from_crs(
    crs: CRS | str | int | object, x: ArrayLike, y: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Latitude and longitude, in this order, of a CRS's coordinates; infinite where undefined."""
    lon, lat = _point_map(parse_crs(crs), WGS84)(x, y)
    return lat, lon


def grid_convergence_deg(crs: CRS | str | int | object, *, lat: float, lon: float) -> float:
    """Bearing of grid north: degrees clockwise from true north to the CRS's +y axis, signed.

    True bearing = bearing on the grid + convergence. In UTM's northern hemisphere it is positive
    east of the central meridian. Measured by a step of 10 m along the grid, so it holds for any
    CRS and unit.

    Raises:
        GeoError: the place lies outside the CRS's domain.
    """
    frame = LocalFrame(lat=lat, lon=lon)
    crs_from_local, local_from_crs = frame.crs_from_local(crs), frame.local_from_crs(crs)
    east, north = crs_from_local([0.0, 0.0], [-5.0, 5.0])
    step = math.hypot(east[1] - east[0], north[1] - north[0]) / 2.0
    if not math.isfinite(step) or step == 0.0:
        raise GeoError(
            f"lat {lat}, lon {lon} lies outside {parse_crs(crs).name!r}; "
            "choose a CRS that covers it"
        )
    middle_east, middle_north = east.mean(), north.mean()
    x, y = local_from_crs([middle_east, middle_east], [middle_north - step, middle_north + step])
    return float(wrap_signed_deg(bearing_deg(x[1] - x[0], y[1] - y[0])))


def utm_crs(*, lat: float, lon: float) -> CRS:
    """The WGS84 UTM zone that holds a place (the plain 6-degree zones, no Norwegian exceptions).

    Raises:
        GeoError: beyond 80 S or 84 N, where UTM is not defined.
    """
    check_lat_lon(lat=lat, lon=lon)
    if not -80.0 <= lat <= 84.0:
        raise GeoError(f"latitude {lat} has no UTM zone; UTM covers 80 S to 84 N")
    zone = min(int((lon + 180.0) // 6.0), 59) + 1
    return CRS.from_epsg((32600 if lat >= 0.0 else 32700) + zone)


# --------------------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class GeoImage:
    """An image that knows where it is.

    Attributes:
        array: (H, W, C) uint8.
        transform: CRS coordinates from pixel coordinates (u, v), pixel corners at integers.
        crs: what the transform's coordinates are.
        gsd: metres per pixel on the ground at the image's centre.
    """

    array: NDArray[np.uint8]
    transform: Affine
    crs: CRS
    gsd: float

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.dtype != np.uint8:
            raise GeoError(
                f"image has shape {self.array.shape} and type {self.array.dtype}; "
                "expected (height, width, bands) of uint8"
            )
        if self.transform.is_degenerate:
            raise GeoError(f"transform {tuple(self.transform)[:6]} maps all pixels onto a line")
        if not (math.isfinite(self.gsd) and self.gsd > 0.0):
            raise GeoError(f"gsd {self.gsd} m/px is not positive; expected metres per pixel")

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    def crs_from_pixel(self, u: ArrayLike, v: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """CRS coordinates of pixel coordinates."""
        return _apply_affine(self.transform, u, v)

    def pixel_from_crs(self, x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Pixel coordinates (u, v) of CRS coordinates."""
        return _apply_affine(~self.transform, x, y)

    def pixel_from_local(
        self, frame: LocalFrame, x: ArrayLike, y: ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Pixel coordinates (u, v) of metres in a local frame."""
        return self.pixel_from_crs(*frame.crs_from_local(self.crs)(x, y))

    def local_from_pixel(
        self, frame: LocalFrame, u: ArrayLike, v: ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Metres (x, y) in a local frame of pixel coordinates."""
        return frame.local_from_crs(self.crs)(*self.crs_from_pixel(u, v))


def _apply_affine(transform: Affine, x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * x + b * y + c, d * x + e * y + f


def gsd_m(transform: Affine, crs: CRS | str | int | object, *, size_px: tuple[int, int]) -> float:
    """Metres per pixel at the centre of a raster: the square root of a pixel's area on the ground.

    Holds for rasters in degrees, feet or metres, rotated or not; Web Mercator's stretch is undone.

    Raises:
        GeoError: the centre lies outside the CRS's domain.
    """
    height_px, width_px = size_px
    middle_x, middle_y = _apply_affine(transform, width_px / 2.0, height_px / 2.0)
    lat, lon = geographic_from_crs(crs, middle_x, middle_y)
    if not (np.isfinite(lon) and np.isfinite(lat)):
        raise GeoError(
            f"the raster's centre ({middle_x}, {middle_y}) lies outside {parse_crs(crs).name!r}; "
            "check its CRS and transform"
        )
    frame = LocalFrame(lat=float(lat), lon=float(lon))
    u = width_px / 2.0 + np.array([-0.5, 0.5, 0.0, 0.0])
    v = height_px / 2.0 + np.array([0.0, 0.0, -0.5, 0.5])
    x, y = frame.local_from_crs(crs)(*_apply_affine(transform, u, v))
    area_m2 = (x[1] - x[0]) * (y[3] - y[2]) - (x[3] - x[2]) * (y[1] - y[0])
    return float(np.sqrt(np.abs(area_m2)))


# ---------------------------------------------------------------------------------------- chips


def chip_xy_from_pixel(
    u: ArrayLike, v: ArrayLike, size_px: int | tuple[int, int], gsd: float
) -> tuple[FloatArray, FloatArray]:
    """Metres (x east, y north) from a true-north-up chip's centre of pixel coordinates.

    Args:
        u: pixels to the right of the chip's left edge.
        v: pixels below its top edge.
        size_px: side of a square chip, or (height, width).
        gsd: metres per pixel.
    """
    height_px, width_px = (size_px, size_px) if isinstance(size_px, int) else size_px
    x = (np.asarray(u, dtype=np.float64) - width_px / 2.0) * gsd
    y = (height_px / 2.0 - np.asarray(v, dtype=np.float64)) * gsd
    return x, y


def pixel_from_chip_xy(
    x: ArrayLike, y: ArrayLike, size_px: int | tuple[int, int], gsd: float
) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates (u, v) of metres from a chip's centre; undoes `chip_xy_from_pixel`."""
    height_px, width_px = (size_px, size_px) if isinstance(size_px, int) else size_px
    u = np.asarray(x, dtype=np.float64) / gsd + width_px / 2.0
    v = height_px / 2.0 - np.asarray(y, dtype=np.float64) / gsd
    return u, v
