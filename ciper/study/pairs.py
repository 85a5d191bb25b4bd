"""The study's pairs: as in training with an unknown heading, or aligned and near the centre."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ciper.data.augment import pinhole_mask
from ciper.data.batches import Drawing
from ciper.data.sample import Batch
from ciper.data.synthetic import (
    CHIP_PX,
    RenderedCity,
    SyntheticConfig,
    SyntheticPairs,
    cut_chip,
)
from ciper.model.known import KnownPose
from ciper.study.cells import Setting

# A canvas turns by whole columns of 0.7 deg.
ALIGNED = KnownPose(heading_sigma_deg=0.5, reach_m=20.0)
# A level 4:3 photo in the middle of ordinary cameras.
PINHOLE_DEG, PINHOLE_ASPECT = 75.0, 4 / 3


@dataclass(frozen=True)
class Gallery:
    """The chips of some cities on a grid: `centre_m (R, 2)` in city `city (R,)`."""

    chip: torch.Tensor
    is_valid: torch.Tensor
    city: torch.Tensor
    centre_m: torch.Tensor

    def __len__(self) -> int:
        return len(self.city)

    def true_chips(self, batch: Batch) -> NDArray[np.int64]:
        """For every photo the chip of its city whose centre is nearest: `(B,)`."""
        offset = (batch.camera_m[:, None] - self.centre_m[None]).abs().amax(-1)
        elsewhere = batch.city[:, None] != self.city[None]
        return np.asarray(offset.masked_fill(elsewhere, torch.inf).argmin(1).numpy())


class StudyPairs(SyntheticPairs):
    """Pairs of one setting.

    With "unknown" the heading is any and the camera lies anywhere in the chip's central half. With
    "aligned" the chip's up is the heading, up to half a canvas column, and the camera lies within
    20 m of the chip's centre, east and north. Quarter turns and mirrors of the world keep that.
    """

    def __init__(
        self, cities: Sequence[RenderedCity], config: SyntheticConfig, seed: int, setting: Setting
    ) -> None:
        super().__init__(cities, config, Drawing(seed))
        self.setting = setting

    @property
    def reach_m(self) -> float:
        """How far the camera lies from the chip's centre at most, east and north."""
        return reach_of(self.setting, self.config.gsd)

    def batch(self, step: int, size: int, *, narrow_share: float | None = None) -> Batch:
        """As of every training, then aligned if the setting says so."""
        batch = super().batch(step, size, narrow_share=narrow_share)
        return aligned(batch) if self.setting == "aligned" else batch

    def fixed(self, size: int) -> Iterator[Batch]:
        """Every photo once, unchanged, in a chip that is a function of seed and photo alone."""
        for start in range(0, len(self.photos), size):
            chosen = self.photos[start : start + size]
            batch = _stacked([self._fixed_pair(int(c), int(p)) for c, p in chosen])
            yield aligned(batch) if self.setting == "aligned" else batch

    def gallery(self, stride_m: float = 64.0) -> Gallery:
        """All chips of the cities on a grid whose central halves tile them."""
        chips = []
        for number, city in enumerate(self.cities):
            height, width = city.aerials.shape[1:3]
            for y_m in _centres(height * self.config.gsd, stride_m):
                for x_m in _centres(width * self.config.gsd, stride_m):
                    chip, is_valid, centre = cut_chip(city.aerials[0], x_m, y_m, self.config.gsd)
                    chips.append((chip, is_valid, np.int64(number), np.array(centre, np.float32)))
        columns = (torch.from_numpy(np.stack(column)) for column in zip(*chips, strict=True))
        return Gallery(*columns)

    def _fixed_pair(self, city: int, photo: int) -> Batch:
        rng = np.random.default_rng([self.seed, 4, city, photo])
        rendered = self.cities[city]
        x_m, y_m, heading_deg, _ = rendered.poses[photo]
        chip, is_valid, offset, centre = self._chip(rendered.aerials[0], x_m, y_m, rng)
        canvas = torch.from_numpy(np.array(rendered.canvases[photo]))
        return Batch(
            canvas=canvas,
            is_visible=torch.ones(canvas.shape[:2], dtype=torch.bool),
            chip=torch.from_numpy(chip),
            is_valid=torch.from_numpy(is_valid),
            pose=torch.tensor([*offset, heading_deg % 360.0], dtype=torch.float32),
            city=torch.tensor(city),
            centre_m=torch.tensor(centre, dtype=torch.float32),
            camera_m=torch.tensor([x_m, y_m], dtype=torch.float32),
        )


def reach_of(setting: Setting, gsd: float) -> float:
    """How far a camera lies from its chip's centre at most, east and north."""
    return ALIGNED.reach_m if setting == "aligned" else CHIP_PX * gsd / 4


def centre_recall(setting: Setting, gsd: float, within_m: float = 5.0) -> float:
    """Share of cameras within some metres of their chip's centre: a disc in a square."""
    return math.pi * within_m**2 / (2.0 * reach_of(setting, gsd)) ** 2


def _centres(length_m: float, stride_m: float) -> NDArray[np.float64]:
    """Centres of the stretches that cover a length; the last may reach beyond it."""
    return np.asarray((np.arange(math.ceil(length_m / stride_m)) + 0.5) * stride_m)


def _stacked(items: Sequence[Batch]) -> Batch:
    names = Batch.__dataclass_fields__
    return Batch(*(torch.stack([getattr(item, name) for item in items]) for name in names))


def aligned(batch: Batch) -> Batch:
    """The same photos turned about their vertical until they look to the chip's up.

    Canvases turn by whole columns, so a heading of at most half a column (0.35 deg) is left.
    """
    width = batch.canvas.shape[2]
    turn = torch.round(-batch.pose[:, 2] * width / 360.0).long()
    columns = (torch.arange(width)[None] + turn[:, None]) % width
    rows = torch.arange(len(batch))[:, None]
    pose = batch.pose.clone()
    pose[:, 2] = (pose[:, 2] + turn * (360.0 / width)) % 360.0
    return replace(
        batch,
        canvas=batch.canvas.transpose(1, 2)[rows, columns].transpose(1, 2).contiguous(),
        is_visible=batch.is_visible.transpose(1, 2)[rows, columns].transpose(1, 2).contiguous(),
        pose=pose,
    )


def as_pinhole(batch: Batch) -> Batch:
    """The same panoramas as a pinhole camera would see them."""
    height, width = batch.canvas.shape[1:3]
    is_seen = torch.from_numpy(
        pinhole_mask(height, width, hfov_deg=PINHOLE_DEG, aspect=PINHOLE_ASPECT, pitch_deg=0.0)
    )
    is_visible = batch.is_visible & is_seen
    return replace(batch, canvas=batch.canvas * is_visible[..., None], is_visible=is_visible)


def study_cache(cache: Path, config: SyntheticConfig) -> Path:
    """The folder of cities of one recipe; those of the shipped recipe lie in `cache` itself."""
    if (config.city_m, config.photos_per_city, config.aerials_per_city) == (600.0, 700, 2):
        return cache
    name = f"{config.city_m:g}m-{config.photos_per_city}p-{config.aerials_per_city}a"
    return cache / name
