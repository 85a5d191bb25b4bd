"""A photo against chips: coarse evidence everywhere, fine evidence around the best poses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ciper.device import mixed_precision
from ciper.logits import logsumexp
from ciper.model.decoder import COARSE, FINE, WINDOW_CELLS, Windows
from ciper.model.network import AerialCode, GroundCode, Network
from ciper.model.refine import log_cell_mass, window_candidates
from ciper.pose_grid import NUM_COARSE, NUM_FINE, window_cells, window_steps

Float = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Int = NDArray[np.int64]

CHIPS_AT_ONCE = 512
# Of a fine window's 7 rows and columns the last 6 tile 3 x 3 coarse cells exactly.
REFINED = 6


@dataclass(frozen=True)
class MatchConfig:
    """How many poses are refined, and how far apart two of them are at least.

    Two poses of one chip are apart if they differ by `apart_cells` coarse cells in row or column,
    or by `apart_headings` heading steps.
    """

    num_windows: int = 24
    apart_cells: int = 2
    apart_headings: int = 2


@dataclass(frozen=True)
class Evidence:
    """Logits of a photo over the poses of R chips.

    coarse: `(R, 32, 16, 16)` per heading (steps of 11.25 deg), row (from north) and column (from
        west) of the coarse cells (4 m of a chip of 128 m) of each chip's central half.
    chip, heading, row, column: `(W,)` the coarse cell that each window is around.
    fine: `(W, 9, 6, 6)` logits of the fine cells (half as wide) and 2.8125 deg steps of each
        window: headings from 4 steps before the coarse heading to 4 after it, rows and columns of
        the 3 x 3 coarse cells around the coarse cell. Cells outside the chip's central half are
        -inf.
    says_heading: whether headings differ in their evidence at all.
    visible_share: of the horizon, 0 to 1, that the photo sees; of a plan view, of its area.
    is_plan: whether the photo looks straight down.
    side_share: see `Refinement`; None for logits that know nothing within a coarse cell.
    matched_share: of the chips that could hold the camera, how many these R are; the others have
        next to no evidence.
    """

    coarse: Float
    chip: Int
    heading: Int
    row: Int
    column: Int
    fine: Float
    says_heading: bool = True
    visible_share: float = 1.0
    is_plan: bool = False
    side_share: Float | None = None
    matched_share: float = 1.0


@torch.inference_mode()
def match(
    network: Network,
    ground: GroundCode,
    coarse: Tensor,
    fine_of: Callable[[Int], Tensor],
    *,
    has_imagery: NDArray[np.bool_] | None = None,
    log_prior: Float | None = None,
    config: MatchConfig | None = None,
) -> Evidence:
    """Evidence of one photo over R chips.

    Args:
        network: whose decoder is used, in evaluation mode.
        ground: codes of M views of the photo: one, or one for each field of view that it may have;
            equally probable, they are averaged.
        coarse: `(R, C, 32, 32)` coarse maps.
        fine_of: loads the fine maps `(U, C, 64, 64)` of the chips that are refined, `(U,)`.
        has_imagery: `(R, 16, 16)` cells that can hold the camera at all; None if all can.
        log_prior: `(R, 32, 16, 16)`, weighs which poses are refined; the evidence is free of it.
        config: how much is refined.
    """
    config = config or MatchConfig()
    coarse = coarse.to(ground.polar_coarse.dtype)
    volumes = _coarse_volumes(network, ground, coarse)
    volume = _average(volumes)
    if has_imagery is None:
        has_imagery = np.ones((len(volume), *volume.shape[2:]), dtype=np.bool_)
    volume = np.where(has_imagery[:, None], volume, np.float32(-np.inf))
    weighed = volume if log_prior is None else volume + log_prior
    chip, heading, row, column = best_poses(weighed, config)
    used, local = np.unique(chip, return_inverse=True)
    maps = (coarse[torch.from_numpy(used)], fine_of(used).to(coarse.dtype))
    cells = (local, 2 * (row + 8), 2 * (column + 8), 4 * heading)
    fine = [
        _fine_logits(network, ground, maps, view, cells)
        + volumes[view, chip, heading, row, column][:, None, None, None]
        for view in range(len(volumes))
    ]
    logits = _average(np.stack(fine))[:, :, WINDOW_CELLS - REFINED :, WINDOW_CELLS - REFINED :]
    is_possible = possible_cells(has_imagery, chip, row, column)
    return Evidence(
        coarse=volume,
        chip=chip,
        heading=heading,
        row=row,
        column=column,
        fine=np.where(is_possible[:, None], logits, -np.inf).astype(np.float32),
        visible_share=float(ground.visible_share.mean()),
        is_plan=bool(ground.is_plan.all()),
    )


def match_codes(
    network: Network,
    ground: GroundCode,
    aerial: AerialCode,
    *,
    log_prior: Float | None = None,
    config: MatchConfig | None = None,
) -> Evidence:
    """`match` with chips that were encoded just now and show imagery everywhere."""
    fine = aerial.fine
    return match(
        network,
        ground,
        aerial.coarse,
        lambda used: fine[torch.from_numpy(used).to(fine.device)],
        log_prior=log_prior,
        config=config,
    )


@torch.inference_mode()
def glance(
    network: Network, ground: GroundCode, coarse: Tensor, has_imagery: NDArray[np.bool_]
) -> Float:
    """How much evidence R chips hold at a glance: at every second row, column and heading.

    An eighth of the work of `match`, good enough to tell which chips deserve it.

    Args:
        network: whose decoder is used, in evaluation mode.
        ground: codes of M equally probable views of the photo.
        coarse: `(R, C, 32, 32)` coarse maps.
        has_imagery: `(R, 16, 16)` cells that can hold the camera at all.

    Returns:
        `(R,)` log evidence of each chip.
    """
    templates = network.correlation.coarse_templates(ground.polar_coarse)[:, ::2]
    scores = []
    for first in range(0, len(coarse), CHIPS_AT_ONCE):
        part = coarse[first : first + CHIPS_AT_ONCE].to(templates.dtype)
        volume = network.correlation.coarse_volume(templates, part, stride=2).float()
        is_there = torch.from_numpy(has_imagery[first : first + CHIPS_AT_ONCE, ::2, ::2])
        volume = volume.masked_fill(~is_there.to(volume.device)[None, :, None], -torch.inf)
        scores.append(volume.flatten(2).logsumexp(2).logsumexp(0))
    return np.asarray((torch.cat(scores) - math.log(len(templates))).cpu().numpy())


def _coarse_volumes(network: Network, ground: GroundCode, coarse: Tensor) -> Float:
    """`(M, R, 32, 16, 16)`, piece by piece to bound the memory."""
    templates = network.correlation.coarse_templates(ground.polar_coarse)
    pieces = [
        network.correlation.coarse_volume(templates, part).float().cpu().numpy()
        for part in coarse.split(CHIPS_AT_ONCE)
    ]
    return np.concatenate(pieces, axis=1)


def _fine_logits(
    network: Network,
    ground: GroundCode,
    maps: tuple[Tensor, Tensor],
    view: int,
    cells: tuple[Int, ...],
) -> Float:
    """One view's `(W, 9, 7, 7)` logits in windows around cells (map, row, column, heading).

    With a refiner a window's evidence, and the refiner's word on it, is spread over its cells as
    the refined pose and its own spread want it.
    """
    index = [torch.from_numpy(np.ascontiguousarray(a)).to(maps[1].device) for a in cells]
    windows = Windows(torch.full_like(index[0], view), *index)
    logits = network.correlation.fine_volume(ground.polar_fine, maps[1], windows).float()
    if network.refiner is not None:
        polar = (ground.polar_coarse, ground.polar_fine)
        with mixed_precision(logits.device):
            refined = network.refiner(polar, maps, window_candidates(windows, logits))
        total = logits.flatten(1).logsumexp(1) + refined.logit
        logits = total[:, None, None, None] + log_cell_mass(windows, refined)
    return np.asarray(logits.cpu().numpy())


def _average(logits: Float) -> Float:
    """Log of the mean likelihood over the first axis."""
    if len(logits) == 1:
        return np.asarray(logits[0])
    return np.asarray(logsumexp(logits, axis=0) - np.log(len(logits)), dtype=np.float32)


def best_poses(volume: Float, config: MatchConfig) -> tuple[Int, Int, Int, Int]:
    """The highest coarse cells that are apart from each other: chip, heading, row, column."""
    flat = volume.ravel()
    # As many as modes of that width can hide, and some more.
    per_pose = 10 * config.apart_cells**2 * config.apart_headings // 2
    num_candidates = min(flat.size, per_pose * config.num_windows)
    candidates = np.argpartition(flat, -num_candidates)[-num_candidates:]
    candidates = candidates[np.isfinite(flat[candidates])]
    candidates = candidates[np.argsort(-flat[candidates], kind="stable")]
    left = np.stack(np.unravel_index(candidates, volume.shape), axis=1)
    chosen: list[Int] = []
    while len(chosen) < config.num_windows and len(left):
        chosen.append(left[0])
        left = left[~_are_close(left, left[0], config)]
    chip, heading, row, column = np.array(chosen, dtype=np.int64).reshape(-1, 4).T
    return chip, heading, row, column


def _are_close(poses: Int, pose: Int, config: MatchConfig) -> NDArray[np.bool_]:
    """`(N,)` which of some poses `(N, 4)` are not apart from another one `(4,)`."""
    chip, turn, row, column = np.abs(poses - pose).T
    turn = np.minimum(turn, COARSE.num_headings - turn)
    is_near = (row < config.apart_cells) & (column < config.apart_cells)
    return np.asarray((chip == 0) & (turn < config.apart_headings) & is_near)


def possible_cells(
    has_imagery: NDArray[np.bool_], chip: Int, row: Int, column: Int
) -> NDArray[np.bool_]:
    """`(W, 6, 6)`: the window's cell lies in its chip's central part and on imagery."""
    rows, columns = window_cells(row), window_cells(column)
    row_ok = (rows >= 0) & (rows < NUM_FINE)
    column_ok = (columns >= 0) & (columns < NUM_FINE)
    on_imagery = has_imagery[
        chip[:, None, None],
        (rows // 2).clip(0, NUM_COARSE - 1)[:, :, None],
        (columns // 2).clip(0, NUM_COARSE - 1)[:, None, :],
    ]
    return np.asarray(row_ok[:, :, None] & column_ok[:, None, :] & on_imagery)


def window_poses(evidence: Evidence) -> tuple[Floats, Floats, Floats]:
    """The poses of the fine cells of W windows, in their chip of 128 m.

    Returns:
        `x_m (W, 6)` of their columns, `y_m (W, 6)` of their rows, and `heading_deg (W, 9)`, which
        runs on below 0 and beyond 360, so that neighbours can be averaged.
    """
    middle = (NUM_FINE - 1) / 2
    return (
        (window_cells(evidence.column) - middle) * FINE.cell_m,
        (middle - window_cells(evidence.row)) * FINE.cell_m,
        window_steps(evidence.heading) * FINE.heading_step_deg,
    )


def best_pose(evidence: Evidence) -> tuple[int, Floats]:
    """The chip of the highest fine cell, and the mean pose of the 3 x 3 x 3 cells about it.

    Returns:
        The chip, and x_m, y_m, heading_deg `(3,)` in it.
    """
    x_m, y_m, heading_deg = window_poses(evidence)
    logits = evidence.fine.astype(np.float64)
    window, *best = (int(i) for i in np.unravel_index(logits.argmax(), logits.shape))
    box = tuple(slice(max(i - 1, 0), i + 2) for i in best)
    weights = np.exp(logits[window][box] - logits[window][tuple(best)])
    weights /= weights.sum()
    pose = (
        weights.sum((0, 1)) @ x_m[window][box[2]],
        weights.sum((0, 2)) @ y_m[window][box[1]],
        (weights.sum((1, 2)) @ heading_deg[window][box[0]]) % 360.0,
    )
    return int(evidence.chip[window]), np.array(pose)
