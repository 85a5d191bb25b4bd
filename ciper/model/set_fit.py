"""The numbers that turn set prediction into probabilities, fitted to photos of known places.

The mixture of `ciper.model.hypotheses` has three: what multiplies similarities, and the spreads of
a hypothesis in position and in heading. Each is the one of a grid under which the truths are most
likely. A photo may mislead: a share of the mass is taken to be spread evenly, so that a few wrong
answers do not widen all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.logits import logsumexp
from ciper.model.hypotheses import Spread

Float = NDArray[np.floating[Any]]

SCALES = np.geomspace(2.0, 200.0, 31)
POSITION_SIGMAS_M = np.geomspace(0.3, 30.0, 31)
HEADING_SIGMAS_DEG = np.geomspace(0.5, 90.0, 31)
MISLEADING = 0.1


@dataclass(frozen=True)
class Seen:
    """What a network of set prediction says of a photo whose pose is known.

    Attributes:
        cosine: (R, M) similarity of all chips to the photo's views.
        chip: the one that the photo was taken in.
        log_weight: (K,) log shares of the hypotheses in that chip.
        distance_m: (K,) of the hypotheses from the truth.
        turn_deg: (K,) likewise, signed.
    """

    cosine: Float
    chip: int
    log_weight: Float
    distance_m: Float
    turn_deg: Float


def fit_scale(seen: Sequence[Seen]) -> float:
    """What similarities are multiplied with."""
    likelihood = np.zeros(len(SCALES))
    for photo in seen:
        logit = SCALES[:, None, None] * photo.cosine.astype(np.float64)
        of_chip = logsumexp(logit, axis=2)
        log_prob = of_chip[:, photo.chip] - logsumexp(of_chip, axis=1)
        likelihood += _or_evenly(log_prob, 1.0 / len(photo.cosine))
    return float(SCALES[likelihood.argmax()])


def fit_spread(seen: Sequence[Seen], *, half_m: float, says_heading: bool) -> Spread:
    """Of a hypothesis, from the true chips alone.

    Args:
        seen: photos.
        half_m: from a chip's centre to the edge of its central half.
        says_heading: whether hypotheses tell headings apart; else theirs has no spread.
    """
    position = POSITION_SIGMAS_M[:, None, None]
    heading = HEADING_SIGMAS_DEG[:, None] if says_heading else np.array([[np.inf]])
    likelihood = np.zeros((len(POSITION_SIGMAS_M), len(heading)))
    even = 1.0 / (2 * half_m) ** 2 / (360.0 if says_heading else 1.0)
    for photo in seen:
        placed = -0.5 * (photo.distance_m / position) ** 2 - np.log(2 * np.pi * position**2)
        turned = -0.5 * (photo.turn_deg / heading) ** 2
        if says_heading:
            turned = turned - np.log(np.sqrt(2 * np.pi) * heading)
        likelihood += _or_evenly(logsumexp(photo.log_weight + placed + turned, axis=2), even)
    best, turn = np.unravel_index(int(likelihood.argmax()), likelihood.shape)
    return Spread(
        float(POSITION_SIGMAS_M[best]), float(HEADING_SIGMAS_DEG[turn]) if says_heading else None
    )


def _or_evenly(log_density: Float, even: float) -> Float:
    """Log density if a share of the mass is spread evenly."""
    likely, uniform = np.log1p(-MISLEADING) + log_density, np.log(MISLEADING * even)
    return np.asarray(np.logaddexp(likely, uniform))
