"""Posteriors made by hand: log likelihoods of poses, evaluated on the cells of chips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.geo import LocalFrame, wrap_signed_deg
from ciper.model.matcher import MatchConfig, best_poses
from ciper.posterior import Places, Posterior
from ciper.refinement import Refinement

Floats = NDArray[np.floating[Any]]
LogLikelihood = Callable[[Floats, Floats, Floats], Floats]


def row_of_chips(num_chips: int, *, lat: float = 60.0, lon: float = 24.0) -> Places:
    """Chips from west to east, 64 m apart."""
    x = (np.arange(num_chips) - (num_chips - 1) / 2) * 64.0
    chip_lat, chip_lon = LocalFrame(lat=lat, lon=lon).to_geographic(x=x, y=0 * x)
    return Places.around(chip_lat, chip_lon)


def peak(
    x_m: float, y_m: float, heading_deg: float, *, sigma_m: float = 2.0, sigma_deg: float = 4.0
) -> LogLikelihood:
    """A Gaussian pose."""

    def log_likelihood(x: Floats, y: Floats, heading: Floats) -> Floats:
        turn = wrap_signed_deg(heading - heading_deg) / sigma_deg
        return np.asarray(
            -0.5 * (((x - x_m) / sigma_m) ** 2 + ((y - y_m) / sigma_m) ** 2 + turn**2)
        )

    return log_likelihood


def posterior_from(
    places: Places, log_likelihood: LogLikelihood, *, num_windows: int = 24, floor: float = 0.0
) -> Posterior:
    """What a matcher whose evidence is a log likelihood would say."""
    offset = np.arange(16) * 4.0 - 30.0
    shape = (len(places.lat), 32, 16, 16)
    x = np.broadcast_to((places.x_m[:, None] + offset)[:, None, None, :], shape)
    y = np.broadcast_to((places.y_m[:, None] - offset)[:, None, :, None], shape)
    heading = np.broadcast_to((np.arange(32) * 11.25)[None, :, None, None], shape)
    coarse = log_likelihood(x, y, heading).astype(np.float32)
    chosen = best_poses(coarse, MatchConfig(num_windows=num_windows))
    cells = Refinement(*chosen, log_prob=np.zeros(0))
    # Fine cells: 2 m from 31 m west (north) of the centre, inside the central 64 m only.
    fine_x = cells.columns * 2.0 - 31.0 + places.x_m[cells.chip][:, None]
    fine_y = 31.0 - cells.rows * 2.0 + places.y_m[cells.chip][:, None]
    logits = log_likelihood(
        fine_x[:, None, None, :], fine_y[:, None, :, None], cells.heading_deg[:, :, None, None]
    )
    rows, columns = cells.rows[:, None, :, None], cells.columns[:, None, None, :]
    is_central = (np.minimum(rows, columns) >= 0) & (np.maximum(rows, columns) < 32)
    refinement = Refinement(*chosen, log_prob=np.where(is_central, logits, -np.inf))
    return Posterior.from_logits(places, coarse, refinement, floor=floor)
