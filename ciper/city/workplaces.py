"""Blocks of shops, offices, halls and parked cars."""

from __future__ import annotations

import numpy as np
import shapely

from ciper.city.blocks import Sketch, lot_of, smooth_core, split_lots
from ciper.city.buildings import (
    flat_outline,
    make_look,
    rectangle,
    repainted,
)
from ciper.city.parts import RoofKind, Surface
from ciper.city.plots import Block, add_bays, build_local, fill_local, pick


def draw_commercial(sketch: Sketch, block: Block) -> None:
    """Shops and offices that fill most of their lots."""
    rng = sketch.rng
    sketch.fill(
        block,
        pick(
            sketch,
            (Surface.PLAZA, Surface.YARD, Surface.SIDEWALK, Surface.PARKING),
            (0.3, 0.2, 0.3, 0.2),
        ),
    )
    tall = rng.uniform(8.0, 40.0)
    for lot in split_lots(block, rng.uniform(650.0, 2200.0), rng):
        if rng.uniform() < 0.12 and lot.depth > 20.0:
            sketch.fill(lot.area, Surface.PARKING)
            add_bays(sketch, shapely.buffer(lot.area, -1.0), lot, (1.0, 1.5, lot.width - 2.0, 15.5))
            continue
        cores = smooth_core(lot.area, rng.uniform(0.0, 3.0))
        eave_m = float(np.clip(tall * rng.lognormal(0.0, 0.45), 4.5, 60.0))
        for core in cores:
            if shapely.area(core) < 90.0 or len(core.exterior.coords) > 14:
                continue
            look = make_look(rng, False, (1, 2, 2, 3, 4, 5))
            if rng.uniform() < 0.45:
                frame = lot_of(core, shapely.boundary(core))
                outline = frame.frame.world(flat_outline(rng, frame.width, frame.depth))
                for part in shapely.get_parts(
                    shapely.intersection(shapely.polygons(outline), core)
                ):
                    if shapely.get_type_id(part) == 3 and shapely.area(part) > 60.0:
                        sketch.build(shapely.get_coordinates(part.exterior)[:-1], eave_m, look)
            else:
                sketch.build(shapely.get_coordinates(core.exterior)[:-1], eave_m, look)


def draw_towers(sketch: Sketch, block: Block) -> None:
    """High-rises on a plaza, with low halls beside them."""
    rng = sketch.rng
    sketch.fill(block, pick(sketch, (Surface.PLAZA, Surface.YARD, Surface.GRASS), (0.5, 0.2, 0.3)))
    for lot in split_lots(block, rng.uniform(1100.0, 2300.0), rng):
        inset = shapely.buffer(lot.area, -3.0)
        size = rng.uniform(17.0, 30.0, 2)
        look = make_look(rng, False, (2, 2, 5, 1))
        for scale in (1.0, 0.8, 0.6):
            width, depth = size * scale
            corner = (np.array([lot.width, lot.depth]) - (width, depth)) * rng.uniform(0.3, 0.7, 2)
            outline = lot.frame.world(rectangle(corner[0], corner[1], width, depth))
            if shapely.covers(inset, shapely.polygons(outline)):
                sketch.build(outline, rng.uniform(26.0, 60.0), look)
                side = rng.uniform(6.0, 12.0)
                hall = rectangle(corner[0] + width, corner[1] + 0.1 * depth, side, depth * 0.7)
                if shapely.covers(inset, shapely.polygons(lot.frame.world(hall))):
                    sketch.build(
                        lot.frame.world(hall), rng.uniform(4.0, 9.0), repainted(look, rng, False)
                    )
                break
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(0.0, 0.8, 2) * (lot.width, lot.depth)
            bed = rectangle(x, y, lot.width * rng.uniform(0.1, 0.5), rng.uniform(3.0, 9.0))
            grounds = (Surface.GRASS, Surface.SIDEWALK, Surface.YARD, Surface.WATER)
            fill_local(sketch, lot, bed, pick(sketch, grounds, (0.5, 0.2, 0.25, 0.05)), inset)
        sketch.plant(sketch.scatter(inset, int(rng.integers(2, 12))), "young", 1.3)
    rim = shapely.boundary(shapely.buffer(block, -2.0))
    points = shapely.line_interpolate_point(rim, np.arange(3.0, shapely.length(rim), 7.0))
    sketch.stand(shapely.get_coordinates(points), rng.uniform(0.0, 360.0, len(points)))


