"""Ford Multi-AV Seasonal with the aerial images and labels of HighlyAccurate: `ford:ROOT`.

A label gives the *body* of the vehicle (x forward, y right, z down) against north, east and down;
the camera's pose follows from the calibration: X_body = R X_camera + T, with the camera's x right,
y down and z forward. Metres on the aerial images are those of the spherical Mercator map that they
were cut from, scaled at each image's centre, so that a position and its pixel always agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ciper.camera import CameraOverrides
from ciper.data.datasets import ProtocolOptions, Reading
from ciper.data.ford_labels import LOGS, MAP_RADIUS_M, Drive, Labels, find_drive, read_labels
from ciper.data.ford_rig import Rig, read_rig, rotations
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.errors import ConfigError
from ciper.geo import bearing_deg, forward, right, wrap_deg

FloatArray = NDArray[np.float64]

IMAGE_SIDE_PX, CHIP_SIDE_PX = 1280, 512
SHIFT_M, ROTATION_DEG = 20.0, 10.0
ASSUMED_FOV_DEG = 80.0
# What looks within about half a degree of straight up or down has no heading.
MIN_LEVEL = 0.01


def read_ford(root: Path, split: str, options: ProtocolOptions) -> Protocol:
    """The queries of a log, each with the aerial image that its label names.

    Args:
        root: holds `<day>/V2/<Log>` and `Calibration-V2`.
        split: one of `LOGS`; log1 and log2 have published training frames.
        options: what is asked; the part "train" draws its shifts and rotations from the seed.

    Raises:
        ConfigError: no such log.
        DatasetError: a folder, a label or the calibration is not as published.
    """
    if split not in LOGS:
        raise ConfigError(f"--split {split}: ford has none such; expected {', '.join(LOGS)}")
    drive = find_drive(root, split, options.part)
    rig = read_rig(root)
    labels, notes = read_labels(drive, options.seed)
    within_deg = ROTATION_DEG if options.heading_noise_deg is None else options.heading_noise_deg
    chips = _Chips(within_deg, options.reading)
    return Protocol(
        dataset="ford",
        settings={
            "split": split,
            "part": options.part,
            "day": drive.day,
            "reading": options.reading,
            "heading_noise_deg": f"{within_deg:g}",
            "seed": str(options.seed),
        },
        samples=_samples(drive, labels, rig, chips),
        notes=(*notes, *_rig_notes(rig)),
    )


def image_gsd(lat: float) -> float:
    """Metres per pixel of a map image of zoom 18 and scale 2 (256 px span the world at zoom 0)."""
    return 2.0 * math.pi * MAP_RADIUS_M / 256.0 / 2**18 / 2.0 * math.cos(math.radians(lat))


# ------------------------------------------------------------------------------------------ poses


@dataclass(frozen=True, eq=False)
class _Poses:
    """Body and camera: (N, 2) metres east and north of the image's centre, (N,) degrees."""

    body_m: FloatArray
    body_deg: FloatArray
    camera_m: FloatArray
    camera_deg: FloatArray
    pitch_deg: FloatArray
    roll_deg: FloatArray


def _poses(labels: Labels, rig: Rig) -> _Poses:
    """Poses from attitudes; vectors are (north, east, down), and axes are a matrix's columns."""
    ned_from_body = rotations(labels.quaternions)
    ned_from_camera = ned_from_body @ rig.body_from_camera
    ahead, axis = ned_from_body[:, :, 0], ned_from_camera[:, :, 2]
    level = np.hypot(axis[:, 0], axis[:, 1])
    labels.refuse(np.hypot(ahead[:, 0], ahead[:, 1]) < MIN_LEVEL, _steep(labels, "vehicle"))
    labels.refuse(level < MIN_LEVEL, _steep(labels, "camera"))
    camera_deg = bearing_deg(axis[:, 1], axis[:, 0])
    # The level direction to the right of the view holds cos(roll) of the camera's right axis, which
    # is its x, and sin(roll) of its up axis, which is minus its y.
    level_right = right(camera_deg)[:, ::-1]
    cosine = np.sum(ned_from_camera[:, :2, 0] * level_right, axis=1)
    sine = -np.sum(ned_from_camera[:, :2, 1] * level_right, axis=1)
    return _Poses(
        body_m=labels.offsets_m,
        body_deg=bearing_deg(ahead[:, 1], ahead[:, 0]),
        camera_m=labels.offsets_m + (ned_from_body @ rig.position_m)[:, [1, 0]],
        camera_deg=camera_deg,
        pitch_deg=np.rad2deg(np.arctan2(-axis[:, 2], level)),
        roll_deg=np.rad2deg(np.arctan2(sine, cosine)),
    )


