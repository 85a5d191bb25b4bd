"""The street network: hierarchy, junctions, bends, and stations along the lanes.

Streets are drawn as straight chords of convex cells, noded where they meet, and only then pushed
through one smooth warp of the plane, so that junctions stay exact while nothing stays straight
or parallel to an axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.city.parts import BoolArray, FloatArray, IntArray

_CORNER_RADIUS_M = 4.0
_DISTRICT_M = 380.0


class Rank(IntEnum):
    """Place of a street in the hierarchy."""

    ARTERIAL = 0
    COLLECTOR = 1
    RESIDENTIAL = 2
    ALLEY = 3


# Carriageway and sidewalk widths in metres, (low, high) by rank.
_CARRIAGEWAY_M = np.array([(16.0, 22.0), (11.0, 14.0), (7.0, 9.0), (4.0, 5.0)])
_SIDEWALK_M = np.array([(2.5, 4.0), (2.0, 3.5), (1.6, 3.2), (0.5, 0.9)])


@dataclass(frozen=True, eq=False)
class Streets:
    """E street edges, each between two junctions (or dead ends).

    Attributes:
        lines: (E,) centre lines, in metres.
        rank: (E,) a `Rank`.
        width_m: (E,) of the carriageway, kerb to kerb.
        sidewalk_m: (E,) of one sidewalk.
        style: (E,) uniform in [0, 1), one number per whole street, decides its details.
        trim_m: (E, 2) length at the start and the end that lies inside a junction.
        is_junction: (E, 2) whether three or more edges meet at the start, at the end.
        carriageway: all of the asphalt, with rounded corners.
        right_of_way: carriageway and sidewalks.
    """

    lines: NDArray[np.object_]
    rank: IntArray
    width_m: FloatArray
    sidewalk_m: FloatArray
    style: FloatArray
    trim_m: FloatArray
    is_junction: BoolArray
    carriageway: shapely.Geometry
    right_of_way: shapely.Geometry


@dataclass(frozen=True, eq=False)
class Stations:
    """Points at equal steps along the street edges; all (S,).

    Attributes:
        x, y: position on the centre line, in metres.
        heading_deg: direction of the street there, clockwise from north.
        edge: index of the street edge.
        after_start_m, before_end_m: distance to the junction's mouth at either end (negative
            inside a junction).
    """

    x: FloatArray
    y: FloatArray
    heading_deg: FloatArray
    edge: IntArray
    after_start_m: FloatArray
    before_end_m: FloatArray

    def offset(self, right_m: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Positions `right_m` metres to the right of the centre line."""
        h = np.deg2rad(self.heading_deg)
        return self.x + right_m * np.cos(h), self.y - right_m * np.sin(h)

    def where(self, mask: BoolArray | IntArray) -> Stations:
        """The stations that the mask or index selects."""
        return Stations(
            x=self.x[mask],
            y=self.y[mask],
            heading_deg=self.heading_deg[mask],
            edge=self.edge[mask],
            after_start_m=self.after_start_m[mask],
            before_end_m=self.before_end_m[mask],
        )


def make_streets(rng: np.random.Generator, size_m: float) -> Streets:
    """Draw the streets of a city that fills [0, size_m]^2, a margin beyond it included."""
    chords, rank = _chords(rng, size_m)
    width_m = rng.uniform(*_CARRIAGEWAY_M[rank].T)
    sidewalk_m = rng.uniform(*_SIDEWALK_M[rank].T)
    style = rng.uniform(size=len(rank))
    noded = shapely.get_parts(shapely.unary_union(chords, grid_size=0.02))
    midpoints = shapely.line_interpolate_point(noded, 0.5, normalized=True)
    source = shapely.STRtree(chords).nearest(midpoints)
    # A few missing pieces make superblocks, bends and dead ends.
    is_kept = (rank[source] < Rank.RESIDENTIAL) | (rng.uniform(size=len(noded)) > 0.09)
    noded, source = noded[is_kept], source[is_kept]
    ends = np.stack([shapely.get_coordinates(shapely.get_point(noded, i)) for i in (0, -1)], 1)
    nodes = np.unique(np.rint(ends.reshape(-1, 2) * 10), axis=0, return_inverse=True)[1]
    warp = _Warp.random(rng, size_m)
    lines = shapely.transform(shapely.segmentize(noded, 6.0), warp)
    trim_m, is_junction = junctions(lines, nodes.reshape(-1, 2), width_m[source])
    near = shapely.box(-60.0, -60.0, size_m + 60.0, size_m + 60.0)
    is_near = shapely.intersects(lines, near)
    lines, source = lines[is_near], source[is_near]
    return Streets(
        lines=lines,
        rank=rank[source],
        width_m=width_m[source],
        sidewalk_m=sidewalk_m[source],
        style=style[source],
        trim_m=trim_m[is_near],
        is_junction=is_junction[is_near],
        carriageway=rounded(lines, width_m[source] / 2),
        right_of_way=rounded(lines, width_m[source] / 2 + sidewalk_m[source]),
    )


