"""From hypotheses to evidence: a mixture over poses on the posterior's own cells.

A network of set prediction answers for every chip with K poses and a logit of each. With the
chips' similarity to the photo they are one mixture,

    mass(chip, pose) = P(chip) sum_k w_k N(position; p_k, sigma_m) N(heading; h_k, sigma_deg),

P(chip) the softmax of scaled similarity, w the softmax of the chip's logits. Its mass in every
cell is the evidence that the posterior is made from, the same object as correlation gives. A chip
answers for its central half alone: what its hypotheses put outside is lost to it, since the chips
that hold those places are asked themselves. Chips that were not decoded keep their mass spread
evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ciper.geo import wrap_signed_deg
from ciper.logits import logsumexp
from ciper.model.matcher import Evidence, MatchConfig, best_poses, possible_cells
from ciper.pose_grid import (
    FINE_STEP_DEG,
    HEADING_STEP_DEG,
    NUM_COARSE,
    NUM_HEADINGS,
    window_cells,
    window_steps,
)
from ciper.refinement import NEIGHBOUR_SHARE

Float = NDArray[np.floating[Any]]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Windows are so many standard deviations apart: closer ones would show one mode twice.
APART_SIGMAS = 2.0
# Added to every factor of a cell's mass, so that its logarithm is finite however far away it is.
TINY = 1e-30


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a hypothesis, per axis; a heading of None says nothing."""

    position_m: float
    heading_deg: float | None


@dataclass(frozen=True)
class PoseSet:
    """K weighted poses in each of U chips.

    Attributes:
        chip: (U,) which of the R chips they are in.
        log_weight: (U, K) log share of each pose; a chip's shares sum to 1.
        pose: (U, K, 3) x_m east and y_m north of the chip's centre, heading_deg.
    """

    chip: Int
    log_weight: Float
    pose: Float


def best_chips(logit: Float, num_chips: int, *, log_prior: Float | None = None) -> Int:
    """The chips to decode, `(U,)`: the most similar ones where the prior lets the camera be.

    Args:
        logit: (R,) scaled similarity.
        num_chips: at most so many.
        log_prior: (R, 32, 16, 16).
    """
    if log_prior is not None:
        logit = logit + log_prior.reshape(len(logit), -1).max(1)
    return np.sort(np.argsort(-logit, kind="stable")[:num_chips]).astype(np.int64)


def evidence_of(
    chip_logit: Float,
    poses: PoseSet,
    spread: Spread,
    *,
    has_imagery: Bool,
    coarse_m: float,
    log_prior: NDArray[np.float32] | None = None,
    config: MatchConfig | None = None,
) -> Evidence:
    """The mixture on the cells of R chips.

    Args:
        chip_logit: (R,) scaled similarity of every chip.
        poses: hypotheses of the chips that were decoded.
        spread: of every hypothesis.
        has_imagery: (R, 16, 16) cells that can hold the camera at all.
        coarse_m: side of a coarse cell.
        log_prior: (R, 32, 16, 16), weighs which poses are refined; the evidence is free of it.
        config: how much is refined; windows two standard deviations apart unless told.
    """
    mixture = _Mixture(chip_logit - logsumexp(chip_logit), poses, spread, has_imagery, coarse_m)
    coarse = mixture.coarse()
    weighed = coarse if log_prior is None else coarse + log_prior
    says_heading = spread.heading_deg is not None
    config = config or apart(spread, coarse_m)
    chosen = _windows(weighed, config, says_heading=says_heading)
    chip, _, row, column = chosen
    windows = list(zip(*(c.tolist() for c in chosen), strict=True))
    fine = np.array([mixture.window(*window) for window in windows]).reshape(-1, 9, 6, 6)
    is_possible = possible_cells(has_imagery, chip, row, column)[:, None]
    return Evidence(
        coarse,
        *chosen,
        fine=np.where(is_possible, fine, -np.inf).astype(np.float32),
        says_heading=says_heading,
        side_share=np.array([mixture.side_share(*window) for window in windows], np.float32),
    )


def apart(spread: Spread, coarse_m: float) -> MatchConfig:
    """Windows so far apart that each is a mode of its own, two cells and headings at least."""
    cells = ceil(APART_SIGMAS * spread.position_m / coarse_m)
    headings = ceil(APART_SIGMAS * (spread.heading_deg or 0.0) / HEADING_STEP_DEG)
    return MatchConfig(apart_cells=max(2, cells), apart_headings=max(2, headings))


def _windows(
    weighed: Float, config: MatchConfig, *, says_heading: bool
) -> tuple[Int, Int, Int, Int]:
    """The cells to refine; without a heading no two of them share a place."""
    if says_heading:
        return best_poses(weighed, config)
    heading = weighed.argmax(1)
    chip, _, row, column = best_poses(weighed.max(1, keepdims=True), config)
    return chip, heading[chip, row, column], row, column


