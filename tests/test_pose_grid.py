from __future__ import annotations

import numpy as np

from ciper.pose_grid import FINE_STEP_DEG, HEADING_STEP_DEG, window_cells, window_steps


def test_fine_cells_of_a_window_tile_its_coarse_cells() -> None:
    cells = window_cells(np.array([0, 7, 15]))
    assert cells.tolist() == [
        [-2, -1, 0, 1, 2, 3],
        [12, 13, 14, 15, 16, 17],
        [28, 29, 30, 31, 32, 33],
    ]
    assert window_cells(7).tolist() == cells[1].tolist()
    around = np.add.outer([0, 7, 15], [-1, 0, 1])
    np.testing.assert_array_equal(cells // 2, around.repeat(2, axis=1))


def test_steps_of_a_window_reach_from_one_coarse_heading_to_the_next() -> None:
    steps = window_steps(np.array([0, 31]))
    assert steps.tolist() == [[-4, -3, -2, -1, 0, 1, 2, 3, 4], list(range(120, 129))]
    assert window_steps(31).tolist() == steps[1].tolist()
    ends_deg = steps[:, [0, 4, 8]] * FINE_STEP_DEG
    coarse = np.add.outer([0, 31], [-1, 0, 1])
    np.testing.assert_array_equal(ends_deg, coarse * HEADING_STEP_DEG)
