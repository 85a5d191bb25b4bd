"""KITTI's files: the lists of HighlyAccurate, the drives' folders, oxts and calibration.

`data.kitti` says where they lie. Nothing here knows what a shift or a rotation means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciper.camera import CameraOverrides
from ciper.errors import DatasetError, GeoError
from ciper.geo import LocalFrame, check_lat_lon, wrap_deg

LIST_FOLDERS = ("", "splits", "dataLoader")
RAW_FOLDERS = ("raw", "raw_data")
AERIAL_FOLDERS = ("satellite", "satmap")
FOCAL_PX = 721.5

_LABEL_TOLERANCE = 1e-6
_NUM_OXTS = 30
_MAX_FROM_MEDIAN_M = 2000.0
_DATE = r"\d{4}_\d{2}_\d{2}"
_FRAME = re.compile(rf"({_DATE})/({_DATE})_drive_\w+/\d+\.png", re.ASCII)


@dataclass(frozen=True)
class Label:
    """A published shift and rotation, each in [-1, 1]: of 20 m, 20 m and the range of headings."""

    x: float
    y: float
    theta: float


@dataclass(frozen=True)
class ListedFrame:
    """A line of a list.

    Attributes:
        name: `frame`; with `#2`, `#3` behind it where the list names the frame again.
        frame: `date/drive/frame.png`.
        line: its number, from 1.
        label: None in the training list.
    """

    name: str
    frame: str
    line: int
    label: Label | None

    @property
    def date(self) -> str:
        """The day of the recording."""
        return self.frame.partition("/")[0]

    @property
    def drive(self) -> str:
        """`date/drive`."""
        return self.frame.rpartition("/")[0]

    @property
    def stem(self) -> str:
        """The frame's number, as files write it."""
        return self.frame.rpartition("/")[2].removesuffix(".png")


@dataclass(frozen=True)
class Fix:
    """What an oxts file says: WGS84 place of the GPS/IMU unit, heading clockwise from north."""

    path: Path
    lat: float
    lon: float
    heading_deg: float


@dataclass(frozen=True)
class Folders:
    """Where the drives' own files lie, and where their aerial images do."""

    raw: Path
    aerial: Path

    def photo(self, listed: ListedFrame) -> Path:
        """The left colour camera's photo."""
        return self.raw / listed.drive / "image_02" / "data" / f"{listed.stem}.png"

    def oxts(self, listed: ListedFrame) -> Path:
        """What the GPS/IMU unit measured."""
        return self.raw / listed.drive / "oxts" / "data" / f"{listed.stem}.txt"

    def image(self, listed: ListedFrame) -> Path:
        """The aerial image about the GPS fix."""
        return self.aerial / listed.frame


# ------------------------------------------------------------------------------------------ lists


def find_list(root: Path, name: str) -> Path:
    """The first of a list's possible places, `LIST_FOLDERS`, where it lies.

    Raises:
        DatasetError: it lies in none of them.
    """
    places = [root / folder / name for folder in LIST_FOLDERS]
    for place in places:
        if place.is_file():
            return place
    raise DatasetError(
        f"KITTI's {name} is missing; looked for {', '.join(map(str, places))}: copy it from "
        "HighlyAccurate's dataLoader folder"
    )


