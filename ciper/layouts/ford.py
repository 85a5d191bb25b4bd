"""A simulated Ford Multi-AV: logs with photos, quaternions, calibration and aerial images.

Frames: NED is north, east, down; the body's axes point forward, right and down; the camera's right,
down and forward. The label's quaternion turns body to NED and its position is the body's; the
calibration gives X_body = R X_camera + T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ciper.camera import Camera
from ciper.data.poses import PhotoPose
from ciper.data.protocol import AerialImage
from ciper.geo import LocalFrame
from ciper.layouts.town import (
    Town,
    any_heading_deg,
    beyond_for,
    build_town,
    camera_places,
    photo_rng,
    tile_gsd,
    write_lines,
)
from ciper.simulate import Progress, Shot, SimulateConfig

FloatArray = NDArray[np.float64]

PLACE = LocalFrame(lat=42.3, lon=-83.2)
SIDE_PX = 1280
CAMERA_HEIGHT_M = 1.7
# The camera on the body: metres forward, right and down; it looks 5 deg left and 2 deg down.
ARM_M = np.array([1.6, -0.5, -1.3])
LOOKS_RIGHT_DEG, LOOKS_UP_DEG = -5.0, -2.0
SIZE_PX, FOCAL_PX, MIDDLE_PX = (860, 1656), 945.4, (855.5, 566.4)
_RENDER_GSD = 0.2
_LEAN_DEG = 1.5
# How far the body is from the middle of its aerial image, along each axis.
_OFF_CENTRE_M = 8.0
# Training frames of the first log are published as the lines from this one on.
_NUM_OTHER_LINES = {"Log1": 4500, "Log2": 0}
_FIRST_NAME = 1_501_800_000_000_000
# Photo i belongs to part i modulo 4.
_PARTS = (
    ("2017-10-26", "Log1"),
    ("2017-08-04", "Log1"),
    ("2017-10-26", "Log2"),
    ("2017-08-04", "Log2"),
)
_TRAIN_DATE = "2017-10-26"


def write_ford(folder: Path, config: SimulateConfig, tell: Progress) -> tuple[PhotoPose, ...]:
    """Write the layout; see `_PARTS` for which photo is in which log."""
    tell("building the city", 0, 1)
    reach_m = SIDE_PX * tile_gsd(PLACE.lat) / 2.0 + _OFF_CENTRE_M + float(np.linalg.norm(ARM_M))
    beyond_m = beyond_for(reach_m)
    town = build_town(PLACE, config.seed, config.size_m, beyond_m=beyond_m, gsd=_RENDER_GSD)
    _write_calibration(folder / "Calibration-V2" / "V2")
    logs = [_Log(folder, date, log) for date, log in _PARTS]
    lines: list[list[str]] = [_other_lines(log) for log in logs]
    poses = []
    sites = camera_places(town, config.num_photos, config.seed, beyond_m=beyond_m)
    for i, (x, y) in enumerate(sites):
        part = i % len(_PARTS)
        rng = photo_rng(config.seed, i)
        body = _random_body(i, rng)
        pose, line = _take_frame(town, logs[part], body, (float(x), float(y)), rng)
        poses.append(pose)
        lines[part].append(line)
        tell("taking photos", i + 1, config.num_photos)
    for log, labels in zip(logs, lines, strict=True):
        write_lines(log.labels, labels)
    return tuple(poses)


@dataclass(frozen=True)
class _Log:
    """A day's drive, and where its files lie."""

    root: Path
    date: str
    log: str

    @property
    def is_train(self) -> bool:
        return self.date == _TRAIN_DATE

    @property
    def labels(self) -> Path:
        ending = "" if self.is_train else "_test"
        return self._folder("") / f"grd_sat_quaternion_latlon{ending}.txt"

    @property
    def photos(self) -> Path:
        return self._folder(f"{self.date}-V2-{self.log}-FL")

    @property
    def aerial(self) -> Path:
        return self._folder("SatelliteMaps_18")

    def _folder(self, name: str) -> Path:
        folder = self.root / self.date / "V2" / self.log / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class _Body:
    """A vehicle: its frame's name and how it is turned, from body to NED."""

    name: str
    turn: Rotation


def _random_body(i: int, rng: np.random.Generator) -> _Body:
    lean_deg = rng.uniform(-_LEAN_DEG, _LEAN_DEG, 2)
    # Intrinsic: yaw clockwise about down, then pitch nose up, then roll right side down.
    turn = Rotation.from_euler("ZYX", [any_heading_deg(i, rng), *lean_deg], degrees=True)
    return _Body(str(_FIRST_NAME + 250_000 * i), turn)


