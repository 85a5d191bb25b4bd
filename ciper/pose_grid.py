"""The cells that poses are counted in: coarse ones everywhere, fine ones in windows.

The central half of a chip is cut into 16 x 16 coarse cells (4 m wide in a chip of 128 m) with 32
headings each. A fine cell has half their width and a quarter of their heading step. A *window*
around a coarse cell and heading holds the fine cells of the 3 x 3 coarse cells around it, rows
counted from north and columns from west, and nine fine headings.
"""

from __future__ import annotations

from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]

CELLS_PER_CHIP = 32
COARSE_M = 4.0  # side of a coarse cell of a chip of 128 m
NUM_COARSE, NUM_FINE = 16, 32
NUM_HEADINGS = 32
HEADING_STEP_DEG = 360.0 / NUM_HEADINGS
FINE_STEP_DEG = HEADING_STEP_DEG / 4
# Relative: what is lost when a size is printed with six digits.
SIZE_TOLERANCE = 1e-5


def snapped(size_m: float, wanted_m: float) -> float:
    """The wanted size if a size is meant to be it, else the size itself."""
    return wanted_m if isclose(size_m, wanted_m, rel_tol=SIZE_TOLERANCE) else size_m


def window_cells(coarse: NDArray[np.integer[Any]] | int) -> Int:
    """Fine rows of windows around coarse rows, or columns around columns: `(...)` to `(..., 6)`.

    Values below 0 or above 31 lie outside the chip's central half.
    """
    return 2 * np.asarray(coarse, dtype=np.int64)[..., None] + np.arange(-2, 4)


def window_steps(heading: NDArray[np.integer[Any]] | int) -> Int:
    """Fine heading steps of windows around coarse headings: `(...)` to `(..., 9)`.

    They run on below 0 and above 127, so that neighbours can be averaged.
    """
    return 4 * np.asarray(heading, dtype=np.int64)[..., None] + np.arange(-4, 5)
