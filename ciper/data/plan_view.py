"""The plan view: the ground below a camera that looks down, in metres, as a chip is.

A photo taken from above shows the ground as a plane that its rays meet. Resampled onto that plane
it becomes an image of the same kind as a chip: so many metres per pixel, the camera's foot in the
middle. Only north is unknown: up is the heading.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ciper.camera import Camera, rays_from_pixels
from ciper.data.preprocess import check_size, sampling
from ciper.errors import CameraError

# A photo of 4 m x 4 m at 0.5 m per pixel.
_MIN_PX = 64


def ground_outline_m(camera: Camera) -> NDArray[np.float64]:
    """Where the corners of a photo lie on the ground below: metres right of the foot and ahead.

    Args:
        camera: one that looks down, of a known height.

    Returns:
        (4, 2): the photo's upper left, upper right, lower right and lower left corner; NaN for
        corners that look above the horizon.

    Raises:
        CameraError: the height is not known.
    """
    u, v = np.array([0, 1, 1, 0]) * camera.width_px, np.array([0, 0, 1, 1]) * camera.height_px
    rays = rays_from_pixels(camera, u, v)
    height_m = _known_height_m(camera)
    down = np.where(rays[:, 2:] < 0, -rays[:, 2:], np.nan)
    return np.asarray(rays[:, :2] * (height_m / down))


def to_plan(
    photo: NDArray[np.uint8], camera: Camera, *, size_px: int = 256, gsd: float = 0.5
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample a photo onto the ground below its camera, which is taken as flat.

    The pixel at (u, v) shows what lies (u - size_px / 2) gsd metres to the right and
    (size_px / 2 - v) gsd metres ahead of the camera's foot. The photo is first averaged down to
    about that density, as in `to_canvas`.

    Args:
        photo: (H, W, 3) of the camera's size.
        camera: its camera, of a known height.
        size_px: of the square plan.
        gsd: metres per pixel.

    Returns:
        plan: (size_px, size_px, 3) uint8, 0 where not visible.
        is_visible: (size_px, size_px) whether the photo shows the middle of that pixel.

    Raises:
        CameraError: the photo is not of the camera's size, its height is not known, or is so small
            that next to nothing is seen.
    """
    check_size(photo, camera)
    height_m = _known_height_m(camera)
    middle = (np.arange(size_px) + 0.5 - size_px / 2) * gsd
    rays = np.empty((size_px, size_px, 3))
    rays[..., 0], rays[..., 1] = middle[None, :], -middle[:, None]
    rays[..., 2] = -height_m
    # Straight below, a photo's pixel is so many metres wide; farther out they are wider.
    finer = max(1.0, gsd * camera.focal_px / height_m)
    reduced_px = (max(1, round(camera.height_px / finer)), max(1, round(camera.width_px / finer)))
    plan, is_visible = sampling(camera, rays, reduced_px).apply(photo)
    if is_visible.sum() < _MIN_PX:
        raise CameraError(
            f"from {height_m:g} m a photo of {camera.hfov_deg:.0f} deg shows hardly any of the "
            f"{size_px * gsd:g} m of ground about its camera; expected its height above the ground "
            "in metres: correct height_m"
        )
    return plan, is_visible


def _known_height_m(camera: Camera) -> float:
    if camera.height_m is None:
        raise CameraError(
            "a plan of the ground takes the camera's height; expected metres above the ground: "
            "give height_m"
        )
    return camera.height_m
