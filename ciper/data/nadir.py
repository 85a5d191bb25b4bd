"""Photos looking straight down, cut out of georeferenced rasters by a virtual camera.

The ground is taken as flat at the camera's foot. The photos differ from the raster in heading,
scale, tilt, exposure, sharpness and noise; with a raster of another date they make honest queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera, rays_from_pixels
from ciper.city.light import degrade
from ciper.data.poses import PhotoPose
from ciper.errors import ConfigError, RasterError
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.gallery.raster import Canvas, Mosaic, RasterInfo
from ciper.geo import LocalFrame, Pose, forward, geographic_from_crs, right
from ciper.metadata import photo_exif

FloatArray = NDArray[np.float64]

# A raster with holes may need many tries before a photo lies wholly inside of its imagery.
_MAX_TRIES = 200


@dataclass(frozen=True)
class NadirConfig:
    """What the virtual camera is like.

    Attributes:
        num_photos: spread evenly over the rasters.
        seed: of everything random.
        size_px: (height, width) of a photo.
        hfov_deg: horizontal field of view, between two bounds.
        height_m: altitude above the ground, likewise.
        max_tilt_deg: greatest tilt from straight down, towards the heading. A gimbal keeps the
            roll at 0; this close to the nadir it would be one with the heading.
    """

    num_photos: int = 200
    seed: int = 7
    size_px: tuple[int, int] = (480, 640)
    hfov_deg: tuple[float, float] = (60.0, 70.0)
    height_m: tuple[float, float] = (45.0, 70.0)
    max_tilt_deg: float = 3.0

    def __post_init__(self) -> None:
        if self.num_photos < 0:
            raise ConfigError(f"num_photos {self.num_photos} is negative; expected 0 or more")
        if not 0.0 <= self.max_tilt_deg <= 20.0:
            raise ConfigError(f"max_tilt_deg {self.max_tilt_deg} is not in [0, 20]; lower it")
        if not 0.0 < self.height_m[0] <= self.height_m[1]:
            raise ConfigError(f"height_m {self.height_m} is no rising pair of metres above 0")


@dataclass(frozen=True)
class View:
    """A camera in the air: where it is and where it looks."""

    pose: Pose
    camera: Camera
    height_m: float


def cut_nadir_photos(
    rasters: Sequence[Path | str],
    folder: Path,
    config: NadirConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[PhotoPose, ...]:
    """Take photos of rasters (files, folders, globs) and save them as `folder/00000.jpg`, ...

    Photo i is a function of the seed, i and the rasters alone. The poses are the true ones.

    Raises:
        RasterError: no raster, an unreadable one, or one too small for a photo.
        ConfigError: the camera makes no sense.
    """
    infos = [inspect_raster(path) for path in expand_rasters(rasters)]
    poses = []
    with Mosaic(infos) as mosaic:
        for i in range(config.num_photos):
            rng = np.random.default_rng([config.seed, i])
            # Each raster its turn: tiles of one mosaic are seen equally often.
            index = i % len(infos)
            view, photo = _take(mosaic, index, config, rng)
            path = folder / f"{i:05d}.jpg"
            _save(path, degrade(photo, rng), view)
            poses.append(_row(path, view))
            if progress is not None:
                progress("taking photos", i + 1, config.num_photos)
    return tuple(poses)


def _take(
    mosaic: Mosaic, index: int, config: NadirConfig, rng: np.random.Generator
) -> tuple[View, NDArray[np.uint8]]:
    """A random view of one raster that sees nothing but imagery."""
    info = mosaic.rasters[index]
    for _ in range(_MAX_TRIES):
        view = _random_view(info, config, rng)
        # A few pixels tell cheaply of most places that they are no good.
        if not photograph(mosaic, _coarse(view), indexes=[index]).is_valid.all():
            continue
        canvas = photograph(mosaic, view, indexes=[index])
        if canvas.is_valid.all():
            return view, canvas.rgb
    raise RasterError(
        f"{info.path}: no place for a photo from {config.height_m[0]:g} to {config.height_m[1]:g} "
        "m above ground lies wholly inside of it; expected a larger raster with fewer holes"
    )


def _coarse(view: View) -> View:
    """The same view in a sixteenth of the rows and columns."""
    camera = view.camera
    small = replace(
        camera,
        height_px=max(1, camera.height_px // 16),
        width_px=max(1, camera.width_px // 16),
    )
    return replace(view, camera=small)


def _random_view(info: RasterInfo, config: NadirConfig, rng: np.random.Generator) -> View:
    lat, lon = _random_place(info, rng)
    camera = Camera(
        "pinhole",
        *config.size_px,
        hfov_deg=float(rng.uniform(*config.hfov_deg)),
        pitch_deg=-90.0 + float(rng.uniform(0.0, config.max_tilt_deg)),
    )
    pose = Pose(lat=lat, lon=lon, heading_deg=float(rng.uniform(0.0, 360.0)))
    return View(pose, camera, height_m=float(rng.uniform(*config.height_m)))


def _random_place(info: RasterInfo, rng: np.random.Generator) -> tuple[float, float]:
    """A place below the raster, evenly over its pixels."""
    u, v = rng.uniform(0.0, info.width), rng.uniform(0.0, info.height)
    a, b, c, d, e, f = info.transform
    x, y = a * u + b * v + c, d * u + e * v + f
    lat, lon = geographic_from_crs(info.crs, x, y)
    return float(lat), float(lon)


def photograph(mosaic: Mosaic, view: View, *, indexes: Sequence[int] | None = None) -> Canvas:
    """What a camera in the air sees of rasters lying flat on the ground at its foot.

    A ray r of the heading frame meets the ground height_m below at height_m / -r_z times r, and
    the heading turns that into metres east and north.
    """
    frame = LocalFrame(lat=view.pose.lat, lon=view.pose.lon)
    ahead, aside = forward(view.pose.heading_deg), right(view.pose.heading_deg)

    def geographic_from_pixel(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        rays = rays_from_pixels(view.camera, u, v)
        ground = rays[..., :2] * (view.height_m / -rays[..., 2:])
        metres = ground[..., :1] * aside + ground[..., 1:] * ahead
        return frame.to_geographic(x=metres[..., 0], y=metres[..., 1])

    canvas = Canvas.empty(view.camera.height_px, view.camera.width_px)
    mosaic.fill(canvas, geographic_from_pixel, indexes)
    return canvas


def _save(path: Path, photo: NDArray[np.uint8], view: View) -> None:
    exif = photo_exif(
        heading_deg=view.pose.heading_deg,
        lat=view.pose.lat,
        lon=view.pose.lon,
        hfov_deg=view.camera.hfov_deg,
    )
    Image.fromarray(photo).save(path, quality=90, exif=exif)


def _row(path: Path, view: View) -> PhotoPose:
    return PhotoPose(
        photo=path,
        lat=view.pose.lat,
        lon=view.pose.lon,
        heading_deg=view.pose.heading_deg,
        projection=view.camera.projection,
        hfov_deg=view.camera.hfov_deg,
        pitch_deg=view.camera.pitch_deg,
        roll_deg=view.camera.roll_deg,
        height_m=view.height_m,
    )
