"""Blocks between the streets: their land use, their lots, and the sketch that they fill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely

from ciper.city.buildings import Look, Wing, counter_clockwise
from ciper.city.parts import FloatArray, RoofKind, Surface

# Crown radius, height / crown radius, clear trunk / height: (low, high) of each.
_TREE_SHAPES = {
    "tree": ((1.8, 5.5), (2.2, 3.6), (0.15, 0.32)),
    "young": ((1.0, 2.2), (2.4, 3.6), (0.25, 0.4)),
    "shrub": ((0.5, 1.1), (1.4, 2.4), (0.02, 0.06)),
}


@dataclass(frozen=True, eq=False)
class Frame:
    """Local axes of a lot: x along its front, y into its depth."""

    origin: FloatArray
    along: FloatArray

    @property
    def heading_deg(self) -> float:
        """Direction of the x axis, clockwise from north."""
        return math.degrees(math.atan2(self.along[0], self.along[1])) % 360.0

    def world(self, local: FloatArray) -> FloatArray:
        """City coordinates of local points (..., 2), in metres."""
        inward = np.array([-self.along[1], self.along[0]])
        world: FloatArray = self.origin + local[..., :1] * self.along + local[..., 1:] * inward
        return world


@dataclass(frozen=True, eq=False)
class Lot:
    """A piece of a block, with the frame of its side next to the street."""

    area: shapely.Geometry
    frame: Frame
    width: float
    depth: float


@dataclass(eq=False)
class Sketch:
    """What the blocks add to the city, in painter's order.

    Attributes:
        fills: polygons and their `Surface`.
        stamps: rectangles (K, 5) for `Ground.stamp`, their `Surface`, and the one they stay on.
        wings: of the buildings.
        trees: (K, 6) x, y, crown radius, height, trunk height in metres, is_evergreen.
        slots: (K, 4) places for cars: x, y, heading_deg, greatest length in metres.
        sites: (K, 3) places for a camera: x, y, heading_deg.
    """

    rng: np.random.Generator
    fills: list[tuple[shapely.Geometry, int]] = field(default_factory=list)
    stamps: list[tuple[FloatArray, Surface, Surface | None]] = field(default_factory=list)
    wings: list[Wing] = field(default_factory=list)
    trees: list[FloatArray] = field(default_factory=list)
    slots: list[FloatArray] = field(default_factory=list)
    sites: list[FloatArray] = field(default_factory=list)

    def fill(self, area: shapely.Geometry, surface: Surface) -> None:
        """Cover an area."""
        if not shapely.is_empty(area):
            self.fills.append((area, int(surface)))

    def stamp(
        self,
        xy: FloatArray,
        heading_deg: float,
        size: tuple[float, float],
        surface: Surface,
        only_on: Surface | None = None,
    ) -> None:
        """Paint equal rectangles (length along the heading, width) centred on points (K, 2)."""
        rest = np.tile([heading_deg, *size], (len(xy), 1))
        self.stamps.append((np.column_stack([xy, rest]), surface, only_on))

    def build(
        self, polygon: FloatArray, eave_m: float, look: Look, roof: RoofKind = RoofKind.FLAT
    ) -> None:
        """Add a wing; a pitched roof rises with the wing's narrower side."""
        rise_m = 0.0
        if roof is not RoofKind.FLAT:
            narrow = np.hypot(*(np.roll(polygon, -1, axis=0) - polygon).T).min()
            rise_m = float(np.clip(narrow * self.rng.uniform(0.22, 0.5), 0.8, 6.0))
        self.wings.append(Wing(polygon, eave_m, roof, rise_m, look))

    def plant(self, xy: FloatArray, kind: str = "tree", scale: float | FloatArray = 1.0) -> None:
        """Plant a tree, a young tree or a shrub at each of the points (K, 2)."""
        xy = np.asarray(xy, np.float64).reshape(-1, 2)
        radius, slenderness, trunk = (
            self.rng.uniform(*limits, len(xy)) for limits in _TREE_SHAPES[kind]
        )
        crown = radius * scale
        height = np.clip(crown * slenderness, 0.8, 20.0)
        is_evergreen = self.rng.uniform(size=len(xy)) < (0.5 if kind == "shrub" else 0.22)
        self.trees.append(np.column_stack([xy, crown, height, trunk * height, is_evergreen]))

    def hedge(self, a: FloatArray, b: FloatArray) -> None:
        """Shrubs in a row from a to b."""
        count = int(np.hypot(*(b - a)) / 1.3)
        t = (np.arange(count) + self.rng.uniform(0.3, 0.7, count)) / max(count, 1)
        self.plant(a + t[:, None] * (b - a), "shrub", self.rng.uniform(0.8, 1.2))

    def park(self, xy: FloatArray, heading_deg: float, length_m: float = 5.2) -> None:
        """Offer places for cars at the points (K, 2)."""
        xy = np.atleast_2d(xy)
        self.slots.append(np.column_stack([xy, np.tile([heading_deg, length_m], (len(xy), 1))]))

    def stand(self, xy: FloatArray, heading_deg: FloatArray | float) -> None:
        """Offer places for cameras at the points (K, 2)."""
        headings = np.broadcast_to(np.asarray(heading_deg, np.float64), len(xy)) % 360.0
        self.sites.append(np.column_stack([xy, headings]))

    def scatter(self, area: shapely.Geometry, count: int) -> FloatArray:
        """About `count` uniform points within an area, (K, 2)."""
        west, south, east, north = shapely.bounds(area)
        if count <= 0 or not math.isfinite(west):
            return np.empty((0, 2))
        share = max(shapely.area(area) / ((east - west) * (north - south)), 0.05)
        tries = min(round(count / share), 4000)
        xy = self.rng.uniform((west, south), (east, north), (tries, 2))
        inside: FloatArray = xy[shapely.contains_xy(area, xy)]
        return inside


