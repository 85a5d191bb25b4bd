"""VIGOR: panoramas of four cities, and the chips of a grid that covers each of them.

A line of a label file names a panorama and four chips that show its place, each with two offsets
(d0, d1) in pixels: the camera stands at row 320 + d0, column 320 - d1 of the chip, so east is
-d1 gsd and north is -d0 gsd. The first chip is the positive, the others are semi-positives, whose
offsets may lie outside the chip. The names of the files hold their latitudes and longitudes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ciper.camera import CameraOverrides
from ciper.data.datasets import Labels, Part, ProtocolOptions
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.errors import DatasetError
from ciper.geo import FloatArray, wrap_deg
from ciper.geodesic import offset_m

SIDE_PX = 640
# A chip farther from its panorama is another city's: a chip's half diagonal is below 54 m.
FAR_M = 5000.0
# Said to lie in the central half of their chip, cameras reach 183 of 320 px from its centre.
TOLD_SHARE = 0.3


@dataclass(frozen=True)
class City:
    """What is published of a city: the gsd of its chips, and the lines of its files.

    The same-area files have `num_train` and `num_test`, the cross-area one has the lines of both.
    """

    gsd: float
    num_chips: int
    num_train: int
    num_test: int


# San Francisco's label counts are what the others leave of 105,214 panoramas and 52,605 queries.
CITIES: Mapping[str, City] = {
    "NewYork": City(gsd=0.113248, num_chips=23279, num_train=13885, num_test=13884),
    "Seattle": City(gsd=0.100817, num_chips=20776, num_train=11876, num_test=11875),
    "SanFrancisco": City(gsd=0.118141, num_chips=24255, num_train=14108, num_test=14107),
    "Chicago": City(gsd=0.111262, num_chips=22308, num_train=12740, num_test=12739),
}
SPLIT_CITIES: Mapping[tuple[str, Part], tuple[str, ...]] = {
    ("same_area", "train"): tuple(CITIES),
    ("same_area", "test"): tuple(CITIES),
    ("cross_area", "train"): ("NewYork", "Seattle"),
    ("cross_area", "test"): ("SanFrancisco", "Chicago"),
}

_SUFFIXES: Mapping[Labels, str] = {"corrected": "__corrected", "original": ""}
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_PANORAMA = re.compile(rf"[^,/\\\s]+,{_NUMBER},{_NUMBER},\.jpg")
_CHIP = re.compile(rf"satellite_{_NUMBER}_{_NUMBER}\.png")
_OFFSETS = itemgetter(2, 3, 5, 6, 8, 9, 11, 12)
_NUM_WORDS = 13
_CAMERA = CameraOverrides(projection="equirectangular", hfov_deg=360.0)


@dataclass(frozen=True, eq=False)
class ChipList:
    """A city's satellite_list.txt: an image per line, and in which row of `images` a name is.

    `positions` are the (R, 2) latitudes and longitudes of the images' centres.
    """

    path: Path
    city: str
    images: tuple[AerialImage, ...]
    positions: FloatArray
    index: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class LabelRows:
    """A label file in columns: (Q,) names, (Q, 4) rows of the chip list, (Q, 4, 2) d0 and d1."""

    panoramas: tuple[str, ...]
    chips: NDArray[np.int64]
    offsets_px: FloatArray


@dataclass(frozen=True)
class GsdFit:
    """The metres per pixel that the names tell by least squares, and the distances left by it."""

    gsd: float
    rms_m: float
    max_m: float
    num_panoramas: int


def read_vigor(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    """The queries of a split and all chips of its cities; no image is opened.

    What is shown of a panorama is turned by up to the heading noise, a function of the seed and the
    sample's name alone; the middle column of its file looks north. Cities that `root` does not have
    are left out, and a note says so.

    Args:
        root: the folder that holds the cities, and `splits__corrected` or `splits`.
        split: same_area or cross_area.
        options: the part, the labels, what is shown and the seed.

    Raises:
        DatasetError: a folder or a line of a file is not as published, or no city is there.
    """
    present, notes = _present_cities(root, split, options)
    references: list[AerialImage] = []
    samples: list[Sample] = []
    chosen = [np.empty((0, 4), np.int64)]
    for city in present:
        chips = read_chip_list(root, city, options.labels)
        path = label_path(root, city, split, options)
        if path.is_file():
            rows = read_labels(path, chips)
            samples += _samples(root / city / "panorama", rows, chips, options)
            chosen.append(rows.chips + len(references))
            is_outside = (np.abs(rows.offsets_px[:, 0]) > TOLD_SHARE * SIDE_PX).any(axis=1)
            if num_outside := int(is_outside.sum()):
                notes.append(
                    f"{num_outside} of {is_outside.size} cameras of {city} stand outside the "
                    f"central {2 * TOLD_SHARE:.0%} of their chip, farther than is told"
                )
        else:
            notes.append(f"{city} has no {path.name}: its queries are left out")
        references += chips.images
    rows_of_four = np.concatenate(chosen)
    counts, published = (len(samples), len(references)), published_counts(split, options.part)
    if counts != published:
        notes.append(
            f"{counts[0]} queries and {counts[1]} references instead of the published "
            f"{published[0]} and {published[1]}: figures are not those of the published split"
        )
    return Protocol(
        dataset="vigor",
        settings=_settings(split, options, present),
        samples=tuple(samples),
        references=tuple(references),
        true=rows_of_four[:, 0].copy(),
        semi_positives=tuple(rows_of_four[:, 1:]),
        notes=tuple(notes),
    )


def label_path(root: Path, city: str, split: str, options: ProtocolOptions) -> Path:
    """The file that holds a city's labels of a split."""
    stem = "pano_label_balanced" if split == "cross_area" else f"same_area_balanced_{options.part}"
    return _label_folder(root, options.labels) / city / f"{stem}{_SUFFIXES[options.labels]}.txt"


