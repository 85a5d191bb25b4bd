"""A small untrained network, and a small city with its gallery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ciper.checkpoint import save_checkpoint
from ciper.config import to_dict
from ciper.data.poses import PhotoPose, read_poses
from ciper.model.encoder import EncoderConfig
from ciper.model.load import Calibration
from ciper.model.network import Network, NetworkConfig

TINY = NetworkConfig(encoder=EncoderConfig(width=32, depth=1, stem_channels=(16, 24)))


@dataclass(frozen=True)
class SmallWorld:
    """A simulated city, its gallery, and the untrained weights that made it."""

    city: Path
    gallery: Path
    weights: Path

    @property
    def table(self) -> Path:
        return self.city / "poses.csv"

    @property
    def raster(self) -> Path:
        return self.city / "aerial.tif"

    @property
    def poses(self) -> tuple[PhotoPose, ...]:
        return read_poses(self.table)


def write_tiny_weights(
    path: Path, *, seed: int = 0, calibration: Calibration | None = None
) -> Path:
    """Weights of the small network, different for every seed."""
    torch.manual_seed(seed)
    state = {f"model.{name}": value for name, value in Network(TINY).state_dict().items()}
    header = {"config": {"network": to_dict(TINY)}, "step": 0}
    if calibration is not None:
        header["calibration"] = to_dict(calibration)
    save_checkpoint(path, state, header)
    return path
