"""What stands on streets and elsewhere: trees, cars, and places for cameras."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ciper.city.markings import lane_center, make_lanes
from ciper.city.parts import (
    BoolArray,
    Buildings,
    Cars,
    FloatArray,
    Surface,
    Trees,
)
from ciper.city.streets import Rank, Stations, Streets
from ciper.city.surface import DRIVEN, Ground

_CAR_COLORS = np.array(
    [
        (238, 238, 240), (24, 24, 26), (128, 130, 134), (188, 190, 194), (70, 74, 80),
        (150, 24, 28), (28, 52, 110), (44, 84, 140), (200, 184, 150), (46, 72, 54),
        (210, 160, 40), (90, 60, 44),
    ]
)  # fmt: skip
_CAR_SHARES = (0.22, 0.18, 0.14, 0.13, 0.1, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01)
_CAMERA_TO_WALL_M = 0.7
_CAMERA_TO_CAR_M = 2.0
_CAMERA_TO_TRUNK_M = 0.8


def street_trees(
    streets: Streets, stations: Stations, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Rows of trees along the kerbs and on medians: their (K, 2) places and (K,) growth scales."""
    lanes = make_lanes(streets)
    # The later digits of the style are as good as fresh numbers, and shared by the whole street.
    habit = (streets.style * 997.0) % 1.0
    spacing_m = 6.0 + 9.0 * ((streets.style * 89.0) % 1.0)
    half_m = streets.width_m / 2
    places: list[FloatArray] = []
    scales: list[FloatArray] = []
    for side in (-1.0, 0.0, 1.0):
        has_row = (habit > 0.38) & (streets.sidewalk_m > 1.8) & (streets.rank != Rank.ALLEY)
        has_row &= (habit > 0.6) | (side > 0)
        if side == 0.0:
            has_row = lanes.median_m > 0.0
        clear = (stations.after_start_m > 6.0) & (stations.before_end_m > 6.0)
        chance = 0.85 * 0.5 / spacing_m[stations.edge]
        near = stations.where(
            has_row[stations.edge] & clear & (rng.uniform(size=len(clear)) < chance)
        )
        x, y = near.offset(side * (half_m[near.edge] + 0.95))
        xy = np.column_stack([x, y]) + rng.normal(0.0, 0.12, (len(x), 2))
        far = _thinned(xy, 5.0)
        places.append(xy[far])
        scales.append(0.45 + 0.6 * ((streets.style * 313.0) % 1.0)[near.edge[far]])
    return np.concatenate(places), np.concatenate(scales)


def street_slots(streets: Streets, stations: Stations, rng: np.random.Generator) -> FloatArray:
    """Places for cars on streets, (K, 4): along the kerbs, and a few in the driving lanes."""
    lanes = make_lanes(streets)
    slots: list[FloatArray] = []
    for side in (-1.0, 1.0):
        clear = (stations.after_start_m > 7.5) & (stations.before_end_m > 7.5)
        every = np.floor(stations.after_start_m / 0.5).astype(np.int64) % 12 == 6
        parked = stations.where((lanes.parking_m[stations.edge] > 0) & clear & every)
        # The middle of a parked car is 1.1 m from the kerb.
        x, y = parked.offset(side * (streets.width_m[parked.edge] / 2 - 1.1))
        flip = 180.0 * ((side < 0) ^ (rng.uniform(size=len(x)) < 0.06))
        slots.append(np.column_stack([x, y, parked.heading_deg + flip, np.full(len(x), 5.5)]))
        for lane in range(2):
            is_lane = (lanes.num_lanes > lane) & (streets.rank != Rank.ALLEY)
            chance = np.array([0.5 / 22, 0.5 / 35, 0.5 / 90, 0.0])[streets.rank]
            picked = is_lane[stations.edge] & (rng.uniform(size=len(clear)) < chance[stations.edge])
            moving = stations.where(
                picked & (stations.after_start_m > 3) & (stations.before_end_m > 3)
            )
            x, y = moving.offset(side * lane_center(lanes, moving.edge, lane))
            flip = np.full(len(x), 180.0 * (side < 0))
            slots.append(np.column_stack([x, y, moving.heading_deg + flip, np.full(len(x), 9.0)]))
    found = np.concatenate(slots)
    found[:, 2] = (found[:, 2] + rng.normal(0.0, 1.5, len(found))) % 360.0
    return found


