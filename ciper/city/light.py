"""The light, season and air of one photo, and what a sensor does to it.

Every photo and every aerial image has its own `Light`, so that neither the sun nor the season can
serve as a compass or as a fingerprint. Colours are computed in linear light (display value squared,
a gamma of 2) and leave the renderer as display values.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.city.parts import Surface
from ciper.city.texture import build_kernel, hash01

Rgb = tuple[float, float, float]

# Display colours of each material in summer and in the dry or frozen half of the year, and how much
# its brightness varies over decimetres (grain) and over metres (patches).
_MATERIALS: dict[Surface, tuple[Rgb, Rgb, float, float]] = {
    Surface.GRASS: ((94, 124, 60), (138, 130, 88), 0.30, 0.25),
    Surface.ASPHALT: ((98, 98, 100), (104, 103, 103), 0.10, 0.22),
    Surface.SIDEWALK: ((168, 164, 156), (166, 163, 158), 0.08, 0.12),
    Surface.MARKING: ((226, 226, 222), (220, 220, 217), 0.10, 0.15),
    Surface.YARD: ((150, 140, 126), (146, 138, 126), 0.22, 0.20),
    Surface.SOIL: ((128, 104, 78), (116, 100, 80), 0.25, 0.25),
    Surface.PLAZA: ((176, 160, 142), (172, 160, 146), 0.12, 0.12),
    Surface.WATER: ((52, 82, 92), (72, 86, 94), 0.05, 0.10),
    Surface.PARKING: ((124, 123, 122), (126, 125, 124), 0.10, 0.22),
    Surface.CURB: ((188, 186, 180), (182, 180, 176), 0.06, 0.08),
    Surface.DRY_GRASS: ((152, 142, 92), (146, 132, 96), 0.28, 0.25),
    Surface.PATH: ((186, 168, 136), (176, 162, 138), 0.18, 0.12),
    Surface.YELLOW_MARKING: ((222, 182, 62), (214, 176, 66), 0.10, 0.15),
    Surface.RAIL: ((104, 94, 86), (104, 95, 88), 0.35, 0.15),
}
_GREEN = (Surface.GRASS, Surface.DRY_GRASS)
_KEEPS_CLEAR_OF_SNOW = {Surface.ASPHALT: 0.35, Surface.MARKING: 0.35, Surface.WATER: 0.2}


@dataclass(frozen=True)
class Light:
    """Light, air and season of one image.

    Attributes:
        sun_azimuth_deg: direction of the sun, degrees clockwise from true north.
        sun_elevation_deg: height of the sun, in (0, 90].
        sun_strength: 0 overcast .. 1 hard sunlight.
        sky_rgb: display colour of the zenith, each in [0, 1].
        haze: extinction per metre of path; 0.01 hides most of what is 200 m away.
        season: 0 summer, about 0.5 autumn, 1 winter: leaves turn and fall, grass dries.
        exposure: factor on the linear brightness, 1 = an average scene.
        tint: (3,) factors on the linear channels.
        cloudiness: share of the sky under clouds, in [0, 1].
        snow: cover of ground and roofs, in [0, 1].
        wetness: darkening of the ground, in [0, 1].
    """

    sun_azimuth_deg: float = 150.0
    sun_elevation_deg: float = 45.0
    sun_strength: float = 0.7
    sky_rgb: Rgb = (0.45, 0.62, 0.85)
    haze: float = 0.001
    season: float = 0.0
    exposure: float = 1.0
    tint: Rgb = (1.0, 1.0, 1.0)
    cloudiness: float = 0.3
    snow: float = 0.0
    wetness: float = 0.0


class LightValues(NamedTuple):
    """A `Light` as the kernels read it: linear colours, the sun as a vector, material table."""

    sun_x: float
    sun_y: float
    sun_z: float
    sun_rgb: NDArray[np.float64]  # (3,) light on a surface that faces the sun
    ambient_rgb: NDArray[np.float64]  # (3,) light from the whole sky
    zenith_rgb: NDArray[np.float64]  # (3,)
    horizon_rgb: NDArray[np.float64]  # (3,)
    gain_rgb: NDArray[np.float64]  # (3,) exposure and tint
    haze: float
    season: float
    cloudiness: float
    snow: float
    palette: NDArray[np.float64]  # (materials, 5) linear r, g, b, grain, patches


def random_light(rng: np.random.Generator) -> Light:
    """Draw a light: any sun, overcast to hard, fog now and then, all seasons, snow in winter."""
    season = float(rng.choice([0.15, 0.6, 1.0], p=[0.55, 0.25, 0.2]) - rng.uniform(0.0, 0.3))
    season = min(max(season, 0.0), 1.0)
    strength = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.25, 1.0))
    is_dusk = rng.random() < 0.08
    elevation = float(rng.uniform(2.0, 9.0) if is_dusk else rng.uniform(12.0, 75.0))
    grey = 1.0 - strength
    blue = np.array([0.42, 0.60, 0.86]) + rng.normal(0.0, 0.05, 3)
    cloud = np.array([0.74, 0.76, 0.79]) * rng.uniform(0.85, 1.15)
    sky = np.clip(blue * (1.0 - grey) + cloud * grey, 0.2, 1.0)
    if is_dusk:
        sky = np.clip(sky * [0.95, 0.75, 0.75], 0.2, 1.0)
    is_foggy = rng.random() < 0.06
    haze = float(rng.uniform(0.006, 0.02) if is_foggy else 0.004 * rng.random() ** 2)
    warmth, magenta = rng.normal(0.0, 0.06), rng.normal(0.0, 0.03)
    return Light(
        sun_azimuth_deg=float(rng.uniform(0.0, 360.0)),
        sun_elevation_deg=elevation,
        sun_strength=strength,
        sky_rgb=(float(sky[0]), float(sky[1]), float(sky[2])),
        haze=haze,
        season=season,
        exposure=float(np.exp(rng.normal(0.05, 0.25))),
        tint=(1.0 + warmth, 1.0 - magenta, 1.0 - warmth),
        cloudiness=float(min(1.0, 0.6 * rng.random() + 0.6 * grey)),
        snow=float(rng.uniform(0.4, 1.0)) if season > 0.85 and rng.random() < 0.35 else 0.0,
        wetness=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.15 else 0.0,
    )


def palette(light: Light) -> NDArray[np.float64]:
    """Tabulate the ground's materials under a light's season, snow and rain.

    Returns:
        (materials, 5): linear red, green and blue, then the amplitudes of grain and patches.
    """
    table = np.zeros((len(Surface), 5))
    for surface, (summer, winter, grain, patches) in _MATERIALS.items():
        dry = min(1.0, max(0.0, (light.season - 0.3) / 0.6)) if surface in _GREEN else light.season
        color = (np.array(summer) * (1.0 - dry) + np.array(winter) * dry) / 255.0
        wet = 1.0 - (0.12 if surface in _GREEN else 0.28) * light.wetness
        snow = light.snow * _KEEPS_CLEAR_OF_SNOW.get(surface, 1.0)
        color = color * wet * (1.0 - snow) + np.array([0.90, 0.92, 0.96]) * snow
        table[surface, :3] = color**2
        table[surface, 3:] = grain * (1.0 - 0.7 * snow), patches * (1.0 - 0.5 * snow)
    return table


def light_values(light: Light) -> LightValues:
    """Convert a light for the kernels, with the exposure of a camera that meters the ground."""
    azimuth, elevation = math.radians(light.sun_azimuth_deg), math.radians(light.sun_elevation_deg)
    sun_z = math.sin(elevation)
    zenith = np.array(light.sky_rgb, dtype=np.float64) ** 2
    ambient = 0.95 - 0.5 * light.sun_strength
    hue = 0.7 + 0.3 * zenith / zenith.mean()
    low_sun = math.exp(-elevation / math.radians(12.0))
    sun = 1.5 * light.sun_strength * np.array([1.0, 1.0 - 0.2 * low_sun, 1.0 - 0.45 * low_sun])
    metered = ambient + 0.65 * float(sun.mean()) * (0.3 + 0.7 * sun_z)
    metered *= 1.0 + 0.8 * light.snow
    gain = light.exposure * np.array(light.tint, dtype=np.float64) / metered**0.85
    return LightValues(
        sun_x=math.sin(azimuth) * math.cos(elevation),
        sun_y=math.cos(azimuth) * math.cos(elevation),
        sun_z=sun_z,
        sun_rgb=sun,
        ambient_rgb=ambient * hue,
        zenith_rgb=zenith,
        horizon_rgb=0.35 * zenith + 0.55 * np.array([1.0, 1.0, 1.0]) * (0.6 + 0.4 * zenith.mean()),
        gain_rgb=gain,
        haze=float(light.haze),
        season=float(light.season),
        cloudiness=float(light.cloudiness),
        snow=float(light.snow),
        palette=palette(light),
    )


@build_kernel
def _expose_and_blur(image, lut, blur, noise, seed):  # type: ignore[no-untyped-def]
    """Map through `lut` (256,), mix with the 4-neighbours' mean by `blur`, add noise (levels)."""
    height, width, _ = image.shape
    out = np.empty_like(image)
    for row in range(height):
        up, down = max(row - 1, 0), min(row + 1, height - 1)
        for col in range(width):
            left, right = max(col - 1, 0), min(col + 1, width - 1)
            for c in range(3):
                around = lut[image[up, col, c]] + lut[image[down, col, c]]
                around += lut[image[row, left, c]] + lut[image[row, right, c]]
                value = lut[image[row, col, c]] * (1.0 - blur) + 0.25 * blur * around
                # Two uniform numbers make a triangle: near enough to a Gaussian of that spread.
                a = hash01(row, col, seed + c)
                b = hash01(col, row, seed + c + 7)
                value += noise * 2.449 * (a + b - 1.0)
                out[row, col, c] = np.uint8(min(max(value + 0.5, 0.0), 255.0))
    return out


def degrade(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Spoil an image (H, W, 3) as a camera and its file format do: gain, gamma, blur, noise, JPEG.

    Deterministic in `rng`; the input is left alone.
    """
    gain = rng.uniform(0.88, 1.12, 1) * 255.0
    gamma = float(np.exp(rng.normal(0.0, 0.12)))
    lut = gain * (np.arange(256) / 255.0) ** gamma
    blur = float(rng.uniform(0.0, 0.75)) if rng.random() < 0.6 else 0.0
    noise = float(rng.uniform(0.5, 7.0))
    out = _expose_and_blur(
        np.ascontiguousarray(image), lut, blur, noise, int(rng.integers(1 << 30))
    )
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        Image.fromarray(out).save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
        out = np.array(Image.open(buffer))
    return np.asarray(out, dtype=np.uint8)
