"""The table of photos and poses, `poses.csv`.

One line per photo; unknown values are empty. `photo`, `lat` and `lon` are required columns, the
others may be missing altogether.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ciper.camera import CameraOverrides
from ciper.data.preprocess import ReadPhoto, read_with_camera
from ciper.errors import CiperError, OutputError, PoseTableError
from ciper.files import written_whole
from ciper.geo import check_lat_lon, wrap_deg

COLUMNS = (
    "photo",
    "lat",
    "lon",
    "heading_deg",
    "projection",
    "hfov_deg",
    "pitch_deg",
    "roll_deg",
    "height_m",
)
OPTIONAL_COLUMNS = ("vfov_top_deg", "vfov_bottom_deg")
REQUIRED_COLUMNS = ("photo", "lat", "lon")
PROJECTIONS = ("equirectangular", "pinhole")

# Inclusive bounds of every numeric column but the position, which geo.check_lat_lon knows.
_BOUNDS = {
    "heading_deg": (-math.inf, math.inf),
    "hfov_deg": (0.0, 360.0),
    "pitch_deg": (-90.0, 90.0),
    "roll_deg": (-180.0, 180.0),
    "height_m": (-math.inf, math.inf),
    "vfov_top_deg": (-90.0, 90.0),
    "vfov_bottom_deg": (-90.0, 90.0),
}


@dataclass(frozen=True)
class PhotoPose:
    """One line of the table: a photo, its true place, and what is known of its camera.

    Attributes:
        photo: path of the photo.
        lat: WGS84 latitude in degrees.
        lon: WGS84 longitude in degrees.
        heading_deg: of the photo's centre column, [0, 360), clockwise from true north.
        projection: "equirectangular" or "pinhole".
        hfov_deg: horizontal field of view.
        pitch_deg: up positive.
        roll_deg: clockwise positive.
        height_m: of the camera above the ground.
        vfov_top_deg: elevation of a panorama's upper edge.
        vfov_bottom_deg: elevation of its lower edge.
    """

    photo: Path
    lat: float
    lon: float
    heading_deg: float | None = None
    projection: str | None = None
    hfov_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    height_m: float | None = None
    vfov_top_deg: float | None = None
    vfov_bottom_deg: float | None = None

    @property
    def camera_overrides(self) -> CameraOverrides:
        """What the table says about the camera, to be read together with the photo's metadata."""
        return CameraOverrides(
            projection=self.projection,
            hfov_deg=self.hfov_deg,
            vfov_top_deg=self.vfov_top_deg,
            vfov_bottom_deg=self.vfov_bottom_deg,
            pitch_deg=self.pitch_deg,
            roll_deg=self.roll_deg,
            height_m=self.height_m,
        )

    @property
    def told_heading_deg(self) -> float | None:
        """What a model that was trained on panoramas turned to north may be told."""
        return self.heading_deg

    def read(self) -> ReadPhoto:
        """The photo and its camera.

        Raises:
            PhotoError, CameraError: the photo cannot be used.
        """
        return read_with_camera(self.photo, self.camera_overrides)


def read_poses(path: str | Path) -> tuple[PhotoPose, ...]:
    """Read a table; photo paths are relative to the table's folder.

    Whether the photos exist is not looked at: whoever reads them finds out.

    Raises:
        PoseTableError: the file is missing, empty or not text; a required column is missing or an
            unknown one looks like a misspelt known one; a number is malformed, not finite or out
            of range; a projection is unknown; a photo occurs twice. The message names the line.
    """
    path = Path(path)
    try:
        # utf-8-sig takes away the byte order mark that spreadsheet programs write.
        with path.open(encoding="utf-8-sig", newline="") as file:
            poses = tuple(_read_rows(file, path))
    except UnicodeDecodeError as error:
        raise PoseTableError(
            f"{path} is not UTF-8 text ({error.reason}); save it as CSV"
        ) from error
    except csv.Error as error:
        raise PoseTableError(f"{path} is not a CSV table ({error}); save it as CSV") from error
    except OSError as error:
        raise PoseTableError(f"cannot read {path}: {error.strerror}; check the path") from error
    if not poses:
        raise PoseTableError(f"{path} lists no photos; expected one line per photo")
    return poses