def find_blocks(right_of_way: shapely.Geometry, size_m: float) -> list[shapely.Polygon]:
    """Areas between the streets, a little beyond the border of the city included."""
    margin_m = 30.0
    domain = shapely.box(-margin_m, -margin_m, size_m + margin_m, size_m + margin_m)
    parts = shapely.get_parts(shapely.difference(domain, right_of_way))
    city = shapely.box(0.0, 0.0, size_m, size_m)
    return [part for part in parts if shapely.intersects(part, city)]


def halves(
    area: shapely.Geometry, rng: np.random.Generator, jitter: float = 0.1
) -> list[shapely.Polygon]:
    """Cut an area across its longer extent, near the middle."""
    corners = shapely.get_coordinates(shapely.oriented_envelope(area))[:4]
    sides = corners[1] - corners[0], corners[2] - corners[1]
    length = [float(np.hypot(*side)) for side in sides]
    k = int(length[1] > length[0])
    long, short = sides[k], sides[1 - k] * (1 if k == 0 else -1)
    at = corners[k] + long * rng.uniform(0.5 - jitter, 0.5 + jitter) - short
    corner = np.array([at, at + long * 3, at + long * 3 + short * 3, at + short * 3])
    half_plane = shapely.polygons(corner)
    both = (shapely.intersection(area, half_plane), shapely.difference(area, half_plane))
    return [
        part
        for half in both
        for part in shapely.get_parts(half)
        if shapely.get_type_id(part) == 3 and shapely.area(part) > 1.0
    ]


def split_lots(block: shapely.Polygon, target_m2: float, rng: np.random.Generator) -> list[Lot]:
    """Halve a block into lots of about the target's size, each facing its nearest street."""
    pieces: list[shapely.Polygon] = []
    stack = [block]
    while stack:
        piece = stack.pop()
        if shapely.area(piece) < target_m2 * rng.uniform(1.1, 1.9):
            pieces.append(piece)
        else:
            stack += halves(piece, rng, 0.08)
    border = shapely.boundary(block)
    return [lot_of(piece, border) for piece in pieces]


def lot_of(area: shapely.Geometry, border: shapely.Geometry) -> Lot:
    """Frame of an area whose front is the side of its box nearest to `border`."""
    corners = counter_clockwise(shapely.get_coordinates(shapely.oriented_envelope(area))[:4])
    following = np.roll(corners, -1, axis=0)
    length = np.hypot(*(following - corners).T)
    away = shapely.distance(shapely.points((corners + following) / 2), border)
    # Of two fronts on streets the narrower one is taken: lots are deeper than wide.
    front = int(np.argmin(np.round(away / 2.0) * 1000.0 + length))
    along = (following[front] - corners[front]) / max(length[front], 1e-6)
    return Lot(area, Frame(corners[front], along), float(length[front]), float(length[front - 1]))


def smooth_core(block: shapely.Polygon, inset_m: float) -> list[shapely.Polygon]:
    """A block without its outer `inset_m` metres, with few corners."""
    core = shapely.simplify(shapely.buffer(block, -inset_m - 0.9, join_style="mitre"), 0.9)
    return [part for part in shapely.get_parts(core) if shapely.area(part) > 30.0]


def wanted_use(
    rng: np.random.Generator,
    area_m2: float,
    density: float,
    weights: Sequence[tuple[str, float, float, float, float]],
) -> str:
    """Draw a land use.

    Args:
        rng: source of randomness.
        area_m2: of the block.
        density: 0 at the edge of a city to 1 in its core.
        weights: name, weight at density 0, weight at density 1, least and greatest area in square
            metres.
    """
    fitting = [
        (name, low + (high - low) * density)
        for name, low, high, least, most in weights
        if least <= area_m2 <= most
    ]
    p = np.maximum([weight for _, weight in fitting], 0.0)
    return fitting[int(rng.choice(len(fitting), p=p / p.sum()))][0]
