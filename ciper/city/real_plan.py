"""Cities at real places: the buildings, streets and grounds of a map, and what it leaves open.

What the map states stays where it states it. The rest is drawn plausibly from a seed: heights and
looks (`ciper.city.real_buildings`), the ground about the houses (`ciper.city.real_ground`), trees,
cars, markings. The result is an ordinary `City`: everything that renders or changes one works on
it.

A map of buildings only gets streets midway between its blocks of houses
(`ciper.city.traced_streets`), paved squares or gardens elsewhere, as densely as it is built, and
places for cameras on both: some metres from the nearest house, in courts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely

from ciper.city.blocks import Sketch
from ciper.city.buildings import buildings_of
from ciper.city.footprints import Shapes, StreetMap, bounds_of, read_map
from ciper.city.furniture import (
    clear_sites,
    make_cars,
    make_trees,
    street_sites,
    street_slots,
    street_trees,
)
from ciper.city.markings import paint_streets, stamp_pits
from ciper.city.parts import Buildings, City, FloatArray, Surface
from ciper.city.real_buildings import make_wings
from ciper.city.real_ground import (
    draw_courts,
    draw_grounds,
    draw_paths,
    draw_rows,
    draw_waters,
    paint_ballast,
    paint_plots,
    paint_tram_rails,
    plant_plots,
    stand_between,
)
from ciper.city.real_streets import stations_of, streets_from_map
from ciper.city.surface import DRIVEN, Ground
from ciper.city.traced_streets import trace_streets
from ciper.errors import ConfigError
from ciper.geo import LocalFrame, check_lat_lon

_SURFACE_GSD = 0.25
_MARGIN_M = 150.0
# A square with less of it under houses is no city.
_LEAST_BUILT = 0.002
# Training takes squares with at least this share of the densest one's buildings.
_WELL_BUILT = 0.4
_STEPS_PER_SQUARE = 4


@dataclass(frozen=True, eq=False)
class PlacedCity:
    """A city and the local frame whose origin is its middle."""

    city: City
    frame: LocalFrame


def plan_city(
    source: StreetMap | Path | str,
    seed: int,
    size_m: float,
    *,
    at: tuple[float, float] | None = None,
) -> PlacedCity:
    """Build the city of a square of a map, a function of map, seed, size and place alone.

    Args:
        source: a map, or a file of one (`ciper.city.footprints`).
        seed: of everything that the map does not state, and of the place if `at` does not name it.
        size_m: edge of the square, at least 100 m; its sides run along true north and east.
        at: latitude and longitude of its middle; else one of the map's well built squares.

    Raises:
        ConfigError: the seed is negative, the square too small, or hardly a building lies in it.
        DatasetError, GeoError: the file cannot be used.
    """
    if seed < 0 or size_m < 100.0:
        raise ConfigError(
            f"a city of seed {seed} and {size_m:g} m cannot be built; expected a seed of 0 or more "
            "and an edge of 100 m or more"
        )
    street_map = source if isinstance(source, StreetMap) else read_map(source)
    lat, lon = seeded_place(street_map, seed, size_m) if at is None else at
    check_lat_lon(lat=lat, lon=lon)
    frame = LocalFrame(lat=lat, lon=lon)
    return PlacedCity(_build(street_map, frame, seed, size_m), frame)


# ------------------------------------------------------------------------------------------ places


def densest_place(street_map: StreetMap, size_m: float) -> tuple[float, float]:
    """Latitude and longitude of the middle of the square with the most building area."""
    places, built_m2 = _squares(street_map, size_m)
    lat, lon = places[int(np.argmax(built_m2))]
    return float(lat), float(lon)


def seeded_place(street_map: StreetMap, seed: int, size_m: float) -> tuple[float, float]:
    """The middle of one of the well built squares of a map, another one for another seed."""
    places, built_m2 = _squares(street_map, size_m)
    places = places[built_m2 >= _WELL_BUILT * built_m2.max()]
    rng = np.random.default_rng([seed, 6])
    lat, lon = places[rng.integers(len(places))]
    frame = LocalFrame(lat=float(lat), lon=float(lon))
    x, y = rng.uniform(-0.5, 0.5, 2) * size_m / _STEPS_PER_SQUARE
    moved_lat, moved_lon = frame.to_geographic(x=x, y=y)
    return float(moved_lat), float(moved_lon)


def _squares(street_map: StreetMap, size_m: float) -> tuple[FloatArray, FloatArray]:
    """Middles (lat, lon) of overlapping squares over a map's buildings, and the area built in each.

    A building counts as the box about it, where its middle lies.
    """
    west, south, east, north = bounds_of(street_map.buildings).T
    lon, lat = (west + east) / 2, (south + north) / 2
    frame = LocalFrame(lat=float(np.median(lat)), lon=float(np.median(lon)))
    x, y = frame.to_local(lat=lat, lon=lon)
    scale = 111_320.0**2 * np.cos(np.deg2rad(lat))
    area_m2 = (east - west) * (north - south) * scale
    step = size_m / _STEPS_PER_SQUARE
    cell = np.floor(np.column_stack([x, y]) / step).astype(np.int64)
    shifts = np.arange(_STEPS_PER_SQUARE)
    # The squares that contain a cell begin at it or at one of the cells west and south of it.
    corner = cell[:, None, None] - np.stack(np.meshgrid(shifts, shifts), -1)
    corners, square = np.unique(corner.reshape(-1, 2), axis=0, return_inverse=True)
    weight_m2 = np.repeat(area_m2, len(shifts) ** 2)
    built_m2 = np.bincount(square.ravel(), weight_m2).astype(np.float64)
    middle = (corners + _STEPS_PER_SQUARE / 2) * step
    places = np.column_stack(frame.to_geographic(x=middle[:, 0], y=middle[:, 1]))
    return places, built_m2


# ------------------------------------------------------------------------------------------- city


def _build(street_map: StreetMap, frame: LocalFrame, seed: int, size_m: float) -> City:
    """The city of a square whose middle is a frame's origin."""
    # One stream per part: a change in one does not shift the others.
    parts = [np.random.default_rng(s) for s in np.random.SeedSequence((seed, 7)).spawn(6)]
    placed = _PlacedMap(street_map, frame, size_m)
    wings = make_wings(placed.shapes("buildings"), seed)
    outlines = np.array([shapely.Polygon(wing.polygon) for wing in wings], np.object_)
    square = shapely.box(0.0, 0.0, size_m, size_m)
    _check_built(placed, float(shapely.area(shapely.intersection(outlines, square)).sum()))
    is_inside = shapely.intersects(outlines, square)
    buildings = buildings_of([w for w, inside in zip(wings, is_inside, strict=True) if inside])
    walls = shapely.STRtree(outlines)
    mapped = placed.shapes("streets")
    if len(mapped) > 0:
        streets = streets_from_map(mapped, seed, size_m, walls)
    else:
        streets = trace_streets(outlines, seed, size_m, walls)
    stations = stations_of(streets)
    ground = Ground(size_m, _SURFACE_GSD)
    sketch = _paint_ground(placed, ground, buildings, parts[0])
    if len(mapped) == 0:
        stand_between(sketch, walls, size_m)
    if len(streets.lines) > 0:
        paint_streets(ground, streets, stations, parts[2])
    paint_tram_rails(ground, placed.shapes("rails"))
    if len(street_map.trees) == 0:
        places, scales = street_trees(streets, stations, parts[3])
        sketch.plant(places, "tree", scales)
        stamp_pits(ground, places)
    trees = make_trees(_stacked(sketch.trees, 6), buildings, ground, parts[3])
    wanted = [street_slots(streets, stations, parts[4]), *sketch.slots]
    slots = _free_slots(_stacked(wanted, 4), ground, walls)
    cars = make_cars(slots, parts[4].uniform(0.45, 0.75), walls, parts[4])
    sites = _stacked([street_sites(streets, stations, parts[5]), *sketch.sites], 3)
    is_firm = ~np.isin(ground.at(sites[:, 0], sites[:, 1]), (Surface.WATER, Surface.RAIL))
    return City(
        seed=seed,
        size_m=size_m,
        surface=ground.ids,
        surface_gsd=_SURFACE_GSD,
        buildings=buildings,
        trees=trees,
        cars=cars,
        camera_sites=clear_sites(sites[is_firm], size_m, buildings, trees, cars),
        car_slots=slots,
    )


