"""What surfaces look like: noise, ground, facades, foliage and sky as compiled functions.

All colours are linear RGB triples of floats, all places local metres. A pattern is a function of
its place and a seed, so that every view of it agrees.

Numba's cache watches only the file of the function that was called from Python: after an edit here,
remove `__pycache__` or the callers in other modules keep the old code.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any

from numba import njit

# Geometry keeps IEEE arithmetic, so that walls which share a corner leave no gap; colours need not.
# `_nrt=False` turns reference counting off: a scene is a tuple of arrays, and counting references
# to all of them at every call takes ten times as long as the work. Such kernels cannot allocate.
# For the same reason what runs once per pixel is inlined.
_njit: Any = njit  # `_nrt` is missing from its signature
build_kernel = _njit(nogil=True, cache=True, error_model="numpy")
geometry_kernel = _njit(nogil=True, cache=True, error_model="numpy", _nrt=False)
color_kernel = _njit(nogil=True, cache=True, error_model="numpy", fastmath=True, _nrt=False)
inlined_kernel = _njit(
    nogil=True, cache=True, error_model="numpy", fastmath=True, _nrt=False, forceinline=True
)


@color_kernel
def hash01(i, j, k):
    """Hash three integers to [0, 1)."""
    n = (i * 374761393 + j * 668265263 + k * 982451653) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    n = n ^ (n >> 16)
    return n * (1.0 / 4294967296.0)


@color_kernel
def value_noise(x, y, seed):
    """Smooth noise in [0, 1) with features of size 1."""
    i, j = math.floor(x), math.floor(y)
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    low = hash01(i, j, seed) * (1.0 - fx) + hash01(i + 1, j, seed) * fx
    high = hash01(i, j + 1, seed) * (1.0 - fx) + hash01(i + 1, j + 1, seed) * fx
    return low * (1.0 - fy) + high * fy


@color_kernel
def ground_texture(x, y, grain, patches, seed, grain_seed, footprint_m):
    """Brightness factor of the ground at a place.

    Args:
        x: east, metres.
        y: north, metres.
        grain: amplitude over decimetres.
        patches: amplitude over metres.
        seed: of the stains and bald patches that every view shares.
        grain_seed: of the grain, which differs from view to view.
        footprint_m: what the pixel covers; grain much finer than that averages out.
    """
    stains = value_noise(x * 0.31, y * 0.31, seed) + value_noise(x * 0.07, y * 0.07, seed + 1)
    factor = 1.0 + patches * (stains - 1.0)
    if footprint_m < 1.0:
        speck = value_noise(x * 5.0, y * 5.0, grain_seed) - 0.5
        factor += 1.4 * grain * (1.0 - footprint_m) * speck
    return factor


@color_kernel
def _window(style, seed):
    """Width and height of a window as shares of its bay and floor, and the sill's height."""
    a = hash01(seed, 3, 11)
    if style == 2:  # office: ribbons
        return 0.94, 0.42 + 0.15 * a, 0.3
    if style == 3:  # glass curtain
        return 0.92, 0.86, 0.08
    if style == 4:  # flats with balconies
        return 0.5 + 0.2 * a, 0.62, 0.14
    if style == 5:  # shed, workshop: few and high
        return 0.55, 0.22, 0.6
    return 0.34 + 0.2 * a, 0.46 + 0.12 * a, 0.26  # plaster and brick houses


@color_kernel
def _ground_floor(u, z, length, seed, edge, is_shop):
    """Door, shop front and plinth below 3.4 m: (kind, shade).

    Kind 0 the wall as above, 1 glass, 2 a painted board of hue `shade`, 3 wall times `shade`.
    """
    if is_shop:
        if z > 2.8:
            return 2, hash01(seed, edge, 17)
        pane = u / 2.6
        is_post = abs(pane - math.floor(pane) - 0.5) > 0.46
        if z < 0.45 or is_post:
            return 3, 0.45
        return 1, 0.0
    door = (0.2 + 0.6 * hash01(seed, edge, 19)) * length
    if abs(u - door) < 0.55 and z < 2.2:
        return 2, hash01(seed, edge, 23)
    if z < 0.5:
        return 3, 0.7
    return 0, 1.0