def read_list(path: Path, *, has_labels: bool) -> tuple[ListedFrame, ...]:
    """The lines of a list; whether the frames are there is not looked at.

    Args:
        path: the list.
        has_labels: whether each line holds three labels, as test lists do.

    Raises:
        DatasetError: it cannot be read or is empty; a line has too few or too many fields, names no
            frame, or a drive of another day; a label is no number in [-1, 1]; a frame comes again
            with the same labels or without any. The message names the line.
    """
    seen: dict[str, dict[Label | None, int]] = {}
    listed = []
    for line, text in enumerate(_read_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        frame, label = _parse_line(text, f"{path} line {line}", has_labels=has_labels)
        lines = seen.setdefault(frame, {})
        if label in lines:
            raise DatasetError(
                f"{path} line {line} names {frame} as line {lines[label]} does; expected each "
                "frame once, or with other labels: remove one line"
            )
        lines[label] = line
        name = frame if len(lines) == 1 else f"{frame}#{len(lines)}"
        listed.append(ListedFrame(name, frame, line, label))
    if not listed:
        raise DatasetError(f"{path} is empty; expected a line per frame: copy it again")
    return tuple(listed)


def _parse_line(text: str, place: str, *, has_labels: bool) -> tuple[str, Label | None]:
    expected = "date/drive/frame.png x y theta" if has_labels else "date/drive/frame.png"
    frame, *labels = text.split()
    if len(labels) != (3 if has_labels else 0):
        raise DatasetError(
            f"{place} has {1 + len(labels)} fields; expected {expected}: mend the line"
        )
    match = _FRAME.fullmatch(frame)
    if match is None:
        raise DatasetError(f"{place} names {frame!r}; expected {expected}: mend the line")
    if match[1] != match[2]:
        raise DatasetError(
            f"{place} names a drive of {match[2]} in the folder of {match[1]}: {frame}; expected "
            "one day: mend the line"
        )
    return frame, Label(*(_label(value, place) for value in labels)) if has_labels else None


def _label(text: str, place: str) -> float:
    value = _number(text)
    # A comparison with NaN is false, so NaN is refused too.
    if not abs(value) <= 1.0 + _LABEL_TOLERANCE:
        raise DatasetError(
            f"{place} has the label {text!r}; expected a number in [-1, 1]: mend the line"
        )
    return value


def _number(text: str | bytes) -> float:
    """NaN where it is no number: all that call this refuse NaN with the text in their message."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# ---------------------------------------------------------------------------------------- folders


def find_folder(root: Path, names: Sequence[str]) -> Path:
    """The first folder of the root that has one of some names.

    Raises:
        DatasetError: none has.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DatasetError(
        f"{root} holds neither {' nor '.join(names)}; expected {names[0]}/<date>/<drive>: give the "
        "folder that holds it"
    )


def with_drive(
    listed: Sequence[ListedFrame], folders: Folders, path: Path
) -> tuple[tuple[ListedFrame, ...], tuple[str, ...]]:
    """The frames of drives that are there, and a note on those that are absent altogether."""
    drives = dict.fromkeys(frame.drive for frame in listed)
    absent = [
        drive
        for drive in drives
        if not ((folders.raw / drive).is_dir() or (folders.aerial / drive).is_dir())
    ]
    if len(absent) == len(drives):
        raise DatasetError(
            f"none of the {len(drives)} drives that {path} names is in {folders.raw} or "
            f"{folders.aerial}; expected <date>/<drive> there, such as {absent[0]}"
        )
    if not absent:
        return tuple(listed), ()
    kept = tuple(frame for frame in listed if frame.drive not in set(absent))
    return kept, (
        f"{len(listed) - len(kept):,} of {len(listed):,} frames are left out, since "
        f"{len(absent)} of {len(drives)} drives are absent ({absent[0]}"
        f"{', ...' if len(absent) > 1 else ''}): figures are not those of the published split",
    )


def _check_files(frames: Sequence[ListedFrame], folders: Folders, path: Path) -> None:
    """Refuse a drive that lacks a file of one of its frames; looks into each folder once."""
    for file_of in (folders.photo, folders.oxts, folders.image):
        there = _names_in(file_of(frames[0]).parent)
        for frame in frames:
            if file_of(frame).name not in there:
                raise DatasetError(
                    f"{path} line {frame.line} names {frame.frame}, but {file_of(frame)} is "
                    "missing; complete the drive, or take its folders away to leave it out"
                )


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise DatasetError(
            f"cannot look into {folder}: {error.strerror}; check its permissions"
        ) from error


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig takes away the byte order mark that some editors write.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text ({error.reason}); copy it again") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the file") from error


# ------------------------------------------------------------------------------------ places, oxts


def read_fixes(listed: Sequence[ListedFrame], folders: Folders, path: Path) -> dict[str, Fix]:
    """The fix of every frame, by frame; drive by drive, so that a foreign one stands out."""
    drives: dict[str, dict[str, ListedFrame]] = {}
    for frame in listed:
        drives.setdefault(frame.drive, {}).setdefault(frame.frame, frame)
    fixes: dict[str, Fix] = {}
    for frames in drives.values():
        _check_files(list(frames.values()), folders, path)
        own = {name: read_oxts(folders.oxts(frame)) for name, frame in frames.items()}
        _check_near(list(own.values()))
        fixes |= own
    return fixes


