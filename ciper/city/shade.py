"""The colour of a point: material, sun, shadow, sky and air, for both views.

Colours are linear RGB triples of floats; frame as in `ciper.city.scene`.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np

from ciper.city.raycast import CROWN, GROUND, ROOF, SKY, WALL, cast_column
from ciper.city.scene import BUILDING, CAR_BODY, CAR_CABIN, HEIGHT_GSD
from ciper.city.texture import (
    car_albedo,
    color_kernel,
    facade_albedo,
    geometry_kernel,
    ground_texture,
    hash01,
    inlined_kernel,
    leaf_albedo,
    sky_color,
    value_noise,
)

_SHADOW_REACH_M = 120.0


@inlined_kernel
def sun_visibility(scene, x, y, z, light):
    """Share of the sun's light that reaches a point, by a march through the height raster.

    Solids stop it, crowns thin it. Steps grow with distance, as a far shadow's edge is soft anyway.
    """
    level = math.sqrt(light.sun_x * light.sun_x + light.sun_y * light.sun_y)
    if level < 1e-3:
        return 1.0
    ux, uy, climb = light.sun_x / level, light.sun_y / level, light.sun_z / level
    num_rows, num_cols, _ = scene.heights.shape
    distance, step, visible = 0.7, 0.6, 1.0
    while distance < _SHADOW_REACH_M:
        height = z + distance * climb
        if height > scene.max_height_m:
            break
        col = math.floor((x + distance * ux) / HEIGHT_GSD)
        row = math.floor((scene.size_m - y - distance * uy) / HEIGHT_GSD)
        if row < 0 or col < 0 or row >= num_rows or col >= num_cols:
            break
        if scene.heights[row, col, 0] > height + 0.15:
            return 0.0
        if scene.heights[row, col, 1] < height < scene.heights[row, col, 2]:
            visible *= max(0.0, 1.0 - (0.55 - 0.35 * light.season) * step)
        distance += step
        step *= 1.06
    return visible


@inlined_kernel
def lit(light, nx, ny, nz, visible):
    """Light on a surface of unit normal: sky by how much of it the surface faces, and sun."""
    sky = 0.62 + 0.38 * nz
    sun = max(0.0, nx * light.sun_x + ny * light.sun_y + nz * light.sun_z) * visible
    return (
        light.ambient_rgb[0] * sky + light.sun_rgb[0] * sun,
        light.ambient_rgb[1] * sky + light.sun_rgb[1] * sun,
        light.ambient_rgb[2] * sky + light.sun_rgb[2] * sun,
    )


@inlined_kernel
def material_at(scene, x, y):
    """Material of the ground, grass outside of the city."""
    col = math.floor(x / scene.surface_gsd)
    row = math.floor((scene.size_m - y) / scene.surface_gsd)
    num_rows, num_cols = scene.surface.shape
    if row < 0 or col < 0 or row >= num_rows or col >= num_cols:
        return 0
    return int(scene.surface[row, col])


@inlined_kernel
def shade_ground(scene, light, x, y, grain_seed, footprint_m, visible):
    """Colour of the ground; a close view blends the pixels of the surface into each other."""
    table = light.palette
    if footprint_m > 0.6 * scene.surface_gsd:
        m = material_at(scene, x, y)
        red, green, blue, grain, patches = table[m]
    else:
        half = 0.5 * scene.surface_gsd
        fx, fy = (x - half) / scene.surface_gsd, (y - half) / scene.surface_gsd
        fx, fy = fx - math.floor(fx), fy - math.floor(fy)
        red, green, blue, grain, patches = 0.0, 0.0, 0.0, 0.0, 0.0
        for k in range(4):
            right, up = k & 1, k >> 1
            share = (fx if right else 1.0 - fx) * (fy if up else 1.0 - fy)
            m = material_at(scene, x + (2 * right - 1) * half, y + (2 * up - 1) * half)
            red += share * table[m, 0]
            green += share * table[m, 1]
            blue += share * table[m, 2]
            grain += share * table[m, 3]
            patches += share * table[m, 4]
    factor = ground_texture(x, y, grain, patches, scene.seed, grain_seed, footprint_m)
    er, eg, eb = lit(light, 0.0, 0.0, 1.0, visible)
    return red * factor * er, green * factor * eg, blue * factor * eb


@inlined_kernel
def shade_roof(scene, light, solid, x, y, plane, visible):
    """Colour of a roof or of a car's top; flat roofs carry boxes, ducts and stains."""
    red, green, blue = scene.roof_rgb[solid]
    _, b, c = scene.planes[solid, plane]
    norm = 1.0 / math.sqrt(1.0 + b * b + c * c)
    factor = 1.0
    if scene.solid_kind[solid] == BUILDING:
        seed = scene.solid_seed[solid]
        factor = 0.84 + 0.32 * value_noise(0.35 * x, 0.35 * y, seed)
        if scene.num_planes[solid] == 1:
            factor *= _clutter(x, y, seed)
        cover = 0.95 * light.snow
        red = red * factor * (1.0 - cover) + 0.82 * cover
        green = green * factor * (1.0 - cover) + 0.85 * cover
        blue = blue * factor * (1.0 - cover) + 0.90 * cover
    elif scene.solid_kind[solid] == CAR_BODY and _is_windscreen(scene, solid, x, y):
        red, green, blue = 0.03, 0.035, 0.04
    er, eg, eb = lit(light, -b * norm, -c * norm, norm, visible)
    return red * er, green * eg, blue * eb


