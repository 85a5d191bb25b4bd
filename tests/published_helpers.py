"""A small data set by hand, and a model that sees its answers in the aerial images.

Every place has a blue of its own, in its photo as in its aerial image; on the aerial image a red
spot marks the camera and a green one lies ahead of it. `Beacon` reads both off the chip that it is
shown, so that all of the geometry between the image's file and the answer is on trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ciper.camera import Camera, CameraOverrides
from ciper.data.protocol import AerialImage, Cut, Protocol, Sample, Told
from ciper.gallery.shards import AerialCodes
from ciper.geo import forward
from ciper.model.calibration import Calibration
from ciper.model.hypotheses import PoseSet, Spread, evidence_of
from ciper.model.matcher import Evidence
from ciper.model.model import (
    Bool,
    ChipFeatures,
    InputConfig,
    Model,
    PhotoCode,
    places_with_imagery,
)
from ciper.model.paper import PaperGround
from ciper.pose_grid import CELLS_PER_CHIP, NUM_COARSE

SIDE_PX = 200
AHEAD_M = 6.0
BLUE_STEP = 12


def paint_aerial(
    path: Path, blue: int, cameras: list[tuple[float, float, float]], gsd: float
) -> None:
    """An aerial image with the spots of cameras: x_m east, y_m north, heading_deg."""
    rows, columns = np.mgrid[0.5:SIDE_PX, 0.5:SIDE_PX]
    pixels = np.zeros((SIDE_PX, SIDE_PX, 3))
    pixels[..., 2] = blue
    for x_m, y_m, heading_deg in cameras:
        for channel, ahead_m in ((0, 0.0), (1, AHEAD_M)):
            x, y = np.array([x_m, y_m]) + ahead_m * forward(heading_deg)
            away = np.hypot(columns - SIDE_PX / 2 - x / gsd, SIDE_PX / 2 - y / gsd - rows)
            pixels[..., channel] += 250 * np.exp(-0.5 * (away * gsd / 1.0) ** 2)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def paint_photo(path: Path, blue: int, size: tuple[int, int] = (32, 64)) -> None:
    """A photo of a place; `size` is (height, width)."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 2] = blue
    Image.fromarray(pixels).save(path)


def turned_chips(folder: Path, num: int = 6, *, within_deg: float = 10.0) -> Protocol:
    """As KITTI and Ford: pinhole photos, one turned and shifted chip each, no gallery."""
    samples = []
    for i in range(num):
        rng = np.random.default_rng([3, i])
        heading_deg = float(rng.uniform(0, 360))
        error_deg = float(rng.uniform(-within_deg, within_deg))
        x_m, y_m = rng.uniform(-4, 4, 2).tolist()
        image = AerialImage(folder / f"{i}.png", 49.0 + 0.01 * i, 8.4, gsd=0.5, side_px=SIDE_PX)
        blue = BLUE_STEP * (i + 1)
        paint_aerial(image.path, blue, [(x_m, y_m, heading_deg)], image.gsd)
        paint_photo(folder / f"{i}.jpg.png", blue)
        offset = rng.uniform(-9, 9, 2)
        cut = Cut(
            x_m=x_m + float(offset[0]),
            y_m=y_m + float(offset[1]),
            up_deg=(heading_deg - 90.0 + error_deg) % 360.0,
            side_m=50.0,
        )
        told = Told(heading_deg=90.0, heading_within_deg=within_deg, within_m=13.0)
        lens = CameraOverrides(projection="pinhole", hfov_deg=80.0)
        samples.append(
            Sample(f"drive/{i}.png", folder / f"{i}.jpg.png", lens, x_m, y_m, heading_deg,
                   image, cut, told)
        )  # fmt: skip
    return Protocol("kitti", {"split": "test1"}, tuple(samples), notes=("made by hand",))


def panoramas(folder: Path, num: int = 5, *, noise_deg: float = 180.0) -> Protocol:
    """As VIGOR: turned panoramas, and a gallery of two cities whose images have other gsd.

    Place i is on reference 2 i; reference 2 i + 1 is its neighbour to the east and its
    semi-positive.
    """
    images, samples, semi = [], [], []
    for i in range(num):
        rng = np.random.default_rng([4, i])
        gsd, lat = (0.4, 40.7) if i % 2 else (0.32, 47.6)
        x_m, y_m = rng.uniform(-0.24, 0.24, 2) * SIDE_PX * gsd
        turn_deg = float(rng.uniform(-noise_deg, noise_deg))
        heading_deg = turn_deg % 360.0
        east_deg = SIDE_PX * gsd / 2 / 111_320 / np.cos(np.deg2rad(lat))
        blue = BLUE_STEP * (i + 1)
        for k in range(2):
            name = folder / f"satellite_{i}_{k}.png"
            image = AerialImage(name, lat, -74.0 + 0.1 * i + k * east_deg, gsd, SIDE_PX)
            camera = [(float(x_m), float(y_m), heading_deg)] if k == 0 else []
            paint_aerial(name, blue if k == 0 else 250, camera, gsd)
            images.append(image)
        photo = folder / f"pano{i},.png"
        paint_photo(photo, blue)
        told = Told(heading_deg=0.0, heading_within_deg=noise_deg, within_m=SIDE_PX * gsd / 4)
        sphere = CameraOverrides(projection="equirectangular", hfov_deg=360.0)
        own = images[-2]
        samples.append(
            Sample(f"City/{photo.name}", photo, sphere, float(x_m), float(y_m), heading_deg, own,
                   Cut(0.0, 0.0, 0.0, own.side_m), told, turn_deg=turn_deg)
        )  # fmt: skip
        semi.append(np.array([2 * i + 1]))
    return Protocol(
        "vigor", {"split": "same_area"}, tuple(samples), tuple(images),
        true=np.arange(num) * 2, semi_positives=tuple(semi),
    )  # fmt: skip


