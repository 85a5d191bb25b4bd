"""Calibration: turns logits into probabilities that can be trusted, and exports the weights.

Fitted on validation cities that neither training nor any reported figure uses. Photos of the
city and foreign ones (of another city) meet each city's gallery; the posterior's shape is
chosen by the likelihood of the true places, two logistic models by that of "within 5 m" and
"in this gallery". Of a network of set prediction the scale of similarities and the spreads of
hypotheses come first, see `ciper.model.set_fit`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ciper.calibration_cities import (
    CalibrateConfig,
    City,
    NadirImagery,
    Progress,
    prepare_city,
    prepare_imagery,
    with_cameras_of,
)
from ciper.checkpoint import load_checkpoint
from ciper.config import from_dict
from ciper.data.poses import PhotoPose
from ciper.errors import ConfigError, OutputError
from ciper.files import check_cache
from ciper.geo import LocalFrame, wrap_signed_deg
from ciper.localize import (
    CONFIDENT_WITHIN_M,
    Localizer,
    posterior_of,
)
from ciper.metrics import coverage
from ciper.model.calibration import PosteriorShape, ViewCalibration
from ciper.model.load import Calibration, Model, PaperModel, export_weights, load_model
from ciper.model.model import PhotoCode
from ciper.model.paper import PaperGround
from ciper.model.set_fit import Seen, fit_scale, fit_spread
from ciper.posterior import GAUSSIAN_WITHIN_SIGMA, needed_scale

Float = NDArray[np.floating[Any]]

COARSE_TEMPERATURES = (0.8, 1.0, 1.3)
FINE_TEMPERATURES = (0.8, 1.1, 1.5, 2.0)
UNREFINED_OFFSETS = (-2.0, 0.0, 2.0)
FLOORS = (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1)
LEVELS = (0.5, 0.9)
# Weight of a missed coverage (0 to 1) against the mean log likelihood when a candidate is chosen.
COVERAGE_WEIGHT = 4.0
# Photos that see more of the horizon than this shape `Calibration.wide`, others `narrow`.
WIDE_ABOVE = 0.5
RIDGE = 1e-4


@dataclass(frozen=True)
class Case:
    """A photo of a city against its gallery under every candidate, all `(T,)`.

    log_density: of the true place (per m^2) without a floor.
    denser_mass, credible_mass: see `Posterior.highest_density_masses`.
    area_m2: of the chips that were matched.
    visible_share: of the horizon.
    """

    log_density: Float
    denser_mass: Float
    credible_mass: Float
    area_m2: float
    visible_share: float = 1.0


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """The silent progress callback."""


def calibrate(
    checkpoint: Path,
    out: Path,
    config: CalibrateConfig | None = None,
    *,
    cache: Path,
    nadir: NadirImagery | None = None,
    device: str | None = None,
    progress: Progress = ignore_progress,
) -> Calibration:
    """Fits the calibration of a checkpoint and writes weights with it.

    Args:
        checkpoint: of a training run, or exported weights.
        out: weights file to write (float16 weights, configuration, calibration).
        config: the validation cities.
        cache: folder that keeps the simulated cities.
        nadir: photos that look straight down alone are calibrated, with these rasters. For other
            photos what was known before stays: of the checkpoint, or of the weights that it
            started from where the plan head learned alone.
        device: of the network.
        progress: called with (what, done, total).

    Returns:
        The calibration that was written.
    """
    config = config or CalibrateConfig()
    if out.exists() and checkpoint.resolve() == out.resolve():
        raise OutputError(f"{out} is the checkpoint itself; expected another file for the weights")
    check_cache(cache)
    # Fit what will be used, the float16 weights; `out` is touched when all is done.
    cache.mkdir(parents=True, exist_ok=True)
    draft = cache / f"{out.stem}.draft.safetensors"
    if nadir is not None:
        export_weights(checkpoint, draft, known_calibration(checkpoint))
        model = load_model(draft, device)
        city = prepare_imagery(model, nadir, config, cache, progress)
        calibration = fit_plan(model, [city], config, progress)
        export_weights(checkpoint, out, calibration)
        draft.unlink()
        return calibration
    export_weights(checkpoint, draft, Calibration())
    model = load_model(draft, device)
    config = with_cameras_of(model, config)
    cities = [prepare_city(model, config, cache, i, progress) for i in range(len(config.seeds))]
    if isinstance(model, PaperModel):
        model = fit_set(model, cities, progress)
    model = fit_posterior(model, cities, progress)
    calibration = fit_confidence(model, cities, config, progress)
    export_weights(checkpoint, out, calibration)
    draft.unlink()
    return calibration


def known_calibration(checkpoint: Path) -> Calibration:
    """What is fitted already for photos of a checkpoint that do not look straight down."""
    _, header = load_checkpoint(checkpoint)
    if "calibration" in header:
        return from_dict(Calibration, header["calibration"])
    config = header.get("config", {})
    is_head_alone = config.get("train", {}).get("trained") == "plan"
    if is_head_alone and config.get("init") not in (None, "random", "stem"):
        return load_model(config["init"], "cpu").calibration
    return Calibration(is_fitted=False)


def fit_posterior(model: Model, cities: Sequence[City], progress: Progress) -> Model:
    """The model with the shapes of posterior under which the true places are most likely."""
    # Coarse and fine cells of set prediction are parts of one mixture already.
    is_mixture = isinstance(model, PaperModel)
    shapes = [PosteriorShape(floor=0.0)] if is_mixture else candidates()
    cases = []
    for number, city in enumerate(cities, start=1):
        localizer = Localizer(city.localizer.gallery, model)
        for photo in _shown(city.own, progress, f"posterior, city {number}"):
            cases.append(posterior_case(localizer, photo, shapes))
    calibration = replace(
        model.calibration,
        wide=fit_shape([c for c in cases if c.visible_share > WIDE_ABOVE] or cases, shapes),
        narrow=fit_shape([c for c in cases if c.visible_share <= WIDE_ABOVE] or cases, shapes),
    )
    return replace(model, calibration=calibration)


def fit_confidence(
    model: Model, cities: Sequence[City], config: CalibrateConfig, progress: Progress
) -> Calibration:
    """The model's calibration with logistic models of "within 5 m" and "in this gallery".

    And with the scale of the heading's spread, under which 68.3 % of the headings are within it.
    """
    seen = answers_to(model, cities, progress)
    confidence, in_gallery = fit_events(seen, config)
    own, known = [a for a in seen if a.is_own], model.calibration
    wide = [a for a in own if a.visible_share > WIDE_ABOVE] or own
    narrow = [a for a in own if a.visible_share <= WIDE_ABOVE] or own
    return replace(
        known,
        wide=replace(known.wide, heading_scale=fit_heading_scale(wide)),
        narrow=replace(known.narrow, heading_scale=fit_heading_scale(narrow)),
        confidence=confidence,
        in_gallery=in_gallery,
    )


def fit_plan(
    model: Model, cities: Sequence[City], config: CalibrateConfig, progress: Progress
) -> Calibration:
    """The model's calibration with what photos that look straight down ask for."""
    cases, shapes = [], candidates()
    for number, city in enumerate(cities, start=1):
        for photo in _shown(city.own, progress, f"posterior, city {number}"):
            cases.append(posterior_case(city.localizer, photo, shapes))
    shape = fit_shape(cases, shapes)
    model = replace(model, calibration=replace(model.calibration, plan=ViewCalibration(shape)))
    seen = answers_to(model, cities, progress)
    shape = replace(shape, heading_scale=fit_heading_scale([a for a in seen if a.is_own]))
    return replace(model.calibration, plan=ViewCalibration(shape, *fit_events(seen, config)))


