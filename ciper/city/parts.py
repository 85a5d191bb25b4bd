"""What a city is made of: plain frozen arrays in one local frame.

Frame: local metres, x true east, y true north, origin at the south-west corner of the square
[0, size_m]^2 that the city fills. Headings are degrees clockwise from true north.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Counts changes of what cities contain or look like: rendered caches of another count are stale.
CITY_VERSION = 1


class Surface(IntEnum):
    """Material of one pixel of the ground."""

    GRASS = 0
    ASPHALT = 1
    SIDEWALK = 2
    MARKING = 3  # white paint
    YARD = 4  # paved or gravel
    SOIL = 5
    PLAZA = 6  # pavers
    WATER = 7
    PARKING = 8  # asphalt, lighter
    CURB = 9
    DRY_GRASS = 10
    PATH = 11  # a park's path
    YELLOW_MARKING = 12
    RAIL = 13


class RoofKind(IntEnum):
    """Shape of a roof; gable and hip stand only on footprints of four near-right corners."""

    FLAT = 0
    GABLE = 1
    HIP = 2


class _Columns:
    """Arrays of equal length, one entry per object."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def take(self, index: NDArray[Any]) -> Self:
        """Select objects by integer index or boolean mask, in that order."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        columns: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            column = getattr(self, item.name)
            is_tuple = isinstance(column, tuple)
            columns[item.name] = tuple(column[i] for i in index) if is_tuple else column[index]
        return type(self)(**columns)

    def join(self, other: Self) -> Self:
        """Append the objects of `other`."""
        columns: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            a, b = getattr(self, item.name), getattr(other, item.name)
            columns[item.name] = a + b if isinstance(a, tuple) else np.concatenate([a, b])
        return type(self)(**columns)


@dataclass(frozen=True, eq=False)
class Buildings(_Columns):
    """N buildings; each wing of a larger one is a building of its own.

    Attributes:
        footprints: N simple polygons (V, 2) in metres, counter-clockwise, not closed.
        eave_height_m: (N,) height of the walls' top above ground.
        roof_kind: (N,) a `RoofKind`.
        roof_rise_m: (N,) height of the ridge above the eave, 0 for flat roofs.
        roof_color: (N, 3) albedo.
        facade_color: (N, 3) albedo.
        facade_style: (N,) in 0..5, the pattern of windows.
        style_seed: (N,) seed of everything else that differs between facades.
    """

    footprints: tuple[FloatArray, ...]
    eave_height_m: FloatArray
    roof_kind: IntArray
    roof_rise_m: FloatArray
    roof_color: ByteArray
    facade_color: ByteArray
    facade_style: IntArray
    style_seed: NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Trees(_Columns):
    """N trees and shrubs; all lengths and positions in metres, shape (N,).

    A hedge is a row of shrubs whose trunk is a few centimetres high.
    """

    x: FloatArray
    y: FloatArray
    crown_radius_m: FloatArray
    height_m: FloatArray
    trunk_height_m: FloatArray
    is_evergreen: BoolArray
    color_seed: NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Cars(_Columns):
    """N cars, parked or driving; position of the centre and size in metres, shape (N,)."""

    x: FloatArray
    y: FloatArray
    heading_deg: FloatArray
    length_m: FloatArray
    width_m: FloatArray
    height_m: FloatArray
    color: ByteArray


@dataclass(frozen=True, eq=False)
class City:
    """A square city [0, size_m]^2 at one date.

    Attributes:
        seed: what it was made from.
        size_m: edge of the square.
        surface: (H, W) `Surface` ids, row 0 = north.
        surface_gsd: metres per pixel of `surface`.
        camera_sites: (M, 3) x, y in metres and heading_deg of the street (or path) there, at
            points where a camera may stand: clear of buildings, cars and trunks.
        car_slots: (S, 4) x, y, heading_deg and greatest length_m of every place a car may take,
            taken or free at this date.
    """

    seed: int
    size_m: float
    surface: ByteArray
    surface_gsd: float
    buildings: Buildings
    trees: Trees
    cars: Cars
    camera_sites: FloatArray
    car_slots: FloatArray = field(default_factory=lambda: np.empty((0, 4)))
