"""A simulated city at a given place: aerial images of one date, photos of another."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.city.layout import City, at_other_date, make_city
from ciper.city.render import Scene, degrade, random_light, render_aerial
from ciper.data.poses import PhotoPose
from ciper.data.protocol import AerialImage
from ciper.geo import LocalFrame
from ciper.simulate import BORDER_M, Shot, inner_sites, take_photo, true_pose

FloatArray = NDArray[np.float64]

_JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Town:
    """A city on Earth.

    Attributes:
        frame: local metres about the city's middle.
        city: as the photos see it; its metres count from its south-west corner.
        scene: the same, to be photographed.
        picture: the city from above at another date, true north up.
        gsd: metres per pixel of `picture`.
    """

    frame: LocalFrame
    city: City
    scene: Scene
    picture: Image.Image
    gsd: float

    def geographic(self, x: float, y: float) -> tuple[float, float]:
        """Latitude and longitude of metres in the city."""
        half = self.city.size_m / 2.0
        lat, lon = self.frame.to_geographic(x=x - half, y=y - half)
        return float(lat), float(lon)

    def metres(self, *, lat: float, lon: float) -> tuple[float, float]:
        """Metres in the city of a place."""
        half = self.city.size_m / 2.0
        x, y = self.frame.to_local(lat=lat, lon=lon)
        return float(x) + half, float(y) + half

    def save_aerial(self, image: AerialImage) -> None:
        """Cut an aerial image out of the picture and write it.

        The image's north is taken to be the city's: 1 km from its middle they are 0.01 deg apart.
        """
        x, y = self.metres(lat=image.lat, lon=image.lon)
        width, height = (metres * image.side_m / self.gsd for metres in image.true_metres)
        middle_u, middle_v = x / self.gsd, (self.city.size_m - y) / self.gsd
        left, upper = middle_u - width / 2.0, middle_v - height / 2.0
        box = (left, upper, left + width, upper + height)
        size_px = (image.side_px, image.side_px)
        chip = self.picture.resize(size_px, Image.Resampling.BILINEAR, box=box)
        _save_png(chip, image.path)

    def photograph(self, path: Path, shot: Shot, rng: np.random.Generator) -> PhotoPose:
        """Take a photo, write it without metadata, and say its true pose."""
        photo = Image.fromarray(degrade(take_photo(self.scene, shot, rng), rng))
        if path.suffix == ".png":
            _save_png(photo, path)
        else:
            photo.save(path, quality=_JPEG_QUALITY)
        return true_pose(path, shot, self.city, self.frame)


def build_town(
    place: LocalFrame, seed: int, size_m: float, *, beyond_m: float = 0.0, gsd: float
) -> Town:
    """Build a city and look at it from above.

    Args:
        place: its middle.
        seed: of the city and its light.
        size_m: side of the square that photos are taken in, as `ciper simulate` has it.
        beyond_m: by how much the city goes on beyond that square, for the sake of aerial images.
        gsd: of the picture that aerial images are cut out of.
    """
    city = make_city(seed, size_m + 2.0 * beyond_m)
    rng = np.random.default_rng([seed, 0])
    picture = render_aerial(Scene.from_city(city), random_light(rng), gsd=gsd, seed=seed)
    later = at_other_date(city, seed)
    scene = Scene.from_city(later)
    return Town(place, later, scene, Image.fromarray(degrade(picture, rng)), gsd)


def camera_places(town: Town, num: int, seed: int, *, beyond_m: float = 0.0) -> FloatArray:
    """Places (num, 2) in the city's metres where cameras may stand.

    Raises:
        ConfigError: there are none.
    """
    rng = np.random.default_rng([seed, 2])
    return inner_sites(town.city, num, rng, border_m=BORDER_M + beyond_m)


def photo_rng(seed: int, i: int) -> np.random.Generator:
    """Everything random of photo i."""
    return np.random.default_rng([seed, 3, i])


def any_heading_deg(i: int, rng: np.random.Generator) -> float:
    """A heading of photo i: every part of a data set gets all four quadrants, one after another."""
    quadrant = (i + i // 4) % 4
    return 90.0 * quadrant + float(rng.uniform(0.0, 90.0))


def beyond_for(reach_m: float) -> float:
    """How far a city must go on for images that reach so far from a camera.

    Cameras keep `BORDER_M` from the edge anyway; a metre is spare.
    """
    return max(0.0, reach_m + 1.0 - BORDER_M)


def tile_gsd(lat: float) -> float:
    """Metres per pixel of Web Mercator tiles of zoom 18 in double resolution."""
    return 156543.03392 * math.cos(math.radians(lat)) / 2**18 / 2.0


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a label file."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _save_png(image: Image.Image, path: Path) -> None:
    # Slow compression makes such noisy images no smaller, and takes four times as long.
    image.save(path, compress_level=1, compress_type=zlib.Z_RLE)