def make_stations(streets: Streets, step_m: float) -> Stations:
    """Walk along every edge in steps of `step_m` metres."""
    xy, line = shapely.get_coordinates(streets.lines, return_index=True)
    delta = np.diff(xy, axis=0)
    # Jumps from one line to the next have no length.
    piece_m = np.where(np.diff(line) == 0, np.hypot(*delta.T), 0.0)
    at_m = np.concatenate([[0.0], np.cumsum(piece_m)])
    length_m = shapely.length(streets.lines)
    count = np.floor(length_m / step_m).astype(np.int64)
    edge = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    along_m = (nth + 0.5) * step_m
    start_m = at_m[np.searchsorted(line, np.arange(len(count)))]
    place_m = start_m[edge] + along_m
    piece = np.clip(np.searchsorted(at_m, place_m, side="right") - 1, 0, len(delta) - 1)
    return Stations(
        x=np.interp(place_m, at_m, xy[:, 0]),
        y=np.interp(place_m, at_m, xy[:, 1]),
        heading_deg=np.rad2deg(np.arctan2(delta[piece, 0], delta[piece, 1])) % 360.0,
        edge=edge,
        after_start_m=along_m - streets.trim_m[edge, 0],
        before_end_m=length_m[edge] - along_m - streets.trim_m[edge, 1],
    )


@dataclass(frozen=True, eq=False)
class _Warp:
    """Rotation about the city's centre plus four long waves, gentle enough not to fold."""

    rotation: FloatArray
    center_m: float
    waves_per_m: FloatArray
    phase: FloatArray
    amplitude_m: FloatArray

    @classmethod
    def random(cls, rng: np.random.Generator, size_m: float) -> _Warp:
        angle, strength = rng.uniform(0.0, 2 * math.pi), rng.uniform(0.05, 0.13)
        direction = rng.uniform(0.0, 2 * math.pi, 4)
        wave = 2 * math.pi / rng.uniform(280.0, 800.0, 4)
        swing = rng.uniform(0.0, 2 * math.pi, 4)
        rotation = np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        return cls(
            rotation=rotation,
            center_m=size_m / 2,
            waves_per_m=np.stack([np.cos(direction), np.sin(direction)]) * wave,
            phase=rng.uniform(0.0, 2 * math.pi, 4),
            amplitude_m=np.stack([np.cos(swing), np.sin(swing)], 1) * (strength / wave)[:, None],
        )

    def __call__(self, xy: FloatArray) -> FloatArray:
        bent = xy + np.sin(xy @ self.waves_per_m + self.phase) @ self.amplitude_m
        moved: FloatArray = bent @ self.rotation + self.center_m
        return moved


def _chords(rng: np.random.Generator, size_m: float) -> tuple[NDArray[np.object_], IntArray]:
    """Straight streets before the warp, about the origin: (C,) lines and their (C,) ranks."""
    reach_m = size_m / math.sqrt(2) + 120.0
    domain = reach_m * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    lines: list[tuple[FloatArray, Rank]] = []
    district_m2 = (_DISTRICT_M * rng.uniform(0.75, 1.3)) ** 2
    districts = _split(
        domain, district_m2, rng, (Rank.ARTERIAL, Rank.ARTERIAL, Rank.COLLECTOR), lines
    )
    usual = rng.choice(3, p=(0.4, 0.4, 0.2))
    for district in districts:
        kind = usual if rng.uniform() < 0.5 else rng.choice(3, p=(0.4, 0.35, 0.25))
        if kind == 0:
            _grid(district, rng, lines)
        elif kind == 1:
            _halving(district, rng, lines)
        else:
            _organic(district, rng, lines)
    chords = shapely.linestrings([xy for xy, _ in lines])
    return chords, np.array([rank for _, rank in lines], np.int64)


