"""A simulated VIGOR: two of its four cities, with panoramas, chips and both kinds of labels.

On a chip the camera stands at row 320 + d0 and column 320 - d1. Aerial chips lie on a grid of half
their side, so that every camera is in the central half of the nearest one, its positive; the other
chips of the two nearest rows and columns are semi-positives, which may end before the camera.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciper.camera import Camera
from ciper.data.poses import PhotoPose
from ciper.data.protocol import AerialImage
from ciper.geo import LocalFrame
from ciper.layouts.town import Town, build_town, camera_places, photo_rng, write_lines
from ciper.simulate import CAMERA_HEIGHT_M, PANORAMA_PX, Progress, Shot, SimulateConfig

# A middle on land, and the published metres per pixel of chips of 640 px.
CITIES = {
    "Chicago": (LocalFrame(lat=41.8800, lon=-87.6500), 0.111262),
    "Seattle": (LocalFrame(lat=47.6100, lon=-122.3250), 0.100817),
}
SIDE_PX = 640
_RENDER_GSD = 0.15
# Chips of a grid in degrees lie up to a centimetre off one in metres; this keeps them in the city.
_INSET_M = 0.5
# With six decimals, as in VIGOR's own names, a position is good to 6 cm only.
_DECIMALS = 8


@dataclass(frozen=True)
class _Place:
    """A city of the data set while it is written.

    Attributes:
        name: of its folder.
        town: the city.
        lines_m: metres from its southern or western edge of the rows and columns of chips.
        chips: by row and column.
    """

    name: str
    town: Town
    lines_m: list[float]
    chips: dict[tuple[int, int], AerialImage]


@dataclass(frozen=True)
class _Label:
    """A panorama's name and its chips, nearest first, each with the camera (d0, d1) in pixels."""

    panorama: str
    offsets: tuple[tuple[str, float, float], ...]

    def line(self, *, is_whole: bool) -> str:
        """As in the label files: whole pixels carry one decimal there."""
        decimals = 1 if is_whole else 6
        words = [self.panorama]
        for chip, *pixels in self.offsets:
            kept = [float(round(px)) if is_whole else px for px in pixels]
            words += [chip, *(f"{px:.{decimals}f}" for px in kept)]
        return " ".join(words)


def write_vigor(folder: Path, config: SimulateConfig, tell: Progress) -> tuple[PhotoPose, ...]:
    """Write the layout; photo i belongs to city i modulo 2."""
    poses: list[PhotoPose] = []
    for index, name in enumerate(CITIES):
        which = range(index, config.num_photos, len(CITIES))
        tell("building cities", index, len(CITIES))
        place = _build(folder, name, config.seed + index, config.size_m)
        labels = []
        sites = camera_places(place.town, len(which), config.seed)
        for i, (x, y) in zip(which, sites, strict=True):
            pose, label = _photograph(folder, place, (float(x), float(y)), i, config.seed)
            poses.append(pose)
            labels.append(label)
            tell("taking photos", len(poses), config.num_photos)
        _write_labels(folder, place, labels, is_whole=config.has_whole_offsets)
    return tuple(poses)


# ------------------------------------------------------------------------------------------ chips


def _build(folder: Path, name: str, seed: int, size_m: float) -> _Place:
    frame, gsd = CITIES[name]
    town = build_town(frame, seed, size_m, gsd=_RENDER_GSD)
    satellite = folder / name / "satellite"
    satellite.mkdir(parents=True)
    (folder / name / "panorama").mkdir()
    lines_m = _grid_lines_m(size_m, SIDE_PX * gsd)
    chips = {}
    for row, y in enumerate(lines_m):
        for column, x in enumerate(lines_m):
            # One latitude per row and one longitude per column, as the real names have.
            lat, _ = town.geographic(size_m / 2.0, y)
            _, lon = town.geographic(x, size_m / 2.0)
            chip = AerialImage(satellite / f"satellite_{lat!r}_{lon!r}.png", lat, lon, gsd, SIDE_PX)
            town.save_aerial(chip)
            chips[row, column] = chip
    return _Place(name, town, lines_m, chips)


def _grid_lines_m(size_m: float, side_m: float) -> list[float]:
    """Middles of chips along one axis: at most half a side apart, from edge to edge."""
    first, last = side_m / 2.0 + _INSET_M, size_m - side_m / 2.0 - _INSET_M
    num = math.ceil((last - first) / (side_m / 2.0)) + 1
    return [float(line) for line in np.linspace(first, last, num)]


# ----------------------------------------------------------------------------------------- photos


def _photograph(
    folder: Path, place: _Place, site: tuple[float, float], i: int, seed: int
) -> tuple[PhotoPose, _Label]:
    rng = photo_rng(seed, i)
    height_m = float(rng.uniform(*CAMERA_HEIGHT_M))
    # The middle column of VIGOR's panoramas looks north.
    shot = Shot(*site, 0.0, height_m, Camera("equirectangular", *PANORAMA_PX, 360.0))
    lat, lon = place.town.geographic(*site)
    name = f"{_panorama_id(rng)},{lat:.{_DECIMALS}f},{lon:.{_DECIMALS}f},.jpg"
    pose = place.town.photograph(folder / place.name / "panorama" / name, shot, rng)
    return pose, _Label(name, _offsets(place, lat=pose.lat, lon=pose.lon))


def _panorama_id(rng: np.random.Generator) -> str:
    """22 letters, digits, dashes and underscores, as of the service that the photos are from."""
    return base64.urlsafe_b64encode(rng.bytes(16)).decode().rstrip("=")


def _offsets(place: _Place, *, lat: float, lon: float) -> tuple[tuple[str, float, float], ...]:
    """The chips of the two nearest rows and columns, the nearest first, with (d0, d1) in pixels."""
    x, y = place.town.metres(lat=lat, lon=lon)
    rows = sorted(range(len(place.lines_m)), key=lambda row: abs(y - place.lines_m[row]))[:2]
    columns = sorted(range(len(place.lines_m)), key=lambda column: abs(x - place.lines_m[column]))
    chips = [place.chips[row, column] for row in rows for column in columns[:2]]
    return tuple((chip.path.name, *_offset_px(chip, lat=lat, lon=lon)) for chip in chips)


def _offset_px(chip: AerialImage, *, lat: float, lon: float) -> tuple[float, float]:
    east, north = LocalFrame(lat=chip.lat, lon=chip.lon).to_local(lat=lat, lon=lon)
    return -float(north) / chip.gsd, -float(east) / chip.gsd


# ----------------------------------------------------------------------------------------- labels


def _write_labels(folder: Path, place: _Place, labels: Sequence[_Label], *, is_whole: bool) -> None:
    """The corrected labels, and the original ones, which know whole pixels only."""
    parts = {
        "same_area_balanced_test": labels[0::2],
        "same_area_balanced_train": labels[1::2],
        "pano_label_balanced": labels,
    }
    chips = sorted(chip.path.name for chip in place.chips.values())
    for splits, ending, is_rounded in (
        ("splits__corrected", "__corrected", is_whole),
        ("splits", "", True),
    ):
        out = folder / splits / place.name
        out.mkdir(parents=True)
        write_lines(out / "satellite_list.txt", chips)
        for part, chosen in parts.items():
            lines = [label.line(is_whole=is_rounded) for label in chosen]
            write_lines(out / f"{part}{ending}.txt", lines)
