"""The figures of a report: pure functions on arrays, as ``docs/metrics.md`` defines them.

Fractions lie in [0, 1], metres and degrees are absolute unless a name says signed. An answer that
is missing or not a number never helps: its rank is the worst, its errors are infinite, it lies in
no region and within no threshold. Poses are rows (x east m, y north m, heading deg) in one
true-north local frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ciper.geo import forward, heading_error_deg, right
from ciper.ranking import count_against

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The rank of a query whose place is not in the gallery: no k reaches it.
NO_REFERENCE = np.iinfo(np.int64).max

# How many reference descriptors are compared with the queries at once.
BLOCK_SIZE = 4096

CORRECT_WITHIN_M = 5.0
NUM_CALIBRATION_BINS = 15


# --- retrieval ------------------------------------------------------------------------------------


def ranks_from_similarity(
    similarity: ArrayLike, true_index: ArrayLike, *, excluded: Sequence[Ints] | None = None
) -> Ints:
    """Rank of the true reference: how many others are *not* less similar than it.

    Ties and NaN count against the answer, so constant similarities rank last, not first.

    Args:
        similarity: (Q, R), larger is more similar.
        true_index: (Q,) column of the true reference; negative if the gallery does not hold it.
        excluded: For each query the references that do not compete (its semi-positives).

    Returns:
        (Q,) ranks from 0 to R - 1, or `NO_REFERENCE`.
    """
    similarity = np.asarray(similarity)
    true = _check_index(true_index, num_queries=len(similarity), num_references=similarity.shape[1])
    threshold = similarity[np.arange(len(true)), true]
    is_against = ~(similarity < threshold[:, None])
    is_against[np.arange(len(true)), true] = False
    if excluded is not None:
        rows, columns = _pairs(excluded, num_queries=len(true), num_references=similarity.shape[1])
        is_against[rows, columns] = False
    return np.where(true < 0, NO_REFERENCE, is_against.sum(axis=1, dtype=np.int64))


def ranks(
    queries: ArrayLike,
    references: ArrayLike,
    true_index: ArrayLike,
    *,
    excluded: Sequence[Ints] | None = None,
    block_size: int = BLOCK_SIZE,
) -> Ints:
    """`ranks_from_similarity` of inner products, without the Q x R matrix.

    The ranks are those of sums in float64, and what lies within the rounding error of such a sum is
    a tie: the order in which a matrix product adds up must not decide between equal descriptors.

    Args:
        queries: (Q, D) descriptors.
        references: (R, D) descriptors, or (R, L, D) for L location descriptors per reference, of
            which the most similar one counts. They may lie on disk as a memory map.
        true_index: (Q,) as in `ranks_from_similarity`.
        excluded: As in `ranks_from_similarity`.
        block_size: How many descriptors are compared at once; bounds the memory.

    Returns:
        (Q,) ranks from 0 to R - 1, or `NO_REFERENCE`.
    """
    nothing = [np.empty(0, dtype=np.int64)] * len(np.asarray(queries))
    return ranks_and_hit_ranks(
        queries,
        references,
        true_index,
        semi_positives=nothing if excluded is None else excluded,
        block_size=block_size,
    )[1]


def ranks_and_hit_ranks(
    queries: ArrayLike,
    references: ArrayLike,
    true_index: ArrayLike,
    *,
    semi_positives: Sequence[Ints],
    block_size: int = BLOCK_SIZE,
) -> tuple[Ints, Ints]:
    """`ranks` against the whole gallery and without each query's semi-positives, in one pass.

    Both are what `retrieval_metrics` asks for. Args as in `ranks`, `semi_positives` as its
    `excluded`.
    """
    queries, references = np.asarray(queries), np.asarray(references)
    if references.ndim == 2:
        references = references[:, None, :]
    sizes = {"num_queries": len(queries), "num_references": len(references)}
    true, left_out = _check_index(true_index, **sizes), _pairs(semi_positives, **sizes)
    counts = count_against(queries, references, true, left_out=left_out, block_size=block_size)
    whole, without = (np.where(true < 0, NO_REFERENCE, count) for count in counts)
    return whole, without


def true_and_semi_positive_chips(
    camera_xy_m: ArrayLike, centre_xy_m: ArrayLike, *, chip_m: float
) -> tuple[Ints, list[Ints]]:
    """The true chip of each camera in a grid gallery, and its semi-positives.

    Args:
        camera_xy_m: (Q, 2) positions of the cameras.
        centre_xy_m: (R, 2) centres of the chips, in the same local frame.
        chip_m: Side of a chip.

    Returns:
        (Q,) index of the chip with the nearest centre, -1 where no chip contains the camera; and
        for each query the other chips that contain it.
    """
    camera, centre = np.asarray(camera_xy_m, np.float64), np.asarray(centre_xy_m, np.float64)
    true = np.full(len(camera), -1, dtype=np.int64)
    semi_positives = []
    for i, position in enumerate(camera):
        offset = np.abs(centre - position)
        inside = np.flatnonzero((offset <= chip_m / 2).all(axis=1))
        if len(inside):
            true[i] = inside[np.argmin(np.hypot(*offset[inside].T))]
        semi_positives.append(inside[inside != true[i]].astype(np.int64))
    return true, semi_positives


def recall_at_k(ranks: ArrayLike, k: int) -> float:
    """Fraction of the queries with a rank below k."""
    return _mean(np.asarray(ranks) < k)


def one_percent(num_references: int) -> int:
    """The k of recall@1%: R // 100 + 1, the rule of VIGOR's evaluation."""
    return num_references // 100 + 1


