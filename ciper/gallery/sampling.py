"""Resampling of a raster's window onto a canvas: the arithmetic of pixels, without any file.

A canvas coordinate is mapped to raster pixels by a grid of control points (bilinear between them).
Where a canvas pixel spans several raster pixels the raster's window is read reduced by a whole
factor (pixels average exactly, aligned to the raster's corner) and what remains, less than twofold,
is averaged over 2 x 2 samples within the canvas pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# A raster this much finer than the canvas, after reduction, is sampled 2 x 2 per canvas pixel.
_SUPERSAMPLE_ABOVE = 1.2

# Ratios just below a whole number count as that number: UTM's scale factor and the change of
# scale across a city must not switch the reduction between neighbours.
_REDUCTION_SLACK = 0.1

# Samples may fall this far outside of a raster: abutting tiles must not leave a seam between them.
_EDGE_TOLERANCE_PX = 1e-3


@dataclass(frozen=True)
class SourceWindow:
    """The part of a raster that lies below a canvas and how to read it.

    `left, top, width, height` are raster pixels, `reduce_u, reduce_v` the whole factors of the
    reduced reading; `control_u, control_v` map canvas coordinates k * step_px to reduced pixels of
    the window; `extent_u, extent_v` is where the raster ends, in the same reduced pixels.
    """

    left: int
    top: int
    width: int
    height: int
    reduce_u: int
    reduce_v: int
    supersample: int
    control_u: FloatArray
    control_v: FloatArray
    extent_u: tuple[float, float]
    extent_v: tuple[float, float]
    step_px: int
    canvas_slices: tuple[slice, slice]

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the reduced reading."""
        return self.height // self.reduce_v, self.width // self.reduce_u

    @classmethod
    def plan(
        cls, control_u: FloatArray, control_v: FloatArray, *, size: tuple[int, int], step_px: int
    ) -> SourceWindow | None:
        """The window of a raster of (height, width) `size` below the control points.

        `control_u, control_v` are raster pixels at the canvas coordinates k * step_px, NaN where
        there are none. None: the raster does not lie below the canvas.
        """
        slices = _touched(control_u, control_v, size)
        if slices is None:
            return None
        cells_u = control_u[
            slices[0].start : slices[0].stop + 1, slices[1].start : slices[1].stop + 1
        ]
        cells_v = control_v[
            slices[0].start : slices[0].stop + 1, slices[1].start : slices[1].stop + 1
        ]
        reduce_u, ratio_u = _reduction(cells_u, step_px, size[1])
        reduce_v, ratio_v = _reduction(cells_v, step_px, size[0])
        left, right = _span(cells_u, size[1], reduce_u)
        top, bottom = _span(cells_v, size[0], reduce_v)
        return cls(
            left=left,
            top=top,
            width=right - left,
            height=bottom - top,
            reduce_u=reduce_u,
            reduce_v=reduce_v,
            supersample=2 if max(ratio_u, ratio_v) > _SUPERSAMPLE_ABOVE else 1,
            control_u=(control_u - left) / reduce_u,
            control_v=(control_v - top) / reduce_v,
            extent_u=(-left / reduce_u, (size[1] - left) / reduce_u),
            extent_v=(-top / reduce_v, (size[0] - top) / reduce_v),
            step_px=step_px,
            canvas_slices=(
                slice(slices[0].start * step_px, slices[0].stop * step_px),
                slice(slices[1].start * step_px, slices[1].stop * step_px),
            ),
        )


