"""A city prepared for rendering: solids bounded by walls and planes, a grid over them, heights.

A *solid* is what stands on one footprint: a building, a car's body or a car's cabin. Its walls are
segments in the plan; its top is the lowest of up to four planes z = a + b x + c y: flat,
gable and hip roofs alike. Frame: local metres, x east, y north.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ciper.city.parts import Buildings, Cars, City, RoofKind, Trees
from ciper.city.texture import build_kernel, geometry_kernel
from ciper.errors import ConfigError

GRID_CELL_M = 4.0
HEIGHT_GSD = 0.5
MAX_PLANES = 4
BUILDING, CAR_BODY, CAR_CABIN = 0, 1, 2
_NO_CANOPY_M = 1e4


class SceneArrays(NamedTuple):
    """The arrays that the kernels read: S segments, M solids, T trees, G x G cells."""

    size_m: float
    max_height_m: float
    seed: int
    segments: NDArray[np.float64]  # (S, 4) x0, y0, x1, y1, the solid on the left
    segment_solid: NDArray[np.int32]  # (S,)
    solid_start: NDArray[np.int32]  # (M + 1,) first segment of each solid
    planes: NDArray[np.float64]  # (M, 4, 3) a, b, c
    num_planes: NDArray[np.int32]  # (M,)
    solid_top_m: NDArray[np.float64]  # (M,)
    solid_eave_m: NDArray[np.float64]  # (M,)
    solid_kind: NDArray[np.int32]  # (M,)
    solid_style: NDArray[np.int32]  # (M,)
    solid_seed: NDArray[np.int64]  # (M,)
    wall_rgb: NDArray[np.float64]  # (M, 3) linear
    roof_rgb: NDArray[np.float64]  # (M, 3) linear
    trees: NDArray[np.float64]  # (T, 5) x, y, crown radius, top, crown's bottom
    tree_is_evergreen: NDArray[np.bool_]  # (T,)
    tree_seed: NDArray[np.int64]  # (T,)
    num_cells: int  # G
    segment_cells: NDArray[np.int32]  # (G * G + 1,) start in segment_ids
    segment_ids: NDArray[np.int32]
    tree_cells: NDArray[np.int32]  # (G * G + 1,) start in tree_ids
    tree_ids: NDArray[np.int32]
    surface: NDArray[np.uint8]  # (H, W), row 0 = north
    surface_gsd: float
    heights: NDArray[np.float32]  # (H, W, 3) solid's top, canopy's bottom, canopy's top


@dataclass(frozen=True, eq=False)
class Scene:
    """A city ready to be rendered; immutable, may be shared by threads."""

    city: City
    arrays: SceneArrays

    @classmethod
    def from_city(cls, city: City) -> Scene:
        """Build walls, roof planes, the grid and the height raster of a city.

        Raises:
            ConfigError: a sloped roof stands on other than four corners.
        """
        return cls(city=city, arrays=_scene_arrays(city))


@dataclass(frozen=True, eq=False)
class _Solids:
    rings: list[NDArray[np.float64]]
    planes: NDArray[np.float64]
    num_planes: NDArray[np.int32]
    top_m: NDArray[np.float64]
    eave_m: NDArray[np.float64]
    kind: NDArray[np.int32]
    style: NDArray[np.int32]
    seed: NDArray[np.int64]
    wall_rgb: NDArray[np.float64]
    roof_rgb: NDArray[np.float64]


def _linear(color: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (color.astype(np.float64).reshape(-1, 3) / 255.0) ** 2


def _roof_planes(
    ring: NDArray[np.float64], kind: int, eave: float, rise: float
) -> list[list[float]]:
    """Planes whose minimum is the roof over a counter-clockwise footprint."""
    if kind == RoofKind.FLAT or rise <= 0.0:
        return [[eave, 0.0, 0.0]]
    if len(ring) != 4:
        raise ConfigError(
            f"A building with a sloped roof has {len(ring)} corners; gable and hip roofs need 4. "
            "Give it a flat roof."
        )
    edge = np.roll(ring, -1, axis=0) - ring
    length = np.hypot(edge[:, 0], edge[:, 1])
    is_long = np.zeros(4, dtype=bool)
    is_long[[0, 2] if length[0] + length[2] >= length[1] + length[3] else [1, 3]] = True
    slope = rise / (0.25 * length[~is_long].sum())  # up from the eave to half the depth
    planes = []
    for i in range(4):
        if is_long[i] or kind == RoofKind.HIP:
            inward = np.array([-edge[i, 1], edge[i, 0]]) / length[i] * slope
            planes.append([eave - float(inward @ ring[i]), float(inward[0]), float(inward[1])])
    return planes


def _building_solids(buildings: Buildings) -> _Solids:
    num = len(buildings.footprints)
    planes, num_planes = np.zeros((num, MAX_PLANES, 3)), np.zeros(num, np.int32)
    rings = [np.asarray(ring, dtype=np.float64) for ring in buildings.footprints]
    for i, ring in enumerate(rings):
        eave, rise = float(buildings.eave_height_m[i]), float(buildings.roof_rise_m[i])
        roof = _roof_planes(ring, int(buildings.roof_kind[i]), eave, rise)
        planes[i, : len(roof)], num_planes[i] = roof, len(roof)
    rise_m = np.where(buildings.roof_kind == RoofKind.FLAT, 0.0, buildings.roof_rise_m)
    return _Solids(
        rings=rings,
        planes=planes,
        num_planes=num_planes,
        # A quarter more: the ridge over a slightly crooked footprint rises above its mean.
        top_m=buildings.eave_height_m + 1.25 * rise_m,
        eave_m=buildings.eave_height_m.astype(np.float64),
        kind=np.full(num, BUILDING, np.int32),
        style=buildings.facade_style.astype(np.int32),
        seed=buildings.style_seed.astype(np.int64) % 1000003,
        wall_rgb=_linear(buildings.facade_color),
        roof_rgb=_linear(buildings.roof_color),
    )


def _car_rings(cars: Cars, length: float, width: float, shift: float) -> NDArray[np.float64]:
    """Corners (N, 4, 2) of boxes given as shares of the cars' length and width."""
    heading = np.deg2rad(cars.heading_deg)
    forward = np.stack([np.sin(heading), np.cos(heading)], -1)
    left = np.stack([-forward[:, 1], forward[:, 0]], -1)
    along = np.array([1.0, 1.0, -1.0, -1.0]) * length / 2.0 + shift
    across = np.array([-1.0, 1.0, 1.0, -1.0]) * width / 2.0
    center = np.stack([cars.x, cars.y], -1)[:, None]
    along_m = along[None, :, None] * cars.length_m[:, None, None]
    across_m = across[None, :, None] * cars.width_m[:, None, None]
    rings: NDArray[np.float64] = center + along_m * forward[:, None] + across_m * left[:, None]
    return rings


