"""The objective: one probability over chips and poses, coarse and fine, and retrieval beside it.

Losses come back by name and unweighted; their weights are configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ciper.data.sample import Batch
from ciper.errors import ConfigError
from ciper.model.decoder import (
    COARSE,
    FINE,
    WINDOW_CELLS,
    WINDOW_HEADINGS,
    Correlation,
    Windows,
)
from ciper.model.known import KnownPose
from ciper.model.network import AerialCode, GroundCode, Network
from ciper.model.refine import ranking_loss, refined_pose_loss, window_candidates
from ciper.pose_grid import NUM_FINE


@dataclass(frozen=True)
class CriterionConfig:
    """How many wrong places a photo is held against, and the city that they stand for.

    `num_negative_chips` chips of the batch, at every second row, column and heading, stand for
    `city_cells` coarse cells (15,625 are 0.25 km^2): their sum is scaled up, so that the softmax
    learns the odds that it will meet in a city. With 0 of them the poses of a photo's own chip are
    all there is. A wrong mode is one that is not within `near_m` and `near_deg` of the truth. The
    refiner ranks the true hypothesis against the best wrong mode of its own chip and of
    `num_wrong_hypotheses` wrong chips. What is `known` of every pose weighs all cells, as it does
    at test: poses that it rules out teach nothing. It is for pairs that keep to it, the study's.
    """

    num_negative_chips: int = 16
    num_wrong_hypotheses: int = 4
    city_cells: int = 15_625
    near_m: float = 8.0
    near_deg: float = 28.0
    known: KnownPose | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_negative_chips", 0), ("num_wrong_hypotheses", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"criterion.{name} is {getattr(self, name)}; expected {least} or more"
                )


class Criterion(nn.Module):
    """Scores a network on a batch."""

    def __init__(self, config: CriterionConfig) -> None:
        super().__init__()
        self.config = config
        self.known = None if config.known is None else KnownCells(config.known)

    def forward(
        self,
        network: Network,
        ground: GroundCode,
        aerial: AerialCode,
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and running statistics of one batch.

        It takes codes, not images: who trains with a large batch encodes it piece by piece.

        Args:
            network: correlates the codes.
            ground: codes of B photos.
            aerial: codes of B chips.
            batch: B pairs; photo i was taken in chip i. Its images are not looked at.
            generator: chooses negatives and jitters windows (on the CPU).

        Returns:
            Unweighted scalar losses by name, those of a refiner only where there is one, and
            detached statistics by name.
        """
        is_wrong = wrong_chips(batch)
        volume, negatives = self._coarse_logits(network, ground, aerial, is_wrong, generator)
        weighed = volume if self.known is None else volume + self.known.coarse
        num_wrong_chips = 1 if network.refiner is None else self.config.num_wrong_hypotheses
        modes = self._modes(
            batch, volume.detach(), weighed.detach(), negatives, num_wrong_chips, generator
        )
        losses = {
            "retrieval": retrieval_loss(network, ground, aerial, batch.pose, is_wrong),
            "coarse": coarse_loss(weighed, negatives.weighed, batch.pose),
            **self._fine_losses(network, ground, aerial, batch, modes),
        }
        return losses, statistics(weighed.detach(), negatives.weighed.detach(), batch.pose)

    def _coarse_logits(
        self,
        network: Network,
        ground: GroundCode,
        aerial: AerialCode,
        is_wrong: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, Negatives]:
        templates = network.correlation.coarse_templates(ground.polar_coarse)
        volume = network.correlation.paired_volume(templates, aerial.coarse).float()
        batch = len(volume)
        chips = torch.randperm(batch, generator=generator)[: self.config.num_negative_chips]
        shift = torch.randint(0, 2, (3,), generator=generator).tolist()
        if self.known is not None:
            shift[2] = 0  # The heading that is known is the first of them.
        chips = chips.to(volume.device)
        maps = aerial.coarse[chips][:, :, shift[0] :, shift[1] :]
        logits = network.correlation.coarse_volume(templates[:, shift[2] :: 2], maps, stride=2)
        logits = logits.float()
        keep = is_wrong[:, chips]
        heading_share = 0.5 if self.known is None else self.known.heading_share
        num_cells = keep.sum(1).clamp_min(1) * logits.shape[-1] * logits.shape[-2] * heading_share
        log_weight = (self.config.city_cells / num_cells).log()
        logits = logits + log_weight[:, None, None, None, None]
        logits = logits.masked_fill(~keep[:, :, None, None, None], -math.inf)
        log_known = None if self.known is None else self.known.on_negatives(shift)
        return volume, Negatives(logits, chips, log_weight, tuple(shift), log_known)

    def _fine_losses(
        self,
        network: Network,
        ground: GroundCode,
        aerial: AerialCode,
        batch: Batch,
        modes: Modes,
    ) -> dict[str, Tensor]:
        """Cross-entropy over the cells of a photo's first windows; with a refiner its losses too.

        They are those about the truth, the wrong mode of its chip and that of one wrong chip.
        """
        correlate = network.correlation
        num_windows = min(3, modes.num_per_photo)
        first = num_windows * len(batch)
        fine = self._fine_logits(correlate, ground, aerial, modes.windows.part(0, first))
        logits = (fine.flatten(1) + modes.logit[:first, None]).view(num_windows, len(batch), -1)
        log_prob = logits.transpose(0, 1).flatten(1).log_softmax(1)[:, : modes.labels.shape[1]]
        losses = {"fine": -(modes.labels * log_prob).sum(1).mean()}
        if network.refiner is None:
            return losses
        # The refiner learns beside the correlation, which must stay good without it.
        with torch.no_grad():
            if num_windows < modes.num_per_photo:
                rest = modes.windows.part(first, None)
                fine = torch.cat([fine, self._fine_logits(correlate, ground, aerial, rest)])
            candidates = window_candidates(modes.windows, fine)
            logit = modes.logit + fine.flatten(1).logsumexp(1)
        polar = (ground.polar_coarse.detach(), ground.polar_fine.detach())
        maps = (aerial.coarse.detach(), aerial.fine.detach())
        refined = network.refiner(polar, maps, candidates)
        losses["ranking"] = ranking_loss(logit.view(-1, len(batch)), refined)
        losses["refined_pose"] = refined_pose_loss(candidates, refined, batch.pose)
        return losses

    def _fine_logits(
        self,
        correlation: Correlation,
        ground: GroundCode,
        aerial: AerialCode,
        windows: Windows,
    ) -> Tensor:
        """`(W, 9, 7, 7)` logits of the windows' cells, weighed by what is known."""
        logits = correlation.fine_volume(ground.polar_fine, aerial.fine, windows).float()
        return logits if self.known is None else logits + self.known.fine(windows)

    def _modes(
        self,
        batch: Batch,
        evidence: Tensor,
        weighed: Tensor,
        negatives: Negatives,
        num_wrong_chips: int,
        generator: torch.Generator,
    ) -> Modes:
        """Windows about the truth, the best wrong mode of its chip, and those of wrong chips.

        What is known has a say in which they are; their logits are free of it.
        """
        wrong = weighed.masked_fill(near_truth(batch.pose, self.config), -math.inf)
        best = wrong.flatten(1).argmax(1, keepdim=True)
        true, labels = true_windows(batch.pose, generator)
        groups = [
            (true, logits_at(evidence, true)),
            (wrong_mode_windows(wrong, generator), evidence.flatten(1).gather(1, best)[:, 0]),
            negatives.modes(num_wrong_chips, generator),
        ]
        windows, logits = zip(*groups, strict=True)
        return Modes(Windows.joined(windows), torch.cat(logits), labels)


