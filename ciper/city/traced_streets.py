"""Plausible streets for a map of buildings only: midway between blocks of houses.

Houses with narrow gaps between them are one block, its enclosed yards included. Streets follow the
Voronoi edges of the blocks' outlines, which keep the same distance to the two nearest ones, where
that distance is neither a gap's nor a field's; dangling spurs are cut off, and rings about areas
that are too small for a block are opened. Suburbs have wider gaps and narrower streets than towns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.city.furniture import distance_to
from ciper.city.parts import FloatArray
from ciper.city.real_streets import BEYOND_M, assemble
from ciper.city.streets import Streets

# A court larger than this may well have streets of its own.
_MOST_COURT_M2 = 6000.0
_OUTLINE_STEP_M = 3.0
_NUM_PRUNINGS = 5
# Share of the ground under houses that parts towns from suburbs.
_TOWN_SHARE = 0.22
_WIDEST_M = 30.0
# From kerb to kerb at least, by rank.
_LEAST_WIDTH_M = np.array([13.0, 9.5, 5.6])


@dataclass(frozen=True)
class _Habit:
    """How streets run between houses.

    Attributes:
        halves_m: half of the widest gap within a block, and of the widest space that is a street.
        spur_m: dangling pieces shorter than this are none.
        block_m2: streets do not enclose less than this.
        smooth_m: by how much lines may leave the middle.
        width_m: from kerb to kerb at most.
    """

    halves_m: tuple[float, float]
    spur_m: float
    block_m2: float
    smooth_m: float
    width_m: float


_TOWN = _Habit((1.6, 15.0), 28.0, 500.0, 1.2, 17.0)
_SUBURB = _Habit((6.0, 24.0), 50.0, 6000.0, 3.0, 8.0)


def trace_streets(
    houses: NDArray[np.object_], seed: int, size_m: float, walls: shapely.STRtree
) -> Streets:
    """Streets between buildings.

    Args:
        houses: polygons in the city's metres, those of a margin about it included.
        seed: of their styles.
        size_m: edge of the city's square.
        walls: a tree of the buildings.
    """
    near = shapely.box(-BEYOND_M, -BEYOND_M, size_m + BEYOND_M, size_m + BEYOND_M)
    square = shapely.box(0.0, 0.0, size_m, size_m)
    share = float(shapely.area(shapely.intersection(houses, square)).sum()) / size_m**2
    habit = _TOWN if share > _TOWN_SHARE else _SUBURB
    blocks = _blocks(houses, habit.halves_m[0])
    lines = _middle_lines(blocks, near, habit)
    for _ in range(_NUM_PRUNINGS):
        lines = _pruned(_opened(lines, walls, habit), near, habit)
    lines = shapely.simplify(lines, habit.smooth_m)
    clear_m = _clearance(lines, walls)
    sidewalk_m = np.clip(0.3 * clear_m, 0.7, 4.0)
    width_m = np.minimum(2.0 * (clear_m - sidewalk_m), habit.width_m)
    rank = np.searchsorted(-_LEAST_WIDTH_M, -width_m).astype(np.int64)
    style = np.random.default_rng([seed, 5]).uniform(size=len(lines))
    return assemble(lines, rank, width_m, sidewalk_m, style, walls=walls)


def _blocks(houses: NDArray[np.object_], gap_m: float) -> shapely.Geometry:
    """Houses grown together over gaps of up to twice `gap_m`, with the yards that they enclose."""
    grown = shapely.union_all(shapely.buffer(houses, gap_m, join_style="mitre", mitre_limit=2.0))
    closed = shapely.buffer(grown, -gap_m, join_style="mitre", mitre_limit=2.0)
    filled = [
        shapely.Polygon(
            part.exterior,
            [hole for hole in part.interiors if shapely.Polygon(hole).area > _MOST_COURT_M2],
        )
        for part in shapely.get_parts(closed)
    ]
    return shapely.union_all(filled)


def _middle_lines(
    blocks: shapely.Geometry, near: shapely.Geometry, habit: _Habit
) -> NDArray[np.object_]:
    """Lines (E,) of equal distance to two blocks, from junction to junction."""
    outline = shapely.segmentize(shapely.boundary(blocks), _OUTLINE_STEP_M)
    points = shapely.multipoints(np.unique(shapely.get_coordinates(outline), axis=0))
    edges = shapely.get_parts(shapely.voronoi_polygons(points, only_edges=True, extend_to=near))
    edges = shapely.get_parts(edges)
    edges = edges[shapely.intersects(near, edges)]
    tree = shapely.STRtree(shapely.get_parts(blocks))
    least_m, most_m = habit.halves_m
    ends = [shapely.get_coordinates(shapely.get_point(edges, i)) for i in (0, -1)]
    away = np.stack([distance_to(tree, end, 2.0 * most_m) for end in ends])
    return _merged(edges[(away.min(axis=0) > least_m + 0.7) & (away.max(axis=0) < most_m)])


def _merged(lines: NDArray[np.object_]) -> NDArray[np.object_]:
    """Lines joined where only two of them meet."""
    if len(lines) == 0:
        return lines
    found: NDArray[np.object_] = shapely.get_parts(
        shapely.line_merge(shapely.multilinestrings(lines))
    )
    return found


def _pruned(
    lines: NDArray[np.object_], near: shapely.Geometry, habit: _Habit
) -> NDArray[np.object_]:
    """Lines without short spurs, joined again where one came off."""
    if len(lines) == 0:
        return lines
    ends = np.stack([shapely.get_coordinates(shapely.get_point(lines, i)) for i in (0, -1)], 1)
    places = np.rint(ends.reshape(-1, 2) * 10)
    _, node, count = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    degree = count[node].reshape(-1, 2)
    is_spur = (degree.min(axis=1) == 1) & (shapely.length(lines) < habit.spur_m)
    return _merged(lines[~is_spur & shapely.intersects(lines, near)])


def _opened(
    lines: NDArray[np.object_], walls: shapely.STRtree, habit: _Habit
) -> NDArray[np.object_]:
    """Lines without the narrowest one about every area that is too small for a block."""
    if len(lines) == 0:
        return lines
    areas = shapely.get_parts(shapely.polygonize(lines))
    small = areas[shapely.area(areas) < habit.block_m2]
    clear_m = _clearance(lines, walls)
    middle = shapely.line_interpolate_point(lines, 0.5, normalized=True)
    area, line = shapely.STRtree(middle).query(
        shapely.boundary(small), predicate="dwithin", distance=0.01
    )
    is_kept = np.ones(len(lines), np.bool_)
    for i in np.unique(area):
        about = line[area == i]
        if is_kept[about].all():
            is_kept[about[np.argmin(clear_m[about])]] = False
    return _merged(lines[is_kept])


def _clearance(lines: NDArray[np.object_], walls: shapely.STRtree) -> FloatArray:
    """Usual distance from each line to the nearest wall, in metres."""
    clear_m = np.empty(len(lines))
    for i, line in enumerate(lines):
        along = np.linspace(0.1, 0.9, max(5, int(line.length / 5.0)))
        points = shapely.line_interpolate_point(line, along, normalized=True)
        away = distance_to(walls, shapely.get_coordinates(points), _WIDEST_M)
        clear_m[i] = np.quantile(away, 0.35)
    return clear_m
