"""Ground panoramas and aerial images of a city.

The picture is made by exact geometry and plausible texture: what stands where, how tall, in which
colours and with which facades is right; materials are noise. A panorama is an equirectangular strip
around the heading: column c of w has bearing heading + low + (c + 0.5) / w (high - low), row r of h
has elevation top - (r + 0.5) / h (top - bottom), all in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ciper.city.light import Light, degrade, light_values, random_light
from ciper.city.overhead import render_band
from ciper.city.raycast import Workspace, make_workspace
from ciper.city.scene import Scene
from ciper.city.shade import render_panorama, trace_panorama
from ciper.errors import ConfigError

__all__ = [
    "Light",
    "Scene",
    "Trace",
    "degrade",
    "random_light",
    "render_aerial",
    "render_panoramas",
    "trace",
]

MAX_RANGE_M = 220.0
_BAND_ROWS = 128


@dataclass(frozen=True, eq=False)
class Trace:
    """What every pixel of a panorama sees, for tests and for ground truth; all (h, w).

    Attributes:
        depth_m: distance in the plan, 1e9 for the sky.
        kind: SKY, GROUND, WALL, ROOF, CROWN or TRUNK of `ciper.city.raycast`.
        owner: index of the building (then car bodies, then cabins) or of the tree, else -1.
    """

    depth_m: NDArray[np.float64]
    kind: NDArray[np.int32]
    owner: NDArray[np.int32]


@dataclass(frozen=True)
class _Strip:
    """Rows and columns of a panorama in radians."""

    height_px: int
    width_px: int
    top_rad: float
    row_rad: float
    low_rad: float
    col_rad: float
    num_samples: int

    def workspace(self, scene: Scene) -> Workspace:
        rows = np.arange(self.height_px * self.num_samples)
        slope = np.tan(self.top_rad - (rows + 0.5) * self.row_rad)
        return make_workspace(len(scene.arrays.segments), len(scene.arrays.trees), slope)


def _strip(
    size_px: tuple[int, int],
    elevation_deg: tuple[float, float],
    bearing_deg: tuple[float, float],
    num_samples: int,
) -> _Strip:
    top, bottom = elevation_deg
    if not -90.0 <= bottom < top <= 90.0:
        raise ConfigError(
            f"A panorama's elevations run from {top} to {bottom} degrees; "
            "expected 90 >= top > bottom >= -90."
        )
    if min(size_px) < 1 or num_samples < 1:
        raise ConfigError(f"A panorama of {size_px} pixels, {num_samples} samples each, is empty.")
    return _Strip(
        height_px=size_px[0],
        width_px=size_px[1],
        top_rad=math.radians(top),
        row_rad=math.radians(top - bottom) / (size_px[0] * num_samples),
        low_rad=math.radians(bearing_deg[0]),
        col_rad=math.radians(bearing_deg[1] - bearing_deg[0]) / size_px[1],
        num_samples=num_samples,
    )


def _checked_poses(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    poses = np.atleast_2d(np.asarray(poses, dtype=np.float64))
    if poses.ndim != 2 or poses.shape[1] != 4:
        raise ConfigError(
            f"Poses have shape {poses.shape}; expected (N, 4): x, y, heading_deg, height in metres."
        )
    if not np.isfinite(poses).all() or (poses[:, 3] <= 0.0).any():
        raise ConfigError("A pose is not finite or not above ground; its height must be positive.")
    return poses


def render_panoramas(
    scene: Scene,
    poses: NDArray[np.float64],
    lights: Sequence[Light],
    *,
    height_px: int = 128,
    width_px: int = 512,
    elevation_top_deg: float = 45.0,
    elevation_bottom_deg: float = -45.0,
    num_threads: int = 1,
    bearing_range_deg: tuple[float, float] = (-180.0, 180.0),
    num_samples: int = 1,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Photograph a scene from the ground.

    Args:
        scene: what to look at.
        poses: (N, 4) x and y in metres, heading_deg, height of the camera above ground in metres.
        lights: one per pose.
        height_px: rows.
        width_px: columns.
        elevation_top_deg: upper edge of the first row.
        elevation_bottom_deg: lower edge of the last row.
        num_threads: panoramas made at the same time; the result does not depend on it.
        bearing_range_deg: left and right edge of the strip, relative to the heading.
        num_samples: rays per pixel and axis; 2 smooths edges at four times the cost.
        seed: of clouds and of the finest grain; photo i uses seed + i.

    Returns:
        (N, h, w, 3) RGB.

    Raises:
        ConfigError: poses, lights or angles that do not fit together.
    """
    poses = _checked_poses(poses)
    if len(lights) != len(poses):
        raise ConfigError(f"There are {len(lights)} lights for {len(poses)} poses; give one each.")
    strip = _strip(
        (height_px, width_px),
        (elevation_top_deg, elevation_bottom_deg),
        bearing_range_deg,
        num_samples,
    )
    out = np.empty((len(poses), height_px, width_px, 3), np.uint8)
    num_threads = max(1, min(num_threads, len(poses)))

    def render_share(first: int) -> None:
        _render_some(scene, poses, lights, strip, range(first, len(poses), num_threads), seed, out)

    if num_threads == 1:
        render_share(0)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(render_share, range(num_threads)))
    return out


