"""Cities of real footprints: everything lies where the map says, and a city is made of it."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from city_helpers import assert_same
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from scipy.ndimage import gaussian_gradient_magnitude, map_coordinates
from typer.testing import CliRunner

from ciper.city.footprints import StreetMap, read_map
from ciper.city.layout import at_other_date, changes
from ciper.city.parts import City, Surface
from ciper.city.real_plan import densest_place, plan_city, seeded_place
from ciper.cli import app
from ciper.errors import ConfigError, GeoError
from ciper.geo import LocalFrame
from ciper.simulate import SimulateConfig, simulate

SIZE_M = 160.0
LAT, LON = 60.2, 24.1  # far west in its UTM zone: grid north is 2.5 degrees off
# A rectangle in each quadrant, metres east and north of (LAT, LON): x, y, length, width, turn_deg.
HOUSES = (
    (40.0, 35.0, 30.0, 14.0, 0.0),
    (45.0, -30.0, 20.0, 16.0, 30.0),
    (-35.0, -45.0, 24.0, 12.0, 75.0),
    (-50.0, 25.0, 18.0, 18.0, 10.0),
)


def corners(house: tuple[float, float, float, float, float]) -> NDArray[np.float64]:
    x, y, length, width, turn_deg = house
    turn = math.radians(turn_deg)
    local = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (length / 2, width / 2)
    rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    moved: NDArray[np.float64] = local @ rotation + (x, y)
    return moved


def on_earth(xy: NDArray[np.float64]) -> list[tuple[float, float]]:
    """(lon, lat) of points some metres from (LAT, LON), along geodesics on the ellipsoid."""
    azimuth = np.rad2deg(np.arctan2(xy[:, 0], xy[:, 1]))
    n = len(xy)
    lon, lat, _ = Geod(ellps="WGS84").fwd([LON] * n, [LAT] * n, azimuth, np.hypot(*xy.T))
    return list(zip(lon, lat, strict=True))


def write_map(path: Path, shapes: Sequence[tuple[shapely.Geometry, dict[str, Any]]]) -> Path:
    """GeoJSON of geometries in metres about (LAT, LON)."""

    def degrees(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(on_earth(xy))

    features = [
        {
            "type": "Feature",
            "properties": tags,
            "geometry": shapely.geometry.mapping(shapely.transform(shape, degrees)),
        }
        for shape, tags in shapes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def four_houses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "houses.geojson"
    return write_map(path, [(shapely.Polygon(corners(h)), {"height": 9}) for h in HOUSES])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> StreetMap:
    """Rows of houses along two crossing streets, with a park, a pond, a path and a tree."""
    rows = [
        (shapely.box(x, y, x + 18.0, y + 12.0), {"building": "yes", "building:levels": "3"})
        for x in (-72.0, -50.0, -28.0, 12.0, 34.0, 56.0)
        for y in (-66.0, -20.0, 12.0, 58.0)
    ]
    rest = [
        (shapely.LineString([(-120, 0), (120, 0)]), {"highway": "residential", "name": "A"}),
        (shapely.LineString([(0, -120), (0, 120)]), {"highway": "primary", "lanes": "2"}),
        (shapely.box(-75, -44, -10, -24), {"leisure": "park"}),
        (shapely.box(-60, -40, -50, -30), {"natural": "water"}),
        (shapely.LineString([(-70, -34), (-12, -26)]), {"highway": "footway"}),
        (shapely.Point(-30.0, -40.0), {"natural": "tree"}),
        (shapely.box(14, -46, 70, -24), {"amenity": "parking"}),
        (shapely.LineString([(4.5, -120), (4.5, 120)]), {"railway": "tram"}),
    ]
    path = tmp_path_factory.mktemp("maps") / "town.geojson"
    return read_map(write_map(path, [*rows, *rest]))


def outlines_of(city: City) -> NDArray[np.object_]:
    return np.array([shapely.Polygon(ring) for ring in city.buildings.footprints])


# ------------------------------------------------------------------------------------------- where


def test_corners_lie_at_their_geodesic_distance_and_bearing(four_houses: Path) -> None:
    placed = plan_city(four_houses, 3, SIZE_M, at=(LAT, LON))
    assert (placed.frame.lat, placed.frame.lon) == (LAT, LON)
    rings = placed.city.buildings.footprints
    assert len(rings) == 4
    for house in HOUSES:
        expected = corners(house) + SIZE_M / 2
        away = [np.abs(expected[:, None] - ring).max(axis=-1).min(axis=1).max() for ring in rings]
        assert min(away) < 1e-3
    assert placed.city.buildings.eave_height_m.max() <= 9.0


def _outline_score(
    strength: NDArray[np.float64], ring: NDArray[np.float64], shift: tuple[float, float]
) -> float:
    """Mean strength of the edges under a closed outline of (u, v) pixel coordinates."""
    line = shapely.segmentize(shapely.LinearRing(ring + shift), 0.5)
    u, v = shapely.get_coordinates(line).T
    return float(map_coordinates(strength, [v - 0.5, u - 0.5], order=1).mean())


def test_houses_in_aerial_tif_lie_where_the_file_says(four_houses: Path, tmp_path: Path) -> None:
    """The shift at which edges of the picture fit a house's outline best is under half a pixel."""
    config = SimulateConfig(
        seed=3, size_m=SIZE_M, num_photos=0, footprints=four_houses, at=(LAT, LON)
    )
    result = simulate(tmp_path / "out", config)
    assert result.aerial is not None
    with rasterio.open(result.aerial) as dataset:
        assert dataset.crs.to_epsg() == 32635
        picture = dataset.read().astype(float)
        left, top, crs = dataset.bounds.left, dataset.bounds.top, dataset.crs.to_wkt()
    strength = np.sqrt(sum(gaussian_gradient_magnitude(band, 0.7) ** 2 for band in picture))
    to_utm = Transformer.from_crs("EPSG:4326", CRS.from_wkt(crs), always_xy=True)
    steps = np.arange(-3.0, 3.01, 0.25)
    for house in HOUSES:
        lon, lat = np.array(on_earth(corners(house))).T
        east, north = to_utm.transform(lon, lat)
        ring = np.stack([(east - left) / 0.5, (top - north) / 0.5], axis=-1)
        scores = {(u, v): _outline_score(strength, ring, (u, v)) for u in steps for v in steps}
        best = max(scores, key=lambda shift: scores[shift])
        assert max(abs(best[0]), abs(best[1])) <= 0.5, house


