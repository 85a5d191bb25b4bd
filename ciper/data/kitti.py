"""KITTI with aerial images: the lists of HighlyAccurate, in both public readings of their labels.

The root holds `raw/<date>/<drive>/{image_02/data,oxts/data}` and `satellite/<date>/<drive>`, or
`raw_data` and `satmap` in their places, as HighlyAccurate has them. Its lists, `train_files.txt`,
`test1_files.txt` and `test2_files.txt`, are looked for in the root, in `splits` and in
`dataLoader`, where its repository keeps them; of two folders or lists the first is taken.

A line of a test list is `date/drive/frame.png x y theta`, each label in [-1, 1]; training lines
hold no labels. test1 was drawn with replacement: it names 359 frames twice or thrice, each time
with other labels, and every line is a query.

The photo is the left colour camera's. Its heading, that of the optical axis, is taken to be the
vehicle's, as the GPS/IMU unit gives it: both readings leave the small turn between them aside.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ciper.camera import CameraOverrides
from ciper.data.datasets import ProtocolOptions, Reading
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.errors import DatasetError, GeoError
from ciper.geo import LocalFrame, check_lat_lon, forward, right, wrap_deg

NUM_PUBLISHED: Mapping[str, int] = MappingProxyType(
    {"train": 19_655, "test1": 3_773, "test2": 7_542}
)
NUM_CIPER_TRAIN = 18_916
LIST_FOLDERS = ("", "splits", "dataLoader")
RAW_FOLDERS = ("raw", "raw_data")
AERIAL_FOLDERS = ("satellite", "satmap")

IMAGE_PX = 1280
PUBLISHED_PX = 512
SHIFT_M = 20.0
RANGE_DEG = 10.0
CAMERA_FORWARD_M = 1.08
CAMERA_RIGHT_M = 0.26
FOCAL_PX = 721.5

_SKIPPED_BY_CIPER = "2011_10_03/2011_10_03_drive_0047"
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
class _Folders:
    raw: Path
    aerial: Path

    def photo(self, listed: ListedFrame) -> Path:
        return self.raw / listed.drive / "image_02" / "data" / f"{listed.stem}.png"

    def oxts(self, listed: ListedFrame) -> Path:
        return self.raw / listed.drive / "oxts" / "data" / f"{listed.stem}.txt"

    def image(self, listed: ListedFrame) -> Path:
        return self.aerial / listed.frame


def read_kitti(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    """The queries of a split, or the frames that are trained on; no image is opened.

    Training frames have no published shifts and rotations: theirs are drawn from `options.seed`
    and the frame's name.

    Args:
        root: the data set's folder.
        split: test1 (drives that are trained on too, but for 2011_09_29_drive_0004) or test2 (other
            drives); both train on the same list.
        options: of which the part, the reading, the heading's noise and the seed matter.

    Raises:
        DatasetError: a list, an oxts file or a calibration is not as published, a frame's files are
            missing in a drive that is there, or no drive is there.
    """
    part = "train" if options.part == "train" else split
    path = find_list(root, f"{part}_files.txt")
    listed = read_list(path, has_labels=options.part == "test")
    notes = _notes_on_list(listed, path, num_published=NUM_PUBLISHED[part])
    if options.part == "train" and options.reading == "ciper":
        listed, more = _without_skipped(listed, path)
        notes += more
    folders = _Folders(_find_folder(root, RAW_FOLDERS), _find_folder(root, AERIAL_FOLDERS))
    listed, more = _with_drive(listed, folders, path)
    notes += more
    fixes = _read_fixes(listed, folders, path)
    cameras, more = _read_cameras(sorted({frame.date for frame in listed}), folders)
    notes += more
    return Protocol(
        dataset="kitti",
        settings={
            "split": split,
            "part": options.part,
            "reading": options.reading,
            "heading_noise_deg": f"{range_of(options):g}",
            "seed": str(options.seed),
        },
        samples=tuple(
            _sample(frame, fixes[frame.frame], cameras[frame.date], folders, options)
            for frame in listed
        ),
        notes=notes,
    )


def _sample(
    listed: ListedFrame,
    fix: Fix,
    camera: CameraOverrides,
    folders: _Folders,
    options: ProtocolOptions,
) -> Sample:
    gsd = gsd_at(fix.lat)
    x_m, y_m = CAMERA_FORWARD_M * forward(fix.heading_deg) + CAMERA_RIGHT_M * right(fix.heading_deg)
    label = listed.label or drawn_label(listed.name, seed=options.seed)
    return Sample(
        name=listed.name,
        photo=folders.photo(listed),
        camera=camera,
        x_m=float(x_m),
        y_m=float(y_m),
        heading_deg=fix.heading_deg,
        image=AerialImage(folders.image(listed), fix.lat, fix.lon, gsd, IMAGE_PX),
        cut=published_cut(
            label,
            reading=options.reading,
            range_deg=range_of(options),
            camera=(float(x_m), float(y_m), fix.heading_deg),
            side_m=PUBLISHED_PX * gsd,
        ),
        told=told_by(options.reading, range_deg=range_of(options)),
    )


# --------------------------------------------------------------------------------------- geometry


def range_of(options: ProtocolOptions) -> float:
    """The range of rotations in degrees: the heading's noise, 10 unless it is given."""
    return RANGE_DEG if options.heading_noise_deg is None else options.heading_noise_deg


