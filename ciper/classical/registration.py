"""How far imagery of one place moves from one year to the next.

Two orthophotos of different dates never lie exactly on each other. An answer in one of them cannot
be better, against the truth of the other, than this shift: it is the floor of every error across
years. Tall buildings lean differently in both, and the shift is that of most edges, which in cities
are those of roofs. It is measured by phase correlation (Kuglin and Hines, 1975): the cross-power
spectrum of two shifted images, divided by its modulus, is the spectrum of an impulse at their
shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.ndimage
from affine import Affine
from numpy.typing import NDArray

from ciper.classical.correlation import doubled_gradients, vertex
from ciper.errors import ConfigError, DatasetError, RasterError
from ciper.gallery.inspect import inspect_raster
from ciper.gallery.raster import Mosaic, RasterInfo, read_chip
from ciper.geo import LocalFrame, geographic_from_crs, gsd_m

FloatArray = NDArray[np.float64]

# Width of the correlation's peak. Wider ones are steadier and tell less well from chance.
_PEAK_SIGMA_PX = 1.3
# Peaks closer than this to the highest are parts of it.
_PEAK_RADIUS_PX = 5.0
# The second look has its windows on the same ground; a third one changes less than 0.01 px.
_NUM_LOOKS = 2
# Of 270 pairs of different NAIP tiles (0.6 m/px, within 15 m) one had a peak as clear as this.
RELIABLE_QUALITY = 1.6


@dataclass(frozen=True)
class Shift:
    """Where one image's content lies in another.

    Attributes:
        x_m: metres to the image's right: to the east in imagery that has north up.
        y_m: metres up: to the north.
        quality: the correlation's peak against its second highest one; 0 if there is no peak, in
            which case both metres are NaN.
    """

    x_m: float
    y_m: float
    quality: float

    @property
    def length_m(self) -> float:
        """Metres between the two."""
        return math.hypot(self.x_m, self.y_m)

    @property
    def is_reliable(self) -> bool:
        """Whether the peak is clearer than chance makes it."""
        return self.quality >= RELIABLE_QUALITY


@dataclass(frozen=True)
class Floor:
    """Shifts between two dates of many places; statistics are of the reliable ones (else NaN).

    Attributes:
        num_pairs: places that both dates show.
        num_reliable: of them, those whose shift could be measured.
        median_m: of the shifts' lengths.
        p90_m: their 90th percentile.
        max_m: the longest; look at it before it is believed, for straight lines and repeated
            patterns make clear peaks at the wrong place.
        median_x_m: what all places have in common, metres east.
        median_y_m: likewise, metres north.
    """

    num_pairs: int
    num_reliable: int
    median_m: float
    p90_m: float
    max_m: float
    median_x_m: float
    median_y_m: float

    @classmethod
    def of(cls, shifts: Sequence[Shift]) -> Floor:
        """The statistics of some places' shifts."""
        reliable = [shift for shift in shifts if shift.is_reliable]
        if not reliable:
            return cls(len(shifts), 0, *[math.nan] * 5)
        lengths = [shift.length_m for shift in reliable]
        return cls(
            num_pairs=len(shifts),
            num_reliable=len(reliable),
            median_m=float(np.median(lengths)),
            p90_m=float(np.quantile(lengths, 0.9)),
            max_m=max(lengths),
            median_x_m=float(np.median([shift.x_m for shift in reliable])),
            median_y_m=float(np.median([shift.y_m for shift in reliable])),
        )


def shift_between(
    a: NDArray[np.uint8], b: NDArray[np.uint8], gsd: float, *, max_shift_m: float = 15.0
) -> Shift:
    """Where the content of `a` lies in `b`: positive metres are to the right and up.

    What is correlated are the images' edges, as gradients with their angle doubled: an edge counts
    alike whichever of its sides is brighter, so light and leaves matter little. The correlation is
    smoothed to a Gaussian peak, of which a parabola finds the summit.

    Args:
        a: (H, W, 3) or (H, W).
        b: of the same shape.
        gsd: metres per pixel.
        max_shift_m: how far along either axis to look.

    Raises:
        ConfigError: shapes that differ, or images too small for the search.
    """
    radius_px = math.ceil(max_shift_m / gsd)
    if a.shape != b.shape or min(a.shape[:2]) < 2 * radius_px + 2:
        raise ConfigError(
            f"images of shapes {a.shape} and {b.shape} cannot be searched for shifts of up to "
            f"{radius_px} px; expected two of the same shape and more than twice that size"
        )
    edges_a, edges_b = _edges(a), _edges(b)
    right, down, quality = 0.0, 0.0, 0.0
    for _ in range(_NUM_LOOKS):
        whole = round(right), round(down)
        correlation = _phase_correlation(*_overlap(edges_a, edges_b, *whole))
        if not correlation.any():
            return Shift(math.nan, math.nan, 0.0)
        du, dv, quality = _summit(correlation, radius_px)
        right, down = whole[0] + du, whole[1] + dv
    return Shift(right * gsd, -down * gsd, quality)