def test_poses_lie_in_the_square_and_outside_of_houses(town: StreetMap, tmp_path: Path) -> None:
    config = SimulateConfig(
        seed=5, size_m=SIZE_M, num_photos=3, camera="pinhole:90", footprints=town.path,
        at=(LAT, LON),
    )  # fmt: skip
    result = simulate(tmp_path / "out", config)
    frame = LocalFrame(lat=LAT, lon=LON)
    with result.poses.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and len(list((tmp_path / "out" / "photos").iterdir())) == 3
    for row in rows:
        x, y = frame.to_local(lat=float(row["lat"]), lon=float(row["lon"]))
        assert max(abs(float(x)), abs(float(y))) < SIZE_M / 2
        lon_lat = shapely.Point(float(row["lon"]), float(row["lat"]))
        assert not shapely.contains(town.buildings.geometry, lon_lat).any()


def test_a_nadir_camera_flies_over_real_footprints(four_houses: Path, tmp_path: Path) -> None:
    config = SimulateConfig(
        seed=3, size_m=SIZE_M, num_photos=1, camera="nadir", footprints=four_houses
    )
    result = simulate(tmp_path / "out", config)
    assert result.num_photos == 1 and not (tmp_path / "out" / "flown.tif").exists()


def test_the_default_place_has_the_most_buildings(tmp_path: Path) -> None:
    crowd: list[Any] = [(shapely.box(x, 0, x + 20, 30), {}) for x in range(900, 1060, 25)]
    lone: list[Any] = [(shapely.box(x, 0, x + 20, 30), {}) for x in (-1500, 0)]
    street_map = read_map(write_map(tmp_path / "a.geojson", crowd + lone))
    lat, lon = densest_place(street_map, 200.0)
    x, y = LocalFrame(lat=LAT, lon=LON).to_local(lat=lat, lon=lon)
    assert abs(float(x) - 970.0) < 60.0 and abs(float(y) - 15.0) < 100.0
    for seed in range(5):
        lat, lon = seeded_place(street_map, seed, 200.0)
        x, _ = LocalFrame(lat=LAT, lon=LON).to_local(lat=lat, lon=lon)
        assert 800.0 < float(x) < 1150.0  # of the lone houses none is a city