def gsd_at(lat: float) -> float:
    """Metres per pixel of the aerial images, Web Mercator's at zoom 18 and scale 2.

    156543.03392 m is the equator over the 256 px of zoom 0; the map is stretched by 1 / cos(lat).
    """
    return 156543.03392 * math.cos(math.radians(lat)) / 2.0**18 / 2.0


def published_cut(
    label: Label,
    *,
    reading: Reading,
    range_deg: float,
    camera: tuple[float, float, float],
    side_m: float,
) -> Cut:
    """The chip that a reading of a label cuts out of the aerial image.

    With (x, y) = 20 m times the label's shifts and a = `range_deg` times its theta,

    - HighlyAccurate turns the image so that the vehicle drives right, moves it, and turns it by a
      counter-clockwise about the chip's centre: the camera stands at R(a) (x, y), right and up of
      the centre, and looks a counter-clockwise of the chip's right.
    - CIPER turns it so that the vehicle drives up, turns it by a about the camera, and moves it:
      the camera stands x right and y *below* the centre and looks a counter-clockwise of up.

    Args:
        label: shifts and rotation in [-1, 1].
        reading: which of the two.
        range_deg: of the rotation.
        camera: metres east and north of the image's centre, and heading clockwise from north.
        side_m: of the chip.
    """
    x_m, y_m, heading_deg = camera
    turn_deg = range_deg * label.theta
    if reading == "ciper":
        up_deg = heading_deg + turn_deg
        right_m, up_m = SHIFT_M * label.x, -SHIFT_M * label.y
    else:
        up_deg = heading_deg - 90.0 + turn_deg
        cos, sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
        right_m = SHIFT_M * (cos * label.x - sin * label.y)
        up_m = SHIFT_M * (sin * label.x + cos * label.y)
    centre = np.array([x_m, y_m]) - right_m * right(up_deg) - up_m * forward(up_deg)
    return Cut(float(centre[0]), float(centre[1]), float(wrap_deg(up_deg)), side_m)


def told_by(reading: Reading, *, range_deg: float) -> Told:
    """What a reading tells beforehand: about which way the vehicle drives, and how near it is.

    HighlyAccurate's rotation about the chip's centre takes the camera out of the square of 20 m:
    its corner comes to 20 (cos a + sin a) m along an axis, most at a = 45 degrees.
    """
    if reading == "ciper":
        return Told(heading_deg=0.0, heading_within_deg=range_deg, within_m=SHIFT_M)
    turn = math.radians(min(range_deg, 45.0))
    within_m = SHIFT_M * (math.cos(turn) + math.sin(turn))
    return Told(heading_deg=90.0, heading_within_deg=range_deg, within_m=within_m)


def drawn_label(name: str, *, seed: int) -> Label:
    """A shift and a rotation for a frame that has none published, uniform in [-1, 1]."""
    x, y, theta = np.random.default_rng([seed, zlib.crc32(name.encode())]).uniform(-1.0, 1.0, 3)
    return Label(float(x), float(y), float(theta))


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


def _notes_on_list(
    listed: Sequence[ListedFrame], path: Path, *, num_published: int
) -> tuple[str, ...]:
    notes = []
    if len(listed) != num_published:
        notes.append(
            f"{path.name} names {len(listed):,} frames, the published one {num_published:,}: "
            "figures are not those of the published split"
        )
    num_again = sum(frame.name != frame.frame for frame in listed)
    if num_again:
        notes.append(
            f"{num_again:,} lines of {path.name} name a frame again with another shift and "
            "rotation; each is a query of its own, #2 or #3"
        )
    return tuple(notes)


def _without_skipped(
    listed: Sequence[ListedFrame], path: Path
) -> tuple[tuple[ListedFrame, ...], tuple[str, ...]]:
    kept = tuple(frame for frame in listed if not frame.drive.startswith(_SKIPPED_BY_CIPER))
    if len(kept) == len(listed):
        return kept, ()
    drive = _SKIPPED_BY_CIPER.partition("/")[2]
    if not kept:
        raise DatasetError(
            f"{path} names only frames of {drive}, which CIPER's code leaves out of training; "
            "choose the reading highlyaccurate"
        )
    return kept, (
        f"{len(listed) - len(kept):,} frames of {drive} are left out of training, as CIPER's code "
        f"leaves them out: {len(kept):,} remain",
    )


# ---------------------------------------------------------------------------------------- folders


def _find_folder(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DatasetError(
        f"{root} holds neither {' nor '.join(names)}; expected {names[0]}/<date>/<drive>: give the "
        "folder that holds it"
    )


def _with_drive(
    listed: Sequence[ListedFrame], folders: _Folders, path: Path
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


def _check_files(frames: Sequence[ListedFrame], folders: _Folders, path: Path) -> None:
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


def _read_fixes(listed: Sequence[ListedFrame], folders: _Folders, path: Path) -> dict[str, Fix]:
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


def _read_cameras(
    dates: Sequence[str], folders: _Folders
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
