"""Training pairs from procedural cities: rendered once to a folder, cut afresh at every step.

Item i of step s is a function of (seed, s, i), and of the mined table where there is one, so that
a run can be resumed or repeated, and shared among processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ciper.data.augment import (
    AugmentConfig,
    change_colour,
    mirror_pose,
    pinhole_mask,
    roll_canvas,
    turn_pose,
)
from ciper.data.batches import Drawing, RandomPairs
from ciper.errors import ConfigError

if TYPE_CHECKING:
    from ciper.city.parts import City

CHIP_PX = 256
# Of the canvases' upper and lower edge.
ELEVATION_DEG = (45.0, -45.0)
CAMERA_HEIGHT_M = (1.4, 2.8)
# Cities that figures are measured on or calibrations fitted to: nobody trains or validates on them.
RESERVED_SEEDS = {
    "a test city": range(9000, 10_000),
    "a city of the calibration": range(200_001, 200_100),
    "a validation city of the study": range(210_001, 210_100),
    "a test city of the study": range(310_001, 310_100),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Which cities are rendered, and how much of each.

    The `num_cities` to train on have the seeds `first_seed`, `first_seed + 1`, ..., those to
    validate on `first_validation_seed`, ...: with more of either, the others stay what they are.
    Each city is seen from above under `aerials_per_city` lights.

    Besides these, `num_plans` cities to train on have the plans of real ones, of `footprints`
    (files that `ciper.city.footprints` reads) in turn, each another square of its map, and the
    seeds `first_plan_seed`, ...

    With `rasters` (files, folders or globs) nothing is rendered: photos looking straight down are
    cut out of these, see `ciper.data.nadir_pairs`.
    """

    num_cities: int = 40
    validation_cities: int = 0
    first_seed: int = 100_000
    first_validation_seed: int = 190_000
    city_m: float = 600.0
    photos_per_city: int = 640
    aerials_per_city: int = 2
    gsd: float = 0.5
    footprints: tuple[str, ...] = ()
    num_plans: int = 0
    first_plan_seed: int = 150_000
    rasters: tuple[str, ...] | str = ()
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.num_plans and not self.footprints:
            raise ConfigError(
                f"data.num_plans is {self.num_plans}, but there is no map to take plans from; "
                "expected some: set data.footprints"
            )

    @property
    def training_seeds(self) -> range:
        """Seeds of the procedural cities to train on."""
        return range(self.first_seed, self.first_seed + self.num_cities)

    @property
    def plan_seeds(self) -> range:
        """Seeds of the cities to train on that have real plans."""
        return range(self.first_plan_seed, self.first_plan_seed + self.num_plans)

    def plan_of(self, seed: int) -> Path | None:
        """The map that a city's plan is of; None for procedural cities."""
        if seed not in self.plan_seeds:
            return None
        return Path(self.footprints[(seed - self.first_plan_seed) % len(self.footprints)])

    @property
    def validation_seeds(self) -> range:
        """Seeds of the cities to validate on."""
        first = self.first_validation_seed
        return range(first, first + self.validation_cities)


@dataclass(frozen=True)
class RenderedCity:
    """One city on disk, memory-mapped.

    `aerials (A, H, W, 3)` uint8, row 0 = north; `canvases (N, 128, 512, 3)` uint8;
    `poses (N, 4)`: x_m, y_m from the city's south-west corner, heading_deg, camera height_m.
    """

    aerials: NDArray[np.uint8]
    canvases: NDArray[np.uint8]
    poses: NDArray[np.float64]


def find_city(seed: int, config: SyntheticConfig, folder: Path) -> Path | None:
    """The folder of a city that has been rendered already; None if it has not.

    Raises:
        ConfigError: what is there was rendered by another recipe.
    """
    target = folder / str(seed)
    if not (target / "recipe.json").exists():
        return None
    if (target / "recipe.json").read_text() == _recipe(seed, config):
        return target
    raise ConfigError(
        f"{target} holds a city of another recipe; expected {_recipe(seed, config)}; "
        "name another cache folder or delete this one"
    )


