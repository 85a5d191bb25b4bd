"""How good are the answers? Photos with known poses against a gallery.

Every photo is encoded once and asked three questions: which chip of the gallery (`retrieval`, by
descriptors, `retrieval_matched`, by the evidence of all poses of a chip, and `retrieval_posterior`,
by the answer's probability), where in a chip that
surely shows the place (`pose`), and where in the whole gallery (`end_to_end`, which is what
``ciper localize`` answers). `docs/metrics.md` defines the figures. A query that cannot be answered
is a failure in each of them, never left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper import metrics
from ciper.asking import (
    Progress,
    batches,
    found_of,
    ignore_progress,
    mean_descriptor,
    one_line,
    without_gaps,
)
from ciper.data.datasets import DATASETS, ProtocolOptions, parse_spec, read_protocol
from ciper.data.photos import find_photos
from ciper.data.poses import PhotoPose, read_poses
from ciper.errors import CameraError, ConfigError, PhotoError
from ciper.files import finished_folder
from ciper.geo import LocalFrame
from ciper.localize import Localization, Localizer, Match
from ciper.model.load import Model, load_model
from ciper.model.model import ChipFeatures
from ciper.posterior import Places, Posterior
from ciper.prior import Near, Prior
from ciper.published.evaluation import PublishedRun, evaluate_published
from ciper.report import Evaluation, check_replaceable, write_metrics, write_report
from ciper.scoring import (
    EvaluateOptions,
    Found,
    Query,
    Setting,
    figures_of,
    foreign_figures,
    near_offset_m,
)

Ints = NDArray[np.int64]

CHIPS_AT_ONCE = 16


def evaluate(
    spec: str,
    out: Path,
    *,
    gallery: str | Path | None = None,
    model: str | Path | Model | None = None,
    seed: int = 0,
    device: str | None = None,
    options: EvaluateOptions | None = None,
    protocol: ProtocolOptions | None = None,
    is_on_grid: bool = False,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Measure a model on photos with known poses and write a report.

    Args:
        spec: a table of poses, POSES.csv, or a data set of the field, see `data.datasets`.
        out: the report's folder: metrics.json, per_query.parquet, report.md and plots. It appears
            when all is done; a report that is there already is replaced.
        gallery: folder written by `ciper index` with the same model; a data set brings its own,
            but on a grid it is made here, if it is not there yet.
        model: name or file of weights; None takes the shipped ones that made the gallery, of a data
            set `ground`.
        seed: of the chips that are cut about the cameras, of the wrong priors and of the baselines.
        device: cpu, cuda or mps.
        options: further measurements; not of a data set as published.
        protocol: which queries are asked, and how; of data sets.
        is_on_grid: ask a data set's queries among north-up chips on a grid, not in its own gallery.
        progress: called with (what, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: options that do not belong together, or no gallery.
        OutputError: `out` holds something else or cannot be written.
        DatasetError, PoseTableError, GalleryError, CheckpointError, PhotoError: an input cannot be
            used.
    """
    options = options or EvaluateOptions()
    if parse_spec(spec) is None:
        if protocol is not None:
            raise ConfigError(
                f"{spec} is no data set with splits; expected {', '.join(DATASETS)} with :ROOT, or "
                "none of their options"
            )
        if gallery is None:
            raise ConfigError(f"{spec} needs a gallery to be found in; name it with --gallery")
        asked = _Asked(spec, read_poses(spec), Path(gallery), model, device, options, seed)
        return _evaluate_in_gallery(asked, Path(out), progress)
    chosen = protocol or ProtocolOptions(seed=seed)
    if is_on_grid:
        asked = _asked_on_grid(
            _Asked(spec, (), _needed(gallery, spec), model, device, options, seed), chosen, progress
        )
        return _evaluate_in_gallery(asked, Path(out), progress)
    _check_published(spec, gallery, options)
    run = PublishedRun(spec, chosen, model or "ground", device, seed)
    return evaluate_published(run, Path(out), progress)


