"""The pose decoder: geometric correlation of a ground view with aerial features.

A ground view is lifted, bearing by bearing, to a *polar template*: what the aerial features around
the camera should look like at every bearing and range. Resampled to a Cartesian grid at every
heading and correlated with a chip's features, it gives one logit for every pose
(row, column, heading): the evidence of the photo for that pose. Coarse cells are 4 m and
11.25 deg over the whole chip; fine cells are 2 m and 2.8125 deg in windows around chosen poses.

Template channels come in pairs of an angular frequency f: a pair turns by f times the heading
(f = 0: scalars such as "road"; f = 1, 2: directions such as "a facade that faces this way").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ciper.model.encoder import EncoderConfig, Features
from ciper.model.fourier import correlate

PAIR_FREQUENCIES = (0, 0, 0, 0, 1, 1, 2, 2)


@dataclass(frozen=True)
class TemplateSpec:
    """One level's geometry: polar columns and rings, and the Cartesian template.

    `ring_m` are the ranges of the polar rings, `template_cells` is odd (the camera stands in the
    middle cell), `cell_m` the side of a cell; headings are multiples of `heading_step_deg`.
    """

    num_columns: int
    ring_m: tuple[float, ...]
    template_cells: int
    cell_m: float
    num_headings: int

    @property
    def num_channels(self) -> int:
        """C: two per pair."""
        return 2 * len(PAIR_FREQUENCIES)

    @property
    def heading_step_deg(self) -> float:
        """Angle between two headings."""
        return 360.0 / self.num_headings


COARSE = TemplateSpec(
    num_columns=64,
    ring_m=(2.0, 5.0, 8.0, 11.0, 15.0, 19.0, 24.0, 29.0, 34.0),
    template_cells=17,
    cell_m=4.0,
    num_headings=32,
)
FINE = TemplateSpec(
    num_columns=128,
    ring_m=(1.5, 3.0, 5.0, 7.0, 9.0, 11.5, 14.5, 18.0),
    template_cells=17,
    cell_m=2.0,
    num_headings=128,
)
WINDOW_CELLS = 7  # a fine window is 7 x 7 cells of 2 m ...
WINDOW_HEADINGS = 9  # ... and 9 headings of 2.8125 deg


def cartesian_from_polar(
    spec: TemplateSpec, heading_steps: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Matrix that resamples a polar template to Cartesian cells, turned to each heading.

    A cell is averaged over 7 x 7 sub-points, each bilinear in (bearing, range); beyond the last
    ring the template is empty. Row order: heading, row (north to south), column (west to east);
    column order: polar column (bearing from the heading, left to right), ring.

    Returns:
        `(num_headings * cells * cells, num_columns * num_rings)`.
    """
    cells, sub = spec.template_cells, 7
    offsets = (np.arange(cells * sub) + 0.5) / sub - cells / 2
    x, y = np.meshgrid(offsets * spec.cell_m, -offsets * spec.cell_m)
    cell_index = (
        np.arange(cells * sub)[:, None] // sub * cells + np.arange(cells * sub)[None, :] // sub
    ).ravel()
    rings = np.asarray(spec.ring_m)
    distance = np.hypot(x, y).ravel()
    ring = np.interp(distance, rings, np.arange(len(rings)))
    reach = rings[-1] + (rings[-1] - rings[-2]) / 2
    weight = (distance <= reach) / sub**2
    column = (np.arctan2(x, y).ravel() / (2 * np.pi) + 0.5) * spec.num_columns - 0.5
    columns_per_step = spec.num_columns / spec.num_headings
    matrices = []
    for step in heading_steps:
        matrix = np.zeros((cells * cells, spec.num_columns * len(rings)))
        turned = column - step * columns_per_step
        for column_tap in (0, 1):
            for ring_tap in (0, 1):
                c = np.floor(turned) + column_tap
                r = np.minimum(np.floor(ring) + ring_tap, len(rings) - 1)
                tap = np.abs(1 - column_tap - (turned - np.floor(turned)))
                tap = tap * np.abs(1 - ring_tap - (ring - np.floor(ring)))
                index = (c % spec.num_columns) * len(rings) + r
                np.add.at(matrix, (cell_index, index.astype(np.int64)), tap * weight)
        matrices.append(matrix)
    return np.concatenate(matrices).astype(np.float32)


