"""Real photos: five streets of Helsinki, each with the aerial image around it.

`$CIPER_REAL_DATA/helsinki` holds `poses.csv` (id, lat, lon, compass_deg) and per id a photo
`ID_ground.jpg` and `ID_aerial.jpg`, north up, 0.5 m per pixel, with the camera at its centre.
Nothing tells the cameras' fields of view, so they are averaged over. The compass is some degrees
off.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciper.camera import assumed_cameras, camera_from_photo
from ciper.data.preprocess import read_photo, to_canvas
from ciper.data.synthetic import CHIP_PX, cut_chip
from ciper.errors import DatasetError
from ciper.metrics import pose_errors, ranks_from_similarity, recall_at_k
from ciper.model.network import AerialCode, GroundCode, Network
from ciper.study.measuring import (
    chance_figures,
    evaluation,
    find_pose,
    pose_evidence,
    pose_figures,
)
from ciper.training.gradients import take

VARIABLE = "CIPER_REAL_DATA"
TABLE = "poses.csv"
NOT_MEASURED = f"not measured: ${VARIABLE} is unset"
GSD = 0.5
NUM_OFFSETS = 8
SEED = 20_260_102
REACH_M = CHIP_PX * GSD / 4


@dataclass(frozen=True)
class RealPose:
    """A line of the table: the files of a photo and of the aerial image about it, and its compass.

    `compass_deg` is as the table has it, not wrapped.
    """

    name: str
    ground: Path
    aerial: Path
    compass_deg: float


@dataclass(frozen=True)
class RealPhoto:
    """One photo and its surroundings.

    Attributes:
        canvas: `(M, 128, 512, 3)` uint8, one view per field of view that it may have.
        is_visible: `(M, 128, 512)` bool.
        aerial: `(H, W, 3)`, north up, the camera at its centre.
        heading_deg: by the compass.
    """

    canvas: Tensor
    is_visible: Tensor
    aerial: NDArray[np.uint8]
    heading_deg: float


@dataclass(frozen=True)
class Windows:
    """A chip of every photo's surroundings, and where in it the photo was taken.

    `chip (N, 256, 256, 3)`, `is_valid (N, 256, 256)`, `pose (N, 3)`.
    """

    chip: Tensor
    is_valid: Tensor
    pose: NDArray[np.float64]


@dataclass(frozen=True)
class RealPhotos:
    """All photos; `digest` tells them from others."""

    photos: tuple[RealPhoto, ...]
    digest: str

    def windows(self) -> Iterator[Windows]:
        """Chips at `NUM_OFFSETS` random offsets, cameras uniform in their central halves."""
        for number in range(NUM_OFFSETS):
            cut = [self._cut(number, index) for index in range(len(self.photos))]
            chips, valid, poses = zip(*cut, strict=True)
            yield Windows(
                torch.from_numpy(np.stack(chips)),
                torch.from_numpy(np.stack(valid)),
                np.array(poses),
            )

    def _cut(
        self, number: int, index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float, float]]:
        photo = self.photos[index]
        height_px, width_px = photo.aerial.shape[:2]
        x_m, y_m = width_px * GSD / 2, height_px * GSD / 2
        shift = window_shift(number, index)
        chip, is_valid, centre = cut_chip(photo.aerial, x_m + shift[0], y_m + shift[1], GSD)
        return chip, is_valid, (x_m - centre[0], y_m - centre[1], photo.heading_deg)


def window_shift(
    number: int, index: int, *, reach_m: float = REACH_M, seed: int = SEED
) -> NDArray[np.float64]:
    """How far east and north `(2,)` of its camera a photo's window is cut, up to `reach_m` each.

    Args:
        number: of the offset, from 0.
        index: of the photo in its table, from 0.
        reach_m: a quarter of the window's side.
        seed: of all offsets.
    """
    return np.random.default_rng([seed, number, index]).uniform(-reach_m, reach_m, 2)


def real_folder() -> Path | None:
    """The photos' folder; None where the variable is unset."""
    root = os.environ.get(VARIABLE)
    return None if root is None else Path(root) / "helsinki"