def _car_solids(cars: Cars) -> _Solids:
    """Two boxes per car: a body, and a shorter cabin through it (a long one for a van)."""
    num = len(cars.x)
    is_van = cars.height_m > 1.85
    cabin = np.where(
        is_van[:, None, None],
        _car_rings(cars, 0.86, 0.94, -0.06),
        _car_rings(cars, 0.5, 0.88, -0.05),
    )
    top = np.concatenate([cars.height_m * np.where(is_van, 0.5, 0.6), cars.height_m])
    planes = np.zeros((2 * num, MAX_PLANES, 3))
    planes[:, 0, 0] = top
    color = np.tile(_linear(cars.color), (2, 1))
    return _Solids(
        rings=[*_car_rings(cars, 1.0, 1.0, 0.0), *cabin],
        planes=planes,
        num_planes=np.ones(2 * num, np.int32),
        top_m=top,
        eave_m=top,
        kind=np.repeat([CAR_BODY, CAR_CABIN], num).astype(np.int32),
        style=np.zeros(2 * num, np.int32),
        seed=np.tile(np.arange(num, dtype=np.int64), 2),
        wall_rgb=color,
        roof_rgb=color,
    )


def _tree_table(trees: Trees) -> NDArray[np.float64]:
    columns = (trees.x, trees.y, trees.crown_radius_m, trees.height_m, trees.trunk_height_m)
    return np.stack(columns, -1).astype(np.float64).reshape(-1, 5)


