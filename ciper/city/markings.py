"""Streets on the ground: lanes, kerbs, sidewalks and paint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from ciper.city.parts import BoolArray, FloatArray, IntArray, Surface
from ciper.city.streets import Rank, Stations, Streets
from ciper.city.surface import Ground, rectangles


@dataclass(frozen=True, eq=False)
class Lanes:
    """How the carriageway of each street edge is divided; all (E,), widths in metres.

    Attributes:
        parking_m: width of the parking lane on each side, 0 without.
        num_lanes: driving lanes per direction.
        lane_m: width of one of them.
        median_m: width of the planted island in the middle, 0 without.
    """

    parking_m: FloatArray
    num_lanes: IntArray
    lane_m: FloatArray
    median_m: FloatArray


def make_lanes(streets: Streets) -> Lanes:
    """Divide the carriageways by rank, width and style."""
    rank, style = streets.rank, streets.style
    is_arterial, is_alley = rank == Rank.ARTERIAL, rank == Rank.ALLEY
    median_m = np.where(is_arterial & (streets.width_m > 18.5) & (style < 0.5), 2.6, 0.0)
    may_park = np.where(is_arterial, style > 0.55, style > 0.2)
    parking_m = np.where(may_park & ~is_alley, 2.2, 0.0)
    free_m = (streets.width_m - median_m) / 2 - parking_m
    num_lanes = np.maximum(np.floor(free_m / 2.9), 1).astype(np.int64)
    return Lanes(parking_m, num_lanes, free_m / num_lanes, median_m)


def lane_center(lanes: Lanes, edge: IntArray, lane: int) -> FloatArray:
    """Distance of a lane's middle from the centre line, in metres."""
    offset: FloatArray = lanes.median_m[edge] / 2 + (lane + 0.5) * lanes.lane_m[edge]
    return offset


def paint_streets(
    ground: Ground, streets: Streets, stations: Stations, rng: np.random.Generator
) -> None:
    """Sidewalks, kerbs and asphalt, then everything that is painted on them."""
    sidewalks = shapely.get_parts(streets.right_of_way)
    asphalt = shapely.get_parts(streets.carriageway)
    kerb = shapely.get_parts(shapely.buffer(streets.carriageway, 0.3, quad_segs=2))
    ground.burn([(part, Surface.SIDEWALK) for part in sidewalks])
    ground.burn([(part, Surface.CURB) for part in kerb])
    ground.burn([(part, Surface.ASPHALT) for part in asphalt])
    _paint_repairs(ground, stations, rng)
    _paint_verges(ground, streets, stations)
    lanes = make_lanes(streets)
    is_open = (stations.after_start_m > 1.0) & (stations.before_end_m > 1.0)
    _paint_lines(ground, streets, lanes, stations.where(is_open))
    _paint_crossings(ground, streets, stations, rng)


def _paint_repairs(ground: Ground, stations: Stations, rng: np.random.Generator) -> None:
    """Patches of newer asphalt."""
    some = stations.where(rng.uniform(size=len(stations.x)) < 0.012)
    x, y = some.offset(rng.uniform(-6.0, 6.0, len(some.x)))
    size = np.column_stack([rng.uniform(1.5, 11.0, len(x)), rng.uniform(0.8, 3.2, len(x))])
    patches = np.column_stack([x, y, some.heading_deg, size])
    ground.stamp(patches, Surface.PARKING, (Surface.ASPHALT,))


def _paint_verges(ground: Ground, streets: Streets, stations: Stations) -> None:
    """Strips of grass between kerb and sidewalk."""
    has_verge = (streets.sidewalk_m > 2.5) & ((streets.style * 53.0) % 1.0 < 0.4)
    clear = (stations.after_start_m > 5.0) & (stations.before_end_m > 5.0)
    near = stations.where(has_verge[stations.edge] & clear)
    for side in (-1.0, 1.0):
        x, y = near.offset(side * (streets.width_m[near.edge] / 2 + 0.95))
        strip = rectangles(x, y, near.heading_deg, 0.7, 1.3)
        ground.stamp(strip, Surface.GRASS, (Surface.SIDEWALK,))


