"""Procedural cities: streets, blocks, buildings, trees and cars, at one date and at another."""

from __future__ import annotations

import numpy as np
import shapely

from ciper.city.blocks import Sketch, find_blocks
from ciper.city.buildings import collect
from ciper.city.dates import Changes, at_other_date, changes
from ciper.city.furniture import (
    building_tree,
    clear_sites,
    make_cars,
    make_trees,
    street_sites,
    street_slots,
    street_trees,
)
from ciper.city.markings import paint_streets, stamp_pits
from ciper.city.parts import (
    Buildings,
    Cars,
    City,
    FloatArray,
    RoofKind,
    Surface,
    Trees,
)
from ciper.city.streets import make_stations, make_streets
from ciper.city.surface import Ground
from ciper.city.uses import draw_block
from ciper.errors import ConfigError

__all__ = [
    "Buildings",
    "Cars",
    "Changes",
    "City",
    "RoofKind",
    "Surface",
    "Trees",
    "at_other_date",
    "changes",
    "make_city",
]

_SURFACE_GSD = 0.25


def make_city(seed: int, size_m: float) -> City:
    """Build a city that is a function of its seed and size alone.

    Args:
        seed: a non-negative number.
        size_m: edge of the square, at least 100 m.

    Raises:
        ConfigError: when the seed is negative or the square too small.
    """
    if seed < 0 or size_m < 100.0:
        raise ConfigError(
            f"A city of seed {seed} and {size_m:g} m cannot be built; expected a seed of 0 or more"
            " and an edge of 100 m or more; choose other numbers."
        )
    # One stream per part: a change in one does not shift the others.
    parts = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    streets = make_streets(parts[0], size_m)
    stations = make_stations(streets, 0.5)
    sketch = _sketch_blocks(streets.right_of_way, size_m, parts[1])
    ground = Ground(size_m, _SURFACE_GSD)
    ground.burn(sketch.fills)
    for rectangles, surface, only_on in sketch.stamps:
        ground.stamp(rectangles, surface, None if only_on is None else (only_on,))
    paint_streets(ground, streets, stations, parts[2])
    buildings = collect(sketch.wings, size_m, streets.right_of_way)
    places, scales = street_trees(streets, stations, parts[3])
    row_trees = Sketch(parts[3])
    row_trees.plant(places, "tree", scales)
    stamp_pits(ground, places)
    trees = make_trees(
        np.concatenate([*row_trees.trees, *sketch.trees]), buildings, ground, parts[3]
    )
    walls = building_tree(buildings)
    slots = _free_slots(
        np.concatenate([street_slots(streets, stations, parts[4]), *sketch.slots]), size_m, walls
    )
    cars = make_cars(slots, parts[4].uniform(0.45, 0.75), walls, parts[4])
    sites = np.concatenate([street_sites(streets, stations, parts[5]), *sketch.sites])
    return City(
        seed=seed,
        size_m=size_m,
        surface=ground.ids,
        surface_gsd=_SURFACE_GSD,
        buildings=buildings,
        trees=trees,
        cars=cars,
        camera_sites=clear_sites(sites, size_m, buildings, trees, cars),
        car_slots=slots,
    )


def _sketch_blocks(
    right_of_way: shapely.Geometry, size_m: float, rng: np.random.Generator
) -> Sketch:
    """Draw every block, with a density that falls off from somewhere in the city."""
    core, urbanity = rng.uniform(0.0, size_m, 2), rng.uniform(0.15, 1.05)
    reach_m = rng.uniform(0.5, 1.0) * size_m
    sketch = Sketch(rng)
    for block in find_blocks(right_of_way, size_m):
        middle = shapely.get_coordinates(shapely.centroid(block))[0]
        density = urbanity * (1.1 - np.hypot(*(middle - core)) / reach_m) + rng.normal(0.0, 0.12)
        draw_block(sketch, block, float(np.clip(density, 0.0, 1.0)))
    return sketch


def _free_slots(slots: FloatArray, size_m: float, walls: shapely.STRtree) -> FloatArray:
    """Slots (K, 4) well inside the city and not within a wall."""
    slots = slots[((slots[:, :2] > 1.0) & (slots[:, :2] < size_m - 1.0)).all(axis=1)]
    is_free = np.ones(len(slots), np.bool_)
    is_free[walls.query(shapely.points(slots[:, :2]), predicate="dwithin", distance=0.9)[0]] = False
    return slots[is_free]