def street_sites(streets: Streets, stations: Stations, rng: np.random.Generator) -> FloatArray:
    """Places for cameras on streets, (K, 3): the middle of lanes, and sidewalks."""
    lanes = make_lanes(streets)
    sites: list[FloatArray] = []
    for side in (-1.0, 1.0):
        for lane, step in ((0, 14), (1, 18), (2, 22), (-1, 28)):
            near = stations.where(rng.uniform(size=len(stations.x)) < 1.0 / step)
            if lane >= 0:
                near = near.where(lanes.num_lanes[near.edge] > lane)
                offset = lane_center(lanes, near.edge, lane)
            else:
                near = near.where(streets.sidewalk_m[near.edge] > 1.5)
                offset = (streets.width_m + streets.sidewalk_m)[near.edge] / 2 + 0.35
            x, y = near.offset(side * offset + rng.normal(0.0, 0.25, len(near.x)))
            heading = near.heading_deg + (180.0 if side < 0 else 0.0)
            sites.append(np.column_stack([x, y, heading % 360.0]))
    return np.concatenate(sites)


def make_cars(
    slots: FloatArray, share: float, blocked: shapely.STRtree, rng: np.random.Generator
) -> Cars:
    """Put cars on about `share` of the slots, none of them touching another or a building."""
    slots = slots[rng.uniform(size=len(slots)) < share]
    slots = slots[_thinned(slots[:, :2], 2.35)]
    is_van = rng.uniform(size=len(slots)) < 0.1
    is_truck = (slots[:, 3] > 8.0) & (rng.uniform(size=len(slots)) < 0.1)
    length = np.where(is_van, rng.uniform(4.9, 5.4, len(slots)), rng.uniform(3.6, 4.9, len(slots)))
    length = np.where(is_truck, rng.uniform(6.5, 9.0, len(slots)), np.minimum(length, slots[:, 3]))
    height = np.where(is_van, rng.uniform(2.0, 2.6, len(slots)), rng.uniform(1.4, 1.8, len(slots)))
    shade = rng.uniform(0.85, 1.08, (len(slots), 1))
    color = _CAR_COLORS[rng.choice(len(_CAR_COLORS), len(slots), p=_CAR_SHARES)]
    cars = Cars(
        x=slots[:, 0] + rng.normal(0.0, 0.08, len(slots)),
        y=slots[:, 1] + rng.normal(0.0, 0.08, len(slots)),
        heading_deg=(slots[:, 2] + rng.normal(0.0, 1.2, len(slots))) % 360.0,
        length_m=length,
        width_m=np.where(is_truck, 2.4, rng.uniform(1.7, 2.0, len(slots))),
        height_m=np.where(is_truck, rng.uniform(2.8, 3.5, len(slots)), height),
        color=np.clip(color * shade, 0, 255).astype(np.uint8),
    )
    outlines = car_outlines(cars)
    hits = blocked.query(outlines, predicate="intersects")[0]
    a, b = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    is_free = np.ones(len(slots), np.bool_)
    is_free[hits] = False
    is_free[b[a < b]] = False
    return cars.take(is_free)


def car_outlines(cars: Cars) -> NDArray[np.object_]:
    """The cars from above, (N,) polygons."""
    h = np.deg2rad(cars.heading_deg)
    ahead = np.stack([np.sin(h), np.cos(h)], 1) * cars.length_m[:, None] / 2
    aside = np.stack([np.cos(h), -np.sin(h)], 1) * cars.width_m[:, None] / 2
    center = np.stack([cars.x, cars.y], 1)
    corners = [center + ahead + aside, center + ahead - aside, center - ahead - aside]
    outlines: NDArray[np.object_] = shapely.polygons(
        np.stack([*corners, center - ahead + aside], 1)
    )
    return outlines


