"""Files of footprints: what is read, from which form and CRS, and what is refused."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from ciper.city.footprints import StreetMap, read_map
from ciper.city.parts import Surface
from ciper.city.streets import Rank
from ciper.city.tags import (
    carriageway_m,
    cover,
    heights,
    is_building,
    is_seen,
    metres,
    number,
    parks_cars,
    path_surface,
    path_width_m,
    street_kind,
)
from ciper.errors import CiperError, DatasetError, GeoError

BOX = shapely.box(24.94, 60.17, 24.941, 60.171)


def write_geojson(
    path: Path, shapes: Sequence[tuple[Any, dict[str, Any]]], crs: str | None = None
) -> Path:
    features = [
        {"type": "Feature", "properties": tags, "geometry": shapely.geometry.mapping(shape)}
        for shape, tags in shapes
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None:
        collection["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(collection))
    return path


OSM = """<?xml version="1.0" encoding="UTF-8"?><osm version="0.6">
<node id="1" lat="60.1700" lon="24.9400"/><node id="2" lat="60.1700" lon="24.9410"/>
<node id="3" lat="60.1710" lon="24.9410"/><node id="4" lat="60.1710" lon="24.9400"/>
<node id="5" lat="60.1720" lon="24.9400"><tag k="natural" v="tree"/></node>
<way id="1"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="1"/>
  <tag k="building" v="yes"/><tag k="building:levels" v="4"/></way>
<way id="2"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="1"/>
  <tag k="building:part" v="yes"/><tag k="height" v="20 m"/></way>
<way id="3"><nd ref="1"/><nd ref="5"/><tag k="highway" v="residential"/>
  <tag k="parking:lane:both" v="parallel"/></way>
