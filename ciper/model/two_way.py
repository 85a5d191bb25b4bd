"""The paper's pose decoder: pose queries and aerial patches that attend to each other.

The transformer is Segment Anything's two-way transformer with its parameter names (Kirillov et al.
2023, "Segment Anything", appendix A); the answer is a set of hypotheses as in DETR (Carion et al.
2020). `queries`, `encoding` and `head` choose between the paper's text (64 learned queries behind
the ground pose token, sine encodings, small MLPs) and the authors' code (64 copies of the pose
token, zero encodings, linear heads).

A pose is `(tx, ty, cos, sin)` on a chip of side S metres: tx S is the camera's offset from the
chip's centre to the south, ty S to the east; atan2(sin, cos) - 180 deg is the direction of view,
counter-clockwise from the chip's up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.errors import ConfigError
from ciper.model.vit import attend

SINE_TEMPERATURE = 10_000.0


@dataclass(frozen=True)
class PoseDecoderConfig:
    """Sizes of the decoder and its variants, see the module's first lines.

    Cross-attention is `attention_downsample` times narrower than `width`. With the variant
    "one_way" the aerial patches do not attend back to the queries.
    """

    width: int = 384
    depth: int = 2
    num_heads: int = 8
    mlp_width: int = 2048
    num_queries: int = 64
    attention_downsample: int = 2
    variant: Literal["two_way", "one_way"] = "two_way"
    queries: Literal["learned", "identical"] = "learned"
    encoding: Literal["sine", "zero"] = "sine"
    head: Literal["mlp", "linear"] = "mlp"

    def __post_init__(self) -> None:
        divisor = math.lcm(self.num_heads * self.attention_downsample, 4)
        if self.width % divisor:
            raise ConfigError(
                f"width {self.width} does not suit num_heads {self.num_heads} and "
                f"attention_downsample {self.attention_downsample}; expected a multiple of "
                f"{divisor}"
            )


@dataclass(frozen=True)
class Hypotheses:
    """K hypotheses per pair.

    `logit (B, K)` of being the answer; `pose (B, K, 4)` as tx, ty, cos, sin (not of unit length).
    """

    logit: Tensor
    pose: Tensor


def hypothesis_poses(pose: Tensor, side_m: float | Tensor) -> Tensor:
    """`(..., 4)` tx, ty, cos, sin to `(..., 3)` x_m east, y_m north, heading_deg in [0, 360).

    Args:
        pose: in the convention of the module's first lines, on a north-up chip.
        side_m: side of the chip in metres, a number or a tensor that broadcasts to `(...)`.
    """
    south, east, cos, sin = pose.unbind(-1)
    heading_deg = 180.0 - torch.rad2deg(torch.atan2(sin, cos))
    return torch.stack([east * side_m, -south * side_m, heading_deg % 360.0], dim=-1)


def pose_targets(pose: Tensor, side_m: float | Tensor) -> Tensor:
    """`(..., 3)` x_m, y_m, heading_deg to `(..., 4)`: the inverse of `hypothesis_poses`."""
    x_m, y_m, heading_deg = pose.unbind(-1)
    angle = torch.deg2rad(180.0 - heading_deg)
    return torch.stack([-y_m / side_m, x_m / side_m, angle.cos(), angle.sin()], dim=-1)


def sine_encoding(rows: int, columns: int, width: int) -> Tensor:
    """DETR's sine encodings of a grid of patches: `(rows * columns, width)`, rows first.

    The first half of the channels encodes the row, the second the column; sine and cosine
    alternate.
    """
    scale = SINE_TEMPERATURE ** (-torch.arange(width // 4) / (width // 4))

    def waves(num: int) -> Tensor:
        phase = (torch.arange(num) + 1)[:, None] * (2 * math.pi / num) * scale
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)

    row = waves(rows)[:, None].expand(rows, columns, -1)
    column = waves(columns)[None].expand(rows, columns, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention, inside `downsample` times narrower than its inputs."""

    def __init__(self, config: PoseDecoderConfig, downsample: int = 1) -> None:
        super().__init__()
        inner = config.width // downsample
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.width, inner)
        self.k_proj = nn.Linear(config.width, inner)
        self.v_proj = nn.Linear(config.width, inner)
        self.out_proj = nn.Linear(inner, config.width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`(B, K, C)`, `(B, P, C)` and `(B, P, C)` to `(B, K, C)`."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected]
        out: Tensor = self.out_proj(attend(*heads).transpose(1, 2).flatten(2))
        return out


class DecoderMlp(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config: PoseDecoderConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.width, config.mlp_width)
        self.lin2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, K, C)` to the same shape."""
        out: Tensor = self.lin2(F.relu(self.lin1(x)))
        return out


class TwoWayLayer(nn.Module):
    """Self-attention of the queries, queries to patches, MLP, patches to queries; norms last.

    In the first layer the self-attention stands alone: no identity beside it and no encoding, for
    there the queries *are* their encoding.
    """

    def __init__(self, config: PoseDecoderConfig, *, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        self.self_attn = Attention(config)
        self.norm1 = nn.LayerNorm(config.width)
        self.cross_attn_token_to_image = Attention(config, config.attention_downsample)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = DecoderMlp(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.attends_back = config.variant == "two_way"
        if self.attends_back:
            self.norm4 = nn.LayerNorm(config.width)
            self.cross_attn_image_to_token = Attention(config, config.attention_downsample)

    def forward(
        self, queries: Tensor, patches: Tensor, query_encoding: Tensor, patch_encoding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries `(B, K, C)` and patches `(B, P, C)`, both updated."""
        if self.is_first:
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + query_encoding
            queries = queries + self.self_attn(placed, placed, queries)
        queries = self.norm1(queries)
        placed_patches = patches + patch_encoding
        queries = queries + self.cross_attn_token_to_image(
            queries + query_encoding, placed_patches, patches
        )
        queries = self.norm2(queries)
        queries = self.norm3(queries + self.mlp(queries))
        if self.attends_back:
            back = self.cross_attn_image_to_token(placed_patches, queries + query_encoding, queries)
            patches = self.norm4(patches + back)
        return queries, patches


class TwoWayTransformer(nn.Module):
    """The layers, and one more attention of the queries to the patches."""

    def __init__(self, config: PoseDecoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(config, is_first=i == 0) for i in range(config.depth)
        )
        self.final_attn_token_to_image = Attention(config, config.attention_downsample)
        self.norm_final_attn = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, patches: Tensor, patch_encoding: Tensor) -> Tensor:
        """Queries `(B, K, C)` after patches `(B, P, C)` of encoding `(P, C)` were looked at.

        The queries that come in are their own encoding in every attention but the first.
        """
        query_encoding = queries
        for layer in self.layers:
            queries, patches = layer(queries, patches, query_encoding, patch_encoding)
        queries = queries + self.final_attn_token_to_image(
            queries + query_encoding, patches + patch_encoding, patches
        )
        out: Tensor = self.norm_final_attn(queries)
        return out


class PoseDecoder(nn.Module):
    """A ground pose token and a chip's patches to hypotheses.

    With identical queries `mask_tokens` only says how many there are and `iou_token` nothing:
    both are kept, as in the authors' files, but never trained.
    """

    def __init__(self, config: PoseDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = TwoWayTransformer(config)
        self.mask_tokens = nn.Embedding(config.num_queries, config.width)
        if config.queries == "identical":
            self.iou_token = nn.Embedding(1, config.width)
            self.iou_token.requires_grad_(False)
            self.mask_tokens.requires_grad_(False)
        self.iou_prediction_head = _head(config, 1)
        self.bbox_prediction_head = _head(config, 4)

    def forward(self, pose_token: Tensor, patches: Tensor) -> Hypotheses:
        """Hypotheses of each pair.

        Args:
            pose_token: `(B, C)` of the photos.
            patches: `(B, P, C)` of their chips, in rows from the north; a square grid.
        """
        queries = self._queries(pose_token)
        out = self.transformer(queries, patches, self._encoding(patches))
        num_queries = self.config.num_queries
        # Equal queries stay equal but for rounding: the first stands for all.
        out = out[:, :1] if self.config.queries == "identical" else out[:, -num_queries:]
        return Hypotheses(
            logit=self.iou_prediction_head(out).squeeze(-1).expand(-1, num_queries),
            pose=self.bbox_prediction_head(out).expand(-1, num_queries, -1),
        )

    def _queries(self, pose_token: Tensor) -> Tensor:
        """`(B, K, C)` copies of the pose token, or `(B, 1 + K, C)`: it and the learned queries."""
        if self.config.queries == "identical":
            return pose_token[:, None].expand(-1, self.config.num_queries, -1)
        learned = self.mask_tokens.weight.to(pose_token.dtype).expand(len(pose_token), -1, -1)
        return torch.cat([pose_token[:, None], learned], dim=1)

    def _encoding(self, patches: Tensor) -> Tensor:
        """`(P, C)` encodings of the patches."""
        num_patches, width = patches.shape[1:]
        if self.config.encoding == "zero":
            return patches.new_zeros(num_patches, width)
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise ConfigError(
                f"{num_patches} aerial patches are no square grid; expected a square chip"
            )
        return sine_encoding(side, side, width).to(patches)


def _head(config: PoseDecoderConfig, num_outputs: int) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(config.width, num_outputs)
    return nn.Sequential(
        nn.Linear(config.width, config.width),
        nn.ReLU(),
        nn.Linear(config.width, config.width),
        nn.ReLU(),
        nn.Linear(config.width, num_outputs),
    )
