"""The paper's encoder: a plain vision transformer with task tokens and learned positions.

Parameters carry timm's names, so that DeiT, DINOv2 and the authors' own files fit by prefix alone.
Reads in data order: tokens, attention, block, one transformer, the pair for both views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.errors import ConfigError

# Tokens up to which attention in bfloat16 is written out.
MAX_WRITTEN_OUT = 2048
# The names of 1, 2 or 3 tokens, in their order before the patches; three are the authors' code.
TOKEN_NAMES = {
    1: ("cls_token",),
    2: ("cls_token", "pose_token"),
    3: ("cls_token", "dist_token", "third_token"),
}


@dataclass(frozen=True)
class VitConfig:
    """Sizes of the vision transformer (ViT-S by default).

    `num_tokens` learned tokens stand before the patches: 1 serves both tasks, 2 are class and pose
    token (the paper's text), 3 are class, distillation and pose token (the authors' code). With
    `is_shared` both views go through one transformer; each keeps positions of its own.
    """

    patch_px: int = 16
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    num_tokens: Literal[1, 2, 3] = 2
    is_shared: bool = True

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"width {self.width} cannot be split among num_heads {self.num_heads}; "
                "expected a multiple of it"
            )


@dataclass(frozen=True)
class Tokens:
    """What a transformer says of one view: `tokens (B, T, C)` and `patches (B, P, C)`."""

    tokens: Tensor
    patches: Tensor

    @property
    def class_token(self) -> Tensor:
        """`(B, C)`: the first token."""
        return self.tokens[:, 0]

    @property
    def pose_token(self) -> Tensor:
        """`(B, C)`: the last token; a single one is the class token as well."""
        return self.tokens[:, -1]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention on `(B, heads, tokens, head width)`.

    On CPUs the written-out form is one and a half to three times as fast as the fused kernel in
    bfloat16, and up to two and a half times as slow in float32; for long sequences, and on GPUs,
    the fused one saves the memory of the weights. Without data every product is written out, to be
    counted.
    """
    is_short = key.shape[-2] <= MAX_WRITTEN_OUT
    is_quick = query.device.type == "cpu" and query.dtype == torch.bfloat16 and is_short
    if not (is_quick or query.is_meta):
        return F.scaled_dot_product_attention(query, key, value)
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1)
    mixed: Tensor = weights.to(value.dtype) @ value
    return mixed


class PatchEmbed(nn.Module):
    """Patches of `patch_px x patch_px` pixels by one convolution, row by row."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_px, stride=config.patch_px)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, P, C)`."""
        embedded: Tensor = self.proj(image)
        return embedded.flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection to query, key and value."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, tokens, C)` to the same shape."""
        batch, num_tokens, width = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value).transpose(1, 2).reshape(batch, num_tokens, width)
        projected: Tensor = self.proj(mixed)
        return projected


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, tokens, C)` to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each beside an identity."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, tokens, C)` to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Vit(nn.Module):
    """One vision transformer.

    Args:
        config: its sizes.
        num_patches: P, of the view that `pos_embed` belongs to.
        num_features: outputs of the linear heads on the class and the distillation token, as in
            the authors' code; None makes no heads.
    """

    def __init__(
        self, config: VitConfig, num_patches: int, num_features: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.token_names = config.num_heads, TOKEN_NAMES[config.num_tokens]
        for name in self.token_names:
            self.register_parameter(name, nn.Parameter(torch.randn(1, 1, config.width) * 0.02))
        self.pos_embed = random_positions(config, num_patches)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        if num_features is not None:
            self.head = nn.Linear(config.width, num_features)
            self.head_dist = nn.Linear(config.width, num_features)
        self.apply(_initialise)

    def forward(self, image: Tensor, pos_embed: Tensor | None = None) -> Tokens:
        """Tokens and patches after the last norm.

        Args:
            image: `(B, 3, H, W)` normalised.
            pos_embed: `(1, T + P, C)` of another view; None takes the transformer's own.
        """
        learned = [self.get_parameter(name).expand(len(image), -1, -1) for name in self.token_names]
        x = torch.cat([*learned, self.patch_embed(image)], dim=1)
        x = x + (self.pos_embed if pos_embed is None else pos_embed)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Tokens(x[:, : len(learned)], x[:, len(learned) :])

    def features(self, tokens: Tokens) -> Tensor:
        """The authors' descriptor `(B, D)`, not normalised: the mean of the two heads."""
        out: Tensor = (self.head(tokens.tokens[:, 0]) + self.head_dist(tokens.tokens[:, 1])) / 2
        return out


class VitPair(nn.Module):
    """The transformers of both views: two of them, or one (under `ground`) that both share.

    Args:
        config: sizes of either.
        ground_px: `(height, width)` of the ground image.
        aerial_px: `(height, width)` of the chip.
        num_features: see `Vit`.
    """

    def __init__(
        self,
        config: VitConfig,
        *,
        ground_px: tuple[int, int],
        aerial_px: tuple[int, int],
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        num_ground, num_aerial = (num_patches(px, config) for px in (ground_px, aerial_px))
        self.ground = Vit(config, num_ground, num_features)
        self.aerial = None if config.is_shared else Vit(config, num_aerial, num_features)
        positions = random_positions(config, num_aerial) if config.is_shared else None
        self.register_parameter("aerial_pos_embed", positions)

    def encode_ground(self, image: Tensor) -> Tokens:
        """`(B, h, w, 4)` normalised image and validity to `Tokens`."""
        tokens: Tokens = self.ground(_rgb(image))
        return tokens

    def encode_aerial(self, image: Tensor) -> Tokens:
        """`(B, H, W, 4)` normalised chip and validity to `Tokens`."""
        tokens: Tokens = (
            self.ground(_rgb(image), self.aerial_pos_embed)
            if self.aerial is None
            else self.aerial(_rgb(image))
        )
        return tokens

    def ground_features(self, tokens: Tokens) -> Tensor:
        """The authors' descriptor of a ground image, see `Vit.features`."""
        return self.ground.features(tokens)

    def aerial_features(self, tokens: Tokens) -> Tensor:
        """The authors' descriptor of a chip, see `Vit.features`."""
        return (self.ground if self.aerial is None else self.aerial).features(tokens)


def num_patches(image_px: tuple[int, int], config: VitConfig) -> int:
    """P of an image of `(height, width)` pixels.

    Raises:
        ConfigError: whole patches do not fill the image.
    """
    height, width = image_px
    if height % config.patch_px or width % config.patch_px:
        raise ConfigError(
            f"an image of {height} x {width} px cannot be cut into patches of {config.patch_px} px;"
            " expected multiples of patch_px: change the image's size or patch_px"
        )
    return height * width // config.patch_px**2


def random_positions(config: VitConfig, num_patches: int) -> nn.Parameter:
    """`(1, T + P, C)` position embeddings to start from."""
    return nn.Parameter(torch.randn(1, config.num_tokens + num_patches, config.width) * 0.02)


def _rgb(image: Tensor) -> Tensor:
    """`(B, H, W, 4)` to `(B, 3, H, W)`: the paper's encoder does not see the validity."""
    return image[..., :3].permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    """As timm: truncated normal weights, no biases; the convolution keeps torch's start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
