"""Methods without learning, to compare with: template matching and local features.

All of them search *plan views* in a gallery of chips. A plan view is a square of ground at the
chips' gsd around the camera's foot, up = the photo's heading; a chip is true-north-up. A plan view
of heading h is therefore the chip's content about (x, y), turned by h.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ciper.errors import ConfigError, DependencyError

T = TypeVar("T")


@dataclass(frozen=True)
class ClassicalAnswer:
    """Where a photo was taken, by one method.

    Attributes:
        chip: index of the best chip; -1 where the method has found nothing.
        x_m: metres east of that chip's centre; NaN where nothing was found.
        y_m: metres north of it, likewise.
        heading_deg: clockwise from true north, in [0, 360), likewise.
        score: of this answer; larger is better, its scale is the method's own.
        scores: of every chip (R,), finite; 0 for chips without any answer.
    """

    chip: int
    x_m: float
    y_m: float
    heading_deg: float
    score: float
    scores: NDArray[np.float64]

    @property
    def is_found(self) -> bool:
        """Whether there is an answer at all."""
        return self.chip >= 0

    @classmethod
    def nothing(cls, num_chips: int) -> ClassicalAnswer:
        """What a method says that has found nothing."""
        return cls(-1, math.nan, math.nan, math.nan, 0.0, np.zeros(num_chips))


class Method(Protocol):
    """A way to find plan views in a gallery; `prepare` once, then `locate` any number of times."""

    def prepare(self, chips: NDArray[np.uint8], is_valid: NDArray[np.bool_], gsd: float) -> None:
        """Compute and keep everything that depends on the gallery alone.

        Args:
            chips: (R, H, H, 3), true-north-up.
            is_valid: (R, H, H), where they hold imagery.
            gsd: metres per pixel of chips and plan views.
        """

    def locate(self, plan: NDArray[np.uint8], is_visible: NDArray[np.bool_]) -> ClassicalAnswer:
        """Search one photo in the prepared gallery.

        Args:
            plan: (H, H, 3), the camera's foot in the middle, up = the photo's heading.
            is_visible: (H, H), what the photo shows.

        Raises:
            ConfigError: nothing was prepared, or the shapes do not fit.
        """


def opencv(method: str, num_threads: int) -> ModuleType:
    """OpenCV, told to run with so many threads.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"{method} needs OpenCV, which is not installed; expected the package "
            'opencv-python-headless: run pip install "ciper-geo[baselines]"'
        ) from error
    cv2.setNumThreads(num_threads)
    return cv2


def in_threads(work: Callable[[int], T], count: int, num_threads: int) -> list[T]:
    """work(0), ..., work(count - 1), shared among threads."""
    if num_threads == 1:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(work, range(count)))


def check_gallery(chips: NDArray[np.uint8], is_valid: NDArray[np.bool_], gsd: float) -> None:
    """Refuse what is no gallery of square chips.

    Raises:
        ConfigError: shapes that do not belong together, or a gsd that is not positive.
    """
    if chips.ndim != 4 or chips.shape[1] != chips.shape[2] or chips.shape[3] != 3:
        raise ConfigError(f"chips have shape {chips.shape}; expected (R, H, H, 3) of uint8")
    if is_valid.shape != chips.shape[:3]:
        raise ConfigError(
            f"is_valid has shape {is_valid.shape}; expected {chips.shape[:3]} as the chips have it"
        )
    if not (gsd > 0 and math.isfinite(gsd)):
        raise ConfigError(f"gsd {gsd} is not positive; expected metres per pixel")


def check_plan(plan: NDArray[np.uint8], is_visible: NDArray[np.bool_], size_px: int) -> None:
    """Refuse a plan view that does not fit the prepared gallery.

    Raises:
        ConfigError: the shapes do not fit.
    """
    if plan.shape != (size_px, size_px, 3) or is_visible.shape != (size_px, size_px):
        raise ConfigError(
            f"the plan view has shape {plan.shape} and its mask {is_visible.shape}; expected "
            f"({size_px}, {size_px}, 3) and ({size_px}, {size_px}), as the gallery's chips"
        )


def not_prepared() -> ConfigError:
    """What a method raises that is asked before it knows the gallery."""
    return ConfigError("no gallery was prepared; expected prepare() to be called before locate()")