def make_trees(
    rows: FloatArray, buildings: Buildings, ground: Ground, rng: np.random.Generator
) -> Trees:
    """Trees of (K, 6) rows: those that stand in a wall, in water or on asphalt go.

    Crowns next to a wall or to another trunk are cut back.
    """
    x, y = rows[:, 0], rows[:, 1]
    size_m = ground.size_m
    is_kept = (x > 0) & (y > 0) & (x < size_m) & (y < size_m)
    is_kept &= ~np.isin(ground.at(x, y), (*DRIVEN, Surface.WATER, Surface.RAIL))
    rows = rows[is_kept]
    away = distance_to(building_tree(buildings), rows[:, :2], 6.0)
    crown = np.minimum(rows[:, 2], away + 0.8)
    is_shrub = rows[:, 4] < 0.3
    is_kept = (away > np.where(is_shrub, 0.5, 1.0)) & (crown > 0.35)
    rows, crown, is_shrub = rows[is_kept], crown[is_kept], is_shrub[is_kept]
    close = _thinned(rows[:, :2], 0.9)
    rows, crown = rows[close], crown[close]
    scale = crown / rows[:, 2]
    height = rows[:, 3] * np.sqrt(scale)
    return Trees(
        x=rows[:, 0],
        y=rows[:, 1],
        crown_radius_m=crown,
        height_m=height,
        trunk_height_m=np.minimum(rows[:, 4], 0.4 * height),
        is_evergreen=rows[:, 5] > 0.5,
        color_seed=rng.integers(2**32, size=len(rows), dtype=np.uint32),
    )


def building_tree(buildings: Buildings) -> shapely.STRtree:
    """Spatial index of the footprints."""
    return shapely.STRtree([shapely.Polygon(outline) for outline in buildings.footprints])


def distance_to(tree: shapely.STRtree, xy: FloatArray, at_most_m: float) -> FloatArray:
    """Distance of points (K, 2) to the nearest geometry, `at_most_m` beyond that."""
    distance = np.full(len(xy), at_most_m)
    found, metres = tree.query_nearest(
        shapely.points(xy), max_distance=at_most_m, return_distance=True, all_matches=False
    )
    distance[found[0]] = metres
    return distance


def clear_sites(
    sites: FloatArray, size_m: float, buildings: Buildings, trees: Trees, cars: Cars
) -> FloatArray:
    """The sites (K, 3) inside the city that no building, car or trunk obstructs."""
    is_inside = ((sites[:, :2] > 0.0) & (sites[:, :2] < size_m)).all(axis=1)
    sites = sites[is_inside]
    xy = sites[:, :2]
    is_clear = distance_to(building_tree(buildings), xy, 1.0) > _CAMERA_TO_WALL_M
    trunks = np.stack([trees.x, trees.y], 1)
    is_clear &= _farther(xy, trunks, np.full(len(trunks), _CAMERA_TO_TRUNK_M))
    is_clear &= _farther(xy, np.stack([cars.x, cars.y], 1), _CAMERA_TO_CAR_M + cars.length_m / 2)
    return sites[is_clear]


def _farther(xy: FloatArray, others: FloatArray, radius_m: FloatArray) -> BoolArray:
    """Whether each point (K, 2) is outside the circles about all of the others."""
    is_outside = np.ones(len(xy), np.bool_)
    if len(others) and len(xy):
        for near in cKDTree(xy).query_ball_point(others, radius_m):
            is_outside[near] = False
    return is_outside


def _thinned(xy: FloatArray, distance_m: float) -> BoolArray:
    """Mask of points (K, 2) that have no earlier point within the distance."""
    pairs = (
        cKDTree(xy).query_pairs(distance_m, output_type="ndarray")
        if len(xy)
        else np.empty((0, 2), int)
    )
    is_kept = np.ones(len(xy), np.bool_)
    is_kept[pairs.max(axis=1, initial=0)] = False
    return is_kept
