"""The figures that published code prints, as it computes them, to compare with published tables.

They are wrong in the ways that each function names; `ciper.metrics` has the right ones. Nothing but
a report's columns whose names begin with ``legacy_`` may be computed here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ciper.metrics import BLOCK_SIZE, NO_REFERENCE, pose_errors, recall_at_k, recall_within
from ciper.ranking import count_against

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# VIGOR's chips have 640 px, CIPER's network sees them at 512, and the gsd is that of the former.
CIPER_VIGOR_FACTOR = 512 / 640


def strict_greater_ranks(
    queries: ArrayLike,
    references: ArrayLike,
    true_index: ArrayLike,
    *,
    block_size: int = BLOCK_SIZE,
) -> Ints:
    """How many references are *more* similar than the true one: ties and NaN count as hits.

    So an encoder whose descriptors are all equal, or not numbers, has a recall@1 of 100 %; where
    none are, these are `ciper.metrics.ranks`. Args and returns as there.
    """
    queries, references = np.asarray(queries), np.asarray(references)
    if references.ndim == 2:
        references = references[:, None, :]
    true, nothing = np.asarray(true_index, dtype=np.int64), np.empty(0, dtype=np.int64)
    counts, _ = count_against(
        queries,
        references,
        true,
        left_out=(nothing, nothing),
        block_size=block_size,
        count_ties=False,
    )
    return np.where(true < 0, NO_REFERENCE, counts)


def one_percent_without_one(num_references: int) -> int:
    """The k of recall@1% as CIPER's code has it: R // 100, so no rank is below it if R < 100."""
    return num_references // 100


def ciper_lateral_longitudinal(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    """What CIPER's code compares with a threshold as lateral and longitudinal error.

    With d metres down the chip, r metres right and g = 180 deg plus the direction that is
    counter-clockwise from the chip's up, it prints

        lateral      =  cos g |d' - d| + sin g |r' - r|
        longitudinal = -sin g |d' - d| + cos g |r' - r|

    and asks whether they are below a threshold. The absolute value is taken before the turn, so the
    sign of an error is lost where it decides, and the turned value, which may be negative, is
    compared as it is: an answer whose value is negative is right however far off it is. Without the
    absolute value the first would be the error *along* the heading.

    Args:
        predicted: (N, 3) rows x_m right, y_m up of the published chip's centre and heading_deg
            clockwise from its up. In another frame the values are others.
        true: (N, 3) the same.

    Returns:
        (N,) signed metres twice, called lateral and longitudinal; NaN without an answer.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape or true.ndim != 2 or true.shape[1] != 3:
        raise ValueError(f"shapes {predicted.shape} and {true.shape}: expected (N, 3) twice")
    predicted = np.where(np.isfinite(predicted), predicted, np.nan)
    right_m, down_m = np.abs(predicted[:, :2] - true[:, :2]).T
    angle_rad = np.radians(180.0 - true[:, 2])
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return cos * down_m + sin * right_m, -sin * down_m + cos * right_m


def vigor_metres_512(metres: ArrayLike) -> Floats:
    """Metres on VIGOR as CIPER's code has them: pixels of 512 times a gsd of 640, 0.8 of the truth.

    The factor is the same for targets, answers and errors.
    """
    return np.asarray(metres, np.float64) * CIPER_VIGOR_FACTOR


def legacy_figures(
    *,
    ranks: ArrayLike | None,
    num_references: int,
    predicted: ArrayLike,
    true: ArrayLike,
    is_vigor: bool,
) -> dict[str, float]:
    """The figures of a published protocol as CIPER's code prints them, in fractions and metres.

    Args:
        ranks: (Q,) as `strict_greater_ranks` counts; None leaves out retrieval.
        num_references: size of the gallery.
        predicted: (N, 3) answers in the published chips, as in `ciper_lateral_longitudinal`; NaN or
            infinite means no answer.
        true: (N, 3) the same, finite.
        is_vigor: whether metres are those of `vigor_metres_512`.
    """
    figures = {}
    if ranks is not None:
        figures = {f"legacy_recall@{k}": recall_at_k(ranks, k) for k in (1, 5, 10)}
        num_best = one_percent_without_one(num_references)
        figures["legacy_recall@1%"] = recall_at_k(ranks, num_best)
    factor = CIPER_VIGOR_FACTOR if is_vigor else 1.0
    position_m = factor * pose_errors(predicted, true).position_m
    figures |= {
        "legacy_mean_m": float(position_m.mean()),
        "legacy_median_m": float(np.median(position_m)),
    }
    signed_m = ciper_lateral_longitudinal(predicted, true)
    for name, values in zip(("lateral", "longitudinal"), signed_m, strict=True):
        for limit in (1, 5):
            key = f"legacy_{name}_recall@{limit}m"
            figures[key] = recall_within(factor * values, limit)
    return figures
