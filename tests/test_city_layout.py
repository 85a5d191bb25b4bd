"""The procedural city: what may stand where, and what differs between seeds and dates."""

from __future__ import annotations

import itertools
import time
from dataclasses import fields

import numpy as np
import pytest
import shapely
from city_helpers import assert_same
from numpy.typing import NDArray

from ciper.city.layout import City, RoofKind, Surface, at_other_date, changes, make_city
from ciper.city.streets import Rank, make_stations, make_streets
from ciper.city.surface import Ground
from ciper.errors import ConfigError

SIZE_M = 400.0
SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def cities() -> list[City]:
    return [make_city(seed, SIZE_M) for seed in SEEDS]


@pytest.fixture(scope="module")
def later(cities: list[City]) -> list[City]:
    return [at_other_date(city, 11) for city in cities]


@pytest.fixture(scope="module")
def both(cities: list[City], later: list[City]) -> list[City]:
    return cities + later


def _outlines(city: City) -> NDArray[np.object_]:
    return np.array([shapely.Polygon(f) for f in city.buildings.footprints])


def test_the_same_seed_gives_the_same_city(cities: list[City], later: list[City]) -> None:
    assert_same(make_city(SEEDS[0], SIZE_M), cities[0])
    assert_same(at_other_date(cities[0], 11), later[0])


def test_other_seeds_give_other_cities(cities: list[City]) -> None:
    for a, b in itertools.pairwise(cities):
        assert np.mean(a.surface != b.surface) > 0.4
        assert len(a.buildings) != len(b.buildings) or len(a.trees) != len(b.trees)


@pytest.mark.parametrize(("size_m", "pixels"), [(150.0, 600), (210.0, 840)])
def test_sizes(size_m: float, pixels: int) -> None:
    city = make_city(5, size_m)
    assert city.surface.shape == (pixels, pixels)
    assert city.surface.dtype == np.uint8
    assert city.surface_gsd == 0.25
    assert city.size_m == size_m


def test_arrays_have_the_promised_shapes_and_types(both: list[City]) -> None:
    for city in both:
        b, n = city.buildings, len(city.buildings.footprints)
        assert len(b) == n > 30
        assert b.roof_color.shape == b.facade_color.shape == (n, 3)
        assert b.roof_color.dtype == b.facade_color.dtype == city.cars.color.dtype == np.uint8
        assert b.style_seed.dtype == city.trees.color_seed.dtype == np.uint32
        assert set(np.unique(b.facade_style)) <= set(range(6))
        for part in (city.trees, city.cars, city.buildings):
            assert {len(getattr(part, item.name)) for item in fields(part)} == {len(part)}
        assert city.camera_sites.shape[1] == 3
        assert city.surface.max() <= max(Surface)


def test_dimensions_are_those_of_a_city(both: list[City]) -> None:
    for city in both:
        b, t, c = city.buildings, city.trees, city.cars
        assert b.eave_height_m.min() >= 2.0 and b.eave_height_m.max() <= 63.0
        assert np.all((b.roof_rise_m > 0) == (b.roof_kind != RoofKind.FLAT))
        assert t.crown_radius_m.min() > 0.2 and t.crown_radius_m.max() <= 7.0
        assert np.all(t.trunk_height_m < t.height_m) and t.height_m.max() <= 20.0
        assert c.length_m.min() > 3.0 and c.length_m.max() <= 9.0
        assert np.all((c.heading_deg >= 0) & (c.heading_deg < 360))
        headings = city.camera_sites[:, 2]
        assert np.all((headings >= 0) & (headings < 360))


def test_footprints_are_simple_and_counter_clockwise(both: list[City]) -> None:
    for city in both:
        assert shapely.is_valid(_outlines(city)).all()
        rings = shapely.get_exterior_ring(_outlines(city))
        assert shapely.is_ccw(rings).all()
        assert not any(np.array_equal(f[0], f[-1]) for f in city.buildings.footprints)


def test_pitched_roofs_stand_on_near_rectangles(both: list[City]) -> None:
    for city in both:
        for footprint, kind in zip(
            city.buildings.footprints, city.buildings.roof_kind, strict=True
        ):
            if kind != RoofKind.FLAT:
                assert len(footprint) == 4
                sides = np.roll(footprint, -1, axis=0) - footprint
                sides /= np.hypot(*sides.T)[:, None]
                assert np.all(np.abs((sides * np.roll(sides, -1, axis=0)).sum(axis=1)) < 0.1)


def test_no_two_buildings_overlap(both: list[City]) -> None:
    for city in both:
        outlines = _outlines(city)
        a, b = shapely.STRtree(outlines).query(outlines, predicate="intersects")
        shared = shapely.area(shapely.intersection(outlines[a[a < b]], outlines[b[a < b]]))
        assert shared.max(initial=0.0) < 0.05


def test_no_building_stands_on_a_street(cities: list[City]) -> None:
    for city in cities:
        mask = Ground(city.size_m, city.surface_gsd)
        # A pixel's width inside the walls: the raster cannot say more.
        mask.burn([(shapely.buffer(p, -0.3), 1) for p in _outlines(city)])
        under = city.surface[mask.ids == 1]
        on_street = np.isin(under, (Surface.ASPHALT, Surface.CURB, Surface.YELLOW_MARKING))
        assert on_street.mean() < 1e-4


