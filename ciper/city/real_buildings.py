"""Buildings of a real map: footprints and heights as it states them, the rest plausible.

Where it states no height, a building is about as high as the nearest ones that have one; where
none has, its use, its area and how densely the place is built decide. Colours, facades and
most roofs are drawn, for each building from the seed and its own place: the choice of the square
does not change a building.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ciper.city.buildings import Wing, make_look
from ciper.city.footprints import Shapes
from ciper.city.outlines import cleaned, is_near_rectangle, simple_rings, without_overlaps
from ciper.city.parts import BoolArray, FloatArray, RoofKind
from ciper.city.tags import STOREY_M, Heights, Tags, heights

_SMALL = {"garage", "garages", "shed", "hut", "kiosk", "service", "toilets", "utility", "cabin"}
_HOUSES = {"house", "detached", "semidetached_house", "terrace", "bungalow", "farm"}
_HALLS = {"industrial", "warehouse", "retail", "supermarket", "hangar", "barn", "manufacture"}
_HIGH = {"church", "cathedral", "chapel", "tower"}
_ROOFS = {
    "gabled": RoofKind.GABLE, "saltbox": RoofKind.GABLE, "gambrel": RoofKind.GABLE,
    "hipped": RoofKind.HIP, "half-hipped": RoofKind.HIP, "pyramidal": RoofKind.HIP,
    "mansard": RoofKind.HIP, "flat": RoofKind.FLAT, "skillion": RoofKind.FLAT,
}  # fmt: skip
_LEAST_EAVE_M = 2.2
_NUM_NEIGHBOURS = 6
_NEIGHBOUR_M = 150.0
# Higher undersides are bridges between houses, roofs over yards and the like.
_MOST_BASE_M = 1.0


@dataclass(frozen=True, eq=False)
class _Body:
    """One polygon with what is known and drawn of it."""

    polygon: shapely.Polygon
    tags: Tags
    told: Heights
    rng: np.random.Generator
    is_part: bool


def item_rng(seed: int, key: NDArray[np.int64], use: int) -> np.random.Generator:
    """Randomness of one shape of a map, for one use of it, whatever else is there."""
    return np.random.default_rng([seed, use, int(key[0]), int(key[1])])


def make_wings(shapes: Shapes, seed: int) -> list[Wing]:
    """Walls and roofs of all the buildings of a map about a place.

    Args:
        shapes: footprints in the city's metres, those of a margin about it included.
        seed: of everything that the map does not state.
    """
    bodies = _bodies(shapes, seed)
    if not bodies:
        return []
    polygons = np.array([body.polygon for body in bodies], np.object_)
    eave_m = _eaves(bodies, polygons)
    is_known = np.array([_is_known(body.told) for body in bodies])
    is_part = np.array([body.is_part for body in bodies])
    order = np.lexsort((shapely.area(polygons), eave_m, is_known, is_part))
    priority = np.empty(len(bodies))
    priority[order] = np.arange(len(bodies))
    wings: list[Wing] = []
    for i, pieces in enumerate(without_overlaps(polygons, priority)):
        body = bodies[i]
        rings = [ring for piece in pieces for ring in simple_rings(piece)]
        wings += _wings_of(body, rings, float(eave_m[i]))
    return wings


def _bodies(shapes: Shapes, seed: int) -> list[_Body]:
    """All polygons that rise from the ground, cleaned."""
    found: list[_Body] = []
    for geometry, tags, key in zip(shapes.geometry, shapes.tags, shapes.key, strict=True):
        told = heights(tags)
        is_part = "building:part" in tags and "building" not in tags
        if told.base_m > _MOST_BASE_M and is_part:
            continue
        found += [
            _Body(polygon, tags, told, item_rng(seed, key, k), is_part)
            for k, polygon in enumerate(cleaned(geometry))
        ]
    return found


# ----------------------------------------------------------------------------------------- heights


def _is_known(told: Heights) -> bool:
    return told.top_m is not None or told.eave_m is not None


def _known_m(told: Heights) -> float:
    """The stated height, about that of the eave; NaN if there is none."""
    if told.eave_m is not None:
        return told.eave_m
    return math.nan if told.top_m is None else told.top_m - (told.roof_m or 0.0)


def _eaves(bodies: list[_Body], polygons: NDArray[np.object_]) -> FloatArray:
    """Height of the walls of every body, (N,) metres: stated, else plausible."""
    stated = np.array([_known_m(body.told) for body in bodies])
    is_known: BoolArray = ~np.isnan(stated)
    middle = shapely.get_coordinates(shapely.centroid(polygons))
    about_m = _heights_about(middle, stated, is_known)
    area_m2 = shapely.area(polygons)
    tree = cKDTree(middle)
    built = np.array([area_m2[near].sum() for near in tree.query_ball_point(middle, 60.0)])
    density = np.clip(built / (math.pi * 60.0**2) / 0.45, 0.0, 1.0)
    eave_m = np.array(
        [
            stated[i] if is_known[i] else _plausible_m(body, area_m2[i], density[i], about_m[i])
            for i, body in enumerate(bodies)
        ]
    )
    found: FloatArray = np.maximum(eave_m, _LEAST_EAVE_M)
    return found


def _heights_about(middle: FloatArray, stated: FloatArray, is_known: BoolArray) -> FloatArray:
    """Median of the nearest stated heights about each point (N, 2); NaN where none is near."""
    about_m = np.full(len(middle), np.nan)
    known = stated[is_known]
    if len(known) == 0:
        return about_m
    k = min(_NUM_NEIGHBOURS, len(known))
    distance, index = cKDTree(middle[is_known]).query(
        middle, k=range(1, k + 1), distance_upper_bound=_NEIGHBOUR_M
    )
    is_near = np.isfinite(distance)
    has_any = is_near.any(axis=1)
    values = np.where(is_near, known[np.minimum(index, len(known) - 1)], np.nan)
    about_m[has_any] = np.nanmedian(values[has_any], axis=1)
    return about_m


def _plausible_m(body: _Body, area_m2: float, density: float, about_m: float) -> float:
    """A height for a building of which the map says nothing."""
    rng, kind = body.rng, body.tags.get("building", body.tags.get("building:part", "yes"))
    if kind in _SMALL or area_m2 < 28.0:
        return float(rng.uniform(2.3, 3.4))
    if kind in _HIGH:
        return float(rng.uniform(9.0, 18.0))
    if kind in _HALLS:
        return float(rng.uniform(5.0, 9.5))
    if kind in _HOUSES:
        return STOREY_M * float(rng.choice((1, 2, 2, 3)))
    if math.isnan(about_m):
        floors = 1.4 + 4.6 * density * min(1.0, area_m2 / 150.0) + 0.4 * min(area_m2 / 400.0, 2.0)
        spread = 0.22
    else:
        floors, spread = about_m / STOREY_M * (0.55 if area_m2 < 70.0 else 1.0), 0.12
    return STOREY_M * max(1.0, round(floors * float(rng.lognormal(0.0, spread))))


# ------------------------------------------------------------------------------------------- looks


def _wings_of(body: _Body, rings: list[FloatArray], eave_m: float) -> list[Wing]:
    """The pieces of one building: one look, one height, a pitched roof where one fits."""
    roofs = [_roof(body, ring, eave_m) for ring in rings]
    is_pitched = any(roof is not RoofKind.FLAT for roof in roofs)
    look = make_look(body.rng, is_pitched, _styles(body.tags, eave_m))
    share = float(body.rng.uniform(0.22, 0.45))
    told, wings = body.told, []
    for ring, roof in zip(rings, roofs, strict=True):
        rise_m, walls_m = 0.0, eave_m
        if roof is RoofKind.FLAT:
            # A roof that this footprint cannot carry leaves its mean height.
            walls_m += 0.5 * (told.roof_m or 0.0)
        else:
            rise_m = _rise_m(told, ring, share)
            if told.top_m is not None and told.eave_m is None and told.roof_m is None:
                # A stated height is that of the ridge.
                rise_m = min(rise_m, 0.5 * eave_m, eave_m - _LEAST_EAVE_M)
                walls_m -= rise_m
        wings.append(Wing(ring, walls_m, roof, rise_m, look))
    return wings


def _rise_m(told: Heights, ring: FloatArray, share: float) -> float:
    if told.roof_m is not None and told.roof_m > 0.0:
        return told.roof_m
    narrow = float(np.hypot(*(np.roll(ring, -1, axis=0) - ring).T).min())
    return float(np.clip(narrow * share, 0.8, 6.0))


def _roof(body: _Body, ring: FloatArray, eave_m: float) -> RoofKind:
    """As tagged; else pitched on most small houses; flat where the footprint allows no other."""
    drawn, kind = body.rng.uniform(size=2)
    if not is_near_rectangle(ring) or eave_m < _LEAST_EAVE_M + 0.4:
        return RoofKind.FLAT
    shape = body.tags.get("roof:shape")
    if shape is not None:
        return _ROOFS.get(shape, RoofKind.FLAT)
    narrow = float(np.hypot(*(np.roll(ring, -1, axis=0) - ring).T).min())
    chance = 0.75 if eave_m < 10.0 else 0.5 if eave_m < 28.0 else 0.0
    if narrow > 17.0 or drawn > chance:
        return RoofKind.FLAT
    return RoofKind.GABLE if kind < 0.7 else RoofKind.HIP


def _styles(tags: Tags, eave_m: float) -> tuple[int, ...]:
    """Patterns of windows that suit a building."""
    kind = tags.get("building", "yes")
    if kind in _HALLS or kind in _SMALL or tags.get("usage1") == "Industriel":
        return (3,)
    if kind in ("office", "commercial"):
        return (1, 2, 2, 3, 4, 5)
    if eave_m < 9.0:
        return (0, 1, 3, 4)
    return (0, 1, 4, 5) if eave_m < 26.0 else (1, 2, 5)
