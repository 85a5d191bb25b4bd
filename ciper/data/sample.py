"""What a loader yields and the network takes: one frozen record for every dataset."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B ground-aerial pairs.

    canvas: `(B, 128, 512, 3)` uint8 ground canvases; is_visible: `(B, 128, 512)` bool.
    chip: `(B, 256, 256, 3)` uint8 aerial chips, north up; is_valid: `(B, 256, 256)` bool.
    pose: `(B, 3)` camera in its chip: x_m east and y_m north of the chip's centre, heading_deg.
    city: `(B,)` which city a pair is from; centre_m: `(B, 2)` its chip's centre in that city.
    camera_m: `(B, 2)` the camera in that city.
    """

    canvas: Tensor
    is_visible: Tensor
    chip: Tensor
    is_valid: Tensor
    pose: Tensor
    city: Tensor
    centre_m: Tensor
    camera_m: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __len__(self) -> int:
        return int(self.pose.shape[0])