def _read_rows(file: TextIO, path: Path) -> Iterator[PhotoPose]:
    reader = csv.DictReader(file, skipinitialspace=True, strict=True)
    _check_header(reader.fieldnames, path)
    first_lines: dict[Path, int] = {}
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if None in row or any(value is None for value in row.values()):
            count = len(reader.fieldnames or ())
            raise PoseTableError(
                f"{where} does not have the header's {count} fields; mend the line"
            )
        pose = _parse_row({name: value.strip() for name, value in row.items()}, path.parent, where)
        # Not resolved through links: two names for one file are two photos.
        key = Path(os.path.normpath(pose.photo))
        if key in first_lines:
            raise PoseTableError(
                f"{where} repeats photo {row['photo']!r} of line {first_lines[key]}; "
                "list every photo once"
            )
        first_lines[key] = reader.line_num
        yield pose


def _check_header(names: Iterable[str] | None, path: Path) -> None:
    found = list(names or ())
    if not found:
        raise PoseTableError(f"{path} is empty; expected a header with {', '.join(COLUMNS)}")
    if len(set(found)) < len(found):
        raise PoseTableError(f"{path} line 1 names a column twice: {', '.join(found)}; drop one")
    known = COLUMNS + OPTIONAL_COLUMNS
    absent = [name for name in known if name not in found]
    for name in found:
        # Further columns are the user's own, but a misspelt one would be lost in silence.
        near = [] if name in known else difflib.get_close_matches(name.lower(), absent, n=1)
        if near:
            raise PoseTableError(
                f"{path} line 1 has an unknown column {name!r}; did you mean {near[0]!r}? Rename it"
            )
    missing = [name for name in REQUIRED_COLUMNS if name not in found]
    if missing:
        raise PoseTableError(
            f"{path} line 1 lacks the column {missing[0]!r}; expected at least "
            f"{', '.join(REQUIRED_COLUMNS)}, found {', '.join(found)}"
        )


def _parse_row(row: Mapping[str, str], folder: Path, where: str) -> PhotoPose:
    if not row["photo"]:
        raise PoseTableError(f"{where} names no photo; give its path relative to the table")
    lat, lon = _number(row, "lat", where), _number(row, "lon", where)
    if lat is None or lon is None:
        raise PoseTableError(f"{where} has no position; give lat and lon in degrees")
    try:
        check_lat_lon(lat=lat, lon=lon)
    except CiperError as error:
        raise PoseTableError(f"{where}: {error}") from error
    projection = row.get("projection") or None
    if projection is not None and projection not in PROJECTIONS:
        raise PoseTableError(
            f"{where} has projection {projection!r}; expected {' or '.join(PROJECTIONS)}, or empty"
        )
    numbers = {name: _number(row, name, where) for name in _BOUNDS}
    heading_deg = numbers.pop("heading_deg")
    return PhotoPose(
        photo=folder / row["photo"],
        lat=lat,
        lon=lon,
        heading_deg=None if heading_deg is None else float(wrap_deg(heading_deg)),
        projection=projection,
        **numbers,
    )


def _number(row: Mapping[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise PoseTableError(
            f"{where} has {name} {text!r}; expected a number or nothing"
        ) from error
    low, high = _BOUNDS.get(name, (-math.inf, math.inf))
    if (
        not math.isfinite(number)
        or not low <= number <= high
        or (name == "hfov_deg" and number == 0)
    ):
        bounds = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
        raise PoseTableError(f"{where} has {name} {text}; expected a finite number{bounds}")
    return number


def write_poses(path: str | Path, poses: Iterable[PhotoPose]) -> None:
    """Write a table, photo paths relative to its folder where they lie below it.

    The optional columns are written if any photo needs them. The file appears at once or not at
    all. Positions keep 9 decimals (0.1 mm).

    Raises:
        OutputError: the file cannot be written.
    """
    path, rows = Path(path), tuple(poses)
    has_range = any(getattr(row, name) is not None for row in rows for name in OPTIONAL_COLUMNS)
    columns = COLUMNS + OPTIONAL_COLUMNS if has_range else COLUMNS
    lines = [columns, *([_text(row, name, path.parent) for name in columns] for row in rows)]
    try:
        with (
            written_whole(path) as unfinished,
            unfinished.open("w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows(lines)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _text(row: PhotoPose, column: str, folder: Path) -> str:
    if column == "photo":
        photo = row.photo
        if photo.is_relative_to(folder):
            return photo.relative_to(folder).as_posix()
        # Written as it stands, a relative path would be looked up below the table's folder.
        return photo.absolute().as_posix()
    value = getattr(row, column)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    decimals = 9 if column in ("lat", "lon") else 6
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")
