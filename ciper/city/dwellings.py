"""Blocks where people live: houses, row houses, perimeter blocks, slabs."""

from __future__ import annotations

import numpy as np
import shapely

from ciper.city.blocks import Lot, Sketch, lot_of, smooth_core, split_lots
from ciper.city.buildings import (
    flat_outline,
    house_outlines,
    make_look,
    rectangle,
    repainted,
    ring_slots,
)
from ciper.city.parts import FloatArray, RoofKind, Surface
from ciper.city.plots import GROUNDS, Block, add_bays, build_local, fill_local, pick
from ciper.city.workplaces import draw_commercial


def draw_detached(sketch: Sketch, block: Block) -> None:
    """Houses in gardens."""
    rng = sketch.rng
    size_m2 = rng.uniform(330.0, 800.0)
    habits = rng.uniform(size=3)  # a neighbourhood shares its setback, hedges and driveways
    for lot in split_lots(block, size_m2, rng):
        _house_lot(sketch, lot, habits)


def _house_lot(sketch: Sketch, lot: Lot, habits: FloatArray) -> None:
    rng = sketch.rng
    sketch.fill(lot.area, pick(sketch, GROUNDS, (0.62, 0.2, 0.1, 0.08)))
    if rng.uniform() < 0.05 or min(lot.width, lot.depth) < 9.0:
        sketch.plant(sketch.scatter(shapely.buffer(lot.area, -2.0), int(rng.integers(2, 9))))
        return
    setback = (2.5 + 5.0 * habits[0]) * rng.uniform(0.8, 1.3)
    width = min(lot.width - 3.0, rng.uniform(8.5, 17.0))
    depth = min(lot.depth - setback - 4.0, rng.uniform(8.0, 14.0))
    house = _fit_house(sketch, lot, (width, depth), setback)
    if house is None:
        sketch.plant(sketch.scatter(shapely.buffer(lot.area, -1.5), 3))
        return
    left, right, back = house
    wide_right = lot.width - right > left
    x0, x1 = (right, lot.width) if wide_right else (0.0, left)
    if x1 - x0 > 2.6:
        _driveway(sketch, lot, (x0, x1, setback))
    if rng.uniform() < 0.5:  # terrace
        terrace = rectangle(
            left + 1.0, back, (right - left) * rng.uniform(0.4, 0.8), rng.uniform(2.0, 4.5)
        )
        fill_local(sketch, lot, terrace, Surface.YARD)
    if rng.uniform() < 0.1 and lot.depth - back > 10.0:
        fill_local(sketch, lot, rectangle(left + 2.0, back + 4.5, 7.0, 3.8), Surface.PLAZA)
        fill_local(sketch, lot, rectangle(left + 2.6, back + 5.1, 5.8, 2.6), Surface.WATER)
    if rng.uniform() < 0.4 and lot.depth - back > 7.0:
        shed = rectangle(
            rng.uniform(1.0, max(1.1, lot.width - 5.0)), lot.depth - 5.0, rng.uniform(2.4, 4.5), 3.0
        )
        build_local(sketch, lot, [(shed, RoofKind.FLAT)], 2.3)
    if rng.uniform() < 0.25 + 0.5 * habits[1]:
        corners = [
            (0.5, 0.7),
            (0.5, lot.depth),
            (lot.width - 0.5, lot.depth),
            (lot.width - 0.5, 0.7),
        ]
        points = lot.frame.world(np.array(corners))
        for k in range(3):
            if rng.uniform() < 0.45:
                sketch.hedge(points[k], points[k + 1])
    count = int(rng.poisson(0.8 + shapely.area(lot.area) / 170.0))
    sketch.plant(sketch.scatter(shapely.buffer(lot.area, -1.2), count), scale=rng.uniform(0.6, 1.0))
    sketch.plant(sketch.scatter(shapely.buffer(lot.area, -0.8), int(rng.integers(0, 5))), "shrub")


def _fit_house(
    sketch: Sketch, lot: Lot, size: tuple[float, float], setback: float
) -> tuple[float, float, float] | None:
    """Build the largest house that the lot holds: its left, right and back in the lot's frame."""
    rng = sketch.rng
    inset = shapely.buffer(lot.area, -0.8)
    shapely.prepare(inset)
    slack, floors = rng.uniform(0.15, 0.85), int(rng.choice(3, p=(0.5, 0.42, 0.08))) + 1
    for scale in (1.0, 0.85, 0.7, 0.55):
        width, depth = size[0] * scale, size[1] * scale
        if width < 5.5 or depth < 5.5:
            return None
        left = (lot.width - width) * (
            slack if lot.width - width < 5.0 else round(slack) * 0.7 + 0.12
        )
        shift = np.array([left, setback * (0.5 + 0.5 * scale)])
        wings = [(outline + shift, roof) for outline, roof in house_outlines(rng, width, depth)]
        if all(shapely.covers(inset, shapely.polygons(lot.frame.world(w))) for w, _ in wings):
            build_local(sketch, lot, wings, 2.8 * floors + rng.uniform(0.2, 0.9), (0, 0, 1, 4))
            return left, left + width, float(shift[1]) + depth
    return None


