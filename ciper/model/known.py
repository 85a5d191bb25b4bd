"""What is known of every pose beforehand: the photo looks to its chip's up, near the centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.errors import ConfigError
from ciper.model.decoder import COARSE, TemplateSpec
from ciper.pose_grid import NUM_COARSE

Floats = NDArray[np.floating[Any]]

IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class KnownPose:
    """A prior on the pose of a photo in its own chip.

    Attributes:
        heading_sigma_deg: standard deviation of the heading about the chip's up.
        reach_m: how far the camera lies from the chip's centre at most, along each axis; a
            quarter of a chip's side says nothing, for there ends what a chip answers for.
    """

    heading_sigma_deg: float = 10.0
    reach_m: float = 32.0

    def __post_init__(self) -> None:
        for name in ("heading_sigma_deg", "reach_m"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"known.{name} is {value}; expected a positive number")

    def log_heading(self, heading_deg: Floats, cells: TemplateSpec) -> Floats:
        """A wrapped Gaussian about the chip's up, widened by the cells that it is taken on."""
        turn = (heading_deg + 180.0) % 360.0 - 180.0
        variance = self.heading_sigma_deg**2 + cells.heading_step_deg**2 / 12
        return np.asarray(-0.5 * np.square(turn) / variance)

    def log_offset(self, offset_m: Floats, cells: TemplateSpec) -> Floats:
        """0 on cells that a camera in the square about the centre may have, far below elsewhere.

        A label is spread over the two cells nearest to it.
        """
        is_near = np.abs(offset_m) < self.reach_m + cells.cell_m
        return np.where(is_near, 0.0, IMPOSSIBLE)

    def on_coarse_cells(self) -> NDArray[np.float32]:
        """Log factors `(32, 16, 16)` of headings, rows and columns."""
        heading, offset = self.on_axes(COARSE, NUM_COARSE)
        total = heading[:, None, None] + offset[:, None] + offset
        return total.astype(np.float32)

    def on_axes(self, cells: TemplateSpec, num_cells: int) -> tuple[Floats, Floats]:
        """Log factors of all headings `(H,)`, and of the rows or columns `(N,)` about the centre.

        They are the same for rows, which count from north, and for columns.
        """
        turn_deg = np.arange(cells.num_headings) * cells.heading_step_deg
        offset_m = (np.arange(num_cells) - num_cells / 2 + 0.5) * cells.cell_m
        return self.log_heading(turn_deg, cells), self.log_offset(offset_m, cells)
