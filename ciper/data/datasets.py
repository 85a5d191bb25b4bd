"""The data sets of the field by name: `vigor:ROOT`, `kitti:ROOT`, `ford:ROOT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ciper.data.protocol import Protocol
from ciper.errors import ConfigError, DatasetError

Dataset = Literal["vigor", "kitti", "ford"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
Labels = Literal["corrected", "original"]
Reading = Literal["highlyaccurate", "ciper"]
Part = Literal["train", "test"]

SPLITS: dict[Dataset, tuple[str, ...]] = {
    "vigor": ("same_area", "cross_area"),
    "kitti": ("test1", "test2"),
    "ford": ("log1", "log2", "log3", "log4", "log5", "log6"),
}


@dataclass(frozen=True)
class ProtocolOptions:
    """Which queries of a data set, and how they are shown.

    Attributes:
        split: one of `SPLITS`; None is the first of them.
        part: the queries that are trained on or those that are tested on.
        labels: VIGOR's: SliceMatch's corrected ones or the original ones.
        reading: KITTI's and Ford's: which of the two public readings of their shifts and rotations.
        fov_deg: VIGOR's: the sector of the panoramas that is shown.
        heading_noise_deg: by how much the guess of the heading is wrong at most: VIGOR's default is
            0 (aligned), KITTI's and Ford's 10; 180 tells nothing.
        seed: of everything that the data set does not publish, per photo.
    """

    split: str | None = None
    part: Part = "test"
    labels: Labels = "corrected"
    reading: Reading = "highlyaccurate"
    fov_deg: float = 360.0
    heading_noise_deg: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed} is negative; expected 0 or more")
        if not 10.0 <= self.fov_deg <= 360.0:
            raise ConfigError(f"--fov {self.fov_deg:g}; expected 10 to 360 degrees")
        if self.heading_noise_deg is not None and not 0.0 <= self.heading_noise_deg <= 180.0:
            raise ConfigError(
                f"--heading-noise {self.heading_noise_deg:g}; expected 0 to 180 degrees"
            )


def parse_spec(spec: str) -> tuple[Dataset, Path] | None:
    """The data set and its folder that `NAME:ROOT` names; None if it names none.

    Raises:
        ConfigError: ROOT is missing.
    """
    name, colon, root = spec.partition(":")
    for dataset in DATASETS:
        if colon and name.lower() == dataset:
            if not root:
                raise ConfigError(f"{spec!r} names no folder; expected {dataset}:ROOT")
            return dataset, Path(root)
    return None


def read_protocol(spec: str, options: ProtocolOptions | None = None) -> Protocol:
    """The queries and the gallery of a data set; no image is opened.

    Raises:
        ConfigError: no such data set, split or choice.
        DatasetError: a folder or label file is not as published; the message names the line.
    """
    parsed, options = parse_spec(spec), options or ProtocolOptions()
    if parsed is None:
        raise ConfigError(f"{spec!r} names no data set; expected {', '.join(DATASETS)} with :ROOT")
    dataset, root = parsed
    split = options.split or SPLITS[dataset][0]
    if split not in SPLITS[dataset]:
        raise ConfigError(
            f"--split {split}: {dataset} has none such; expected {', '.join(SPLITS[dataset])}"
        )
    _check_choices(dataset, options)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder; expected the folder that holds {dataset}")
    return _READERS[dataset](root, split, options)


def _check_choices(dataset: Dataset, options: ProtocolOptions) -> None:
    """Refuses what would be ignored."""
    usual = ProtocolOptions()
    own = ("reading",) if dataset == "vigor" else ("labels", "fov_deg")
    for name in own:
        value = getattr(options, name)
        if value != getattr(usual, name):
            option = {"reading": "--protocol", "labels": "--labels", "fov_deg": "--fov"}[name]
            raise ConfigError(f"{option} {value}: {dataset} has no such choice; leave it out")


def _vigor(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    from ciper.data.vigor import read_vigor

    return read_vigor(root, split, options)


def _kitti(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    from ciper.data.kitti import read_kitti

    return read_kitti(root, split, options)


def _ford(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    from ciper.data.ford import read_ford

    return read_ford(root, split, options)


_READERS = {"vigor": _vigor, "kitti": _kitti, "ford": _ford}