def read_real(folder: Path) -> RealPhotos:
    """Reads all photos.

    Raises:
        DatasetError: the folder holds no such table, or a damaged one.
        PhotoError: a photo is missing or damaged.
    """
    rows = read_table(folder)
    digest = hashlib.sha256((folder / TABLE).read_bytes())
    photos = []
    for row in rows:
        photos.append(_read_photo(row.ground, row.aerial, row.compass_deg))
        for path in (row.ground, row.aerial):
            digest.update(path.read_bytes())
    return RealPhotos(tuple(photos), digest.hexdigest()[:12])


def read_table(folder: Path) -> tuple[RealPose, ...]:
    """The table's lines, in its order.

    Raises:
        DatasetError: the folder holds no such table, or a damaged one.
    """
    table = folder / TABLE
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [(row["id"], float(row["compass_deg"])) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(
            f"{table} cannot be read ({error}); expected the columns id and compass_deg: correct "
            f"${VARIABLE}, or unset it"
        ) from error
    return tuple(
        RealPose(
            name,
            folder / f"{name}_ground.jpg",
            folder / f"{name}_aerial.jpg",
            compass_deg,
        )
        for name, compass_deg in rows
    )


def _read_photo(ground: Path, aerial: Path, heading_deg: float) -> RealPhoto:
    pixels = read_photo(ground)
    views = [to_canvas(pixels, camera) for camera in assumed_cameras(camera_from_photo(ground))]
    canvas, is_visible = (torch.from_numpy(np.stack(part)) for part in zip(*views, strict=True))
    return RealPhoto(canvas, is_visible, read_photo(aerial), heading_deg % 360.0)


def measure_real(network: Network, real: RealPhotos) -> dict[str, float]:
    """Every photo against its own chip and those of the others, at every offset.

    Returns:
        Figures of the poses in the own chips; how often the own chip is first of all, and its mean
        rank (1 is best), by descriptors (retrieval) and by evidence for poses (matched).
    """
    found, true, similar, matched = [], [], [], []
    with evaluation(network) as device:
        codes = [
            network.encode_ground(p.canvas.to(device), p.is_visible.to(device)) for p in real.photos
        ]
        for windows in real.windows():
            aerial = network.encode_aerial(windows.chip.to(device), windows.is_valid.to(device))
            for i, code in enumerate(codes):
                found.append(find_pose(network, code, take(aerial, i, i + 1))[1])
                similar.append(_similarity(code, aerial))
                matched.append(pose_evidence(network, code, aerial))
            true.append(windows.pose)
    own = np.tile(np.arange(len(codes)), len(true))
    figures = pose_figures(pose_errors(found, np.concatenate(true)))
    for name, scores in (("retrieval", similar), ("matched", matched)):
        ranks = ranks_from_similarity(np.stack(scores), own)
        figures[f"{name}_recall@1"] = recall_at_k(ranks, 1)
        figures[f"{name}_rank"] = float(ranks.mean()) + 1
    return figures


def _similarity(code: GroundCode, aerial: AerialCode) -> NDArray[np.float64]:
    """`(R,)` cosine of a photo's mean descriptor and the most similar place of every chip."""
    descriptor = code.descriptor.float().mean(0)
    # A matrix product would be rounded to bfloat16 here.
    places = (aerial.descriptors.float() * descriptor).sum(-1)
    return np.asarray(places.amax(-1).cpu().numpy(), dtype=np.float64)


def real_baselines(real: RealPhotos) -> dict[str, dict[str, float]]:
    """What knowing nothing finds: the own chip's centre or a random place in its central half."""
    true = np.concatenate([windows.pose for windows in real.windows()])
    return chance_figures(
        true, len(real.photos), reach_m=REACH_M, seed=SEED, ranked=("retrieval", "matched")
    )