@dataclass(frozen=True)
class _Asked:
    """Photos with known poses, and the gallery that they are looked for in."""

    spec: str
    poses: tuple[PhotoPose, ...]
    gallery: Path
    model: str | Path | Model | None
    device: str | None
    options: EvaluateOptions
    seed: int
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def _evaluate_in_gallery(asked: _Asked, out: Path, progress: Progress) -> dict[str, Any]:
    started, options, seed = time.perf_counter(), asked.options, asked.seed
    check_replaceable(out)
    with finished_folder(out) as folder:
        localizer = Localizer(asked.gallery, asked.model, asked.device)
        foreign = _foreign_poses(options.foreign)
        queries = _ask(localizer, asked.poses, options, seed, progress)
        _rank(localizer, queries)
        _ask_in_chips(localizer, queries, seed, progress)
        chips = localizer.gallery.chips
        places = Places.around(chips.lat, chips.lon, chip_m=localizer.model.chip_m)
        setting = Setting(places, options, seed)
        figures = {**_described(localizer, asked), **figures_of(queries, setting)}
        foreign_confidence, problems = _confidence_of(localizer, foreign, progress)
        if foreign:
            figures["foreign"] = foreign_figures(
                queries, foreign_confidence, num_unreadable=len(problems)
            )
        figures["warnings"] = [
            *asked.notes,
            *_warnings_of(queries),
            *_warnings_of_model(localizer, queries),
            *_warnings_of_foreign(problems, foreign),
        ]
        figures["seconds"] = time.perf_counter() - started
        figures = write_metrics(folder, figures)
        evaluation = Evaluation(queries, figures, setting, localizer, foreign_confidence)
        write_report(folder, evaluation, progress)
    return figures


# --------------------------------------------------------------------------------------- data sets


def _asked_on_grid(asked: _Asked, chosen: ProtocolOptions, progress: Progress) -> _Asked:
    """The queries of a data set, and a gallery of its imagery that knows none of their poses."""
    # Writing galleries needs more than asking in them.
    from ciper.published.grid import different_poses, index_imagery

    protocol = read_protocol(asked.spec, chosen)
    if protocol.dataset != "vigor" and chosen.heading_noise_deg is not None:
        raise ConfigError("--heading-noise turns published chips, none on a grid; leave it out")
    made = asked.model or "ground"
    model = made if isinstance(made, Model) else load_model(made, asked.device)
    notes = index_imagery(protocol, asked.gallery, model, progress)
    poses = different_poses(protocol.samples)
    if num_again := len(protocol.samples) - len(poses):
        notes = (*notes, f"{num_again} queries differ in their published chips alone: asked once")
    asked = replace(asked, poses=poses, model=model, notes=(*protocol.notes, *notes))
    return replace(asked, settings={**protocol.settings, "protocol": "grid"})


def _needed(gallery: str | Path | None, spec: str) -> Path:
    if gallery is None:
        raise ConfigError(
            f"{spec} on a grid needs a folder for the gallery of its imagery, which is made if it "
            "is not there; name it with --gallery"
        )
    return Path(gallery)


def _check_published(spec: str, gallery: str | Path | None, options: EvaluateOptions) -> None:
    if gallery is not None:
        raise ConfigError(
            f"{spec} brings a gallery of its own; leave --gallery out, or ask for --protocol grid"
        )
    if options != EvaluateOptions():
        raise ConfigError(
            f"{spec} as published has no --near-error, --near-radius and --foreign: leave them "
            "out, or ask for --protocol grid"
        )


# ------------------------------------------------------------------------------------------ report


def _described(localizer: Localizer, asked: _Asked) -> dict[str, Any]:
    header = localizer.gallery.header
    return {
        "spec": asked.spec,
        **({"settings": dict(asked.settings)} if asked.settings else {}),
        "gallery": str(localizer.gallery.path),
        "model": localizer.model.model_name,
        "model_hash": localizer.model.model_hash,
        "chip_m": header.chip_m,
        "stride_m": header.stride_m,
        "seed": asked.seed,
    }


def _warnings_of(queries: Sequence[Query]) -> list[str]:
    warnings = []
    num_outside = sum(query.true_chip < 0 for query in queries)
    if num_outside:
        warnings.append(
            f"{num_outside} of {len(queries)} true positions lie outside the gallery's imagery; "
            "they count as failures"
        )
    problems = [query.problem for query in queries if query.problem]
    if problems:
        warnings.append(
            f"{len(problems)} of {len(queries)} photos cannot be read and count as failures; the "
            f"first: {problems[0]}"
        )
    return warnings


