"""Steps that several land uses share."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import shapely

from ciper.city.blocks import Lot, Sketch
from ciper.city.buildings import (
    make_look,
    rectangle,
)
from ciper.city.parts import FloatArray, RoofKind, Surface

Block: TypeAlias = shapely.Polygon
GROUNDS = (Surface.GRASS, Surface.DRY_GRASS, Surface.YARD, Surface.SOIL)


def pick(sketch: Sketch, surfaces: tuple[Surface, ...], p: tuple[float, ...]) -> Surface:
    """Draw one of the surfaces with probabilities p."""
    return surfaces[int(sketch.rng.choice(len(surfaces), p=p))]


def fill_local(
    sketch: Sketch,
    lot: Lot,
    local: FloatArray,
    surface: Surface,
    within: shapely.Geometry | None = None,
) -> None:
    """Cover a polygon of the lot's frame, cut by the lot (or a smaller area)."""
    polygon = shapely.polygons(lot.frame.world(local))
    sketch.fill(shapely.intersection(polygon, lot.area if within is None else within), surface)


def build_local(
    sketch: Sketch,
    lot: Lot,
    wings: list[tuple[FloatArray, RoofKind]],
    eave_m: float,
    styles: tuple[int, ...] = (0, 1, 3, 4),
) -> None:
    """Build wings (in the lot's frame) that share one look, if the lot covers them."""
    is_pitched = any(roof is not RoofKind.FLAT for _, roof in wings)
    look = make_look(sketch.rng, is_pitched, styles)
    for k, (outline, roof) in enumerate(wings):
        polygon = lot.frame.world(outline)
        if shapely.covers(lot.area, shapely.polygons(polygon)):
            drop_m = 0.0 if k == 0 else float(sketch.rng.choice((0.0, 0.0, 2.6)))
            sketch.build(polygon, max(eave_m - drop_m, 2.3), look, roof)


def add_bays(
    sketch: Sketch, inset: shapely.Geometry, lot: Lot, place: tuple[float, float, float, float]
) -> None:
    """One aisle with parking bays on its sides, at (x, y, width, depth) in the lot's frame."""
    x, y, width, depth = place
    area = shapely.intersection(inset, shapely.polygons(lot.frame.world(rectangle(*place))))
    if shapely.is_empty(area) or width < 6.0:
        return
    sketch.fill(area, Surface.PARKING)
    heading = lot.frame.heading_deg - 90.0
    ticks = np.arange(x + 1.4, x + width - 1.0, 2.6)
    sides = (y + 2.5, y + depth - 2.5) if depth > 14.0 else (y + 2.5,)
    for row in sides:
        centers = lot.frame.world(np.column_stack([ticks, np.full(len(ticks), row)]))
        is_inside = shapely.contains_xy(shapely.buffer(area, -1.2), centers)
        flip = 180.0 * (sketch.rng.uniform() < 0.5)
        if is_inside.any():
            sketch.park(centers[is_inside], heading + flip, 5.0)
            marks = centers[is_inside] - 1.3 * lot.frame.along
            sketch.stamp(marks, heading, (4.8, 0.26), Surface.MARKING, Surface.PARKING)
    aisle = np.arange(x + 4.0, x + width - 4.0, 6.0)
    points = lot.frame.world(
        np.column_stack([aisle, np.full(len(aisle), y + min(depth - 3.0, depth / 2 + 1.5))])
    )
    points = points[shapely.contains_xy(area, points)]
    sketch.stand(points, lot.frame.heading_deg)


def pond_outline(sketch: Sketch, center: FloatArray, radius: float) -> shapely.Geometry:
    """A round shape with three bulges."""
    rng = sketch.rng
    t = np.linspace(0.0, 2 * math.pi, 40, endpoint=False)
    r = radius * (
        1.0 + 0.25 * np.sin(2 * t + rng.uniform(0, 6)) + 0.12 * np.sin(3 * t + rng.uniform(0, 6))
    )
    return shapely.polygons(center + r[:, None] * np.stack([np.cos(t), np.sin(t)], 1))
