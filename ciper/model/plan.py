"""The plan head: plan views of cameras that look down, to the same codes as photos of streets.

A plan view is a chip in its photo's own frame, so the encoder reads it as it reads chips. What its
maps say at a bearing and a range from the camera's foot is what the polar template asks for there:
no lift is needed, and all that follows (headings, correlation, evidence) is shared.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciper.model.decoder import COARSE, FINE, AerialMaps, TemplateSpec, column_bearings_rad
from ciper.model.encoder import EncoderConfig, Features
from ciper.model.places import RING_EDGES_M, descriptor_mlp, harmonics, magnitudes


class PlanLift(nn.Module):
    """A plan view's features to polar templates: maps of its own, read at every bearing and range.

    The pairs of its maps' channels count from the plan's up, which is the heading, as a template's.
    """

    coarse_points: Tensor
    fine_points: Tensor

    def __init__(self, config: EncoderConfig, side_m: float) -> None:
        super().__init__()
        self.maps = AerialMaps(config)
        self.register_buffer("coarse_points", _points(COARSE, side_m), persistent=False)
        self.register_buffer("fine_points", _points(FINE, side_m), persistent=False)

    def forward(self, plan: Features, is_visible: Tensor) -> tuple[Tensor, Tensor]:
        """Reads a batch.

        Args:
            plan: features of the plan views.
            is_visible: `(B, H, W)` float, what the photos show of them.

        Returns:
            Coarse template `(B, 64, rings, C)` and fine template `(B, 128, rings, C)`; where the
            photo shows nothing they are empty.
        """
        coarse, fine = self.maps(plan)
        return (
            _read(coarse, is_visible, self.coarse_points),
            _read(fine, is_visible, self.fine_points),
        )


def _points(spec: TemplateSpec, side_m: float) -> Tensor:
    """Where a template's columns and rings lie on a plan, as `grid_sample` counts: `(N, R, 2)`."""
    bearing = column_bearings_rad(spec.num_columns)[:, None]
    ring = torch.tensor(spec.ring_m)[None] * 2 / side_m
    return torch.stack([ring * bearing.sin(), -ring * bearing.cos()], dim=-1)


def _read(maps: Tensor, is_visible: Tensor, points: Tensor) -> Tensor:
    """`(B, C, H, W)` at points `(N, R, 2)`, times the visible share there: `(B, N, R, C)`."""
    height, width = maps.shape[-2:]
    share = F.adaptive_avg_pool2d(is_visible[:, None], (height, width))
    grid = points.expand(len(maps), -1, -1, -1)
    found = F.grid_sample(
        torch.cat([maps.float(), share], dim=1), grid, padding_mode="border", align_corners=False
    )
    return (found[:, :-1] * found[:, -1:]).permute(0, 2, 3, 1).to(maps.dtype)


class PlanDescriptor(nn.Module):
    """One vector per plan view: what stands around the camera's foot, in rings, blind to north.

    The same sums as of a chip's places (`places.PlaceDescriptors`), about the plan's very middle
    and over what the photo shows.
    """

    pooling: Tensor

    def __init__(self, width: int, descriptor_dim: int, patches: int, patch_m: float) -> None:
        super().__init__()
        num_rings = len(RING_EDGES_M) - 1
        self.squeeze = nn.Linear(width, 32)
        self.mlp = descriptor_mlp(width + num_rings * 3 * 32, descriptor_dim)
        self.register_buffer("pooling", _pooling(patches, patch_m), persistent=False)

    def forward(self, patches: Tensor, is_visible: Tensor) -> Tensor:
        """Patches `(B, P, P, width)` and the visible `(B, H, W)` to unit vectors `(B, D)`."""
        side = patches.shape[1]
        share = F.adaptive_avg_pool2d(is_visible[:, None], side).flatten(1)
        # (B, rings, harmonics, patches): means over what of a ring is visible.
        weight = self.pooling * share[:, None, None]
        weight = weight / (self.pooling[:, :1] * share[:, None, None]).sum(-1, True).clamp_min(0.5)
        squeezed = self.squeeze(patches).flatten(1, 2)
        pooled = torch.einsum("brhp,bpc->brhc", weight.to(squeezed.dtype), squeezed)
        middle = slice(side // 2 - 1, side // 2 + 1)
        centre = patches[:, middle, middle].mean((1, 2))
        x = torch.cat([centre, magnitudes(pooled).flatten(1)], dim=-1)
        return F.normalize(self.mlp(x).float(), dim=-1)


def _pooling(patches: int, patch_m: float) -> Tensor:
    """`(rings, harmonics, patches)`: harmonics of the patches' bearings, 0 outside of the ring."""
    position = (torch.arange(patches) + 0.5 - patches / 2) * patch_m
    x, y = position.repeat(patches), -position.repeat_interleave(patches)
    distance, waves = torch.hypot(x, y), harmonics(torch.atan2(x, y))
    rings = [(distance >= near) & (distance < far) for near, far in pairwise(RING_EDGES_M)]
    return torch.stack([waves * inside.float() for inside in rings])


class PlanHead(nn.Module):
    """All that plan views have of their own.

    Args:
        config: of the encoder.
        descriptor_dim: of the photos' descriptors.
        patches: along a plan's side.
        patch_m: side of a patch.
    """

    def __init__(
        self, config: EncoderConfig, descriptor_dim: int, *, patches: int, patch_m: float
    ) -> None:
        super().__init__()
        self.lift = PlanLift(config, patches * patch_m)
        self.descriptor = PlanDescriptor(config.width, descriptor_dim, patches, patch_m)

    def start_from(self, maps: nn.Module, places: nn.Module) -> None:
        """Takes the weights of the chips' maps and place descriptors, which do the same work."""
        self.lift.maps.load_state_dict(maps.state_dict())
        self.descriptor.load_state_dict(places.state_dict())