def _warnings_of_model(localizer: Localizer, queries: Sequence[Query]) -> list[str]:
    """What limits the model, and how the photos were shown to it."""
    model, warnings = localizer.model, list(localizer.model.limits)
    if model.wants_north:
        num_told = sum(query.pose.told_heading_deg is not None for query in queries)
        warnings.append(
            f"the headings of the table turned {num_told} of {len(queries)} photos to north, as "
            "in the model's training, where they are full panoramas; figures of heading are left "
            "out"
        )
    encoded = [query.encoded for query in queries if query.encoded is not None]
    misfits = [problem for photo in encoded if (problem := model.misfit(photo.camera))]
    if misfits:
        warnings.append(f"{len(misfits)} of {len(queries)} photos: {misfits[0]}")
    return warnings


def _warnings_of_foreign(problems: Sequence[str], poses: Sequence[PhotoPose]) -> list[str]:
    if not problems:
        return []
    return [
        f"{len(problems)} of {len(poses)} foreign photos cannot be read and are left out; the "
        f"first: {problems[0]}"
    ]


# ---------------------------------------------------------------------------------------- questions


def _ask(
    localizer: Localizer,
    poses: Sequence[PhotoPose],
    options: EvaluateOptions,
    seed: int,
    progress: Progress,
) -> list[Query]:
    """Encode every photo and look for it in the whole gallery, without and with a prior."""
    true_chips = localizer.gallery.nearest_chips(
        lat=[pose.lat for pose in poses], lon=[pose.lon for pose in poses]
    )
    queries = []
    for i, (pose, chip) in enumerate(zip(poses, true_chips.tolist(), strict=True)):
        query = Query(pose, chip)
        try:
            query.encoded = localizer.read_posed(pose)
        except (PhotoError, CameraError) as error:
            query.problem = one_line(error)
        else:
            _ask_everywhere(localizer, query)
            if options.near is not None:
                _ask_near(localizer, query, options.near[1], near_offset_m(options, seed, i))
        queries.append(query)
        progress("queries", i + 1, len(poses))
    return queries


def _ask_everywhere(localizer: Localizer, query: Query) -> None:
    assert query.encoded is not None
    found = localizer.answer(query.encoded)
    query.whole = _answer_of(query.pose, found)
    true, others = [query.true_chip], [_semi_positives(localizer, query)]

    def ranks(score: NDArray[np.floating[Any]]) -> tuple[int, int]:
        """Of the true chip by a score of those that were matched, and without semi-positives."""
        scores = np.full((1, len(localizer.gallery)), -np.inf)
        scores[0, found.chips] = score
        return (
            int(metrics.ranks_from_similarity(scores, true)[0]),
            int(metrics.ranks_from_similarity(scores, true, excluded=others)[0]),
        )

    query.matched_rank, query.matched_hit_rank = ranks(found.chip_evidence)
    mass = found.posterior.place_prob.sum((1, 2))
    query.posterior_rank, query.posterior_hit_rank = ranks(mass)


def _ask_near(
    localizer: Localizer, query: Query, radius_m: float, offset_m: tuple[float, float]
) -> None:
    """The same with a prior about a wrong position; one that reaches no chip has no answer."""
    assert query.encoded is not None
    frame = LocalFrame(lat=query.pose.lat, lon=query.pose.lon)
    lat, lon = frame.to_geographic(x=offset_m[0], y=offset_m[1])
    near = Near(float(lat), float(lon), radius_m)
    if len(localizer.gallery.chips_within(lat=near.lat, lon=near.lon, radius_m=near.reach_m)):
        found = localizer.answer(query.encoded, near=near)
        query.near = _answer_of(query.pose, found)


def _ask_in_chips(
    localizer: Localizer, queries: Sequence[Query], seed: int, progress: Progress
) -> None:
    """Look for every photo in one chip that holds its camera uniformly in its central half."""
    header, half_m = localizer.gallery.header, localizer.model.chip_m / 4
    num_done = 0
    for numbers in batches(len(queries), CHIPS_AT_ONCE):
        asked = [i for i in numbers if queries[i].encoded is not None and queries[i].true_chip >= 0]
        places, pixels, valid = [], [], []
        for i in asked:
            query, rng = queries[i], np.random.default_rng([seed, 0, i])
            dx, dy = rng.uniform(-half_m, half_m, 2).tolist()
            frame = LocalFrame(lat=query.pose.lat, lon=query.pose.lon)
            lat, lon = frame.to_geographic(x=[-dx], y=[-dy])
            size_px = localizer.model.chip_px
            rgb, is_valid = localizer.gallery.read_area(
                lat=float(lat[0]), lon=float(lon[0]), size_px=size_px, gsd=header.gsd
            )
            query.chip_offset_m = (dx, dy)
            places.append(Places.around(lat, lon, chip_m=localizer.model.chip_m))
            pixels.append(rgb)
            valid.append(is_valid)
        if asked:
            _match_in_chips(localizer, [queries[i] for i in asked], places, pixels, valid)
        num_done += len(numbers)
        progress("true chips", num_done, len(queries))