def _touched(u: FloatArray, v: FloatArray, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of control cells whose corners' bounding box meets the raster."""

    def corners(a: FloatArray) -> FloatArray:
        return np.stack([a[:-1, :-1], a[:-1, 1:], a[1:, :-1], a[1:, 1:]])

    cu, cv = corners(u), corners(v)
    # fmin/fmax look past NaN corners; a cell of NaN only compares false.
    is_touched = (np.fmin.reduce(cu) < size[1]) & (np.fmax.reduce(cu) > 0)
    is_touched &= (np.fmin.reduce(cv) < size[0]) & (np.fmax.reduce(cv) > 0)
    rows, cols = np.flatnonzero(is_touched.any(axis=1)), np.flatnonzero(is_touched.any(axis=0))
    if rows.size == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _reduction(control: FloatArray, step_px: int, size: int) -> tuple[int, float]:
    """Whole factor by which to reduce one raster axis, and what ratio remains after it."""
    down = np.diff(control, axis=0)[:, :-1]
    across = np.diff(control, axis=1)[:-1, :]
    steps = np.hypot(down, across)
    steps = steps[np.isfinite(steps)]
    ratio = float(np.median(steps)) / step_px if steps.size else 1.0
    factor = min(max(1, math.floor(ratio + _REDUCTION_SLACK)), size)
    return factor, ratio / factor


def _span(control: FloatArray, size: int, factor: int) -> tuple[int, int]:
    """First and last raster pixel needed, clipped to the raster, in whole reduced pixels.

    A remainder of less than one reduced pixel at the raster's far edge is not read; samples that
    fall there take the last reduced pixel.
    """
    margin = 2 * factor
    num_reduced = size // factor
    first = (math.floor(float(np.nanmin(control))) - margin) // factor
    last = -(-(math.ceil(float(np.nanmax(control))) + margin) // factor)
    first = min(max(first, 0), num_reduced - 1)
    return first * factor, min(max(last, first + 1), num_reduced) * factor


def sample_window(
    planes: NDArray[np.uint8],
    is_source_valid: NDArray[np.bool_],
    source: SourceWindow,
    rgb: NDArray[np.uint8],
    is_valid: NDArray[np.bool_],
) -> None:
    """Paint a canvas's pixels that are not valid yet from a window read as `source` says.

    A pixel is valid if the raster pixel that holds its centre is; colours are bilinear over valid
    neighbours only, so that nodata does not bleed into them.

    Args:
        planes: (1 or 3, h, w) colours of the window.
        is_source_valid: (h, w) where the window holds imagery.
        source: the window and its map.
        rgb: (H, W, 3) the canvas, changed in place.
        is_valid: (H, W) where it holds imagery, changed in place.
    """
    rows, cols = source.canvas_slices
    area = (rows.start, min(rows.stop, rgb.shape[0]), cols.start, min(cols.stop, rgb.shape[1]))
    _paint(
        planes,
        is_source_valid,
        (source.control_u, source.control_v, source.step_px, source.supersample),
        (*source.extent_u, *source.extent_v, _EDGE_TOLERANCE_PX),
        area,
        rgb,
        is_valid,
    )


@njit(nogil=True, cache=True)
def _bilinear(
    planes: NDArray[np.uint8], is_source_valid: NDArray[np.bool_], u: float, v: float
) -> tuple[float, float, float, float]:
    """Weighted red, green, blue and the weight of the valid ones among four neighbours."""
    height, width = is_source_valid.shape
    green, blue = min(1, planes.shape[0] - 1), min(2, planes.shape[0] - 1)
    x, y = u - 0.5, v - 0.5
    j, i = int(np.floor(x)), int(np.floor(y))
    a, b = x - j, y - i
    p, q = min(max(j, 0), width - 1), min(max(j + 1, 0), width - 1)
    m, n = min(max(i, 0), height - 1), min(max(i + 1, 0), height - 1)
    w00 = (1.0 - a) * (1.0 - b) * is_source_valid[m, p]
    w01 = a * (1.0 - b) * is_source_valid[m, q]
    w10 = (1.0 - a) * b * is_source_valid[n, p]
    w11 = a * b * is_source_valid[n, q]
    return (
        w00 * planes[0, m, p]
        + w01 * planes[0, m, q]
        + w10 * planes[0, n, p]
        + w11 * planes[0, n, q],
        w00 * planes[green, m, p]
        + w01 * planes[green, m, q]
        + w10 * planes[green, n, p]
        + w11 * planes[green, n, q],
        w00 * planes[blue, m, p]
        + w01 * planes[blue, m, q]
        + w10 * planes[blue, n, p]
        + w11 * planes[blue, n, q],
        w00 + w01 + w10 + w11,
    )


@njit(nogil=True, cache=True)
def _row_of_cell(control: FloatArray, row: float, j: int, step: int) -> tuple[float, float, float]:
    """Along a canvas row in control cell j: the map at its left end and its two derivatives."""
    i = int(row / step)
    b = row / step - i
    left = control[i, j] * (1.0 - b) + control[i + 1, j] * b
    right = control[i, j + 1] * (1.0 - b) + control[i + 1, j + 1] * b
    down = control[i + 1, j] - control[i, j] + control[i + 1, j + 1] - control[i, j + 1]
    return left, (right - left) / step, 0.5 * down / step


@njit(nogil=True, cache=True)
def _paint(
    planes: NDArray[np.uint8],
    is_source_valid: NDArray[np.bool_],
    mapping: tuple[FloatArray, FloatArray, int, int],
    extent: tuple[float, float, float, float, float],
    area: tuple[int, int, int, int],
    rgb: NDArray[np.uint8],
    is_valid: NDArray[np.bool_],
) -> None:
    control_u, control_v, step, num_samples = mapping
    u_min, u_max, v_min, v_max, tolerance = extent
    row_start, row_stop, col_start, col_stop = area
    height, width = is_source_valid.shape
    for row in range(row_start, row_stop):
        for cell in range(col_start // step, (col_stop + step - 1) // step):
            left_u, across_u, down_u = _row_of_cell(control_u, row + 0.5, cell, step)
            left_v, across_v, down_v = _row_of_cell(control_v, row + 0.5, cell, step)
            for col in range(cell * step, min((cell + 1) * step, col_stop)):
                offset = col + 0.5 - cell * step
                u, v = left_u + across_u * offset, left_v + across_v * offset
                # Written so that NaN fails.
                is_inside = u_min - tolerance <= u <= u_max + tolerance
                is_inside &= v_min - tolerance <= v <= v_max + tolerance
                if is_valid[row, col] or not is_inside:
                    continue
                i = min(max(int(np.floor(v)), 0), height - 1)
                j = min(max(int(np.floor(u)), 0), width - 1)
                if not is_source_valid[i, j]:
                    continue
                red = green = blue = weight = 0.0
                for k in range(num_samples):
                    r = (k + 0.5) / num_samples - 0.5
                    for m in range(num_samples):
                        c = (m + 0.5) / num_samples - 0.5
                        su = u + across_u * c + down_u * r
                        sv = v + across_v * c + down_v * r
                        sample = _bilinear(planes, is_source_valid, su, sv)
                        red, green, blue = red + sample[0], green + sample[1], blue + sample[2]
                        weight += sample[3]
                if weight > 0.0:
                    rgb[row, col, 0] = np.uint8(red / weight + 0.5)
                    rgb[row, col, 1] = np.uint8(green / weight + 0.5)
                    rgb[row, col, 2] = np.uint8(blue / weight + 0.5)
                    is_valid[row, col] = True
