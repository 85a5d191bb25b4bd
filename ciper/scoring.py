"""What is known of every query of an evaluation, and the figures that follow from it.

No photo, network or file is touched here: `ciper.evaluate` asks, this counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper import metrics
from ciper.data.poses import PhotoPose
from ciper.errors import ConfigError
from ciper.localize import EncodedPhoto
from ciper.metrics import PoseErrors
from ciper.model.calibration import NUM_FEATURES
from ciper.posterior import Places

Floats = NDArray[np.float64]

CONFIDENT_ABOVE = 0.5
RANKS = tuple(
    f"{by}{kind}" for by in ("", "matched_", "posterior_") for kind in ("rank", "hit_rank")
)
ZERO = np.zeros(1)


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured besides the default.

    Attributes:
        near_error_m: also answer with a prior on the position that is wrong by this much, in a
            random direction.
        near_radius_m: of that prior; 1.5 times the error unless told.
        foreign: photos that the gallery does not hold: files, folders, patterns, tables of poses.
    """

    near_error_m: float | None = None
    near_radius_m: float | None = None
    foreign: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        error_m, radius_m = self.near_error_m, self.near_radius_m
        if error_m is None:
            if radius_m is not None:
                raise ConfigError(
                    f"--near-radius {radius_m:g} without --near-error; expected both: how wrong is "
                    "the position?"
                )
            return
        for option, value in (("--near-error", error_m), ("--near-radius", radius_m)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{option} {value:g} is no distance; expected metres above 0")
        if radius_m is None:
            object.__setattr__(self, "near_radius_m", max(1.5 * error_m, 10.0))

    @property
    def near(self) -> tuple[float, float] | None:
        """Error and radius of the prior in metres; None without one."""
        if self.near_error_m is None or self.near_radius_m is None:
            return None
        return self.near_error_m, self.near_radius_m


@dataclass(frozen=True)
class Found:
    """One answer, held against the truth.

    Attributes:
        x_m, y_m: of the answer, east and north of the true position.
        lat, lon, heading_deg: of the answer.
        says_heading: whether the model knows anything of headings at all.
        confidence, in_gallery_prob: probabilities that the answer states of itself.
        features: what the confidence rests on.
        denser_mass, credible_mass: of the places denser than the true one, and of those at least
            as dense, see `Posterior.highest_density_masses`.
        log_density: at the true position, per square metre.
        radius_50_m, radius_90_m, heading_sigma_deg: the answer's spread.
        seconds: of work.
    """

    x_m: float = np.nan
    y_m: float = np.nan
    lat: float = np.nan
    lon: float = np.nan
    heading_deg: float = np.nan
    confidence: float = 0.0
    in_gallery_prob: float = 0.0
    features: tuple[float, ...] = (np.nan,) * NUM_FEATURES
    denser_mass: float = 1.0
    credible_mass: float = 1.0
    log_density: float = -np.inf
    radius_50_m: float = np.nan
    radius_90_m: float = np.nan
    heading_sigma_deg: float = np.nan
    seconds: float = np.nan
    says_heading: bool = True


NO_ANSWER = Found()


@dataclass
class Query:
    """A photo, its true pose and all that was found out about it.

    Attributes:
        pose: the line of the table.
        true_chip: whose central square holds the camera; -1 outside the gallery.
        encoded: the photo; None if it could not be read, and `problem` says why.
        rank, hit_rank: of the true chip by descriptor; `hit_rank` without its semi-positives.
        matched_rank, matched_hit_rank: likewise by the evidence of all poses of a chip.
        posterior_rank, posterior_hit_rank: likewise by the mass of a chip in the answer.
        whole: the answer on the whole gallery.
        near: the answer with a prior.
        in_chip: the answer in one chip, whose centre lies `chip_offset_m` west and south of the
            camera.
    """

    pose: PhotoPose
    true_chip: int
    encoded: EncodedPhoto | None = None
    problem: str = ""
    rank: int = metrics.NO_REFERENCE
    hit_rank: int = metrics.NO_REFERENCE
    matched_rank: int = metrics.NO_REFERENCE
    matched_hit_rank: int = metrics.NO_REFERENCE
    posterior_rank: int = metrics.NO_REFERENCE
    posterior_hit_rank: int = metrics.NO_REFERENCE
    whole: Found = NO_ANSWER
    near: Found = NO_ANSWER
    in_chip: Found = NO_ANSWER
    chip_offset_m: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Setting:
    """What all queries have in common: the gallery's chips, the options and the seed."""

    places: Places
    options: EvaluateOptions
    seed: int


def answers_of(queries: Sequence[Query], name: str) -> list[Found]:
    """The answers `whole`, `near` or `in_chip` of all queries."""
    return [getattr(query, name) for query in queries]


def errors_of(queries: Sequence[Query], name: str) -> PoseErrors:
    """Errors of the answers `whole`, `near` or `in_chip`; see `errors_about_truth`.

    A model that knows nothing of headings has no error in them, NaN.
    """
    answers = answers_of(queries, name)
    found = [(f.x_m, f.y_m, f.heading_deg) for f in answers]
    errors = errors_about_truth(np.array(found, dtype=np.float64), queries)
    if all(f.says_heading for f in answers):
        return errors
    return replace(errors, heading_deg=np.full(len(answers), np.nan))


def errors_about_truth(answers: Floats, queries: Sequence[Query]) -> PoseErrors:
    """Errors of answers `(N, 3)` given in metres about each query's true position.

    What needs the true heading is NaN where that is unknown.
    """
    told = (query.pose.heading_deg for query in queries)
    heading = np.array([np.nan if deg is None else deg for deg in told])
    is_known = np.isfinite(heading)
    truth = np.stack([0 * heading, 0 * heading, heading], axis=1)
    errors = metrics.pose_errors(answers, np.nan_to_num(truth))
    return PoseErrors(
        position_m=errors.position_m,
        lateral_m=np.where(is_known, errors.lateral_m, np.nan),
        longitudinal_m=np.where(is_known, errors.longitudinal_m, np.nan),
        heading_deg=np.where(is_known, errors.heading_deg, np.nan),
    )


def figures_of(queries: Sequence[Query], setting: Setting) -> dict[str, Any]:
    """The blocks of metrics.json that need the queries alone, not yet made finite."""
    num_references = len(setting.places.lat)
    figures: dict[str, Any] = {
        "num_queries": len(queries),
        "num_references": num_references,
        "num_outside": sum(query.true_chip < 0 for query in queries),
        "num_unreadable": sum(bool(query.problem) for query in queries),
        "retrieval": metrics.retrieval_metrics(
            [q.rank for q in queries], [q.hit_rank for q in queries], num_references=num_references
        ),
        "retrieval_matched": metrics.retrieval_metrics(
            [q.matched_rank for q in queries],
            [q.matched_hit_rank for q in queries],
            num_references=num_references,
        ),
        "retrieval_posterior": metrics.retrieval_metrics(
            [q.posterior_rank for q in queries],
            [q.posterior_hit_rank for q in queries],
            num_references=num_references,
        ),
        "pose": pose_figures(errors_of(queries, "in_chip")),
        "end_to_end": end_to_end_figures(errors_of(queries, "whole"), queries),
        "calibration": calibration_figures(queries, "whole"),
        "calibration_pose": calibration_figures(queries, "in_chip"),
    }
    if setting.options.near is not None:
        error_m, radius_m = setting.options.near
        found = end_to_end_figures(errors_of(queries, "near"), queries)
        figures["end_to_end_near"] = {"near_error_m": error_m, "near_radius_m": radius_m, **found}
        figures["calibration_near"] = calibration_figures(queries, "near")
    figures["baseline"] = baseline_figures(baseline_answers(queries, setting), queries)
    seconds = np.array([query.whole.seconds for query in queries])
    is_timed = np.isfinite(seconds)
    figures["seconds_per_query"] = float(np.median(seconds[is_timed])) if is_timed.any() else np.nan
    return figures


def pose_figures(errors: PoseErrors) -> dict[str, float]:
    """`metrics.pose_metrics`, over the known headings where a figure needs the heading."""
    return _where_heading_known(metrics.pose_metrics, errors)


def end_to_end_figures(errors: PoseErrors, queries: Sequence[Query]) -> dict[str, float]:
    """`metrics.end_to_end_metrics`, likewise."""
    is_first_right = [query.rank == 0 for query in queries]
    return _where_heading_known(lambda e: metrics.end_to_end_metrics(e, is_first_right), errors)


def _where_heading_known(
    figures: Callable[[PoseErrors], dict[str, float]], errors: PoseErrors
) -> dict[str, float]:
    of_heading = {
        "lateral": errors.lateral_m,
        "longitudinal": errors.longitudinal_m,
        "heading": errors.heading_deg,
    }
    known = {name: values[~np.isnan(values)] for name, values in of_heading.items()}
    unknown = tuple(name for name, values in known.items() if not len(values))
    found = figures(PoseErrors(errors.position_m, *(v if len(v) else ZERO for v in known.values())))
    return {k: np.nan if k.startswith(unknown) else v for k, v in found.items()}


def calibration_figures(queries: Sequence[Query], name: str) -> dict[str, float]:
    """`metrics.calibration_metrics` of the answers `whole`, `near` or `in_chip`."""
    found, errors = answers_of(queries, name), errors_of(queries, name)
    return metrics.calibration_metrics(
        denser_mass=[f.denser_mass for f in found],
        credible_mass=[f.credible_mass for f in found],
        radius_90_m=[f.radius_90_m for f in found],
        confidence=[f.confidence for f in found],
        position_error_m=errors.position_m,
        log_density=[f.log_density for f in found],
        heading_error_deg=errors.heading_deg,
        heading_sigma_deg=[f.heading_sigma_deg for f in found],
    )


def foreign_figures(
    queries: Sequence[Query], confidences: Sequence[float], *, num_unreadable: int = 0
) -> dict[str, float]:
    """How well confidence tells photos of the gallery from photos taken elsewhere.

    Of `num_unreadable` more foreign photos nothing is known; they enter no other figure.
    `auroc` compares the photos of the gallery's area with the foreign ones;
    `share_right_confident` is the share of the answers within 5 m that are confident.
    """
    own = np.array([query.whole.confidence for query in queries if query.true_chip >= 0])
    foreign = np.asarray(confidences)
    is_right = errors_of(queries, "whole").position_m < metrics.CORRECT_WITHIN_M
    right = np.array([query.whole.confidence for query in queries])[is_right]
    return {
        "num": len(foreign),
        "num_unreadable": num_unreadable,
        "auroc": metrics.auroc(own, foreign) if len(own) and len(foreign) else np.nan,
        "share_above_0.5": float(np.mean(foreign > CONFIDENT_ABOVE)) if len(foreign) else np.nan,
        "share_right_confident": float(np.mean(right > CONFIDENT_ABOVE)) if len(right) else np.nan,
    }


# ---------------------------------------------------------------------------------------- baselines


def baseline_answers(queries: Sequence[Query], setting: Setting) -> dict[str, dict[str, Floats]]:
    """What knowing nothing answers, `(N, 3)` about the true positions, for each measurement.

    The city's centre is that of its chips' bounds, a random place is uniform over their central
    squares; with a prior the centre is the prior's and a random place uniform in its circle.
    """
    num, half = len(queries), setting.places.half_m
    rng = np.random.default_rng([setting.seed, 2])
    offset = np.array([(*query.chip_offset_m, 0.0) for query in queries])
    in_chip = metrics.baseline_answers(num, bounds_m=(-half, -half, half, half), rng=rng)
    places = setting.places
    truth = [places.to_local(lat=q.pose.lat, lon=q.pose.lon) for q in queries]
    camera = np.array([(x_m, y_m, 0.0) for x_m, y_m in truth])
    chip = rng.integers(len(places.lat), size=num)
    headings = rng.uniform(0.0, 360.0, size=(4, num, 1))
    spot = np.stack([places.x_m[chip], places.y_m[chip]], 1) + rng.uniform(-half, half, (num, 2))
    middle = [(np.min(v) + np.max(v)) / 2 for v in (places.x_m, places.y_m)]
    center = np.broadcast_to(middle, (num, 2))
    answers = {
        "pose": {name: answer - offset for name, answer in in_chip.items()},
        "end_to_end": {
            "center": np.hstack([center, headings[0]]) - camera,
            "random": np.hstack([spot, headings[1]]) - camera,
        },
    }
    if setting.options.near is not None:
        radius_m = setting.options.near[1]
        prior = np.array([near_offset_m(setting.options, setting.seed, i) for i in range(num)])
        distance = radius_m * np.sqrt(rng.uniform(size=num))
        angle = rng.uniform(0.0, 2.0 * np.pi, size=num)
        around = np.stack([distance * np.sin(angle), distance * np.cos(angle)], axis=1)
        answers["end_to_end_near"] = {
            "center": np.hstack([prior, headings[2]]),
            "random": np.hstack([prior + around, headings[3]]),
        }
    return answers


def near_offset_m(options: EvaluateOptions, seed: int, index: int) -> tuple[float, float]:
    """East and north metres from the true position of a query to its prior's centre."""
    assert options.near is not None
    bearing = np.random.default_rng([seed, 1, index]).uniform(0.0, 2.0 * np.pi)
    return float(options.near[0] * np.sin(bearing)), float(options.near[0] * np.cos(bearing))


def baseline_figures(
    answers: Mapping[str, Mapping[str, Floats]], queries: Sequence[Query]
) -> dict[str, dict[str, Any]]:
    """The figures of baselines' answers (N, 3), by baseline and measurement.

    Args:
        answers: by measurement and baseline, "center" and "random".
        queries: N that they answer.
    """
    figures: dict[str, dict[str, Any]] = {"center": {}, "random": {}}
    for name, by_baseline in answers.items():
        for baseline, answer in by_baseline.items():
            errors = errors_about_truth(answer, queries)
            if name == "pose":
                figures[baseline][name] = pose_figures(errors)
            else:
                # They know no chip, so nothing of theirs is gated.
                found = end_to_end_figures(errors, queries)
                kept = {k: v for k, v in found.items() if not k.startswith("gated")}
                figures[baseline][name] = kept
    return figures


# -------------------------------------------------------------------------------------------- table


def table_of(queries: Sequence[Query], setting: Setting) -> dict[str, list[Any]]:
    """per_query.parquet, column by column; what is unknown or missing is None."""
    table: dict[str, list[Any]] = {
        "photo": [str(query.pose.photo) for query in queries],
        "problem": [query.problem or None for query in queries],
        "true_lat": [query.pose.lat for query in queries],
        "true_lon": [query.pose.lon for query in queries],
        "true_heading_deg": [query.pose.heading_deg for query in queries],
        "true_chip": [query.true_chip for query in queries],
        "is_outside": [query.true_chip < 0 for query in queries],
    }
    for name in RANKS:
        ranks = (getattr(query, name) for query in queries)
        table[name] = [None if rank == metrics.NO_REFERENCE else rank for rank in ranks]
    blocks = {"": "whole", "pose_": "in_chip"}
    if setting.options.near is not None:
        blocks["near_"] = "near"
        prior = [near_offset_m(setting.options, setting.seed, i) for i in range(len(queries))]
        table["near_error_x_m"] = [x_m for x_m, _ in prior]
        table["near_error_y_m"] = [y_m for _, y_m in prior]
    for prefix, name in blocks.items():
        columns = {**error_columns(queries, name), **answer_columns(queries, name)}
        table |= {prefix + column: values for column, values in columns.items()}
    table["pose_chip_offset_x_m"] = [query.chip_offset_m[0] for query in queries]
    table["pose_chip_offset_y_m"] = [query.chip_offset_m[1] for query in queries]
    return table


def error_columns(queries: Sequence[Query], name: str) -> Mapping[str, list[Any]]:
    """Errors of the answers that `name` names, see `answers_of`."""
    errors = errors_of(queries, name)
    return {
        "error_m": _finite(errors.position_m),
        "lateral_m": _finite(errors.lateral_m),
        "longitudinal_m": _finite(errors.longitudinal_m),
        "heading_error_deg": _finite(errors.heading_deg),
    }


def answer_columns(queries: Sequence[Query], name: str) -> Mapping[str, list[Any]]:
    """The answers themselves, likewise."""
    found = answers_of(queries, name)
    names = (
        "lat", "lon", "heading_deg", "confidence", "in_gallery_prob", "denser_mass",
        "credible_mass", "log_density", "radius_50_m", "radius_90_m", "heading_sigma_deg",
        "seconds",
    )  # fmt: skip
    columns = {n: _finite([getattr(f, n) for f in found]) for n in names}
    features = np.array([f.features for f in found], dtype=np.float64)
    for number, values in enumerate(features.T, start=1):
        columns[f"confidence_feature_{number}"] = _finite(values)
    return columns


def _finite(values: Any) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
