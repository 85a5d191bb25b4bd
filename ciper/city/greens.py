"""Open blocks: parks, plazas, schools, wasteland."""

from __future__ import annotations

import math

import numpy as np
import shapely

from ciper.city.blocks import Lot, Sketch, lot_of
from ciper.city.buildings import (
    flat_outline,
    rectangle,
)
from ciper.city.parts import RoofKind, Surface
from ciper.city.plots import Block, build_local, fill_local, pick, pond_outline


def draw_verge(sketch: Sketch, block: Block) -> None:
    """What is left between streets: grass or pavers, a few trees."""
    sketch.fill(block, pick(sketch, (Surface.GRASS, Surface.PLAZA, Surface.SOIL), (0.6, 0.3, 0.1)))
    core = shapely.buffer(block, -1.5)
    sketch.plant(sketch.scatter(core, int(shapely.area(core) / 60.0)))


def draw_park(sketch: Sketch, block: Block) -> None:
    """Lawns, paths, clumps of trees, often a pond."""
    rng = sketch.rng
    sketch.fill(block, pick(sketch, (Surface.GRASS, Surface.DRY_GRASS), (0.8, 0.2)))
    core, middle = shapely.buffer(block, -3.0), shapely.get_coordinates(shapely.centroid(block))[0]
    radius = math.sqrt(shapely.area(block) / math.pi)
    soft = shapely.buffer(shapely.buffer(core, -6.0), 3.0)
    paths = [shapely.boundary(soft)] if rng.uniform() < 0.6 else []
    for angle in rng.uniform(0.0, 2 * math.pi) + np.arange(int(rng.integers(2, 6))) * 1.26:
        t = np.linspace(0.0, 1.8 * radius, 14)
        turn = angle + rng.uniform(-0.5, 0.5) * t / radius
        paths.append(
            shapely.linestrings(middle + t[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1))
        )
    walks = shapely.intersection(
        shapely.union_all(shapely.buffer(paths, rng.uniform(0.9, 1.8))), block
    )
    sketch.fill(walks, pick(sketch, (Surface.PATH, Surface.YARD, Surface.PLAZA), (0.7, 0.2, 0.1)))
    lines = shapely.get_parts(shapely.intersection(shapely.union_all(paths), core))
    lines = lines[shapely.get_type_id(lines) == 1]
    pond = shapely.Point()
    if rng.uniform() < 0.5 and radius > 22.0:
        pond = pond_outline(
            sketch, middle + rng.normal(0.0, 0.25 * radius, 2), radius * rng.uniform(0.2, 0.4)
        )
        pond = shapely.intersection(pond, core)
        sketch.fill(shapely.intersection(shapely.buffer(pond, 1.0), core), Surface.SOIL)
        sketch.fill(pond, Surface.WATER)
    for line in lines[shapely.length(lines) > 8.0]:
        at = np.arange(3.0, shapely.length(line) - 3.0, 5.0)
        here, there = (
            shapely.get_coordinates(shapely.line_interpolate_point(line, at + d))
            for d in (-0.5, 0.5)
        )
        is_dry = ~shapely.contains_xy(shapely.buffer(pond, 0.8), here)
        delta = (there - here)[is_dry]
        sketch.stand(here[is_dry], np.rad2deg(np.arctan2(delta[:, 0], delta[:, 1])))
    lawn = shapely.difference(
        core, shapely.union_all([shapely.buffer(walks, 1.0), shapely.buffer(pond, 1.5)])
    )
    centers = sketch.scatter(lawn, int(rng.integers(3, 9)))
    clumps = [
        c + rng.normal(0.0, rng.uniform(4.0, 12.0), (int(rng.integers(4, 20)), 2)) for c in centers
    ]
    points = np.concatenate([*clumps, sketch.scatter(lawn, int(shapely.area(lawn) / 400.0))])
    sketch.plant(points[shapely.contains_xy(lawn, points)])


def draw_plaza(sketch: Sketch, block: Block) -> None:
    """Pavers in two colours, trees in a grid, kiosks, a fountain."""
    rng = sketch.rng
    surfaces = (Surface.PLAZA, Surface.SIDEWALK, Surface.YARD)
    sketch.fill(block, pick(sketch, surfaces, (0.6, 0.2, 0.2)))
    lot = lot_of(block, shapely.boundary(block))
    core = shapely.buffer(block, -3.0)
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(0.05, 0.5, 2) * (lot.width, lot.depth)
        band = rectangle(x, y, lot.width * rng.uniform(0.1, 0.5), lot.depth * rng.uniform(0.1, 0.5))
        fill_local(
            sketch, lot, band, pick(sketch, (*surfaces, Surface.GRASS), (0.3, 0.2, 0.2, 0.3)), core
        )
    u, v = np.meshgrid(
        np.arange(6.0, lot.width, rng.uniform(7.0, 12.0)),
        np.arange(6.0, lot.depth, rng.uniform(7.0, 12.0)),
    )
    grid = lot.frame.world(
        np.column_stack([u.ravel(), v.ravel()]) + rng.normal(0.0, 0.2, (u.size, 2))
    )
    middle = shapely.get_coordinates(shapely.centroid(block))[0]
    grid = grid[
        shapely.contains_xy(core, grid) & (np.hypot(*(grid - middle).T) > rng.uniform(5.0, 20.0))
    ]
    trees = grid[rng.uniform(size=len(grid)) < rng.uniform(0.2, 0.95)]
    sketch.plant(trees, "young", rng.uniform(0.8, 1.6))
    sketch.stamp(trees, lot.frame.heading_deg, (1.4, 1.4), Surface.SOIL)
    if rng.uniform() < 0.5:
        sketch.fill(pond_outline(sketch, middle, rng.uniform(2.0, 4.5)), Surface.WATER)
    elif rng.uniform() < 0.6:
        side = rng.uniform(5.0, 11.0)
        kiosk = rectangle(lot.width / 2, lot.depth / 2, side, side * rng.uniform(0.6, 1.0))
        if shapely.covers(core, shapely.polygons(lot.frame.world(kiosk))):
            build_local(sketch, lot, [(kiosk, RoofKind.HIP)], rng.uniform(3.0, 7.0))
    stands = sketch.scatter(core, int(shapely.area(block) / 45.0))
    turns = rng.integers(4, size=len(stands)).astype(np.float64)
    sketch.stand(stands, lot.frame.heading_deg + 90.0 * turns)


