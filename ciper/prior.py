"""What is known before a photo is looked at: about where it was taken, and which way it looked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.errors import GalleryError
from ciper.geo import check_lat_lon, wrap_signed_deg
from ciper.pose_grid import HEADING_STEP_DEG, NUM_COARSE, NUM_HEADINGS
from ciper.posterior import Places

Float = NDArray[np.floating[Any]]

NEAR_SOFTNESS = 0.1


@dataclass(frozen=True)
class Near:
    """A prior on the position: within `radius_m` of a point, with a soft edge."""

    lat: float
    lon: float
    radius_m: float

    def __post_init__(self) -> None:
        check_lat_lon(lat=self.lat, lon=self.lon)
        if not (np.isfinite(self.radius_m) and self.radius_m > 0):
            raise GalleryError(
                f"--near has radius {self.radius_m} m; expected a positive number of metres"
            )

    @property
    def reach_m(self) -> float:
        """Beyond this distance the prior has no mass worth looking at."""
        return self.radius_m * (1 + 3 * NEAR_SOFTNESS)

    def log_factor(self, distance_m: Float) -> Float:
        """0 inside the circle; outside a Gaussian fall of a tenth of the radius."""
        beyond = np.maximum(distance_m - self.radius_m, 0.0) / (NEAR_SOFTNESS * self.radius_m)
        return np.asarray(-0.5 * beyond**2)


@dataclass(frozen=True)
class Heading:
    """A prior on the heading: a wrapped Gaussian about `heading_deg` (true north)."""

    heading_deg: float
    sigma_deg: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.heading_deg) and self.sigma_deg > 0):
            raise GalleryError(
                f"--heading is {self.heading_deg},{self.sigma_deg}; expected degrees clockwise "
                "from true north and a positive standard deviation"
            )

    def log_factor(self, heading_deg: Float, step_deg: float) -> Float:
        """The Gaussian, widened by the width of the cells that it is evaluated on."""
        variance = self.sigma_deg**2 + step_deg**2 / 12
        return -0.5 * np.square(wrap_signed_deg(heading_deg - self.heading_deg)) / variance


@dataclass(frozen=True)
class Prior:
    """What is known before the photo is looked at, on the chips `places`."""

    places: Places
    near: Near | None = None
    heading: Heading | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is any."""
        return self.near is not None or self.heading is not None

    def log_position(self, x_m: Float, y_m: Float) -> Float:
        """Log factor at positions in the places' frame."""
        if self.near is None:
            return np.zeros(np.shape(x_m))
        middle = self.places.to_local(lat=self.near.lat, lon=self.near.lon)
        return self.near.log_factor(np.hypot(x_m - middle[0], y_m - middle[1]))

    def log_heading(self, heading_deg: Float, step_deg: float) -> Float:
        """Log factor at headings of cells `step_deg` wide."""
        if self.heading is None:
            return np.zeros(np.shape(heading_deg))
        return self.heading.log_factor(heading_deg, step_deg)

    @cached_property
    def on_coarse_cells(self) -> NDArray[np.float32] | None:
        """`(R, 32, 16, 16)`, or None without any."""
        if not self.says_something:
            return None
        offset = (np.arange(NUM_COARSE) + 0.5 - NUM_COARSE / 2) * self.places.coarse_m
        x_m = self.places.x_m[:, None, None] + offset + 0 * offset[:, None]
        y_m = self.places.y_m[:, None, None] - offset[:, None] + 0 * offset
        steps = np.arange(NUM_HEADINGS) * HEADING_STEP_DEG
        turn = self.log_heading(steps, HEADING_STEP_DEG)
        total = self.log_position(x_m, y_m)[:, None] + turn[:, None, None]
        return total.astype(np.float32)
