"""One column of a panorama: a ray walks the plan, solids and trees fill the column's rows.

A column is one bearing. Distances t are metres in the plan; a row is the slope s of its rays, so a
ray's height is z = camera height + s t. Solids are convex in the vertical plane of the column: the
part of a footprint between an entry at t0 and an exit at t1, under planes. Where a row's ray enters
it follows by clipping [t0, t1] with each plane, exactly; the nearest hit wins row by row, so the
order in which things are found does not matter.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ciper.city.scene import GRID_CELL_M
from ciper.city.texture import color_kernel, geometry_kernel, hash01, leaf_density, value_noise

SKY, GROUND, WALL, ROOF, CROWN, TRUNK = 0, 1, 2, 3, 4, 5
MAX_HITS = 1024  # per column; what is found later, hence farther away, is left out
_FAR_M = 1e9


class Workspace(NamedTuple):
    """Scratch arrays of one thread."""

    segment_stamp: NDArray[np.int64]  # (S,) last column that met the segment
    tree_stamp: NDArray[np.int64]  # (T,)
    hit_t: NDArray[np.float64]  # (MAX_HITS,)
    hit_segment: NDArray[np.int32]  # (MAX_HITS,)
    hit_tree: NDArray[np.int32]  # (MAX_HITS,)
    slope: NDArray[np.float64]  # (rows,) from top to bottom
    depth: NDArray[np.float64]  # (rows,) metres in the plan
    kind: NDArray[np.int32]  # (rows,)
    owner: NDArray[np.int32]  # (rows,) segment of a wall, solid of a roof, tree
    total: NDArray[np.float64]  # (rows, 3) sums of colours


def make_workspace(num_segments: int, num_trees: int, slope: NDArray[np.float64]) -> Workspace:
    """Allocate scratch arrays for columns with rays of the given slopes (rows,)."""
    return Workspace(
        segment_stamp=np.full(num_segments, -1, np.int64),
        tree_stamp=np.full(num_trees, -1, np.int64),
        hit_t=np.zeros(MAX_HITS),
        hit_segment=np.zeros(MAX_HITS, np.int32),
        hit_tree=np.zeros(MAX_HITS, np.int32),
        slope=slope,
        depth=np.zeros(len(slope)),
        kind=np.zeros(len(slope), np.int32),
        owner=np.zeros(len(slope), np.int32),
        total=np.zeros((len(slope), 3)),
    )


@geometry_kernel
def _meet_segments(scene, begin, end, x, y, dx, dy, stamp, num_hits, max_range_m, work):
    """Intersect a ray with a cell's segments not met before; append the crossings."""
    for k in range(begin, end):
        s = scene.segment_ids[k]
        if work.segment_stamp[s] == stamp:
            continue
        work.segment_stamp[s] = stamp
        ax, ay = scene.segments[s, 0] - x, scene.segments[s, 1] - y
        bx, by = scene.segments[s, 2] - x, scene.segments[s, 3] - y
        side_a, side_b = dx * ay - dy * ax, dx * by - dy * bx
        # Half open: a ray through a corner meets exactly one of its two walls.
        if (side_a > 0.0) == (side_b > 0.0):
            continue
        share = side_a / (side_a - side_b)
        t = dx * (ax + share * (bx - ax)) + dy * (ay + share * (by - ay))
        if 0.0 < t < max_range_m and num_hits < MAX_HITS:
            work.hit_t[num_hits] = t
            work.hit_segment[num_hits] = s
            num_hits += 1
    return num_hits


@geometry_kernel
def is_entry(scene, s, dx, dy):
    """Whether a ray along (dx, dy) enters a solid through a segment (inside on the left)."""
    ex, ey = (
        scene.segments[s, 2] - scene.segments[s, 0],
        scene.segments[s, 3] - scene.segments[s, 1],
    )
    return ex * dy - ey * dx > 0.0