def _edges(image: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Doubled gradients of the grey levels, (H, W)."""
    grey = image.astype(np.float32)
    grey = grey.mean(axis=2) if image.ndim == 3 else grey
    return doubled_gradients(scipy.ndimage.gaussian_filter(grey, 1.0))


def _overlap(
    a: NDArray[np.complex64], b: NDArray[np.complex64], right: int, down: int
) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """The parts of two images that show the same, if b's content is a's moved right and down."""
    height, width = a.shape
    rows = slice(max(0, -down), height - max(0, down))
    columns = slice(max(0, -right), width - max(0, right))
    moved_rows = slice(max(0, down), height + min(0, down))
    moved_columns = slice(max(0, right), width + min(0, right))
    return a[rows, columns], b[moved_rows, moved_columns]


def _phase_correlation(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> FloatArray:
    """Correlation by shift, index [down, right] modulo the size; all 0 for images without edges."""
    height, width = a.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    spectra = [scipy.fft.fft2((image - image.mean()) * window) for image in (a, b)]
    cross = np.conj(spectra[0]) * spectra[1]
    modulus = np.abs(cross)
    # Frequencies that hardly occur have phases of noise.
    phase = cross / np.maximum(modulus + 1e-3 * modulus.mean(), np.finfo(np.float32).tiny)
    fy, fx = scipy.fft.fftfreq(height)[:, None], scipy.fft.fftfreq(width)
    phase *= np.exp(-2.0 * (math.pi * _PEAK_SIGMA_PX) ** 2 * (fx**2 + fy**2))
    return np.asarray(scipy.fft.ifft2(phase).real)


def _summit(correlation: FloatArray, radius_px: int) -> tuple[float, float, float]:
    """(right, down, quality) of the highest point within the radius along either axis."""
    size = 2 * radius_px + 1
    near = np.roll(correlation, (radius_px, radius_px), (0, 1))[:size, :size]
    row, column = divmod(int(near.argmax()), size)
    rows, columns = np.indices(near.shape)
    is_other = np.hypot(rows - row, columns - column) > _PEAK_RADIUS_PX
    quality = float(near[row, column] / max(near[is_other].max(), np.finfo(np.float64).tiny))
    down, right = row - radius_px, column - radius_px
    above_and_below = correlation[[down - 1, down, down + 1], right]
    beside = correlation[down, [right - 1, right, right + 1]]
    return right + _gaussian_vertex(beside), down + _gaussian_vertex(above_and_below), quality


def _gaussian_vertex(values: FloatArray) -> float:
    """Like `vertex`, of a Gaussian: the parabola is its logarithm."""
    return vertex(*np.log(np.maximum(values / values[1], 0.01)))


# --------------------------------------------------------------------------------------- rasters


def shift_between_rasters(
    first: RasterInfo, second: RasterInfo, *, max_shift_m: float = 15.0
) -> Shift:
    """Where the first raster's content lies in the second, in metres true east and true north.

    Looks at the largest true-north-up square about the first raster's centre that it fills.

    Raises:
        RasterError: one of them has no imagery in part of that square, or cannot be read.
        ConfigError: the square is too small for the search.
    """
    lat, lon = (float(v) for v in geographic_from_crs(first.crs, *_centre(first)))
    frame = LocalFrame(lat=lat, lon=lon)
    outline_lat, outline_lon = first.outline()
    x, y = frame.to_local(lat=outline_lat, lon=outline_lon)
    gsd = gsd_m(Affine(*first.transform), first.crs, size_px=(first.height, first.width))
    # A pixel less on every side: half of the outermost ones is interpolated from nothing.
    size_px = 2 * int(np.maximum(np.abs(x), np.abs(y)).min() / gsd - 1.0)
    squares = []
    for info in (first, second):
        with Mosaic([info]) as mosaic:
            square, is_valid = read_chip(mosaic, lat=lat, lon=lon, size_px=size_px, gsd=gsd)
        if not is_valid.all():
            raise RasterError(
                f"{info.path}: {is_valid.mean():.1%} of the {size_px * gsd:.0f} m square about lat "
                f"{lat:.6f}, lon {lon:.6f} hold imagery; expected all of it: choose rasters "
                "without holes, of the same bounds"
            )
        squares.append(square)
    return shift_between(squares[0], squares[1], gsd, max_shift_m=max_shift_m)


def registration_floor(
    firsts: Iterable[str | Path], seconds: Iterable[str | Path], *, max_shift_m: float = 15.0
) -> Floor:
    """The floor of errors between two dates, from pairs of files that have the same bounds.

    Files without a counterpart are left out.

    Raises:
        DatasetError: no file has a counterpart, or two of one date have the same bounds.
        RasterError: a file cannot be read or has holes.
    """
    pairs = _pairs_of_same_bounds(list(firsts), list(seconds))
    return Floor.of([shift_between_rasters(*pair, max_shift_m=max_shift_m) for pair in pairs])


def _centre(info: RasterInfo) -> tuple[float, float]:
    a, b, c, d, e, f = info.transform
    u, v = info.width / 2, info.height / 2
    return a * u + b * v + c, d * u + e * v + f


def _pairs_of_same_bounds(
    firsts: Sequence[str | Path], seconds: Sequence[str | Path]
) -> list[tuple[RasterInfo, RasterInfo]]:
    ours, theirs = _by_bounds(firsts), _by_bounds(seconds)
    pairs = [(info, theirs[bounds]) for bounds, info in ours.items() if bounds in theirs]
    if not pairs:
        raise DatasetError(
            f"none of {len(ours)} rasters has the bounds and CRS of one of the {len(theirs)} "
            "others; expected files of the same places at two dates"
        )
    return pairs


def _by_bounds(paths: Sequence[str | Path]) -> dict[tuple[str, ...], RasterInfo]:
    found: dict[tuple[str, ...], RasterInfo] = {}
    for info in map(inspect_raster, paths):
        a, b, c, d, e, f = info.transform
        far = (a * info.width + b * info.height + c, d * info.width + e * info.height + f)
        # A hundredth of a pixel: writers round.
        unit = max(abs(a), abs(b)) / 100.0
        bounds = (info.crs, *(f"{round(value / unit)}" for value in (c, f, *far)))
        if bounds in found:
            raise DatasetError(
                f"{info.path} has the same bounds as {found[bounds].path}; expected one file of a "
                "place for each date: leave one out"
            )
        found[bounds] = info
    return found
