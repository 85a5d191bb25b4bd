"""Generated rasters and a small deterministic encoder for the tests of galleries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from ciper.gallery.shards import AerialCodes


def write_raster(
    path: Path, array: NDArray[Any], *, crs: Any, transform: Affine, **profile: Any
) -> Path:
    """Write (C, H, W) as a GeoTIFF; `mask` (H, W) and `colormap` go beside it."""
    mask, colormap = profile.pop("mask", None), profile.pop("colormap", None)
    colorinterp = profile.pop("colorinterp", None)
    shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2]}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            dtype=array.dtype,
            crs=crs,
            transform=transform,
            **shape,
            **profile,
        ) as dataset,
    ):
        if colorinterp is not None:
            dataset.colorinterp = colorinterp
        dataset.write(array)
        if mask is not None:
            dataset.write_mask(mask)
        if colormap is not None:
            dataset.write_colormap(1, colormap)
    return path


def write_city(path: Path, *, east: float, north: float, size_px: int = 400, seed: int = 0) -> Path:
    """A random but smooth raster of 0.5 m pixels in UTM zone 33N, its north-west corner given."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (3, size_px // 8 + 1, size_px // 8 + 1), dtype=np.uint8)
    array = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size_px, :size_px]
    transform = Affine(0.5, 0, east, 0, -0.5, north)
    return write_raster(path, array, crs="EPSG:32633", transform=transform)


def geographic(crs: Any, x: float, y: float) -> tuple[float, float]:
    """Latitude and longitude of one position."""
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return float(lat), float(lon)


class FakeEncoder:
    """Codes that are plain averages of the chip's pixels: deterministic and checkable."""

    model_name = "fake"
    chip_px = 256
    gsd = 0.5

    def __init__(self, model_hash: str = "f" * 64) -> None:
        self.model_hash = model_hash
        self.num_chips = 0

    def encode(self, chips: NDArray[np.uint8], valid: NDArray[np.bool_]) -> AerialCodes:
        self.num_chips += len(chips)
        masked = chips.astype(np.float32) * valid[..., None] / 255.0
        small = masked.reshape(len(chips), 64, 4, 64, 4, 3).mean(axis=(2, 4))
        fine = np.moveaxis(small, -1, 1).astype(np.float16)
        center = masked[:, 64:192, 64:192].reshape(len(chips), 4, 32, 4, 32, 3).mean(axis=(2, 4))
        flat = center.reshape(len(chips), 16, 3) + 1e-3
        descriptors = (flat / np.linalg.norm(flat, axis=-1, keepdims=True)).astype(np.float16)
        return AerialCodes(descriptors, np.ascontiguousarray(fine[:, :, ::2, ::2]), fine)


def real_data() -> Path:
    """The folder of real files; the test is skipped where it is not named."""
    folder = os.environ.get("CIPER_REAL_DATA")
    if not folder:
        pytest.skip("CIPER_REAL_DATA is not set")
    return Path(folder)
