"""The two-way refiner: looks again at each mode that the correlation found.

Correlation adds up what every bearing and range says, one by one. The refiner sees them together:
for one hypothesis (a chip, a position, a heading) the aerial features around it are read along the
rays of the photo, so that ground and aerial tokens of one bearing belong together, and a two-way
transformer (ground tokens attend to aerial ones and these attend back) judges how well they agree
as a whole. It yields what set prediction yields: for every hypothesis a logit, a refined pose and
a spread of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.model.decoder import (
    COARSE,
    FINE,
    WINDOW_CELLS,
    WINDOW_HEADINGS,
    TemplateSpec,
    Windows,
    column_bearings_rad,
    turn_pairs,
)

MAP_CELLS = 64  # of the fine map, along a side
# A hypothesis teaches poses if its window can hold the truth.
REACH_M, REACH_DEG = 6.0, 14.0


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of the two-way refiner; `num_tokens` bearings of 360 / num_tokens degrees per view."""

    width: int = 96
    depth: int = 2
    num_heads: int = 2
    mlp_ratio: int = 2
    num_tokens: int = 32


@dataclass(frozen=True)
class Candidates:
    """W hypotheses: `photo` and `chip (W,)` index the batch, `pose (W, 3)` is in the chip."""

    photo: Tensor
    chip: Tensor
    pose: Tensor


def window_candidates(windows: Windows, fine: Tensor) -> Candidates:
    """One hypothesis per window: the mean of its cells' poses under its logits `(W, 9, 7, 7)`."""
    prob = fine.float().flatten(1).softmax(1).view_as(fine)
    cell = torch.arange(WINDOW_CELLS, device=fine.device) - WINDOW_CELLS // 2
    step = torch.arange(WINDOW_HEADINGS, device=fine.device) - WINDOW_HEADINGS // 2
    half = MAP_CELLS / 2 - 0.5
    x = (windows.column - half + (prob.sum((1, 2)) * cell).sum(1)) * FINE.cell_m
    y = (half - windows.row - (prob.sum((1, 3)) * cell).sum(1)) * FINE.cell_m
    heading = (windows.heading + (prob.sum((2, 3)) * step).sum(1)) * FINE.heading_step_deg
    return Candidates(windows.photo, windows.chip, torch.stack([x, y, heading % 360], dim=1))


@dataclass(frozen=True)
class Refined:
    """What the refiner says of W hypotheses.

    logit: `(W,)` to be added to the hypothesis' evidence.
    pose: `(W, 3)` x_m, y_m, heading_deg in the chip.
    log_spread: `(W, 2)` log of the Laplace scale in metres (per axis) and in degrees.
    """

    logit: Tensor
    pose: Tensor
    log_spread: Tensor


class Attention(nn.Module):
    """Multi-head attention of `x (W, N, D)` to `memory (W, M, D)`."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_query = nn.Linear(config.width, config.width)
        self.to_key_value = nn.Linear(config.width, 2 * config.width)
        self.project = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """`(W, N, D)` to the same shape."""
        query = self._heads(self.to_query(x))
        key, value = (self._heads(t) for t in self.to_key_value(memory).chunk(2, dim=-1))
        weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1)
        mixed: Tensor = self.project((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class TwoWayBlock(nn.Module):
    """Ground tokens attend to themselves and to aerial tokens; aerial tokens attend back."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.width * config.mlp_ratio
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(6))
        self.self_attention = Attention(config)
        self.ground_to_aerial = Attention(config)
        self.aerial_to_ground = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, ground: Tensor, aerial: Tensor) -> tuple[Tensor, Tensor]:
        """`(W, 1 + N, D)` and `(W, N, D)` to the same shapes."""
        normed = self.norms[0](ground)
        ground = ground + self.self_attention(normed, normed)
        ground = ground + self.ground_to_aerial(self.norms[1](ground), self.norms[2](aerial))
        ground = ground + self.mlp(self.norms[3](ground))
        aerial = aerial + self.aerial_to_ground(self.norms[4](aerial), self.norms[5](ground))
        return ground, aerial


