"""The network: photos and chips to codes, and codes to evidence over poses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.model.decoder import AerialMaps, Correlation, PolarLift, column_bearings_rad
from ciper.model.encoder import Encoder, EncoderConfig, Features, metre_encoding, ray_encoding
from ciper.model.places import PlaceDescriptors, descriptor_mlp, harmonics, magnitudes
from ciper.model.plan import PlanHead
from ciper.model.refine import Refiner, RefinerConfig

# ImageNet's statistics; kept so that pretrained stems can take the place of ours.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the network's shapes and its inputs' geometry.

    `chip_px` pixels of `gsd` metres make a chip; the canvas is the ground input (see
    `data.preprocess`). Without a `refiner` the correlation's modes are taken as they are. With
    `has_plan_head` photos of cameras that look down are taken as well, as plan views.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    refiner: RefinerConfig | None = None
    descriptor_dim: int = 64
    chip_px: int = 256
    gsd: float = 0.5
    canvas_height_px: int = 128
    canvas_width_px: int = 512
    elevation_top_deg: float = 45.0
    elevation_bottom_deg: float = -45.0
    has_plan_head: bool = False


@dataclass(frozen=True)
class GroundCode:
    """What is kept of a photo.

    `descriptor (B, D)`, the polar templates of the two levels `(B, columns, rings, C)`, the
    `visible_share (B,)` of the horizon, or of a plan view, that it sees, and whether it `is_plan
    (B,)` view.
    """

    descriptor: Tensor
    polar_coarse: Tensor
    polar_fine: Tensor
    visible_share: Tensor
    is_plan: Tensor


@dataclass(frozen=True)
class AerialCode:
    """What is kept of a chip.

    `descriptors (B, 64, D)` belong to 8 x 8 places, 8 m apart, of the chip's central half (rows
    from north, columns from west); `coarse (B, C, 32, 32)` and `fine (B, C, 64, 64)` cover the
    chip with cells of 4 m and 2 m.
    """

    descriptors: Tensor
    coarse: Tensor
    fine: Tensor


def normalise(image: Tensor, is_valid: Tensor) -> Tensor:
    """`(B, H, W, 3)` uint8 and `(B, H, W)` bool to `(B, H, W, 4)` float; invalid pixels are 0."""
    mean = torch.tensor(RGB_MEAN, device=image.device)
    std = torch.tensor(RGB_STD, device=image.device)
    mask = is_valid[..., None].float()
    return torch.cat([(image.float() / 255 - mean) / std * mask, mask], dim=-1)


class GroundDescriptor(nn.Module):
    """One vector per photo, blind to the heading: class token and harmonics of its bearings."""

    harmonics: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.squeeze = nn.Linear(384, 64)
        self.mlp = descriptor_mlp(config.encoder.width + 3 * 64, config.descriptor_dim)
        self.register_buffer("harmonics", harmonics(column_bearings_rad(64)) / 64, False)

    def forward(self, class_token: Tensor, columns: Tensor) -> Tensor:
        """Class token `(B, width)` and hidden columns `(B, 64, 384)` to unit vectors `(B, D)`."""
        pooled = torch.einsum(
            "hn,bnc->bhc", self.harmonics.to(columns.dtype), self.squeeze(columns)
        )
        return F.normalize(
            self.mlp(torch.cat([class_token, magnitudes(pooled)], dim=-1)).float(), dim=-1
        )


class Network(nn.Module):
    """Ground photos and aerial chips to codes; see `decoder.Correlation` for their evidence."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        rows, columns = config.canvas_height_px // 16, config.canvas_width_px // 16
        patches = config.chip_px // 16
        self.encoder = Encoder(
            config.encoder,
            ground_rays=ray_encoding(
                rows,
                columns,
                elevation_top_deg=config.elevation_top_deg,
                elevation_bottom_deg=config.elevation_bottom_deg,
            ),
            aerial_metres=metre_encoding(patches, patches, config.gsd * 16),
        )
        self.lift = PolarLift(config.encoder, canvas_rows=config.canvas_height_px)
        self.maps = AerialMaps(config.encoder)
        self.ground_descriptor = GroundDescriptor(config)
        self.place_descriptors = PlaceDescriptors(
            config.encoder.width, config.descriptor_dim, patches, config.gsd * 16
        )
        self.correlation = Correlation()
        self.refiner = None if config.refiner is None else Refiner(config.refiner)
        self.retrieval_log_scale = nn.Parameter(torch.tensor(math.log(15.0)))
        # Last, so that the same seed draws the same weights with and without it.
        self.plan = (
            PlanHead(
                config.encoder, config.descriptor_dim, patches=patches, patch_m=config.gsd * 16
            )
            if config.has_plan_head
            else None
        )

    def encode_ground(self, canvas: Tensor, is_visible: Tensor) -> GroundCode:
        """`(B, 128, 512, 3)` uint8 and `(B, 128, 512)` bool to a `GroundCode`.

        Plan views, which have the size of a chip, are told by it.
        """
        if canvas.shape[1:3] == (self.config.chip_px, self.config.chip_px):
            return self._encode_plan(canvas, is_visible)
        ground: Features = self.encoder.encode_ground(normalise(canvas, is_visible))
        share = is_visible.float().mean(1).unflatten(1, (128, -1)).mean(2)
        seen = (share / share.amax(1, keepdim=True).clamp_min(1e-3)).clamp(0, 1)
        polar_coarse, polar_fine, columns = self.lift(ground, seen)
        return GroundCode(
            descriptor=self.ground_descriptor(ground.class_token, columns),
            polar_coarse=polar_coarse,
            polar_fine=polar_fine,
            visible_share=seen.mean(1),
            is_plan=torch.zeros(len(canvas), dtype=torch.bool, device=canvas.device),
        )

    def _encode_plan(self, plan: Tensor, is_visible: Tensor) -> GroundCode:
        assert self.plan is not None, "only a network with a plan head is given plan views"
        features: Features = self.encoder.encode_aerial(normalise(plan, is_visible))
        visible = is_visible.float()
        polar_coarse, polar_fine = self.plan.lift(features, visible)
        return GroundCode(
            descriptor=self.plan.descriptor(features.patches, visible),
            polar_coarse=polar_coarse,
            polar_fine=polar_fine,
            visible_share=visible.mean((1, 2)),
            is_plan=torch.ones(len(plan), dtype=torch.bool, device=plan.device),
        )

    def encode_aerial(self, chip: Tensor, is_valid: Tensor) -> AerialCode:
        """`(B, 256, 256, 3)` uint8 and `(B, 256, 256)` bool to an `AerialCode`."""
        aerial: Features = self.encoder.encode_aerial(normalise(chip, is_valid))
        coarse, fine = self.maps(aerial)
        return AerialCode(
            descriptors=self.place_descriptors(aerial.patches), coarse=coarse, fine=fine
        )