@inlined_kernel
def _is_windscreen(scene, solid, x, y):
    """Whether a place on a car's body lies just before or behind the cabin."""
    side = scene.solid_start[solid] + 1  # from the front's left corner to the rear's
    x0, y0 = scene.segments[side, 0], scene.segments[side, 1]
    ex, ey = scene.segments[side, 2] - x0, scene.segments[side, 3] - y0
    share = ((x - x0) * ex + (y - y0) * ey) / (ex * ex + ey * ey)
    return 0.2 < share < 0.3 or 0.8 < share < 0.86


@color_kernel
def _clutter(x, y, seed):
    """Brightness of a flat roof where plant stands on it: one box in some cells of 7 m."""
    i, j = math.floor(x / 7.0), math.floor(y / 7.0)
    if hash01(i, j, seed) > 0.3:
        return 1.0
    half = 0.7 + 1.1 * hash01(i, j, seed + 1)
    dx = x - 7.0 * i - 2.0 - 3.0 * hash01(i, j, seed + 2)
    dy = y - 7.0 * j - 2.0 - 3.0 * hash01(i, j, seed + 3)
    if abs(dx) < half and abs(dy) < 0.8 * half:
        return 1.45 if hash01(i, j, seed + 4) > 0.4 else 0.6
    if abs(dx - 0.4) < half and abs(dy - 0.3) < 0.8 * half:
        return 0.55
    return 1.0


@inlined_kernel
def shade_crown(scene, light, tree, x, y, z, visible):
    """Colour of a point on a crown: leaves in clumps, darker underneath."""
    cx, cy, radius, top, bottom = scene.trees[tree]
    half = 0.5 * (top - bottom)
    nx, ny = (x - cx) / radius, (y - cy) / radius
    nz = (z - 0.5 * (top + bottom)) / half
    gx, gy, gz = nx / radius, ny / radius, nz / half
    norm = 1.0 / math.sqrt(gx * gx + gy * gy + gz * gz + 1e-12)
    seed = scene.tree_seed[tree]
    clump = value_noise(1.1 * x + 0.7 * z, 1.1 * y - 0.9 * z, seed + 5)
    leaf = hash01(math.floor(3.0 * x), math.floor(3.0 * y), seed + int(3.0 * z))
    factor = (0.8 + 0.3 * nz) * (0.6 + 0.65 * clump + 0.35 * leaf)
    red, green, blue = leaf_albedo(seed, scene.tree_is_evergreen[tree], light.season)
    cover = 0.35 * light.snow * max(0.0, nz)
    er, eg, eb = lit(light, gx * norm, gy * norm, gz * norm, 0.9 * visible)
    return (
        (red * factor * (1.0 - cover) + 0.8 * cover) * er,
        (green * factor * (1.0 - cover) + 0.83 * cover) * eg,
        (blue * factor * (1.0 - cover) + 0.88 * cover) * eb,
    )


@inlined_kernel
def _shade_wall(scene, light, segment, x, y, z, sky_seed, dx, dy, footprint_m):
    """Colour of a facade or of a car's side seen along (dx, dy)."""
    x0, y0, x1, y1 = scene.segments[segment]
    ex, ey = x1 - x0, y1 - y0
    length = math.sqrt(ex * ex + ey * ey)
    nx, ny = ey / length, -ex / length
    u = ((x - x0) * ex + (y - y0) * ey) / length
    solid = scene.segment_solid[segment]
    red, green, blue = scene.wall_rgb[solid]
    kind = scene.solid_kind[solid]
    if kind == BUILDING:
        r, g, b, glass = facade_albedo(
            u,
            z,
            length,
            scene.solid_eave_m[solid],
            scene.solid_style[solid],
            scene.solid_seed[solid],
            segment - scene.solid_start[solid],
            red,
            green,
            blue,
            footprint_m,
        )
    else:
        height = scene.solid_top_m[solid]
        r, g, b, glass = car_albedo(u, z, length, height, kind == CAR_CABIN, red, green, blue)
    visible = 0.0
    if light.sun_rgb[0] > 0.0 and nx * light.sun_x + ny * light.sun_y > 0.0:
        visible = sun_visibility(scene, x + 0.6 * nx, y + 0.6 * ny, z, light)
    er, eg, eb = lit(light, nx, ny, 0.0, visible)
    r, g, b = r * er, g * eg, b * eb
    if glass > 0.0:
        # A pane mirrors the sky beside the sun's glow: the horizon colour is near enough.
        r += glass * 0.5 * (light.horizon_rgb[0] + light.zenith_rgb[0]) * 0.6
        g += glass * 0.5 * (light.horizon_rgb[1] + light.zenith_rgb[1]) * 0.6
        b += glass * 0.5 * (light.horizon_rgb[2] + light.zenith_rgb[2]) * 0.6
    return r, g, b


