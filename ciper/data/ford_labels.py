"""The label files of HighlyAccurate for Ford Multi-AV: which drives, which lines, what they say."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ciper.data.datasets import Part
from ciper.data.ford_rig import read_text
from ciper.errors import DatasetError

FloatArray = NDArray[np.float64]

MAP_RADIUS_M = 6378137.0
MAX_DISTANCE_M = 500.0
LABEL_TOLERANCE = 1e-6

# The days of each log's training and test drive, as in the public code of the protocol.
DAYS: dict[str, dict[Part, str]] = {
    "log1": {"train": "2017-10-26", "test": "2017-08-04"},
    "log2": {"train": "2017-10-26", "test": "2017-08-04"},
    "log3": {"train": "2017-08-04", "test": "2017-08-04"},
    "log4": {"train": "2017-10-26", "test": "2017-08-04"},
    "log5": {"train": "2017-08-04", "test": "2017-10-26"},
    "log6": {"train": "2017-08-04", "test": "2017-10-26"},
}
LOGS = tuple(DAYS)
PUBLISHED_COUNTS: dict[tuple[str, Part], int] = {
    ("log1", "train"): 4000,
    ("log1", "test"): 2100,
    ("log2", "train"): 10350,
    ("log2", "test"): 3727,
}
# Lines of the label file, counted from 0, that are trained on.
_TRAIN_LINES: dict[str, tuple[range, ...]] = {
    "log1": (range(4500, 8500),),
    "log2": (range(3150), range(6000, 9200), range(11000, 15000)),
}
_FILES: dict[Part, str] = {
    "train": "grd_sat_quaternion_latlon.txt",
    "test": "grd_sat_quaternion_latlon_test.txt",
}
_NUM_FIELDS: dict[Part, int] = {"train": 9, "test": 12}


@dataclass(frozen=True)
class Drive:
    """A log's drive on one day.

    Attributes:
        folder: ROOT/<day>/V2/<Log>.
        day: as in the folder's name.
        log: as in the folder's name, such as Log1.
        part: what the drive is for.
    """

    folder: Path
    day: str
    log: str
    part: Part

    @property
    def name(self) -> str:
        """The folder's path below the root, the same on every machine."""
        return f"{self.day}/V2/{self.log}"

    @property
    def split(self) -> str:
        """The log as splits name it."""
        return self.log.lower()

    @property
    def photos(self) -> Path:
        """Folder of the front-left camera's photos."""
        return self.folder / f"{self.day}-V2-{self.log}-FL"

    @property
    def chips(self) -> Path:
        """Folder of the aerial images."""
        return self.folder / "SatelliteMaps_18"

    @property
    def labels(self) -> Path:
        """The label file of the part."""
        return self.folder / _FILES[self.part]


@dataclass(frozen=True, eq=False)
class Labels:
    """Lines of a label file.

    Attributes:
        path: of the file.
        numbers: of the lines, counted from 1.
        photos: file names.
        chips: file names of the aerial images.
        quaternions: (N, 4) w, x, y, z: north-east-down from body.
        positions: (N, 2) latitude and longitude of the bodies.
        centres: (N, 2) latitude and longitude of the aerial images.
        moves: (N, 3) u, v and theta in [-1, 1]; (N, 0) where the file does not publish them.
    """

    path: Path
    numbers: tuple[int, ...]
    photos: tuple[str, ...]
    chips: tuple[str, ...]
    quaternions: FloatArray
    positions: FloatArray
    centres: FloatArray
    moves: FloatArray

    @property
    def offsets_m(self) -> FloatArray:
        """Metres (N, 2) of the bodies, east and north of the centres of their aerial images."""
        (lat, lon), (origin_lat, origin_lon) = self.positions.T, self.centres.T
        return mercator_offset_m(lat=lat, lon=lon, origin_lat=origin_lat, origin_lon=origin_lon)

    def refuse(self, is_bad: ArrayLike, what: Callable[[int], str]) -> None:
        """Raise a DatasetError for the first bad label; `what` describes that of an index."""
        (bad,) = np.nonzero(np.asarray(is_bad))
        if bad.size:
            first = int(bad[0])
            raise DatasetError(f"{self.path} line {self.numbers[first]}: {what(first)}")


