"""Metres between places on the ellipsoid, many at once and anywhere.

The same metres as those of `geo.LocalFrame` (its projection keeps the length and the azimuth of
geodesics from its origin), without a projection that is made for every origin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from pyproj import Geod

from ciper.geo import FloatArray, bearing_deg, forward

_WGS84 = Geod(ellps="WGS84")
SEMI_MAJOR_M = 6_378_137.0
_ECCENTRICITY_2 = 0.006694379990141317


def radii_of_curvature(lat: float) -> tuple[float, float]:
    """Of the ellipsoid along the meridian and along the prime vertical, in metres.

    M and N of Snyder 1987, "Map projections", equations 4-18 and 4-20.
    """
    flat = 1.0 - _ECCENTRICITY_2 * math.sin(math.radians(lat)) ** 2
    prime_vertical_m = SEMI_MAJOR_M / math.sqrt(flat)
    return prime_vertical_m * (1.0 - _ECCENTRICITY_2) / flat, prime_vertical_m


def offset_m(*, lat: ArrayLike, lon: ArrayLike, to_lat: ArrayLike, to_lon: ArrayLike) -> FloatArray:
    """Metres east and north from places to other places, `(..., 2)`."""
    arrays = (np.asarray(a, np.float64) for a in (lon, lat, to_lon, to_lat))
    lon, lat, to_lon, to_lat = np.broadcast_arrays(*arrays)
    azimuth_deg, _, length_m = _WGS84.inv(lon, lat, to_lon, to_lat)
    return np.asarray(forward(azimuth_deg) * np.asarray(length_m)[..., None], np.float64)


def moved(
    *, lat: ArrayLike, lon: ArrayLike, x_m: ArrayLike, y_m: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Latitude and longitude, in this order, of what lies x_m east and y_m north of places."""
    arrays = (np.asarray(a, np.float64) for a in (lat, lon, x_m, y_m))
    lat, lon, x_m, y_m = np.broadcast_arrays(*arrays)
    there = _WGS84.fwd(lon, lat, bearing_deg(x_m, y_m), np.hypot(x_m, y_m))
    return np.asarray(there[1], np.float64), np.asarray(there[0], np.float64)
