"""The network: photos and chips to codes, and codes to evidence over poses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.model.decoder import AerialMaps, Correlation, PolarLift, column_bearings_rad
from ciper.model.encoder import Encoder, EncoderConfig, Features, metre_encoding, ray_encoding
from ciper.model.refine import Refiner, RefinerConfig

# ImageNet's statistics; kept so that pretrained stems can take the place of ours.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the network's shapes and its inputs' geometry.

    `chip_px` pixels of `gsd` metres make a chip; the canvas is the ground input (see
    `data.preprocess`). Without a `refiner` the correlation's modes are taken as they are.
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


@dataclass(frozen=True)
class GroundCode:
    """What is kept of a photo.

    `descriptor (B, D)`, the polar templates of the two levels `(B, columns, rings, C)`, and the
    `visible_share (B,)` of the horizon that it sees.
    """

    descriptor: Tensor
    polar_coarse: Tensor
    polar_fine: Tensor
    visible_share: Tensor


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
        self.mlp = _descriptor_mlp(config.encoder.width + 3 * 64, config.descriptor_dim)
        self.register_buffer("harmonics", _harmonics(column_bearings_rad(64)) / 64, False)

    def forward(self, class_token: Tensor, columns: Tensor) -> Tensor:
        """Class token `(B, width)` and hidden columns `(B, 64, 384)` to unit vectors `(B, D)`."""
        pooled = torch.einsum(
            "hn,bnc->bhc", self.harmonics.to(columns.dtype), self.squeeze(columns)
        )
        return F.normalize(
            self.mlp(torch.cat([class_token, _magnitudes(pooled)], dim=-1)).float(), dim=-1
        )


class PlaceDescriptors(nn.Module):
    """64 vectors per chip, one per place: patches around it in rings, as harmonics of bearing.

    A magnitude of a harmonic does not change when the chip turns: the descriptor asks what stands
    around a place, not in which direction, because the photo's heading is unknown.
    """

    RING_EDGES_M = (0.0, 9.0, 20.0, 34.0)

    pooling: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, num_rings = config.encoder.width, len(self.RING_EDGES_M) - 1
        self.squeeze = nn.Linear(width, 32)
        self.mlp = _descriptor_mlp(width + num_rings * 3 * 32, config.descriptor_dim)
        patches = config.chip_px // 16
        self.register_buffer("pooling", self._pooling(patches, config.gsd * 16), False)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches `(B, 16, 16, width)` to unit vectors `(B, 64, D)`."""
        batch, rows, columns, _ = patches.shape
        squeezed = self.squeeze(patches).reshape(batch, rows * columns, -1)
        pooled = torch.matmul(self.pooling.flatten(0, 2).to(squeezed.dtype), squeezed)
        pooled = pooled.view(batch, 64, self.pooling.shape[1], 5, -1)
        centre = patches[:, rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
        x = torch.cat([centre.flatten(1, 2), _magnitudes(pooled).flatten(2)], dim=-1)
        return F.normalize(self.mlp(x).float(), dim=-1)

    def _pooling(self, patches: int, patch_m: float) -> Tensor:
        """`(places, rings, harmonics, patches)`: ring means of bearing harmonics per place."""
        position = (torch.arange(patches) + 0.5 - patches / 2) * patch_m
        x, y = position.repeat(patches), -position.repeat_interleave(patches)
        inner = position.abs() < patches * patch_m / 4
        is_place = inner.repeat(patches) & inner.repeat_interleave(patches)
        dx = x[None] - x[is_place][:, None]
        dy = y[None] - y[is_place][:, None]
        distance, bearing = torch.hypot(dx, dy), torch.atan2(dx, dy)
        rings = []
        for near, far in zip(self.RING_EDGES_M[:-1], self.RING_EDGES_M[1:], strict=True):
            inside = ((distance >= near) & (distance < far)).float()
            inside = inside / inside.sum(1, keepdim=True)
            rings.append(_harmonics(bearing) * inside)
        return torch.stack(rings).permute(2, 0, 1, 3).contiguous()


def _harmonics(bearing_rad: Tensor) -> Tensor:
    """`(...)` to `(5, ...)`: 1, cos b, sin b, cos 2b, sin 2b."""
    one = torch.ones_like(bearing_rad)
    return torch.stack(
        [
            one,
            bearing_rad.cos(),
            bearing_rad.sin(),
            (2 * bearing_rad).cos(),
            (2 * bearing_rad).sin(),
        ]
    )


def _magnitudes(pooled: Tensor) -> Tensor:
    """`(..., 5, C)` harmonics to `(..., 3 C)`: mean and the two magnitudes."""
    mean, cos1, sin1, cos2, sin2 = pooled.float().unbind(-2)
    first = (cos1.square() + sin1.square() + 1e-6).sqrt()
    second = (cos2.square() + sin2.square() + 1e-6).sqrt()
    return torch.cat([mean, first, second], dim=-1).to(pooled.dtype)


def _descriptor_mlp(num_inputs: int, descriptor_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(num_inputs),
        nn.Linear(num_inputs, 256),
        nn.ReLU(),
        nn.Linear(256, descriptor_dim),
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
        self.place_descriptors = PlaceDescriptors(config)
        self.correlation = Correlation()
        self.refiner = None if config.refiner is None else Refiner(config.refiner)
        self.retrieval_log_scale = nn.Parameter(torch.tensor(math.log(15.0)))

    def encode_ground(self, canvas: Tensor, is_visible: Tensor) -> GroundCode:
        """`(B, 128, 512, 3)` uint8 and `(B, 128, 512)` bool to a `GroundCode`."""
        ground: Features = self.encoder.encode_ground(normalise(canvas, is_visible))
        share = is_visible.float().mean(1).unflatten(1, (128, -1)).mean(2)
        seen = (share / share.amax(1, keepdim=True).clamp_min(1e-3)).clamp(0, 1)
        polar_coarse, polar_fine, columns = self.lift(ground, seen)
        return GroundCode(
            descriptor=self.ground_descriptor(ground.class_token, columns),
            polar_coarse=polar_coarse,
            polar_fine=polar_fine,
            visible_share=seen.mean(1),
        )

    def encode_aerial(self, chip: Tensor, is_valid: Tensor) -> AerialCode:
        """`(B, 256, 256, 3)` uint8 and `(B, 256, 256)` bool to an `AerialCode`."""
        aerial: Features = self.encoder.encode_aerial(normalise(chip, is_valid))
        coarse, fine = self.maps(aerial)
        return AerialCode(
            descriptors=self.place_descriptors(aerial.patches), coarse=coarse, fine=fine
        )