@dataclass(frozen=True)
class _PlacedMap:
    """A map seen from one square of it."""

    street_map: StreetMap
    frame: LocalFrame
    size_m: float

    def shapes(self, layer: str) -> Shapes:
        """The shapes of one of the map's layers in and about the square, in the city's metres."""
        reach_m = self.size_m / 2 + _MARGIN_M
        edge, rim = np.linspace(-reach_m, reach_m, 9), np.full(9, reach_m)
        lat, lon = self.frame.to_geographic(
            x=np.concatenate([edge, edge, -rim, rim]), y=np.concatenate([-rim, rim, edge, edge])
        )
        all_shapes: Shapes = getattr(self.street_map, layer)
        west, south, east, north = bounds_of(all_shapes).T
        is_near = (west < lon.max()) & (east > lon.min())
        is_near &= (south < lat.max()) & (north > lat.min())
        near = all_shapes.take(is_near)
        return Shapes(
            shapely.transform(near.geometry, self._city_from_degrees), near.tags, near.key
        )

    def _city_from_degrees(self, lon_lat: FloatArray) -> FloatArray:
        x, y = self.frame.to_local(lat=lon_lat[:, 1], lon=lon_lat[:, 0])
        return np.column_stack([x, y]) + self.size_m / 2


def _check_built(placed: _PlacedMap, built_m2: float) -> None:
    if built_m2 >= _LEAST_BUILT * placed.size_m**2:
        return
    street_map, frame = placed.street_map, placed.frame
    west, south, east, north = bounds_of(street_map.buildings).T
    lat, lon = densest_place(street_map, placed.size_m)
    raise ConfigError(
        f"{street_map.path} has {built_m2:.0f} m2 of buildings in the {placed.size_m:g} m about "
        f"{frame.lat:.5f},{frame.lon:.5f}; they lie between {south.min():.5f},{west.min():.5f} and "
        f"{north.max():.5f},{east.max():.5f}, most of them about {lat:.5f},{lon:.5f}; choose a "
        "place there"
    )