def _driveway(sketch: Sketch, lot: Lot, place: tuple[float, float, float]) -> None:
    """A strip between x0 and x1 with cars on it and, often, a garage at its end."""
    rng = sketch.rng
    x0, x1, setback = place
    width = min(x1 - x0 - 0.3, rng.uniform(2.7, 5.6))
    x = float(np.clip((x0 + x1 - width) / 2, 0.4, lot.width - width - 0.4))
    length = min(setback + rng.uniform(3.0, 7.0), lot.depth - 2.0)
    fill_local(
        sketch,
        lot,
        rectangle(x, -1.0, width, length + 1.0),
        pick(sketch, (Surface.YARD, Surface.PARKING, Surface.PLAZA), (0.5, 0.3, 0.2)),
    )
    if rng.uniform() < 0.6 and lot.depth > length + 8.0:
        roof = RoofKind.GABLE if rng.uniform() < 0.3 else RoofKind.FLAT
        build_local(sketch, lot, [(rectangle(x, length, min(width, 3.4), 6.0), roof)], 2.6, (3,))
    if length > 6.0:
        sketch.park(
            lot.frame.world(np.array([[x + min(width / 2, 1.5), length - 3.0]])),
            lot.frame.heading_deg - 90.0,
        )


def draw_rows(sketch: Sketch, block: Block) -> None:
    """Row houses with front yards and back gardens."""
    rng = sketch.rng
    depth, setback = rng.uniform(8.5, 11.5), rng.uniform(1.5, 5.5)
    cores = smooth_core(block, setback)
    sketch.fill(block, pick(sketch, GROUNDS, (0.5, 0.2, 0.25, 0.05)))
    slot_m, share = (6.0, 9.5), rng.uniform(0.15, 0.9)
    for core in cores:
        if shapely.is_empty(shapely.buffer(core, -depth - 3.0)):
            draw_slabs(sketch, core)
            continue
        _back_gardens(sketch, shapely.buffer(core, -depth - 2.0))
        looks = [make_look(rng, rng.uniform() < 0.8, (0, 1, 4)) for _ in range(3)]
        side_seen, eave_m, roof = -1, 6.0, RoofKind.GABLE
        for quad, side, is_rectangle in ring_slots(core, depth, slot_m, rng):
            if side != side_seen:
                side_seen, eave_m = side, 2.9 * float(rng.choice((2, 2, 3))) + 0.6
                roof = RoofKind(int(rng.choice(3, p=(0.35, 0.6, 0.05))))
            if is_rectangle:
                garden = np.array([quad[3], quad[2], 2 * quad[2] - quad[1], 2 * quad[3] - quad[0]])
                plot = shapely.intersection(shapely.polygons(garden), core)
                sketch.fill(plot, pick(sketch, GROUNDS, (0.5, 0.2, 0.2, 0.1)))
            front = 0.5 * (quad[0] + quad[1])
            inward = (quad[3] - quad[0]) / max(np.hypot(*(quad[3] - quad[0])), 1e-6)
            if rng.uniform() < 0.35:
                sketch.plant(quad[2] + inward * rng.uniform(2.5, 7.0), scale=0.6)
            if rng.uniform() < 0.3 and setback > 3.0:
                sketch.plant(front - inward * setback * 0.5, "shrub")
            if rng.uniform() < 0.05:
                continue
            look = looks[int(rng.integers(3))]
            if rng.uniform() < share:
                look = repainted(look, rng, roof is not RoofKind.FLAT)
            step = 1.4 if rng.uniform() < 0.15 else 0.0
            sketch.build(quad, eave_m + step, look, roof if is_rectangle else RoofKind.FLAT)


def _back_gardens(sketch: Sketch, area: shapely.Geometry) -> None:
    """Plots behind row houses: each with its ground, hedges, trees and perhaps a shed."""
    rng = sketch.rng
    for part in shapely.get_parts(area):
        if shapely.area(part) < 60.0:
            continue
        for lot in split_lots(part, rng.uniform(90.0, 260.0), rng):
            sketch.fill(lot.area, pick(sketch, GROUNDS, (0.55, 0.2, 0.1, 0.15)))
            sketch.plant(sketch.scatter(lot.area, int(rng.poisson(1.0))), scale=0.75)
            if rng.uniform() < 0.35:
                corners = lot.frame.world(np.array([(0.4, 0.4), (lot.width - 0.4, 0.4)]))
                sketch.hedge(corners[0], corners[1])
            if rng.uniform() < 0.3 and lot.width > 6.0:
                shed = rectangle(rng.uniform(0.5, lot.width - 4.5), lot.depth - 4.0, 3.5, 2.6)
                build_local(sketch, lot, [(shed, RoofKind.FLAT)], 2.3)


