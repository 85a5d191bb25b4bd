"""Strips of pixels into one cloud-optimised GeoTIFF, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ciper.errors import NoImageryError, OutputError
from ciper.files import written_whole
from ciper.imagery.place import Frame

_JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows of a result from `top_px` on, over its full width.

    Attributes:
        top_px: the first row.
        rgb: (h, W, 3) uint8.
        is_valid: (h, W), where there is imagery.
    """

    top_px: int
    rgb: NDArray[np.uint8]
    is_valid: NDArray[np.bool_]

    @classmethod
    def empty(cls, top_px: int, size_px: tuple[int, int]) -> Self:
        """Black, without imagery."""
        return cls(top_px, np.zeros((*size_px, 3), np.uint8), np.zeros(size_px, np.bool_))


def check_out(out: Path) -> None:
    """Find out before anything is fetched whether the result can be written.

    Raises:
        OutputError: it has another suffix, is a folder, or its folder cannot be written.
    """
    if out.suffix.lower() not in {".tif", ".tiff"}:
        raise OutputError(f"--out {out}: expected a name that ends in .tif")
    if out.is_dir():
        raise OutputError(f"--out {out}: is a folder; expected a file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise OutputError(
            f"cannot write beside {out}: {error.strerror}; choose another place"
        ) from error


def write_cog(
    out: Path,
    frame: Frame,
    strips: Iterable[Strip],
    tags: Mapping[str, str],
    *,
    is_lossy: bool,
    most_missing: float,
) -> float:
    """Write RGB with overviews, and a mask where something is missing.

    Args:
        out: the file; an older one is replaced.
        frame: its pixels.
        strips: from the top to the bottom.
        tags: what else the file says.
        is_lossy: whether colours may change a little (JPEG) or not at all (deflate).
        most_missing: share of missing pixels from which on nothing is written.

    Returns:
        The share of missing pixels.

    Raises:
        NoImageryError: more is missing.
        OutputError: the disk is full or not writable.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f".{out.name}.tmp-", dir=out.parent) as folder,
            written_whole(out) as unfinished,
        ):
            plain = Path(folder) / "plain.tif"
            missing = 1.0 - _write_plain(plain, frame, strips, tags) / np.prod(frame.size_px)
            if missing > most_missing or missing == 1.0:
                raise NoImageryError(
                    f"{missing:.0%} of the place has no imagery; expected most of it. Check bbox "
                    "and source, or take what there is with --allow-missing"
                )
            if missing == 0.0:
                plain.with_name(f"{plain.name}.msk").unlink()
            cog = Path(folder) / "cog.tif"
            # Whatever the environment says, the mask beside the pixels has to be seen.
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=False):
                rasterio.shutil.copy(plain, cog, driver="COG", **_cog_options(is_lossy))
            cog.replace(unfinished)
    except (RasterioError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OutputError(
            f"cannot write {out}: {reason}; free some space or go elsewhere"
        ) from error
    return float(missing)


def _write_plain(path: Path, frame: Frame, strips: Iterable[Strip], tags: Mapping[str, str]) -> int:
    """All pixels uncompressed, the mask in a file beside them; the number of valid ones."""
    height, width = frame.size_px
    num_valid = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", count=3, height=height, width=width,
            crs=frame.crs, transform=frame.transform, interleave="pixel", photometric="RGB",
            bigtiff="IF_SAFER",
        ) as dataset,
    ):  # fmt: skip
        dataset.update_tags(**tags)
        for strip in strips:
            window = Window(0, strip.top_px, width, strip.rgb.shape[0])
            dataset.write(np.moveaxis(strip.rgb, -1, 0), window=window)
            dataset.write_mask(strip.is_valid.astype(np.uint8) * 255, window=window)
            num_valid += int(strip.is_valid.sum())
    return num_valid


def _cog_options(is_lossy: bool) -> dict[str, str]:
    options = {"BIGTIFF": "IF_SAFER", "OVERVIEW_RESAMPLING": "AVERAGE"}
    if is_lossy:
        return {**options, "COMPRESS": "JPEG", "QUALITY": str(_JPEG_QUALITY)}
    return {**options, "COMPRESS": "DEFLATE", "PREDICTOR": "YES"}
