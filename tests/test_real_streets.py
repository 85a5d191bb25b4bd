"""Streets of a map, those that are traced where it has none, and the sea."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import shapely

from ciper.city.footprints import Shapes
from ciper.city.real_ground import sea_of
from ciper.city.real_streets import stations_of, streets_from_map
from ciper.city.streets import Rank
from ciper.city.traced_streets import trace_streets


def shapes_of(items: Sequence[tuple[shapely.Geometry, dict[str, str]]]) -> Shapes:
    geometry = np.array([shape for shape, _ in items], np.object_)
    key = np.rint(shapely.get_coordinates(shapely.centroid(geometry))).astype(np.int64) + 1000
    return Shapes(geometry, tuple(tags for _, tags in items), key)


def no_walls() -> shapely.STRtree:
    return shapely.STRtree([])


def test_streets_are_cut_where_they_meet_but_not_under_bridges() -> None:
    def line(*points: tuple[float, float]) -> shapely.Geometry:
        return shapely.LineString(points)

    flat = [
        (line((0, 100), (90, 100)), {"highway": "residential", "name": "A"}),
        (line((90, 100), (200, 100)), {"highway": "residential", "name": "A", "surface": "sett"}),
        (line((120, 0), (120, 200)), {"highway": "secondary"}),
    ]
    streets = streets_from_map(shapes_of(flat), 1, 200.0, no_walls())
    assert sorted(np.rint(shapely.length(streets.lines))) == [80, 100, 100, 120]
    assert streets.is_junction.sum() == 4
    assert set(streets.rank) == {Rank.RESIDENTIAL, Rank.COLLECTOR}
    over = [*flat[:2], (flat[2][0], {"highway": "secondary", "bridge": "yes", "layer": "1"})]
    apart = streets_from_map(shapes_of(over), 1, 200.0, no_walls())
    assert sorted(np.rint(shapely.length(apart.lines))) == [200, 200]
    assert not apart.is_junction.any()


def test_streets_are_no_wider_than_the_houses_leave_room_for() -> None:
    lane = [(shapely.LineString([(0, 50), (100, 50)]), {"highway": "primary"})]
    walls = shapely.STRtree([shapely.box(0, 53, 100, 70), shapely.box(0, 30, 100, 47)])
    narrow = streets_from_map(shapes_of(lane), 1, 100.0, walls)
    wide = streets_from_map(shapes_of(lane), 1, 100.0, no_walls())
    assert wide.width_m[0] == 15.0
    assert narrow.width_m[0] == pytest.approx(2 * (3.0 - 0.8))
    assert narrow.width_m[0] / 2 + narrow.sidewalk_m[0] <= 3.0 + 1e-9
    none = trace_streets(np.empty(0, np.object_), 1, 100.0, no_walls())
    assert len(none.lines) == 0 and len(stations_of(none).x) == 0


def test_traced_streets_run_midway_between_rows_of_houses() -> None:
    rows = [
        shapely.box(x, y, x + 24.0, y + 50.0)
        for x in np.arange(0.0, 190.0, 25.0)
        for y in (10.0, 72.0, 134.0)
    ]
    houses = np.array(rows, np.object_)
    streets = trace_streets(houses, 1, 200.0, shapely.STRtree(houses))
    inner = shapely.intersection(streets.lines, shapely.box(20, 0, 180, 200))
    y = shapely.get_coordinates(inner)[:, 1]
    near = np.minimum(np.abs(y - 66.0), np.abs(y - 128.0))
    assert len(y) > 0 and near.max() < 1.0
    assert (shapely.distance(streets.lines[:, None], houses) > 4.0).all()


def test_the_sea_lies_to_the_right_of_the_coast() -> None:
    square = shapely.box(0, 0, 100, 100)
    eastward = shapely.LineString([(-10, 40), (110, 40)])
    (south,) = sea_of([eastward], square)
    assert south.bounds == (0.0, 0.0, 100.0, 40.0)
    (north,) = sea_of([shapely.reverse(eastward)], square)
    assert north.bounds == (0.0, 40.0, 100.0, 100.0)
    island = shapely.LinearRing([(40, 40), (60, 40), (60, 60), (40, 60)])  # land on its left
    (around,) = sea_of([shapely.LineString(island)], square)
    assert around.area == pytest.approx(10_000.0 - 400.0)