def test_streets_fill_a_usual_share_and_have_markings(cities: list[City]) -> None:
    for city in cities:
        share = np.bincount(city.surface.ravel(), minlength=14) / city.surface.size
        assert 0.1 < share[Surface.ASPHALT] < 0.35
        assert 0.004 < share[Surface.MARKING] < 0.05
        assert 0.04 < share[Surface.SIDEWALK] < 0.25


def test_camera_sites_are_clear(both: list[City]) -> None:
    for city in both:
        xy = city.camera_sites[:, :2]
        assert np.all((xy > 0) & (xy < city.size_m))
        near = shapely.STRtree(_outlines(city)).query(
            shapely.points(xy), predicate="dwithin", distance=0.65
        )
        assert near.shape[1] == 0
        away = np.hypot(xy[:, None, 0] - city.cars.x, xy[:, None, 1] - city.cars.y)
        assert np.all(away >= 2.0 + city.cars.length_m / 2 - 1e-9)
        trunks = np.hypot(xy[:, None, 0] - city.trees.x, xy[:, None, 1] - city.trees.y)
        assert trunks.min() > 0.7


def test_camera_sites_are_many_and_everywhere(cities: list[City], later: list[City]) -> None:
    for city in cities:
        assert len(city.camera_sites) >= 3000 * (SIZE_M / 1000) ** 2
        quarters = np.floor(city.camera_sites[:, :2] / (SIZE_M / 4)).astype(int)
        assert len(np.unique(quarters, axis=0)) == 16
    for before, after in zip(cities, later, strict=True):
        assert 0.7 * len(before.camera_sites) < len(after.camera_sites)


def test_trees_and_cars_stand_clear_of_walls(both: list[City]) -> None:
    for city in both:
        walls = shapely.STRtree(_outlines(city))
        for part in (city.trees, city.cars):
            points = shapely.points(part.x, part.y)
            assert walls.query(points, predicate="intersects").shape[1] == 0
        assert len(city.trees) > 150 and len(city.cars) > 50


def test_another_date_changes_enough_but_not_the_city(
    cities: list[City], later: list[City]
) -> None:
    for before, after in zip(cities, later, strict=True):
        found = changes(before, after)
        assert 0.10 <= found.trees < 0.3
        assert 0.03 <= found.buildings < 0.2
        assert found.cars == 1.0
        assert 0.0 < np.mean(before.surface != after.surface) < 0.05
        assert (before.seed, before.size_m) == (after.seed, after.size_m)


def test_dates_differ_by_seed_and_leave_the_city_as_it_was(cities: list[City]) -> None:
    surface = cities[1].surface.copy()
    one, two = at_other_date(cities[1], 1), at_other_date(cities[1], 2)
    assert changes(one, two).trees > 0.1
    assert np.array_equal(cities[1].surface, surface)
    assert changes(cities[1], cities[1]) == changes(two, two)
    assert changes(two, two).trees == changes(two, two).buildings == changes(two, two).cars == 0.0


def test_streets_have_a_hierarchy_and_bend() -> None:
    streets = make_streets(np.random.default_rng(4), 600.0)
    widths = [streets.width_m[streets.rank == rank].mean() for rank in list(Rank)[:3]]
    assert widths[0] > widths[1] > widths[2]
    stations = make_stations(streets, 5.0)
    headings = np.bincount((stations.heading_deg // 10).astype(int) % 18, minlength=18)
    assert np.count_nonzero(headings) > 6


def test_a_station_to_the_right_of_a_street_northwards_lies_east() -> None:
    streets = make_streets(np.random.default_rng(4), 300.0)
    stations = make_stations(streets, 1.0)
    x, y = stations.offset(2.0)
    h = np.deg2rad(stations.heading_deg)
    assert np.allclose(x - stations.x, 2 * np.cos(h))
    assert np.allclose(y - stations.y, -2 * np.sin(h))
    points = shapely.points(stations.x, stations.y)
    assert shapely.distance(points, streets.lines[stations.edge]).max() < 1e-6


def test_stamps_lie_where_they_are_told() -> None:
    ground = Ground(4.0, 0.5)
    # Two metres long towards the east, one wide, in the north-east quarter.
    ground.stamp(np.array([[3.0, 3.0, 90.0, 2.0, 1.0]]), Surface.MARKING)
    expected = np.zeros((8, 8), np.uint8)
    expected[1:3, 4:8] = Surface.MARKING
    assert np.array_equal(ground.ids, expected)
    ground.stamp(np.array([[1.0, 1.0, 0.0, 9.0, 9.0]]), Surface.SOIL, (Surface.MARKING,))
    assert np.array_equal(ground.ids == Surface.SOIL, expected > 0)
    assert ground.at(np.array([3.1, 0.1]), np.array([2.9, 3.9])).tolist() == [Surface.SOIL, 0]


@pytest.mark.parametrize(("seed", "size_m"), [(-1, 300.0), (0, 20.0)])
def test_impossible_cities_are_refused(seed: int, size_m: float) -> None:
    with pytest.raises(ConfigError, match="expected a seed of 0 or more"):
        make_city(seed, size_m)


def test_a_city_is_made_quickly() -> None:
    start_s = time.process_time()
    make_city(8, 600.0)
    assert time.process_time() - start_s < 6.0
