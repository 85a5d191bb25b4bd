"""Photos looking straight down, cut out of georeferenced rasters by a virtual camera.

The ground is taken as flat at the camera's foot. The photos differ from the raster in heading,
scale, tilt, exposure, sharpness and noise; with a raster of another date they make honest queries.
Their EXIF and XMP say what a drone's do: lens, heading, tilt and height.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera, rays_from_pixels
from ciper.city.light import degrade
from ciper.data.poses import PhotoPose, write_poses
from ciper.errors import ConfigError, RasterError
from ciper.files import finished_folder
from ciper.gallery.inspect import expand_rasters, inspect_raster
from ciper.gallery.raster import Canvas, Mosaic, RasterInfo
from ciper.geo import LocalFrame, Pose, forward, geographic_from_crs, right
from ciper.metadata import photo_exif
from ciper.xmp import drone_xmp

FloatArray = NDArray[np.float64]

# Counts changes of what photos look like: those that are kept of another count are stale.
PHOTO_VERSION = 1
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
        width_m: of the ground across a photo that looks straight down, likewise; it decides the
            height.
        max_tilt_deg: greatest tilt from straight down, towards the heading. A gimbal keeps the
            roll at 0; this close to the nadir it would be one with the heading.
        tilt_error_deg: standard deviation of the tilt that nobody knows of, along both axes.
        moved_share: of the photos that are blurred by motion.
        height_error: standard deviation of the told height, as a share of the true one; None if
            the height is not told.
    """

    num_photos: int = 200
    seed: int = 7
    size_px: tuple[int, int] = (480, 640)
    hfov_deg: tuple[float, float] = (60.0, 70.0)
    width_m: tuple[float, float] = (60.0, 100.0)
    max_tilt_deg: float = 3.0
    tilt_error_deg: float = 0.3
    moved_share: float = 0.3
    height_error: float | None = 0.0

    def __post_init__(self) -> None:
        if self.num_photos < 0:
            raise ConfigError(f"num_photos {self.num_photos} is negative; expected 0 or more")
        if not 0.0 <= self.max_tilt_deg <= 20.0:
            raise ConfigError(f"max_tilt_deg {self.max_tilt_deg} is not in [0, 20]; lower it")
        if not 0.0 < self.width_m[0] <= self.width_m[1]:
            raise ConfigError(f"width_m {self.width_m} is no rising pair of metres above 0")


@dataclass(frozen=True)
class View:
    """A camera in the air: where it is and where it looks.

    Attributes:
        pose: of the camera.
        camera: what its pose table tells, of its height too.
        height_m: above the ground.
        tilt_error_rad: what the table does not tell: small turns of the rays to the right and
            forward.
    """

    pose: Pose
    camera: Camera
    height_m: float
    tilt_error_rad: tuple[float, float] = (0.0, 0.0)

    def telling(self, config: NadirConfig, rng: np.random.Generator) -> View:
        """The same view with the height that its camera is told to have."""
        if config.height_error is None:
            return replace(self, camera=replace(self.camera, height_m=None))
        factor = math.exp(rng.normal(0.0, config.height_error))
        return replace(self, camera=replace(self.camera, height_m=self.height_m * factor))


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
    return _cut(infos, folder, config, progress)