def draw_perimeter(sketch: Sketch, block: Block) -> None:
    """A closed row of tall houses around courtyards."""
    rng = sketch.rng
    depth, setback = rng.uniform(10.5, 14.5), rng.uniform(0.0, 1.0)
    sketch.fill(
        block, pick(sketch, (Surface.YARD, Surface.GRASS, Surface.PLAZA), (0.5, 0.35, 0.15))
    )
    for core in smooth_core(block, setback):
        court = shapely.buffer(core, -depth - 1.5)
        if shapely.is_empty(court) or shapely.area(court) < 60.0:
            draw_commercial(sketch, core)
            continue
        floors = rng.uniform(3.5, 7.0)
        look, side_seen, has_pitched = make_look(rng, False, (1,)), 0, rng.uniform() < 0.4
        eave_m = 3.1 * floors
        for quad, side, is_rectangle in ring_slots(core, depth, (12.0, 27.0), rng):
            roof = (
                RoofKind.GABLE
                if has_pitched and is_rectangle and rng.uniform() < 0.8
                else RoofKind.FLAT
            )
            if side == side_seen:  # around a corner the same house goes on
                look = make_look(rng, roof is not RoofKind.FLAT, (0, 1, 4, 5))
                eave_m = 3.1 * round(floors + rng.normal(0.0, 0.9)) + rng.uniform(0.5, 1.5)
            side_seen = side
            if rng.uniform() > 0.06:
                sketch.build(quad, max(eave_m, 6.0), look, roof)
        _court(sketch, court)


def _court(sketch: Sketch, court: shapely.Geometry) -> None:
    rng = sketch.rng
    surface = pick(
        sketch,
        (Surface.YARD, Surface.GRASS, Surface.PLAZA, Surface.DRY_GRASS),
        (0.3, 0.4, 0.15, 0.15),
    )
    sketch.fill(court, surface)
    sketch.plant(sketch.scatter(court, int(shapely.area(court) / rng.uniform(90.0, 350.0))))
    for part in shapely.get_parts(shapely.buffer(court, -2.5)):
        if shapely.area(part) < 100.0:
            continue
        lot = lot_of(part, shapely.boundary(part))
        if rng.uniform() < 0.35:
            add_bays(sketch, part, lot, (0.0, 0.0, lot.width, min(lot.depth, 16.5)))
        elif rng.uniform() < 0.7:
            outline = flat_outline(
                rng, lot.width * rng.uniform(0.3, 0.6), min(lot.depth * 0.6, 14.0)
            )
            build_local(
                sketch,
                lot,
                [(outline + np.array([lot.width, lot.depth]) * 0.2, RoofKind.FLAT)],
                rng.uniform(3.2, 8.0),
            )


def draw_slabs(sketch: Sketch, block: Block) -> None:
    """Parallel apartment buildings on a lawn, with parking between some of them."""
    rng = sketch.rng
    lot = lot_of(block, shapely.boundary(block))
    sketch.fill(block, pick(sketch, (Surface.GRASS, Surface.DRY_GRASS), (0.7, 0.3)))
    inset = shapely.buffer(block, -3.5)
    shapely.prepare(inset)
    depth, floors, gap = rng.uniform(11.0, 14.0), int(rng.integers(3, 11)), rng.uniform(15.0, 24.0)
    look, has_parking = make_look(rng, False, (1, 5, 3)), rng.uniform() < 0.6
    y = rng.uniform(3.5, 8.0)
    while y + depth < lot.depth - 2.0:
        x = rng.uniform(3.5, 12.0)
        while x < lot.width - 16.0:
            width = min(rng.uniform(24.0, 62.0), lot.width - 3.5 - x)
            outline = rectangle(x, y, width, depth)
            while width > 14.0 and not shapely.covers(
                inset, shapely.polygons(lot.frame.world(outline))
            ):
                width *= 0.8
                outline = rectangle(x, y, width, depth)
            if width > 14.0:
                own = repainted(look, rng, False) if rng.uniform() < 0.6 else look
                sketch.build(
                    lot.frame.world(outline),
                    2.9 * max(2, floors + int(rng.integers(-1, 2))) + 0.8,
                    own,
                )
                fill_local(
                    sketch, lot, rectangle(x, y + depth + 1.5, width, 2.0), Surface.YARD, inset
                )
            x += width + rng.uniform(8.0, 18.0)
        if has_parking and gap > 17.0:
            add_bays(sketch, inset, lot, (4.0, y + depth + 4.5, lot.width - 8.0, 11.0))
        y += depth + gap
    sketch.plant(sketch.scatter(inset, int(shapely.area(block) / rng.uniform(130.0, 420.0))))