def draw_industrial(sketch: Sketch, block: Block) -> None:
    """Halls in paved yards with lorries."""
    rng = sketch.rng
    sketch.fill(block, Surface.DRY_GRASS)
    for lot in split_lots(block, rng.uniform(2500.0, 5000.0), rng):
        inset = shapely.buffer(lot.area, -2.0)
        shapely.prepare(inset)
        sketch.fill(
            inset, pick(sketch, (Surface.PARKING, Surface.YARD, Surface.SOIL), (0.55, 0.35, 0.1))
        )
        look = make_look(rng, False, (3, 3, 2))
        setback, size = rng.uniform(5.0, 16.0), np.array([lot.width - 10.0, lot.depth - 14.0])
        for scale in (0.95, 0.8, 0.65, 0.5):
            width, depth = np.minimum(size * scale, (75.0, 55.0))
            outline = flat_outline(rng, width, depth) + np.array([5.0, setback])
            if min(width, depth) > 9.0 and shapely.covers(
                inset, shapely.polygons(lot.frame.world(outline))
            ):
                is_pitched = len(outline) == 4 and rng.uniform() < 0.45
                roof = RoofKind.GABLE if is_pitched else RoofKind.FLAT
                sketch.build(lot.frame.world(outline), rng.uniform(5.0, 12.0), look, roof)
                break
        else:
            for core in smooth_core(lot.area, setback):
                if len(core.exterior.coords) < 10 and shapely.area(core) > 150.0:
                    hall = shapely.get_coordinates(core.exterior)[:-1]
                    sketch.build(hall, rng.uniform(5.0, 9.0), look)
        if setback > 8.0:
            add_bays(sketch, inset, lot, (3.0, 1.0, lot.width - 6.0, setback - 1.5))
        if rng.uniform() < 0.5:  # stacked containers
            x, y = rng.uniform(3.0, max(3.1, lot.width - 18.0)), lot.depth - 5.5
            for k in range(int(rng.integers(1, 5))):
                box = lot.frame.world(rectangle(x + 6.3 * (k // 2), y - 2.7 * (k % 2), 6.1, 2.5))
                sketch.build(box, 2.6 * float(rng.integers(1, 3)), make_look(rng, True, (3,)))
        sketch.plant(sketch.scatter(shapely.difference(lot.area, inset), int(rng.integers(0, 8))))


def draw_parking(sketch: Sketch, block: Block) -> None:
    """An open parking lot with planted strips."""
    rng = sketch.rng
    sketch.fill(block, pick(sketch, (Surface.GRASS, Surface.YARD, Surface.SOIL), (0.7, 0.2, 0.1)))
    inset = shapely.buffer(block, -rng.uniform(1.0, 3.0))
    sketch.fill(inset, Surface.PARKING)
    lot = lot_of(block, shapely.boundary(block))
    y, has_trees = 3.0, rng.uniform() < 0.6
    while y + 16.0 < lot.depth:
        add_bays(sketch, inset, lot, (2.0, y, lot.width - 4.0, 16.5))
        if has_trees:
            x = np.arange(4.0, lot.width - 4.0, rng.uniform(8.0, 15.0))
            strip = rectangle(2.0, y + 16.7, lot.width - 4.0, 1.6)
            fill_local(
                sketch, lot, strip, pick(sketch, (Surface.GRASS, Surface.SOIL), (0.7, 0.3)), inset
            )
            points = lot.frame.world(np.column_stack([x, np.full(len(x), y + 17.5)]))
            sketch.plant(points[shapely.contains_xy(inset, points)], "young")
        y += 18.5
    if rng.uniform() < 0.3:
        build_local(sketch, lot, [(rectangle(4.0, 1.5, 4.0, 3.0), RoofKind.FLAT)], 2.8)
