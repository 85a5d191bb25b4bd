"""Painting the ground: polygons in painter's order, and small stamped rectangles on top."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from ciper.city.parts import ByteArray, FloatArray, IntArray, Surface


class Ground:
    """The raster of `Surface` ids of a city; row 0 = north.

    Args:
        size_m: edge of the square [0, size_m]^2.
        gsd: metres per pixel.
        ids: an existing raster to go on painting (it is changed in place).
    """

    def __init__(self, size_m: float, gsd: float, ids: ByteArray | None = None) -> None:
        count = round(size_m / gsd)
        self.size_m, self.gsd = size_m, gsd
        self.ids: ByteArray = np.zeros((count, count), np.uint8) if ids is None else ids

    def burn(self, shapes: Sequence[tuple[shapely.Geometry, int]]) -> None:
        """Paint polygons, later ones over earlier ones."""
        if not shapes:
            return
        transform = Affine(self.gsd, 0.0, 0.0, 0.0, -self.gsd, self.size_m)
        rasterize(shapes, out=self.ids, transform=transform)

    def stamp(
        self, rectangles: FloatArray, value: int, only_on: Collection[int] | None = None
    ) -> None:
        """Paint (K, 5) rectangles: x, y of the centre, heading_deg, length_m along it, width_m.

        Only pixels that hold one of the `only_on` surfaces change.
        """
        # Samples closer than a pixel leave no holes at any heading.
        step = 0.7 * self.gsd
        count = np.maximum(np.ceil(rectangles[:, 3:] / step), 1).astype(np.int64)
        total = count.prod(axis=1)
        which = np.repeat(np.arange(len(total)), total)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(total) - total, total)
        index = np.stack([nth // count[which, 1], nth % count[which, 1]], 1)
        local = ((index + 0.5) / count[which] - 0.5) * rectangles[which, 3:]
        heading = np.deg2rad(rectangles[which, 2])
        sin, cos = np.sin(heading), np.cos(heading)
        x = rectangles[which, 0] + sin * local[:, 0] + cos * local[:, 1]
        y = rectangles[which, 1] + cos * local[:, 0] - sin * local[:, 1]
        row, column, is_inside = self._pixels(x, y)
        row, column = row[is_inside], column[is_inside]
        if only_on is not None:
            is_allowed = np.isin(self.ids[row, column], list(only_on))
            row, column = row[is_allowed], column[is_allowed]
        self.ids[row, column] = value

    def at(self, x: FloatArray, y: FloatArray) -> ByteArray:
        """Surface ids at positions in metres; beyond the border, those of the border."""
        row, column, _ = self._pixels(x, y)
        last = len(self.ids) - 1
        found: ByteArray = self.ids[np.clip(row, 0, last), np.clip(column, 0, last)]
        return found

    def _pixels(self, x: FloatArray, y: FloatArray) -> tuple[IntArray, IntArray, np.ndarray]:
        row = np.floor((self.size_m - y) / self.gsd).astype(np.int64)
        column = np.floor(x / self.gsd).astype(np.int64)
        last = len(self.ids)
        is_inside = (row >= 0) & (row < last) & (column >= 0) & (column < last)
        return row, column, is_inside


def rectangles(
    x: FloatArray, y: FloatArray, heading_deg: FloatArray, length_m: float, width_m: float
) -> FloatArray:
    """Columns for `Ground.stamp`: equal rectangles at many places, (K, 5)."""
    return np.column_stack([x, y, heading_deg, np.full(len(x), length_m), np.full(len(x), width_m)])


DRIVEN = (Surface.ASPHALT, Surface.MARKING, Surface.YELLOW_MARKING, Surface.PARKING)
