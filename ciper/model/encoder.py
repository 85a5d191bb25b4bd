"""The encoder: a convolution stem per view and one transformer that both views share.

Reads in data order: geometric position encodings, stem, transformer, encoder. Feature maps are
`(B, H, W, C)`: a permuted view of that layout is what torch calls channels-last, so convolutions
and linear layers both run without copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.model.efficient import EfficientStem, StemName, stages_of
from ciper.model.vit import attend

PLAIN_CHANNELS = (48, 96)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    `stem_channels` are the channels at 1/4 and 1/8 of the image, of a plain stem; those of an
    EfficientNet follow from its name. Of its four stages the first `num_frozen_stages` do not
    learn, which only makes sense where they are pretrained. Transformer patches are 16 px. Of two
    `num_tokens` one is for retrieval and one for the pose; a single one serves both.
    """

    width: int = 128
    depth: int = 6
    num_heads: int = 2
    mlp_ratio: int = 3
    stem: StemName = "plain"
    stem_channels: tuple[int, int] = PLAIN_CHANNELS
    num_frozen_stages: int = 0
    num_tokens: int = 2

    def __post_init__(self) -> None:
        if self.num_tokens not in (1, 2):
            raise ValueError(f"num_tokens is {self.num_tokens}; expected 1 or 2")
        if not 0 <= self.num_frozen_stages <= (0 if self.stem == "plain" else 4):
            raise ValueError(
                f"num_frozen_stages is {self.num_frozen_stages} for the stem {self.stem!r}; "
                "expected 0 for a plain stem and at most 4 for an EfficientNet"
            )
        if self.stem == "plain":
            return
        _, quarter, eighth, _ = stages_of(self.stem)
        channels = (quarter.channels, eighth.channels)
        if self.stem_channels not in (PLAIN_CHANNELS, channels):
            raise ValueError(
                f"stem_channels are {self.stem_channels}, but {self.stem} has {channels}; "
                "leave them out"
            )
        object.__setattr__(self, "stem_channels", channels)


@dataclass(frozen=True)
class Features:
    """What the encoder says of one view.

    `fine (B, H/4, W/4, C1)` and `middle (B, H/8, W/8, C2)` are the stem's maps,
    `patches (B, H/16, W/16, D)` the transformer's; `class_token` and `pose_token` are `(B, D)`, and
    the same where there is one token.
    """

    fine: Tensor
    middle: Tensor
    patches: Tensor
    class_token: Tensor
    pose_token: Tensor


def metre_encoding(height: int, width: int, patch_m: float, num_waves: int = 6) -> Tensor:
    """Fourier features of every aerial patch centre's east and north metres from the chip centre.

    Wavelengths run from 8 m to 256 m, so that a chip of another gsd or size reads the same metres.

    Returns:
        `(height, width, 4 * num_waves)`.
    """
    east = (torch.arange(width) + 0.5 - width / 2) * patch_m
    north = (height / 2 - torch.arange(height) - 0.5) * patch_m
    waves = 2 * math.pi / (8.0 * 2.0 ** torch.linspace(0, 5, num_waves))
    phases = torch.stack(
        [
            east[None, :, None].expand(height, width, 1) * waves,
            north[:, None, None].expand(height, width, 1) * waves,
        ],
        dim=-1,
    ).flatten(2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def ray_encoding(
    height: int,
    width: int,
    *,
    elevation_top_deg: float,
    elevation_bottom_deg: float,
    num_waves: int = 6,
) -> Tensor:
    """Fourier features of every ground patch's ray: bearing from the heading, and elevation.

    Whole multiples of the bearing make the encoding circular: both edges of a panorama meet.

    Returns:
        `(height, width, 4 * num_waves)`.
    """
    bearing = ((torch.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    step_deg = (elevation_top_deg - elevation_bottom_deg) / height
    elevation = torch.deg2rad(elevation_top_deg - (torch.arange(height) + 0.5) * step_deg)
    multiples = torch.arange(1, num_waves + 1, dtype=torch.float32)
    phases = torch.stack(
        [
            bearing[None, :, None].expand(height, width, 1) * multiples,
            elevation[:, None, None].expand(height, width, 1) * multiples,
        ],
        dim=-1,
    ).flatten(2)
    return torch.cat([phases.sin(), phases.cos()], dim=-1)


def convolve(conv: nn.Conv2d, x: Tensor, *, wraps: bool) -> Tensor:
    """A 3 x 3 convolution on `(B, H, W, C)`; `wraps` joins the left and right edge (panoramas)."""
    if not wraps:
        return F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1).permute(
            0, 2, 3, 1
        )
    x = torch.cat([x[:, :, -1:], x, x[:, :, :1]], dim=2)
    return F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=(1, 0)).permute(
        0, 2, 3, 1
    )


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.norm2 = nn.LayerNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *, wraps: bool) -> Tensor:
        """`(B, H, W, C)` to the same shape."""
        y = convolve(self.conv1, F.relu(self.norm1(x)), wraps=wraps)
        return x + convolve(self.conv2, F.relu(self.norm2(y)), wraps=wraps)


