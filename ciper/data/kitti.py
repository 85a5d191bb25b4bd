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
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ciper.camera import CameraOverrides
from ciper.data.datasets import ProtocolOptions, Reading
from ciper.data.kitti_files import (
    AERIAL_FOLDERS,
    RAW_FOLDERS,
    Fix,
    Folders,
    Label,
    ListedFrame,
    find_folder,
    find_list,
    read_cameras,
    read_fixes,
    read_list,
    with_drive,
)
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.errors import DatasetError
from ciper.geo import forward, right, wrap_deg

NUM_PUBLISHED: Mapping[str, int] = MappingProxyType(
    {"train": 19_655, "test1": 3_773, "test2": 7_542}
)
NUM_CIPER_TRAIN = 18_916
IMAGE_PX = 1280
PUBLISHED_PX = 512
SHIFT_M = 20.0
RANGE_DEG = 10.0
CAMERA_FORWARD_M = 1.08
CAMERA_RIGHT_M = 0.26

_SKIPPED_BY_CIPER = "2011_10_03/2011_10_03_drive_0047"


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
    folders = Folders(find_folder(root, RAW_FOLDERS), find_folder(root, AERIAL_FOLDERS))
    listed, more = with_drive(listed, folders, path)
    notes += more
    fixes = read_fixes(listed, folders, path)
    cameras, more = read_cameras(sorted({frame.date for frame in listed}), folders)
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
    folders: Folders,
    options: ProtocolOptions,
) -> Sample:
    gsd = gsd_at(fix.lat)
    image = AerialImage(folders.image(listed), fix.lat, fix.lon, gsd, IMAGE_PX, is_mercator=True)
    arm_m = CAMERA_FORWARD_M * forward(fix.heading_deg) + CAMERA_RIGHT_M * right(fix.heading_deg)
    x_m, y_m = arm_m / image.true_metres
    label = listed.label or drawn_label(listed.name, seed=options.seed)
    return Sample(
        name=listed.name,
        photo=folders.photo(listed),
        camera=camera,
        x_m=float(x_m),
        y_m=float(y_m),
        heading_deg=fix.heading_deg,
        image=image,
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


# ------------------------------------------------------------------------------------------ notes


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