class KnownCells(nn.Module):
    """What is known, on the cells that the criterion looks at."""

    coarse: Tensor
    fine_heading: Tensor
    fine_offset: Tensor

    def __init__(self, known: KnownPose) -> None:
        super().__init__()
        coarse = torch.from_numpy(known.on_coarse_cells())
        heading, offset = (torch.from_numpy(a).float() for a in known.on_axes(FINE, 2 * NUM_FINE))
        self.register_buffer("coarse", coarse, persistent=False)
        self.register_buffer("fine_heading", heading, persistent=False)
        self.register_buffer("fine_offset", offset, persistent=False)

    @property
    def heading_share(self) -> float:
        """Share of what is known of headings that every second of them holds, from the first on."""
        heading = self.coarse[:, 8, 8]
        return float((heading[::2].logsumexp(0) - heading.logsumexp(0)).exp())

    def on_negatives(self, shift: Sequence[int]) -> Tensor:
        """`(16, 8, 8)` at every second row, column and heading, from the shift on."""
        return self.coarse[shift[2] :: 2, shift[0] :: 2, shift[1] :: 2]

    def fine(self, windows: Windows) -> Tensor:
        """`(W, 9, 7, 7)` on the cells of windows."""
        steps = torch.arange(WINDOW_HEADINGS, device=windows.heading.device) - WINDOW_HEADINGS // 2
        cells = torch.arange(WINDOW_CELLS, device=windows.row.device) - WINDOW_CELLS // 2
        heading = self.fine_heading[(windows.heading[:, None] + steps) % FINE.num_headings]
        row, column = (
            self.fine_offset[(middle[:, None] + cells).clamp(0, len(self.fine_offset) - 1)]
            for middle in (windows.row, windows.column)
        )
        return heading[:, :, None, None] + row[:, None, :, None] + column[:, None, None, :]


