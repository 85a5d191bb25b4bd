"""Fine windows about the best poses: what they hold, and what they take from the coarse cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.pose_grid import (
    FINE_STEP_DEG,
    HEADING_STEP_DEG,
    NUM_COARSE,
    NUM_FINE,
    NUM_HEADINGS,
    window_cells,
    window_steps,
)

Float = NDArray[np.floating[Any]]
Int = NDArray[np.int64]

# Share of a neighbouring coarse heading's cell that a window's 9 fine headings reach into.
NEIGHBOUR_SHARE = (9 * FINE_STEP_DEG - HEADING_STEP_DEG) / 2 / HEADING_STEP_DEG


@dataclass(frozen=True)
class Refinement:
    """W fine windows: chip, coarse heading, row, column `(W,)` of the cell that each is around.

    `log_prob (W, 9, 6, 6)` is the mass of their cells: heading step, row (from north), column.
    `side_share (W, 2, 3, 3)` is the share of the masses of the coarse headings before and after
    its own that a window holds, for each of its 3 x 3 coarse cells; None where a cell's mass is
    taken to be even.
    """

    chip: Int
    heading: Int
    row: Int
    column: Int
    log_prob: Float
    side_share: Float | None = None

    @property
    def heading_deg(self) -> Float:
        """`(W, 9)` headings."""
        return np.asarray(window_steps(self.heading) * FINE_STEP_DEG % 360.0, dtype=np.float64)

    @property
    def rows(self) -> Int:
        """`(W, 6)` fine rows in the chip's central 32; outside 0..31 there is no mass."""
        return window_cells(self.row)

    @property
    def columns(self) -> Int:
        """`(W, 6)` fine columns, likewise."""
        return window_cells(self.column)

    @property
    def share(self) -> Float:
        """`(W, 3, 3, 3)` of the masses of three coarse headings: before, its own, after."""
        share = np.full((len(self.chip), 3, 3, 3), NEIGHBOUR_SHARE)
        if self.side_share is not None:
            share[:, ::2] = self.side_share
        share[:, 1] = 1.0
        return share


def take_covered(prob: Float, refinement: Refinement) -> Float:
    """Takes out of `prob (R, 32, 16, 16)` what windows cover; returns each window's part `(W,)`.

    What two windows cover is taken out once and counted in both.
    """
    offsets = np.arange(-1, 2)
    rows = refinement.row[:, None] + offsets
    columns = refinement.column[:, None] + offsets
    is_inside = ((rows >= 0) & (rows < NUM_COARSE))[:, :, None]
    is_inside = is_inside & ((columns >= 0) & (columns < NUM_COARSE))[:, None, :]
    w, i, j = np.nonzero(is_inside)
    turns = np.array([-1, 0, 1])
    heading = (refinement.heading[w] + turns[:, None]) % NUM_HEADINGS
    index = np.ravel_multi_index(
        (refinement.chip[w], heading, rows[w, i], columns[w, j]), prob.shape
    )
    part = refinement.share[w, :, i, j].T
    covered = np.zeros(len(refinement.chip))
    np.add.at(covered, np.broadcast_to(w, index.shape), prob.ravel()[index] * part)
    cells, inverse = np.unique(index, return_inverse=True)
    # A heading between two windows' headings is reached from both sides, which overlap: then
    # nothing of it is left.
    share = np.zeros((len(turns), len(cells)), dtype=np.float32)
    side = np.broadcast_to(np.arange(len(turns))[:, None], index.shape)
    np.maximum.at(share, (side.ravel(), inverse.ravel()), part.ravel())
    prob.ravel()[cells] *= 1 - share.sum(0).clip(max=1)
    return covered


def is_first(refinement: Refinement) -> NDArray[np.bool_]:
    """`(W, 9, 6, 6)`: no window before holds the same cell, which must not count twice."""
    heading = window_steps(refinement.heading) % (4 * NUM_HEADINGS)
    cell = refinement.chip[:, None] * (4 * NUM_HEADINGS) + heading
    cell = cell[:, :, None] * (2 * NUM_FINE) + refinement.rows[:, None, :] + NUM_FINE // 2
    cell = cell[..., None] * (2 * NUM_FINE) + refinement.columns[:, None, None, :] + NUM_FINE // 2
    first = np.zeros(cell.size, dtype=np.bool_)
    first[np.unique(cell, return_index=True)[1]] = True
    return first.reshape(cell.shape)


def place_masses(refinement: Refinement, place_prob: Float) -> Float:
    """`(W,)` of the places in windows, all headings together.

    Args:
        refinement: the windows.
        place_prob: `(R, 32, 32)` mass of every place. One that lies in several windows counts in
            the first.
    """
    left, masses = place_prob.copy(), np.zeros(len(refinement.chip))
    for w, chip in enumerate(refinement.chip):
        rows, columns = refinement.rows[w], refinement.columns[w]
        inside = np.ix_(
            rows[(rows >= 0) & (rows < NUM_FINE)], columns[(columns >= 0) & (columns < NUM_FINE)]
        )
        masses[w] = left[chip][inside].sum()
        left[chip][inside] = 0.0
    return masses