@dataclass(frozen=True)
class Answered:
    """An answer held against the truth.

    Attributes:
        is_own: whether the photo was taken in the gallery's city.
        features: that its confidence rests on.
        error_m: of the position.
        heading_scale: under which the stated spread would be the heading's error; NaN if there is
            no such scale.
        visible_share: of the horizon, or of a plan view.
    """

    is_own: bool
    features: tuple[float, ...]
    error_m: float
    heading_scale: float
    visible_share: float


def answers_to(model: Model, cities: Sequence[City], progress: Progress) -> list[Answered]:
    """The model's answers to the cities' own and foreign photos, each in the city's gallery."""
    seen = []
    for number, city in enumerate(cities, start=1):
        localizer = Localizer(city.localizer.gallery, model)
        for photo in _shown((*city.own, *city.foreign), progress, f"confidence, city {number}"):
            seen.append(answer(localizer, photo, is_own=photo in city.own))
    return seen


def fit_events(
    seen: Sequence[Answered], config: CalibrateConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights of the logistic models of "within 5 m" and of "in this gallery"."""
    features = np.array([a.features for a in seen])
    is_own = np.array([a.is_own for a in seen])
    is_right = is_own & np.array([a.error_m <= CONFIDENT_WITHIN_M for a in seen])

    def fit(labels: NDArray[np.bool_], share: float) -> tuple[float, ...]:
        return fit_logistic(features, labels, np.where(is_own, 1 - share, share))

    return fit(is_right, config.foreign_share), fit(is_own, config.suspected_share)


def fit_heading_scale(own: Sequence[Answered]) -> float:
    """The scale under which 68.3 % of the headings are within their spread; 1 if none is said."""
    needed = np.array([a.heading_scale for a in own])
    needed = needed[np.isfinite(needed)]
    return float(np.quantile(needed, GAUSSIAN_WITHIN_SIGMA)) if len(needed) else 1.0


def fit_set(model: PaperModel, cities: Sequence[City], progress: Progress) -> PaperModel:
    """The model with the scale and the spreads that the cities' own photos ask for."""
    seen = [
        found
        for number, city in enumerate(cities, start=1)
        for photo in _shown(city.own, progress, f"hypotheses, city {number}")
        if (found := seen_of(model, city.localizer, photo)) is not None
    ]
    if not seen:
        raise ConfigError(
            "no photo of the validation cities lies in their galleries; expected larger cities "
            "than a few of the model's chips"
        )
    half_m = model.chip_m / 4
    spread = fit_spread(seen, half_m=half_m, says_heading=model.says_heading)
    calibration = replace(
        model.calibration,
        similarity_scale=fit_scale(seen),
        position_sigma_m=spread.position_m,
        heading_sigma_deg=spread.heading_deg or model.calibration.heading_sigma_deg,
    )
    return replace(model, calibration=calibration)


def seen_of(model: PaperModel, localizer: Localizer, photo: PhotoPose) -> Seen | None:
    """What the model says of a photo and of the chip that holds it; None outside the gallery."""
    gallery = localizer.gallery
    chip = int(gallery.nearest_chips(lat=[photo.lat], lon=[photo.lon])[0])
    if chip < 0:
        return None
    code = _code(localizer, photo)
    assert isinstance(code, PaperGround)
    features = localizer.features(np.arange(len(gallery)))
    num_views = len(code.descriptor)
    even = np.full((1, num_views), -np.log(num_views))
    poses = model.decode(code, np.array([chip]), features, even)
    frame = LocalFrame(lat=float(gallery.chips.lat[chip]), lon=float(gallery.chips.lon[chip]))
    x_m, y_m = frame.to_local(lat=photo.lat, lon=photo.lon)
    pose = poses.pose[0]
    return Seen(
        cosine=model.cosine(code, features),
        chip=chip,
        log_weight=poses.log_weight[0],
        distance_m=np.hypot(pose[:, 0] - x_m, pose[:, 1] - y_m),
        turn_deg=wrap_signed_deg(pose[:, 2] - (photo.heading_deg or 0.0)),
    )


def fit_shape(cases: Sequence[Case], shapes: Sequence[PosteriorShape]) -> PosteriorShape:
    """The candidate and the floor under which the true places are most likely.

    The score is the mean log likelihood less a penalty for a coverage of the 50 % and 90 %
    regions that is off.
    """
    density = np.exp(np.array([c.log_density for c in cases]))
    denser = np.array([c.denser_mass for c in cases])
    credible = np.array([c.credible_mass for c in cases])
    area = np.array([c.area_m2 for c in cases])
    best = (-np.inf, 0, FLOORS[0])
    for floor in FLOORS:
        likelihood = np.log((1 - floor) * density + floor / area[:, None]).mean(0)
        missed = [
            [abs(coverage((1 - floor) * low, (1 - floor) * high, q) - q) for q in LEVELS]
            for low, high in zip(denser.T, credible.T, strict=True)
        ]
        score = likelihood - COVERAGE_WEIGHT * np.sum(missed, axis=1)
        index = int(score.argmax())
        best = max(best, (float(score[index]), index, floor))
    _, chosen, floor = best
    return replace(shapes[chosen], floor=floor)


def candidates() -> list[PosteriorShape]:
    """The shapes of posterior that are tried, all without a floor."""
    tried = itertools.product(COARSE_TEMPERATURES, FINE_TEMPERATURES, UNREFINED_OFFSETS)
    return [PosteriorShape(coarse, fine, offset, floor=0.0) for coarse, fine, offset in tried]


def fit_logistic(
    features: Float, labels: NDArray[np.bool_], case_weights: Float | None = None
) -> tuple[float, ...]:
    """Ridge-regularised logistic regression: (constant, one weight per feature).

    Args:
        features: `(N, F)`.
        labels: `(N,)`.
        case_weights: `(N,)` what each case counts for; equal if None.
    """
    counts = np.ones(len(features)) if case_weights is None else case_weights / case_weights.mean()
    mean, scale = features.mean(0), features.std(0) + 1e-9
    x = np.column_stack([np.ones(len(features)), (features - mean) / scale])
    sign = np.where(labels, 1.0, -1.0)

    def loss(weights: Float) -> float:
        return float(
            (counts * np.logaddexp(0, -sign * (x @ weights))).mean()
            + RIDGE * (weights[1:] ** 2).sum()
        )

    weights = minimize(loss, np.zeros(x.shape[1])).x
    slopes = weights[1:] / scale
    return (float(weights[0] - (slopes * mean).sum()), *map(float, slopes))


def _shown(photos: Sequence[PhotoPose], progress: Progress, what: str) -> Iterator[PhotoPose]:
    for done, photo in enumerate(photos, start=1):
        yield photo
        progress(what, done, len(photos))


def posterior_case(
    localizer: Localizer, photo: PhotoPose, shapes: Sequence[PosteriorShape]
) -> Case:
    """How a photo's posterior rates the truth under every candidate."""
    found = localizer.match(_code(localizer, photo))
    x_m, y_m = found.places.to_local(lat=photo.lat, lon=photo.lon)
    density, masses = [], []
    for shape in shapes:
        calibration = Calibration(wide=shape, narrow=shape)
        posterior = posterior_of(found.evidence, found.places, calibration)
        density.append(posterior.log_density(x_m, y_m))
        masses.append(posterior.highest_density_masses(x_m, y_m))
    denser, credible = np.array(masses).T
    area_m2 = found.evidence.coarse[:, 0].size * found.places.coarse_m**2
    return Case(np.array(density), denser, credible, area_m2, found.evidence.visible_share)


def answer(localizer: Localizer, photo: PhotoPose, *, is_own: bool) -> Answered:
    """A photo's answer and how far it is from the truth."""
    found = localizer.match(_code(localizer, photo))
    judged = localizer.judge(found)
    posterior, mode = judged.posterior, judged.posterior.mode
    x_m, y_m = posterior.places.to_local(lat=photo.lat, lon=photo.lon)
    heading_deg = posterior.places.pose(mode).heading_deg
    spread_deg = replace(posterior, heading_scale=1.0).heading_sigma_deg
    is_known = photo.heading_deg is not None and np.isfinite(spread_deg)
    turn_deg = abs(float(wrap_signed_deg(heading_deg - (photo.heading_deg or 0.0))))
    return Answered(
        is_own=is_own,
        features=judged.features,
        error_m=float(np.hypot(mode.x_m - x_m, mode.y_m - y_m)),
        heading_scale=needed_scale(spread_deg, turn_deg) if is_known else np.nan,
        visible_share=found.evidence.visible_share,
    )


def _code(localizer: Localizer, photo: PhotoPose) -> PhotoCode:
    return localizer.read_posed(photo).code