def test_a_square_without_buildings_is_refused_with_a_place_that_has_some(
    four_houses: Path,
) -> None:
    with pytest.raises(ConfigError, match="they lie between") as caught:
        plan_city(four_houses, 3, SIZE_M, at=(48.0, 11.0))
    told = str(caught.value).split("most of them about ")[1].split(";")[0]
    lat, lon = (float(part) for part in told.split(","))
    plan_city(four_houses, 3, SIZE_M, at=(lat, lon))
    with pytest.raises(GeoError, match="swapped"):
        plan_city(four_houses, 3, SIZE_M, at=(124.1, 60.2))
    with pytest.raises(ConfigError, match="100 m or more"):
        plan_city(four_houses, 3, 90.0, at=(LAT, LON))


# ------------------------------------------------------------------------------------------ cities


def test_the_town_is_a_city_like_the_others(town: StreetMap) -> None:
    city = plan_city(town, 5, SIZE_M, at=(LAT, LON)).city
    assert_same(plan_city(town, 5, SIZE_M, at=(LAT, LON)).city, city)
    later = at_other_date(city, 5)
    for date in (city, later):
        houses = outlines_of(date)
        tree = shapely.STRtree(houses)
        sites = shapely.points(date.camera_sites[:, :2])
        assert len(sites) > 40
        assert len(tree.query(sites, predicate="dwithin", distance=0.6)[0]) == 0
        cars = shapely.points(date.cars.x, date.cars.y)
        assert len(cars) > 5 and len(tree.query(cars, predicate="intersects")[0]) == 0
        assert (date.buildings.roof_rise_m > 0).tolist() == (date.buildings.roof_kind > 0).tolist()
    shares = changes(city, later)
    assert min(shares.trees, shares.buildings, shares.cars) > 0.0
    assert city.surface.shape == (640, 640)


def test_the_ground_is_that_of_the_map(town: StreetMap) -> None:
    city = plan_city(town, 5, SIZE_M, at=(LAT, LON)).city

    def at(x: float, y: float) -> int:
        row, column = (SIZE_M / 2 - y) / 0.25, (x + SIZE_M / 2) / 0.25
        return int(city.surface[int(row), int(column)])

    assert at(-55.0, -35.0) == Surface.WATER
    assert at(-20.0, -38.0) == Surface.GRASS
    assert at(-41.0, -30.0) == Surface.SIDEWALK  # the footway
    assert {at(60.0, 1.3), at(40.0, -1.3), at(1.7, 50.0)} <= {Surface.ASPHALT, Surface.PARKING}
    assert at(4.5 - 0.7175, 45.0) == at(4.5 + 0.7175, 30.0) == Surface.RAIL != at(4.5, 45.0)
    bays = city.car_slots[:, :2] - SIZE_M / 2
    assert (((bays > (14, -46)) & (bays < (70, -24))).all(axis=1)).sum() > 20
    away = np.hypot(city.trees.x - (SIZE_M / 2 - 30.0), city.trees.y - (SIZE_M / 2 - 40.0))
    assert away.min() < 0.01
    assert not np.isin(_surface_at(city, city.camera_sites), (Surface.WATER, Surface.RAIL)).any()