@dataclass(frozen=True)
class Modes:
    """Poses that are looked at closely, G per photo: the true one first, photos fastest.

    `windows (G B)` and the coarse `logit (G B,)` of their cells; `labels (B, 9 * 7 * 7)` spread the
    truth over the cells of the first B windows.
    """

    windows: Windows
    logit: Tensor
    labels: Tensor

    @property
    def num_per_photo(self) -> int:
        """G."""
        return len(self.logit) // len(self.labels)


@dataclass(frozen=True)
class Negatives:
    """Evidence at wrong chips, at every second row, column and heading.

    `logits (B, N, 16, 8, 8)` with log weights `(B,)` added; `chips (N,)` index the batch, and N
    may be 0; `shift` is the first row, column and heading; `log_known (16, 8, 8)` what is known.
    """

    logits: Tensor
    chips: Tensor
    log_weight: Tensor
    shift: tuple[int, ...]
    log_known: Tensor | None = None

    @property
    def weighed(self) -> Tensor:
        """The logits with what is known."""
        return self.logits if self.log_known is None else self.logits + self.log_known

    def modes(self, num_chips: int, generator: torch.Generator) -> tuple[Windows, Tensor]:
        """The best pose of each photo's `num_chips` best wrong chips, best chips first.

        Returns:
            A window around each, and their logits `(num_chips * B,)` without the weight and free
            of what is known.
        """
        batch, num_negatives = self.logits.shape[:2]
        value, cell = self.weighed.detach().flatten(2).max(2)
        chosen = value.topk(min(num_chips, num_negatives), dim=1).indices
        evidence = self.logits.detach().flatten(2).gather(2, cell[..., None])[..., 0]
        top = evidence.gather(1, chosen)
        heading, row, column = unravel(cell.gather(1, chosen).T.flatten(), self.logits.shape[2:])
        row_shift, column_shift, heading_shift = self.shift
        windows = windows_around(
            self.chips[chosen.T.flatten()],
            2 * heading + heading_shift,
            2 * row + row_shift,
            2 * column + column_shift,
            generator,
        )
        photo = torch.arange(batch, device=cell.device).repeat(chosen.shape[1])
        return replace(windows, photo=photo), (top.T - self.log_weight).flatten()