@color_kernel
def _board_color(hue):
    """A painted door or shop sign."""
    turn = 6.2832 * hue
    red, green, blue = math.cos(turn), math.cos(turn - 2.094), math.cos(turn + 2.094)
    return 0.16 + 0.14 * red, 0.16 + 0.14 * green, 0.16 + 0.14 * blue


@color_kernel
def _blend_window(in_window, curtain, coverage, fade):
    """Shares of wall, pane and mirrored sky, faded to the mean over a facade's windows."""
    pane, glass = 0.0, 0.0
    if in_window:
        pane, glass = (0.55, 0.1) if curtain > 0.82 else (0.05 + 0.12 * curtain, 0.35)
    wall = (0.0 if in_window else 1.0) * (1.0 - fade) + (1.0 - coverage) * fade
    return (
        wall,
        pane * (1.0 - fade) + 0.1 * coverage * fade,
        glass * (1.0 - fade) + 0.3 * coverage * fade,
    )


@color_kernel
def facade_albedo(u, z, length, eave, style, seed, edge, red, green, blue, footprint_m):
    """Colour of a wall.

    Args:
        u: metres along the wall from its first corner.
        z: metres above ground.
        length: of the wall, metres.
        eave: height of the wall, metres; a gable's triangle above it is plain.
        style: pattern, 0 plaster, 1 brick, 2 office, 3 glass, 4 flats, 5 shed.
        seed: of the building.
        edge: which wall of the building.
        red: wall's linear red; green and blue alike.
        green: see red.
        blue: see red.
        footprint_m: what the pixel covers; patterns finer than that fade to their mean.

    Returns:
        Linear r, g, b and the share of mirrored sky (glass).
    """
    storey = 3.6 if style == 2 or style == 3 else 2.7 + 0.6 * hash01(seed, 1, 5)
    num_floors = max(1.0, math.floor(eave / storey + 0.5))
    storey = eave / num_floors
    bay = (2.0 if style == 3 else 2.4) + 1.6 * hash01(seed, 2, 7)
    num_bays = max(1.0, math.floor(length / bay))
    bay = length / num_bays
    column, floor = math.floor(u / bay), math.floor(z / storey)
    fu, fz = u / bay - column, z / storey - floor
    shade = 0.92 + 0.16 * value_noise(u * 0.5 + 37.0 * edge, z * 0.5, seed)
    if style == 1 and footprint_m < 0.4:
        shade += 0.25 * (hash01(int(z / 0.3), int(u / 0.5), seed) - 0.5) * (1.0 - 2.5 * footprint_m)
    if z > eave:
        return red * shade, green * shade, blue * shade, 0.0
    if z < 3.4 and num_floors > 1.0:
        is_shop = style != 5 and length > 6.0 and hash01(seed, 4, 13) < 0.35
        kind, value = _ground_floor(u, z, length, seed, edge, is_shop)
        if kind == 1:
            return 0.03, 0.035, 0.04, 0.45
        if kind == 2:
            r, g, b = _board_color(value)
            return r, g, b, 0.0
        shade *= value
    is_blank = style < 2 and hash01(seed, edge, 29) < 0.18
    width, height, sill = _window(style, seed)
    in_window = not is_blank and abs(fu - 0.5) < 0.5 * width and sill < fz < sill + height
    if style == 4 and floor > 0.0 and (fz < 0.1 or (fz < 0.36 and int(column) % 2 == seed % 2)):
        shade *= 0.62  # the slab and every other bay's parapet
        in_window = False
    if z > eave - 0.35:
        shade *= 0.75  # cornice
        in_window = False
    curtain = hash01(int(column) + 31 * edge, int(floor), seed)
    # Where a bay shrinks to a pixel or two its windows can only be a tone.
    fade = min(1.0, max(0.0, 1.6 * footprint_m / bay - 0.5))
    coverage = 0.0 if is_blank else width * height
    wall, dark, glass = _blend_window(in_window, curtain, coverage, fade)
    wall *= shade
    return (
        red * wall + 0.45 * dark,
        green * wall + 0.48 * dark,
        blue * wall + 0.50 * dark,
        glass,
    )


