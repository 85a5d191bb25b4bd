"""A simulated KITTI: drives with photos, oxts packets and calibrations, and aerial images.

The GPS reports the vehicle's position and its yaw, in radians counter-clockwise from east. The left
colour camera looks straight ahead from a place that is fixed in the vehicle's frame, and leans as
the vehicle does. Each aerial image is centred on its frame's position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ciper.camera import Camera
from ciper.data.poses import PhotoPose
from ciper.data.protocol import AerialImage
from ciper.geo import LocalFrame, forward, right, wrap_signed_deg
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

PLACE = LocalFrame(lat=49.015, lon=8.4)
SIDE_PX = 1280
# Of the left colour camera, from the GPS, in the vehicle's frame.
FORWARD_M, RIGHT_M = 1.08, 0.26
CAMERA_HEIGHT_M = 1.65
_RENDER_GSD = 0.2
_ALTITUDE_M = 116.0
_LEAN_DEG = 0.8


@dataclass(frozen=True)
class Rectified:
    """What rectification makes of the left colour camera on one day.

    Attributes:
        size_px: (height, width).
        focal_px: the same along both axes.
        middle_px: (column, row) of the principal point, 0 being the *centre* of the first pixel.
    """

    size_px: tuple[int, int]
    focal_px: float
    middle_px: tuple[float, float]

    @property
    def camera(self) -> Camera:
        """The same in terms of pixel corners, level."""
        hfov_deg = math.degrees(2.0 * math.atan(self.size_px[1] / 2.0 / self.focal_px))
        middle_px = (self.middle_px[0] + 0.5, self.middle_px[1] + 0.5)
        return Camera("pinhole", *self.size_px, hfov_deg, principal_px=middle_px)


# As KITTI's own files for these two days.
DAYS = {
    "2011_10_03": Rectified((376, 1241), 718.856, (607.1928, 185.2157)),
    "2011_09_26": Rectified((375, 1242), 721.5377, (609.5593, 172.854)),
}
# Photo i belongs to list i modulo 4: half of them are trained on, a quarter is tested on in the
# same streets, a quarter on another day.
_PARTS = (
    ("train", "2011_10_03_drive_0027_sync"),
    ("test1", "2011_10_03_drive_0027_sync"),
    ("train", "2011_10_03_drive_0027_sync"),
    ("test2", "2011_09_26_drive_0005_sync"),
)


def write_kitti(folder: Path, config: SimulateConfig, tell: Progress) -> tuple[PhotoPose, ...]:
    """Write the layout; see `_PARTS` for which photo is in which list."""
    tell("building the city", 0, 1)
    beyond_m = beyond_for(SIDE_PX * tile_gsd(PLACE.lat) / 2.0 + math.hypot(FORWARD_M, RIGHT_M))
    town = build_town(PLACE, config.seed, config.size_m, beyond_m=beyond_m, gsd=_RENDER_GSD)
    for date, rectified in DAYS.items():
        (folder / "raw" / date).mkdir(parents=True)
        write_lines(folder / "raw" / date / "calib_cam_to_cam.txt", _calibration_lines(rectified))
    lists: dict[str, list[str]] = {"train": [], "test1": [], "test2": []}
    poses = []
    sites = camera_places(town, config.num_photos, config.seed, beyond_m=beyond_m)
    for i, (x, y) in enumerate(sites):
        part, drive = _PARTS[i % len(_PARTS)]
        frame = _Frame(folder, drive, f"{i:010d}")
        rng = photo_rng(config.seed, i)
        poses.append(_take_frame(town, frame, (float(x), float(y)), any_heading_deg(i, rng), rng))
        lists[part].append(frame.name if part == "train" else _labelled(frame.name, rng))
        tell("taking photos", i + 1, config.num_photos)
    for part, lines in lists.items():
        write_lines(folder / f"{part}_files.txt", lines)
    return tuple(poses)


@dataclass(frozen=True)
class _Frame:
    """One frame of a drive, and where its files lie."""

    root: Path
    drive: str
    number: str

    @property
    def date(self) -> str:
        return self.drive[:10]

    @property
    def name(self) -> str:
        return f"{self.date}/{self.drive}/{self.number}.png"

    @property
    def photo(self) -> Path:
        return self._below("raw", "image_02/data", "png")

    @property
    def oxts(self) -> Path:
        return self._below("raw", "oxts/data", "txt")

    @property
    def aerial(self) -> Path:
        return self._below("satellite", "", "png")

    def _below(self, top: str, inner: str, ending: str) -> Path:
        folder = self.root / top / self.date / self.drive / inner
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.number}.{ending}"


def _take_frame(
    town: Town,
    frame: _Frame,
    site: tuple[float, float],
    heading_deg: float,
    rng: np.random.Generator,
) -> PhotoPose:
    """Write a frame's three files; the camera stands at the site, the GPS beside it."""
    arm_m = FORWARD_M * forward(heading_deg) + RIGHT_M * right(heading_deg)
    lat, lon = town.geographic(site[0] - float(arm_m[0]), site[1] - float(arm_m[1]))
    pitch_deg, roll_deg = (float(lean) for lean in rng.uniform(-_LEAN_DEG, _LEAN_DEG, 2))
    fields = _oxts_fields(lat, lon, heading_deg=heading_deg, pitch_deg=pitch_deg, roll_deg=roll_deg)
    write_lines(frame.oxts, [" ".join(fields)])
    town.save_aerial(AerialImage(frame.aerial, lat, lon, tile_gsd(lat), SIDE_PX, is_mercator=True))
    camera = DAYS[frame.date].camera
    leaning = replace(camera, pitch_deg=pitch_deg, roll_deg=roll_deg)
    shot = Shot(*site, heading_deg, CAMERA_HEIGHT_M, leaning)
    return town.photograph(frame.photo, shot, rng)


