"""What a calibration is fitted with: photos whose places are known, against galleries.

They are simulated cities, or rasters of two dates that photos looking straight down are cut out of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ciper.camera import ASSUMED_FOV_DEG, Camera
from ciper.city.parts import CITY_VERSION
from ciper.data.nadir import NadirConfig, kept_photos
from ciper.data.poses import PhotoPose, read_poses
from ciper.errors import ConfigError
from ciper.index import build_index, kept_gallery
from ciper.localize import Localizer
from ciper.model.load import Model
from ciper.simulate import SimulateConfig, parse_camera, simulate

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrateConfig:
    """Which validation cities: their seeds, size, and photos of each camera in each city.

    Own and foreign photos are equally many. `foreign_share` is what the foreign ones count for in
    the confidence: their share among the photos that will be asked about. Whether a photo is in
    the gallery at all is judged as if they were `suspected_share` of all: this outcome is there
    to be seen. `height_error` is that of `NadirConfig`.
    """

    seeds: tuple[int, ...] = (200_001, 200_002, 200_003)
    size_m: float = 1000.0
    num_photos: int = 100
    cameras: tuple[str, ...] = ("panorama", "pinhole:90")
    foreign_share: float = 0.1
    suspected_share: float = 1 / 3
    height_error: float = 0.03


@dataclass(frozen=True)
class NadirImagery:
    """Rasters (files, folders or globs) that photos looking straight down are calibrated with.

    Attributes:
        photos: of one date; photos are cut out of them.
        imagery: of another date, of the same places; photos are searched in them.
        elsewhere: of other places; photos cut out of them are foreign.
    """

    photos: tuple[str, ...]
    imagery: tuple[str, ...]
    elsewhere: tuple[str, ...]


@dataclass(frozen=True)
class City:
    """A validation city: its gallery, its own photos, and those of another city."""

    localizer: Localizer
    own: tuple[PhotoPose, ...]
    foreign: tuple[PhotoPose, ...]


def prepare_city(
    model: Model, config: CalibrateConfig, cache: Path, number: int, progress: Progress
) -> City:
    """Simulates (once) and indexes one validation city; the next city's photos are foreign."""
    seed, stranger = config.seeds[number], config.seeds[(number + 1) % len(config.seeds)]
    own = [_city(seed, camera, config, cache) for camera in config.cameras]
    foreign = [_city(stranger, camera, config, cache) for camera in config.cameras]
    gallery = cache / f"gallery-{model.model_hash[:12]}-{seed}-{config.size_m:g}"
    build_index([own[0] / "aerial.tif"], gallery, model)
    progress("preparing cities", number + 1, len(config.seeds))
    return City(
        localizer=Localizer(gallery, model),
        own=tuple(photo for folder in own for photo in read_poses(folder / "poses.csv")),
        foreign=tuple(photo for folder in foreign for photo in read_poses(folder / "poses.csv")),
    )


def prepare_imagery(
    model: Model, imagery: NadirImagery, config: CalibrateConfig, cache: Path, progress: Progress
) -> City:
    """Cuts photos out of one date's rasters and of elsewhere's, and indexes the other date's."""
    camera = Camera("pinhole", 480, 640, ASSUMED_FOV_DEG, pitch_deg=-90.0, height_m=60.0)
    misfit = model.misfit(camera)
    if misfit is not None:
        raise ConfigError(
            f"{misfit}; expected a model with a plan head: see configs/plan_head.toml"
        )

    def taken(rasters: tuple[str, ...], seed: int) -> tuple[PhotoPose, ...]:
        settings = NadirConfig(
            num_photos=config.num_photos, seed=seed, height_error=config.height_error
        )
        return read_poses(kept_photos(rasters, cache, settings, progress=progress))

    gallery = kept_gallery(imagery.imagery, cache, model)
    return City(
        localizer=Localizer(gallery, model),
        own=taken(imagery.photos, config.seeds[0]),
        foreign=taken(imagery.elsewhere, config.seeds[0] + 1),
    )


def with_cameras_of(model: Model, config: CalibrateConfig) -> CalibrateConfig:
    """The configuration with those of its cameras alone that the model was trained on.

    Raises:
        ConfigError: there is none.
    """
    cameras = tuple(name for name in config.cameras if model.misfit(_camera(name)) is None)
    if not cameras:
        raise ConfigError(
            f"cameras {', '.join(config.cameras)} do not suit the model {model.model_name!r}; "
            "expected one as in its training"
        )
    return replace(config, cameras=cameras)


def _camera(name: str) -> Camera:
    kind, hfov_deg = parse_camera(name)
    if kind == "panorama":
        return Camera("equirectangular", height_px=256, width_px=512, hfov_deg=360.0)
    return Camera("pinhole", height_px=300, width_px=400, hfov_deg=hfov_deg or ASSUMED_FOV_DEG)


def _city(seed: int, camera: str, config: CalibrateConfig, cache: Path) -> Path:
    name = f"{seed}-{config.size_m:g}-{config.num_photos}-{camera.replace(':', '')}"
    folder = cache / f"{name}-v{CITY_VERSION}"
    if not folder.exists():
        simulate(
            folder,
            SimulateConfig(
                seed=seed, size_m=config.size_m, num_photos=config.num_photos, camera=camera
            ),
        )
    return folder
