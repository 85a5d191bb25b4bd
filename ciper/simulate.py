"""Make a synthetic city with its aerial image, ground photos and true poses.

The aerial image and the photos show two dates of one city. The city's metres (x east, y north from
its south-west corner) become a local frame about its centre, somewhere on Earth (a city of real
footprints: where it is); the aerial image is written in that place's UTM zone, whose grid north is
not true north.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import RasterioError

from ciper.camera import Camera, rays_from_pixels
from ciper.city.aerial import aerial_image, write_geotiff
from ciper.city.layout import City, at_other_date, make_city
from ciper.city.render import (
    Scene,
    degrade,
    random_light,
    render_panoramas,
)
from ciper.data.datasets import DATASETS
from ciper.data.nadir import NadirConfig, cut_nadir_photos
from ciper.data.poses import PhotoPose, write_poses
from ciper.data.preprocess import reproject
from ciper.errors import ConfigError, OutputError
from ciper.files import finished_folder, is_free
from ciper.geo import LocalFrame, check_lat_lon
from ciper.metadata import photo_exif
from ciper.xmp import gpano_xmp

FloatArray = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

# Chips and photos need some city around them.
BORDER_M = 32.0
CAMERA_HEIGHT_M = (1.5, 2.6)
PANORAMA_PX = (512, 1024)
PINHOLE_PX = (480, 640)
# Every list of photos of a data set's layout has at least one.
NUM_LAYOUT_PARTS = 4
_JPEG_QUALITY = 90
# The drone's photos are cut out of an image this many times as fine as the aerial one.
_NADIR_FINENESS = 2


@dataclass(frozen=True)
class SimulateConfig:
    """What to simulate.

    Attributes:
        seed: of the city, its place on Earth, the cameras and the weather.
        size_m: edge of the square city.
        num_photos: how many photos to take.
        camera: "panorama", "pinhole:DEGREES" (horizontal field of view) or "nadir".
        gsd: metres per pixel of the aerial image, in UTM's metres.
        rasters: cut the nadir photos out of these georeferenced rasters (files, folders or globs),
            and make no city.
        layout: write the folders and files of this data set instead, see `ciper.layouts`. Its
            cameras, gsd and places on Earth are its own.
        has_whole_offsets: VIGOR's offsets are whole pixels, as published; else exact.
        footprints: a file of buildings or a whole map, see `ciper.city.footprints`, to build the
            city from at its own place on Earth.
        at: latitude and longitude of that city's middle; without it, that of the square with the
            most buildings.
    """

    seed: int = 7
    size_m: float = 1000.0
    num_photos: int = 200
    camera: str = "panorama"
    gsd: float = 0.5
    rasters: tuple[Path | str, ...] = ()
    layout: str | None = None
    has_whole_offsets: bool = True
    footprints: Path | str | None = None
    at: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} is negative; expected 0 or more")
        if not 2.0 * BORDER_M < self.size_m <= 20_000.0:
            raise ConfigError(
                f"size_m {self.size_m} is not between {2 * BORDER_M:g} and 20000 metres; choose "
                "another size for the city"
            )
        if self.num_photos < 0:
            raise ConfigError(f"num_photos {self.num_photos} is negative; expected 0 or more")
        if not 0.05 <= self.gsd <= 10.0:
            raise ConfigError(f"gsd {self.gsd} is not between 0.05 and 10 m/px")
        parse_camera(self.camera)
        if self.layout is not None:
            self._check_layout(self.layout)
        self._check_footprints()
        if self.rasters and self.camera != "nadir":
            raise ConfigError(
                f"camera {self.camera!r} cannot photograph rasters: they are flat; use nadir"
            )

    def _check_footprints(self) -> None:
        if self.at is not None:
            if self.footprints is None:
                raise ConfigError("--at is the place of a city of --footprints; name such a file")
            check_lat_lon(lat=self.at[0], lon=self.at[1])
        if self.footprints is not None and (self.rasters or self.layout is not None):
            other = "--rasters" if self.rasters else f"--layout {self.layout}"
            raise ConfigError(f"{other} and --footprints exclude each other; leave one out")

    def _check_layout(self, layout: str) -> None:
        if layout not in DATASETS:
            raise ConfigError(f"--layout {layout}; expected {', '.join(DATASETS)}")
        if self.camera != "panorama" or self.rasters:
            raise ConfigError(
                f"--layout {layout} has a camera and a city of its own; leave --camera and "
                "--rasters out"
            )
        if self.num_photos < NUM_LAYOUT_PARTS:
            raise ConfigError(
                f"num_photos {self.num_photos} is too few for --layout {layout}; expected "
                f"{NUM_LAYOUT_PARTS} or more: one for each of its lists"
            )


@dataclass(frozen=True)
class SimulateResult:
    """What was written: the folder, the aerial image (if one of a city) and the table."""

    out: Path
    aerial: Path | None
    poses: Path
    num_photos: int


def parse_camera(text: str) -> tuple[str, float | None]:
    """Kind of camera and, for a pinhole, its horizontal field of view in degrees.

    Raises:
        ConfigError: not "panorama", "nadir" or "pinhole:DEGREES".
    """
    kind, _, degrees = text.partition(":")
    if text in ("panorama", "nadir"):
        return kind, None
    try:
        hfov_deg = float(degrees or "90") if kind == "pinhole" else math.nan
    except ValueError:
        hfov_deg = math.nan
    if not 20.0 <= hfov_deg <= 120.0:
        raise ConfigError(
            f"camera {text!r} is unknown; expected panorama, nadir or pinhole:DEGREES with 20 to "
            "120 degrees"
        )
    return kind, hfov_deg


def simulate(
    out: Path | str, config: SimulateConfig, *, progress: Progress | None = None
) -> SimulateResult:
    """Write OUT/aerial.tif, OUT/photos/*.jpg and OUT/poses.csv, all at once or not at all.

    With a layout, write that data set's folders and files instead, and OUT/truth.csv, which has the
    columns of poses.csv.

    Raises:
        OutputError: OUT exists and is not an empty folder, or cannot be written.
        ConfigError: the city has no place for a camera.
        RasterError: `rasters` cannot be read.
    """
    out = Path(out)
    tell = progress or (lambda _what, _done, _total: None)
    if not is_free(out):
        raise OutputError(f"{out} exists and is not empty; name a new folder or remove it")
    table = "poses.csv" if config.layout is None else "truth.csv"
    with finished_folder(out, RasterioError) as folder:
        poses = _write_all(folder, config, tell)
        write_poses(folder / table, poses)
    has_aerial = not config.rasters and config.layout is None
    return SimulateResult(out, out / "aerial.tif" if has_aerial else None, out / table, len(poses))


def _write_all(folder: Path, config: SimulateConfig, tell: Progress) -> tuple[PhotoPose, ...]:
    if config.layout is not None:
        # Imported here because the layouts are made of this module's parts.
        from ciper.layouts import write_layout

        return write_layout(folder, config.layout, config, tell)
    (folder / "photos").mkdir()
    if config.rasters:
        return _photograph_rasters(folder, config, config.rasters, tell)
    return _photograph_city(folder, config, tell)


# ------------------------------------------------------------------------------------------- city


def _photograph_city(folder: Path, config: SimulateConfig, tell: Progress) -> tuple[PhotoPose, ...]:
    tell("building the city", 0, 1)
    rng = np.random.default_rng([config.seed, 0])
    city, frame = _city_and_place(config)
    later = at_other_date(city, config.seed)
    tell("building the city", 1, 1)
    tell("rendering the aerial image", 0, 1)
    write_geotiff(folder / "aerial.tif", aerial_image(city, frame, config.gsd, rng))
    tell("rendering the aerial image", 1, 1)
    if config.camera == "nadir":
        # The drone flies at the other date, over an image of its own that is not kept.
        flown = folder / "flown.tif"
        gsd = config.gsd / _NADIR_FINENESS
        write_geotiff(flown, aerial_image(later, frame, gsd, rng))
        poses = _photograph_rasters(folder, config, (flown,), tell)
        flown.unlink()
        return poses
    return _photograph_streets(folder, config, later, frame, tell)


def _city_and_place(config: SimulateConfig) -> tuple[City, LocalFrame]:
    """The city at the date of its aerial image, and the local frame about its middle."""
    if config.footprints is None:
        return make_city(config.seed, config.size_m), place_on_earth(config.seed)
    # Imported here because other cities need none of its libraries.
    from ciper.city.footprints import read_map
    from ciper.city.real_plan import densest_place, plan_city

    street_map = read_map(config.footprints)
    at = config.at or densest_place(street_map, config.size_m)
    placed = plan_city(street_map, config.seed, config.size_m, at=at)
    return placed.city, placed.frame


def _photograph_rasters(
    folder: Path, config: SimulateConfig, rasters: tuple[Path | str, ...], tell: Progress
) -> tuple[PhotoPose, ...]:
    camera = NadirConfig(num_photos=config.num_photos, seed=config.seed)
    return cut_nadir_photos(rasters, folder / "photos", camera, progress=tell)


def place_on_earth(seed: int) -> LocalFrame:
    """The local frame of a seed's city: anywhere between 60 S and 65 N, in any UTM zone."""
    rng = np.random.default_rng([seed, 1])
    lat, lon = rng.uniform(-60.0, 65.0), rng.uniform(-180.0, 180.0)
    return LocalFrame(lat=round(float(lat), 6), lon=round(float(lon), 6))


# ----------------------------------------------------------------------------------------- street


@dataclass(frozen=True)
class Shot:
    """One photo to take: place in the city's metres, heading, height and camera."""

    x: float
    y: float
    heading_deg: float
    height_m: float
    camera: Camera


def _photograph_streets(
    folder: Path, config: SimulateConfig, city: City, frame: LocalFrame, tell: Progress
) -> tuple[PhotoPose, ...]:
    scene = Scene.from_city(city)
    sites = inner_sites(city, config.num_photos, np.random.default_rng([config.seed, 2]))
    poses = []
    for i, (x, y) in enumerate(sites):
        rng = np.random.default_rng([config.seed, 3, i])
        shot = random_shot(float(x), float(y), config.camera, rng)
        photo = degrade(take_photo(scene, shot, rng), rng)
        path = folder / "photos" / f"{i:05d}.jpg"
        pose = true_pose(path, shot, city, frame)
        _save_photo(photo, pose, shot.camera)
        poses.append(pose)
        tell("taking photos", i + 1, config.num_photos)
    return tuple(poses)


def inner_sites(
    city: City, num: int, rng: np.random.Generator, *, border_m: float = BORDER_M
) -> FloatArray:
    """Random camera places (num, 2) away from the border, different ones as far as they go.

    Raises:
        ConfigError: the city has none.
    """
    sites = city.camera_sites[:, :2]
    is_inner = (sites >= border_m).all(axis=1) & (sites <= city.size_m - border_m).all(axis=1)
    sites = sites[is_inner]
    if len(sites) == 0 and num > 0:
        raise ConfigError(
            f"a city of {city.size_m:g} m with seed {city.seed} has no place for a camera "
            f"{border_m:g} m from its border; make it larger or change the seed"
        )
    rounds = [rng.permutation(len(sites)) for _ in range(math.ceil(num / max(1, len(sites))))]
    chosen = np.concatenate([*rounds, np.empty(0, dtype=np.intp)])[:num].astype(np.intp)
    return np.asarray(sites[chosen], dtype=np.float64)


def random_shot(x: float, y: float, camera: str, rng: np.random.Generator) -> Shot:
    """A photo from a place: any heading, whatever the street's; hand-held if a pinhole."""
    kind, hfov_deg = parse_camera(camera)
    heading_deg = float(rng.uniform(0.0, 360.0))
    height_m = float(rng.uniform(*CAMERA_HEIGHT_M))
    if kind == "panorama" or hfov_deg is None:
        return Shot(x, y, heading_deg, height_m, Camera("equirectangular", *PANORAMA_PX, 360.0))
    pinhole = Camera(
        "pinhole",
        *PINHOLE_PX,
        hfov_deg=hfov_deg,
        pitch_deg=float(np.clip(rng.normal(0.0, 2.0), -6.0, 6.0)),
        roll_deg=float(np.clip(rng.normal(0.0, 1.5), -4.0, 4.0)),
    )
    return Shot(x, y, heading_deg, height_m, pinhole)


def take_photo(scene: Scene, shot: Shot, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a shot under a random light, (H, W, 3).

    A pinhole photo is resampled from a level equirectangular strip of its mean density.
    """
    strip = shot.camera if shot.camera.projection == "equirectangular" else _strip_of(shot.camera)
    top_deg, bottom_deg = strip.vertical_range_deg
    image: NDArray[np.uint8] = render_panoramas(
        scene,
        np.array([[shot.x, shot.y, shot.heading_deg, shot.height_m]]),
        [random_light(rng)],
        height_px=strip.height_px,
        width_px=strip.width_px,
        elevation_top_deg=top_deg,
        elevation_bottom_deg=bottom_deg,
        bearing_range_deg=(-strip.hfov_deg / 2.0, strip.hfov_deg / 2.0),
        seed=int(rng.integers(1 << 20)),
    )[0]
    if strip is shot.camera:
        return image
    return reproject(image, strip, shot.camera)[0]


def _strip_of(pinhole: Camera) -> Camera:
    """A level panoramic camera that sees all that a pinhole near the horizon sees, and a margin."""
    height_px, width_px = pinhole.height_px, pinhole.width_px
    u = np.concatenate([np.arange(width_px + 1.0)] * 2 + [np.zeros(height_px + 1)] * 2)
    u[-(height_px + 1) :] = width_px
    v = np.concatenate([np.zeros(width_px + 1)] * 2 + [np.arange(height_px + 1.0)] * 2)
    v[width_px + 1 : 2 * (width_px + 1)] = height_px
    rays = rays_from_pixels(pinhole, u, v)
    bearings_deg = np.rad2deg(np.arctan2(rays[:, 0], rays[:, 1]))
    elevations_deg = np.rad2deg(np.arcsin(rays[:, 2]))
    margin_deg = 1.0
    half_deg = min(180.0, float(np.abs(bearings_deg).max()) + margin_deg)
    top_deg = min(90.0, float(elevations_deg.max()) + margin_deg)
    bottom_deg = max(-90.0, float(elevations_deg.min()) - margin_deg)
    density = width_px / pinhole.hfov_deg
    return Camera(
        "equirectangular",
        math.ceil((top_deg - bottom_deg) * density),
        math.ceil(2.0 * half_deg * density),
        hfov_deg=2.0 * half_deg,
        vfov_top_deg=top_deg,
        vfov_bottom_deg=bottom_deg,
    )


def true_pose(path: Path, shot: Shot, city: City, frame: LocalFrame) -> PhotoPose:
    """The pose of a shot in a city whose middle is a frame's origin."""
    half = city.size_m / 2.0
    pose = frame.pose(x=shot.x - half, y=shot.y - half, heading_deg=shot.heading_deg)
    return PhotoPose(
        photo=path,
        lat=pose.lat,
        lon=pose.lon,
        heading_deg=pose.heading_deg,
        projection=shot.camera.projection,
        hfov_deg=shot.camera.hfov_deg,
        pitch_deg=shot.camera.pitch_deg,
        roll_deg=shot.camera.roll_deg,
        height_m=shot.height_m,
    )


def _save_photo(photo: NDArray[np.uint8], pose: PhotoPose, camera: Camera) -> None:
    heading_deg = pose.heading_deg or 0.0
    if camera.projection == "pinhole":
        exif = photo_exif(
            heading_deg=heading_deg, lat=pose.lat, lon=pose.lon, hfov_deg=camera.hfov_deg
        )
        Image.fromarray(photo).save(pose.photo, quality=_JPEG_QUALITY, exif=exif)
        return
    exif = photo_exif(heading_deg=heading_deg, lat=pose.lat, lon=pose.lon)
    xmp = gpano_xmp(heading_deg=heading_deg, size_px=(camera.height_px, camera.width_px))
    Image.fromarray(photo).save(pose.photo, quality=_JPEG_QUALITY, exif=exif, xmp=xmp)