def published_counts(split: str, part: Part) -> tuple[int, int]:
    """How many panoramas and how many chips a part of a split has, as published."""
    cities = [CITIES[name] for name in SPLIT_CITIES[split, part]]
    has_train, has_test = (split == "cross_area" or part == each for each in ("train", "test"))
    num_panoramas = sum(has_train * city.num_train + has_test * city.num_test for city in cities)
    return num_panoramas, sum(city.num_chips for city in cities)


def _label_folder(root: Path, labels: Labels) -> Path:
    return root / f"splits{_SUFFIXES[labels]}"


def _present_cities(
    root: Path, split: str, options: ProtocolOptions
) -> tuple[list[str], list[str]]:
    """The cities that can be read, in the published order, and notes; bare labels are read too."""
    wanted = SPLIT_CITIES[split, options.part]
    labelled = [name for name in wanted if (_label_folder(root, options.labels) / name).is_dir()]
    pictured = [name for name in wanted if (root / name).is_dir()]
    present = [name for name in labelled if name in pictured or not pictured]
    paths = [label_path(root, name, split, options) for name in wanted]
    if not any(path.is_file() and path.parent.name in present for path in paths):
        other: Labels = "original" if options.labels == "corrected" else "corrected"
        hint = f"use --labels {other}, or " if _label_folder(root, other).is_dir() else ""
        raise DatasetError(
            f"{root} has labels with images of none of {', '.join(wanted)}; expected "
            f"{paths[0].relative_to(root)} and {wanted[0]}/panorama, or another city's: {hint}"
            "name the folder that holds them"
        )
    for folder in [root / name / kind for name in present for kind in ("panorama", "satellite")]:
        if pictured and not folder.is_dir():
            raise DatasetError(f"{folder} is no folder; expected a city's images: unpack them all")
    notes = [f"{root} holds labels and no images"] if not pictured else []
    absent = [name for name in wanted if name not in present]
    return present, notes + [f"{name} is not all in {root}: it is left out" for name in absent]


def _settings(split: str, options: ProtocolOptions, cities: Sequence[str]) -> dict[str, str]:
    return {
        "split": split,
        "part": options.part,
        "labels": options.labels,
        "cities": ", ".join(cities),
        "fov_deg": f"{options.fov_deg:g}",
        "heading_noise_deg": f"{options.heading_noise_deg or 0.0:g}",
        "seed": str(options.seed),
    }