@inlined_kernel
def _shade_row(scene, light, kind, owner, t, slope, pose, dx, dy, seed, row_rad):
    """Colour that one ray of a column sees."""
    if kind == SKY:
        norm = 1.0 / math.sqrt(1.0 + slope * slope)
        return sky_color(dx * norm, dy * norm, slope * norm, light, seed)
    x, y, z = pose[0] + t * dx, pose[1] + t * dy, pose[2] + t * slope
    path = t * math.sqrt(1.0 + slope * slope)
    footprint_m = path * row_rad
    is_sunny = light.sun_rgb[0] > 0.0
    if kind == WALL:
        r, g, b = _shade_wall(scene, light, owner, x, y, z, seed, dx, dy, footprint_m)
    elif kind == GROUND:
        visible = sun_visibility(scene, x, y, 0.0, light) if is_sunny else 0.0
        r, g, b = shade_ground(scene, light, x, y, seed, footprint_m, visible)
    elif kind == ROOF:
        visible = sun_visibility(scene, x, y, z + 0.2, light) if is_sunny else 0.0
        a0, best, plane = 1e9, 0.0, 0
        for i in range(scene.num_planes[owner]):
            a, b0, c0 = scene.planes[owner, i]
            best = a + b0 * x + c0 * y
            if best < a0:
                a0, plane = best, i
        r, g, b = shade_roof(scene, light, owner, x, y, plane, visible)
    elif kind == CROWN:
        r, g, b = shade_crown(scene, light, owner, x, y, z, 1.0)
    else:
        bark = 0.75 + 0.5 * hash01(int(z * 9.0), int((x + y) * 15.0), seed)
        er, eg, eb = lit(light, -dx, -dy, 0.0, 0.5)
        r, g, b = 0.10 * bark * er, 0.075 * bark * eg, 0.055 * bark * eb
    veil = 1.0 - math.exp(-light.haze * path)
    return (
        r + veil * (light.horizon_rgb[0] - r),
        g + veil * (light.horizon_rgb[1] - g),
        b + veil * (light.horizon_rgb[2] - b),
    )


@color_kernel
def to_display(value, gain):
    """Linear value to a display value in 0..255, highlights rolled off smoothly."""
    value = max(0.0, value * gain)
    if value > 0.7:
        value = 0.7 + 0.3 * (1.0 - math.exp(-(value - 0.7) / 0.3))
    return np.uint8(255.0 * math.sqrt(min(value, 1.0)) + 0.5)


@geometry_kernel
def render_panorama(
    scene, light, pose, first_rad, col_rad, num_samples, step, range_m, seed, work, out
):
    """Render one panorama into `out` (h, w, 3); column c looks along first + (c + 0.5) col_rad.

    Each pixel is the mean of num_samples^2 rays; `work` holds h num_samples rows from elevation
    step[0] downwards by step[1] (radians).
    """
    num_rows, num_cols, _ = out.shape
    total = work.total
    share = 1.0 / (num_samples * num_samples)
    for col in range(num_cols):
        for row in range(num_rows):
            total[row, 0] = total[row, 1] = total[row, 2] = 0.0
        for k in range(num_samples):
            bearing = first_rad + (col + (k + 0.5) / num_samples) * col_rad
            dx, dy = math.sin(bearing), math.cos(bearing)
            stamp = col * num_samples + k
            cast_column(scene, pose, dx, dy, light.season, stamp, range_m, step[0], step[1], work)
            for row in range(len(work.slope)):
                r, g, b = _shade_row(
                    scene,
                    light,
                    work.kind[row],
                    work.owner[row],
                    work.depth[row],
                    work.slope[row],
                    pose,
                    dx,
                    dy,
                    seed,
                    step[1],
                )
                total[row // num_samples, 0] += r
                total[row // num_samples, 1] += g
                total[row // num_samples, 2] += b
        for row in range(num_rows):
            for c in range(3):
                out[row, col, c] = to_display(total[row, c] * share, light.gain_rgb[c])


@geometry_kernel
def trace_panorama(scene, pose, first_rad, col_rad, step, range_m, work, depth, kind, owner):
    """Write plan distance, kind and owner (h, w) of every pixel instead of its colour."""
    for col in range(depth.shape[1]):
        bearing = first_rad + (col + 0.5) * col_rad
        dx, dy = math.sin(bearing), math.cos(bearing)
        cast_column(scene, pose, dx, dy, 0.0, col, range_m, step[0], step[1], work)
        for row in range(depth.shape[0]):
            depth[row, col] = work.depth[row]
            kind[row, col] = work.kind[row]
            owner[row, col] = work.owner[row]
            if work.kind[row] == WALL:
                owner[row, col] = scene.segment_solid[work.owner[row]]