def mercator_offset_m(
    *, lat: ArrayLike, lon: ArrayLike, origin_lat: ArrayLike, origin_lon: ArrayLike
) -> FloatArray:
    """Metres (..., 2) east and north of an origin on a spherical Mercator map, true at the origin.

    R cos(lat0) (lon - lon0) and R cos(lat0) (psi(lat) - psi(lat0)), where psi = artanh(sin(lat)) is
    the map's northing. At Michigan's latitude WGS84 metres are 0.15 % more east and 0.22 % fewer
    north.
    """
    lat_rad, origin_rad = np.deg2rad(lat), np.deg2rad(origin_lat)
    east_rad = np.deg2rad(np.asarray(lon, np.float64) - np.asarray(origin_lon, np.float64))
    north_rad = np.arctanh(np.sin(lat_rad)) - np.arctanh(np.sin(origin_rad))
    scale_m = MAP_RADIUS_M * np.cos(origin_rad)
    return np.stack([scale_m * east_rad, scale_m * north_rad], axis=-1)


def find_drive(root: Path, split: str, part: Part) -> Drive:
    """The drive of a log that a part asks for.

    Raises:
        DatasetError: a folder is missing.
    """
    day, log = DAYS[split][part], split.capitalize()
    drive = Drive(root / day / "V2" / log, day, log, part)
    for folder in (root / day, drive.folder, drive.photos, drive.chips):
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is missing; expected {drive.name} with {drive.photos.name} and "
                f"{drive.chips.name} in it: download the {part} drive of {log}"
            )
    return drive


def read_labels(drive: Drive, seed: int) -> tuple[Labels, tuple[str, ...]]:
    """The labels of a drive and what a reader of figures must know of their choice.

    Training labels draw their shifts and rotations from the seed and each photo's name.

    Raises:
        DatasetError: a label cannot be right, or a file that it names is absent.
    """
    lines, notes = _chosen_lines(drive)
    labels = _parse(drive, lines)
    _check_numbers(labels)
    _check_files(drive, labels)
    if drive.part == "train":
        labels = replace(labels, moves=_drawn_moves(drive, labels.photos, seed))
    return labels, notes


# ------------------------------------------------------------------------------------------ lines


def _chosen_lines(drive: Drive) -> tuple[list[tuple[int, str]], tuple[str, ...]]:
    """The (number from 1, text) of the lines that are asked for, and notes on the choice."""
    lines = chosen = list(enumerate(read_text(drive.labels).rstrip().split("\n"), start=1))
    notes = []
    if drive.part == "train" and drive.split in _TRAIN_LINES:
        wanted = [i for lines_of in _TRAIN_LINES[drive.split] for i in lines_of]
        chosen = [lines[i] for i in wanted if i < len(lines)]
        if not chosen:
            chosen = lines
            notes.append(
                f"{drive.labels.name} ends before the published training frames: all are taken"
            )
    elif drive.part == "train":
        chosen = _without_tested(drive, lines)
        notes.append(f"{drive.split}: all {len(chosen)} frames are trained on, unlike in any paper")
    published = PUBLISHED_COUNTS.get((drive.split, drive.part), len(chosen))
    if len(chosen) != published:
        notes.append(
            f"{len(chosen)} frames instead of the published {published}: figures on them are not "
            "those of the published split"
        )
    return chosen, tuple(notes)


