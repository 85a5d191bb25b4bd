"""How good are the answers? Photos with known poses against a gallery.

Every photo is encoded once and asked three questions: which chip of the gallery (`retrieval`, by
descriptors, and `retrieval_matched`, by the evidence of all poses of a chip), where in a chip that
surely shows the place (`pose`), and where in the whole gallery (`end_to_end`, which is what
``ciper localize`` answers). `docs/metrics.md` defines the figures. A query that cannot be answered
is a failure in each of them, never left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ciper import metrics
from ciper.data.photos import find_photos
from ciper.data.poses import PhotoPose, read_poses
from ciper.errors import CameraError, ConfigError, PhotoError
from ciper.files import finished_folder
from ciper.geo import LocalFrame
from ciper.localize import Localization, Localizer, Match
from ciper.model.load import Model
from ciper.model.model import ChipFeatures
from ciper.posterior import Places, Posterior
from ciper.prior import Near, Prior
from ciper.report import Evaluation, check_replaceable, write_report
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
Progress = Callable[[str, int, int], None]

DATASETS = ("vigor", "kitti", "ford")
CHIPS_AT_ONCE = 16


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """The silent progress callback."""


def evaluate(
    spec: str,
    out: Path,
    *,
    gallery: str | Path | None,
    model: str | Path | Model = "ground",
    seed: int = 0,
    device: str | None = None,
    options: EvaluateOptions | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Measure a model on photos with known poses and write a report.

    Args:
        spec: a table of poses, POSES.csv.
        out: the report's folder: metrics.json, per_query.parquet, report.md and plots. It appears
            when all is done; a report that is there already is replaced.
        gallery: folder written by `ciper index` with the same model.
        model: name or file of weights.
        seed: of the chips that are cut about the cameras, of the wrong priors and of the baselines.
        device: cpu, cuda or mps.
        options: further measurements.
        progress: called with (what, done, total).

    Returns:
        What metrics.json holds.

    Raises:
        ConfigError: an unknown kind of spec, or no gallery.
        OutputError: `out` holds something else or cannot be written.
        PoseTableError, GalleryError, CheckpointError, PhotoError: an input cannot be used.
    """
    started, options = time.perf_counter(), options or EvaluateOptions()
    poses = _read_spec(spec)
    if gallery is None:
        raise ConfigError(f"{spec} needs a gallery to be found in; name it with --gallery")
    check_replaceable(Path(out))
    with finished_folder(Path(out)) as folder:
        localizer = Localizer(gallery, model, device)
        foreign = _foreign_poses(options.foreign)
        queries = _ask(localizer, poses, options, seed, progress)
        _rank(localizer, queries)
        _ask_in_chips(localizer, queries, seed, progress)
        chips = localizer.gallery.chips
        places = Places.around(chips.lat, chips.lon, chip_m=localizer.model.chip_m)
        setting = Setting(places, options, seed)
        figures = {**_described(localizer, spec, seed), **figures_of(queries, setting)}
        foreign_confidence, problems = _confidence_of(localizer, foreign, progress)
        if foreign:
            figures["foreign"] = foreign_figures(
                queries, foreign_confidence, num_unreadable=len(problems)
            )
        figures["warnings"] = [
            *_warnings_of(queries),
            *_warnings_of_model(localizer, queries),
            *_warnings_of_foreign(problems, foreign),
        ]
        figures["seconds"] = time.perf_counter() - started
        figures = metrics.finite_or_none(figures)
        text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
        evaluation = Evaluation(queries, figures, setting, localizer, foreign_confidence)
        write_report(folder, evaluation, progress)
    return figures


def _read_spec(spec: str) -> tuple[PhotoPose, ...]:
    kind = spec.partition(":")[0].lower()
    if kind in DATASETS:
        raise ConfigError(
            f"{spec!r} asks for a benchmark that this version cannot read yet; expected a table of "
            "poses, POSES.csv"
        )
    return read_poses(spec)


def _described(localizer: Localizer, spec: str, seed: int) -> dict[str, Any]:
    header = localizer.gallery.header
    return {
        "spec": spec,
        "gallery": str(localizer.gallery.path),
        "model": localizer.model.model_name,
        "model_hash": localizer.model.model_hash,
        "chip_m": header.chip_m,
        "stride_m": header.stride_m,
        "seed": seed,
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
        num_told = sum(query.pose.heading_deg is not None for query in queries)
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
            query.problem = " ".join(str(error).split())
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
    score = np.full(len(localizer.gallery), -np.inf)
    score[found.chips] = found.chip_evidence
    true = [query.true_chip]
    query.matched_rank = int(metrics.ranks_from_similarity(score[None], true)[0])
    query.matched_hit_rank = int(
        metrics.ranks_from_similarity(
            score[None], true, excluded=[_semi_positives(localizer, query)]
        )[0]
    )


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
    for numbers in _batches(len(queries), CHIPS_AT_ONCE):
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
        posterior, judged = localizer.judge(Match(np.array([-1]), place, Prior(place), evidence))
        confidence = localizer.confidence(judged)
        seconds = time.perf_counter() - started
        query.in_chip = _held_against(query.pose, posterior, confidence, judged, seconds)


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
    denser_mass, credible_mass = posterior.highest_density_masses(*true_xy)
    return Found(
        x_m=float(x_m),
        y_m=float(y_m),
        lat=pose.lat,
        lon=pose.lon,
        heading_deg=pose.heading_deg if posterior.says_heading else np.nan,
        confidence=confidence,
        in_gallery_prob=1.0 - posterior.outside_prob,
        features=features,
        denser_mass=denser_mass,
        credible_mass=credible_mass,
        log_density=posterior.log_density(*true_xy),
        radius_50_m=posterior.radius_m(0.5),
        radius_90_m=posterior.radius_m(0.9),
        heading_sigma_deg=posterior.heading_sigma_deg,
        seconds=seconds,
        says_heading=posterior.says_heading,
    )


def _batches(num_items: int, size: int) -> Iterator[range]:
    for start in range(0, num_items, size):
        yield range(start, min(start + size, num_items))


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
            problems.append(" ".join(str(error).split()))
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
    descriptors = torch.stack([code.descriptor.float().mean(0) for code in codes]).cpu().numpy()
    references = _without_gaps(np.asarray(localizer.gallery.descriptors[:]))
    true = np.array([query.true_chip for query in asked], dtype=np.int64)
    semi_positives = [_semi_positives(localizer, query) for query in asked]
    all_ranks = metrics.ranks(descriptors, references, true)
    hit_ranks = metrics.ranks(descriptors, references, true, excluded=semi_positives)
    for query, rank, hit_rank in zip(asked, all_ranks.tolist(), hit_ranks.tolist(), strict=True):
        query.rank, query.hit_rank = rank, hit_rank


def _without_gaps(descriptors: NDArray[np.float16]) -> NDArray[np.float16]:
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


def _semi_positives(localizer: Localizer, query: Query) -> Ints:
    """The other chips that contain the camera."""
    chips, half = localizer.gallery.chips, localizer.gallery.header.chip_m / 2
    near = localizer.gallery.chips_within(lat=query.pose.lat, lon=query.pose.lon, radius_m=half)
    frame = LocalFrame(lat=query.pose.lat, lon=query.pose.lon)
    x, y = frame.to_local(lat=chips.lat[near], lon=chips.lon[near])
    inside = near[(np.abs(x) <= half) & (np.abs(y) <= half)]
    return np.asarray(inside[inside != query.true_chip], dtype=np.int64)
