"""Streets of a real map, in the generator's terms: edges between junctions, widths, ranks."""

from __future__ import annotations

import zlib

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.city.footprints import Shapes
from ciper.city.furniture import distance_to
from ciper.city.parts import FloatArray, IntArray
from ciper.city.streets import Rank, Stations, Streets, junctions, make_stations, rounded
from ciper.city.tags import (
    StreetKind,
    Tags,
    carriageway_m,
    is_one_way,
    number,
    parks_cars,
    street_kind,
)

BEYOND_M = 60.0
_CLEAR_OF_WALLS_M = 0.8
_LEAST_WIDTH_M = 3.0
_SAMPLE_M = 4.0
_STATION_M = 0.5
# Where `markings.make_lanes` begins to find room for parked cars, by rank.
_PARKING_STYLE = np.array([0.55, 0.2, 0.2, 0.2])


def streets_from_map(shapes: Shapes, seed: int, size_m: float, walls: shapely.STRtree) -> Streets:
    """The streets that cars use in and about the square [0, size_m]^2.

    Lines are cut where they meet, not where one passes over another, and joined where only the
    tags change. A street is as wide as its tags or its class say, and no wider than the houses
    leave room for.

    Args:
        shapes: lines in the city's metres.
        seed: of what the map does not state.
        size_m: edge of the square.
        walls: the buildings.
    """
    near = shapely.box(-BEYOND_M, -BEYOND_M, size_m + BEYOND_M, size_m + BEYOND_M)
    lines, source = _edges(shapes, near)
    known: list[StreetKind] = [kind for tags in shapes.tags if (kind := street_kind(tags))]
    tags = [shapes.tags[int(i)] for i in source]
    rank = np.array(
        [_rank(tag, known[int(i)]) for tag, i in zip(tags, source, strict=True)], np.int64
    )
    wanted_m = np.array(
        [carriageway_m(t, known[int(i)]) for t, i in zip(tags, source, strict=True)]
    )
    sidewalk_m = np.array([known[int(i)].sidewalk_m for i in source])
    sidewalk_m[[tag.get("sidewalk") in ("no", "none") for tag in tags]] = 0.5
    style = np.array(
        [_style(tag, shapes.key[int(i)], seed) for tag, i in zip(tags, source, strict=True)]
    )
    style = _parking_style(style, [parks_cars(tag) for tag in tags], rank)
    return assemble(lines, rank, wanted_m, sidewalk_m, style, walls=walls)


def assemble(
    lines: NDArray[np.object_],
    rank: IntArray,
    width_m: FloatArray,
    sidewalk_m: FloatArray,
    style: FloatArray,
    *,
    walls: shapely.STRtree,
) -> Streets:
    """Streets out of E edges that meet at their ends, narrowed to fit between the walls."""
    if len(lines) == 0:
        pair, nothing = np.empty((0, 2)), shapely.Polygon()
        none = np.empty(0)
        return Streets(lines, rank, none, none, none, pair, pair.astype(np.bool_), nothing, nothing)
    room_m, usual_m = _room(lines, walls)
    width_m = np.clip(width_m, _LEAST_WIDTH_M, np.maximum(2.0 * room_m, _LEAST_WIDTH_M))
    sidewalk_m = np.clip(sidewalk_m, 0.4, np.maximum(usual_m - width_m / 2, 0.4))
    ends = [shapely.get_coordinates(shapely.get_point(lines, i)) for i in (0, -1)]
    places = np.rint(np.stack(ends, 1).reshape(-1, 2) * 10)
    nodes = np.unique(places, axis=0, return_inverse=True)[1].reshape(-1, 2)
    trim_m, is_junction = junctions(lines, nodes, width_m)
    return Streets(
        lines=lines,
        rank=rank,
        width_m=width_m,
        sidewalk_m=sidewalk_m,
        style=style,
        trim_m=trim_m,
        is_junction=is_junction,
        carriageway=rounded(lines, width_m / 2),
        right_of_way=rounded(lines, width_m / 2 + sidewalk_m),
    )


def stations_of(streets: Streets) -> Stations:
    """Points along the streets, of which there may be none."""
    if len(streets.lines) > 0:
        return make_stations(streets, _STATION_M)
    none = np.empty(0)
    return Stations(none, none, none, np.empty(0, np.int64), none, none)


def _edges(shapes: Shapes, near: shapely.Geometry) -> tuple[NDArray[np.object_], IntArray]:
    """Lines between junctions (E,), and for each the index of the street that it is a piece of."""
    layer = np.array([number(tags.get("layer")) or 0.0 for tags in shapes.tags])
    pieces: list[NDArray[np.object_]] = []
    for level in np.unique(layer):
        clipped = shapely.intersection(shapes.geometry[layer == level], near)
        noded = shapely.unary_union(shapely.get_parts(clipped), grid_size=0.02)
        parts = shapely.get_parts(noded)
        pieces.append(parts[shapely.get_type_id(parts) == 1])
    merged = shapely.line_merge(shapely.multilinestrings(np.concatenate(pieces)))
    lines = shapely.simplify(shapely.get_parts(merged), 0.1)
    lines = lines[shapely.length(lines) > 2.0]
    if len(lines) == 0:
        return lines, np.empty(0, np.int64)
    middle = shapely.line_interpolate_point(lines, 0.5, normalized=True)
    nearest: IntArray = shapely.STRtree(shapes.geometry).nearest(middle)
    return lines, nearest


def _room(lines: NDArray[np.object_], walls: shapely.STRtree) -> tuple[FloatArray, FloatArray]:
    """Distance from centre lines to walls: (E,) where it is narrow, and (E,) where it is usual."""
    room_m, usual_m = np.full((2, len(lines)), 40.0)
    if len(walls) == 0:
        return room_m, usual_m
    for i, line in enumerate(lines):
        along = np.arange(_SAMPLE_M / 2, max(line.length, _SAMPLE_M), _SAMPLE_M)
        points = shapely.get_coordinates(shapely.line_interpolate_point(line, along))
        away = distance_to(walls, points, 40.0)
        # What runs under a house has no room there, and says nothing of the rest.
        away = away[away > 0.0]
        if len(away):
            room_m[i] = np.quantile(away, 0.15) - _CLEAR_OF_WALLS_M
            usual_m[i] = np.quantile(away, 0.5)
    return room_m, usual_m


def _rank(tags: Tags, kind: StreetKind) -> Rank:
    # A street of one direction has no double line in its middle.
    return max(kind.rank, Rank.COLLECTOR) if is_one_way(tags) else kind.rank


def _style(tags: Tags, key: IntArray, seed: int) -> float:
    """A number in [0, 1) that all the pieces of a street share."""
    name = tags.get("name") or f"{key[0]} {key[1]}"
    return zlib.crc32(f"{seed} {name}".encode()) / 2**32


def _parking_style(style: FloatArray, parks: list[bool | None], rank: IntArray) -> FloatArray:
    """Styles (E,) moved to where they mean parked cars, or none, if the map says so."""
    bound = _PARKING_STYLE[rank]
    says = np.array([told is not None for told in parks], np.bool_)
    has_cars = np.array([bool(told) for told in parks], np.bool_)
    moved = np.where(has_cars, bound + (1.0 - bound) * style, bound * style)
    found: FloatArray = np.where(says, moved, style)
    return found
