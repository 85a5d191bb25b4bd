"""Buildings: the shapes of their wings, and their looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely

from ciper.city.parts import Buildings, FloatArray, RoofKind

# Albedo seen from above: tiles, slate, gravel, bitumen, metal, green, solar, painted.
_PITCHED_ROOFS = np.array(
    [
        (151, 76, 52), (174, 98, 66), (122, 62, 50), (92, 84, 80), (70, 72, 78), (128, 110, 94),
        (104, 88, 72), (160, 138, 116), (86, 98, 86), (58, 56, 58), (186, 122, 88), (142, 146, 150),
    ]
)  # fmt: skip
_FLAT_ROOFS = np.array(
    [
        (176, 174, 168), (142, 140, 136), (102, 102, 104), (206, 204, 198), (74, 74, 78),
        (156, 146, 130), (122, 128, 132), (188, 180, 160), (108, 124, 84), (228, 228, 226),
        (96, 84, 76), (134, 96, 80), (90, 122, 140),
    ]
)  # fmt: skip
_FACADES = np.array(
    [
        (214, 204, 184), (232, 228, 218), (182, 110, 82), (150, 84, 66), (198, 178, 142),
        (168, 164, 158), (122, 118, 114), (222, 196, 150), (206, 166, 136), (178, 192, 196),
        (138, 152, 164), (96, 100, 108), (226, 216, 170), (190, 150, 150), (158, 172, 142),
        (84, 72, 66), (240, 240, 238), (120, 86, 66),
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Look:
    """What the wings of one building share."""

    roof_color: tuple[int, int, int]
    facade_color: tuple[int, int, int]
    facade_style: int
    style_seed: int


@dataclass(frozen=True, eq=False)
class Wing:
    """One prism with a roof: a polygon (V, 2), in metres, and heights in metres."""

    polygon: FloatArray
    eave_m: float
    roof: RoofKind
    rise_m: float
    look: Look


def make_look(rng: np.random.Generator, is_pitched: bool, styles: Sequence[int]) -> Look:
    """Colours of roof and facade, drawn independently of each other."""

    def tint(palette: FloatArray, spread: float) -> tuple[int, int, int]:
        color = palette[rng.integers(len(palette))] * rng.uniform(0.85, 1.12)
        color = np.clip(color + rng.normal(0.0, spread, 3), 20, 250)
        return int(color[0]), int(color[1]), int(color[2])

    return Look(
        roof_color=tint(_PITCHED_ROOFS if is_pitched else _FLAT_ROOFS, 6.0),
        facade_color=tint(_FACADES, 7.0),
        facade_style=int(rng.choice(styles)),
        style_seed=int(rng.integers(2**32)),
    )


def rectangle(x: float, y: float, width: float, depth: float) -> FloatArray:
    """Counter-clockwise rectangle with its lower left corner at (x, y), (4, 2)."""
    return np.array([(x, y), (x + width, y), (x + width, y + depth), (x, y + depth)])


def flat_outline(rng: np.random.Generator, width: float, depth: float) -> FloatArray:
    """A rectangle, L, U, T or a stepped outline that fills (width, depth) from the origin."""
    w, d = width, depth
    a, b = rng.uniform(0.35, 0.6) * w, rng.uniform(0.4, 0.62) * d
    kind = rng.integers(6)
    if kind <= 1:
        outline = [(0, 0), (w, 0), (w, d), (0, d)]
    elif kind == 2:
        outline = [(0, 0), (w, 0), (w, b), (a, b), (a, d), (0, d)]
    elif kind == 3:
        t = 0.3 * w
        outline = [(0, 0), (w, 0), (w, d), (w - t, d), (w - t, b), (t, b), (t, d), (0, d)]
    elif kind == 4:
        t = 0.3 * w
        outline = [(0, 0), (w, 0), (w, b), (w - t, b), (w - t, d), (t, d), (t, b), (0, b)]
    else:
        s = 0.25 * d
        outline = [(0, s), (a, s), (a, 0), (w, 0), (w, d - s), (w - 0.2 * w, d - s),
                   (w - 0.2 * w, d), (0, d)]  # fmt: skip
    points = np.array(outline, np.float64)
    if rng.uniform() < 0.5:
        points = np.array([w, 0.0]) + points[::-1] * np.array([-1.0, 1.0])
    return points


def house_outlines(
    rng: np.random.Generator, width: float, depth: float
) -> list[tuple[FloatArray, RoofKind]]:
    """Wings of a detached house that fills (width, depth) from the origin, with their roofs."""
    kind = rng.choice(4, p=(0.45, 0.25, 0.12, 0.18))
    roof = RoofKind.GABLE if rng.uniform() < 0.6 else RoofKind.HIP
    if kind == 0:
        return [(rectangle(0.0, 0.0, width, depth * rng.uniform(0.75, 1.0)), roof)]
    if kind == 3:
        return [(flat_outline(rng, width, depth), RoofKind.FLAT)]
    main, side = depth * rng.uniform(0.5, 0.62), width * rng.uniform(0.38, 0.5)
    at = 0.0 if kind == 1 else (width - side) * rng.uniform(0.3, 0.7)
    if kind == 1 and rng.uniform() < 0.5:
        at = width - side
    low = rng.uniform() < 0.5
    wing_roof = RoofKind.FLAT if rng.uniform() < 0.3 else roof
    if low:  # the wing stands in front of the main part
        wing = rectangle(at, 0.0, side, depth - main)
        return [(rectangle(0.0, depth - main, width, main), roof), (wing, wing_roof)]
    wing = rectangle(at, main, side, depth - main)
    return [(rectangle(0.0, 0.0, width, main), roof), (wing, wing_roof)]


def ring_slots(
    polygon: shapely.Polygon, depth: float, slot_m: tuple[float, float], rng: np.random.Generator
) -> list[tuple[FloatArray, int, bool]]:
    """Slice the border of a block, `depth` metres deep, into plots that face outwards.

    The inner border is the outer one moved by `depth` with mitred corners, so that neighbours
    share their walls exactly.

    Returns:
        For each plot its counter-clockwise polygon (4, 2), the index of the block's side, and
        whether it is a rectangle (corner plots are not).
    """
    outer = counter_clockwise(shapely.get_coordinates(polygon.exterior)[:-1])
    side = np.roll(outer, -1, axis=0) - outer
    length = np.hypot(*side.T)
    along = side / length[:, None]
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    before = np.roll(normal, 1, axis=0)
    # A corner sharper than about 50 degrees would have a mitre without end.
    spread = np.maximum(1.0 + (normal * before).sum(axis=1), 0.35)
    miter = depth * (normal + before) / spread[:, None]
    slots: list[tuple[FloatArray, int, bool]] = []
    for i in range(len(outer)):
        j = (i + 1) % len(outer)
        first = max(0.0, float(miter[i] @ along[i])) + 1.0
        last = length[i] + min(0.0, float(miter[j] @ along[i])) - 1.0
        if last - first < 3.0:
            continue
        count = max(2, round(float(length[i]) / rng.uniform(*slot_m)))
        cuts = np.linspace(0.0, length[i], count + 1)[1:-1]
        cuts += rng.uniform(-0.12, 0.12, len(cuts)) * length[i] / count
        cuts = cuts[(cuts > first) & (cuts < last)]
        if len(cuts) == 0:
            cuts = np.array([(first + last) / 2])
        front = np.vstack([outer[i], outer[i] + cuts[:, None] * along[i], outer[j]])
        back = front + depth * normal[i]
        back[0], back[-1] = outer[i] + miter[i], outer[j] + miter[j]
        for k in range(len(front) - 1):
            quad = np.array([front[k], front[k + 1], back[k + 1], back[k]])
            slots.append((quad, i, 0 < k < len(front) - 2))
    return slots


def collect(wings: Sequence[Wing], size_m: float, keep_clear: shapely.Geometry) -> Buildings:
    """Turn wings into buildings, leaving out those that collide or are of no use.

    Of two wings that overlap the smaller one goes; so does one that reaches into `keep_clear`
    (the streets), lies outside [0, size_m]^2, is not simple or smaller than 4 square metres.
    """
    polygons = shapely.polygons([shapely.linearrings(wing.polygon) for wing in wings])
    area = shapely.area(polygons)
    box = shapely.box(0.0, 0.0, size_m, size_m)
    is_kept = shapely.is_valid(polygons) & (area > 4.0) & shapely.intersects(polygons, box)
    streets = shapely.get_parts(keep_clear)
    mine, theirs = shapely.STRtree(streets).query(polygons, predicate="intersects")
    is_solid = shapely.is_valid(polygons[mine])
    mine, theirs = mine[is_solid], theirs[is_solid]
    reach = shapely.area(shapely.intersection(polygons[mine], streets[theirs]))
    is_kept[mine[reach > 0.02]] = False
    index = np.flatnonzero(is_kept)
    a, b = shapely.STRtree(polygons[index]).query(polygons[index], predicate="intersects")
    a, b = index[a[a < b]], index[b[a < b]]
    overlap = shapely.area(shapely.intersection(polygons[a], polygons[b]))
    for p, q in zip(a[overlap > 0.02], b[overlap > 0.02], strict=True):
        if is_kept[p] and is_kept[q]:
            is_kept[p if area[p] < area[q] else q] = False
    return buildings_of([wing for wing, kept in zip(wings, is_kept, strict=True) if kept])


def buildings_of(wings: Sequence[Wing]) -> Buildings:
    """The same wings as arrays, outlines turned counter-clockwise."""
    looks = [wing.look for wing in wings]
    return Buildings(
        footprints=tuple(counter_clockwise(wing.polygon) for wing in wings),
        eave_height_m=np.array([wing.eave_m for wing in wings], np.float64),
        roof_kind=np.array([wing.roof for wing in wings], np.int64),
        roof_rise_m=np.array([wing.rise_m for wing in wings], np.float64),
        roof_color=np.array([look.roof_color for look in looks], np.uint8).reshape(-1, 3),
        facade_color=np.array([look.facade_color for look in looks], np.uint8).reshape(-1, 3),
        facade_style=np.array([look.facade_style for look in looks], np.int64),
        style_seed=np.array([look.style_seed for look in looks], np.uint32),
    )


def repainted(look: Look, rng: np.random.Generator, is_pitched: bool) -> Look:
    """The same building with another roof and another facade colour."""
    other = make_look(rng, is_pitched, (look.facade_style,))
    return replace(other, style_seed=look.style_seed)


def counter_clockwise(polygon: FloatArray) -> FloatArray:
    """An open ring (V, 2), turned if it ran clockwise."""
    x, y = polygon.T
    doubled_area = x @ np.roll(y, -1) - y @ np.roll(x, -1)
    return np.ascontiguousarray(polygon if doubled_area > 0 else polygon[::-1], np.float64)