def read_oxts(path: Path) -> Fix:
    """Place and heading of a frame: latitude, longitude and, sixth, the yaw, of 30 numbers.

    The yaw is in radians, 0 = east, counter-clockwise.

    Raises:
        DatasetError: it cannot be read, has not 30 fields, or one of the three is no number, not on
            Earth or more than a whole turn.
    """
    try:
        fields = path.read_bytes().split()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the file") from error
    if len(fields) != _NUM_OXTS:
        raise DatasetError(
            f"{path} line 1 has {len(fields)} fields; expected the {_NUM_OXTS} numbers of an oxts "
            "file: copy it again"
        )
    lat, lon, yaw_rad = (_number(fields[i]) for i in (0, 1, 5))
    try:
        check_lat_lon(lat=lat, lon=lon)
    except GeoError as error:
        raise DatasetError(f"{path} line 1: {error}; copy the file again") from error
    if not abs(yaw_rad) <= 2.0 * math.pi:
        raise DatasetError(
            f"{path} line 1 has the yaw {fields[5].decode(errors='replace')!r} in field 6; "
            "expected radians: copy the file again"
        )
    return Fix(path, lat, lon, float(wrap_deg(90.0 - math.degrees(yaw_rad))))


def _check_near(fixes: Sequence[Fix]) -> None:
    """Refuse a fix far from its drive's median: the file is of another drive."""
    lat, lon = np.array([(fix.lat, fix.lon) for fix in fixes]).T
    middle = LocalFrame(lat=float(np.median(lat)), lon=float(np.median(lon)))
    away_m = np.hypot(*middle.to_local(lat=lat, lon=lon))
    worst = int(np.argmax(away_m))
    if not away_m[worst] <= _MAX_FROM_MEDIAN_M:
        raise DatasetError(
            f"{fixes[worst].path} line 1 lies {away_m[worst] / 1000.0:.1f} km from the middle of "
            f"its drive, at lat {lat[worst]}, lon {lon[worst]}; expected at most "
            f"{_MAX_FROM_MEDIAN_M / 1000.0:g} km: an oxts file of another drive? Copy it again"
        )


# ---------------------------------------------------------------------------------------- cameras


def read_cameras(
    dates: Sequence[str], folders: Folders
) -> tuple[dict[str, CameraOverrides], tuple[str, ...]]:
    """The left colour camera by date: its calibration, or what all of them are close to."""
    paths = {date: folders.raw / date / "calib_cam_to_cam.txt" for date in dates}
    assumed = CameraOverrides(projection="pinhole", focal_px=FOCAL_PX)
    cameras = {
        date: read_calibration(path) if path.is_file() else assumed for date, path in paths.items()
    }
    bare = [date for date, camera in cameras.items() if camera is assumed]
    if not bare:
        return cameras, ()
    return cameras, (
        f"calib_cam_to_cam.txt is missing for {', '.join(bare)}: a focal length of {FOCAL_PX:g} px "
        "about the middle of the photo is assumed",
    )


def read_calibration(path: Path) -> CameraOverrides:
    """The rectified left colour camera of a `calib_cam_to_cam.txt`, from its `P_rect_02`.

    KITTI counts the middle of the first pixel as (0, 0), we its corner: half a pixel is added.

    Raises:
        DatasetError: it cannot be read, or has no `P_rect_02` of 12 numbers of a camera with square
            pixels.
    """
    for line, text in enumerate(_read_text(path).splitlines(), start=1):
        key, _, values = text.partition(":")
        if key.strip() == "P_rect_02":
            return _pinhole([_number(value) for value in values.split()], f"{path} line {line}")
    raise DatasetError(f"{path} has no P_rect_02; expected the left colour camera: copy it again")


def _pinhole(matrix: Sequence[float], place: str) -> CameraOverrides:
    """The camera of the 12 numbers, row by row, of a 3 x 4 projection."""
    if len(matrix) != 12 or not all(map(math.isfinite, matrix)):
        raise DatasetError(f"{place}: P_rect_02 is not 12 numbers; copy the file again")
    focal_x_px, focal_y_px = matrix[0], matrix[5]
    if not (focal_x_px > 0.0 and abs(focal_y_px / focal_x_px - 1.0) <= 1e-3):
        raise DatasetError(
            f"{place}: P_rect_02 has the focal lengths {focal_x_px:g} and {focal_y_px:g} px; "
            "expected square pixels: copy the file again"
        )
    return CameraOverrides(
        projection="pinhole",
        focal_px=focal_x_px,
        principal_px=(matrix[2] + 0.5, matrix[6] + 0.5),
    )
