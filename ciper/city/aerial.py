"""A city's aerial image as a georeferenced raster in UTM, and its file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates

from ciper.city.parts import City
from ciper.city.render import Scene, degrade, random_light, render_aerial
from ciper.geo import GeoImage, LocalFrame, utm_crs

FloatArray = NDArray[np.float64]

_ROWS_AT_ONCE = 256


def aerial_image(city: City, frame: LocalFrame, gsd: float, rng: np.random.Generator) -> GeoImage:
    """The city from above in its UTM zone, black where the grid's square leaves the city.

    It is rendered twice as finely in true-north metres, see `georeference`.
    """
    fine = degrade(
        render_aerial(Scene.from_city(city), random_light(rng), gsd=gsd / 2.0, seed=city.seed), rng
    )
    return georeference(fine, frame, size_m=city.size_m, gsd=gsd)


def georeference(
    image: NDArray[np.uint8], frame: LocalFrame, *, size_m: float, gsd: float
) -> GeoImage:
    """Resample a true-north-up square image about a frame's origin onto its UTM zone's grid.

    An image twice as fine as the result is averaged without aliasing: means of 2 x 2 pixels, then
    bilinear, weigh all of its pixels equally (up to the small angle between the two norths).

    Args:
        image: (H, W, 3), row 0 = north, covering size_m x size_m.
        frame: the local frame whose origin is the image's centre.
        size_m: edge of the image.
        gsd: of the result, in UTM's metres.

    Returns:
        The bounding square's image; (0, 0, 0) means no data, and only that.
    """
    crs = utm_crs(lat=frame.lat, lon=frame.lon)
    half = size_m / 2.0
    edge = np.linspace(-half, half, 9)
    rim = np.full(9, half)
    east, north = frame.crs_from_local(crs)(
        np.concatenate([edge, edge, -rim, rim]), np.concatenate([-rim, rim, edge, edge])
    )
    left, top = math.floor(east.min() / gsd) * gsd, math.ceil(north.max() / gsd) * gsd
    width_px = math.ceil((east.max() - left) / gsd)
    height_px = math.ceil((top - north.min()) / gsd)
    transform = Affine(gsd, 0.0, left, 0.0, -gsd, top)
    blank = np.zeros((height_px, width_px, 3), dtype=np.uint8)
    target = GeoImage(blank, transform, crs, gsd)
    fine_per_m = image.shape[0] / size_m
    corners = _corner_means(image)
    to_local = _cubic_map(target, frame)
    for first in range(0, height_px, _ROWS_AT_ONCE):
        rows = target.array[first : first + _ROWS_AT_ONCE]
        v, u = np.mgrid[first + 0.5 : first + len(rows), 0.5:width_px]
        x, y = to_local(u, v)
        _sample(corners, (x + half) * fine_per_m, (half - y) * fine_per_m, out=rows)
    return target


def _corner_means(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of the four pixels about every pixel corner, (H + 1, W + 1, 3); borders repeated."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = padded[:-1, :-1].astype(np.uint16)
    total += padded[:-1, 1:]
    total += padded[1:, :-1]
    total += padded[1:, 1:]
    return ((total + 2) // 4).astype(np.uint8)


def _cubic_map(
    image: GeoImage, frame: LocalFrame
) -> Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """A cubic polynomial in (u, v) that gives local metres.

    Over 20 km its fourth-order rest is under a millimetre, at a thousandth of PROJ's time.
    """
    height_px, width_px = image.size_px
    v, u = (grid.ravel() for grid in np.mgrid[0:height_px:9j, 0:width_px:9j])
    powers = [(i, j) for i in range(4) for j in range(4 - i)]

    def terms(u: FloatArray, v: FloatArray) -> list[FloatArray]:
        across, down = u / width_px - 0.5, v / height_px - 0.5
        return [across**i * down**j for i, j in powers]

    points = np.stack(image.local_from_pixel(frame, u, v), axis=-1)
    factors = np.linalg.lstsq(np.stack(terms(u, v), axis=-1), points, rcond=None)[0]

    def apply(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        x, y = np.zeros_like(u), np.zeros_like(u)
        for term, (factor_x, factor_y) in zip(terms(u, v), factors, strict=True):
            x += factor_x * term
            y += factor_y * term
        return x, y

    return apply


def _sample(
    corners: NDArray[np.uint8], u: FloatArray, v: FloatArray, *, out: NDArray[np.uint8]
) -> None:
    """Bilinear values at pixel coordinates of values at pixel corners; outside (0, 0, 0)."""
    height_px, width_px = corners.shape[0] - 1, corners.shape[1] - 1
    is_inside = (u >= 0.0) & (u <= width_px) & (v >= 0.0) & (v <= height_px)
    at = np.stack([v[is_inside], u[is_inside]])
    for band in range(3):
        values = map_coordinates(
            corners[..., band], at, output=np.float32, order=1, mode="nearest", prefilter=False
        )
        # Black imagery becomes 1, so that 0 means no data.
        out[..., band][is_inside] = np.clip(np.rint(values), 1, 255).astype(np.uint8)


def write_geotiff(path: Path, image: GeoImage) -> None:
    """Write RGB as a tiled, deflated GeoTIFF with overviews; pixel value 0 is no data."""
    height_px, width_px = image.size_px
    profile = {
        "driver": "GTiff",
        "height": height_px,
        "width": width_px,
        "count": 3,
        "dtype": "uint8",
        "crs": image.crs.to_wkt(),
        "transform": image.transform,
        "nodata": 0,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2,
        "photometric": "rgb",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        dataset.write(np.moveaxis(image.array, -1, 0))
    factors = [factor for factor in (2, 4, 8, 16) if min(height_px, width_px) // factor >= 128]
    if factors:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(factors, Resampling.average)