def _recipe(seed: int, config: SyntheticConfig) -> str:
    """All that a rendered city depends on, as JSON."""
    from ciper.city.parts import CITY_VERSION

    names = ("city_m", "photos_per_city", "aerials_per_city", "gsd")
    wanted = {"first_seed": seed, **{name: getattr(config, name) for name in names}}
    plan = config.plan_of(seed)
    if plan is not None:
        wanted["plan"] = hashlib.sha256(_content(plan)).hexdigest()
    return json.dumps({**wanted, "city_version": CITY_VERSION})


def _content(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"data.footprints names {plan}, which cannot be read ({error.strerror}); expected a "
            "map: check the path"
        ) from error


def render_city(seed: int, config: SyntheticConfig, folder: Path) -> Path:
    """Renders one city into `folder/<seed>` unless it is there already; returns that folder."""
    from ciper.city.layout import at_other_date, make_city
    from ciper.city.render import Scene, degrade, random_light, render_aerial, render_panoramas

    found = find_city(seed, config, folder)
    if found is not None:
        return found
    target = folder / str(seed)
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 1])
    plan = config.plan_of(seed)
    city = make_city(seed, config.city_m) if plan is None else _of_plan(plan, seed, config.city_m)
    scene = Scene.from_city(city)
    aerials = [
        degrade(render_aerial(scene, random_light(rng), gsd=config.gsd), rng)
        for _ in range(config.aerials_per_city)
    ]
    np.save(target / "aerials.npy", np.stack(aerials))
    later = at_other_date(city, seed)
    poses = random_poses(later.camera_sites, config.photos_per_city, rng)
    lights = [random_light(rng) for _ in poses]
    # Photos reach the canvas more or less anti-aliased: every second city is, fully.
    canvases = render_panoramas(
        Scene.from_city(later), poses, lights, seed=seed, num_samples=1 + seed % 2
    )
    np.save(target / "canvases.npy", np.stack([degrade(c, rng) for c in canvases]))
    np.save(target / "poses.npy", poses)
    (target / "recipe.json").write_text(_recipe(seed, config))
    return target


def _of_plan(plan: Path, seed: int, size_m: float) -> City:
    # Only here, for it takes the libraries that read maps.
    from ciper.city.real_plan import plan_city

    return plan_city(plan, seed, size_m).city


