"""What evaluations share: answers held against the truth, descriptors made comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ciper.model.model import PhotoCode
from ciper.posterior import Posterior
from ciper.scoring import Found

Progress = Callable[[str, int, int], None]


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """The silent progress callback."""


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def batches(num_items: int, size: int) -> Iterator[range]:
    """The numbers from 0, `size` of them at a time."""
    for start in range(0, num_items, size):
        yield range(start, min(start + size, num_items))


def mean_descriptor(code: PhotoCode) -> NDArray[np.float32]:
    """`(D,)` of a photo: over the fields of view that it may have."""
    descriptor: torch.Tensor = code.descriptor.float().mean(0)
    return np.asarray(descriptor.cpu().numpy(), dtype=np.float32)


def without_gaps(descriptors: NDArray[np.float16]) -> NDArray[np.float16]:
    """(R, L, D) where a location without imagery (NaN) repeats the chip's first other one.

    The largest similarity over a chip's locations is then that of the locations with imagery. A
    chip without any stays NaN and counts against the answer.
    """
    is_missing = ~np.isfinite(descriptors).all(axis=2)
    first = np.argmin(is_missing, axis=1)
    filled = descriptors.copy()
    chips, locations = np.nonzero(is_missing)
    filled[chips, locations] = descriptors[chips, first[chips]]
    return filled


def found_of(
    posterior: Posterior,
    features: Sequence[float],
    confidence: float,
    *,
    true_xy: tuple[float, float],
    seconds: float,
) -> Found:
    """What a posterior says of itself and of the truth; where its answer lies is left open.

    Args:
        posterior: the answer.
        features: what its confidence rests on.
        confidence: of it.
        true_xy: the true position in the posterior's frame.
        seconds: of work.
    """
    denser_mass, credible_mass = posterior.highest_density_masses(*true_xy)
    return Found(
        confidence=confidence,
        in_gallery_prob=1.0 - posterior.outside_prob,
        features=tuple(features),
        denser_mass=denser_mass,
        credible_mass=credible_mass,
        log_density=posterior.log_density(*true_xy),
        radius_50_m=posterior.radius_m(0.5),
        radius_90_m=posterior.radius_m(0.9),
        heading_sigma_deg=posterior.heading_sigma_deg,
        seconds=seconds,
        says_heading=posterior.says_heading,
    )
