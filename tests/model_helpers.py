"""A small untrained network, and a small city with its gallery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ciper.checkpoint import save_checkpoint
from ciper.config import to_dict
from ciper.data.poses import PhotoPose, read_poses
from ciper.data.sample import Batch
from ciper.model.encoder import EncoderConfig
from ciper.model.load import Calibration
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import PaperConfig, PaperNetwork
from ciper.model.refine import RefinerConfig
from ciper.model.two_way import PoseDecoderConfig

TINY = NetworkConfig(encoder=EncoderConfig(width=32, depth=1, stem_channels=(16, 24)))
TINY_REFINED = replace(TINY, refiner=RefinerConfig(width=16, depth=1))
TINY_PAPER = PaperConfig(
    encoder="stem",
    trunk=TINY.encoder,
    decoder=PoseDecoderConfig(width=32, depth=1, num_heads=2, mlp_width=32, num_queries=4),
    descriptor_dim=32,
    chip_px=256,
    gsd=0.5,
    canvas_height_px=128,
    canvas_width_px=512,
    elevation_top_deg=45.0,
    elevation_bottom_deg=-45.0,
)


def make_batch(size: int, seed: int = 0) -> Batch:
    """Random pairs at random poses, each of its own city."""
    generator = torch.Generator().manual_seed(seed)

    def image(height: int, width: int) -> torch.Tensor:
        small = torch.rand(size, 3, height // 16, width // 16, generator=generator) * 255
        large = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
        return large.permute(0, 2, 3, 1).to(torch.uint8)

    pose = torch.rand(size, 3, generator=generator)
    pose = pose * torch.tensor([64.0, 64.0, 360.0]) - torch.tensor([32.0, 32.0, 0.0])
    return Batch(
        canvas=image(128, 512),
        is_visible=torch.ones(size, 128, 512, dtype=torch.bool),
        chip=image(256, 256),
        is_valid=torch.ones(size, 256, 256, dtype=torch.bool),
        pose=pose,
        city=torch.arange(size),
        centre_m=torch.zeros(size, 2),
        camera_m=pose[:, :2],
    )


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
    path: Path,
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    config: NetworkConfig | PaperConfig = TINY,
) -> Path:
    """Weights of a small network, ours or the paper's, different for every seed."""
    torch.manual_seed(seed)
    if isinstance(config, PaperConfig):
        weights = PaperNetwork(config).state_dict()
        recipe = {"model": "paper", "paper": to_dict(config)}
    else:
        weights = Network(config).state_dict()
        recipe = {"network": to_dict(config)}
    state = {f"model.{name}": value for name, value in weights.items()}
    header = {"config": recipe, "step": 0}
    if calibration is not None:
        header["calibration"] = to_dict(calibration)
    save_checkpoint(path, state, header)
    return path
