"""Descriptors of places: what stands around a point of the ground, in rings, blind to north."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RING_EDGES_M = (0.0, 9.0, 20.0, 34.0)


class PlaceDescriptors(nn.Module):
    """64 vectors per chip, one per place: patches around it in rings, as harmonics of bearing.

    A magnitude of a harmonic does not change when the chip turns: the descriptor asks what stands
    around a place, not in which direction, because the photo's heading is unknown.
    """

    pooling: Tensor

    def __init__(self, width: int, descriptor_dim: int, patches: int, patch_m: float) -> None:
        super().__init__()
        num_rings = len(RING_EDGES_M) - 1
        self.squeeze = nn.Linear(width, 32)
        self.mlp = descriptor_mlp(width + num_rings * 3 * 32, descriptor_dim)
        self.register_buffer("pooling", self._pooling(patches, patch_m), False)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches `(B, 16, 16, width)` to unit vectors `(B, 64, D)`."""
        batch, rows, columns, _ = patches.shape
        squeezed = self.squeeze(patches).reshape(batch, rows * columns, -1)
        pooled = torch.matmul(self.pooling.flatten(0, 2).to(squeezed.dtype), squeezed)
        pooled = pooled.view(batch, 64, self.pooling.shape[1], 5, -1)
        centre = patches[:, rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
        x = torch.cat([centre.flatten(1, 2), magnitudes(pooled).flatten(2)], dim=-1)
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
        for near, far in pairwise(RING_EDGES_M):
            inside = ((distance >= near) & (distance < far)).float()
            inside = inside / inside.sum(1, keepdim=True)
            rings.append(harmonics(bearing) * inside)
        return torch.stack(rings).permute(2, 0, 1, 3).contiguous()


def harmonics(bearing_rad: Tensor) -> Tensor:
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


def magnitudes(pooled: Tensor) -> Tensor:
    """`(..., 5, C)` harmonics to `(..., 3 C)`: mean and the two magnitudes."""
    mean, cos1, sin1, cos2, sin2 = pooled.float().unbind(-2)
    first = (cos1.square() + sin1.square() + 1e-6).sqrt()
    second = (cos2.square() + sin2.square() + 1e-6).sqrt()
    return torch.cat([mean, first, second], dim=-1).to(pooled.dtype)


def descriptor_mlp(num_inputs: int, descriptor_dim: int) -> nn.Sequential:
    """What every descriptor ends with."""
    return nn.Sequential(
        nn.LayerNorm(num_inputs),
        nn.Linear(num_inputs, 256),
        nn.ReLU(),
        nn.Linear(256, descriptor_dim),
    )