def _cut(
    infos: Sequence[RasterInfo],
    folder: Path,
    config: NadirConfig,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[PhotoPose, ...]:
    poses = []
    with Mosaic(infos) as mosaic:
        for i in range(config.num_photos):
            rng = np.random.default_rng([config.seed, i])
            # Each raster its turn: tiles of one mosaic are seen equally often.
            index = i % len(infos)
            view, photo = _take(mosaic, index, config, rng)
            view = view.telling(config, np.random.default_rng([config.seed, i, 1]))
            path = folder / f"{i:05d}.jpg"
            if rng.random() < config.moved_share:
                photo = moved(photo, rng)
            _save(path, degrade(photo, rng), view)
            poses.append(_row(path, view))
            if progress is not None:
                progress("taking photos", i + 1, config.num_photos)
    return tuple(poses)


def kept_photos(
    rasters: Sequence[Path | str],
    cache: Path,
    config: NadirConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """The table of `cut_nadir_photos` in a folder of the cache, taken unless it is there.

    Another config, or rasters that are others or have changed, have a folder of their own.

    Raises:
        RasterError, ConfigError: as `cut_nadir_photos`.
        OutputError: the cache cannot be written.
    """
    infos = [inspect_raster(path) for path in expand_rasters(rasters)]
    known = [(info.path, info.size_bytes, info.mtime_ns) for info in infos]
    digest = hashlib.sha256(repr((PHOTO_VERSION, known, config)).encode()).hexdigest()[:12]
    folder = cache / f"photos-{digest}"
    if not folder.exists():
        with finished_folder(folder) as unfinished:
            (unfinished / "photos").mkdir()
            taken = _cut(infos, unfinished / "photos", config, progress)
            write_poses(unfinished / "poses.csv", taken)
    return folder / "poses.csv"


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
        f"{info.path}: no place for a photo {config.width_m[0]:g} to {config.width_m[1]:g} m wide "
        "lies wholly inside of it; expected a larger raster with fewer holes"
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
    hfov_deg = float(rng.uniform(*config.hfov_deg))
    height_m = float(rng.uniform(*config.width_m)) / 2.0 / math.tan(math.radians(hfov_deg) / 2.0)
    camera = Camera(
        "pinhole",
        *config.size_px,
        hfov_deg=hfov_deg,
        pitch_deg=-90.0 + float(rng.uniform(0.0, config.max_tilt_deg)),
        height_m=height_m,
    )
    pose = Pose(lat=lat, lon=lon, heading_deg=float(rng.uniform(0.0, 360.0)))
    aside, ahead = np.deg2rad(rng.normal(0.0, config.tilt_error_deg, 2))
    return View(pose, camera, height_m, (float(aside), float(ahead)))


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
    the heading turns that into metres east and north. Small turns of the camera move each ray by
    as much of the way down.
    """
    frame = LocalFrame(lat=view.pose.lat, lon=view.pose.lon)
    ahead, aside = forward(view.pose.heading_deg), right(view.pose.heading_deg)

    def geographic_from_pixel(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        rays = rays_from_pixels(view.camera, u, v)
        rays[..., :2] -= rays[..., 2:] * np.array(view.tilt_error_rad)
        ground = rays[..., :2] * (view.height_m / -rays[..., 2:])
        metres = ground[..., :1] * aside + ground[..., 1:] * ahead
        return frame.to_geographic(x=metres[..., 0], y=metres[..., 1])

    canvas = Canvas.empty(view.camera.height_px, view.camera.width_px)
    mosaic.fill(canvas, geographic_from_pixel, indexes)
    return canvas


def _save(path: Path, photo: NDArray[np.uint8], view: View) -> None:
    pose, camera = view.pose, view.camera
    exif = photo_exif(
        heading_deg=pose.heading_deg, lat=pose.lat, lon=pose.lon, hfov_deg=camera.hfov_deg
    )
    xmp = drone_xmp(
        heading_deg=pose.heading_deg, pitch_deg=camera.pitch_deg, height_m=camera.height_m
    )
    Image.fromarray(photo).save(path, quality=90, exif=exif, xmp=xmp)


def moved(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A photo (H, W, 3) that moved by two to six pixels while it was taken, any way."""
    length_px, angle = rng.uniform(2.0, 6.0), rng.uniform(0.0, math.pi)
    steps = np.linspace(-0.5, 0.5, 2 * math.ceil(length_px) + 1) * length_px
    shifts = np.unique(
        np.rint(np.outer(steps, [math.sin(angle), math.cos(angle)])).astype(int), axis=0
    )
    rows, columns = np.arange(photo.shape[0]), np.arange(photo.shape[1])
    total = np.zeros(photo.shape, np.float32)
    for down, across in shifts:
        total += photo[np.clip(rows + down, 0, len(rows) - 1)][
            :, np.clip(columns + across, 0, len(columns) - 1)
        ]
    return np.asarray(np.rint(total / len(shifts)), dtype=np.uint8)


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
        height_m=view.camera.height_m,
    )
