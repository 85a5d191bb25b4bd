"""How photos looking straight down are drawn in training."""

from __future__ import annotations

from dataclasses import dataclass

from ciper.errors import ConfigError


@dataclass(frozen=True)
class NadirViewConfig:
    """How photos from above are drawn in training.

    Attributes:
        width_m: metres across a photo, between two bounds.
        aspects: width over height, one of these.
        height_error: standard deviation of the told height, as a share of the true one.
        tilt_error_deg: standard deviation of the tilt that nobody tells, along both axes.
        max_tilt_deg: greatest tilt ahead that is told.
        height_over_width: of the camera above the ground, for what a tilt does.
        blur_share: of the photos that are out of focus or moved.
        validation_share: of the ground, held out where a run validates.
    """

    width_m: tuple[float, float] = (50.0, 115.0)
    aspects: tuple[float, ...] = (4 / 3, 3 / 2, 16 / 9)
    height_error: float = 0.03
    tilt_error_deg: float = 0.3
    max_tilt_deg: float = 10.0
    height_over_width: float = 0.75
    blur_share: float = 0.3
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        low, high = self.width_m
        if not 1.0 <= low <= high:
            raise ConfigError(f"nadir.width_m is {self.width_m}; expected two rising metres")
        if not 0 <= self.validation_share <= 0.5:
            raise ConfigError(
                f"nadir.validation_share is {self.validation_share}; expected 0 to 0.5"
            )
