from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import CameraOverrides, camera_from_photo, rays_from_pixels
from ciper.data.datasets import ProtocolOptions, Reading, read_protocol
from ciper.data.kitti import (
    NUM_CIPER_TRAIN,
    NUM_PUBLISHED,
    drawn_label,
    gsd_at,
    published_cut,
    read_kitti,
    told_by,
)
from ciper.data.kitti_files import Label, find_list, read_calibration, read_list, read_oxts
from ciper.data.protocol import AerialImage, Protocol, Sample
from ciper.errors import DatasetError
from ciper.geo import LocalFrame, forward, right

LAT, LON = 49.015, 8.43
DRIVE = "2011_09_26/2011_09_26_drive_0005_sync"
OTHER = "2011_09_28/2011_09_28_drive_0037_sync"
SKIPPED = "2011_10_03/2011_10_03_drive_0047_sync"
HEADINGS = (35.0, 145.0, 215.0, 305.0)
CALIBRATION = (
    "calib_time: 09-Jan-2012 13:57:47\n"
    "S_rect_02: 1.242000e+03 3.750000e+02\n"
    "P_rect_02: 7.2e+02 0 6.09e+02 44.857 0 7.2e+02 1.72e+02 0.216 0 0 1 0.002745\n"
    "P_rect_03: 1 0 0 0 0 1 0 0 0 0 1 0\n"
)


def frame(number: int, drive: str = DRIVE) -> str:
    return f"{drive}/{number:010d}.png"


def oxts(heading_deg: float = 0.0, lat: float = LAT, lon: float = LON) -> str:
    yaw_rad = math.radians(90.0 - heading_deg)
    return f"{lat!r} {lon!r} 112.8 0.02 0.001 {yaw_rad!r} " + " ".join(["0.5"] * 24) + "\n"