def draw_school(sketch: Sketch, block: Block) -> None:
    """A school with a yard and a marked field."""
    rng = sketch.rng
    sketch.fill(
        block, pick(sketch, (Surface.GRASS, Surface.DRY_GRASS, Surface.YARD), (0.5, 0.2, 0.3))
    )
    lot = lot_of(block, shapely.boundary(block))
    inset = shapely.buffer(block, -3.0)
    shapely.prepare(inset)
    depth = min(lot.depth * 0.4, 32.0)
    for scale in (0.9, 0.7, 0.5, 0.35):
        outline = flat_outline(
            rng, min(lot.width * scale, 85.0), depth * max(scale, 0.5)
        ) + np.array([5.0, 5.0])
        if shapely.covers(inset, shapely.polygons(lot.frame.world(outline))):
            build_local(sketch, lot, [(outline, RoofKind.FLAT)], rng.uniform(4.0, 12.0), (1, 4, 5))
            break
    fill_local(sketch, lot, rectangle(4.0, depth + 6.0, lot.width - 8.0, 10.0), Surface.YARD, inset)
    _sports_field(sketch, lot, inset, depth + 18.0)
    edge = shapely.difference(shapely.buffer(block, -1.5), shapely.buffer(block, -4.5))
    sketch.plant(sketch.scatter(edge, int(shapely.area(edge) / rng.uniform(25.0, 70.0))))


def _sports_field(sketch: Sketch, lot: Lot, inset: shapely.Geometry, y: float) -> None:
    """A marked pitch behind the depth y of a lot, inside a running track if there is room."""
    rng = sketch.rng
    width, depth = lot.width - 14.0, lot.depth - y - 6.0
    if min(width, depth) < 14.0:
        return
    margin = 0.0
    if min(width, depth) > 32.0:
        core = shapely.polygons(lot.frame.world(rectangle(21.0, y + 14.0, width - 28, depth - 28)))
        sketch.fill(shapely.intersection(shapely.buffer(core, 14.0), inset), Surface.PATH)
        margin = 4.0
    field = rectangle(7.0 + margin, y + margin, width - 2 * margin, depth - 2 * margin)
    grass = shapely.intersection(inset, shapely.polygons(lot.frame.world(field)))
    sketch.fill(grass, Surface.GRASS if rng.uniform() < 0.7 else Surface.PLAZA)
    (west, south), (east, north) = field[0] + 3.0, field[2] - 3.0
    pitch = shapely.polygons(lot.frame.world(rectangle(west, south, east - west, north - south)))
    middle = (west + east) / 2
    halfway = shapely.linestrings(lot.frame.world(np.array([(middle, south), (middle, north)])))
    circle = shapely.boundary(shapely.buffer(shapely.centroid(pitch), min(7.0, depth / 5)))
    lines = shapely.union_all([shapely.boundary(pitch), halfway, circle])
    sketch.fill(shapely.intersection(shapely.buffer(lines, 0.16), grass), Surface.MARKING)
    stands = sketch.scatter(grass, int(shapely.area(grass) / 120.0))
    sketch.stand(stands, lot.frame.heading_deg)


def draw_vacant(sketch: Sketch, block: Block) -> None:
    """Rough ground with bushes and trodden paths."""
    rng = sketch.rng
    sketch.fill(
        block, pick(sketch, (Surface.DRY_GRASS, Surface.SOIL, Surface.GRASS), (0.5, 0.3, 0.2))
    )
    core = shapely.buffer(block, -1.5)
    for center in sketch.scatter(core, int(rng.integers(2, 8))):
        patch = shapely.intersection(pond_outline(sketch, center, rng.uniform(4.0, 14.0)), core)
        sketch.fill(
            patch,
            pick(
                sketch,
                (Surface.SOIL, Surface.GRASS, Surface.DRY_GRASS, Surface.YARD),
                (0.4, 0.2, 0.2, 0.2),
            ),
        )
    a, b = sketch.rng.permutation(shapely.get_coordinates(shapely.boundary(block)))[:2]
    trail = shapely.intersection(shapely.linestrings([a, b]), core)
    sketch.fill(shapely.buffer(trail, 0.6), Surface.PATH)
    if shapely.get_type_id(trail) == 1 and shapely.length(trail) > 10.0:
        points = shapely.line_interpolate_point(trail, np.arange(3.0, shapely.length(trail), 5.0))
        sketch.stand(shapely.get_coordinates(points), math.degrees(math.atan2(*(b - a))))
    sketch.plant(sketch.scatter(core, int(shapely.area(core) / 90.0)), "shrub", 1.5)
    sketch.plant(sketch.scatter(core, int(shapely.area(core) / 350.0)))
