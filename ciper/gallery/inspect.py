"""Finding rasters and checking them once: what must hold before hours of reading begin."""

from __future__ import annotations

import dataclasses
import glob
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from ciper.errors import NoCrsError, RasterError
from ciper.gallery.raster import RasterInfo, open_dataset, read_planes

RASTER_SUFFIXES = frozenset({".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".img"})

# Rasters deeper than 8 bits: these percentiles of their values are shown as 0 and 255.
_STRETCH_PERCENTILES = (0.5, 99.5)


def expand_rasters(items: Iterable[str | Path]) -> list[Path]:
    """Raster files named by paths, glob patterns and folders, in order and without repetition.

    Raises:
        RasterError: a path does not exist, or a pattern or a folder holds no raster.
    """
    paths: dict[Path, None] = {}
    for item in items:
        paths.update(dict.fromkeys(path.resolve() for path in _expand(item)))
    if not paths:
        raise RasterError("no raster was given; expected paths, patterns or folders of rasters.")
    return list(paths)


def _expand(item: str | Path) -> list[Path]:
    path = Path(item)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in RASTER_SUFFIXES)
        if not found:
            suffixes = " ".join(sorted(RASTER_SUFFIXES))
            raise RasterError(f"{path}: the folder holds no raster; expected files {suffixes}.")
        return found
    if path.exists():
        return [path]
    # Path.glob takes no absolute patterns.
    names = sorted(glob.glob(str(item), recursive=True))  # noqa: PTH207
    found = [Path(name) for name in names if Path(name).is_file()]
    if not found:
        kind = "pattern matches no file" if glob.has_magic(str(item)) else "file does not exist"
        raise RasterError(
            f"{item}: the {kind}; expected the path of a raster, a pattern or a folder."
        )
    return found


def inspect_raster(path: str | Path) -> RasterInfo:
    """Open a raster once and check everything that reading it later relies on.

    Raises:
        NoCrsError: the file does not say where on Earth it lies.
        RasterError: it cannot be read, is cut short or has bands that are no picture.
    """
    path = Path(path).resolve()
    if path.is_file() and path.stat().st_size == 0:
        raise RasterError(f"{path}: the file is empty (0 bytes); expected a georeferenced image.")
    with open_dataset(path) as dataset:
        _check_georeference(dataset, path)
        bands = _rgb_bands(dataset, path)
        stat = path.stat()
        info = RasterInfo(
            path=str(path),
            size_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            height=dataset.height,
            width=dataset.width,
            crs=dataset.crs.to_wkt(),
            transform=tuple(dataset.transform)[:6],
            bands=bands,
            is_palette=_is_palette(dataset),
        )
        info.outline()
        # The last pixel: a copy that was cut short opens well and fails here, not hours later.
        read_planes(dataset, info, Window(info.width - 1, info.height - 1, 1, 1), (1, 1))
        if dataset.dtypes[bands[0] - 1] == "uint8":
            return info
        return dataclasses.replace(info, stretch=_stretch(dataset, info))


def _check_georeference(dataset: Any, path: Path) -> None:
    if dataset.crs is None:
        raise NoCrsError(
            f"{path}: has no coordinate reference system; expected a georeferenced raster. "
            "Assign one with `gdal_edit.py -a_srs EPSG:... FILE` or keep its world file beside it."
        )
    crs = pyproj.CRS.from_wkt(dataset.crs.to_wkt())
    if not (crs.is_geographic or crs.is_projected):
        raise NoCrsError(
            f"{path}: its CRS ({crs.name!r}) has no place on Earth; expected a geographic or "
            "projected CRS. Assign the right one with `gdal_edit.py -a_srs`."
        )
    transform = dataset.transform
    if transform.is_identity or not np.isfinite(transform[:6]).all() or transform.determinant == 0:
        points = dataset.gcps[0]
        held = f"{len(points)} ground control points but no" if points else "no usable"
        raise RasterError(
            f"{path}: has {held} geotransform; expected one that maps pixels to the CRS. Make it "
            "one with `gdalwarp`."
        )


def _rgb_bands(dataset: Any, path: Path) -> tuple[int, ...]:
    """One-based indexes of the grey band or of red, green and blue."""
    meaning = dataset.colorinterp
    dtypes = {dataset.dtypes[i] for i in range(dataset.count)}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise RasterError(f"{path}: its pixels are complex numbers; expected 8- or 16-bit colours.")
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(color in meaning for color in colors):
        return tuple(meaning.index(color) + 1 for color in colors)
    num_colors = dataset.count - (ColorInterp.alpha in meaning)
    if num_colors == 1 and meaning[0] is not ColorInterp.alpha:
        return (1,)
    if dataset.count in (3, 4) and num_colors >= 3:
        return (1, 2, 3)
    raise RasterError(
        f"{path}: has {dataset.count} bands ({', '.join(m.name for m in meaning)}); expected 1 "
        "(grey or palette), 3 or 4, or bands marked as red, green and blue. Choose three with "
        "`gdal_translate -b R -b G -b B`."
    )


def _is_palette(dataset: Any) -> bool:
    return bool(dataset.count == 1 and dataset.colorinterp[0] is ColorInterp.palette)


def _stretch(dataset: Any, info: RasterInfo) -> tuple[float, float]:
    """Values of a raster deeper than 8 bits that are shown as 0 and 255.

    Percentiles over 8 x 8 small windows spread evenly: a fixed, small amount of reading whatever
    the raster's size. One pair for all bands keeps the colours' balance.
    """
    size = 128
    tops = np.linspace(0, max(info.height - size, 0), 8).astype(int)
    lefts = np.linspace(0, max(info.width - size, 0), 8).astype(int)
    samples = []
    for top, left in itertools.product(sorted(set(tops)), sorted(set(lefts))):
        height, width = min(size, info.height), min(size, info.width)
        planes, is_valid = read_planes(
            dataset, info, Window(left, top, width, height), (height, width)
        )
        samples.append(planes[:, is_valid].ravel())
    values = np.concatenate(samples)
    if values.size < 1000:  # mostly nodata: look at all of it, thinned
        shape = (min(info.height, 2048), min(info.width, 2048))
        planes, is_valid = read_planes(dataset, info, Window(0, 0, info.width, info.height), shape)
        values = planes[:, is_valid].ravel()
    if values.size == 0:
        raise RasterError(f"{info.path}: holds no valid pixel; expected imagery, not only nodata.")
    low, high = (float(q) for q in np.percentile(values, _STRETCH_PERCENTILES))
    return low, high if high > low else low + 1.0
