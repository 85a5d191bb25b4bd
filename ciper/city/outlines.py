"""Polygons of real maps made fit for walls: valid, apart from each other, without holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.city.buildings import counter_clockwise
from ciper.city.parts import FloatArray

# Less than this is a shed's corner or a digitiser's slip; a light well in a hole's case.
LEAST_AREA_M2 = 4.0
_LEAST_WIDTH_M = 0.8
_STRAIGHT_M = 0.04
_LEAST_OVERLAP_M2 = 0.005
_POLYGON = 3


def cleaned(polygon: shapely.Geometry) -> list[shapely.Polygon]:
    """Valid polygons without light wells, superfluous corners and slivers.

    A self-intersecting outline becomes the areas that it encloses an odd number of times.
    """
    valid = polygon if shapely.is_valid(polygon) else shapely.make_valid(polygon)
    smooth = [shapely.simplify(part, _STRAIGHT_M) for part in _polygons(valid)]
    return [_without_wells(part) for part in smooth if _is_wide(part)]


def _polygons(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """The polygons of a geometry, whatever else it contains."""
    parts = [geometry]
    while any(shapely.get_type_id(part) > _POLYGON for part in parts):
        parts = [piece for part in parts for piece in shapely.get_parts(part)]
    return [part for part in parts if shapely.get_type_id(part) == _POLYGON]


def _is_wide(polygon: shapely.Polygon) -> bool:
    if shapely.area(polygon) < LEAST_AREA_M2:
        return False
    return not shapely.is_empty(shapely.buffer(polygon, -_LEAST_WIDTH_M / 2))


def _without_wells(polygon: shapely.Polygon) -> shapely.Polygon:
    holes = [hole for hole in polygon.interiors if shapely.Polygon(hole).area >= LEAST_AREA_M2]
    return shapely.Polygon(polygon.exterior, holes)


def without_overlaps(
    polygons: NDArray[np.object_], priority: FloatArray
) -> list[list[shapely.Polygon]]:
    """What each of N polygons keeps once those of higher priority have taken their ground.

    A duplicate keeps nothing. Priorities are all different.
    """
    a, b = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    is_loser = priority[a] < priority[b]
    a, b = a[is_loser], b[is_loser]
    shared = shapely.area(shapely.intersection(polygons[a], polygons[b]))
    a, b = a[shared > _LEAST_OVERLAP_M2], b[shared > _LEAST_OVERLAP_M2]
    kept = [[polygon] for polygon in polygons]
    for i in np.unique(a):
        rest = shapely.difference(polygons[i], shapely.union_all(polygons[b[a == i]]))
        # Strips along walls that two surveys place differently are nobody's.
        opened = shapely.buffer(
            shapely.buffer(rest, -_LEAST_WIDTH_M / 2), _LEAST_WIDTH_M / 2, join_style="mitre"
        )
        kept[int(i)] = [p for p in _polygons(shapely.intersection(opened, rest)) if _is_wide(p)]
    return kept


def simple_rings(polygon: shapely.Polygon) -> list[FloatArray]:
    """Counter-clockwise open rings (V, 2) that tile a polygon: cuts run through its holes.

    A courtyard stays open: the cuts only part the building about it.
    """
    if not polygon.interiors:
        return [counter_clockwise(shapely.get_coordinates(polygon.exterior)[:-1])]
    hole = max(polygon.interiors, key=lambda ring: shapely.Polygon(ring).area)
    middle = shapely.get_coordinates(shapely.Polygon(hole).representative_point())[0]
    rings: list[FloatArray] = []
    for half in _cut_through(polygon, middle):
        rings += [ring for part in _polygons(half) if _is_wide(part) for ring in simple_rings(part)]
    return rings


def _cut_through(polygon: shapely.Polygon, point: FloatArray) -> Sequence[shapely.Geometry]:
    """Both halves of a polygon along a line through a point, parallel to its shorter extent."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(polygon))[:3]
    sides = np.diff(corners, axis=0)
    length = np.hypot(*sides.T)
    short, long = sides[np.argsort(length, kind="stable")]
    reach = 2.0 * float(length.sum()) / np.maximum(np.hypot(*short), 1e-6) * short
    aside = 2.0 * float(length.sum()) / np.maximum(np.hypot(*long), 1e-6) * long
    half_plane = shapely.polygons(
        [point - reach, point + reach, point + reach + aside, point - reach + aside]
    )
    return shapely.intersection(polygon, half_plane), shapely.difference(polygon, half_plane)


def is_near_rectangle(ring: FloatArray, *, most_deg: float = 12.0, least_m: float = 2.5) -> bool:
    """Whether a ring has four corners, each right to within `most_deg`, and no short side."""
    if len(ring) != 4:
        return False
    sides = np.roll(ring, -1, axis=0) - ring
    length = np.hypot(*sides.T)
    if length.min() < least_m:
        return False
    unit = sides / length[:, None]
    cosine = (unit * np.roll(unit, -1, axis=0)).sum(axis=1)
    return bool(np.abs(cosine).max() < np.sin(np.deg2rad(most_deg)))