@color_kernel
def car_albedo(u, z, length, height, is_cabin, red, green, blue):
    """Colour of a car's side: body with wheels and bumpers, or cabin with its window band.

    Returns:
        Linear r, g, b and the share of mirrored sky.
    """
    if is_cabin:
        if z > 0.92 * height:
            return red, green, blue, 0.0
        return 0.02, 0.022, 0.025, 0.35
    if length > 2.6:
        wheel = min(abs(u - 0.19 * length), abs(u - 0.81 * length))
        if wheel * wheel + (z - 0.32) * (z - 0.32) < 0.11:
            return 0.015, 0.015, 0.015, 0.0
    elif 0.55 < z < 0.75 and min(u, length - u) < 0.35:
        return 0.5, 0.35, 0.3, 0.0  # lamps
    if z < 0.25:
        return 0.02, 0.02, 0.02, 0.0
    return red, green, blue, 0.1


@color_kernel
def leaf_density(seed, is_evergreen, season):
    """Share of a crown's leaves that hang at a season, in [0.37, 1]; branches remain."""
    if is_evergreen:
        return 1.0
    return min(1.0, max(0.37, 3.4 - 3.4 * season + 0.8 * (hash01(seed, 5, 1) - 0.5)))


@color_kernel
def leaf_albedo(seed, is_evergreen, season):
    """Colour of a tree's foliage, or of its bare branches, at a season."""
    a, b = hash01(seed, 6, 1), hash01(seed, 7, 1)
    if is_evergreen:
        return 0.030 + 0.025 * a, 0.065 + 0.03 * a, 0.030 + 0.015 * b
    red, green, blue = 0.065 + 0.05 * a, 0.125 + 0.05 * a, 0.035 + 0.02 * b
    turned = min(1.0, max(0.0, 4.0 * season - 1.2 - 0.6 * b))
    red += turned * (0.26 + 0.12 * a - red)
    green += turned * (0.08 + 0.14 * b - green)
    blue += turned * (0.03 - blue)
    bare = min(1.0, max(0.0, 6.0 * season - 4.6))
    return red + bare * (0.11 - red), green + bare * (0.09 - green), blue + bare * (0.075 - blue)


@inlined_kernel
def sky_color(dx, dy, dz, light, seed):
    """Colour of the sky along a unit vector (dz > 0 is up), with clouds and the sun's glow."""
    up = max(dz, 0.0)
    share = min(1.0, 1.6 * up) ** 0.6
    # Clouds lie on a plane above, so they flatten towards the horizon.
    px, py = 2.2 * dx / (up + 0.12), 2.2 * dy / (up + 0.12)
    wisps = 0.65 * value_noise(px, py, seed) + 0.35 * value_noise(2.7 * px, 2.7 * py, seed + 1)
    cloud = min(1.0, max(0.0, 3.0 * (wisps - 0.85 + 0.75 * light.cloudiness)))
    towards_sun = max(0.0, dx * light.sun_x + dy * light.sun_y + dz * light.sun_z)
    glow = light.sun_rgb[0] * (0.12 * towards_sun**8 + 1.5 * towards_sun**400)
    white = 0.55 + 0.25 * light.zenith_rgb[0]
    horizon, zenith = light.horizon_rgb, light.zenith_rgb
    red = horizon[0] * (1.0 - share) + zenith[0] * share
    green = horizon[1] * (1.0 - share) + zenith[1] * share
    blue = horizon[2] * (1.0 - share) + zenith[2] * share
    cloud *= 0.8
    return (
        red + cloud * (white - red) + glow,
        green + cloud * (white - green) + glow,
        blue + cloud * (1.03 * white - blue) + 0.9 * glow,
    )
