"""The ground of a real map: plots about the houses, yards, greens, water, paths, tracks.

Every pixel belongs to the plot of its nearest building. How densely a place is built decides
whether plots are paved or gardens; ground far from every building lies open. What the map says
of areas and paths comes on top, the larger areas first.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy.ndimage import distance_transform_edt, uniform_filter

from ciper.city.blocks import Sketch, lot_of
from ciper.city.footprints import Shapes
from ciper.city.furniture import distance_to
from ciper.city.parts import Buildings, ByteArray, FloatArray, IntArray, Surface
from ciper.city.plots import add_bays, pick
from ciper.city.surface import Ground
from ciper.city.tags import (
    CAR_PARK,
    Cover,
    cover,
    path_surface,
    path_width_m,
    rail_width_m,
    water_width_m,
)

GREENS = (Surface.GRASS, Surface.DRY_GRASS, Surface.SOIL)
_PLOT_GSD = 0.5
_DENSITY_M = 90.0
_SQUARE_M = 7.0
_OPEN_M = 32.0
_WIDE_M = 50.0
_TREES_PER_M2 = 1.0 / 190.0
_TREES_PER_PAVED_M2 = 1.0 / 700.0
_PAVED = (Surface.YARD, Surface.PLAZA, Surface.PARKING, Surface.SIDEWALK, Surface.YARD)
_SOFT = (Surface.GRASS, Surface.GRASS, Surface.DRY_GRASS, Surface.YARD, Surface.SOIL)
_LEAST_COURT_M2 = 12.0
_LEAST_ROOM_M = 3.0
_RAIL_GAUGE_M = 1.435
_WORD = np.uint64(2**32)


def paint_plots(ground: Ground, buildings: Buildings, rng: np.random.Generator) -> None:
    """Cover all the ground with plots about the buildings, and open ground far from them."""
    label, away_m = _nearest(ground.size_m, buildings)
    density = _density(label, away_m)
    seeds = np.append(buildings.style_seed, 0).astype(np.int64)
    is_town = _draw(seeds, 1)[label] < np.clip((density - 0.1) / 0.3, 0.0, 1.0)
    paved = np.array(_PAVED, np.uint8)[(_draw(seeds, 2) * len(_PAVED)).astype(int)][label]
    soft = np.array(_SOFT, np.uint8)[(_draw(seeds, 3) * len(_SOFT)).astype(int)][label]
    terrace_m = (4.0 * _draw(seeds, 4))[label]
    squares = _patches(len(label), (Surface.PLAZA, Surface.SIDEWALK), rng)
    meadows = _patches(len(label), (Surface.GRASS, Surface.DRY_GRASS), rng)
    paved = np.where(away_m > _SQUARE_M, squares, paved)
    ids = np.where(is_town, paved, np.where(away_m < terrace_m, Surface.YARD, soft))
    is_open = away_m > np.where(is_town, _WIDE_M, _OPEN_M)
    ids = np.where(is_open, meadows, ids).astype(np.uint8)
    times = round(_PLOT_GSD / ground.gsd)
    fine = np.repeat(np.repeat(ids, times, axis=0), times, axis=1)
    rows, columns = ground.ids.shape
    index = np.minimum(np.arange(max(rows, columns)), len(fine) - 1)
    ground.ids[:] = fine[np.ix_(index[:rows], index[:columns])]


def _nearest(size_m: float, buildings: Buildings) -> tuple[IntArray, FloatArray]:
    """Index of each pixel's nearest building, (H, W), and its distance in metres.

    Without any building within the square the index is 0 and the distance infinite.
    """
    count = math.ceil(size_m / _PLOT_GSD)
    marks = np.zeros((count, count), np.int32)
    shapes = [(shapely.Polygon(ring), i + 1) for i, ring in enumerate(buildings.footprints)]
    if not shapes:
        return np.zeros((count, count), np.int64), np.full((count, count), np.inf)
    rasterize(shapes, out=marks, transform=Affine(_PLOT_GSD, 0, 0, 0, -_PLOT_GSD, size_m))
    if not marks.any():
        return np.zeros((count, count), np.int64), np.full((count, count), np.inf)
    distance, (row, column) = distance_transform_edt(marks == 0, return_indices=True)
    return marks[row, column].astype(np.int64) - 1, distance * _PLOT_GSD


def _density(label: IntArray, away_m: FloatArray) -> FloatArray:
    """Share of the ground under houses about each pixel's nearest building."""
    is_house = (away_m <= 0.0).astype(np.float64)
    share = uniform_filter(is_house, round(_DENSITY_M / _PLOT_GSD), mode="nearest")
    count = np.bincount(label.ravel(), is_house.ravel())
    total = np.bincount(label.ravel(), (share * is_house).ravel())
    found: FloatArray = (total / np.maximum(count, 1.0))[label]
    return found


def _draw(seeds: IntArray, use: int) -> FloatArray:
    """Numbers in [0, 1), one per building and use, functions of the building's own seed."""
    mixed = (seeds.astype(np.uint64) * np.uint64(2654435761) + np.uint64(use * 40503)) % _WORD
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % _WORD
    found: FloatArray = (mixed ^ (mixed >> np.uint64(13))).astype(np.float64) / 2**32
    return found