def unravel(index: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Flat indices to one index per axis."""
    out = []
    for size in reversed(shape):
        out.append(index % size)
        index = index // size
    return tuple(reversed(out))


def wrong_chips(batch: Batch) -> Tensor:
    """`(B, B)`: chip j does not hold photo i's camera, nor any of its surroundings (16 m)."""
    offset = (batch.camera_m[:, None] - batch.centre_m[None]).abs().amax(-1)
    is_near = (batch.city[:, None] == batch.city[None]) & (offset < 80.0)
    return ~(is_near | torch.eye(len(batch), dtype=torch.bool, device=batch.city.device))


def linear_labels(position: Tensor, num_bins: int, *, wraps: bool = False) -> Tensor:
    """Spreads each position (in bins; bin i's centre is i) over its two neighbours: `(B, bins)`.

    Positions beyond the outer centres belong to the outer bins.
    """
    bins = torch.arange(num_bins, device=position.device)
    if not wraps:
        position = position.clamp(0, num_bins - 1)
    gap = (position[:, None] - bins).abs()
    if wraps:
        gap = torch.minimum(gap % num_bins, -gap % num_bins)
    return (1 - gap).clamp_min(0)


def coarse_labels(pose: Tensor) -> Tensor:
    """`(B, 3)` poses to trilinear labels `(B, 32, 16, 16)` on the chip's central cells."""
    column = linear_labels(pose[:, 0] / COARSE.cell_m + 7.5, 16)
    row = linear_labels(7.5 - pose[:, 1] / COARSE.cell_m, 16)
    heading = linear_labels(pose[:, 2] / COARSE.heading_step_deg, COARSE.num_headings, wraps=True)
    return torch.einsum("bh,br,bc->bhrc", heading, row, column)


def coarse_loss(volume: Tensor, negatives: Tensor, pose: Tensor) -> Tensor:
    """Cross-entropy of the true pose among its chip's poses and all wrong chips' poses."""
    total = torch.logaddexp(volume.flatten(1).logsumexp(1), negatives.flatten(1).logsumexp(1))
    return (total - (coarse_labels(pose) * volume).flatten(1).sum(1)).mean()


def near_truth(pose: Tensor, config: CriterionConfig) -> Tensor:
    """`(B, 32, 16, 16)`: coarse cells that are near the truth in position and heading."""
    centre = (torch.arange(16, device=pose.device) - 7.5) * COARSE.cell_m
    dx = centre[None] - pose[:, :1]
    dy = -centre[None] - pose[:, 1:2]
    close = dx.square()[:, None, :] + dy.square()[:, :, None] < config.near_m**2
    heading = torch.arange(COARSE.num_headings, device=pose.device) * COARSE.heading_step_deg
    turn = ((heading[None] - pose[:, 2:] + 180) % 360 - 180).abs()
    return (turn < config.near_deg)[:, :, None, None] & close[:, None]


def true_windows(pose: Tensor, generator: torch.Generator) -> tuple[Windows, Tensor]:
    """Windows that hold the truth off their centre, and trilinear labels `(B, 9 * 7 * 7)`."""
    batch = len(pose)
    column = pose[:, 0] / FINE.cell_m + 31.5
    row = 31.5 - pose[:, 1] / FINE.cell_m
    heading = pose[:, 2] / FINE.heading_step_deg

    def centre(position: Tensor, reach: int) -> Tensor:
        jitter = torch.randint(-reach, reach + 1, (batch,), generator=generator)
        return position.round().long() + jitter.to(pose.device)

    centre_column, centre_row = centre(column, 2), centre(row, 2)
    centre_heading = centre(heading, 3)
    half = WINDOW_CELLS // 2
    labels = torch.einsum(
        "bh,br,bc->bhrc",
        linear_labels(heading - centre_heading + WINDOW_HEADINGS // 2, WINDOW_HEADINGS),
        linear_labels(row - centre_row + half, WINDOW_CELLS),
        linear_labels(column - centre_column + half, WINDOW_CELLS),
    )
    index = torch.arange(batch, device=pose.device)
    centre_heading = centre_heading % FINE.num_headings
    return Windows(index, index, centre_row, centre_column, centre_heading), labels.flatten(1)


def windows_around(
    chip: Tensor, heading: Tensor, row: Tensor, column: Tensor, generator: torch.Generator
) -> Windows:
    """Windows around coarse cells (`row`, `column` of the central 16 x 16, `heading` of 32)."""
    batch = len(chip)

    def jitter(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (batch,), generator=generator).to(chip.device)

    return Windows(
        photo=torch.arange(batch, device=chip.device),
        chip=chip,
        row=2 * (row + 8) + jitter(0, 2),
        column=2 * (column + 8) + jitter(0, 2),
        heading=(4 * heading + jitter(-1, 2)) % FINE.num_headings,
    )


def wrong_mode_windows(volume: Tensor, generator: torch.Generator) -> Windows:
    """A window around the highest logit `(B, 32, 16, 16)` of each photo's own chip."""
    heading, row, column = unravel(volume.flatten(1).argmax(1), volume.shape[1:])
    chip = torch.arange(len(volume), device=volume.device)
    return windows_around(chip, heading, row, column, generator)


def logits_at(volume: Tensor, windows: Windows) -> Tensor:
    """The coarse logit of the cell that holds each window's centre: `(W,)`."""
    heading = (windows.heading + 2) // 4 % COARSE.num_headings
    row = (windows.row // 2 - 8).clamp(0, 15)
    column = (windows.column // 2 - 8).clamp(0, 15)
    return volume[windows.photo, heading, row, column]


def retrieval_loss(
    network: Network, ground: GroundCode, aerial: AerialCode, pose: Tensor, is_wrong: Tensor
) -> Tensor:
    """Cross-entropy of the true place among all places of the batch (InfoNCE over places)."""
    batch = len(pose)
    similarity = torch.einsum("nd,bpd->nbp", ground.descriptor, aerial.descriptors)
    logits = similarity * network.retrieval_log_scale.exp().clamp(max=60.0)
    own = torch.eye(batch, dtype=torch.bool, device=pose.device)
    logits = logits.masked_fill(~(is_wrong | own)[..., None], -math.inf)
    row = linear_labels(3.5 - pose[:, 1] / 8.0, 8)
    column = linear_labels(pose[:, 0] / 8.0 + 3.5, 8)
    labels = torch.einsum("br,bc->brc", row, column).flatten(1)
    paired = logits[torch.arange(batch), torch.arange(batch)]
    return (logits.flatten(1).logsumexp(1) - (labels * paired).sum(1)).mean()


def statistics(volume: Tensor, negatives: Tensor, pose: Tensor) -> dict[str, Tensor]:
    """How near the best coarse cell of the own chip is, and how often that chip is found.

    `chip_right` counts the photos whose own chip has more evidence than all wrong chips together,
    scaled up to a city: those for which it has over half of the probability. Without wrong chips
    these are all.
    """
    index = volume.flatten(1).argmax(1)
    heading, row, column = unravel(index, volume.shape[1:])
    dx = (column - 7.5) * COARSE.cell_m - pose[:, 0]
    dy = (7.5 - row) * COARSE.cell_m - pose[:, 1]
    turn = (heading * COARSE.heading_step_deg - pose[:, 2] + 180) % 360 - 180
    return {
        "position_median_m": torch.hypot(dx, dy).quantile(0.5),
        "within_6m": (torch.hypot(dx, dy) < 6.0).float().mean(),
        "heading_median_deg": turn.abs().quantile(0.5),
        "chip_right": (volume.flatten(1).logsumexp(1) > negatives.flatten(1).logsumexp(1))
        .float()
        .mean(),
    }
