"""The same city at another date: what moved, grew, was felled, built, repainted or torn down."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely

from ciper.city.buildings import Look, Wing, buildings_of, make_look, rectangle, repainted
from ciper.city.furniture import building_tree, clear_sites, distance_to, make_cars
from ciper.city.parts import (
    BoolArray,
    Buildings,
    City,
    FloatArray,
    IntArray,
    RoofKind,
    Surface,
    Trees,
)
from ciper.city.surface import Ground

_GREEN = (Surface.GRASS, Surface.DRY_GRASS, Surface.SOIL)


@dataclass(frozen=True)
class Changes:
    """Fractions of the objects of both dates that have no equal at the other."""

    trees: float
    buildings: float
    cars: float


def at_other_date(city: City, seed: int) -> City:
    """The city at another date, a function of city and seed.

    All cars are parked anew, at least a tenth of the trees is felled, planted or has another
    size, at least three in a hundred buildings are gone, new, taller or repainted, and a few lots
    have another ground. Camera sites that this obstructs are left out.
    """
    parts = [np.random.default_rng(s) for s in np.random.SeedSequence((city.seed, seed)).spawn(4)]
    ground = Ground(city.size_m, city.surface_gsd, city.surface.copy())
    _resurface(ground, parts[0])
    buildings = _rebuild(city.buildings, ground, parts[1])
    trees = _regrow(city.trees, buildings, ground, parts[2])
    walls = building_tree(buildings)
    cars = make_cars(city.car_slots, parts[3].uniform(0.35, 0.75), walls, parts[3])
    return replace(
        city,
        surface=ground.ids,
        buildings=buildings,
        trees=trees,
        cars=cars,
        camera_sites=clear_sites(city.camera_sites, city.size_m, buildings, trees, cars),
    )


def changes(before: City, after: City) -> Changes:
    """Share of the objects of two dates that have no equal at the other.

    Trees are equal in place and size, buildings in outline, height, roof and colours, cars in
    place and colour.
    """

    def share(a: list[tuple[object, ...]], b: list[tuple[object, ...]]) -> float:
        return len(set(a) ^ set(b)) / max(len(a) + len(b), 1)

    def tree_keys(city: City) -> list[tuple[object, ...]]:
        trees = city.trees
        return list(zip(trees.x, trees.y, trees.crown_radius_m, trees.height_m, strict=True))

    def building_keys(city: City) -> list[tuple[object, ...]]:
        b = city.buildings
        return [
            (
                b.footprints[i].tobytes(), b.eave_height_m[i], b.roof_kind[i],
                b.roof_color[i].tobytes(), b.facade_color[i].tobytes(),
            )
            for i in range(len(b))
        ]  # fmt: skip

    def car_keys(city: City) -> list[tuple[object, ...]]:
        cars = city.cars
        return [(x, y, c.tobytes()) for x, y, c in zip(cars.x, cars.y, cars.color, strict=True)]

    return Changes(
        trees=share(tree_keys(before), tree_keys(after)),
        buildings=share(building_keys(before), building_keys(after)),
        cars=share(car_keys(before), car_keys(after)),
    )


def _resurface(ground: Ground, rng: np.random.Generator) -> None:
    """Mown, dried, dug or paved patches of unpaved ground."""
    count = max(4, round(ground.size_m**2 / 20000.0))
    size = rng.uniform(6.0, 30.0, (count, 2))
    place = rng.uniform(0.0, ground.size_m, (count, 2))
    patches = np.column_stack([place, rng.uniform(0.0, 360.0, count), size])
    value = rng.choice([*_GREEN, Surface.YARD], count, p=(0.3, 0.3, 0.25, 0.15))
    for kind in np.unique(value):
        ground.stamp(patches[value == kind], int(kind), _GREEN)


def _rebuild(buildings: Buildings, ground: Ground, rng: np.random.Generator) -> Buildings:
    """Tear down, replace, raise and repaint some of the buildings, and add a few."""
    fate = rng.choice(5, len(buildings), p=_odds(rng, (0.004, 0.005, 0.006, 0.015)))
    # A small city changes too.
    some = rng.permutation(len(buildings))[: 4 * max(1, round(0.008 * len(buildings)))]
    fate[some] = 1 + np.arange(len(some)) % 4
    gone = [
        shapely.Polygon(buildings.footprints[i]) for i in np.flatnonzero((fate == 1) | (fate == 2))
    ]
    ground.burn([(outline, int(rng.choice([*_GREEN, Surface.YARD]))) for outline in gone])
    changed = [_renovated(buildings, int(i), int(fate[i]), rng) for i in np.flatnonzero(fate > 1)]
    kept = buildings.take(fate == 0)
    return kept.join(buildings_of(changed + _new_buildings(kept, changed, ground, rng)))


def _odds(rng: np.random.Generator, shares: tuple[float, ...]) -> FloatArray:
    """Probabilities of no change and of each change, the latter up to doubled."""
    p = np.array(shares) * rng.uniform(1.0, 2.0, len(shares))
    return np.concatenate([[1.0 - p.sum()], p])


def _renovated(buildings: Buildings, i: int, fate: int, rng: np.random.Generator) -> Wing:
    """Building i replaced on its own plot (2), raised or lowered (3), or repainted (4)."""
    roof, rise_m = RoofKind(buildings.roof_kind[i]), float(buildings.roof_rise_m[i])
    outline, eave_m = buildings.footprints[i], float(buildings.eave_height_m[i])
    style = int(buildings.facade_style[i])
    red, green, blue = (int(v) for v in buildings.roof_color[i])
    wall = tuple(int(v) for v in buildings.facade_color[i])
    look = Look(
        (red, green, blue), (wall[0], wall[1], wall[2]), style, int(buildings.style_seed[i])
    )
    if fate == 2:
        center = shapely.get_coordinates(shapely.Polygon(outline).representative_point())[0]
        shrunk = center + (outline - center) * rng.uniform(0.7, 0.95)
        if shapely.Polygon(outline).covers(shapely.Polygon(shrunk)):
            outline = shrunk
        look = make_look(rng, False, (0, 1, 2, 3, 4, 5))
        return Wing(
            outline,
            float(np.clip(eave_m * rng.uniform(0.6, 2.0), 2.5, 60.0)),
            RoofKind.FLAT,
            0.0,
            look,
        )
    if fate == 3:
        storey_m = 3.0 if rng.uniform() < 0.75 or eave_m < 8.0 else -3.0
        eave_m = min(eave_m + storey_m * float(rng.integers(1, 3)), max(63.0, eave_m))
        return Wing(outline, eave_m, roof, rise_m, repainted(look, rng, roof is not RoofKind.FLAT))
    return Wing(outline, eave_m, roof, rise_m, repainted(look, rng, roof is not RoofKind.FLAT))


def _new_buildings(
    kept: Buildings, changed: list[Wing], ground: Ground, rng: np.random.Generator
) -> list[Wing]:
    """Houses and sheds on free green ground, clear of everything that stands."""
    wanted = max(1, round(0.012 * len(kept)))
    standing = [*kept.footprints, *(wing.polygon for wing in changed)]
    tree = shapely.STRtree([shapely.Polygon(outline) for outline in standing])
    found: list[Wing] = []
    outlines: list[shapely.Polygon] = []
    for center in rng.uniform(12.0, ground.size_m - 12.0, (wanted * 40, 2)):
        width, depth = rng.uniform(5.0, 14.0), rng.uniform(4.0, 10.0)
        angle = rng.uniform(0.0, np.pi)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        local = rectangle(-width / 2, -depth / 2, width, depth)
        samples = (
            center
            + np.stack(
                np.meshgrid(np.linspace(-0.6, 0.6, 9), np.linspace(-0.6, 0.6, 9)), -1
            ).reshape(-1, 2)
            * (width, depth)
            @ turn
        )
        if not np.isin(ground.at(*samples.T), _GREEN).all():
            continue
        polygon = center + local @ turn
        outline = shapely.Polygon(polygon)
        if len(tree.query(outline, predicate="dwithin", distance=1.5)) or any(
            other.distance(outline) < 1.5 for other in outlines
        ):
            continue
        roof = RoofKind(int(rng.integers(3)))
        rise_m = 0.0 if roof is RoofKind.FLAT else 0.35 * depth
        look = make_look(rng, roof is not RoofKind.FLAT, (0, 1, 3))
        found.append(Wing(polygon, rng.uniform(2.5, 7.0), roof, rise_m, look))
        outlines.append(outline)
        if len(found) == wanted:
            break
    return found


def _regrow(trees: Trees, buildings: Buildings, ground: Ground, rng: np.random.Generator) -> Trees:
    """Fell, plant, and let grow or prune; what stands in a new wall or pavement goes."""
    # Counted, not drawn one by one, so that the least share holds in a small city too.
    num_felled, num_resized = np.ceil(rng.uniform(0.07, 0.12, 2) * len(trees)).astype(np.int64)
    fate = np.zeros(len(trees), np.int64)
    order = rng.permutation(len(trees))
    fate[order[:num_felled]] = 1
    fate[order[num_felled : num_felled + num_resized]] = 2
    walls = building_tree(buildings)
    away = distance_to(walls, np.stack([trees.x, trees.y], 1), 6.0)
    kept = (fate != 1) & (away > 0.5)
    scale = np.where(
        rng.uniform(size=len(trees)) < 0.5,
        rng.uniform(0.5, 0.72, len(trees)),
        rng.uniform(1.35, 1.7, len(trees)),
    )
    scale[fate != 2] = 1.0
    grown = _resized(trees, scale, away).take(kept)
    return grown.join(_planted(grown, walls, ground, rng))


def _resized(trees: Trees, scale: FloatArray, away: FloatArray) -> Trees:
    """Trees scaled as a whole; crowns stay out of walls `away` metres off."""
    crown = np.minimum(trees.crown_radius_m * scale, np.maximum(away + 0.8, 0.4))
    crown = np.where(away < 6.0, crown, np.minimum(trees.crown_radius_m * scale, 6.0))
    return replace(
        trees,
        crown_radius_m=crown,
        height_m=np.clip(trees.height_m * scale, 0.5, 20.0),
        trunk_height_m=np.minimum(trees.trunk_height_m * scale, 8.0),
    )


def _planted(
    trees: Trees, walls: shapely.STRtree, ground: Ground, rng: np.random.Generator
) -> Trees:
    """New trees on green ground that look like some of the others."""
    wanted = round(rng.uniform(0.05, 0.09) * len(trees))
    xy = rng.uniform(1.0, ground.size_m - 1.0, (8 * wanted, 2))
    is_free: BoolArray = np.isin(ground.at(*xy.T), _GREEN) & (distance_to(walls, xy, 6.0) > 2.5)
    xy = xy[is_free][:wanted]
    models: IntArray = rng.integers(max(len(trees), 1), size=len(xy))
    planted = trees.take(models)
    seeds = rng.integers(2**32, size=len(xy), dtype=np.uint32)
    near = np.minimum(planted.crown_radius_m, 3.0)
    return replace(planted, x=xy[:, 0], y=xy[:, 1], crown_radius_m=near, color_seed=seeds)