def _take_frame(
    town: Town, log: _Log, body: _Body, site: tuple[float, float], rng: np.random.Generator
) -> tuple[PhotoPose, str]:
    """Write a frame's photo and aerial image; the camera stands at the site."""
    arm_north_m, arm_east_m, _ = body.turn.apply(ARM_M)
    x, y = site[0] - float(arm_east_m), site[1] - float(arm_north_m)
    lat, lon = town.geographic(x, y)
    off_m = rng.uniform(-_OFF_CENTRE_M, _OFF_CENTRE_M, 2)
    middle = [f"{deg:.10f}" for deg in town.geographic(x - float(off_m[0]), y - float(off_m[1]))]
    aerial_lat, aerial_lon = map(float, middle)
    path = log.aerial / f"{'_'.join(middle)}.png"
    gsd = tile_gsd(aerial_lat)
    town.save_aerial(AerialImage(path, aerial_lat, aerial_lon, gsd, SIDE_PX, is_mercator=True))
    heading_deg, camera = _camera_on(body)
    shot = Shot(*site, heading_deg, CAMERA_HEIGHT_M, camera)
    pose = town.photograph(log.photos / f"{body.name}.png", shot, rng)
    labels = [] if log.is_train else [f"{label:.8g}" for label in rng.uniform(-1.0, 1.0, 3)]
    return pose, _line(body, (f"{lat:.10f}", f"{lon:.10f}"), middle, labels)


def camera_to_body() -> Rotation:
    """The camera's axes (right, down, forward) on the body's (forward, right, down)."""
    yaw, pitch = math.radians(LOOKS_RIGHT_DEG), math.radians(LOOKS_UP_DEG)
    ahead = np.array(
        [math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), -math.sin(pitch)]
    )
    to_the_right = np.array([-math.sin(yaw), math.cos(yaw), 0.0])
    down = np.cross(ahead, to_the_right)
    return Rotation.from_matrix(np.stack([to_the_right, down, ahead], axis=1))


def _camera_on(body: _Body) -> tuple[float, Camera]:
    """Heading and lean of the camera of a body, from its axes in NED."""
    to_the_right, down, ahead = (body.turn * camera_to_body()).as_matrix().T
    camera = Camera(
        "pinhole",
        *SIZE_PX,
        hfov_deg=math.degrees(2.0 * math.atan(SIZE_PX[1] / 2.0 / FOCAL_PX)),
        pitch_deg=math.degrees(math.asin(-ahead[2])),
        roll_deg=math.degrees(math.atan2(to_the_right[2], down[2])),
        # The calibration counts from the centre of the first pixel.
        principal_px=(MIDDLE_PX[0] + 0.5, MIDDLE_PX[1] + 0.5),
    )
    return math.degrees(math.atan2(ahead[1], ahead[0])) % 360.0, camera


# ------------------------------------------------------------------------------------------- text


def _line(
    body: _Body, position: Sequence[str], middle: Sequence[str], labels: Sequence[str]
) -> str:
    quaternion = [f"{part:.12f}" for part in _wxyz(body.turn)]
    return " ".join([f"{body.name}.txt", *quaternion, *position, *middle, *labels])


def _wxyz(turn: Rotation) -> FloatArray:
    return np.roll(turn.as_quat(), 1)


def _other_lines(log: _Log) -> list[str]:
    """Lines before the published training frames; their photos are not there, as nobody asks."""
    count = _NUM_OTHER_LINES[log.log] if log.is_train else 0
    place = (f"{PLACE.lat:.10f}", f"{PLACE.lon:.10f}")
    ahead = Rotation.identity()
    return [
        _line(_Body(str(_FIRST_NAME - count + k), ahead), place, place, ()) for k in range(count)
    ]


def _write_calibration(folder: Path) -> None:
    folder.mkdir(parents=True)
    turn = _yaml_block("rotation", "wxyz", _wxyz(camera_to_body()))
    arm = _yaml_block("translation", "xyz", ARM_M)
    header = ["header:", "  frame_id: body", "  seq: 0", "  stamp: {nsecs: 0, secs: 0}"]
    write_lines(
        folder / "cameraFrontLeft_body.yaml",
        ["child_frame_id: camera_front_left", *header, "transform:", *turn, *arm],
    )
    (height_px, width_px), (column, row) = SIZE_PX, MIDDLE_PX
    lens = f"{FOCAL_PX}, 0.0, {column}, 0.0, {FOCAL_PX}, {row}, 0.0, 0.0, 1.0"
    projection = f"{FOCAL_PX}, 0.0, {column}, 0.0, 0.0, {FOCAL_PX}, {row}, 0.0, 0.0, 0.0, 1.0, 0.0"
    intrinsics = [
        "D: [0.0, 0.0, 0.0, 0.0, 0.0]",
        f"K: [{lens}]",
        f"P: [{projection}]",
        "R: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]",
        "distortion_model: plumb_bob",
        f"height: {height_px}",
        f"width: {width_px}",
    ]
    write_lines(folder / "cameraFrontLeftIntrinsics.yaml", intrinsics)


def _yaml_block(name: str, axes: str, values: FloatArray) -> list[str]:
    numbers = [f"    {axis}: {float(value)!r}" for axis, value in zip(axes, values, strict=True)]
    return [f"  {name}:", *numbers]