<way id="4"><nd ref="2"/><nd ref="5"/><tag k="highway" v="primary"/><tag k="tunnel" v="yes"/></way>
<way id="5"><nd ref="3"/><nd ref="5"/><tag k="highway" v="footway"/></way>
<way id="6"><nd ref="3"/><nd ref="4"/><nd ref="5"/><nd ref="3"/><tag k="leisure" v="park"/></way>
<way id="7"><nd ref="1"/><nd ref="4"/><tag k="railway" v="tram"/></way>
</osm>"""


# --------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12.0), ("12 m", 12.0), ("12.5m", 12.5), ("12,5", 12.5), ("~9", 9.0), ("7;9", 7.0),
        ("40'", 12.192), ("40 ft", 12.192), ("5'6\"", 1.6764), ("10 feet", 3.048),
        ("3 metres", 3.0), ("high", None), ("", None), (None, None), ("12 km", None), ("-3", None),
    ],
)  # fmt: skip
def test_lengths(text: str | None, expected: float | None) -> None:
    assert metres(text) == (None if expected is None else pytest.approx(expected))


def test_numbers() -> None:
    assert [number(t) for t in ("5", "4.5", "3;4", "-1", "x", None)] == [5, 4.5, 3, -1, None, None]


def test_heights_come_from_metres_before_levels_and_only_if_they_make_sense() -> None:
    told = heights({"height": "40'", "building:levels": "9", "roof:height": "2 m"})
    assert told.top_m == pytest.approx(12.192)
    assert (told.eave_m, told.roof_m, told.base_m) == (None, 2.0, 0.0)
    assert heights({"hauteur": "24.7"}).eave_m == pytest.approx(24.7)
    assert heights({"building:levels": "5"}).eave_m == pytest.approx(15.0)
    assert heights({"height": "9000", "levels": "2"}).eave_m == pytest.approx(6.0)
    assert heights({"height": "0", "levels": "900"}) == heights({})
    assert heights({"height": "6", "roof:height": "5.9"}).roof_m is None
    assert heights({"building:min_level": "2"}).base_m == pytest.approx(6.0)
    assert heights({"min_height": "4.5"}).base_m == pytest.approx(4.5)


def test_what_stands_above_ground_and_under_the_sky() -> None:
    assert is_building({"building": "yes"}) and is_building({"building:part": "yes"})
    for tags in (
        {"building": "no"}, {"building": "roof"}, {}, {"building": "yes", "layer": "-1"},
        {"building": "yes", "location": "underground"},
    ):  # fmt: skip
        assert not is_building(tags)
    assert is_seen({"tunnel": "building_passage"}) and is_seen({"bridge": "yes", "layer": "1"})
    assert not is_seen({"tunnel": "yes"}) and not is_seen({"indoor": "yes"})


def test_streets_are_as_wide_as_tags_lanes_or_classes_say() -> None:
    primary, service = street_kind({"highway": "primary"}), street_kind({"highway": "service"})
    assert primary is not None and service is not None
    assert (primary.rank, service.rank) == (Rank.ARTERIAL, Rank.ALLEY)
    assert street_kind({"highway": "footway"}) is None and street_kind({}) is None
    assert street_kind({"highway": "motorway_link"}) is not None
    assert carriageway_m({"width": "7.5 m", "lanes": "4"}, primary) == 7.5
    assert carriageway_m({"lanes": "2", "width": "300"}, primary) == pytest.approx(7.0)
    assert carriageway_m({"lanes": "2", "parking:both": "lane"}, primary) == pytest.approx(10.8)
    assert carriageway_m({"oneway": "yes"}, primary) == primary.one_way_m < primary.width_m
    assert parks_cars({}) is None
    assert parks_cars({"parking:lane:left": "no", "parking:lane:right": "parallel"}) is True
    assert parks_cars({"parking:lane:both": "no_stopping"}) is False
    assert path_width_m({"highway": "footway", "width": "4"}) == 4.0
    assert path_width_m({"highway": "residential", "width": "4"}) is None
    assert path_surface({"highway": "path", "surface": "ground"}) == Surface.SOIL
    assert path_surface({"highway": "pedestrian"}) == Surface.PLAZA


def test_covers() -> None:
    def surface(**tags: str) -> Surface | None:
        found = cover(tags)
        return None if found is None else found.surface

    assert surface(natural="water") == Surface.WATER
    assert surface(leisure="park") == surface(landuse="grass") == Surface.GRASS
    assert surface(leisure="pitch", surface="sand") == Surface.PATH
    assert surface(amenity="parking") == Surface.PARKING
    assert surface(amenity="parking", parking="underground") is None
    assert surface(landuse="residential") is None and surface() is None


# ---------------------------------------------------------------------------------------- reading


def test_openstreetmap_is_sorted_into_layers(tmp_path: Path) -> None:
    path = tmp_path / "place.osm"
    path.write_text(OSM)
    found = read_map(path)
    assert len(found.buildings) == 2
    assert {tags.get("height") for tags in found.buildings.tags} == {None, "20 m"}
    assert [tags["highway"] for tags in found.streets.tags] == ["residential"]
    assert found.streets.tags[0]["parking:lane:both"] == "parallel"
    assert [tags["highway"] for tags in found.paths.tags] == ["footway"]
    assert [tags["leisure"] for tags in found.grounds.tags] == ["park"]
    assert [tags["railway"] for tags in found.rails.tags] == ["tram"]
    np.testing.assert_allclose(shapely.get_coordinates(found.trees.geometry), [[24.94, 60.172]])
    # Named by its middle, in micro-degrees from the south pole and the date line.
    assert found.buildings.key[0].tolist() == [204_940_500, 150_170_500]


@pytest.mark.parametrize("epsg", [4326, 3067, 3857, 3879])
def test_geopackages_of_any_crs(tmp_path: Path, epsg: int) -> None:
    frame = gpd.GeoDataFrame({"height": [9.5]}, geometry=[BOX], crs=4326).to_crs(epsg)
    frame.to_file(tmp_path / "one.gpkg", layer="houses")
    found = read_map(tmp_path / "one.gpkg")
    assert found.buildings.tags[0]["height"] == "9.5"
    bounds = shapely.bounds(found.buildings.geometry[0])
    np.testing.assert_allclose(bounds, shapely.bounds(BOX), atol=1e-7)


def test_geojson_with_and_without_a_crs_member(tmp_path: Path) -> None:
    plain = read_map(write_geojson(tmp_path / "a.geojson", [(BOX, {"HAUTEUR": 7})]))
    assert plain.buildings.tags == ({"hauteur": "7"},)
    moved = gpd.GeoSeries([BOX], crs=4326).to_crs(3946)[0]
    named = read_map(
        write_geojson(tmp_path / "b.geojson", [(moved, {})], "urn:ogc:def:crs:EPSG::3946")
    )
    for found in (plain, named):
        np.testing.assert_allclose(
            shapely.bounds(found.buildings.geometry[0]), shapely.bounds(BOX), atol=1e-7
        )


def test_collections_are_taken_apart_and_heights_of_points_are_dropped(tmp_path: Path) -> None:
    two = shapely.MultiPolygon([shapely.box(0, 0, 1e-3, 1e-3), shapely.box(0.01, 0, 0.011, 1e-3)])
    high = shapely.force_3d(two, 200.0)
    mixed = shapely.GeometryCollection([shapely.box(0.02, 0, 0.021, 1e-3), shapely.Point(0, 0)])
    found = read_map(write_geojson(tmp_path / "a.geojson", [(high, {}), (mixed, {})]))
    assert len(found.buildings) == 3
    assert not shapely.has_z(found.buildings.geometry).any()
    assert len(np.unique(found.buildings.key, axis=0)) == 3


def test_only_marked_polygons_are_buildings_where_any_is_marked(tmp_path: Path) -> None:
    other = shapely.affinity.translate(BOX, 0.01)
    water = (other, {"natural": "water"})
    unmarked = [(BOX, {"name": "a"}), water]
    marked = [
        (BOX, {"name": "a"}),
        (shapely.affinity.translate(BOX, 0.02), {"building": "yes"}),
        water,
    ]

    def counts(found: StreetMap) -> tuple[int, int]:
        return len(found.buildings), len(found.grounds)

    assert counts(read_map(write_geojson(tmp_path / "a.geojson", unmarked))) == (1, 1)
    found = read_map(write_geojson(tmp_path / "b.geojson", marked))
    assert counts(found) == (1, 1) and found.buildings.tags == ({"building": "yes"},)


# --------------------------------------------------------------------------------------- refusals


def _refusal(path: Path) -> CiperError:
    with pytest.raises(CiperError) as caught:
        read_map(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"x")
    assert "expected one that ends in .geojson" in str(_refusal(photo))
    assert "does not exist" in str(_refusal(tmp_path / "none.gpkg"))
    for name, content in (
        ("text.geojson", b"hello"),
        ("cut.geojson", b'{"type": "FeatureCollection", "features": [{"type": "Fea'),
        ("text.gpkg", b"hello"),
        ("empty.osm.pbf", b""),
        ("cut.osm", OSM.encode()[:900]),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        error = _refusal(path)
        assert isinstance(error, DatasetError) and "cannot be read" in str(error)


def test_files_without_buildings(tmp_path: Path) -> None:
    some: list[tuple[Any, dict[str, Any]]] = [(shapely.Point(1, 2), {}), (BOX, {"building": "no"})]
    for count in range(3):
        error = _refusal(write_geojson(tmp_path / "a.geojson", some[:count]))
        assert isinstance(error, DatasetError) and "no building" in str(error)


def test_coordinates_that_do_not_exist(tmp_path: Path) -> None:
    metric = shapely.box(1_841_000, 5_175_000, 1_841_010, 5_175_010)
    error = _refusal(write_geojson(tmp_path / "a.geojson", [(metric, {})]))
    assert isinstance(error, GeoError)
    assert "must be in degrees" in str(error) and "1.84101e+06" in str(error)


def test_a_geopackage_without_a_crs(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gpd.GeoDataFrame(geometry=[BOX]).to_file(tmp_path / "a.gpkg")
    error = _refusal(tmp_path / "a.gpkg")
    assert isinstance(error, GeoError) and "in which CRS" in str(error)


def test_a_truncated_extract(tmp_path: Path) -> None:
    whole = real_file("helsinki_center.osm.pbf").read_bytes()
    path = tmp_path / "cut.osm.pbf"
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in str(_refusal(path))


# ------------------------------------------------------------------------------------- real files


def real_file(name: str) -> Path:
    root = os.environ.get("CIPER_REAL_DATA")
    if not root:
        pytest.skip("CIPER_REAL_DATA is not set")
    return Path(root) / "osm" / name


def test_lyon() -> None:
    found = read_map(real_file("buildings_lyon1.geojson"))
    assert len(found.buildings) == 2576 and len(found.streets) == 0
    stated = [heights(tags).eave_m for tags in found.buildings.tags]
    assert np.mean([value is not None for value in stated]) > 0.95


def test_helsinki() -> None:
    found = read_map(real_file("helsinki_center.osm.pbf"))
    assert len(found.buildings) > 500 and len(found.streets) > 800 and len(found.trees) > 600
    assert all(
        "tunnel" not in t or t["tunnel"] in ("no", "building_passage") for t in found.streets.tags
    )
    assert sum(tags.get("natural") == "water" for tags in found.grounds.tags) == 7
