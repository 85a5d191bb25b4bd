"""The paper's network: one encoder with task tokens, a descriptor and a pose decoder.

CIPER (arXiv 2606.05011) as its text describes it, and as its authors coded it (see
`RELEASED`); for comparison also on the trunk of `ciper.model.network`. A pair goes through it as

    ground photo -> tokens -> descriptor   (retrieval: cosine similarity)
                           -> pose token -> decoder <- patches <- tokens <- aerial chip
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.errors import ConfigError
from ciper.model.encoder import Encoder, EncoderConfig, Features, metre_encoding, ray_encoding
from ciper.model.network import normalise
from ciper.model.two_way import Hypotheses, PoseDecoder, PoseDecoderConfig
from ciper.model.vit import Tokens, VitConfig, VitPair

TokenName = Literal["class_token", "pose_token"]


@dataclass(frozen=True)
class PaperConfig:
    """Everything that fixes the network's shapes and its inputs' geometry.

    Defaults are the paper's text on VIGOR. `encoder` is the paper's "vit" or the "stem" trunk of
    ours. The descriptor is a token ("token", of the trunk's width) or the mean of two linear heads
    of `descriptor_dim` numbers ("released"). `descriptor_from` and `pose_from` name the tokens
    that serve retrieval and pose; exchanged, they are the paper's swap. `chip_px` pixels of `gsd`
    metres make a chip (VIGOR's 640 px of 0.111 m, its cities' mean, as 512); the canvas is the
    ground input (see `data.preprocess`).
    """

    encoder: Literal["vit", "stem"] = "vit"
    vit: VitConfig = field(default_factory=VitConfig)
    trunk: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: PoseDecoderConfig = field(default_factory=PoseDecoderConfig)
    descriptor: Literal["token", "released"] = "token"
    descriptor_dim: int = 384
    descriptor_from: TokenName = "class_token"
    pose_from: TokenName = "pose_token"
    chip_px: int = 512
    gsd: float = 0.13875
    canvas_height_px: int = 256
    canvas_width_px: int = 1024
    elevation_top_deg: float = 90.0
    elevation_bottom_deg: float = -90.0

    def __post_init__(self) -> None:
        if self.decoder.width != self.width:
            raise ConfigError(
                f"the decoder is {self.decoder.width} wide and the encoder {self.width}; expected "
                f"one width: set paper.decoder.width={self.width}"
            )
        if self.descriptor == "token" and self.descriptor_dim != self.width:
            raise ConfigError(
                f"a token of {self.width} numbers cannot be a descriptor of {self.descriptor_dim}; "
                f"set paper.descriptor_dim={self.width}"
            )
        if self.descriptor == "released" and (self.encoder, self.vit.num_tokens) != ("vit", 3):
            raise ConfigError(
                'descriptor "released" is the mean of a class and a distillation head; expected '
                'paper.encoder="vit" and paper.vit.num_tokens=3'
            )

    @property
    def width(self) -> int:
        """C, of tokens and patches."""
        return self.vit.width if self.encoder == "vit" else self.trunk.width

    @property
    def side_m(self) -> float:
        """Side of a chip in metres."""
        return self.chip_px * self.gsd


# The authors' code: two encoders of three tokens, 1000-class heads as descriptor, identical
# queries, zero encodings, linear heads.
RELEASED = PaperConfig(
    vit=VitConfig(num_tokens=3, is_shared=False),
    decoder=PoseDecoderConfig(queries="identical", encoding="zero", head="linear"),
    descriptor="released",
    descriptor_dim=1000,
)


@dataclass(frozen=True)
class PaperGround:
    """What is kept of a photo.

    `descriptor (B, D)` of unit length, `pose_token (B, C)`, and the `visible_share (B,)` of the
    horizon that it sees.
    """

    descriptor: Tensor
    pose_token: Tensor
    visible_share: Tensor


@dataclass(frozen=True)
class PaperAerial:
    """What is kept of a chip: `descriptors (B, 1, D)` of unit length and `patches (B, P, C)`."""

    descriptors: Tensor
    patches: Tensor


class StemEncoder(nn.Module):
    """Our trunk in the paper's place: its class and pose token and its patches of 16 px."""

    def __init__(self, trunk: Encoder) -> None:
        super().__init__()
        self.trunk = trunk

    def encode_ground(self, image: Tensor) -> Tokens:
        """`(B, h, w, 4)` normalised canvas and visibility to `Tokens`."""
        return _tokens(self.trunk.encode_ground(image))

    def encode_aerial(self, image: Tensor) -> Tokens:
        """`(B, H, W, 4)` normalised chip and validity to `Tokens`."""
        return _tokens(self.trunk.encode_aerial(image))


def _tokens(features: Features) -> Tokens:
    tokens = torch.stack([features.class_token, features.pose_token], dim=1)
    return Tokens(tokens, features.patches.flatten(1, 2))


def make_encoder(config: PaperConfig) -> VitPair | StemEncoder:
    """The encoder that `config.encoder` names."""
    ground_px = (config.canvas_height_px, config.canvas_width_px)
    if config.encoder == "vit":
        return VitPair(
            config.vit,
            ground_px=ground_px,
            aerial_px=(config.chip_px, config.chip_px),
            num_features=config.descriptor_dim if config.descriptor == "released" else None,
        )
    rays = ray_encoding(
        ground_px[0] // 16,
        ground_px[1] // 16,
        elevation_top_deg=config.elevation_top_deg,
        elevation_bottom_deg=config.elevation_bottom_deg,
    )
    patches = config.chip_px // 16
    metres = metre_encoding(patches, patches, config.gsd * 16)
    return StemEncoder(Encoder(config.trunk, ground_rays=rays, aerial_metres=metres))


class PaperNetwork(nn.Module):
    """Ground photos and aerial chips to codes, and pairs of codes to hypotheses.

    Images of another size than the configured one are resized to it, bilinear and antialiased and
    without keeping their aspect, as the authors resize theirs.
    """

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.decoder = PoseDecoder(config.decoder)

    def encode_ground(self, canvas: Tensor, is_visible: Tensor) -> PaperGround:
        """`(B, h, w, 3)` uint8 and `(B, h, w)` bool to a `PaperGround`."""
        tokens = self.ground_tokens(normalise(canvas, is_visible))
        return self.ground_code(tokens, is_visible.any(1).float().mean(1))

    def encode_aerial(self, chip: Tensor, is_valid: Tensor) -> PaperAerial:
        """`(B, H, W, 3)` uint8 and `(B, H, W)` bool to a `PaperAerial`."""
        return self.aerial_code(self.aerial_tokens(normalise(chip, is_valid)))

    def decode(self, ground: PaperGround, patches: Tensor) -> Hypotheses:
        """Hypotheses of photo i on chip i.

        Args:
            ground: B photos, or one that meets every chip.
            patches: `(B, P, C)` of the chips.
        """
        hypotheses: Hypotheses = self.decoder(ground.pose_token.expand(len(patches), -1), patches)
        return hypotheses

    def ground_tokens(self, image: Tensor) -> Tokens:
        """`(B, h, w, 4)` normalised image and visibility to tokens and patches."""
        size = (self.config.canvas_height_px, self.config.canvas_width_px)
        return self.encoder.encode_ground(resize(image, size))

    def aerial_tokens(self, image: Tensor) -> Tokens:
        """`(B, H, W, 4)` normalised chip and validity to tokens and patches."""
        return self.encoder.encode_aerial(resize(image, (self.config.chip_px,) * 2))

    def ground_code(self, tokens: Tokens, visible_share: Tensor) -> PaperGround:
        """What is kept of photos' tokens and the shares `(B,)` of the horizon that they see."""
        descriptor = F.normalize(self.ground_features(tokens).float(), dim=-1)
        return PaperGround(descriptor, getattr(tokens, self.config.pose_from), visible_share)

    def aerial_code(self, tokens: Tokens) -> PaperAerial:
        """What is kept of a chip's tokens."""
        descriptor = F.normalize(self.aerial_features(tokens).float(), dim=-1)
        return PaperAerial(descriptor[:, None], tokens.patches)

    def ground_features(self, tokens: Tokens) -> Tensor:
        """A photo's descriptor `(B, D)` before it is brought to unit length."""
        if self.config.descriptor == "released" and isinstance(self.encoder, VitPair):
            return self.encoder.ground_features(tokens)
        return self._token(tokens)

    def aerial_features(self, tokens: Tokens) -> Tensor:
        """A chip's descriptor `(B, D)` before it is brought to unit length."""
        if self.config.descriptor == "released" and isinstance(self.encoder, VitPair):
            return self.encoder.aerial_features(tokens)
        return self._token(tokens)

    def _token(self, tokens: Tokens) -> Tensor:
        descriptor: Tensor = getattr(tokens, self.config.descriptor_from)
        return descriptor


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, H, W, C)` to `(B, *size, C)`, bilinear and antialiased; the same tensor if it fits."""
    if image.shape[1:3] == size:
        return image
    planes = image.permute(0, 3, 1, 2)
    return F.interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