class Refiner(nn.Module):
    """Judges hypotheses; see the module's text."""

    token_encoding: Tensor

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        features = self._num_features(COARSE) + self._num_features(FINE)
        agreement = features // COARSE.num_channels
        self.from_ground = nn.Linear(features, config.width)
        self.from_aerial = nn.Linear(features, config.width)
        self.from_product = nn.Linear(features, config.width)
        self.to_weights = nn.Linear(config.width, agreement)
        self.norm_ground = nn.LayerNorm(config.width)
        self.norm_aerial = nn.LayerNorm(config.width)
        self.hypothesis_token = nn.Parameter(torch.randn(config.width) * 0.02)
        bearing = column_bearings_rad(config.num_tokens)[:, None] * torch.arange(1, 5)
        self.register_buffer(
            "token_encoding", torch.cat([bearing.sin(), bearing.cos()], dim=1), persistent=False
        )
        self.embed_bearing = nn.Linear(8, config.width)
        self.blocks = nn.ModuleList(TwoWayBlock(config) for _ in range(config.depth))
        self.last_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))
        self.last_attention = Attention(config)
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 6)
        for layer in (self.head, self.to_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        polar: tuple[Tensor, Tensor],
        maps: tuple[Tensor, Tensor],
        candidates: Candidates,
    ) -> Refined:
        """Judges W hypotheses.

        Args:
            polar: coarse and fine polar templates `(B, columns, rings, C)` of the photos.
            maps: coarse and fine maps `(R, C, cells, cells)` of the chips.
            candidates: the hypotheses.
        """
        ground, aerial = self._tokens(polar, maps, candidates)
        agreement = 0.1 * (ground * aerial).unflatten(-1, (-1, COARSE.num_channels)).sum(-1)
        encoding = self.embed_bearing(self.token_encoding)
        x = self.norm_ground(self.from_ground(ground) + self.from_product(0.3 * ground * aerial))
        memory = self.norm_aerial(self.from_aerial(aerial))
        x, memory = x + encoding, memory + encoding
        x = torch.cat([self.hypothesis_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x, memory = block(x, memory)
        # As in Segment Anything: a last look at what the aerial tokens have become.
        x = x + self.last_attention(self.last_norms[0](x), self.last_norms[1](memory))
        x = self.norm(x)
        out = self.head(x.mean(1)).float()
        # Evidence of the rings of each bearing, weighed anew in the light of all of them.
        evidence = (self.to_weights(x[:, 1:]) * agreement).float().sum((1, 2))
        return Refined(
            logit=out[:, 0] + evidence,
            pose=_moved(candidates.pose.float(), out[:, 1:4]),
            log_spread=out[:, 4:6],
        )

    def _num_features(self, spec: TemplateSpec) -> int:
        per_token = spec.num_columns // self.config.num_tokens
        return per_token * len(spec.ring_m) * spec.num_channels

    def _tokens(
        self,
        polar: tuple[Tensor, Tensor],
        maps: tuple[Tensor, Tensor],
        candidates: Candidates,
    ) -> tuple[Tensor, Tensor]:
        """Features of both views per bearing, in the frame of the ray: `(W, tokens, features)`."""
        ground, aerial = [], []
        for spec, template, level in zip((COARSE, FINE), polar, maps, strict=True):
            bearing = column_bearings_rad(spec.num_columns).to(template.device)
            along = turn_pairs(template, -bearing[None, :, None])[candidates.photo]
            ground.append(self._fold(along))
            aerial.append(self._fold(features_along_rays(level, spec, candidates)))
        return torch.cat(ground, dim=-1), torch.cat(aerial, dim=-1).to(ground[0].dtype)

    def _fold(self, x: Tensor) -> Tensor:
        """`(W, columns, rings, C)` to one vector per token."""
        folded: Tensor = x.unflatten(1, (self.config.num_tokens, -1)).flatten(2)
        return folded


def features_along_rays(level: Tensor, spec: TemplateSpec, candidates: Candidates) -> Tensor:
    """Reads a map along the rays of posed cameras.

    Args:
        level: `(R, C, cells, cells)` map of cells of `spec.cell_m`.
        spec: its geometry.
        candidates: W posed cameras.

    Returns:
        `(W, columns, rings, C)`; direction channels are in the frame of their ray.
    """
    pose = candidates.pose.float()
    bearing = column_bearings_rad(spec.num_columns).to(pose.device)
    ray = torch.deg2rad(pose[:, 2:]) + bearing
    range_m = torch.tensor(spec.ring_m, device=pose.device)
    x = pose[:, 0, None, None] + ray.sin()[..., None] * range_m
    y = pose[:, 1, None, None] + ray.cos()[..., None] * range_m
    half_m = level.shape[-1] * spec.cell_m / 2
    grid = torch.stack([x, -y], dim=-1) / half_m
    read = F.grid_sample(level[candidates.chip].float(), grid, align_corners=False)
    return turn_pairs(read.permute(0, 2, 3, 1), -ray[..., None])


def _moved(pose: Tensor, step: Tensor) -> Tensor:
    """Poses after a step to the right and forward (metres), and a turn (degrees)."""
    heading = torch.deg2rad(pose[:, 2])
    right, forward = step[:, 0], step[:, 1]
    x = pose[:, 0] + right * heading.cos() + forward * heading.sin()
    y = pose[:, 1] - right * heading.sin() + forward * heading.cos()
    return torch.stack([x, y, (pose[:, 2] + step[:, 2]) % 360], dim=1)


def log_cell_mass(windows: Windows, refined: Refined) -> Tensor:
    """Spreads each refined pose over the cells of its window: `(W, 9, 7, 7)` log shares.

    Laplace distributed about the refined pose. A cell's share is weighed linearly with the
    distance from its centre, so that the mean over all cells is the refined pose itself. What
    falls out of the window is given to the rest.
    """
    cell = torch.arange(WINDOW_CELLS, device=refined.pose.device) - WINDOW_CELLS // 2
    step = torch.arange(WINDOW_HEADINGS, device=refined.pose.device) - WINDOW_HEADINGS // 2
    half = MAP_CELLS / 2 - 0.5
    column = refined.pose[:, 0] / FINE.cell_m + half - windows.column
    row = half - refined.pose[:, 1] / FINE.cell_m - windows.row
    turn = _turn(refined.pose[:, 2] - windows.heading * FINE.heading_step_deg)
    log_m, log_deg = refined.log_spread.unbind(1)
    scale, turn_scale = log_m.exp() / FINE.cell_m, log_deg.exp() / FINE.heading_step_deg
    rows, columns = (
        _log_shares(cell - row[:, None], scale),
        _log_shares(cell - column[:, None], scale),
    )
    turns = _log_shares(step - turn[:, None] / FINE.heading_step_deg, turn_scale)
    total = turns[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None, :]
    return total.flatten(1).log_softmax(1).view_as(total)


def _log_shares(offset: Tensor, scale: Tensor) -> Tensor:
    """Log mass of a Laplace distribution under triangles of half width 1 at `offset (W, N)`.

    The second difference of G, G'' = exp(-|u| / b) / 2b, is the integral over a triangle.
    """
    scale = scale[:, None].clamp_min(1e-3)

    def twice_integrated(u: Tensor) -> Tensor:
        return (u.abs() + scale * (-u.abs() / scale).exp()) / 2

    mass = (
        twice_integrated(offset + 1) - 2 * twice_integrated(offset) + twice_integrated(offset - 1)
    )
    return mass.clamp_min(1e-12).log()


def ranking_loss(logit: Tensor, refined: Refined) -> Tensor:
    """Cross-entropy of the true hypothesis, the first of each photo's K.

    Args:
        logit: `(K, B)` evidence of the hypotheses without the refiner.
        refined: of the same hypotheses, photos fastest.
    """
    return -(logit + refined.logit.view_as(logit)).log_softmax(0)[0].mean()


def refined_pose_loss(candidates: Candidates, refined: Refined, pose: Tensor) -> Tensor:
    """Negative log likelihood of the true poses `(B, 3)` under the first B hypotheses.

    Position and heading are Laplace distributed about the refined pose with its own spread.
    Hypotheses that do not have the truth in reach are left out.
    """
    batch = len(pose)
    start, end = candidates.pose[:batch] - pose, refined.pose[:batch] - pose
    in_reach = (start[:, :2].norm(dim=1) < REACH_M) & (_turn(start[:, 2]).abs() < REACH_DEG)
    log_m, log_deg = refined.log_spread[:batch].unbind(1)
    position = end[:, :2].abs().sum(1) * (-log_m).exp() + 2 * log_m
    heading = _turn(end[:, 2]).abs() * (-log_deg).exp() + log_deg
    loss: Tensor = ((position + heading) * in_reach).sum() / in_reach.sum().clamp_min(1)
    return loss


def _turn(angle_deg: Tensor) -> Tensor:
    return (angle_deg + 180) % 360 - 180