def _surface_at(city: City, sites: NDArray[np.float64]) -> NDArray[np.uint8]:
    row = ((city.size_m - sites[:, 1]) / city.surface_gsd).astype(int)
    found: NDArray[np.uint8] = city.surface[row, (sites[:, 0] / city.surface_gsd).astype(int)]
    return found


def test_a_file_of_buildings_gets_streets_places_and_another_look_by_seed(
    four_houses: Path,
) -> None:
    one, two = (plan_city(four_houses, seed, SIZE_M, at=(LAT, LON)).city for seed in (1, 2))
    assert len(one.camera_sites) > 30
    assert not np.array_equal(one.buildings.roof_color, two.buildings.roof_color)
    assert np.mean(one.surface != two.surface) > 0.1
    places = {plan_city(four_houses, seed, SIZE_M).frame for seed in range(3)}
    assert len(places) == 3


def test_a_house_does_not_depend_on_the_square(four_houses: Path) -> None:
    here = plan_city(four_houses, 1, SIZE_M, at=(LAT, LON)).city.buildings
    there = plan_city(four_houses, 1, SIZE_M, at=(LAT, LON + 1e-3)).city.buildings
    common = set(here.style_seed.tolist()) & set(there.style_seed.tolist())
    assert len(common) == len(there) >= 2


# ------------------------------------------------------------------------------------ command line


def test_options_that_do_not_go_together(four_houses: Path) -> None:
    for wrong in (
        {"at": (LAT, LON)},
        {"footprints": four_houses, "layout": "vigor"},
        {"footprints": four_houses, "rasters": ("a.tif",), "camera": "nadir"},
    ):
        with pytest.raises(ConfigError, match="--footprints"):
            SimulateConfig(**wrong)
    with pytest.raises(GeoError, match="latitude 91"):
        SimulateConfig(footprints=four_houses, at=(91.0, 0.0))


def test_the_command_takes_a_file_and_a_place(four_houses: Path, tmp_path: Path) -> None:
    options = ["--size-m", "160", "--num-photos", "0", "--footprints", str(four_houses)]
    out = tmp_path / "city"
    result = CliRunner().invoke(app, ["simulate", str(out), *options, "--at", f"{LAT},{LON}"])
    assert result.exit_code == 0, result.output
    assert (out / "aerial.tif").exists()
    for wrong in (["--at", "60.2"], ["--at", "10,10"]):
        result = CliRunner().invoke(app, ["simulate", str(tmp_path / "no"), *options, *wrong])
        assert result.exit_code != 0 and not (tmp_path / "no").exists()


# ------------------------------------------------------------------------------------- real places


@pytest.mark.slow
@pytest.mark.parametrize("name", ["buildings_lyon1.geojson", "helsinki_center.osm.pbf"])
def test_real_places(name: str) -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if not root:
        pytest.skip("CIPER_REAL_DATA is not set")
    street_map = read_map(Path(root) / "osm" / name)
    at = densest_place(street_map, 300.0)
    placed = plan_city(street_map, 7, 300.0, at=at)
    city, houses = placed.city, outlines_of(placed.city)
    assert len(houses) > 40 and len(city.camera_sites) > 200 and len(city.cars) > 20
    assert all(house.is_valid for house in houses)
    a, b = shapely.STRtree(houses).query(houses, predicate="intersects")
    shared = shapely.area(shapely.intersection(houses[a[a < b]], houses[b[a < b]]))
    assert shared.max(initial=0.0) < 0.05
    # The ground under houses is that of the map.
    square = shapely.box(0.0, 0.0, 300.0, 300.0)

    def to_city(lon_lat: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(placed.frame.to_local(lat=lon_lat[:, 1], lon=lon_lat[:, 0])) + 150.0

    told = shapely.make_valid(shapely.transform(street_map.buildings.geometry, to_city))
    truth = shapely.intersection(shapely.union_all(told), square)
    built = shapely.intersection(shapely.union_all(houses), square)
    assert built.intersection(truth).area > 0.97 * built.area
    assert built.intersection(truth).area > 0.95 * truth.area
