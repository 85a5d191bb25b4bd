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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

from ciper.geo import wrap_signed_deg
from ciper.model.matcher import Evidence, MatchConfig, best_poses, possible_cells
from ciper.pose_grid import (
    FINE_STEP_DEG,
    HEADING_STEP_DEG,
    NUM_COARSE,
    NUM_HEADINGS,
    window_cells,
    window_steps,
)

Float = NDArray[np.floating[Any]]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

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
        config: how much is refined.
    """
    mixture = _Mixture(chip_logit - logsumexp(chip_logit), poses, spread, has_imagery, coarse_m)
    coarse = mixture.coarse()
    weighed = coarse if log_prior is None else coarse + log_prior
    says_heading = spread.heading_deg is not None
    chosen = _windows(weighed, config or MatchConfig(), says_heading=says_heading)
    chip, _, row, column = chosen
    fine = [mixture.window(*(int(i) for i in window)) for window in zip(*chosen, strict=True)]
    is_possible = possible_cells(has_imagery, chip, row, column)[:, None]
    logits = np.where(is_possible, np.array(fine).reshape(-1, 9, 6, 6), -np.inf)
    return Evidence(coarse, *chosen, logits.astype(np.float32), says_heading)


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
            log_mass[chip] = self._of_cells(index, steps, cells, cells, parts=1)
        log_mass[~np.broadcast_to(self.has_imagery[:, None], shape)] = -np.inf
        return log_mass

    def window(self, chip: int, heading: int, row: int, column: int) -> Float:
        """`(9, 6, 6)` of the fine cells about a coarse cell."""
        steps = window_steps(heading) * FINE_STEP_DEG
        rows, columns = window_cells(row), window_cells(column)
        found = np.flatnonzero(self.poses.chip == chip)
        if len(found):
            return self._of_cells(int(found[0]), steps, rows, columns, parts=2)
        num_cells = max(1, int(self.has_imagery[chip].sum())) * NUM_HEADINGS * 16
        return np.full((9, 6, 6), self.log_chip[chip] - np.log(num_cells))

    def _of_cells(
        self, index: int, steps_deg: Float, rows: Int, columns: Int, *, parts: int
    ) -> Float:
        """`(headings, rows, columns)` of a decoded chip, its cells cut into `parts` per axis."""
        width_m = self.coarse_m / parts
        middle = NUM_COARSE // 2 * parts - 0.5
        sigma_m, sigma_deg = self.spread.position_m, self.spread.heading_deg
        x_m, y_m, heading_deg = self.poses.pose[index].T
        across = cell_mass((columns - middle) * width_m - x_m[:, None], sigma_m, width_m)
        down = cell_mass((middle - rows) * width_m - y_m[:, None], sigma_m, width_m)
        turn = wrap_signed_deg(steps_deg - heading_deg[:, None])
        step_deg = HEADING_STEP_DEG if parts == 1 else FINE_STEP_DEG
        if sigma_deg is None:
            turned = np.full(turn.shape, step_deg / 360.0)
        else:
            turns = np.stack([turn - 360.0, turn, turn + 360.0])
            turned = cell_mass(turns, sigma_deg, step_deg).sum(0)
        weight = np.exp(self.poses.log_weight[index])[:, None]
        placed = (down[:, :, None] * across[:, None, :]).reshape(len(weight), -1)
        mass = (turned * weight).T @ placed
        log_mass: Float = self.log_chip[self.poses.chip[index]] + np.log(mass)
        return log_mass.reshape(len(steps_deg), len(rows), len(columns))


def cell_mass(offset: Float, sigma: float, width: float) -> Float:
    """Mass of a Gaussian in cells of a `width` whose centres lie `offset` from its mean.

    The exact integral: a cell's mass is the sum of its parts'. Never quite zero, see `TINY`.
    """
    # Left of the mean both values are small, so that their difference keeps its digits.
    far = -np.abs(offset)
    mass = ndtr((far + width / 2) / sigma) - ndtr((far - width / 2) / sigma)
    return np.asarray(mass + TINY)