@geometry_kernel
def walk(scene, x, y, camera_m, dx, dy, stamp, max_range_m, work):
    """Walk the grid cell by cell (Amanatides and Woo 1987) and collect segments and trees.

    Stops where the walls met so far hide whatever the city's greatest height could still show.

    Returns:
        num_hits, num_trees and the distance that was searched.
    """
    num_cells = scene.num_cells
    i, j = math.floor(x / GRID_CELL_M), math.floor(y / GRID_CELL_M)
    step_i, step_j = 1 if dx > 0.0 else -1, 1 if dy > 0.0 else -1
    delta_x = GRID_CELL_M / max(abs(dx), 1e-12)
    delta_y = GRID_CELL_M / max(abs(dy), 1e-12)
    next_x = abs((i + (dx > 0.0)) * GRID_CELL_M - x) / max(abs(dx), 1e-12)
    next_y = abs((j + (dy > 0.0)) * GRID_CELL_M - y) / max(abs(dy), 1e-12)
    rise = scene.max_height_m - camera_m
    top_slope = work.slope[0]
    num_hits, num_trees, hidden_slope, hidden_t, t = 0, 0, -1e9, 0.0, 0.0
    while t < max_range_m:
        t = min(next_x, next_y)
        if 0 <= i < num_cells and 0 <= j < num_cells:
            cell = j * num_cells + i
            begin, end = scene.segment_cells[cell], scene.segment_cells[cell + 1]
            first = num_hits
            num_hits = _meet_segments(
                scene, begin, end, x, y, dx, dy, stamp, first, max_range_m, work
            )
            for k in range(first, num_hits):
                if is_entry(scene, work.hit_segment[k], dx, dy):
                    solid = scene.segment_solid[work.hit_segment[k]]
                    slope = (scene.solid_eave_m[solid] - camera_m) / work.hit_t[k]
                    if slope > hidden_slope:
                        hidden_slope = slope
                        hidden_t = max(hidden_t, work.hit_t[k])
            for k in range(scene.tree_cells[cell], scene.tree_cells[cell + 1]):
                tree = scene.tree_ids[k]
                if work.tree_stamp[tree] != stamp and num_trees < MAX_HITS:
                    work.tree_stamp[tree] = stamp
                    work.hit_tree[num_trees] = tree
                    num_trees += 1
        reachable = rise / max(t, 1e-6) if rise > 0.0 else rise / max_range_m
        if t >= hidden_t and hidden_slope >= min(reachable, top_slope):
            return num_hits, num_trees, t
        if next_x < next_y:
            i, next_x = i + step_i, next_x + delta_x
        else:
            j, next_y = j + step_j, next_y + delta_y
    return num_hits, num_trees, max_range_m


@geometry_kernel
def _rows_between(low, high, top_rad, step_rad, num_rows):
    """First and last row (inclusive, one too many on each side) with slopes in [low, high]."""
    first = math.floor((top_rad - math.atan(high)) / step_rad - 0.5)
    last = math.ceil((top_rad - math.atan(low)) / step_rad - 0.5)
    return max(first, 0), min(last, num_rows - 1)


@geometry_kernel
def _fill_solid(scene, segment, x, y, camera_m, dx, dy, enter, leave, top_rad, step_rad, work):
    """Write the rows whose rays meet a solid between two distances before anything else."""
    solid = scene.segment_solid[segment]
    top = scene.solid_top_m[solid] - camera_m
    high = top / enter if top > 0.0 else top / leave
    first, last = _rows_between(-camera_m / enter, high, top_rad, step_rad, len(work.slope))
    for row in range(first, last + 1):
        slope = work.slope[row]
        near, far, plane = enter, leave, -1
        for i in range(scene.num_planes[solid]):
            a, b, c = scene.planes[solid, i]
            # Below the plane where camera_m + slope t <= (a + b x + c y) + (b dx + c dy) t.
            k = slope - (b * dx + c * dy)
            room = a + b * x + c * y - camera_m
            if k > 1e-12:
                far = min(far, room / k)
            elif k < -1e-12:
                if room / k > near:
                    near, plane = room / k, i
            elif room < 0.0:
                far = -1.0
        if near <= far and near < work.depth[row]:
            work.depth[row] = near
            work.kind[row] = WALL if plane < 0 else ROOF
            work.owner[row] = segment if plane < 0 else solid


@geometry_kernel
def fill_solids(scene, num_hits, searched_m, x, y, camera_m, dx, dy, top_rad, step_rad, work):
    """Pair every entry with the next exit of its solid and fill the rows."""
    for k in range(num_hits):
        segment = work.hit_segment[k]
        if not is_entry(scene, segment, dx, dy):
            continue
        enter, leave = work.hit_t[k], searched_m
        solid = scene.segment_solid[segment]
        for m in range(num_hits):
            other = work.hit_segment[m]
            if scene.segment_solid[other] == solid and enter <= work.hit_t[m] < leave and m != k:
                leave = work.hit_t[m]
        if leave >= enter:
            _fill_solid(
                scene, segment, x, y, camera_m, dx, dy, enter, leave, top_rad, step_rad, work
            )