def _samples(
    folder: Path, rows: LabelRows, chips: ChipList, options: ProtocolOptions
) -> list[Sample]:
    """One per row; those of a city share their cut and what is told."""
    gsd, noise_deg = CITIES[chips.city].gsd, options.heading_noise_deg or 0.0
    side_m = SIDE_PX * gsd
    cut = Cut(x_m=0.0, y_m=0.0, up_deg=0.0, side_m=side_m)
    told = Told(heading_deg=0.0, heading_within_deg=noise_deg, within_m=TOLD_SHARE * side_m)
    names = [f"{chips.city}/{panorama}" for panorama in rows.panoramas]
    turns_deg = noise_deg * np.array([_signed_unit(options.seed, name) for name in names])
    headings_deg = wrap_deg(turns_deg).tolist()
    # Less the offset and not its negative, which is -0.0 where it is zero.
    north_and_east_m = (0.0 - gsd * rows.offsets_px[:, 0]).tolist()
    return [
        Sample(
            name=name,
            photo=folder / rows.panoramas[row],
            camera=_CAMERA,
            x_m=north_and_east_m[row][1],
            y_m=north_and_east_m[row][0],
            heading_deg=headings_deg[row],
            image=chips.images[rows.chips[row, 0]],
            cut=cut,
            told=told,
            turn_deg=float(turns_deg[row]),
            fov_deg=options.fov_deg,
        )
        for row, name in enumerate(names)
    ]