def _match_in_chips(
    localizer: Localizer,
    queries: Sequence[Query],
    places: Sequence[Places],
    pixels: Sequence[NDArray[np.uint8]],
    valid: Sequence[NDArray[np.bool_]],
) -> None:
    model = localizer.model
    codes = model.encode(np.stack(pixels), np.stack(valid))
    for i, (query, place) in enumerate(zip(queries, places, strict=True)):
        assert query.encoded is not None
        started = time.perf_counter()
        features = ChipFeatures.of_codes(codes[i : i + 1], model.device)
        evidence = model.match(query.encoded.code, features)
        judged = localizer.judge(Match(np.array([-1]), place, Prior(place), evidence))
        seconds = time.perf_counter() - started
        query.in_chip = _held_against(
            query.pose, judged.posterior, judged.confidence, judged.features, seconds
        )


def _answer_of(truth: PhotoPose, answer: Localization) -> Found:
    return _held_against(
        truth, answer.posterior, answer.confidence, answer.features, answer.seconds
    )


def _held_against(
    truth: PhotoPose,
    posterior: Posterior,
    confidence: float,
    features: tuple[float, ...],
    seconds: float,
) -> Found:
    pose = posterior.places.pose(posterior.mode)
    x_m, y_m = LocalFrame(lat=truth.lat, lon=truth.lon).to_local(lat=pose.lat, lon=pose.lon)
    true_xy = posterior.places.to_local(lat=truth.lat, lon=truth.lon)
    found = found_of(posterior, features, confidence, true_xy=true_xy, seconds=seconds)
    return replace(
        found,
        x_m=float(x_m),
        y_m=float(y_m),
        lat=pose.lat,
        lon=pose.lon,
        heading_deg=pose.heading_deg if posterior.says_heading else np.nan,
    )


# ---------------------------------------------------------------------------------- foreign photos


def _foreign_poses(names: Sequence[str]) -> tuple[PhotoPose, ...]:
    """Photos with what tables of poses know of their cameras; their places do not matter."""
    poses: list[PhotoPose] = []
    for name in names:
        if name.lower().endswith(".csv"):
            poses += read_poses(name)
        else:
            poses += (PhotoPose(photo, lat=0.0, lon=0.0) for photo in find_photos([name]))
    return tuple(poses)


def _confidence_of(
    localizer: Localizer, poses: Sequence[PhotoPose], progress: Progress
) -> tuple[tuple[float, ...], list[str]]:
    """Confidence of the answers, and what was wrong with the photos that have none."""
    confidences, problems = [], []
    for i, pose in enumerate(poses, start=1):
        try:
            found = localizer.answer(localizer.read_posed(pose))
        except (PhotoError, CameraError) as error:
            problems.append(one_line(error))
        else:
            confidences.append(found.confidence)
        progress("foreign photos", i, len(poses))
    return tuple(confidences), problems


# ---------------------------------------------------------------------------------------- retrieval


def _rank(localizer: Localizer, queries: Sequence[Query]) -> None:
    """Ranks of the true chips by descriptor, over the whole gallery."""
    asked = [query for query in queries if query.encoded is not None]
    if not asked:
        return
    codes = [query.encoded.code for query in asked if query.encoded is not None]
    descriptors = np.stack([mean_descriptor(code) for code in codes])
    references = without_gaps(np.asarray(localizer.gallery.descriptors[:]))
    true = np.array([query.true_chip for query in asked], dtype=np.int64)
    semi_positives = [_semi_positives(localizer, query) for query in asked]
    all_ranks, hit_ranks = metrics.ranks_and_hit_ranks(
        descriptors, references, true, semi_positives=semi_positives
    )
    for query, rank, hit_rank in zip(asked, all_ranks.tolist(), hit_ranks.tolist(), strict=True):
        query.rank, query.hit_rank = rank, hit_rank


def _semi_positives(localizer: Localizer, query: Query) -> Ints:
    """The other chips that contain the camera."""
    inside = localizer.gallery.chips_holding(lat=query.pose.lat, lon=query.pose.lon)
    return np.asarray(inside[inside != query.true_chip], dtype=np.int64)