def _labelled(name: str, rng: np.random.Generator) -> str:
    """A line of a test list with its two shifts and its turn, x y theta in [-1, 1]."""
    return " ".join([name, *(f"{label:.8g}" for label in rng.uniform(-1.0, 1.0, 3))])


# ------------------------------------------------------------------------------------------- text


def _oxts_fields(
    lat: float, lon: float, *, heading_deg: float, pitch_deg: float, roll_deg: float
) -> list[str]:
    """The 30 fields of a packet of a vehicle at rest.

    Of its angles, roll lifts the left side, pitch lowers the front, yaw turns left from east.
    """
    yaw_deg = float(wrap_signed_deg(90.0 - heading_deg))
    angles = [f"{math.radians(deg):.13g}" for deg in (roll_deg, -pitch_deg, yaw_deg)]
    velocities, accelerations, rates = ["0"] * 5, ["0", "0", "9.81"] * 2, ["0"] * 6
    accuracy, state = ["0.05", "0.01"], ["4", "10", "5", "5", "5"]
    position = [f"{lat:.13f}", f"{lon:.13f}", f"{_ALTITUDE_M:.4f}"]
    return [*position, *angles, *velocities, *accelerations, *rates, *accuracy, *state]


def _calibration_lines(rectified: Rectified) -> list[str]:
    """The lines of calib_cam_to_cam.txt: four cameras in a row, already without distortion."""
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    height_px, width_px = rectified.size_px
    focal_px, (column, row) = rectified.focal_px, rectified.middle_px
    size = (width_px, height_px)
    unit = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    for index, offset_m in enumerate((0.0, -0.54, 0.06, -0.47)):
        entries = {
            "S": size,
            "K": (focal_px, 0, column, 0, focal_px, row, 0, 0, 1),
            "D": (0, 0, 0, 0, 0),
            "R": unit,
            "T": (offset_m, 0, 0),
            "S_rect": size,
            "R_rect": unit,
            "P_rect": (focal_px, 0, column, focal_px * offset_m, 0, focal_px, row, 0, 0, 0, 1, 0),
        }
        for name, values in entries.items():
            lines.append(f"{name}_{index:02d}: " + " ".join(f"{value:.6e}" for value in values))
    return lines