class Stem(nn.Module):
    """Pixels and their validity to maps at 1/4 and 1/8 and patch embeddings at 1/16."""

    def __init__(self, config: EncoderConfig, *, wraps: bool) -> None:
        super().__init__()
        fine, middle = config.stem_channels
        self.wraps = wraps
        self.to_fine = nn.Linear(4 * 4 * 4, fine)
        self.fine_block = ResidualBlock(fine)
        self.to_middle = nn.Linear(4 * fine, middle)
        self.middle_block = ResidualBlock(middle)
        self.to_patches = nn.Linear(4 * middle, config.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(B, H, W, 4)` RGB and validity to maps at 1/4, 1/8 and 1/16."""
        fine = self.fine_block(self.to_fine(fold_pixels(x, 4)), wraps=self.wraps)
        middle = self.middle_block(self.to_middle(fold_pixels(fine, 2)), wraps=self.wraps)
        return fine, middle, self.to_patches(fold_pixels(middle, 2))


def make_stem(config: EncoderConfig, *, wraps: bool) -> Stem | EfficientStem:
    """The stem that the configuration names; `wraps` joins the left and right edge (panoramas)."""
    if config.stem == "plain":
        return Stem(config, wraps=wraps)
    frozen = config.num_frozen_stages
    return EfficientStem(config.stem, config.width, wraps=wraps, num_frozen=frozen)


def fold_pixels(x: Tensor, size: int) -> Tensor:
    """Every `size x size` square of `(B, H, W, C)` becomes one pixel of `size * size * C`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, tokens, D)` to the same shape."""
        batch, num_tokens, width = x.shape
        qkv = self.to_qkv(self.norm1(x)).view(batch, num_tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value).transpose(1, 2).reshape(batch, num_tokens, width)
        x = x + self.project(mixed)
        hidden: Tensor = self.mlp(self.norm2(x))
        return x + hidden


class Encoder(nn.Module):
    """Both views' stems and the transformer that they share.

    Learned tokens, class and pose, stand before the patches; a learned vector names the view.
    """

    ground_rays: Tensor
    aerial_metres: Tensor

    def __init__(
        self, config: EncoderConfig, *, ground_rays: Tensor, aerial_metres: Tensor
    ) -> None:
        super().__init__()
        self.ground_stem = make_stem(config, wraps=True)
        self.aerial_stem = make_stem(config, wraps=False)
        self.register_buffer("ground_rays", ground_rays, persistent=False)
        self.register_buffer("aerial_metres", aerial_metres, persistent=False)
        self.embed_rays = nn.Linear(ground_rays.shape[-1], config.width)
        self.embed_metres = nn.Linear(aerial_metres.shape[-1], config.width)
        self.tokens = nn.Parameter(torch.randn(config.num_tokens, config.width) * 0.02)
        self.view_embedding = nn.Parameter(torch.randn(2, config.width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def encode_ground(self, canvas: Tensor) -> Features:
        """`(B, 128, 512, 4)` normalised canvas with visibility to `Features`."""
        fine, middle, patches = self.ground_stem(canvas)
        return self._transform(fine, middle, patches, self.embed_rays(self.ground_rays), view=0)

    def encode_aerial(self, chip: Tensor) -> Features:
        """`(B, 256, 256, 4)` normalised chip with validity to `Features`."""
        fine, middle, patches = self.aerial_stem(chip)
        return self._transform(fine, middle, patches, self.embed_metres(self.aerial_metres), view=1)

    def _transform(
        self, fine: Tensor, middle: Tensor, patches: Tensor, encoding: Tensor, *, view: int
    ) -> Features:
        batch, rows, columns, width = patches.shape
        num_tokens = len(self.tokens)
        x = (patches + encoding + self.view_embedding[view]).reshape(batch, rows * columns, width)
        x = torch.cat([self.tokens.to(x.dtype).expand(batch, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Features(
            fine=fine,
            middle=middle,
            patches=x[:, num_tokens:].reshape(batch, rows, columns, width),
            class_token=x[:, 0],
            pose_token=x[:, num_tokens - 1],
        )