def _paint_ground(
    placed: _PlacedMap, ground: Ground, buildings: Buildings, rng: np.random.Generator
) -> Sketch:
    """Everything on the ground but the streets, and the sketch of what stands on it."""
    paint_plots(ground, buildings, rng)
    grounds, waters = placed.shapes("grounds"), placed.shapes("waters")
    sketch = Sketch(rng)
    plant_plots(sketch, ground, shapely.union_all(shapely.make_valid(grounds.geometry)))
    draw_courts(sketch, buildings, ground.size_m)
    draw_grounds(sketch, grounds)
    draw_waters(sketch, waters, ground.size_m)
    draw_paths(sketch, placed.shapes("paths"))
    draw_rows(sketch, placed.shapes("rows"))
    trees = placed.shapes("trees")
    sketch.plant(shapely.get_coordinates(trees.geometry), "tree", rng.uniform(0.6, 1.0, len(trees)))
    ground.burn(sketch.fills)
    for rectangles, surface, only_on in sketch.stamps:
        ground.stamp(rectangles, surface, None if only_on is None else (only_on,))
    paint_ballast(ground, placed.shapes("rails"))
    return sketch


def _stacked(rows: list[FloatArray], num_columns: int) -> FloatArray:
    return np.concatenate([np.empty((0, num_columns)), *rows])


def _free_slots(slots: FloatArray, ground: Ground, walls: shapely.STRtree) -> FloatArray:
    """Slots (K, 4) on asphalt, well inside the city and not within a wall."""
    is_free = ((slots[:, :2] > 1.0) & (slots[:, :2] < ground.size_m - 1.0)).all(axis=1)
    is_free &= np.isin(ground.at(slots[:, 0], slots[:, 1]), DRIVEN)
    is_free[walls.query(shapely.points(slots[:, :2]), predicate="dwithin", distance=0.9)[0]] = False
    return slots[is_free]
