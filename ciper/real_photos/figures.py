"""Figures of a few real photos: medians of each, means of all, and what knowing nothing reaches.

The offsets of one photo share its street, so they are no independent trials: intervals are taken
over photos. Ranks are from 1, the first, to the number of chips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ciper.metrics import pose_errors

Floats = NDArray[np.float64]

LEVEL = 0.95
# Random answers are spread over so many places along a side of a window's central half.
NUM_PLACES = 64


@dataclass(frozen=True)
class Ranks:
    """Ranks of windows, `(P, O)` each: by descriptor, and by the evidence of all poses."""

    descriptor: Floats
    evidence: Floats

    def items(self) -> tuple[tuple[str, Floats], ...]:
        """Both with their names."""
        return ("descriptor", self.descriptor), ("evidence", self.evidence)


@dataclass(frozen=True)
class AmongDistractors:
    """How windows rank among `num` chips from elsewhere, of which `num_incomplete` more had gaps.

    Attributes:
        own: of every photo's own windows.
        others: of the other photos' windows at the same offset, in the mean. Where own windows
            rank no better than these, it is the imagery that the model tells apart, not the place.
        num: chips.
        num_incomplete: rasters that gave no chip.
    """

    own: Ranks
    others: Ranks
    num: int
    num_incomplete: int


@dataclass(frozen=True)
class Trials:
    """What P photos were asked at O offsets, and what came of it.

    Attributes:
        names: of the photos.
        half_m: from a window's centre to the edge of its central half.
        true: `(P, O, 3)` poses in the own windows: x_m, y_m, heading_deg.
        found: `(P, O, 3)` answers there; headings are NaN if the model knows none.
        confidence: `(P, O)` that an answer lies within 5 m; NaN if the model is not calibrated.
        place_prob: `(P, O, 32, 32)` posterior mass of the places in the own windows.
        among_photos: ranks of the own windows among all photos' windows at the same offset.
        among_distractors: and among chips from elsewhere, if there are any.
    """

    names: tuple[str, ...]
    half_m: float
    true: Floats
    found: Floats
    confidence: Floats
    place_prob: Floats
    among_photos: Ranks
    among_distractors: AmongDistractors | None = None


@dataclass(frozen=True)
class Measure:
    """One figure of every trial, `(P, O)`, and what it is held against; lower is better.

    `against` holds expectations `(P, O)` by name: "random" and "center" for answers that know
    nothing, "other windows" for the control.
    """

    values: Floats
    against: Mapping[str, Floats] = field(default_factory=dict)


def measures_of(trials: Trials) -> dict[str, Measure]:
    """All measures that the trials allow."""
    num_photos = len(trials.names)
    shape = trials.confidence.shape
    measures = {
        f"rank_{by}": Measure(ranks, {"random": np.full(shape, (num_photos + 1) / 2)})
        for by, ranks in trials.among_photos.items()
    }
    if (far := trials.among_distractors) is not None:
        chance = np.full(shape, far.num / 2 + 1)
        for (by, own), (_, others) in zip(far.own.items(), far.others.items(), strict=True):
            against = {"random": chance, "other windows": others}
            measures[f"distractor_rank_{by}"] = Measure(own, against)
    errors = pose_errors(trials.found.reshape(-1, 3), trials.true.reshape(-1, 3))
    centre_m = np.hypot(trials.true[..., 0], trials.true[..., 1])
    against = {"center": centre_m, "random": _random_distance_m(trials)}
    measures["distance_m"] = Measure(errors.position_m.reshape(shape), against)
    if np.isfinite(trials.found[..., 2]).all():
        turn = errors.heading_deg.reshape(shape)
        measures["heading_error_deg"] = Measure(turn, {"random": np.full(shape, 90.0)})
    if np.isfinite(trials.confidence).all():
        measures["confidence"] = Measure(trials.confidence)
    return measures


def _random_distance_m(trials: Trials) -> Floats:
    """`(P, O)` expected error of an answer anywhere in a window's central half."""
    place_m = ((np.arange(NUM_PLACES) + 0.5) / NUM_PLACES * 2 - 1) * trials.half_m
    x_m, y_m = trials.true[..., 0, None, None], trials.true[..., 1, None, None]
    return np.asarray(np.hypot(place_m - x_m, place_m[:, None] - y_m).mean((2, 3)))


def figures_of(trials: Trials) -> dict[str, Any]:
    """The blocks of metrics.json: medians per photo, means in total with their intervals."""
    measures, far = measures_of(trials), trials.among_distractors
    num_photos, num_offsets = trials.confidence.shape
    return {
        "num_photos": num_photos,
        "num_offsets": num_offsets,
        "num_distractors": 0 if far is None else far.num,
        "num_incomplete_distractors": 0 if far is None else far.num_incomplete,
        "total": {name: _total(measure) for name, measure in measures.items()},
        "photos": {
            photo: {name: float(np.median(m.values[i])) for name, m in measures.items()}
            | {"center_distance_m": float(np.median(measures["distance_m"].against["center"][i]))}
            for i, photo in enumerate(trials.names)
        },
    }


def _total(measure: Measure) -> dict[str, Any]:
    values = measure.values
    figures: dict[str, Any] = {
        "mean": float(values.mean()),
        "mean_95": interval(values.mean(1)),
        "median": float(np.median(values)),
        "against": {},
    }
    for name, expected in measure.against.items():
        gain = (values - expected).mean(1)
        figures["against"][name] = {
            "mean": float(expected.mean()),
            "difference_95": interval(gain),
            "num_photos_better": int((gain < 0).sum()),
        }
    return figures


def interval(of_photos: Floats) -> tuple[float, float]:
    """95 % interval of the mean of some photos' figures `(P,)`, by Student's t.

    A bootstrap of a handful of photos would be too narrow by far: of five it covers about 85 %.
    """
    num = len(of_photos)
    reach = float(stdtrit(num - 1, (1 + LEVEL) / 2) * of_photos.std(ddof=1) / np.sqrt(num))
    mean = float(of_photos.mean())
    return mean - reach, mean + reach


def verdict(difference_95: tuple[float, float]) -> str:
    """What an interval of differences from chance says, lower being better."""
    low, high = difference_95
    if high < 0:
        return "better"
    return "worse" if low > 0 else "not told apart"


def coin_probability(num_better: int, num_photos: int) -> float:
    """Probability that so many or more photos are better if each is with probability 1/2."""
    ways = sum(comb(num_photos, k) for k in range(num_better, num_photos + 1))
    return float(ways / 2**num_photos)