def _without_tested(drive: Drive, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines of photos that are not tested on, where a log trains and tests on the same day."""
    if DAYS[drive.split]["test"] != drive.day:
        return lines
    tested = read_text(drive.folder / _FILES["test"]).splitlines()
    names = {_photo_name(line) for line in tested}
    kept = [(number, line) for number, line in lines if _photo_name(line) not in names]
    if not kept:
        raise DatasetError(
            f"{drive.labels} names only photos that {_FILES['test']} tests on; expected others to "
            "train on"
        )
    return kept


def _photo_name(line: str) -> str:
    """The file that a line's first field means, whether it ends in .txt or not."""
    label = line.partition(" ")[0].strip()
    return label.removesuffix(".txt").removesuffix(".png") + ".png"


def _parse(drive: Drive, lines: Sequence[tuple[int, str]]) -> Labels:
    fields = [_fields(drive, number, line) for number, line in lines]
    values = np.array([_values(drive, lines[i][0], row) for i, row in enumerate(fields)])
    return Labels(
        path=drive.labels,
        numbers=tuple(number for number, _ in lines),
        photos=tuple(_photo_name(row[0]) for row in fields),
        # The text of the line names the file: a number would lose zeros at its end.
        chips=tuple(f"{row[7]}_{row[8]}.png" for row in fields),
        quaternions=values[:, :4],
        positions=values[:, 4:6],
        centres=values[:, 6:8],
        moves=values[:, 8:],
    )


def _fields(drive: Drive, number: int, line: str) -> list[str]:
    fields, expected = line.split(), _NUM_FIELDS[drive.part]
    if len(fields) != expected:
        raise DatasetError(
            f"{drive.labels} line {number} has {len(fields)} fields; expected {expected}: is the "
            "file cut short, or of the other part?"
        )
    return fields


def _values(drive: Drive, number: int, fields: list[str]) -> list[float]:
    try:
        return [float(text) for text in fields[1:]]
    except ValueError as error:
        raise DatasetError(
            f"{drive.labels} line {number}: {error}; expected a photo and {len(fields) - 1} numbers"
        ) from error


def _drawn_moves(drive: Drive, photos: Sequence[str], seed: int) -> FloatArray:
    """Shifts and rotations (N, 3) that depend on nothing but the seed and each photo's name."""
    codes = [zlib.crc32(f"{drive.name}/{photo}".encode()) for photo in photos]
    return np.array([np.random.default_rng((seed, code)).uniform(-1.0, 1.0, 3) for code in codes])


# ----------------------------------------------------------------------------------------- checks


def _check_numbers(labels: Labels) -> None:
    values = np.hstack([labels.quaternions, labels.positions, labels.centres, labels.moves])
    labels.refuse(
        ~np.isfinite(values).all(axis=1),
        lambda i: f"{values[i].tolist()}; expected finite numbers: leave the line out",
    )
    norms = np.linalg.norm(labels.quaternions, axis=1)
    labels.refuse(
        np.abs(norms - 1.0) > 0.01,
        lambda i: f"the quaternion's length is {norms[i]:.4g}; expected 1: are fields missing?",
    )
    labels.refuse(
        (np.abs(labels.moves) > 1.0 + LABEL_TOLERANCE).any(axis=1),
        lambda i: f"shift and rotation {labels.moves[i].tolist()}; expected numbers in [-1, 1]",
    )
    places = np.stack([labels.positions, labels.centres], axis=1)
    labels.refuse(
        (np.abs(places) > (85.0, 180.0)).any(axis=(1, 2)),
        lambda i: f"{places[i].tolist()}; expected latitude and longitude: are they swapped?",
    )
    distances_m = np.hypot(*labels.offsets_m.T)
    labels.refuse(
        distances_m > MAX_DISTANCE_M,
        lambda i: (
            f"{labels.chips[i]} lies {distances_m[i]:.0f} m from the position; expected at "
            f"most {MAX_DISTANCE_M:g} m: is it of another place?"
        ),
    )


def _check_files(drive: Drive, labels: Labels) -> None:
    _check_present(labels, labels.photos, drive.photos)
    _check_present(labels, labels.chips, drive.chips)
    first: dict[str, int] = {}
    for number, photo in zip(labels.numbers, labels.photos, strict=True):
        if first.setdefault(photo, number) != number:
            raise DatasetError(
                f"{labels.path} line {number}: {photo} is on line {first[photo]} already; expected "
                "every photo once: leave one of the lines out"
            )


def _check_present(labels: Labels, names: Sequence[str], folder: Path) -> None:
    # One listing instead of a question per file; it also tells upper from lower case everywhere.
    present = {path.name for path in folder.iterdir()}
    labels.refuse(
        [name not in present for name in names],
        lambda i: f"{names[i]} is not in {folder}; expected the file: is the download complete?",
    )