def _scene_arrays(city: City) -> SceneArrays:
    houses, cars = _building_solids(city.buildings), _car_solids(city.cars)
    rings = houses.rings + cars.rings
    starts = np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int32)
    pairs = [np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    segments = np.concatenate(pairs) if pairs else np.zeros((0, 4))
    trees = _tree_table(city.trees)
    num_cells = max(1, math.ceil(city.size_m / GRID_CELL_M))
    segment_cells, segment_ids = _bin_segments(segments, num_cells)
    tree_cells, tree_ids = _bin_trees(trees, num_cells)
    planes = np.concatenate([houses.planes, cars.planes])
    num_planes = np.concatenate([houses.num_planes, cars.num_planes])
    top = np.concatenate([houses.top_m, cars.top_m])
    num_px = max(1, math.ceil(city.size_m / HEIGHT_GSD))
    heights = np.zeros((num_px, num_px, 3), np.float32)
    heights[:, :, 1] = _NO_CANOPY_M
    owner = np.full((num_px, num_px), -1, np.int32)
    top_m = np.zeros((num_px, num_px), np.float32)
    paint_solids(segments, starts, planes, num_planes, city.size_m, HEIGHT_GSD, top_m, owner)
    heights[:, :, 0] = top_m
    _paint_canopy(trees, city.size_m, HEIGHT_GSD, heights)
    return SceneArrays(
        size_m=float(city.size_m),
        max_height_m=float(max(top.max(initial=0.0), trees[:, 3].max(initial=0.0))),
        seed=int(city.seed) % 1000003,
        segments=segments,
        segment_solid=np.repeat(np.arange(len(rings)), np.diff(starts)).astype(np.int32),
        solid_start=starts,
        planes=planes,
        num_planes=num_planes,
        solid_top_m=top,
        solid_eave_m=np.concatenate([houses.eave_m, cars.eave_m]),
        solid_kind=np.concatenate([houses.kind, cars.kind]),
        solid_style=np.concatenate([houses.style, cars.style]),
        solid_seed=np.concatenate([houses.seed, cars.seed]),
        wall_rgb=np.concatenate([houses.wall_rgb, cars.wall_rgb]),
        roof_rgb=np.concatenate([houses.roof_rgb, cars.roof_rgb]),
        trees=trees,
        tree_is_evergreen=np.ascontiguousarray(city.trees.is_evergreen, dtype=np.bool_),
        tree_seed=city.trees.color_seed.astype(np.int64) % 1000003,
        num_cells=num_cells,
        segment_cells=segment_cells,
        segment_ids=segment_ids,
        tree_cells=tree_cells,
        tree_ids=tree_ids,
        surface=np.ascontiguousarray(city.surface),
        surface_gsd=float(city.surface_gsd),
        heights=heights,
    )


@geometry_kernel
def _cell_range(low, high, num_cells):
    first = max(0, math.floor(low / GRID_CELL_M))
    return first, min(num_cells - 1, math.floor(high / GRID_CELL_M))


@geometry_kernel
def _count_or_put(starts, ids, cell, item):
    """Count an item of a cell or, once there is room, put it in front of the cell's list."""
    if len(ids) == 0:
        starts[cell] += 1
    else:
        starts[cell] -= 1
        ids[starts[cell]] = item


@build_kernel
def _room_for_lists(counts):
    """Ends of the cells' lists, which filling walks back to their starts, and room for the ids."""
    ends = np.cumsum(counts).astype(np.int32)
    return ends, np.zeros(ends[-1], np.int32)


@build_kernel
def _bin_segments(segments, num_cells):
    """List the segments that touch each cell (start offsets and ids), rows from the south."""
    starts = np.zeros(num_cells * num_cells + 1, np.int32)
    ids = np.zeros(0, np.int32)
    for is_filling in (False, True):
        for s in range(len(segments)):
            x0, y0, x1, y1 = segments[s]
            dx, dy = x1 - x0, y1 - y0
            reach = 0.5 * GRID_CELL_M * (abs(dx) + abs(dy)) + 1e-6
            first_i, last_i = _cell_range(min(x0, x1) - 1e-6, max(x0, x1) + 1e-6, num_cells)
            first_j, last_j = _cell_range(min(y0, y1) - 1e-6, max(y0, y1) + 1e-6, num_cells)
            for j in range(first_j, last_j + 1):
                for i in range(first_i, last_i + 1):
                    cx, cy = (i + 0.5) * GRID_CELL_M - x0, (j + 0.5) * GRID_CELL_M - y0
                    # Separating axis: the line misses a square that lies wholly on one side.
                    if abs(dx * cy - dy * cx) > reach:
                        continue
                    _count_or_put(starts, ids, j * num_cells + i, s)
        if not is_filling:
            starts, ids = _room_for_lists(starts)
    return starts, ids


@build_kernel
def _bin_trees(trees, num_cells):
    """List the trees whose crown's bounding square touches each cell, as `_bin_segments`."""
    starts = np.zeros(num_cells * num_cells + 1, np.int32)
    ids = np.zeros(0, np.int32)
    for is_filling in (False, True):
        for t in range(len(trees)):
            x, y, radius = trees[t, 0], trees[t, 1], trees[t, 2]
            first_i, last_i = _cell_range(x - radius, x + radius, num_cells)
            first_j, last_j = _cell_range(y - radius, y + radius, num_cells)
            for j in range(first_j, last_j + 1):
                for i in range(first_i, last_i + 1):
                    _count_or_put(starts, ids, j * num_cells + i, t)
        if not is_filling:
            starts, ids = _room_for_lists(starts)
    return starts, ids


@geometry_kernel
def roof_height(planes, num_planes, solid, x, y):
    """Height of a solid's top over a place, and the plane that it lies on."""
    best, index = planes[solid, 0, 0] + planes[solid, 0, 1] * x + planes[solid, 0, 2] * y, 0
    for i in range(1, num_planes[solid]):
        z = planes[solid, i, 0] + planes[solid, i, 1] * x + planes[solid, i, 2] * y
        if z < best:
            best, index = z, i
    return best, index


@build_kernel
def paint_solids(segments, starts, planes, num_planes, top_m, gsd, height, owner):
    """Rasterise the solids' tops into `height` and `owner` (H, W), the highest wins.

    Pixel (row, col) has its centre at ((col + 0.5) gsd, top_m - (row + 0.5) gsd); even-odd filling.
    """
    num_rows, num_cols = height.shape
    crossings = np.empty(256, np.float64)
    for solid in range(len(starts) - 1):
        first, last = starts[solid], starts[solid + 1]
        low, high = segments[first:last, 1].min(), segments[first:last, 1].max()
        first_row = max(0, math.floor((top_m - high) / gsd))
        last_row = min(num_rows - 1, math.floor((top_m - low) / gsd))
        for row in range(first_row, last_row + 1):
            y = top_m - (row + 0.5) * gsd
            num = 0
            for s in range(first, last):
                x0, y0, x1, y1 = segments[s]
                if (y0 > y) != (y1 > y) and num < 256:
                    crossings[num] = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
                    num += 1
            ordered = np.sort(crossings[:num])
            for pair in range(0, num - 1, 2):
                begin = max(0, math.ceil(ordered[pair] / gsd - 0.5))
                end = min(num_cols - 1, math.ceil(ordered[pair + 1] / gsd - 0.5) - 1)
                for col in range(begin, end + 1):
                    z, _ = roof_height(planes, num_planes, solid, (col + 0.5) * gsd, y)
                    if z > height[row, col]:
                        height[row, col] = z
                        owner[row, col] = solid


@build_kernel
def _paint_canopy(trees, top_m, gsd, heights):
    """Rasterise the span of heights that crowns fill into `heights[..., 1:]`."""
    num_rows, num_cols, _ = heights.shape
    for t in range(len(trees)):
        x, y, radius, top, bottom = trees[t]
        middle, half = 0.5 * (top + bottom), 0.5 * (top - bottom)
        for row in range(
            max(0, int((top_m - y - radius) / gsd)),
            min(num_rows, int((top_m - y + radius) / gsd) + 1),
        ):
            for col in range(
                max(0, int((x - radius) / gsd)), min(num_cols, int((x + radius) / gsd) + 1)
            ):
                dx, dy = (col + 0.5) * gsd - x, top_m - (row + 0.5) * gsd - y
                inside = 1.0 - (dx * dx + dy * dy) / (radius * radius)
                if inside > 0.0:
                    rise = half * math.sqrt(inside)
                    heights[row, col, 1] = min(heights[row, col, 1], middle - rise)
                    heights[row, col, 2] = max(heights[row, col, 2], middle + rise)