def _paint_lines(ground: Ground, streets: Streets, lanes: Lanes, stations: Stations) -> None:
    """Medians, centre lines, lane lines, parking lanes and edge lines along the edges."""
    asphalt = (Surface.ASPHALT, Surface.PARKING)
    style, rank = streets.style, streets.rank
    half_m, s = streets.width_m / 2, stations.after_start_m
    is_median = (lanes.median_m > 0) & (rank == Rank.ARTERIAL)
    is_double = (rank == Rank.ARTERIAL) & ~is_median
    is_dashed = (rank == Rank.COLLECTOR) | ((rank == Rank.RESIDENTIAL) & (style * 31 % 1 < 0.3))
    has_edge_line = (rank <= Rank.COLLECTOR) & (style * 17 % 1 < 0.5)
    has_ticks = (lanes.parking_m > 0) & (style * 41 % 1 < 0.45)
    dash = s % 9.0 < 3.5

    def line(offset: FloatArray, mask: BoolArray, width_m: float, value: Surface) -> None:
        """A stroke at `offset[edge]` metres right of the centre line, where the mask holds."""
        near = stations.where(mask)
        x, y = near.offset(offset[near.edge])
        ground.stamp(rectangles(x, y, near.heading_deg, 0.7, width_m), value, asphalt)

    edge, zero = stations.edge, np.zeros(len(style))
    end = (s > 4.0) & (stations.before_end_m > 4.0)
    line(zero, is_median[edge] & end, 2.6, Surface.CURB)
    green = stations.where(is_median[edge] & end & (s > 5.0) & (stations.before_end_m > 5.0))
    strip = rectangles(green.x, green.y, green.heading_deg, 0.7, 1.9)
    ground.stamp(strip, Surface.GRASS, (Surface.CURB,))
    is_white = style * 7 % 1 < 0.4
    for side in (-1.0, 1.0):
        double = is_double[edge]
        line(zero + 0.3 * side, double & ~is_white[edge], 0.26, Surface.YELLOW_MARKING)
        line(zero + 0.3 * side, double & is_white[edge], 0.26, Surface.MARKING)
        for lane in range(1, int(lanes.num_lanes.max(initial=1))):
            inner = side * (lanes.median_m / 2 + lane * lanes.lane_m)
            is_lane = (lanes.num_lanes > lane) & (rank <= Rank.COLLECTOR)
            line(inner, is_lane[edge] & dash, 0.26, Surface.MARKING)
        parked = side * (half_m - lanes.parking_m)
        line(parked, (has_ticks & (lanes.parking_m > 0))[edge], 0.26, Surface.MARKING)
        line(
            side * (half_m - 0.45),
            (has_edge_line & (lanes.parking_m == 0))[edge],
            0.26,
            Surface.MARKING,
        )
        tick = has_ticks[edge] & (np.floor(s / 0.5).astype(np.int64) % 12 == 0)
        near = stations.where(tick)
        x, y = near.offset(side * (half_m[near.edge] - 1.1))
        ground.stamp(rectangles(x, y, near.heading_deg, 0.26, 2.1), Surface.MARKING, asphalt)
    line(zero, is_dashed[edge] & dash, 0.26, Surface.MARKING)


def _paint_crossings(
    ground: Ground, streets: Streets, stations: Stations, rng: np.random.Generator
) -> None:
    """Zebra crossings and stop lines at the mouths of some junctions."""
    asphalt = (
        Surface.ASPHALT,
        Surface.PARKING,
        Surface.MARKING,
        Surface.YELLOW_MARKING,
        Surface.CURB,
    )
    chance = np.array([0.85, 0.6, 0.22, 0.0])[streets.rank]
    for k, to_mouth in enumerate((stations.after_start_m, stations.before_end_m)):
        has_zebra = streets.is_junction[:, k] & (rng.uniform(size=len(chance)) < chance)
        is_long = np.minimum(stations.after_start_m + stations.before_end_m, 99.0) > 18.0
        for wanted, depth_m in ((3.25, 3.0), (5.75, 0.45)):
            at = np.abs(to_mouth - wanted) < 0.25
            near = stations.where(at & is_long & has_zebra[stations.edge])
            half = streets.width_m[near.edge] / 2
            if depth_m < 1.0:
                # Who drives on the right reaches a junction at an edge's end on its right half.
                x, y = near.offset((-1.0 if k == 0 else 1.0) * half / 2)
                size = np.column_stack([np.full(len(x), depth_m), half - 0.6])
                stops = np.column_stack([x, y, near.heading_deg, size])
                ground.stamp(stops, Surface.MARKING, asphalt[:2])
                continue
            wide = near.offset(np.zeros(len(half)))
            bare = np.column_stack([*wide, near.heading_deg, np.full(len(half), 3.6), 2 * half])
            ground.stamp(bare, Surface.ASPHALT, asphalt[1:])
            for shift in np.arange(-10.5, 10.6, 1.1):
                some = near.where(np.abs(shift) < half - 0.5)
                x, y = some.offset(float(shift))
                ground.stamp(
                    rectangles(x, y, some.heading_deg, depth_m, 0.55), Surface.MARKING, asphalt
                )


def stamp_pits(ground: Ground, places: FloatArray) -> None:
    """Bare soil about street trees (K, 2) that stand on sidewalks."""
    pits = rectangles(places[:, 0], places[:, 1], np.zeros(len(places)), 1.3, 1.3)
    ground.stamp(pits, Surface.SOIL, (Surface.SIDEWALK,))