@dataclass(frozen=True)
class BeaconInput:
    """What `Model` wants to know of inputs."""

    chip_px: int = 128
    gsd: float = 0.7
    canvas_height_px: int = 8
    canvas_width_px: int = 32
    elevation_top_deg: float = 45.0
    elevation_bottom_deg: float = -45.0


@dataclass(frozen=True)
class Beacon(Model):
    """Finds the red spot and the direction of the green one in the chips that it is shown.

    A metric one has chips of 89.6 m; one that is not calls every chip so wide, whatever it is.
    """

    network: torch.nn.Module = field(default_factory=torch.nn.Identity)
    model_name: str = "beacon"
    model_hash: str = "0" * 64
    calibration: Calibration = field(default_factory=Calibration)
    device: str = "cpu"
    header: Mapping[str, Any] = field(default_factory=dict)
    metric: bool = True
    seen_priors: list[NDArray[np.float32] | None] = field(default_factory=list)
    seen_headings: list[float | None] = field(default_factory=list)

    @property
    def config(self) -> InputConfig:
        return BeaconInput()

    @property
    def is_metric(self) -> bool:
        return self.metric

    def encode(self, chips: NDArray[np.uint8], valid: Bool) -> AerialCodes:
        poses = [self._pose(chip) for chip in chips]
        blue = np.array(
            [np.median(chip[..., 2][seen]) for chip, seen in zip(chips, valid, strict=True)]
        )
        cells = places_with_imagery(valid, NUM_COARSE**2).reshape(-1, NUM_COARSE, NUM_COARSE)
        return AerialCodes(
            descriptors=_one_hot(blue)[:, None].astype(np.float16),
            coarse=cells.astype(np.float16),
            fine=np.array(poses, np.float16),
        )

    def _pose(self, chip: NDArray[np.uint8]) -> tuple[float, float, float]:
        size = len(chip)
        rows, columns = np.mgrid[0.5:size, 0.5:size]
        spots = []
        for channel in (0, 1):
            weight = np.where(chip[..., channel] > 60, chip[..., channel], 0).astype(float)
            total = max(weight.sum(), 1e-9)
            spots.append(((weight * columns).sum() / total, (weight * rows).sum() / total))
        (u, v), (ahead_u, ahead_v) = spots
        scale = self.chip_m / size
        heading_deg = np.rad2deg(np.arctan2(ahead_u - u, v - ahead_v))
        return (u - size / 2) * scale, (size / 2 - v) * scale, heading_deg % 360.0

    def encode_photo(
        self, pixels: NDArray[np.uint8], camera: Camera, *, heading_deg: float | None = None
    ) -> PaperGround:
        self.seen_headings.append(heading_deg)
        descriptor = torch.from_numpy(_one_hot(np.array([np.median(pixels[..., 2])])))
        return PaperGround(descriptor, torch.zeros(1, 1), torch.ones(1))

    def encode_photos(self, canvases: NDArray[np.uint8], visible: Bool) -> PhotoCode:
        raise NotImplementedError

    def cells_with_imagery(self, features: ChipFeatures) -> Bool:
        return np.asarray(features.read_coarse().float().numpy() > 0.5)

    def match(
        self,
        code: PhotoCode,
        features: ChipFeatures,
        *,
        has_imagery: Bool | None = None,
        log_prior: NDArray[np.float32] | None = None,
    ) -> Evidence:
        self.seen_priors.append(log_prior)
        descriptors = np.asarray(features.read_descriptors(), np.float64)[:, 0]
        logit = 20.0 * descriptors @ code.descriptor[0].double().numpy()
        chips = np.arange(len(logit))
        poses = features.read_fine(chips).double().numpy()[:, None]
        assert has_imagery is not None
        return evidence_of(
            logit, PoseSet(chips, np.zeros((len(chips), 1)), poses), Spread(1.5, 6.0),
            has_imagery=has_imagery, coarse_m=self.chip_m / CELLS_PER_CHIP, log_prior=log_prior,
        )  # fmt: skip


def _one_hot(blue: NDArray[Any]) -> NDArray[np.float32]:
    """`(N, 24)` unit vectors by brightness."""
    place: NDArray[np.int64] = np.rint(blue / BLUE_STEP).astype(np.int64).clip(0, 23)
    return np.asarray(np.eye(24, dtype=np.float32)[place], dtype=np.float32)