def _render_some(
    scene: Scene,
    poses: NDArray[np.float64],
    lights: Sequence[Light],
    strip: _Strip,
    which: range,
    seed: int,
    out: NDArray[np.uint8],
) -> None:
    """Render some of the panoramas in one thread, with scratch arrays of its own."""
    work = strip.workspace(scene)
    for i in which:
        work.segment_stamp[:] = -1
        work.tree_stamp[:] = -1
        x, y, heading, camera_m = (float(v) for v in poses[i])
        render_panorama(
            scene.arrays,
            light_values(lights[i]),
            (x, y, camera_m),
            math.radians(heading) + strip.low_rad,
            strip.col_rad,
            strip.num_samples,
            (strip.top_rad, strip.row_rad),
            MAX_RANGE_M,
            (seed + i) % 1000003,
            work,
            out[i],
        )


def trace(
    scene: Scene,
    pose: NDArray[np.float64],
    *,
    height_px: int = 128,
    width_px: int = 512,
    elevation_top_deg: float = 45.0,
    elevation_bottom_deg: float = -45.0,
    bearing_range_deg: tuple[float, float] = (-180.0, 180.0),
) -> Trace:
    """Find what each pixel of one panorama sees, for a pose as in `render_panoramas`."""
    x, y, heading, camera_m = (float(v) for v in _checked_poses(pose)[0])
    strip = _strip(
        (height_px, width_px), (elevation_top_deg, elevation_bottom_deg), bearing_range_deg, 1
    )
    result = Trace(
        depth_m=np.empty((height_px, width_px)),
        kind=np.empty((height_px, width_px), np.int32),
        owner=np.empty((height_px, width_px), np.int32),
    )
    trace_panorama(
        scene.arrays,
        (x, y, camera_m),
        math.radians(heading) + strip.low_rad,
        strip.col_rad,
        (strip.top_rad, strip.row_rad),
        MAX_RANGE_M,
        strip.workspace(scene),
        result.depth_m,
        result.kind,
        result.owner,
    )
    return result


def render_aerial(
    scene: Scene, light: Light, *, gsd: float = 0.5, seed: int = 0
) -> NDArray[np.uint8]:
    """Photograph a whole scene from above, as an orthophoto.

    Args:
        scene: what to look at.
        light: of that day.
        gsd: metres per pixel.
        seed: of the finest grain.

    Returns:
        (H, W, 3) RGB, row 0 = north, H = W = size / gsd rounded.

    Raises:
        ConfigError: gsd is not positive.
    """
    if not gsd > 0.0:
        raise ConfigError(f"An aerial image has a gsd of {gsd}; expected metres per pixel above 0.")
    num_px = max(1, round(scene.city.size_m / gsd))
    out = np.empty((num_px, num_px, 3), np.uint8)
    values = light_values(light)
    for first in range(0, num_px, _BAND_ROWS):
        band = out[first : first + _BAND_ROWS]
        top_m = scene.city.size_m - first * gsd
        render_band(scene.arrays, values, gsd, top_m, seed % 1000003, band)
    return out