def random_poses(
    sites: NDArray[np.float64], num_poses: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`(num_poses, 4)` x, y, heading, camera height at random sites; headings are free."""
    chosen = sites[rng.choice(len(sites), num_poses, replace=len(sites) < num_poses)]
    return np.column_stack(
        [
            chosen[:, :2],
            rng.uniform(0, 360, num_poses),
            rng.uniform(*CAMERA_HEIGHT_M, num_poses),
        ]
    )


def open_city(folder: Path) -> RenderedCity:
    """Opens a rendered city without reading it."""
    return RenderedCity(
        aerials=np.load(folder / "aerials.npy", mmap_mode="r"),
        canvases=np.load(folder / "canvases.npy", mmap_mode="r"),
        poses=np.load(folder / "poses.npy"),
    )


def cut_chip(
    aerial: NDArray[np.uint8], x_m: float, y_m: float, gsd: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]]:
    """The chip about the pixel corner next to a point of the imagery; 0 beyond it.

    Args:
        aerial: `(H, W, 3)`, row 0 = north.
        x_m: east of the imagery's south-west corner.
        y_m: north of it.
        gsd: of the imagery.

    Returns:
        Chip, where it is valid, and its centre in metres.
    """
    height, width = aerial.shape[:2]
    left, top = round(x_m / gsd) - CHIP_PX // 2, round(height - y_m / gsd) - CHIP_PX // 2
    rows, columns = np.arange(top, top + CHIP_PX), np.arange(left, left + CHIP_PX)
    is_valid = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
    chip = np.zeros((CHIP_PX, CHIP_PX, 3), np.uint8)
    inside = aerial[max(top, 0) : max(top + CHIP_PX, 0), max(left, 0) : max(left + CHIP_PX, 0)]
    down, across = max(-top, 0), max(-left, 0)
    chip[down : down + inside.shape[0], across : across + inside.shape[1]] = inside
    centre = ((left + CHIP_PX / 2) * gsd, (height - top - CHIP_PX / 2) * gsd)
    return chip, is_valid, centre


class SyntheticPairs(RandomPairs):
    """Random training pairs out of rendered cities.

    Args:
        cities: rendered cities.
        config: their recipe.
        drawing: how pairs are drawn.
    """

    def __init__(
        self, cities: Sequence[RenderedCity], config: SyntheticConfig, drawing: Drawing
    ) -> None:
        self.cities, self.config = cities, config
        num_photos = sum(len(city.poses) for city in cities)
        if num_photos == 0:
            setting = "photos_per_city" if cities else "num_cities"
            raise ConfigError(
                f"there is no photo in {len(cities)} cities; expected some: set data.{setting}"
            )
        self.photos = np.array([(c, i) for c, r in enumerate(cities) for i in range(len(r.poses))])
        position_m = np.concatenate([city.poses[:, :2] for city in cities])
        super().__init__(self.photos[:, 0], position_m, drawing, config.augment.narrow_share)

    @property
    def reach_m(self) -> float:
        """How far the camera lies from a chip's centre at most, east and north: a central half."""
        return CHIP_PX * self.config.gsd / 4

    def _item(self, photo: int, rng: np.random.Generator, narrow_share: float) -> tuple[Any, ...]:
        city, photo = self.photos[photo]
        rendered, augment = self.cities[city], self.config.augment
        x_m, y_m, heading_deg, _ = rendered.poses[photo]
        aerial = rendered.aerials[rng.integers(len(rendered.aerials))]
        chip, is_valid, offset, centre = self._chip(aerial, x_m, y_m, rng)
        roll = int(rng.integers(512))
        canvas = roll_canvas(rendered.canvases[photo], roll)
        pose = np.array([*offset, (heading_deg + roll * 360 / 512) % 360])
        if rng.random() < 0.5:
            chip, is_valid, canvas = chip[:, ::-1], is_valid[:, ::-1], canvas[:, ::-1]
            pose = mirror_pose(pose)
        turns = int(rng.integers(4))
        chip, is_valid, pose = (
            np.rot90(chip, turns),
            np.rot90(is_valid, turns),
            turn_pose(pose, turns),
        )
        is_visible = np.ones(canvas.shape[:2], dtype=bool)
        if rng.random() < narrow_share:
            is_visible = pinhole_mask(
                *canvas.shape[:2],
                hfov_deg=rng.uniform(*augment.hfov_deg),
                aspect=rng.choice([4 / 3, 3 / 2, 16 / 9]),
                pitch_deg=rng.uniform(-augment.pitch_deg, augment.pitch_deg),
            )
            # A hand-held photo's pitch is known to a degree or two: a row is 0.7 deg.
            canvas = np.roll(canvas, rng.integers(-2, 3), axis=0)
        return (
            change_colour(np.ascontiguousarray(canvas), rng, augment) * is_visible[..., None],
            is_visible,
            change_colour(np.ascontiguousarray(chip), rng, augment),
            np.ascontiguousarray(is_valid),
            pose.astype(np.float32),
            np.int64(city),
            np.asarray(centre, dtype=np.float32),
            np.asarray([x_m, y_m], dtype=np.float32),
        )

    def _chip(
        self, aerial: NDArray[np.uint8], x_m: float, y_m: float, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float], tuple[float, float]]:
        """Cuts a chip so that the camera lies uniformly within `reach_m` of its centre.

        Returns:
            Chip, validity, the camera from the chip's centre, the chip's centre in the city.
        """
        shift = rng.uniform(-self.reach_m, self.reach_m, 2)
        gsd = self.config.gsd
        chip, is_valid, centre = cut_chip(aerial, x_m + shift[0], y_m + shift[1], gsd)
        return chip, is_valid, (x_m - centre[0], y_m - centre[1]), centre