def _steep(labels: Labels, name: str) -> Callable[[int], str]:
    return lambda i: (
        f"the quaternion {labels.quaternions[i].tolist()} makes the {name} look straight up or "
        "down; expected a level one, which has a heading"
    )


# ------------------------------------------------------------------------------------------ chips


@dataclass(frozen=True)
class _Chips:
    """How the published labels u, v and theta in [-1, 1] cut chips.

    The image is turned until the vehicle drives up, and shifted until its body stands 20 u left of
    the chip's centre and 20 v above it. By a = within_deg theta it is turned counter-clockwise,
    which takes the chip's up to a clockwise of the vehicle: about the body before the shift
    (ciper), or about the chip's centre after it (highlyaccurate).
    """

    within_deg: float
    reading: Reading

    def cuts(self, poses: _Poses, moves: FloatArray) -> FloatArray:
        """East and north of the chips' centres and where their up points, (N, 3)."""
        up_deg = wrap_deg(poses.body_deg + self.within_deg * moves[:, 2])
        # Turning about the chip's centre at last leaves the centre where the shift has put it.
        shifted_deg = poses.body_deg if self.reading == "highlyaccurate" else up_deg
        left_m, above_m = SHIFT_M * moves[:, :1], SHIFT_M * moves[:, 1:2]
        centre_m = poses.body_m + left_m * right(shifted_deg) - above_m * forward(shifted_deg)
        return np.hstack([centre_m, up_deg[:, None]])

    def within_m(self, rig: Rig) -> float:
        """How far a camera may lie from its chip's centre along each of the chip's axes."""
        # A square that is turned about its centre, by up to 45 degrees, reaches farther out.
        turn_deg = min(self.within_deg, 45.0) if self.reading == "highlyaccurate" else 0.0
        reach = math.cos(math.radians(turn_deg)) + math.sin(math.radians(turn_deg))
        return SHIFT_M * reach + float(np.linalg.norm(rig.position_m))


# ---------------------------------------------------------------------------------------- samples


def _samples(drive: Drive, labels: Labels, rig: Rig, chips: _Chips) -> tuple[Sample, ...]:
    poses = _poses(labels, rig)
    # The guess points the vehicle up and knows how the camera looks away from where it drives.
    guesses_deg = wrap_deg(poses.camera_deg - poses.body_deg).tolist()
    within_m = chips.within_m(rig)
    images = _images(drive, labels)
    cuts = chips.cuts(poses, labels.moves).tolist()
    places = np.column_stack([poses.camera_m, poses.camera_deg]).tolist()
    tilts = np.column_stack([poses.pitch_deg, poses.roll_deg]).tolist()
    samples = []
    for i, photo in enumerate(labels.photos):
        image = images[labels.chips[i]]
        x_m, y_m, heading_deg = places[i]
        cut_x_m, cut_y_m, up_deg = cuts[i]
        samples.append(
            Sample(
                name=f"{drive.name}/{photo}",
                photo=drive.photos / photo,
                camera=_camera(rig, *tilts[i]),
                x_m=x_m,
                y_m=y_m,
                heading_deg=heading_deg,
                image=image,
                cut=Cut(cut_x_m, cut_y_m, up_deg, side_m=CHIP_SIDE_PX * image.gsd),
                told=Told(guesses_deg[i], chips.within_deg, within_m),
            )
        )
    return tuple(samples)


def _images(drive: Drive, labels: Labels) -> dict[str, AerialImage]:
    """One aerial image per file, however many labels name it."""
    places = dict(zip(labels.chips, labels.centres.tolist(), strict=True))
    return {
        name: AerialImage(
            drive.chips / name,
            lat=lat,
            lon=lon,
            gsd=image_gsd(lat),
            side_px=IMAGE_SIDE_PX,
            is_mercator=True,
        )
        for name, (lat, lon) in places.items()
    }


def _camera(rig: Rig, pitch_deg: float, roll_deg: float) -> CameraOverrides:
    return CameraOverrides(
        projection="pinhole",
        hfov_deg=ASSUMED_FOV_DEG if rig.focal_px is None else None,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        focal_px=rig.focal_px,
        principal_px=rig.principal_px,
    )


def _rig_notes(rig: Rig) -> tuple[str, ...]:
    ahead_m, right_m, _ = rig.position_m
    notes = [
        f"poses are the camera's, which sits ({ahead_m:.2f}, {right_m:.2f}) m ahead and to the "
        "right of the vehicle's body; published figures and models mean the body's"
    ]
    if rig.focal_px is None:
        notes.append(f"no intrinsics: the photos are taken to span {ASSUMED_FOV_DEG:g} degrees")
    return tuple(notes)
