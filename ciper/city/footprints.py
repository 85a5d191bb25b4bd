"""Maps of real places: buildings, streets and ground from GeoJSON, GeoPackage or OpenStreetMap.

Whatever the file's CRS, the shapes come out in degrees (lon, lat) without heights, taken apart
into single polygons, lines and points, with those of their tags that `ciper.city.tags` reads. In a
file that marks no shape as a building (a cadastre's layer of footprints) every polygon that has no
other meaning is one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ciper.city.parts import BoolArray, FloatArray, IntArray
from ciper.city.tags import (
    KEYS,
    Tags,
    cover,
    is_building,
    is_seen,
    path_width_m,
    rail_width_m,
    street_kind,
    water_width_m,
)
from ciper.errors import DatasetError, GeoError
from ciper.geo import WGS84

if TYPE_CHECKING:
    import geopandas

SUFFIXES = (".geojson", ".json", ".gpkg", ".osm", ".osm.pbf", ".pbf")
_OSM_LAYERS = ("points", "lines", "multipolygons")
_POINT, _LINE, _POLYGON = 0, 1, 3
_HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"=>"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, eq=False)
class Shapes:
    """N geometries of one type with their tags.

    Attributes:
        geometry: (N,) polygons, lines or points; in degrees (lon, lat), or in metres once placed.
        tags: of each.
        key: (N, 2) a name of each that no choice of others changes: micro-degrees of its middle.
    """

    geometry: NDArray[np.object_]
    tags: tuple[Tags, ...]
    key: IntArray

    def __len__(self) -> int:
        return len(self.geometry)

    def take(self, wanted: BoolArray | IntArray) -> Shapes:
        """Those that a mask or an index selects."""
        index = np.flatnonzero(wanted) if wanted.dtype == np.bool_ else wanted
        return Shapes(
            self.geometry[index], tuple(self.tags[int(i)] for i in index), self.key[index]
        )


@dataclass(frozen=True, eq=False)
class StreetMap:
    """All that a file says of a place, in degrees (lon, lat).

    Attributes:
        path: of the file.
        buildings: polygons; of OpenStreetMap's also the parts of buildings.
        grounds: polygons of water, green and pavement.
        streets: lines that cars use.
        paths: lines that they do not.
        rails: lines of tracks.
        waters: lines of rivers and streams, and coasts (water on their right).
        rows: lines of trees and hedges.
        trees: points.
    """

    path: Path
    buildings: Shapes
    grounds: Shapes
    streets: Shapes
    paths: Shapes
    rails: Shapes
    waters: Shapes
    rows: Shapes
    trees: Shapes


def read_map(path: Path | str) -> StreetMap:
    """Read a file of footprints, or a whole map.

    Raises:
        DatasetError: the file is missing, of another kind, damaged, or without buildings.
        GeoError: it has no CRS, or coordinates outside of it.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DatasetError(
            f"{path} is no file of footprints; expected one that ends in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise DatasetError(f"{path} does not exist or is no file; name a file of footprints")
    shapes = _joined([_layer_shapes(path, name) for name in _layer_names(path)])
    found = _sorted_out(path, shapes)
    if len(found.buildings) == 0:
        raise DatasetError(
            f"{path} has {len(shapes)} shapes and no building among them; expected polygons, in "
            "OpenStreetMap's files with a tag `building`"
        )
    return found


# ----------------------------------------------------------------------------------------- reading


def _layer_names(path: Path) -> list[str]:
    import pyogrio

    with _Refusals(path):
        names = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    is_osm = path.name.lower().endswith((".osm", ".pbf"))
    return [name for name in names if not is_osm or name in _OSM_LAYERS]


class _Refusals:
    """Turns GDAL's complaints into ours, and does not repeat its remarks on single shapes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._quiet = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._quiet.__enter__()
        warnings.simplefilter("ignore", RuntimeWarning)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        self._quiet.__exit__(None, None, None)
        from pyogrio.errors import DataLayerError, DataSourceError

        if isinstance(error, (DataLayerError, DataSourceError)):
            reason = str(error).split(";")[0].strip().rstrip(".")
            raise DatasetError(
                f"{self._path} cannot be read: {reason}; expected a whole GeoJSON, GeoPackage or "
                "OpenStreetMap file; fetch it again"
            ) from error


def _layer_shapes(path: Path, layer: str) -> Shapes:
    import pyogrio

    with _Refusals(path):
        # Rings of too few points, as clipped extracts have, come back as None.
        frame = pyogrio.read_dataframe(
            path, layer=layer, force_2d=True, on_invalid="ignore", fid_as_index=False
        )
    if len(frame) == 0:
        return _joined([])
    return _simple_shapes(_degrees(path, frame), _all_tags(frame))


def _degrees(path: Path, frame: geopandas.GeoDataFrame) -> NDArray[np.object_]:
    """The geometries in degrees (lon, lat)."""
    if frame.crs is None:
        raise GeoError(
            f"{path} does not say in which CRS its coordinates are; write it into the file, for "
            "example with ogr2ogr -a_srs EPSG:25833"
        )
    raw: NDArray[np.object_] = frame.geometry.to_numpy()
    moved = (
        frame.geometry
        if WGS84.equals(frame.crs, ignore_axis_order=True)
        else frame.geometry.to_crs(WGS84)
    )
    geometry: NDArray[np.object_] = moved.to_numpy()
    # A comparison with NaN is false: what is empty (and stays so) is not refused.
    is_off = (np.abs(shapely.bounds(geometry)) > (180.0, 90.0, 180.0, 90.0)).any(axis=1)
    if is_off.any():
        x, y = shapely.get_coordinates(raw[np.flatnonzero(is_off)[0]])[0]
        raise GeoError(
            f"{path}: the coordinates ({x:g}, {y:g}) do not exist in its CRS {frame.crs.name!r}; "
            "a GeoJSON without a member `crs` must be in degrees, longitude first"
        )
    return geometry


def _all_tags(frame: geopandas.GeoDataFrame) -> list[dict[str, str]]:
    """Tags of every row, from the columns and from OpenStreetMap's `other_tags`."""
    tags: list[dict[str, str]] = [{} for _ in range(len(frame))]
    if "other_tags" in frame:
        for row, text in zip(tags, frame["other_tags"], strict=True):
            if isinstance(text, str):
                row.update((k, v) for k, v in _HSTORE.findall(text) if k in KEYS)
    for column in frame.columns:
        name = str(column).lower()
        if name not in KEYS:
            continue
        values = frame[column]
        for i in np.flatnonzero(values.notna().to_numpy()):
            text = str(values.iloc[i]).strip()
            if text:
                tags[i][name] = text
    return tags


def _simple_shapes(geometry: NDArray[np.object_], tags: Sequence[Tags]) -> Shapes:
    """Collections taken apart; what is empty goes, closed outlines of parts become polygons."""
    parts, source = shapely.get_parts(geometry, return_index=True)
    while (shapely.get_type_id(parts) > _POLYGON).any():
        parts, inner = shapely.get_parts(parts, return_index=True)
        source = source[inner]
    is_closed = shapely.is_closed(parts) & (shapely.get_num_coordinates(parts) > 3)
    for i in np.flatnonzero(is_closed & (shapely.get_type_id(parts) == _LINE)):
        # GDAL takes closed ways for areas by their main tag, and `building:part` is none.
        if "building:part" in tags[source[i]]:
            parts[i] = shapely.Polygon(parts[i])
    is_kept = ~shapely.is_empty(parts) & (shapely.get_type_id(parts) != 2)
    parts, source = parts[is_kept], source[is_kept]
    bounds = shapely.bounds(parts).reshape(-1, 4)
    key = np.rint((bounds[:, :2] + bounds[:, 2:]) / 2 * 1e6 + (180e6, 90e6)).astype(np.int64)
    return Shapes(parts, tuple(tags[i] for i in source), key)


def _joined(layers: Iterable[Shapes]) -> Shapes:
    layers = list(layers)
    geometry = [np.empty(0, np.object_), *(layer.geometry for layer in layers)]
    key = [np.empty((0, 2), np.int64), *(layer.key for layer in layers)]
    tags = tuple(tag for layer in layers for tag in layer.tags)
    return Shapes(np.concatenate(geometry), tags, np.concatenate(key))


# ----------------------------------------------------------------------------------------- sorting


def _sorted_out(path: Path, shapes: Shapes) -> StreetMap:
    type_id = shapely.get_type_id(shapes.geometry)
    polygons, lines = shapes.take(type_id == _POLYGON), shapes.take(type_id == _LINE)
    points = shapes.take(type_id == _POINT)
    seen = lines.take(_mask(lines, is_seen))
    marked = _mask(polygons, lambda tags: "building" in tags or "building:part" in tags)
    means_ground = _mask(polygons, lambda tags: cover(tags) is not None)
    if marked.any():
        is_house = _mask(polygons, is_building)
    else:
        is_house = _mask(polygons, _has_no_other_meaning)
    return StreetMap(
        path=path,
        buildings=polygons.take(is_house),
        grounds=polygons.take(means_ground & ~is_house & ~marked),
        streets=seen.take(_mask(seen, lambda tags: street_kind(tags) is not None)),
        paths=seen.take(_mask(seen, lambda tags: path_width_m(tags) is not None)),
        rails=seen.take(_mask(seen, lambda tags: rail_width_m(tags) is not None)),
        waters=seen.take(_mask(seen, _is_water)),
        rows=seen.take(_mask(seen, _is_row)),
        trees=points.take(_mask(points, lambda tags: tags.get("natural") == "tree")),
    )


def _mask(shapes: Shapes, test: Callable[[Tags], bool]) -> BoolArray:
    return np.array([test(tags) for tags in shapes.tags], np.bool_)


def _has_no_other_meaning(tags: Tags) -> bool:
    others = ("natural", "landuse", "leisure", "amenity", "waterway", "highway", "railway", "place")
    return is_seen(tags) and not any(key in tags for key in others)


def _is_water(tags: Tags) -> bool:
    return water_width_m(tags) is not None or tags.get("natural") == "coastline"


def _is_row(tags: Tags) -> bool:
    return tags.get("natural") == "tree_row" or tags.get("barrier") == "hedge"


def bounds_of(shapes: Shapes) -> FloatArray:
    """(N, 4) west, south, east, north of each."""
    found: FloatArray = shapely.bounds(shapes.geometry).reshape(-1, 4)
    return found
