"""The aerial view: an orthophoto of a scene, band by band from north to south."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ciper.city.light import LightValues
from ciper.city.scene import SceneArrays, paint_solids, roof_height
from ciper.city.shade import shade_crown, shade_ground, shade_roof, sun_visibility, to_display
from ciper.city.texture import (
    color_kernel,
    geometry_kernel,
    inlined_kernel,
    leaf_density,
    value_noise,
)

NUM_SAMPLES = 2  # per pixel and axis


@color_kernel
def _paint_crowns(trees, evergreen, seeds, season, top_m, gsd, height, tree_of):
    """Raster the crowns' tops (H, W), ragged at the rim, with holes where leaves fell."""
    num_rows, num_cols = height.shape
    for t in range(len(trees)):
        x, y, radius, top, bottom = trees[t]
        reach = 1.15 * radius
        if y - reach > top_m or y + reach < top_m - num_rows * gsd:
            continue
        density = leaf_density(seeds[t], evergreen[t], season)
        for row in range(
            max(0, int((top_m - y - reach) / gsd)),
            min(num_rows, int((top_m - y + reach) / gsd) + 1),
        ):
            for col in range(
                max(0, int((x - reach) / gsd)), min(num_cols, int((x + reach) / gsd) + 1)
            ):
                px, py = (col + 0.5) * gsd, top_m - (row + 0.5) * gsd
                noise = value_noise(1.4 * px, 1.4 * py, seeds[t] + 9)
                squared = ((px - x) ** 2 + (py - y) ** 2) / (radius * radius)
                squared *= 1.25 - 0.5 * noise
                if squared >= 1.0 or value_noise(2.6 * px, 2.6 * py, seeds[t]) > density + 0.1:
                    continue
                z = 0.5 * (top + bottom) + 0.5 * (top - bottom) * math.sqrt(1.0 - squared)
                if z > height[row, col]:
                    height[row, col] = z
                    tree_of[row, col] = t


@inlined_kernel
def _shade_sample(scene, light, x, y, z, solid, tree, visible, seed, gsd):
    if tree >= 0:
        return shade_crown(scene, light, tree, x, y, z, visible)
    if solid >= 0:
        _, plane = roof_height(scene.planes, scene.num_planes, solid, x, y)
        return shade_roof(scene, light, solid, x, y, plane, visible)
    return shade_ground(scene, light, x, y, seed, gsd, visible)


@geometry_kernel
def shade_band(scene, light, gsd, top_m, seed, height, solid_of, tree_of, out):
    """Colour the rows of `out` (h, w, 3) from the painted heights and owners."""
    num_rows, num_cols, _ = out.shape
    fine = gsd / NUM_SAMPLES
    share = 1.0 / (NUM_SAMPLES * NUM_SAMPLES)
    veil = 1.0 - math.exp(-40.0 * light.haze)
    is_sunny = light.sun_rgb[0] > 0.0
    for row in range(num_rows):
        for col in range(num_cols):
            x, y = (col + 0.5) * gsd, top_m - (row + 0.5) * gsd
            i, j = NUM_SAMPLES * row, NUM_SAMPLES * col
            visible = 0.0
            if is_sunny:
                visible = sun_visibility(scene, x, y, height[i, j] + 0.1, light)
            red, green, blue = 0.0, 0.0, 0.0
            for di in range(NUM_SAMPLES):
                for dj in range(NUM_SAMPLES):
                    sx, sy = (j + dj + 0.5) * fine, top_m - (i + di + 0.5) * fine
                    solid, tree = solid_of[i + di, j + dj], tree_of[i + di, j + dj]
                    z = float(height[i + di, j + dj])
                    r, g, b = _shade_sample(
                        scene, light, sx, sy, z, solid, tree, visible, seed, fine
                    )
                    red, green, blue = red + r, green + g, blue + b
            out[row, col, 0] = to_display(
                red * share * (1.0 - veil) + veil * light.horizon_rgb[0], light.gain_rgb[0]
            )
            out[row, col, 1] = to_display(
                green * share * (1.0 - veil) + veil * light.horizon_rgb[1], light.gain_rgb[1]
            )
            out[row, col, 2] = to_display(
                blue * share * (1.0 - veil) + veil * light.horizon_rgb[2], light.gain_rgb[2]
            )


def render_band(
    scene: SceneArrays,
    light: LightValues,
    gsd: float,
    top_m: float,
    seed: int,
    out: NDArray[np.uint8],
) -> None:
    """Render the rows of `out` (h, w, 3), the first of which begins at north coordinate top_m."""
    fine = gsd / NUM_SAMPLES
    shape = (out.shape[0] * NUM_SAMPLES, out.shape[1] * NUM_SAMPLES)
    height = np.zeros(shape, np.float32)
    solid_of, tree_of = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    solids = (scene.segments, scene.solid_start, scene.planes, scene.num_planes)
    paint_solids(*solids, top_m, fine, height, solid_of)
    trees = (scene.trees, scene.tree_is_evergreen, scene.tree_seed)
    _paint_crowns(*trees, light.season, top_m, fine, height, tree_of)
    shade_band(scene, light, gsd, top_m, seed, height, solid_of, tree_of, out)