@color_kernel
def _is_hole(px, py, pz, seed, density, rim):
    """Whether one looks between leaves; `rim` is 0 at the crown's middle, 1 at its outline."""
    noise = value_noise(2.3 * px + 1.7 * pz, 2.3 * py - 1.3 * pz, seed)
    fine = hash01(math.floor(6.0 * px), math.floor(6.0 * py), seed + math.floor(6.0 * pz))
    return 0.6 * noise + 0.4 * fine > density * (1.0 - 0.55 * rim * rim * rim)


@geometry_kernel
def _fill_trunk(scene, tree, along, across, camera_m, top_rad, step_rad, work):
    top, bottom = scene.trees[tree, 3], scene.trees[tree, 4]
    radius = 0.05 + 0.018 * top
    if abs(across) >= radius or bottom < 0.3:
        return
    near = along - math.sqrt(radius * radius - across * across)
    if near <= 0.05:
        return
    low, high = -camera_m / near, (0.5 * (top + bottom) - camera_m) / near
    first, last = _rows_between(low, high, top_rad, step_rad, len(work.slope))
    for row in range(first, last + 1):
        if near < work.depth[row] and low <= work.slope[row] <= high:
            work.depth[row] = near
            work.kind[row] = TRUNK
            work.owner[row] = tree


@geometry_kernel
def _fill_crown(scene, tree, x, y, camera_m, dx, dy, along, across, season, step, work):
    """Meet an ellipsoid: rows solve ((t - along)^2 + across^2) / R^2 + dz^2 / H^2 = 1."""
    top_rad, step_rad = step
    radius, top, bottom = scene.trees[tree, 2], scene.trees[tree, 3], scene.trees[tree, 4]
    chord = math.sqrt(radius * radius - across * across)
    begin, end = max(along - chord, 0.3), along + chord
    if end <= begin:
        return
    flat, tall = 1.0 / (radius * radius), 4.0 / ((top - bottom) * (top - bottom))
    offset = camera_m - 0.5 * (top + bottom)
    low = min((bottom - camera_m) / begin, (bottom - camera_m) / end)
    high = max((top - camera_m) / begin, (top - camera_m) / end)
    first, last = _rows_between(low, high, top_rad, step_rad, len(work.slope))
    seed = scene.tree_seed[tree]
    density = leaf_density(seed, scene.tree_is_evergreen[tree], season)
    c = (along * along + across * across) * flat + offset * offset * tall - 1.0
    for row in range(first, last + 1):
        slope = work.slope[row]
        a = flat + slope * slope * tall
        half_b = -along * flat + slope * offset * tall
        root = half_b * half_b - a * c
        if root <= 0.0:
            continue
        # Closest approach to the centre of the crown scaled to a unit ball.
        rim = math.sqrt(max(0.0, c + 1.0 - half_b * half_b / a))
        t = (-half_b - math.sqrt(root)) / a
        if t < 0.3 or t >= work.depth[row]:
            continue
        if _is_hole(x + t * dx, y + t * dy, camera_m + t * slope, seed, density, rim):
            continue
        work.depth[row] = t
        work.kind[row] = CROWN
        work.owner[row] = tree


@geometry_kernel
def cast_column(scene, pose, dx, dy, season, stamp, max_range_m, top_rad, step_rad, work):
    """Find what every row of a column sees; the answer is in `work`'s depth, kind and owner."""
    x, y, camera_m = pose
    for row in range(len(work.slope)):
        slope = work.slope[row]
        work.depth[row] = -camera_m / slope if slope < -1e-9 else _FAR_M
        work.kind[row] = GROUND if slope < -1e-9 else SKY
        work.owner[row] = -1
    num_hits, num_trees, searched_m = walk(scene, x, y, camera_m, dx, dy, stamp, max_range_m, work)
    fill_solids(scene, num_hits, searched_m, x, y, camera_m, dx, dy, top_rad, step_rad, work)
    for k in range(num_trees):
        tree = work.hit_tree[k]
        tx, ty = scene.trees[tree, 0] - x, scene.trees[tree, 1] - y
        along, across = tx * dx + ty * dy, tx * dy - ty * dx
        radius = scene.trees[tree, 2]
        if abs(across) >= radius or along + radius < 0.3:
            continue
        _fill_trunk(scene, tree, along, across, camera_m, top_rad, step_rad, work)
        step = (top_rad, step_rad)
        _fill_crown(scene, tree, x, y, camera_m, dx, dy, along, across, season, step, work)
