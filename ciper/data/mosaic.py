"""A data set's aerial images as one georeferenced mosaic.

The published galleries of KITTI and Ford are every query's own chip, turned and shifted by its true
pose. An honest gallery is a regular grid of north-up chips over the same imagery, which `ciper
index` makes of any rasters: here the images get the georeference that it needs. Nothing is written
into the data set's folder, and no pixel is copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.Image import DecompressionBombError
from PIL.Image import open as open_header

from ciper.data.protocol import AerialImage, Protocol
from ciper.errors import DatasetError
from ciper.files import written_whole
from ciper.geodesic import SEMI_MAJOR_M, radii_of_curvature

# An image is left out if one that is kept lies nearer than this share of its side: what is around
# every camera is then still a quarter of a side deep.
THINNING = 0.25
_BANDS = {"L": 1, "RGB": 3, "RGBA": 4}


def mercator_transform(image: AerialImage) -> tuple[float, float, float, float, float, float]:
    """EPSG:3857 from an image's pixels: (a, b, c, d, e, f) as rasterio has them.

    North is up in both. With the radii of curvature N and M of the ellipsoid a true metre is
    a / (N cos lat) Mercator metres to the east and a / (M cos lat) to the north: the spherical
    formulas of EPSG:3857 applied to the ellipsoid's latitude. Pixels of Web Mercator are square.
    """
    meridional_m, prime_vertical_m = radii_of_curvature(image.lat)
    lat, (east, north) = math.radians(image.lat), image.true_metres
    across = east * image.gsd * SEMI_MAJOR_M / (prime_vertical_m * math.cos(lat))
    down = north * image.gsd * SEMI_MAJOR_M / (meridional_m * math.cos(lat))
    x = SEMI_MAJOR_M * math.radians(image.lon)
    y = SEMI_MAJOR_M * math.asinh(math.tan(lat))
    half = image.side_px / 2.0
    return across, 0.0, x - half * across, 0.0, -down, y + half * down


def gallery_images(protocol: Protocol) -> tuple[AerialImage, ...]:
    """The aerial images of a protocol, each once: its gallery's, or those of its queries, thinned.

    Consecutive frames of a drive have almost the same image; few of them cover it.
    """
    if protocol.references:
        return protocol.references
    return thinned(dict.fromkeys(sample.image for sample in protocol.samples))


def thinned(images: Iterable[AerialImage]) -> tuple[AerialImage, ...]:
    """Images in their order without those whose centre lies near a kept one's."""
    kept: list[AerialImage] = []
    cells: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for image in images:
        reach_m = THINNING * image.side_m
        north_m = math.radians(image.lat) * SEMI_MAJOR_M
        east_m = math.radians(image.lon) * SEMI_MAJOR_M * math.cos(math.radians(image.lat))
        place = np.array([east_m, north_m])
        row, col = math.floor(north_m / reach_m), math.floor(east_m / reach_m)
        near = (cells.get((row + i, col + j), ()) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if all(np.hypot(*(place - other)) >= reach_m for others in near for other in others):
            kept.append(image)
            cells.setdefault((row, col), []).append(place)
    return tuple(kept)


@dataclass(frozen=True)
class Mosaicked:
    """Rasters that were written, and what is wrong with the images that were left out."""

    rasters: tuple[Path, ...]
    problems: tuple[str, ...]


def write_rasters(images: Sequence[AerialImage], folder: Path) -> Mosaicked:
    """Writes a small GDAL virtual raster (.vrt) per image that says where it lies.

    A file that is there already and says the same is left alone, so that a gallery that was made
    of it is still known to be.

    Raises:
        DatasetError: not one image can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rasters, problems = [], []
    for image in images:
        try:
            text = _virtual_raster(image)
        except (OSError, UnidentifiedImageError, DecompressionBombError, KeyError) as error:
            problems.append(f"{image.path}: {' '.join(str(error).split())}")
            continue
        name = f"{image.path.parent.name}_{image.path.stem}_{image.lat:.7f}_{image.lon:.7f}.vrt"
        path = folder / name
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            with written_whole(path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        rasters.append(path)
    if not rasters:
        first = problems[0] if problems else "there are none"
        raise DatasetError(
            f"none of {len(images)} aerial images can be read, the first: {first}; expected the "
            "imagery of the data set: see ciper data check"
        )
    return Mosaicked(tuple(rasters), tuple(problems))


def _virtual_raster(image: AerialImage) -> str:
    with open_header(image.path) as header:
        (width, height), mode = header.size, header.mode
    if mode not in _BANDS:
        raise OSError(f"colours of kind {mode}; expected grey, RGB or RGBA")
    # An image of another size than published shows the same square.
    scale = (image.side_px / width, image.side_px / height)
    a, _, c, _, e, f = mercator_transform(image)
    # GDAL's order; .17g brings every float back.
    numbers = ", ".join(f"{v:.17g}" for v in (c, a * scale[0], 0.0, f, 0.0, e * scale[1]))
    colours = ("Gray",) if mode == "L" else ("Red", "Green", "Blue", "Alpha")
    source = escape(str(image.path.resolve()))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp>'
        f'<SimpleSource><SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band, colour in enumerate(colours[: _BANDS[mode]], start=1)
    )
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:3857</SRS>'
        f"<GeoTransform>{numbers}</GeoTransform>{bands}</VRTDataset>\n"
    )