def retrieval_metrics(
    ranks: ArrayLike, ranks_without_semi_positives: ArrayLike, *, num_references: int
) -> dict[str, float]:
    """The ``retrieval`` part of metrics.json.

    Args:
        ranks: (Q,) against the whole gallery.
        ranks_without_semi_positives: (Q,) with each query's semi-positives taken out.
        num_references: Size of the whole gallery.
    """
    return {
        "recall@1": recall_at_k(ranks, 1),
        "recall@5": recall_at_k(ranks, 5),
        "recall@10": recall_at_k(ranks, 10),
        "recall@1%": recall_at_k(ranks, one_percent(num_references)),
        "hit_rate": recall_at_k(ranks_without_semi_positives, 1),
    }


# --- poses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoseErrors:
    """Absolute errors of N answers, infinite where there is no answer.

    Attributes:
        position_m: (N,) distance to the true position.
        lateral_m: (N,) part across the *true* heading.
        longitudinal_m: (N,) part along the *true* heading.
        heading_deg: (N,) shortest turn to the true heading, in [0, 180].
    """

    position_m: Floats
    lateral_m: Floats
    longitudinal_m: Floats
    heading_deg: Floats


def pose_errors(predicted: ArrayLike, true: ArrayLike) -> PoseErrors:
    """Compare answers with the truth.

    The signed error in metres is turned by the true heading, and made absolute last.

    Args:
        predicted: (N, 3) rows x_m, y_m, heading_deg; NaN or infinite means no answer.
        true: (N, 3) the same, finite.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape or true.ndim != 2 or true.shape[1] != 3:
        raise ValueError(f"shapes {predicted.shape} and {true.shape}: expected (N, 3) twice")
    predicted = np.where(np.isfinite(predicted), predicted, np.nan)
    offset = predicted[:, :2] - true[:, :2]
    return PoseErrors(
        position_m=_infinite_if_nan(np.hypot(offset[:, 0], offset[:, 1])),
        lateral_m=_infinite_if_nan(np.abs((offset * right(true[:, 2])).sum(axis=1))),
        longitudinal_m=_infinite_if_nan(np.abs((offset * forward(true[:, 2])).sum(axis=1))),
        heading_deg=_infinite_if_nan(np.abs(heading_error_deg(predicted[:, 2], true[:, 2]))),
    )


def recall_within(errors: ArrayLike, threshold: float) -> float:
    """Fraction of the errors that are less than a threshold; NaN is not."""
    return _mean(np.asarray(errors, np.float64) < threshold)


def pose_metrics(errors: PoseErrors) -> dict[str, float]:
    """The ``pose`` part of metrics.json; a mean or median is infinite if answers are missing."""
    metrics = {"mean_m": _mean(errors.position_m), "median_m": _median(errors.position_m)}
    metrics |= {f"recall@{t}m": recall_within(errors.position_m, t) for t in (1, 3, 5)}
    for name, values in (
        ("lateral", errors.lateral_m),
        ("longitudinal", errors.longitudinal_m),
    ):
        metrics[f"{name}_median_m"] = _median(values)
        metrics |= {f"{name}_recall@{t}m": recall_within(values, t) for t in (1, 5)}
    metrics["heading_mean_deg"] = _mean(errors.heading_deg)
    metrics["heading_median_deg"] = _median(errors.heading_deg)
    metrics |= {f"heading_recall@{t}deg": recall_within(errors.heading_deg, t) for t in (1, 5)}
    return metrics


def end_to_end_metrics(errors: PoseErrors, is_first_chip_right: ArrayLike) -> dict[str, float]:
    """The ``end_to_end`` part of metrics.json, over all queries of the whole city.

    Args:
        errors: Of the final answer in the world.
        is_first_chip_right: (N,) whether retrieval's first chip is the true one. The gated recall
            (UnifyGeo's form) counts an answer only then.
    """
    is_right = np.asarray(is_first_chip_right, dtype=bool)
    gated_m = np.where(is_right, errors.position_m, np.inf)
    metrics = {"median_m": _median(errors.position_m)}
    metrics |= {f"recall@{t}m": recall_within(errors.position_m, t) for t in (1, 3, 5, 10, 25)}
    metrics["heading_median_deg"] = _median(errors.heading_deg)
    metrics |= {f"gated_recall@{t}m": recall_within(gated_m, t) for t in (1, 5)}
    return metrics


def baseline_answers(
    num_answers: int, *, bounds_m: tuple[float, float, float, float], rng: np.random.Generator
) -> dict[str, Floats]:
    """What knowing nothing answers inside a rectangle: ``center`` and ``random``, (N, 3) each.

    Args:
        num_answers: N.
        bounds_m: (x_min, y_min, x_max, y_max) of the chip's central half, or of the city.
        rng: Source of the random positions, and of the headings of both.
    """
    low, high = np.array(bounds_m[:2]), np.array(bounds_m[2:])
    center = np.broadcast_to((low + high) / 2, (num_answers, 2))
    uniform = rng.uniform(low, high, size=(num_answers, 2))
    headings = rng.uniform(0.0, 360.0, size=(2, num_answers, 1))
    return {
        "center": np.hstack([center, headings[0]]),
        "random": np.hstack([uniform, headings[1]]),
    }


# --- calibration ----------------------------------------------------------------------------------


def coverage(denser_mass: ArrayLike, credible_mass: ArrayLike, level: float) -> float:
    """Fraction of the truths inside the highest-density region that holds `level` of the mass.

    Where the region ends inside the true place (or among places of its density), the truth counts
    for the share of that place that the region takes: a sharp posterior, whose first place holds
    more than `level`, would otherwise be covered always.

    Args:
        denser_mass: (N,) for each query the mass of the places denser than the true one, in
            [0, 1], as `Posterior.highest_density_masses` gives it; NaN lies in no region.
        credible_mass: (N,) the mass of the places at least as dense as the true one.
        level: For example 0.9.
    """
    low, high = np.asarray(denser_mass, np.float64), np.asarray(credible_mass, np.float64)
    width = np.maximum(high - low, np.finfo(np.float64).tiny)
    share = np.where(high <= level, 1.0, (level - low).clip(0.0) / width)
    return _mean(np.where(np.isnan(low + high), 0.0, share))


def expected_calibration_error(
    confidence: ArrayLike, is_correct: ArrayLike, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Mean distance between confidence and accuracy over bins that hold equally many queries.

    Equal confidences share a bin, so the value does not depend on the order of the queries.
    (Equal-mass bins: Nixon et al. 2019, "Measuring Calibration in Deep Learning".)

    Raises:
        ValueError: A confidence is not a probability.
    """
    confidence, is_correct = _check_confidence(confidence, is_correct)
    order = np.argsort(confidence, kind="stable")
    confidence, is_correct = confidence[order], is_correct[order]
    position = np.searchsorted(confidence, confidence, side="left")
    bins = position * num_bins // len(confidence)
    gap = np.bincount(bins, weights=confidence - is_correct, minlength=num_bins)
    return float(np.abs(gap).sum() / len(confidence))


def risk_coverage_area(confidence: ArrayLike, is_correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: 0 is best, a useless order gives the error rate.

    For n = 1..N the error rate among the n most confident queries, averaged over n; among equal
    confidences every order is equally likely. (Geifman and El-Yaniv 2017, "Selective
    Classification for Deep Neural Networks".)

    Raises:
        ValueError: A confidence is not a probability.
    """
    confidence, is_correct = _check_confidence(confidence, is_correct)
    levels, group = np.unique(-confidence, return_inverse=True)
    size = np.bincount(group, minlength=len(levels))
    # The expectation over orders: each member of a tied group carries the group's error rate.
    rate = np.bincount(group, weights=1.0 - is_correct, minlength=len(levels)) / size
    errors = np.cumsum(np.repeat(rate, size))
    return _mean(errors / np.arange(1, len(errors) + 1))


def auroc(positive_scores: ArrayLike, negative_scores: ArrayLike) -> float:
    """Probability that a positive scores higher than a negative one; a tie counts half.

    The Mann-Whitney statistic. NaN is the lowest score for a positive, the highest for a negative.

    Raises:
        ValueError: One of the two is empty.
    """
    positive, negative = np.asarray(positive_scores, float), np.asarray(negative_scores, float)
    if not positive.size or not negative.size:
        raise ValueError("AUROC needs at least one positive and one negative score")
    positive = np.where(np.isnan(positive), -np.inf, positive)
    negative = np.sort(np.where(np.isnan(negative), np.inf, negative))
    num_below = np.searchsorted(negative, positive, side="left")
    num_not_above = np.searchsorted(negative, positive, side="right")
    return float((num_below + num_not_above).mean() / (2 * negative.size))


def calibration_metrics(
    *,
    denser_mass: ArrayLike,
    credible_mass: ArrayLike,
    radius_90_m: ArrayLike,
    confidence: ArrayLike,
    position_error_m: ArrayLike,
    log_density: ArrayLike,
    heading_error_deg: ArrayLike,
    heading_sigma_deg: ArrayLike,
) -> dict[str, float]:
    """The ``calibration`` part of metrics.json, all (N,).

    Args:
        denser_mass: As in `coverage`.
        credible_mass: As in `coverage`.
        radius_90_m: Radius about the answer that holds 90 % of the mass; NaN if it has none.
        confidence: Probability that the answer lies within 5 m of the truth and the place is in
            the gallery at all.
        position_error_m: Distance between answer and truth; NaN or infinite without an answer.
        log_density: Natural logarithm of the posterior's density at the true position, per square
            metre; its negative mean is ``nll``.
        heading_error_deg: Without a sign; NaN where the true heading is not known.
        heading_sigma_deg: The answer's spread; infinite or NaN where it says nothing.
    """
    is_correct = np.asarray(position_error_m, np.float64) < CORRECT_WITHIN_M
    return {
        "coverage_50": coverage(denser_mass, credible_mass, 0.5),
        "coverage_90": coverage(denser_mass, credible_mass, 0.9),
        "median_radius_90_m": _median(_infinite_if_nan(radius_90_m)),
        "ece": expected_calibration_error(confidence, is_correct),
        "aurc": risk_coverage_area(confidence, is_correct),
        "nll": _mean(_infinite_if_nan(-np.asarray(log_density, np.float64))),
        "heading_within_sigma": _heading_within_sigma(heading_error_deg, heading_sigma_deg),
    }


def _heading_within_sigma(error_deg: ArrayLike, sigma_deg: ArrayLike) -> float:
    """Share of the known headings that lie within the stated spread; NaN if there are none."""
    error, sigma = np.asarray(error_deg, np.float64), np.asarray(sigma_deg, np.float64)
    is_stated = np.isfinite(error) & np.isfinite(sigma)
    return _mean(error[is_stated] <= sigma[is_stated]) if is_stated.any() else np.nan


# --- shared ---------------------------------------------------------------------------------------


def finite_or_none(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same nested figures with None for what is not finite: JSON knows no infinity."""
    return {name: _finite_or_none(value) for name, value in metrics.items()}


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return finite_or_none(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: ArrayLike) -> float:
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("a figure over no queries is not defined")
    return float(values.mean())


def _median(values: ArrayLike) -> float:
    """The median, where the mean of two infinities is infinite."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    if not values.size:
        raise ValueError("a figure over no queries is not defined")
    return float((values[(values.size - 1) // 2] + values[values.size // 2]) / 2)


def _infinite_if_nan(values: ArrayLike) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(values), np.inf, values)


def _check_index(true_index: ArrayLike, *, num_queries: int, num_references: int) -> Ints:
    true = np.asarray(true_index, dtype=np.int64)
    if true.shape != (num_queries,) or (true >= num_references).any():
        raise ValueError(
            f"true_index of shape {true.shape}: expected ({num_queries},), below {num_references}"
        )
    return true


def _check_confidence(confidence: ArrayLike, is_correct: ArrayLike) -> tuple[Floats, Floats]:
    confidence = np.asarray(confidence, dtype=np.float64)
    is_correct = np.asarray(is_correct, dtype=np.float64)
    if confidence.shape != is_correct.shape or confidence.ndim != 1 or not confidence.size:
        raise ValueError(
            f"shapes {confidence.shape} and {is_correct.shape}: expected (N,) twice, N > 0"
        )
    if not ((confidence >= 0.0) & (confidence <= 1.0)).all():
        raise ValueError("a confidence is not a probability in [0, 1]")
    return confidence, is_correct


def _pairs(excluded: Sequence[Ints], *, num_queries: int, num_references: int) -> tuple[Ints, Ints]:
    """Lists of columns per row as (rows, columns)."""
    if len(excluded) != num_queries:
        raise ValueError(f"{len(excluded)} lists of excluded references: expected {num_queries}")
    lengths = np.array([len(columns) for columns in excluded], dtype=np.int64)
    rows = np.repeat(np.arange(num_queries), lengths)
    columns = np.concatenate([np.asarray(c, np.int64) for c in excluded]) if len(rows) else rows
    if ((columns < 0) | (columns >= num_references)).any():
        raise ValueError(f"an excluded reference lies outside [0, {num_references})")
    return rows, columns