def _patches(count: int, surfaces: tuple[Surface, Surface], rng: np.random.Generator) -> ByteArray:
    """Two surfaces in patches of some ten metres, (count, count), the first one prevailing."""
    coarse = rng.uniform(size=(count // 40 + 2, count // 40 + 2))
    smooth = np.repeat(np.repeat(coarse, 40, axis=0), 40, axis=1)[:count, :count]
    smooth = uniform_filter(smooth, 40, mode="nearest")
    return np.where(smooth > 0.56, surfaces[1], surfaces[0]).astype(np.uint8)


# -------------------------------------------------------------------------------- yards and greens


def draw_courts(sketch: Sketch, buildings: Buildings, size_m: float) -> None:
    """Yards that buildings enclose: one surface each, some trees, places to stand in large ones."""
    outlines = [shapely.Polygon(ring) for ring in buildings.footprints]
    joined = shapely.union_all(shapely.buffer(outlines, 0.15, join_style="mitre"))
    for part in shapely.get_parts(joined):
        for ring in part.interiors:
            court = shapely.Polygon(ring)
            if court.area < _LEAST_COURT_M2 or not court.intersects(
                shapely.box(0.0, 0.0, size_m, size_m)
            ):
                continue
            surfaces = (Surface.YARD, Surface.GRASS, Surface.PLAZA, Surface.PARKING)
            sketch.fill(shapely.buffer(court, 0.3), pick(sketch, surfaces, (0.35, 0.35, 0.2, 0.1)))
            core = shapely.buffer(court, -2.0)
            sketch.plant(sketch.scatter(core, int(court.area / sketch.rng.uniform(90.0, 400.0))))
            if court.area > 250.0:
                _stand_about(sketch, core, 250.0)


def draw_grounds(sketch: Sketch, grounds: Shapes) -> None:
    """The areas of a map, large ones first, with their trees; car parks with bays."""
    areas = shapely.area(grounds.geometry)
    for i in np.argsort(-areas, kind="stable"):
        told = cover(grounds.tags[int(i)])
        area = shapely.make_valid(grounds.geometry[int(i)])
        if told is None or areas[i] < 1.0:
            continue
        sketch.fill(area, told.surface)
        if told == CAR_PARK:
            _draw_car_park(sketch, area)
        _plant(sketch, area, told)
        if told.has_people:
            _stand_about(sketch, shapely.buffer(area, -1.0), 450.0)


def _draw_car_park(sketch: Sketch, area: shapely.Geometry) -> None:
    for part in shapely.get_parts(area):
        if shapely.get_type_id(part) != 3 or shapely.area(part) < 150.0:
            continue
        lot = lot_of(part, shapely.boundary(part))
        inset = shapely.buffer(part, -0.4)
        y = 0.5
        while y + 7.5 < lot.depth:
            depth = min(16.5, lot.depth - y - 0.5)
            add_bays(sketch, inset, lot, (0.8, y, lot.width - 1.6, depth))
            y += 17.0


def _plant(sketch: Sketch, area: shapely.Geometry, told: Cover) -> None:
    size_ha = float(shapely.area(area)) / 1e4
    sketch.plant(sketch.scatter(shapely.buffer(area, -1.0), round(told.trees * size_ha)))
    count = round(told.shrubs * size_ha)
    sketch.plant(sketch.scatter(shapely.buffer(area, -0.5), count), "shrub", 1.3)


def _stand_about(sketch: Sketch, area: shapely.Geometry, every_m2: float) -> None:
    points = sketch.scatter(area, round(float(shapely.area(area)) / every_m2))
    sketch.stand(points, sketch.rng.uniform(0.0, 360.0, len(points)))


def plant_plots(sketch: Sketch, ground: Ground, given: shapely.Geometry) -> None:
    """Trees in gardens and, fewer, in paved plots, where the map gives no areas of its own."""
    size_m = ground.size_m
    xy = sketch.rng.uniform(0.0, size_m, (round(_TREES_PER_M2 * size_m**2), 2))
    is_green = np.isin(ground.at(xy[:, 0], xy[:, 1]), GREENS)
    share = np.where(is_green, 1.0, _TREES_PER_PAVED_M2 / _TREES_PER_M2)
    is_kept = sketch.rng.uniform(size=len(xy)) < share
    shapely.prepare(given)
    is_kept &= ~shapely.contains_xy(given, xy)
    sketch.plant(xy[is_kept], scale=sketch.rng.uniform(0.5, 1.0, int(is_kept.sum())))
    bushes = sketch.rng.uniform(0.0, size_m, (round(size_m**2 / 700.0), 2))
    is_green = np.isin(ground.at(bushes[:, 0], bushes[:, 1]), GREENS)
    sketch.plant(bushes[is_green & ~shapely.contains_xy(given, bushes)], "shrub", 1.2)


def stand_between(sketch: Sketch, walls: shapely.STRtree, size_m: float) -> None:
    """Places for cameras on squares, in lanes and gardens: some metres from the nearest house."""
    xy = sketch.rng.uniform(0.0, size_m, (round(size_m**2 / 260.0), 2))
    away_m = distance_to(walls, xy, _OPEN_M)
    points = xy[(away_m > _LEAST_ROOM_M) & (away_m < _OPEN_M)]
    sketch.stand(points, sketch.rng.uniform(0.0, 360.0, len(points)))


# -------------------------------------------------------------------------------------- along lines


def draw_waters(sketch: Sketch, waters: Shapes, size_m: float) -> None:
    """Rivers and streams as wide as they are, and the sea beyond coasts."""
    square = shapely.box(-1.0, -1.0, size_m + 1.0, size_m + 1.0)
    for line, tags in zip(waters.geometry, waters.tags, strict=True):
        width_m = water_width_m(tags)
        if width_m is not None:
            sketch.fill(shapely.buffer(line, width_m / 2), Surface.WATER)
    coasts = [
        line
        for line, tags in zip(waters.geometry, waters.tags, strict=True)
        if tags.get("natural") == "coastline"
    ]
    for sea in sea_of(coasts, square):
        sketch.fill(sea, Surface.WATER)


def sea_of(coasts: list[shapely.Geometry], square: shapely.Geometry) -> list[shapely.Polygon]:
    """Parts of a square that lie to the right of the coasts that bound them."""
    if not coasts:
        return []
    clipped = shapely.intersection(shapely.union_all(coasts), square)
    faces = shapely.get_parts(
        shapely.polygonize([shapely.union(shapely.boundary(square), clipped)])
    )
    right, left = _beside(coasts)
    return [
        face
        for face in faces
        if shapely.contains_xy(face, right).sum() > shapely.contains_xy(face, left).sum()
    ]


def _beside(lines: list[shapely.Geometry]) -> tuple[FloatArray, FloatArray]:
    """Points (K, 2) close to the right and to the left of lines, all along them."""
    xy, line = shapely.get_coordinates(shapely.segmentize(lines, 5.0), return_index=True)
    is_piece = np.diff(line) == 0
    middle, delta = ((xy[:-1] + xy[1:]) / 2)[is_piece], np.diff(xy, axis=0)[is_piece]
    normal = np.column_stack([delta[:, 1], -delta[:, 0]])
    normal *= 0.02 / np.maximum(np.hypot(*delta.T), 1e-9)[:, None]
    return middle + normal, middle - normal


def draw_paths(sketch: Sketch, paths: Shapes) -> None:
    """Ways for people on foot, with places to stand on them."""
    for line, tags in zip(paths.geometry, paths.tags, strict=True):
        width_m = path_width_m(tags)
        if width_m is None:
            continue
        sketch.fill(shapely.buffer(line, width_m / 2, cap_style="flat"), path_surface(tags))
        if tags.get("footway") != "crossing":
            _stand_along(sketch, line)


def _stand_along(sketch: Sketch, line: shapely.Geometry) -> None:
    at = np.arange(2.0, shapely.length(line) - 2.0, 9.0)
    if len(at) == 0:
        return
    at = np.clip(at + sketch.rng.uniform(-1.5, 1.5, len(at)), 0.5, shapely.length(line) - 0.5)
    here, there = (
        shapely.get_coordinates(shapely.line_interpolate_point(line, at + d)) for d in (-0.4, 0.4)
    )
    delta = there - here
    sketch.stand(here, np.rad2deg(np.arctan2(delta[:, 0], delta[:, 1])))


def draw_rows(sketch: Sketch, rows: Shapes) -> None:
    """Rows of trees, and hedges."""
    for line, tags in zip(rows.geometry, rows.tags, strict=True):
        if tags.get("barrier") == "hedge":
            corners = shapely.get_coordinates(line)
            for a, b in itertools.pairwise(corners):
                sketch.hedge(a, b)
        else:
            at = np.arange(1.0, shapely.length(line), sketch.rng.uniform(6.0, 9.0))
            points = shapely.line_interpolate_point(line, at)
            sketch.plant(shapely.get_coordinates(points), "tree", sketch.rng.uniform(0.6, 1.0))


def paint_ballast(ground: Ground, rails: Shapes) -> None:
    """Beds of tracks other than trams', which lie in the street."""
    beds = [
        (shapely.buffer(line, (rail_width_m(tags) or 0.0) / 2, cap_style="flat"), int(Surface.RAIL))
        for line, tags in zip(rails.geometry, rails.tags, strict=True)
        if tags.get("railway") != "tram"
    ]
    ground.burn([(bed, value) for bed, value in beds if not shapely.is_empty(bed)])


def paint_tram_rails(ground: Ground, rails: Shapes) -> None:
    """Both rails of every tram's track, as thin as the ground can show."""
    tracks = [
        line
        for line, tags in zip(rails.geometry, rails.tags, strict=True)
        if tags.get("railway") == "tram"
    ]
    for side in (-0.5, 0.5):
        moved = shapely.offset_curve(np.array(tracks, np.object_), side * _RAIL_GAUGE_M)
        strips = shapely.buffer(moved, 0.13, cap_style="flat")
        ground.burn([(strip, int(Surface.RAIL)) for strip in strips if not shapely.is_empty(strip)])