@dataclass
class Root:
    """Writes a data set: lists by name, oxts files by frame; photos and images hold nothing."""

    path: Path
    lists: Mapping[str, Sequence[str]]
    oxts: Mapping[str, str]
    raw: str = "raw"
    aerial: str = "satellite"
    places: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> Path:
        for name, lines in self.lists.items():
            folder = self.path / self.places.get(name, "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}_files.txt").write_text("".join(f"{line}\n" for line in lines))
        for name, text in self.oxts.items():
            drive, _, file = name.rpartition("/")
            for path, content in (
                (self.path / self.raw / drive / "oxts/data" / file.replace(".png", ".txt"), text),
                (self.path / self.raw / drive / "image_02/data" / file, ""),
                (self.path / self.aerial / drive / file, ""),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return self.path


def read(root: Path, split: str = "test1", **options: Any) -> Protocol:
    return read_kitti(root, split, ProtocolOptions(**options))


def one_sample(tmp_path: Path, heading_deg: float, label: str, **options: Any) -> Sample:
    lists = {"test1": [f"{frame(7)} {label}"]}
    root = Root(tmp_path, lists, {frame(7): oxts(heading_deg)}).write()
    return read(root, **options).samples[0]


# --------------------------------------------------------------------------------------- geometry


def test_gsd_of_the_aerial_images() -> None:
    assert gsd_at(49.015) == pytest.approx(0.19583, abs=5e-6)
    assert gsd_at(0.0) == pytest.approx(0.298582, abs=1e-6)
    assert gsd_at(-60.0) == pytest.approx(0.149291, abs=1e-6)


@pytest.mark.parametrize("heading_deg", HEADINGS)
def test_worked_examples(tmp_path: Path, heading_deg: float) -> None:
    sample = one_sample(tmp_path, heading_deg, "0.6 0.3 0.9")
    assert sample.pose == pytest.approx((10.91, 7.80, 81.0), abs=0.006)
    sample = one_sample(tmp_path, heading_deg, "0.6 0.3 0.9", reading="ciper")
    assert sample.pose == pytest.approx((12.0, -6.0, 351.0), abs=1e-9)


# (label, range, right of the centre, up of it, heading clockwise from the chip's up)
BY_HAND = [
    ("highlyaccurate", "0.5 0.25 0.5", 180.0, (-5.0, 10.0, 0.0)),
    ("highlyaccurate", "0.5 0.25 -0.5", 180.0, (5.0, -10.0, 180.0)),
    ("highlyaccurate", "-0.5 0.25 0.5", 180.0, (-5.0, -10.0, 0.0)),
    ("highlyaccurate", "0.5 -0.25 -0.5", 180.0, (-5.0, -10.0, 180.0)),
    ("highlyaccurate", "-0.5 -0.25 1", 180.0, (10.0, 5.0, 270.0)),
    ("highlyaccurate", "-0.5 -0.25 1", 0.0, (-10.0, -5.0, 90.0)),
    ("highlyaccurate", "1 0 1", 30.0, (17.320508, 10.0, 60.0)),
    ("highlyaccurate", "0 1 -1", 30.0, (10.0, 17.320508, 120.0)),
    ("ciper", "0.5 0.25 0.5", 180.0, (10.0, -5.0, 270.0)),
    ("ciper", "-0.5 0.25 -0.5", 180.0, (-10.0, -5.0, 90.0)),
    ("ciper", "0.5 -0.25 -0.1", 100.0, (10.0, 5.0, 10.0)),
    ("ciper", "-0.5 -0.25 1", 0.0, (-10.0, 5.0, 0.0)),
]


@pytest.mark.parametrize("heading_deg", HEADINGS)
@pytest.mark.parametrize(("reading", "label", "range_deg", "pose"), BY_HAND)
def test_poses_by_hand(
    tmp_path: Path,
    reading: str,
    label: str,
    range_deg: float,
    pose: tuple[float, float, float],
    heading_deg: float,
) -> None:
    sample = one_sample(tmp_path, heading_deg, label, reading=reading, heading_noise_deg=range_deg)
    assert sample.pose[:2] == pytest.approx(pose[:2], abs=1e-6)
    assert math.remainder(sample.pose[2] - pose[2], 360.0) == pytest.approx(0.0, abs=1e-9)
    assert sample.told.heading_within_deg == range_deg


@pytest.mark.parametrize(
    ("heading_deg", "camera"),
    [(0, (0.26, 1.08)), (90, (1.08, -0.26)), (180, (-0.26, -1.08)), (270, (-1.08, 0.26))],
)
def test_lever_arm(tmp_path: Path, heading_deg: float, camera: tuple[float, float]) -> None:
    sample = one_sample(tmp_path, heading_deg, "0.6 0.3 0.9")
    east, north = sample.image.true_metres
    assert (east * sample.x_m, north * sample.y_m) == pytest.approx(camera, abs=1e-9)
    assert (sample.x_m, sample.y_m) == pytest.approx(camera, abs=0.003)
    assert sample.heading_deg == pytest.approx(heading_deg, abs=1e-9)
    assert (sample.image.lat, sample.image.lon) == (LAT, LON)
    lat, lon = sample.position
    back = LocalFrame(lat=LAT, lon=LON).to_local(lat=lat, lon=lon)
    assert [float(value) for value in back] == pytest.approx(camera, abs=1e-6)


@pytest.mark.parametrize(
    ("yaw_rad", "heading_deg"),
    [(0.0, 90.0), (math.pi / 2, 0.0), (math.pi, 270.0), (-math.pi / 2, 180.0), (-0.1, 95.729578)],
)
def test_yaw_is_counter_clockwise_from_east(
    tmp_path: Path, yaw_rad: float, heading_deg: float
) -> None:
    path = tmp_path / "0.txt"
    path.write_text(f"{LAT} {LON} 0 0 0 {yaw_rad!r} " + "0 " * 24)
    fix = read_oxts(path)
    assert (fix.lat, fix.lon) == (LAT, LON)
    assert fix.heading_deg == pytest.approx(heading_deg, abs=1e-6)


Grey = NDArray[np.float64]
# A quarter of the pixels along each side show the same metres: the test takes a second, not ten.
COARSER = 4


def turned(image: Image.Image, ccw_deg: float) -> Image.Image:
    return image.rotate(ccw_deg, resample=Image.Resampling.BILINEAR)


def moved(image: Image.Image, right_px: float, down_px: float) -> Image.Image:
    """The same with what it shows moved; the transform asks where a target pixel comes from."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1.0, 0.0, -right_px, 0.0, 1.0, -down_px),
        resample=Image.Resampling.BILINEAR,
    )


def chip_of(image: Image.Image, sample: Sample, label: Label, reading: Reading) -> Grey:
    """The published chip, made of turns and moves of the whole image, as the authors make it."""
    gsd, range_deg = COARSER * sample.image.gsd, 10.0
    x_px, y_px = 20.0 * label.x / gsd, 20.0 * label.y / gsd
    drives_right = turned(image, sample.heading_deg - 90.0)
    at_camera = moved(drives_right, -1.08 / gsd, -0.26 / gsd)
    if reading == "ciper":
        chip = moved(turned(at_camera, 90.0 + range_deg * label.theta), x_px, y_px)
    else:
        chip = turned(moved(at_camera, x_px, -y_px), range_deg * label.theta)
    edge = (1280 - 512) // 2 // COARSER
    return np.asarray(chip.crop((edge, edge, image.width - edge, image.width - edge)), np.float64)


def spot(sample: Sample, ahead_m: float) -> Image.Image:
    """The aerial image with a bright spot some way ahead of the camera."""
    x_m, y_m = np.array([sample.x_m, sample.y_m]) + ahead_m * forward(sample.heading_deg)
    gsd, side_px = COARSER * sample.image.gsd, sample.image.side_px // COARSER
    columns = np.arange(side_px) - (side_px / 2.0 - 0.5 + x_m / gsd)
    rows = np.arange(side_px) - (side_px / 2.0 - 0.5 - y_m / gsd)
    bright = np.exp(-(columns[None, :] ** 2) / 18.0) * np.exp(-(rows[:, None] ** 2) / 18.0)
    return Image.fromarray((255.0 * bright).astype(np.uint8))


def spot_m(chip: Grey, gsd: float) -> tuple[float, float]:
    """Where the spot lies in a chip, metres right and up of its centre."""
    rows, columns = np.indices(chip.shape)
    middle = (chip.shape[0] - 1) / 2.0
    right_px = (columns * chip).sum() / chip.sum() - middle
    up_px = middle - (rows * chip).sum() / chip.sum()
    return float(right_px * gsd), float(up_px * gsd)


@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
@pytest.mark.parametrize(
    ("heading_deg", "label"),
    [
        (35.0, Label(0.6, 0.3, 0.9)),
        (145.0, Label(-0.7, 0.9, -0.8)),
        (215.0, Label(-0.5, -0.8, 1.0)),
        (305.0, Label(0.9, -0.4, -0.5)),
    ],
)
def test_pixels_come_to_the_pose(
    tmp_path: Path, heading_deg: float, label: Label, reading: Reading
) -> None:
    """Whoever turns and moves pixels as the authors do finds the camera where the pose says."""
    text = f"{label.x} {label.y} {label.theta}"
    sample = one_sample(tmp_path, heading_deg, text, reading=reading)
    x_m, y_m, pose_deg = sample.pose
    for ahead_m in (0.0, 15.0):
        chip = chip_of(spot(sample, ahead_m), sample, label, reading)
        expected = np.array([x_m, y_m]) + ahead_m * forward(pose_deg)
        assert spot_m(chip, COARSER * sample.image.gsd) == pytest.approx(tuple(expected), abs=0.05)


CORNERS = list(itertools.product((-1.0, 1.0), repeat=2))


@pytest.mark.parametrize("reading", ["highlyaccurate", "ciper"])
@pytest.mark.parametrize("range_deg", [0.0, 10.0, 45.0, 90.0, 180.0])
def test_told_bounds_hold_and_are_reached(reading: Reading, range_deg: float) -> None:
    told = told_by(reading, range_deg=range_deg)
    offsets, turns = [], []
    for (x, y), theta in itertools.product(CORNERS, np.linspace(-1.0, 1.0, 73)):
        cut = published_cut(
            Label(x, y, float(theta)),
            reading=reading,
            range_deg=range_deg,
            camera=(1.0, -0.5, 217.0),
            side_m=100.0,
        )
        image = AerialImage(Path("a.png"), LAT, LON, 0.2, 1280)
        sample = Sample("a", Path("a"), CameraOverrides(), 1.0, -0.5, 217.0, image, cut, told)
        offsets += [abs(sample.pose[0]), abs(sample.pose[1])]
        turns.append(abs(math.remainder(sample.pose[2] - told.heading_deg, 360.0)))
    assert max(offsets) == pytest.approx(told.within_m, abs=1e-9)
    assert max(turns) == pytest.approx(told.heading_within_deg, abs=1e-9)


def test_told_by_hand() -> None:
    assert told_by("highlyaccurate", range_deg=10.0).within_m == pytest.approx(23.169, abs=1e-3)
    assert told_by("highlyaccurate", range_deg=180.0).within_m == pytest.approx(28.284, abs=1e-3)
    assert told_by("highlyaccurate", range_deg=10.0).heading_deg == 90.0
    assert told_by("ciper", range_deg=180.0).within_m == 20.0
    assert told_by("ciper", range_deg=10.0).heading_deg == 0.0


def test_chips_lie_within_their_image(tmp_path: Path) -> None:
    for label, heading_deg in itertools.product(("1 1 1", "-1 1 -0.75", "1 -1 0.5"), HEADINGS):
        sample = one_sample(tmp_path, heading_deg, label, heading_noise_deg=180.0)
        cut = sample.cut
        assert cut.side_m == pytest.approx(100.27, abs=0.01)
        corners = [
            np.array([cut.x_m, cut.y_m])
            + cut.side_m / 2.0 * (a * right(cut.up_deg) + b * forward(cut.up_deg))
            for a, b in CORNERS
        ]
        assert np.abs(corners).max() <= sample.image.side_m / 2.0


# ----------------------------------------------------------------------------------------- reading


def test_a_sample_names_its_files(tmp_path: Path) -> None:
    sample = one_sample(tmp_path, 35.0, "0.6 0.3 0.9")
    assert sample.name == frame(7)
    assert sample.photo == tmp_path / "raw" / DRIVE / "image_02/data/0000000007.png"
    assert sample.image.path == tmp_path / "satellite" / DRIVE / "0000000007.png"
    assert sample.image.side_px == 1280 and sample.image.gsd == pytest.approx(gsd_at(LAT))
    assert (sample.turn_deg, sample.fov_deg) == (0.0, 360.0)


@pytest.mark.parametrize("raw", ["raw", "raw_data"])
@pytest.mark.parametrize("aerial", ["satellite", "satmap"])
@pytest.mark.parametrize("place", ["", "splits", "dataLoader"])
def test_layouts(tmp_path: Path, raw: str, aerial: str, place: str) -> None:
    lists = {"test2": [f"{frame(7)} 0 0 0", "", f"{frame(8)} 0 0 0"]}
    fixes = {frame(7): oxts(35.0), frame(8): oxts(36.0, lat=49.016)}
    Root(tmp_path, lists, fixes, raw, aerial, {"test2": place}).write()
    protocol = read_protocol(f"kitti:{tmp_path}", ProtocolOptions(split="test2"))
    assert [sample.name for sample in protocol.samples] == [frame(7), frame(8)]
    assert [s.heading_deg for s in protocol.samples] == pytest.approx([35.0, 36.0])
    assert all(s.photo.is_file() and s.image.path.is_file() for s in protocol.samples)
    assert protocol.dataset == "kitti" and not protocol.has_gallery
    assert protocol.settings["split"] == "test2"
    assert protocol.settings["heading_noise_deg"] == "10"
    assert protocol.samples[1].image.gsd < protocol.samples[0].image.gsd


def test_a_list_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "test1_files.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{frame(1)} 0.5 -1 1\r\n\r\n".encode())
    (only,) = read_list(path, has_labels=True)
    assert (only.frame, only.line, only.label) == (frame(1), 1, Label(0.5, -1.0, 1.0))
    assert (only.date, only.drive, only.stem) == ("2011_09_26", DRIVE, "0000000001")


def test_frames_that_come_again(tmp_path: Path) -> None:
    lines = [f"{frame(1)} 0.1 0 0", f"{frame(2)} 0 0 0", f"{frame(1)} 0.2 0 0"]
    lines.append(f"{frame(1)} 0.3 0 0")
    Root(tmp_path, {"test1": lines}, {frame(1): oxts(), frame(2): oxts()}).write()
    protocol = read(tmp_path, reading="ciper")
    names = [sample.name for sample in protocol.samples]
    assert names == [frame(1), frame(2), f"{frame(1)}#2", f"{frame(1)}#3"]
    assert len({sample.photo for sample in protocol.samples}) == 2
    assert [s.pose[0] for s in protocol.samples] == pytest.approx([2.0, 0.0, 4.0, 6.0])
    assert any(note.startswith("2 lines of test1_files.txt") for note in protocol.notes)


def test_a_heading_noise_of_zero(tmp_path: Path) -> None:
    sample = one_sample(tmp_path, 35.0, "0.6 0.3 0.9", heading_noise_deg=0.0)
    assert sample.pose == pytest.approx((12.0, 6.0, 90.0))
    assert sample.told.heading_within_deg == 0.0


# ---------------------------------------------------------------------------------------- training


def train_root(tmp_path: Path) -> Path:
    frames = [frame(n) for n in range(40)] + [frame(n, SKIPPED) for n in range(3)]
    return Root(tmp_path, {"train": frames}, {name: oxts(35.0) for name in frames}).write()


def test_training_shifts_are_drawn_by_name_and_seed(tmp_path: Path) -> None:
    root = train_root(tmp_path)
    poses = {s.name: s.pose for s in read(root, part="train", reading="ciper").samples}
    again = {s.name: s.pose for s in read(root, "test2", part="train", reading="ciper").samples}
    other = {s.name: s.pose for s in read(root, part="train", reading="ciper", seed=1).samples}
    assert poses == again
    assert all(poses[name] != other[name] for name in poses)
    drawn = np.array(list(poses.values()))
    assert np.abs(drawn[:, :2]).max() <= 20.0
    assert (drawn[:, :2] > 10.0).any(axis=0).all() and (drawn[:, :2] < -10.0).any(axis=0).all()
    few = [frame(5), frame(3)]
    (root / "train_files.txt").write_text("\n".join(few))
    assert {s.name: s.pose for s in read(root, part="train", reading="ciper").samples} == {
        name: poses[name] for name in few
    }


def test_drawn_labels_are_uniform() -> None:
    drawn = [drawn_label(frame(n), seed=3) for n in range(2000)]
    values = np.array([(label.x, label.y, label.theta) for label in drawn])
    assert np.abs(values).max() <= 1.0
    np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(values.std(axis=0), 3.0**-0.5, atol=0.02)
    assert np.abs(np.corrcoef(values.T)[np.triu_indices(3, 1)]).max() < 0.08


def test_ciper_skips_a_drive_in_training_only(tmp_path: Path) -> None:
    root = train_root(tmp_path)
    assert len(read(root, part="train").samples) == 43
    protocol = read(root, part="train", reading="ciper")
    assert len(protocol.samples) == 40
    assert any("3 frames of 2011_10_03_drive_0047 are left out" in n for n in protocol.notes)
    (root / "test1_files.txt").write_text(f"{frame(0, SKIPPED)} 0 0 0\n")
    assert len(read(root, reading="ciper").samples) == 1
    (root / "train_files.txt").write_text(f"{frame(0, SKIPPED)}\n")
    with pytest.raises(DatasetError, match="names only frames of 2011_10_03_drive_0047"):
        read(root, part="train", reading="ciper")


# ----------------------------------------------------------------------------------------- cameras


def test_calibration(tmp_path: Path) -> None:
    lines = [f"{frame(1)} 0 0 0", f"{frame(1, OTHER)} 0 0 0"]
    Root(tmp_path, {"test1": lines}, {frame(1): oxts(), frame(1, OTHER): oxts()}).write()
    (tmp_path / "raw/2011_09_26/calib_cam_to_cam.txt").write_text(CALIBRATION)
    protocol = read(tmp_path)
    true, assumed = (sample.camera for sample in protocol.samples)
    assert true == CameraOverrides("pinhole", focal_px=720.0, principal_px=(609.5, 172.5))
    assert assumed == CameraOverrides("pinhole", focal_px=721.5)
    notes = [note for note in protocol.notes if "calib_cam_to_cam.txt" in note]
    assert len(notes) == 1 and "2011_09_28" in notes[0] and "2011_09_26" not in notes[0]
    photo = Image.new("RGB", (1242, 375))
    # The middle of the pixel in KITTI's column 609 and row 172 is on the optical axis.
    ray = rays_from_pixels(camera_from_photo(photo, true), 609.5, 172.5)
    np.testing.assert_allclose(ray, (0.0, 1.0, 0.0), atol=1e-12)
    ray = rays_from_pixels(camera_from_photo(photo, true), 609.5 + 720.0, 172.5)
    np.testing.assert_allclose(ray, (0.5**0.5, 0.5**0.5, 0.0), atol=1e-12)
    ray = rays_from_pixels(camera_from_photo(photo, assumed), 621.0, 187.5)
    np.testing.assert_allclose(ray, (0.0, 1.0, 0.0), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calib_time: 1\n", "has no P_rect_02"),
        ("a: 1\nP_rect_02: 1 2 3\n", "line 2: P_rect_02 is not 12 numbers"),
        ("P_rect_02: 7 0 6 0 0 7 x 0 0 0 1 0\n", "line 1: P_rect_02 is not 12 numbers"),
        ("P_rect_02: 7 0 nan 0 0 7 1 0 0 0 1 0\n", "line 1: P_rect_02 is not 12 numbers"),
        ("P_rect_02: 0 0 6 0 0 7 1 0 0 0 1 0\n", "focal lengths 0 and 7 px"),
        ("P_rect_02: 7 0 6 0 0 8 1 0 0 0 1 0\n", "expected square pixels"),
    ],
)
def test_bad_calibrations(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_calibration(tmp_path / "c.txt")


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{frame(2)} 0.1 0.2", "line 2 has 3 fields"),
        (frame(2), "line 2 has 1 fields"),
        (f"{frame(2)} 0.1 0.2 0.3 0.4", "line 2 has 5 fields"),
        (f"{frame(2)} 0.1 abc 0.3", "line 2 has the label 'abc'"),
        (f"{frame(2)} nan 0.2 0.3", "line 2 has the label 'nan'"),
        (f"{frame(2)} 0.1 0.2 inf", "line 2 has the label 'inf'"),
        (f"{frame(2)} 0.1 0.2 1.00001", "line 2 has the label '1.00001'"),
        (f"{frame(2)} 0.1 -1.00001 0", "line 2 has the label '-1.00001'"),
        (f"2011_09_28/{DRIVE.split('/')[1]}/0000000002.png 0 0 0", "line 2 names a drive of 2011"),
        (f"{DRIVE}/../0000000002.png 0 0 0", "line 2 names '2011.*expected date/drive"),
        ("0000000002.png 0 0 0", "line 2 names '0000000002.png'"),
        (f"{DRIVE}/0000000002.jpg 0 0 0", "line 2 names '2011"),
        (f"{frame(1)} 0 0 0", "line 2 names 2011.* as line 1 does"),
    ],
)
def test_bad_test_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "test1_files.txt"
    path.write_text(f"{frame(1)} 0 0 0\n{line}\n")
    with pytest.raises(DatasetError, match=f"test1_files.txt {message}") as caught:
        read_list(path, has_labels=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{frame(2)} 0.1 0.2 0.3", "line 2 has 4 fields; expected date/drive/frame.png: mend"),
        (frame(1), "line 2 names 2011.* as line 1 does"),
    ],
)
def test_bad_train_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train_files.txt"
    path.write_text(f"{frame(1)}\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        read_list(path, has_labels=False)


def test_labels_may_be_rounded(tmp_path: Path) -> None:
    path = tmp_path / "test1_files.txt"
    path.write_text(f"{frame(1)} 1.0000005 -1.0000005 1e-3\n")
    (only,) = read_list(path, has_labels=True)
    assert only.label == Label(1.0000005, -1.0000005, 0.001)


def test_bad_lists(tmp_path: Path) -> None:
    path = tmp_path / "test1_files.txt"
    with pytest.raises(DatasetError, match=r"splits/test1_files\.txt.*dataLoader/test1_files\.txt"):
        find_list(tmp_path, "test1_files.txt")
    with pytest.raises(DatasetError, match="cannot read"):
        read_list(path, has_labels=True)
    path.write_text("\n\n")
    with pytest.raises(DatasetError, match="is empty"):
        read_list(path, has_labels=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="is not text"):
        read_list(path, has_labels=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 fields"),
        (" ".join(["1"] * 29), "has 29 fields; expected the 30 numbers"),
        (oxts() * 2, "has 60 fields"),
        (oxts(lat=math.nan), "latitude nan"),
        (oxts(lat=91.0), "latitude 91.0"),
        (oxts(lon=181.0), "longitude 181.0"),
        (oxts(heading_deg=math.nan), "yaw 'nan'"),
        (oxts(heading_deg=math.inf), "yaw '-inf'"),
        (oxts().replace("112.8 0.02 0.001 1.", "112.8 0.02 0.001 x"), "yaw 'x"),
        (oxts().replace("112.8 0.02 0.001 1.", "112.8 0.02 0.001 90"), "expected radians"),
        (oxts().replace(repr(LAT), "here"), "latitude nan"),
    ],
)
def test_bad_oxts(tmp_path: Path, text: str, message: str) -> None:
    lines = [f"{frame(1)} 0 0 0", f"{frame(2)} 0 0 0"]
    Root(tmp_path, {"test1": lines}, {frame(1): oxts(), frame(2): text}).write()
    pattern = f"oxts/data/0000000002.txt line 1.*{re.escape(message)}"
    with pytest.raises(DatasetError, match=pattern) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_oxts_of_another_drive(tmp_path: Path) -> None:
    fixes = {frame(n): oxts(lat=LAT + n * 1e-4) for n in range(6)}
    fixes[frame(3)] = oxts(lat=LAT + 0.0175)
    lines = [f"{name} 0 0 0" for name in fixes]
    Root(tmp_path, {"test1": lines}, fixes).write()
    assert len(read(tmp_path).samples) == 6  # 1.9 km off
    Root(tmp_path, {}, {frame(3): oxts(lon=LON + 0.03)}).write()
    with pytest.raises(DatasetError, match=r"0000000003\.txt line 1 lies 2\.2 km from the middle"):
        read(tmp_path)
    Root(tmp_path, {}, {frame(3): oxts(lat=-LAT, lon=LON - 179.0)}).write()
    with pytest.raises(DatasetError, match=r"0000000003\.txt line 1 lies"):
        read(tmp_path)


def test_drives_far_apart_are_no_error(tmp_path: Path) -> None:
    fixes = {frame(1): oxts(), frame(1, OTHER): oxts(lat=LAT + 1.0)}
    Root(tmp_path, {"test1": [f"{name} 0 0 0" for name in fixes]}, fixes).write()
    assert len(read(tmp_path).samples) == 2


@pytest.mark.parametrize("gone", ["raw/{}/image_02/data", "raw/{}/oxts/data", "satellite/{}"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_missing_file_in_a_drive(tmp_path: Path, gone: str, is_folder: bool) -> None:
    lines = [f"{frame(1)} 0 0 0", f"{frame(2)} 0 0 0"]
    Root(tmp_path, {"test1": lines}, {frame(1): oxts(), frame(2): oxts()}).write()
    folder = tmp_path / gone.format(DRIVE)
    for path in sorted(folder.iterdir())[0 if is_folder else 1 :]:
        path.unlink()
    if is_folder:
        folder.rmdir()
    line = 1 if is_folder else 2
    with pytest.raises(DatasetError, match=rf"test1_files\.txt line {line} .* is missing"):
        read(tmp_path)


def test_absent_drives(tmp_path: Path) -> None:
    lines = [f"{frame(1)} 0 0 0", f"{frame(2, OTHER)} 0 0 0", f"{frame(3, OTHER)} 0 0 0"]
    Root(tmp_path, {"test1": lines}, {frame(1): oxts()}).write()
    protocol = read(tmp_path)
    assert [sample.name for sample in protocol.samples] == [frame(1)]
    assert any(n.startswith("2 of 3 frames are left out") and OTHER in n for n in protocol.notes)
    assert any("names 3 frames, the published one 3,773" in n for n in protocol.notes)
    (tmp_path / "test1_files.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(DatasetError, match="none of the 1 drives"):
        read(tmp_path)


def test_absent_folders(tmp_path: Path) -> None:
    (tmp_path / "test1_files.txt").write_text(f"{frame(1)} 0 0 0\n")
    with pytest.raises(DatasetError, match="holds neither raw nor raw_data"):
        read(tmp_path)
    (tmp_path / "raw").mkdir()
    with pytest.raises(DatasetError, match="holds neither satellite nor satmap"):
        read(tmp_path)


# --------------------------------------------------------------------------------- the real lists


def real_list(name: str) -> Path:
    folder = os.environ.get("CIPER_REAL_DATA")
    if not folder:
        pytest.skip("CIPER_REAL_DATA is unset: it names the folder of the real lists")
    return Path(folder) / "kitti" / f"{name}_files.txt"


@pytest.mark.parametrize("name", ["train", "test1", "test2"])
def test_real_lists(name: str) -> None:
    listed = read_list(real_list(name), has_labels=name != "train")
    assert len(listed) == NUM_PUBLISHED[name]
    assert len({frame.name for frame in listed}) == len(listed)
    assert [frame.line for frame in listed] == list(range(1, len(listed) + 1))
    times = Counter(frame.frame for frame in listed)
    assert Counter(times.values()) == (
        {1: 3019, 2: 323, 3: 36} if name == "test1" else {1: len(listed)}
    )
    if name == "train":
        assert all(frame.label is None for frame in listed)
        assert sum("_0047_" not in frame.drive for frame in listed) == NUM_CIPER_TRAIN
    else:
        labels = [frame.label for frame in listed if frame.label is not None]
        values = np.array([(label.x, label.y, label.theta) for label in labels])
        assert np.abs(values).max() <= 1.0
        np.testing.assert_allclose(values.std(axis=0), 3.0**-0.5, atol=0.02)


def test_real_drives_of_test2_are_not_trained_on() -> None:
    drives = {
        name: {frame.drive for frame in read_list(real_list(name), has_labels=name != "train")}
        for name in NUM_PUBLISHED
    }
    assert [len(drives[name]) for name in ("train", "test1", "test2")] == [35, 16, 8]
    assert drives["test1"] - drives["train"] == {"2011_09_29/2011_09_29_drive_0004_sync"}
    assert not drives["test2"] & drives["train"]


def test_real_lines_in_a_root(tmp_path: Path) -> None:
    """Frames of one real drive, with oxts files made up, come back with their published labels."""
    lines = [line for line in real_list("test2").read_text().splitlines() if "drive_0037" in line]
    frames = [line.split()[0] for line in lines]
    headings = np.linspace(5.0, 355.0, len(frames))
    fixes = {name: oxts(float(h)) for name, h in zip(frames, headings, strict=True)}
    Root(tmp_path, {}, fixes).write()
    (tmp_path / "test2_files.txt").write_text(real_list("test2").read_text())
    protocol = read(tmp_path, "test2", reading="ciper")
    assert len(protocol.samples) == len(lines) == 32
    assert any(note.startswith("7,510 of 7,542 frames are left out") for note in protocol.notes)
    for sample, line in zip(protocol.samples, lines, strict=True):
        x, y, theta = map(float, line.split()[1:])
        assert sample.pose[:2] == pytest.approx((20.0 * x, -20.0 * y), abs=1e-9)
        turn_deg = math.remainder(-sample.pose[2], 360.0)
        assert turn_deg == pytest.approx(10.0 * theta, abs=1e-9)
