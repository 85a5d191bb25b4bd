"""What is done to a training pair: exact changes of geometry, and changes of colour.

Geometry stays exact: a chip is turned by quarter turns or mirrored as pixels and its pose with
it; a panorama is rolled by whole columns, which changes its heading and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random changes.

    A share `narrow_share` of the photos becomes pinhole views of `hfov_deg` (low, high); with
    `colour` 1 gains and contrasts vary by about 20 %, with 0 not at all.
    """

    narrow_share: float = 0.3
    hfov_deg: tuple[float, float] = (60.0, 120.0)
    pitch_deg: float = 4.0
    colour: float = 1.0
    grey_share: float = 0.05


def mirror_pose(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The pose `(x, y, heading)` in a world mirrored west to east."""
    return np.array([-pose[0], pose[1], -pose[2] % 360.0])


def turn_pose(pose: NDArray[np.float64], quarter_turns: int) -> NDArray[np.float64]:
    """The pose in a world turned counter-clockwise by quarter turns, as `np.rot90` turns pixels."""
    x, y, heading = pose
    for _ in range(quarter_turns % 4):
        x, y, heading = -y, x, heading - 90.0
    return np.array([x, y, heading % 360.0])


def roll_canvas(canvas: Image, num_columns: int) -> Image:
    """Turns the camera clockwise by whole columns: what was right of the centre comes to it."""
    return np.roll(canvas, -num_columns, axis=1)


def pinhole_mask(
    height_px: int,
    width_px: int,
    *,
    hfov_deg: float,
    aspect: float,
    pitch_deg: float,
    elevation_top_deg: float = 45.0,
    elevation_bottom_deg: float = -45.0,
) -> Mask:
    """Which canvas pixels a pinhole photo of `aspect` (width / height) sees: `(H, W)`."""
    bearing = np.deg2rad(((np.arange(width_px) + 0.5) / width_px - 0.5) * 360.0)[None]
    step = (elevation_top_deg - elevation_bottom_deg) / height_px
    elevation = np.deg2rad(elevation_top_deg - (np.arange(height_px) + 0.5) * step)[:, None]
    x = np.cos(elevation) * np.sin(bearing)
    y, z = np.cos(elevation) * np.cos(bearing), np.sin(elevation) + 0 * bearing
    pitch = np.deg2rad(pitch_deg)
    forward = y * np.cos(pitch) + z * np.sin(pitch)
    up = z * np.cos(pitch) - y * np.sin(pitch)
    half = np.tan(np.deg2rad(hfov_deg) / 2)
    is_within = (np.abs(x) <= half * forward) & (np.abs(up) <= half / aspect * forward)
    return np.asarray((forward > 1e-6) & is_within)


def change_colour(image: Image, rng: np.random.Generator, config: AugmentConfig) -> Image:
    """Gain, contrast and gamma per channel through a table; sometimes grey."""
    if config.colour > 0:
        spread = 0.2 * config.colour
        gamma = np.exp(rng.normal(0, spread))
        gain = np.exp(rng.normal(0, spread) + rng.normal(0, spread / 3, 3))
        levels = (np.arange(256)[:, None] / 255.0) ** gamma * gain
        table = np.clip((levels - 0.5) * np.exp(rng.normal(0, spread)) + 0.5, 0, 1)
        table = (table * 255).astype(np.uint8)
        image = np.stack([table[image[..., c], c] for c in range(3)], axis=-1)
    if rng.random() < config.grey_share:
        grey = image.mean(-1, keepdims=True).astype(np.uint8)
        image = np.repeat(grey, 3, axis=-1)
    return image