def _cut(
    polygon: FloatArray, point: FloatArray, normal: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Cut a convex polygon along a line: both halves and the chord (2, 2), None if missed."""
    side = (polygon - point) @ normal
    halves: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    chord: list[FloatArray] = []
    for i, (a, s) in enumerate(zip(polygon, side, strict=True)):
        j = (i + 1) % len(polygon)
        halves[int(s < 0)].append(a)
        if (s < 0) != (side[j] < 0):
            crossing = a + (polygon[j] - a) * (s / (s - side[j]))
            halves[0].append(crossing)
            halves[1].append(crossing)
            chord.append(crossing)
    if len(chord) != 2:
        return None
    return np.array(halves[0]), np.array(halves[1]), np.array(chord)


def _longest_side(polygon: FloatArray) -> FloatArray:
    """Unit direction of the longest side."""
    sides = np.roll(polygon, -1, axis=0) - polygon
    side = sides[np.argmax(np.hypot(*sides.T))]
    unit: FloatArray = side / np.hypot(*side)
    return unit


def _turned(unit: FloatArray, angle_rad: float) -> FloatArray:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([c * unit[0] - s * unit[1], s * unit[0] + c * unit[1]])


def _area(polygon: FloatArray) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _split(
    polygon: FloatArray,
    target_m2: float,
    rng: np.random.Generator,
    ranks: tuple[Rank, ...],
    lines: list[tuple[FloatArray, Rank]],
) -> list[FloatArray]:
    """Halve a convex cell across its longer extent until the cells are about `target_m2`."""
    cells: list[FloatArray] = []
    stack = [(polygon, 0)]
    while stack:
        cell, depth = stack.pop()
        if _area(cell) < target_m2 * rng.uniform(1.0, 2.0):
            cells.append(cell)
            continue
        along = _longest_side(cell)
        extent = [np.ptp(cell @ along), np.ptp(cell @ _turned(along, math.pi / 2))]
        axis = along if extent[0] > 0.95 * extent[1] else _turned(along, math.pi / 2)
        place = cell @ axis
        at = place.min() + np.ptp(place) * rng.uniform(0.37, 0.63)
        center = cell.mean(axis=0)
        point = center + axis * (at - center @ axis)
        cut = _cut(cell, point, _turned(axis, rng.normal(0.0, math.radians(4.5))))
        if cut is None:
            cells.append(cell)
            continue
        lines.append((cut[2], ranks[min(depth, len(ranks) - 1)]))
        stack += [(cut[0], depth + 1), (cut[1], depth + 1)]
    return cells


def _halving(
    district: FloatArray, rng: np.random.Generator, lines: list[tuple[FloatArray, Rank]]
) -> None:
    """T-junctions everywhere, alleys in some of the cells."""
    ranks = (Rank.COLLECTOR, Rank.RESIDENTIAL)
    cells = _split(district, rng.uniform(4500.0, 9500.0), rng, ranks, lines)
    for cell in cells:
        if rng.uniform() < 0.12:
            _split(cell, 0.7 * _area(cell), rng, (Rank.ALLEY,), lines)


def _grid(
    district: FloatArray, rng: np.random.Generator, lines: list[tuple[FloatArray, Rank]]
) -> None:
    """Two families of nearly parallel streets, crossings of four arms, alleys between some."""
    along = _turned(_longest_side(district), rng.normal(0.0, math.radians(5.0)))
    spacings = rng.permutation(np.array([rng.uniform(60.0, 90.0), rng.uniform(85.0, 160.0)]))
    has_alleys = rng.uniform() < 0.3
    for i, spacing in enumerate(spacings):
        normal = _turned(along, i * math.pi / 2 + rng.normal(0.0, math.radians(3.0)))
        place = district @ normal
        count = max(1, round(float(np.ptp(place)) / spacing))
        cuts = (np.arange(1, count) + rng.uniform(-0.16, 0.16, count - 1)) / count
        main = rng.integers(max(1, count - 1))
        for k, at in enumerate(place.min() + np.ptp(place) * cuts):
            turned = _turned(normal, rng.normal(0.0, math.radians(1.2)))
            rank = Rank.COLLECTOR if k == main else Rank.RESIDENTIAL
            for shift, kind in ((0.0, rank), (spacing * rng.uniform(0.4, 0.55), Rank.ALLEY)):
                if kind is Rank.ALLEY and not (has_alleys and spacing > 75 and rng.uniform() < 0.5):
                    continue
                cut = _cut(district, normal * (at + shift), turned)
                if cut is not None:
                    lines.append((cut[2], kind))


def _organic(
    district: FloatArray, rng: np.random.Generator, lines: list[tuple[FloatArray, Rank]]
) -> None:
    """Cells of scattered points, stretched in one direction."""
    spacing = rng.uniform(75.0, 115.0)
    along, stretch = rng.uniform(0.0, math.pi), rng.uniform(0.75, 1.35)
    low, high = district.min(0) - 2 * spacing, district.max(0) + 2 * spacing
    reach = float(np.hypot(*(high - low))) / 2
    ticks = np.arange(-reach, reach, spacing)
    u, v = np.meshgrid(ticks * stretch, ticks / stretch)
    u = u + np.where(np.arange(len(ticks)) % 2, 0.5, 0.0)[:, None] * spacing * stretch
    points = np.stack([u, v], -1).reshape(-1, 2)
    points += rng.uniform(-0.27, 0.27, points.shape) * spacing
    points = np.stack(
        [points @ _turned(np.array([1.0, 0.0]), along + k * math.pi / 2) for k in (0, 1)], 1
    )
    edges = shapely.voronoi_polygons(
        shapely.multipoints(points + (low + high) / 2), only_edges=True
    )
    inside = shapely.intersection(shapely.get_parts(edges), shapely.polygons(district))
    for line in inside[shapely.length(inside) > 1.0]:
        is_kept = rng.uniform() > 0.03
        if is_kept:
            rank = Rank.COLLECTOR if rng.uniform() < 0.08 else Rank.RESIDENTIAL
            lines.append((shapely.get_coordinates(line), rank))


def junctions(
    lines: NDArray[np.object_], nodes: IntArray, width_m: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """How much of each edge lies in its two junctions: (E, 2) metres, and whether they are some.

    An arm of half-width b that leaves at the angle t from an arm of half-width a covers the
    other's first b / sin t + a / tan t metres (zero for its straight continuation).
    """
    ends = np.stack([shapely.get_coordinates(shapely.get_point(lines, i)) for i in (0, -1)], 1)
    inner = [shapely.get_coordinates(shapely.line_interpolate_point(lines, s)) for s in (4.0, -4.0)]
    arms = (np.stack(inner, 1) - ends).reshape(-1, 2)
    arms /= np.maximum(np.hypot(*arms.T), 1e-9)[:, None]
    half = np.repeat(width_m / 2, 2)
    flat = nodes.ravel()
    order = np.argsort(flat, kind="stable")
    trim_m = np.zeros(len(flat))
    is_junction = np.zeros(len(flat), np.bool_)
    for members in np.split(order, np.flatnonzero(np.diff(flat[order])) + 1):
        cosine = arms[members] @ arms[members].T
        sine = np.sqrt(np.clip(1.0 - cosine**2, 0.08, 1.0))
        covered = (half[members] + half[members][:, None] * cosine) / sine
        covered[cosine < -0.9] = 0.0
        np.fill_diagonal(covered, 0.0)
        trim_m[members] = np.clip(covered.max(axis=1), 0.0, 28.0)
        is_junction[members] = len(members) > 2
    return trim_m.reshape(-1, 2), is_junction.reshape(-1, 2)


def rounded(lines: NDArray[np.object_], half_m: FloatArray) -> shapely.Geometry:
    """All the streets as one area whose inner corners are rounded."""
    area = shapely.union_all(shapely.buffer(lines, half_m, quad_segs=4))
    grown = shapely.buffer(area, _CORNER_RADIUS_M, quad_segs=3)
    return shapely.buffer(grown, -_CORNER_RADIUS_M, quad_segs=3)