@dataclass(frozen=True)
class _Mixture:
    """Log masses of cells; `log_chip (R,)` is log P(chip)."""

    log_chip: Float
    poses: PoseSet
    spread: Spread
    has_imagery: Bool
    coarse_m: float

    def coarse(self) -> NDArray[np.float32]:
        """`(R, 32, 16, 16)`, -inf where there is no imagery."""
        num_cells = np.maximum(self.has_imagery.sum((1, 2)), 1) * NUM_HEADINGS
        even = self.log_chip - np.log(num_cells)
        shape = (len(even), NUM_HEADINGS, NUM_COARSE, NUM_COARSE)
        log_mass = np.broadcast_to(even[:, None, None, None], shape).astype(np.float32)
        cells = np.arange(NUM_COARSE)
        steps = np.arange(NUM_HEADINGS) * HEADING_STEP_DEG
        for index, chip in enumerate(self.poses.chip):
            log_mass[chip] = self._of_cells(index, steps, HEADING_STEP_DEG, (cells, cells), parts=1)
        log_mass[~np.broadcast_to(self.has_imagery[:, None], shape)] = -np.inf
        return log_mass

    def window(self, chip: int, heading: int, row: int, column: int) -> Float:
        """`(9, 6, 6)` of the fine cells about a coarse cell."""
        found = np.flatnonzero(self.poses.chip == chip)
        if not len(found):
            num_cells = max(1, int(self.has_imagery[chip].sum())) * NUM_HEADINGS * 16
            return np.full((9, 6, 6), self.log_chip[chip] - np.log(num_cells))
        steps = window_steps(heading) * FINE_STEP_DEG
        cells = (window_cells(row), window_cells(column))
        return self._of_cells(int(found[0]), steps, FINE_STEP_DEG, cells, parts=2)

    def side_share(self, chip: int, heading: int, row: int, column: int) -> Float:
        """`(2, 3, 3)`: what the window holds of the coarse headings before and after its own.

        A narrow hypothesis near a heading's border has nearly all of the neighbour's mass there.
        """
        found = np.flatnonzero(self.poses.chip == chip)
        if not len(found):
            return np.full((2, 3, 3), NEIGHBOUR_SHARE)
        sides = np.array([-1, 1])
        cells = (row + np.arange(-1, 2), column + np.arange(-1, 2))
        whole_deg = (heading + sides) * HEADING_STEP_DEG
        held_deg = (heading + sides * (1 + NEIGHBOUR_SHARE) / 2) * HEADING_STEP_DEG
        width_deg = NEIGHBOUR_SHARE * HEADING_STEP_DEG
        whole = self._of_cells(int(found[0]), whole_deg, HEADING_STEP_DEG, cells, parts=1)
        held = self._of_cells(int(found[0]), held_deg, width_deg, cells, parts=1)
        return np.asarray(np.exp(held - whole).clip(max=1.0))

    def _of_cells(
        self,
        index: int,
        heading_deg: Float,
        width_deg: float,
        cells: tuple[Int, Int],
        *,
        parts: int,
    ) -> Float:
        """`(headings, rows, columns)` of a decoded chip.

        Args:
            index: of the chip among the decoded ones.
            heading_deg: middles of headings that are `width_deg` wide.
            width_deg: their width.
            cells: rows and columns of coarse cells, or of their parts.
            parts: what coarse cells are cut into per axis.
        """
        width_m = self.coarse_m / parts
        middle = NUM_COARSE // 2 * parts - 0.5
        sigma_m, sigma_deg = self.spread.position_m, self.spread.heading_deg
        x_m, y_m, mean_deg = self.poses.pose[index].T
        down = cell_mass((middle - cells[0]) * width_m - y_m[:, None], sigma_m, width_m)
        across = cell_mass((cells[1] - middle) * width_m - x_m[:, None], sigma_m, width_m)
        turn = wrap_signed_deg(heading_deg - mean_deg[:, None])
        if sigma_deg is None:
            turned = np.full(turn.shape, width_deg / 360.0)
        else:
            turns = np.stack([turn - 360.0, turn, turn + 360.0])
            turned = cell_mass(turns, sigma_deg, width_deg).sum(0)
        weight = np.exp(self.poses.log_weight[index])[:, None]
        placed = (down[:, :, None] * across[:, None, :]).reshape(len(weight), -1)
        mass = (turned * weight).T @ placed
        log_mass: Float = self.log_chip[self.poses.chip[index]] + np.log(mass)
        return log_mass.reshape(len(heading_deg), len(cells[0]), len(cells[1]))


def cell_mass(offset: Float, sigma: float, width: float) -> Float:
    """Mass of a Gaussian in cells of a `width` whose centres lie `offset` from its mean.

    The exact integral: a cell's mass is the sum of its parts'. Never quite zero, see `TINY`.
    """
    # Left of the mean both values are small, so that their difference keeps its digits.
    far = -np.abs(offset)
    mass = ndtr((far + width / 2) / sigma) - ndtr((far - width / 2) / sigma)
    return np.asarray(mass + TINY)
