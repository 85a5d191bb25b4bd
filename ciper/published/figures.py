"""The figures of a published protocol: what is known of its queries, and what follows from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper import geodesic, metrics
from ciper.data.poses import PhotoPose
from ciper.data.protocol import AerialImage, Protocol, Sample
from ciper.geo import forward, right, wrap_deg
from ciper.legacy import legacy_figures
from ciper.scoring import (
    NO_ANSWER,
    Found,
    Query,
    answer_columns,
    baseline_figures,
    calibration_figures,
    end_to_end_figures,
    error_columns,
    errors_of,
    pose_figures,
)

Floats = NDArray[np.float64]


@dataclass(kw_only=True)
class SampleQuery(Query):
    """A query of a protocol and all that was found out about it.

    `in_chip` is the answer in its published chip with what the protocol tells, `whole` the one in
    the published gallery.

    Attributes:
        sample: what is asked.
        untold: the answer in its published chip without what the protocol tells.
        misfit: why the model was not trained on such photos, if that is so.
        legacy_rank: as CIPER's code counts it, see `legacy.strict_greater_ranks`; None where
            references have several descriptors, of which that code knows one.
    """

    sample: Sample
    untold: Found = NO_ANSWER
    misfit: str = ""
    legacy_rank: int | None = None


@dataclass(frozen=True)
class Asked:
    """What was asked of whom.

    Attributes:
        protocol: what was asked.
        seed: of the baselines.
        is_metric: whether the model uses what the protocol tells.
        is_calibrated: whether its probabilities are meant.
    """

    protocol: Protocol
    seed: int
    is_metric: bool
    is_calibrated: bool

    @property
    def num_references(self) -> int:
        """How many references compete."""
        return len(self.protocol.references) or len(self.protocol.samples)


def world_offset(x_m: Any, y_m: Any, up_deg: Any) -> Floats:
    """Metres east and north, `(..., 2)`, of metres right and up in a chip whose up is turned."""
    x_m, y_m = np.asarray(x_m)[..., None], np.asarray(y_m)[..., None]
    return np.asarray(x_m * right(up_deg) + y_m * forward(up_deg))


def queries_of(protocol: Protocol) -> list[SampleQuery]:
    """The queries, nothing asked yet."""
    samples = protocol.samples
    true = protocol.true.tolist() if protocol.has_gallery else range(len(samples))
    return [
        SampleQuery(PhotoPose(s.photo, *s.position, s.heading_deg), chip, sample=s)
        for s, chip in zip(samples, true, strict=True)
    ]


def figures_of(queries: Sequence[SampleQuery], asked: Asked) -> dict[str, Any]:
    """The blocks of metrics.json that need the queries alone, not yet made finite."""
    figures: dict[str, Any] = {
        "num_queries": len(queries),
        "num_references": asked.num_references,
        "num_outside": sum(query.true_chip < 0 for query in queries),
        "num_unreadable": sum(bool(query.problem) for query in queries),
        **_retrieval(queries, asked),
        "pose": pose_figures(errors_of(queries, "in_chip")),
    }
    if asked.is_metric:
        figures["pose_untold"] = pose_figures(errors_of(queries, "untold"))
    if asked.protocol.has_gallery:
        figures["end_to_end"] = end_to_end_figures(errors_of(queries, "whole"), queries)
    if asked.is_calibrated:
        if asked.protocol.has_gallery:
            figures["calibration"] = calibration_figures(queries, "whole")
        figures["calibration_pose"] = calibration_figures(queries, "in_chip")
    figures["baseline"] = baseline_figures(baseline_answers(queries, asked), queries)
    figures["legacy"] = legacy_figures(
        ranks=_legacy_ranks(queries),
        num_references=asked.num_references,
        predicted=answers_in_chips(queries),
        true=[query.sample.pose for query in queries],
        is_vigor=asked.protocol.dataset == "vigor",
    )
    main = "whole" if asked.protocol.has_gallery else "in_chip"
    seconds = np.array([getattr(query, main).seconds for query in queries])
    is_timed = np.isfinite(seconds)
    figures["seconds_per_query"] = float(np.median(seconds[is_timed])) if is_timed.any() else np.nan
    return figures


def _legacy_ranks(queries: Sequence[SampleQuery]) -> list[int] | None:
    ranks = [query.legacy_rank for query in queries]
    if all(rank is None for rank in ranks):
        return None
    return [metrics.NO_REFERENCE if rank is None else rank for rank in ranks]


def answers_in_chips(queries: Sequence[SampleQuery]) -> Floats:
    """`(N, 3)` the answers in the published chips: metres right and up, degrees from up; or NaN."""
    up_deg = np.array([query.sample.cut.up_deg for query in queries])
    away = np.array([(query.in_chip.x_m, query.in_chip.y_m) for query in queries])
    true = np.array([query.sample.pose[:2] for query in queries])
    x_m, y_m = (away * right(up_deg)).sum(1), (away * forward(up_deg)).sum(1)
    heading_deg = np.array([query.in_chip.heading_deg for query in queries])
    return _rows(true + np.stack([x_m, y_m], axis=1), wrap_deg(heading_deg - up_deg))


def _retrieval(queries: Sequence[SampleQuery], asked: Asked) -> dict[str, dict[str, float]]:
    found = metrics.retrieval_metrics(
        [query.rank for query in queries],
        [query.hit_rank for query in queries],
        num_references=asked.num_references,
    )
    if asked.protocol.has_gallery:
        return {"retrieval": found}
    # Nobody's own chip shows another's place as its own, so there are no semi-positives.
    del found["hit_rate"]
    return {"retrieval_per_query_chips": found}


# ---------------------------------------------------------------------------------------- baselines


def baseline_answers(queries: Sequence[SampleQuery], asked: Asked) -> dict[str, dict[str, Floats]]:
    """What knowing only the protocol answers, `(N, 3)` about the true positions, by measurement.

    In the published chip `center` is the middle of what is told, its centre and the guess of the
    heading, and `random` uniform over what is told; in the gallery `random` is uniform over the
    middle of a random reference.
    """
    rows = [_unit_draws(query.sample.name, asked.seed) for query in queries]
    draws = np.array(rows).reshape(len(queries), 6)
    told = [query.sample.told for query in queries]
    up_deg = np.array([query.sample.cut.up_deg for query in queries])
    guess_deg = up_deg + np.array([t.heading_deg for t in told])
    within_m = np.array([t.within_m for t in told])
    within_deg = np.array([t.heading_within_deg for t in told])
    turn_deg = guess_deg + (2 * draws[:, 2] - 1) * within_deg
    true = np.array([query.sample.pose[:2] for query in queries])
    away = (2 * draws[:, :2] - 1) * within_m[:, None] - true
    answers = {
        "pose": {
            "center": _rows(world_offset(-true[:, 0], -true[:, 1], up_deg), guess_deg),
            "random": _rows(world_offset(away[:, 0], away[:, 1], up_deg), turn_deg),
        }
    }
    if asked.protocol.has_gallery:
        place = _random_place(queries, asked.protocol.references, draws[:, 3:])
        answers["end_to_end"] = {"random": _rows(place, turn_deg)}
    return answers


def _unit_draws(name: str, seed: int) -> Floats:
    """Six numbers in [0, 1) that belong to a sample, whichever others are asked."""
    return np.random.default_rng([seed, 2, zlib.crc32(name.encode())]).random(6)


def _random_place(
    queries: Sequence[SampleQuery], references: Sequence[AerialImage], draws: Floats
) -> Floats:
    """`(N, 2)` metres from the queries to places in the central halves of references."""
    images = [references[i] for i in (draws[:, 0] * len(references)).astype(int)]
    away = geodesic.offset_m(
        lat=[query.pose.lat for query in queries],
        lon=[query.pose.lon for query in queries],
        to_lat=[image.lat for image in images],
        to_lon=[image.lon for image in images],
    )
    side_m = np.array([image.side_m for image in images])
    return np.asarray(away + (draws[:, 1:] - 0.5) * side_m[:, None] / 2)


def _rows(offset: Floats, heading_deg: Floats) -> Floats:
    return np.concatenate([offset, heading_deg[:, None]], axis=1)


# -------------------------------------------------------------------------------------------- table


def table_of(queries: Sequence[SampleQuery], asked: Asked) -> dict[str, list[Any]]:
    """per_query.parquet, column by column; what is unknown or missing is None."""
    samples = [query.sample for query in queries]
    poses = [sample.pose for sample in samples]
    table: dict[str, list[Any]] = {
        "name": [sample.name for sample in samples],
        "photo": [str(sample.photo) for sample in samples],
        "aerial": [str(sample.image.path) for sample in samples],
        "problem": [query.problem or None for query in queries],
        "true_lat": [query.pose.lat for query in queries],
        "true_lon": [query.pose.lon for query in queries],
        "true_heading_deg": [sample.heading_deg for sample in samples],
        "chip_up_deg": [sample.cut.up_deg for sample in samples],
        "chip_side_m": [sample.cut.side_m for sample in samples],
        "true_chip_x_m": [pose[0] for pose in poses],
        "true_chip_y_m": [pose[1] for pose in poses],
        "true_chip_heading_deg": [pose[2] for pose in poses],
        "told_heading_deg": [sample.told.heading_deg for sample in samples],
        "true_chip": [query.true_chip for query in queries],
    }
    for name in ("rank", "hit_rank"):
        ranks = (getattr(query, name) for query in queries)
        table[name] = [None if rank == metrics.NO_REFERENCE else rank for rank in ranks]
    blocks = {"pose_": "in_chip"}
    if asked.is_metric:
        blocks["pose_untold_"] = "untold"
    if asked.protocol.has_gallery:
        blocks[""] = "whole"
    for prefix, name in blocks.items():
        columns = {**error_columns(queries, name), **answer_columns(queries, name)}
        table |= {prefix + column: values for column, values in columns.items()}
    return table