def _signed_unit(seed: int, name: str) -> float:
    """A number in [-1, 1), uniform over names, the same on every machine and in every subset."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**52 - 1.0


def read_chip_list(root: Path, city: str, labels: Labels = "corrected") -> ChipList:
    """The chips of a city, in the order of its satellite_list.txt.

    Raises:
        DatasetError: the file is missing, or a line names no chip or one that was named before.
    """
    path = _label_folder(root, labels) / city / "satellite_list.txt"
    names = [line.strip() for line in _lines(path)]
    positions = _positions(names, _CHIP, path, "satellite_LAT_LON.png")
    folder, gsd = root / city / "satellite", CITIES[city].gsd
    images = tuple(
        AerialImage(path=folder / name, lat=lat, lon=lon, gsd=gsd, side_px=SIDE_PX)
        for name, (lat, lon) in zip(names, positions.tolist(), strict=True)
    )
    return ChipList(path, city, images, positions, {name: row for row, name in enumerate(names)})


def read_labels(path: Path, chips: ChipList) -> LabelRows:
    """The lines of a label file of the chips' city.

    Raises:
        DatasetError: a line is short or long, an offset is no number, a panorama is named twice or
            lies far from its chips, or a chip is not in the list.
    """
    rows = [line.split() for line in _lines(path)]
    for row, words in enumerate(rows):
        if len(words) != _NUM_WORDS:
            what = f"has {len(words)} words; expected a panorama and 4 times a chip and 2 offsets"
            raise _fault(path, row, f"{what}: fetch the file again")
    panoramas = tuple(words[0] for words in rows)
    positions = _positions(panoramas, _PANORAMA, path, "ID,LAT,LON,.jpg")
    labels = LabelRows(panoramas, _chips(rows, path, chips), _offsets(rows, path))
    _check_near(labels, positions, path, chips)
    return labels


def _fault(path: Path, row: int, what: str) -> DatasetError:
    return DatasetError(f"{path} line {row + 1} {what}")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {path} ({error}); fetch it again") from error
    if not text:
        raise DatasetError(f"{path} is empty; expected one line per image: fetch it again")
    return text.split("\n")


def _positions(
    names: Sequence[str], pattern: re.Pattern[str], path: Path, expected: str
) -> FloatArray:
    """(N, 2) latitudes and longitudes in names, of which no two differ by case alone."""
    matches = [pattern.fullmatch(name) for name in names]
    first_rows: dict[str, int] = {}
    for row, (name, match) in enumerate(zip(names, matches, strict=True)):
        if match is None:
            raise _fault(path, row, f"names {name!r}; expected {expected}: mend the line")
        # Some file systems hold only one of two names that differ by case.
        first = first_rows.setdefault(name.casefold(), row)
        if first != row:
            what = (
                f"names {name!r} and line {first + 1} {names[first]!r}; expected every image once"
            )
            raise _fault(path, row, f"{what}, whatever the case of its letters: drop one line")
    groups = (match.groups() for match in matches if match)
    positions = np.fromiter(map(float, chain.from_iterable(groups)), np.float64).reshape(-1, 2)
    for row in np.flatnonzero((np.abs(positions) > (90.0, 180.0)).any(axis=1)).tolist():
        raise _fault(path, row, f"names {names[row]!r}, which is nowhere on Earth: mend the line")
    return positions


def _chips(rows: Sequence[list[str]], path: Path, chips: ChipList) -> NDArray[np.int64]:
    """(Q, 4) rows of the named chips in the list."""
    found = np.array([[chips.index.get(name, -1) for name in words[1::3]] for words in rows])
    for row, column in np.argwhere(found < 0).tolist():
        what = f"names chip {rows[row][1 + 3 * column]!r}; expected one as {chips.path} writes it"
        raise _fault(path, row, f"{what}: fetch both files again")
    ordered = np.sort(found, axis=1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).tolist():
        raise _fault(path, row, "names a chip twice; expected four different ones: mend the line")
    return found.astype(np.int64)


def _offsets(rows: Sequence[list[str]], path: Path) -> FloatArray:
    """(Q, 4, 2) pixels."""
    pixels = np.array([[_number(text) for text in _OFFSETS(words)] for words in rows])
    for row, column in np.argwhere(~np.isfinite(pixels)).tolist():
        what = f"has the offset {_OFFSETS(rows[row])[column]!r}; expected pixels, such as -17.0"
        raise _fault(path, row, f"{what}: fetch the file again")
    pixels = pixels.reshape(-1, 4, 2)
    # A positive holds its camera; that of a semi-positive may stand up to a chip's side away.
    limit_px = np.array([[0.5], [1.0], [1.0], [1.0]]) * SIDE_PX
    for row in np.flatnonzero((np.abs(pixels) > limit_px).any(axis=(1, 2))).tolist():
        what = f"puts its camera {np.abs(pixels[row]).max():.0f} px from the centre of a chip"
        raise _fault(path, row, f"{what}; expected at most {SIDE_PX}, {SIDE_PX // 2} of the first")
    return pixels


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _check_near(rows: LabelRows, positions: FloatArray, path: Path, chips: ChipList) -> None:
    """Refuse a panorama that lies far from one of its chips."""
    # Metres on a sphere are exact enough to tell cities apart.
    apart_m = 111_195.0 * (positions[:, None] - chips.positions[rows.chips])
    apart_m[..., 1] *= np.cos(np.deg2rad(positions[:, None, 0]))
    farthest_m = np.linalg.norm(apart_m, axis=-1).max(axis=1)
    for row in np.flatnonzero(farthest_m > FAR_M).tolist():
        what = f"puts {rows.panoramas[row]!r} on a chip {farthest_m[row] / 1000.0:.0f} km away"
        raise _fault(path, row, f"{what}; expected {chips.city} alone: fetch the file again")


def fitted_gsd(protocol: Protocol) -> dict[str, GsdFit]:
    """For each city of a VIGOR protocol the gsd that fits the names to the positives' offsets.

    Raises:
        DatasetError: all panoramas of a city stand at their chip's centre, so that no scale fits.
    """
    by_city: dict[str, list[Sample]] = {}
    for sample in protocol.samples:
        by_city.setdefault(sample.name.partition("/")[0], []).append(sample)
    return {city: _fit(city, samples) for city, samples in by_city.items()}


def _fit(city: str, samples: Sequence[Sample]) -> GsdFit:
    offsets_px = np.array([(each.x_m, each.y_m) for each in samples]) / CITIES[city].gsd
    here = np.array([(each.image.lat, each.image.lon) for each in samples])
    # The panorama's name ends in ",LAT,LON,.jpg".
    there = np.array([each.name.split(",")[-3:-1] for each in samples], np.float64)
    metres = offset_m(lat=here[:, 0], lon=here[:, 1], to_lat=there[:, 0], to_lon=there[:, 1])
    weight = np.sum(offsets_px**2)
    if weight == 0.0:
        what = f"all {len(samples)} panoramas of {city} stand at the centre of their chip"
        raise DatasetError(f"{what}; expected offsets to fit the gsd to: check the labels")
    gsd = float(np.sum(offsets_px * metres) / weight)
    left_m = np.linalg.norm(metres - gsd * offsets_px, axis=1)
    rms_m = float(np.sqrt(np.mean(left_m**2)))
    return GsdFit(gsd=gsd, rms_m=rms_m, max_m=float(left_m.max()), num_panoramas=len(samples))