def turn_pairs(x: Tensor, angle_rad: Tensor) -> Tensor:
    """Turns the channel pairs of `x (..., C)` by frequency times `angle_rad (...)`, clockwise.

    Channels are laid out as all first components (north), then all second components (east).
    """
    frequencies = torch.tensor(PAIR_FREQUENCIES, dtype=torch.float32, device=x.device)
    phase = angle_rad[..., None] * frequencies
    cos, sin = phase.cos().to(x.dtype), phase.sin().to(x.dtype)
    north, east = x.chunk(2, dim=-1)
    return torch.cat([north * cos - east * sin, north * sin + east * cos], dim=-1)


def column_bearings_rad(num_columns: int) -> Tensor:
    """Bearing of every polar column's centre from the heading: `(num_columns,)`."""
    return ((torch.arange(num_columns) + 0.5) / num_columns - 0.5) * 2 * math.pi


class PolarLift(nn.Module):
    """Ground features to polar templates, one bearing column at a time.

    A column's rows (elevations) of the stem and of the transformer, and the pose token, go through
    one MLP to every ring of that bearing. Bearings that the photo does not see are empty.
    """

    coarse_bearings: Tensor
    fine_bearings: Tensor

    def __init__(self, config: EncoderConfig, *, canvas_rows: int) -> None:
        super().__init__()
        fine, middle = config.stem_channels
        hidden, channels = 384, COARSE.num_channels
        self.squeeze_fine = nn.Linear(fine, 16)
        self.squeeze_middle = nn.Linear(middle, 32)
        self.squeeze_patches = nn.Linear(config.width, 64)
        self.from_fine = nn.Linear(16 * canvas_rows // 4, 256)
        self.from_middle = nn.Linear(32 * canvas_rows // 8, hidden)
        self.from_patches = nn.Linear(64 * canvas_rows // 16, hidden)
        self.from_pose = nn.Linear(config.width, hidden)
        self.from_coarse = nn.Linear(hidden, 256)
        self.mix = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.to_coarse = nn.Linear(hidden, len(COARSE.ring_m) * channels)
        self.to_fine = nn.Linear(256, len(FINE.ring_m) * channels)
        self.register_buffer("coarse_bearings", column_bearings_rad(COARSE.num_columns), False)
        self.register_buffer("fine_bearings", column_bearings_rad(FINE.num_columns), False)

    def forward(self, ground: Features, is_visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lifts a batch.

        Args:
            ground: features of the canvas.
            is_visible: `(B, 128)` share of each fine column that the photo sees, 0 to 1.

        Returns:
            Coarse template `(B, 64, rings, C)`, fine template `(B, 128, rings, C)` and the hidden
            columns `(B, 64, 384)`, from which the descriptor is made.
        """
        middle = _columns(self.squeeze_middle(ground.middle))
        patches = _columns(self.squeeze_patches(ground.patches))
        hidden = self.from_middle(middle) + self.from_pose(ground.pose_token)[:, None]
        hidden = hidden + self.from_patches(patches).repeat_interleave(2, dim=1)
        hidden = self.mix(F.relu(hidden))
        fine = self.from_fine(_columns(self.squeeze_fine(ground.fine)))
        fine = F.relu(fine + self.from_coarse(hidden).repeat_interleave(2, dim=1))
        half_visible = is_visible.unflatten(1, (-1, 2)).mean(2)
        return (
            self._rings(self.to_coarse(hidden), half_visible, self.coarse_bearings),
            self._rings(self.to_fine(fine), is_visible, self.fine_bearings),
            hidden * half_visible[..., None].to(hidden.dtype),
        )

    @staticmethod
    def _rings(x: Tensor, is_visible: Tensor, bearings: Tensor) -> Tensor:
        """Splits channels into rings, hides unseen bearings, turns ray frames to the heading's."""
        x = x.unflatten(-1, (-1, COARSE.num_channels))
        x = x * is_visible[..., None, None].to(x.dtype)
        return turn_pairs(x, bearings[None, :, None])


def _columns(x: Tensor) -> Tensor:
    """`(B, H, W, C)` to one vector per column, `(B, W, H * C)`."""
    return x.transpose(1, 2).flatten(2)


class AerialMaps(nn.Module):
    """Aerial features to the coarse (4 m) and fine (2 m) maps that templates are held against."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        fine, middle = config.stem_channels
        self.from_patches = nn.Linear(config.width, 64)
        self.from_middle = nn.Linear(middle, 64)
        self.mix_coarse = nn.Conv2d(64, 64, 3, padding=1)
        self.to_coarse = nn.Linear(64, COARSE.num_channels)
        self.from_coarse = nn.Linear(64, 48)
        self.from_fine = nn.Linear(fine, 48)
        self.mix_fine = nn.Conv2d(48, 48, 3, padding=1)
        self.to_fine = nn.Linear(48, FINE.num_channels)

    def forward(self, aerial: Features) -> tuple[Tensor, Tensor]:
        """Returns the coarse map `(B, C, 32, 32)` and the fine map `(B, C, 64, 64)`."""
        patches = _double(self.from_patches(aerial.patches))
        hidden = F.relu(self.from_middle(aerial.middle) + patches)
        hidden = F.relu(hidden + _mix(self.mix_coarse, hidden))
        coarse = self.to_coarse(hidden)
        hidden = F.relu(self.from_fine(aerial.fine) + _double(self.from_coarse(hidden)))
        hidden = F.relu(hidden + _mix(self.mix_fine, hidden))
        return coarse.permute(0, 3, 1, 2), self.to_fine(hidden).permute(0, 3, 1, 2)


def _mix(conv: nn.Conv2d, x: Tensor) -> Tensor:
    mixed: Tensor = conv(x.permute(0, 3, 1, 2))
    return mixed.permute(0, 2, 3, 1)


def _double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


@dataclass(frozen=True)
class Windows:
    """Poses around which fine evidence is asked for; all `(W,)` integer tensors.

    `photo` and `chip` index the batch, `row` and `column` the fine map's centre cell, `heading`
    the fine heading step.
    """

    photo: Tensor
    chip: Tensor
    row: Tensor
    column: Tensor
    heading: Tensor

    @classmethod
    def joined(cls, groups: Sequence[Windows]) -> Windows:
        """All windows of some groups, one after the other."""
        return cls(*(torch.cat([getattr(g, f.name) for g in groups]) for f in fields(cls)))

    def part(self, start: int, end: int | None) -> Windows:
        """Windows `start` to before `end`."""
        return Windows(*(getattr(self, f.name)[start:end] for f in fields(self)))


class Resampling(nn.Module):
    """Polar templates to Cartesian cells at some headings, by one matrix product.

    One number in sixty of the matrix is not zero. Where products are fast, in bfloat16 and on
    GPUs, it is taken as it is; a CPU that computes in float32 skips the zeros, seven times as fast.
    """

    matrix: Tensor

    def __init__(self, spec: TemplateSpec, heading_steps: NDArray[np.int64]) -> None:
        super().__init__()
        self.cells = spec.template_cells
        matrix = torch.from_numpy(cartesian_from_polar(spec, heading_steps))
        self.register_buffer("matrix", matrix, persistent=False)
        # No buffer: it stays on the CPU, where alone it is used.
        self.nonzero = matrix.to_sparse().coalesce()

    def forward(self, polar: Tensor) -> Tensor:
        """`(B, columns, rings, C)` to `(headings, cells, cells, B, C)`."""
        batch, _, _, channels = polar.shape
        flat = polar.permute(1, 2, 0, 3).reshape(self.matrix.shape[1], batch * channels)
        if flat.device.type == "cpu" and flat.dtype == torch.float32:
            product = torch.sparse.mm(self.nonzero, flat)
        else:
            product = self.matrix.to(flat.dtype) @ flat
        cells: Tensor = product.view(-1, self.cells, self.cells, batch, channels)
        return cells


class Correlation(nn.Module):
    """Turns polar templates to every heading and correlates them with aerial maps."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse_log_scale = nn.Parameter(torch.tensor(math.log(0.03)))
        self.fine_log_scale = nn.Parameter(torch.tensor(math.log(0.03)))
        half = WINDOW_HEADINGS // 2
        self.to_coarse_cells = Resampling(COARSE, np.arange(COARSE.num_headings))
        self.to_fine_cells = Resampling(FINE, np.arange(-half, half + 1))

    def coarse_templates(self, polar: Tensor) -> Tensor:
        """`(B, 64, rings, C)` to Cartesian templates `(B, 32, C, 17, 17)` at 32 headings."""
        steps = torch.arange(COARSE.num_headings, device=polar.device)
        angle = steps * math.radians(COARSE.heading_step_deg)
        templates = self.to_coarse_cells(polar)
        return (
            turn_pairs(templates, angle[:, None, None, None])
            * self.coarse_log_scale.exp().to(templates.dtype)
        ).permute(3, 0, 4, 1, 2)

    def coarse_volume(self, templates: Tensor, coarse: Tensor, *, stride: int = 1) -> Tensor:
        """Every photo against every chip.

        Args:
            templates: `(B, 32, C, 17, 17)`.
            coarse: `(R, C, 32, 32)`.
            stride: evaluates every `stride`-th row and column only.

        Returns:
            Logits `(B, R, 32, rows, columns)` at the centres of the chip's central cells.
        """
        num_photos, num_headings = templates.shape[:2]
        maps, flat = coarse.to(templates.dtype), templates.flatten(0, 1)
        if stride == 1 and maps.device.type == "cpu" and maps.dtype == torch.float32:
            logits = correlate(maps, flat)
        else:
            logits = F.conv2d(maps, flat, stride=stride)
        num_chips, _, *size = logits.shape
        return logits.view(num_chips, num_photos, num_headings, *size).transpose(0, 1)

    def paired_volume(self, templates: Tensor, coarse: Tensor) -> Tensor:
        """Photo i against chip i only: `(B, 32, 16, 16)`."""
        batch, num_headings = templates.shape[:2]
        maps = coarse.to(templates.dtype).reshape(1, -1, *coarse.shape[2:])
        logits: Tensor = F.conv2d(maps, templates.flatten(0, 1), groups=batch)
        return logits.view(batch, num_headings, *logits.shape[2:])

    def fine_volume(self, polar: Tensor, fine: Tensor, windows: Windows) -> Tensor:
        """Fine evidence in windows.

        Args:
            polar: `(B, 128, rings, C)`.
            fine: `(R, C, 64, 64)`.
            windows: W windows; each must lie in the map with half a template around it.

        Returns:
            Logits `(W, 9, 7, 7)`: heading step, row, column from the window's centre.
        """
        step = torch.arange(FINE.num_columns, device=polar.device)
        index = (step[None, :] - windows.heading[:, None]) % FINE.num_columns
        turned = polar[windows.photo[:, None], index]
        templates = self.to_fine_cells(turned)
        half = WINDOW_HEADINGS // 2
        offsets = torch.arange(-half, half + 1, device=polar.device)
        angle = (windows.heading[None, :] + offsets[:, None]) * math.radians(FINE.heading_step_deg)
        templates = turn_pairs(templates, angle[:, None, None, :])
        templates = (templates * self.fine_log_scale.exp().to(templates.dtype)).permute(
            3, 0, 4, 1, 2
        )
        reach = WINDOW_CELLS // 2 + FINE.template_cells // 2
        span = torch.arange(-reach, reach + 1, device=polar.device)
        crops = fine.permute(0, 2, 3, 1)[
            windows.chip[:, None, None],
            windows.row[:, None, None] + span[:, None],
            windows.column[:, None, None] + span,
        ].permute(0, 3, 1, 2)
        return self.paired_volume(templates, crops)
