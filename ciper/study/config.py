"""How large the study is: its cities, its trunk, its numbers of pairs and seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

from ciper.data.synthetic import SyntheticConfig
from ciper.errors import ConfigError
from ciper.model.encoder import EncoderConfig

Part = Literal["a", "b", "c", "d", "e", "f"]
PARTS: tuple[Part, ...] = ("a", "b", "c", "d", "e", "f")

# Every decoder has this trunk: about a quarter of the shipped one's arithmetic.
TRUNK = EncoderConfig(width=96, depth=3, num_heads=2, mlp_ratio=2, stem_channels=(24, 48))


@dataclass(frozen=True)
class Condition:
    """What is wrong with the imagery or the photos of an evaluation.

    Attributes:
        name: in tables.
        dates_apart: how many times the city has changed between imagery and photos.
        aerial_hidden: share of the imagery under discs of cloud.
        photo_hidden: share of every photo's columns behind something grey.
    """

    name: str
    dates_apart: int = 1
    aerial_hidden: float = 0.0
    photo_hidden: float = 0.0


@dataclass(frozen=True)
class GridConfig:
    """The evaluations of one model on simulated cities (parts d and e).

    `heading_priors_deg` are half widths about a guess: 0 is a known heading, 180 an unknown one.
    A photo of 360 degrees is a panorama; up to 120 degrees it is a level 4:3 pinhole photo, between
    them a sector of the panorama. All are cut out of the same panoramas.
    """

    first_seed: int = 9101
    num_cities: int = 3
    size_m: float = 1000.0
    num_photos: int = 60
    gsd: float = 0.5
    hfovs_deg: tuple[int, ...] = (360, 180, 108, 90, 70)
    heading_priors_deg: tuple[int, ...] = (0, 20, 45, 180)
    conditions: tuple[Condition, ...] = (
        Condition("same date", dates_apart=0),
        Condition("three dates apart", dates_apart=3),
        Condition("a quarter of the imagery hidden", aerial_hidden=0.25),
        Condition("half of the imagery hidden", aerial_hidden=0.5),
        Condition("a quarter of the photo hidden", photo_hidden=0.25),
        Condition("half of the photo hidden", photo_hidden=0.5),
    )


@dataclass(frozen=True)
class StudyConfig:
    """The whole study.

    Attributes:
        name: of its size.
        train, validation, test: cities; their seeds do not meet.
        trunk: of every network.
        num_pairs, num_seeds: of a training, and how often it is repeated.
        curve_pairs, num_checks: of the one long training per decoder, and how often it is measured.
        lr_pairs, lrs: of the short trainings that choose the learning rate.
        batch_size: pairs per step.
        num_shortlist: chips that retrieval hands to the pose decoder in a cascade.
        num_matched: test photos whose pose evidence is compared over all chips.
        grid: of parts d and e.
    """

    name: str = "default"
    train: SyntheticConfig = field(
        default_factory=lambda: SyntheticConfig(num_cities=48, photos_per_city=700)
    )
    validation: SyntheticConfig = field(
        default_factory=lambda: SyntheticConfig(
            num_cities=2, first_seed=210_001, photos_per_city=128, aerials_per_city=1
        )
    )
    test: SyntheticConfig = field(
        default_factory=lambda: SyntheticConfig(
            num_cities=3, first_seed=310_001, photos_per_city=200, aerials_per_city=1
        )
    )
    trunk: EncoderConfig = TRUNK
    num_pairs: int = 30_000
    num_seeds: int = 3
    curve_pairs: int = 100_000
    num_checks: int = 10
    lr_pairs: int = 10_000
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    batch_size: int = 32
    num_shortlist: int = 10
    num_matched: int = 48
    grid: GridConfig = field(default_factory=GridConfig)

    def __post_init__(self) -> None:
        if min(self.num_pairs // 2, self.lr_pairs, self.curve_pairs) < self.batch_size:
            raise ConfigError(
                f"--pairs {self.num_pairs} make no training of batches of {self.batch_size}; "
                f"expected at least {2 * self.batch_size}"
            )
        if self.num_seeds < 1:
            raise ConfigError(f"{self.num_seeds} seeds; expected at least one: set --seeds")
        self._check_cities()

    def _check_cities(self) -> None:
        """Refuses to measure on cities that are trained or chosen on."""
        cities: dict[str, tuple[int, int]] = {
            name: (data.first_seed, data.num_cities)
            for name, data in (
                ("train", self.train),
                ("validation", self.validation),
                ("test", self.test),
                ("grid", self.grid),
            )
        }
        for (one, (first, num)), (other, (second, count)) in combinations(cities.items(), 2):
            if first < second + count and second < first + num:
                raise ConfigError(
                    f"cities {first} to {first + num - 1} ({one}) and {second} to "
                    f"{second + count - 1} ({other}) meet; expected different ones: set first_seed "
                    "of one of them"
                )


def default_study() -> StudyConfig:
    """A night of a few CPU cores."""
    return StudyConfig()


def gpu_study() -> StudyConfig:
    """Ten times the pairs, for a GPU."""
    return replace(
        StudyConfig(),
        name="gpu",
        num_pairs=300_000,
        curve_pairs=1_000_000,
        lr_pairs=100_000,
        batch_size=128,
    )


def quick_study() -> StudyConfig:
    """Proves that the commands run; its figures mean nothing."""
    small = SyntheticConfig(city_m=240.0, photos_per_city=48, aerials_per_city=1)
    return StudyConfig(
        name="quick",
        train=replace(small, num_cities=4, photos_per_city=128),
        validation=replace(small, num_cities=1, first_seed=210_001),
        test=replace(small, num_cities=2, first_seed=310_001),
        num_pairs=256,
        num_seeds=2,
        curve_pairs=512,
        num_checks=4,
        lr_pairs=64,
        batch_size=16,
        num_matched=8,
        grid=GridConfig(num_cities=1, size_m=320.0, num_photos=8),
    )
