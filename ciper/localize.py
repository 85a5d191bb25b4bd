"""Where was the camera, and which way did it look? Photos against a gallery."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import torch
from numpy.typing import NDArray

from ciper.camera import Camera, CameraOverrides
from ciper.checkpoint import shipped_names
from ciper.data.poses import PhotoPose
from ciper.data.preprocess import ReadPhoto, read_with_camera
from ciper.device import fast_dtype
from ciper.errors import GalleryError
from ciper.gallery.manifest import Manifest
from ciper.gallery.store import Gallery
from ciper.geo import LocalFrame, Pose
from ciper.logits import logsumexp
from ciper.metadata import PhotoMetadata
from ciper.model.load import Calibration, Model, load_model
from ciper.model.matcher import Evidence
from ciper.model.model import ChipFeatures, PhotoCode
from ciper.model.network import GroundCode
from ciper.posterior import Hypothesis, Places, Posterior
from ciper.prior import Heading, Near, Prior
from ciper.refinement import Refinement

Float = NDArray[np.floating[Any]]

# Up to this many chips every chip is matched, which answers for 1600 squares of half a chip's side
# (6.6 km^2 of chips of 128 m, 2 km^2 of VIGOR's); above it, the ones that look right at a glance.
MAX_EXHAUSTIVE_CHIPS = 1600
# Their coarse maps are kept in memory: 32 KiB a chip, 262 MB. Above it retrieval draws up the list.
MAX_GLANCED_CHIPS = 8000
NUM_SHORTLIST = 512
# Photos from above tell chips apart better: a glance at a square kilometre finds theirs.
MAX_EXHAUSTIVE_FROM_ABOVE = 400
NUM_SHORTLIST_FROM_ABOVE = 256
NOT_IN_GALLERY_ABOVE = 0.5
CONFIDENT_WITHIN_M = 5.0


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo that was read and encoded; it can be asked for under any priors, but see `code`.

    Attributes:
        photo: its path.
        camera: what it was taken to be.
        metadata: what its file says.
        code: the network's. A model that `wants_north` saw the photo turned by the heading that
            `Localizer.read` was told, if any: for another one it must be read again.
        seconds: of reading and encoding.
    """

    photo: str
    camera: Camera
    metadata: PhotoMetadata
    code: PhotoCode
    seconds: float


@dataclass(frozen=True)
class Match:
    """Evidence of a photo over some chips of a gallery.

    Attributes:
        chips: (R,) their indexes in the gallery.
        places: where they are.
        prior: what was known beforehand; the evidence is free of it.
        evidence: the network's.
    """

    chips: NDArray[np.int64]
    places: Places
    prior: Prior
    evidence: Evidence

    @property
    def chip_evidence(self) -> Float:
        """(R,) log evidence of each chip: of all its poses together."""
        return logsumexp(self.evidence.coarse, axis=(1, 2, 3))


@dataclass(frozen=True)
class Localization:
    """The answer for one photo.

    Attributes:
        photo: its path.
        pose: the most probable pose, also if the photo is probably not of this gallery.
        posterior: the whole answer; its frame is `posterior.places.frame`.
        chips: (R,) the posterior's chips as indexes in the gallery.
        chip_evidence: (R,) log evidence of each of them.
        confidence: probability that `pose` lies within 5 m of the truth; a rank and no more if
            the model's calibration is not fitted.
        is_calibrated: whether it is.
        camera: what the photo was taken to be.
        metadata: what the photo's file says.
        features: what the confidence rests on, see `confidence_features`.
        crs, x_m, y_m: the position in the CRS of the raster that shows it.
        seconds: of work.
    """

    photo: str
    pose: Pose
    posterior: Posterior
    chips: NDArray[np.int64]
    chip_evidence: Float
    confidence: float
    is_calibrated: bool
    camera: Camera
    metadata: PhotoMetadata
    features: tuple[float, ...]
    crs: str
    x_m: float
    y_m: float
    seconds: float

    @property
    def is_in_gallery(self) -> bool:
        """Whether "not in this gallery" is the less probable outcome."""
        return self.posterior.outside_prob <= NOT_IN_GALLERY_ABOVE

    @property
    def stated_confidence(self) -> str:
        """The confidence for people."""
        return f"{self.confidence:.2f}" if self.is_calibrated else "unknown"

    @property
    def says_heading(self) -> bool:
        """Whether headings mean anything: some models know nothing of them."""
        return self.posterior.says_heading

    def hypothesis_pose(self, hypothesis: Hypothesis) -> Pose:
        """A hypothesis on the globe."""
        return self.posterior.places.pose(hypothesis)


class Localizer:
    """Localizes photos in one gallery; opening it is the slow part.

    Args:
        gallery: folder written by `ciper index`.
        model: name or file of the weights that made the gallery; None takes the shipped ones that
            it names.
        device: cpu, cuda or mps.
    """

    def __init__(
        self,
        gallery: str | Path | Gallery,
        model: str | Path | Model | None = None,
        device: str | None = None,
    ) -> None:
        model = weights_named_by(gallery) if model is None else model
        self.model = model if isinstance(model, Model) else load_model(model, device)
        self.gallery = (
            gallery
            if isinstance(gallery, Gallery)
            else Gallery.open(gallery, model_hash=self.model.model_hash)
        )
        header = self.gallery.header
        self.model.check_grid(chip_m=header.chip_m, stride_m=header.stride_m)
        if len(self.gallery) == 0:
            raise GalleryError(
                f"{self.gallery.path} has no chips; expected at least one: index again"
            )

    def localize(
        self,
        photo: str | Path,
        *,
        near: Near | None = None,
        heading: Heading | None = None,
        camera: CameraOverrides | None = None,
    ) -> Localization:
        """Answers for one photo.

        Args:
            photo: path of an image.
            near: prior on the position.
            heading: prior on the heading.
            camera: what is known of the camera beyond the photo's metadata.

        Raises:
            PhotoError, CameraError: the photo cannot be used.
            GalleryError: no chip lies near the prior.
        """
        encoded = self.read(photo, camera=camera, heading=heading)
        return self.answer(encoded, near=near, heading=heading)

    def read(
        self,
        photo: str | Path,
        *,
        camera: CameraOverrides | None = None,
        heading: Heading | None = None,
    ) -> EncodedPhoto:
        """Reads and encodes a photo.

        Args:
            photo: path of an image.
            camera: what is known of the camera beyond the photo's metadata.
            heading: where it looked; only a model that `wants_north` looks at it here.

        Raises:
            PhotoError, CameraError: the photo cannot be used.
        """
        heading_deg = None if heading is None else heading.heading_deg
        return self._encoded(str(photo), lambda: read_with_camera(photo, camera), heading_deg)

    def read_posed(self, pose: PhotoPose) -> EncodedPhoto:
        """Reads a photo of a table of poses, with what the table tells of its camera.

        Its heading is told as well, for models that were trained on panoramas turned to north.

        Raises:
            PhotoError, CameraError: the photo cannot be used.
        """
        return self._encoded(str(pose.photo), pose.read, pose.told_heading_deg)

    def _encoded(
        self, photo: str, read: Callable[[], ReadPhoto], heading_deg: float | None
    ) -> EncodedPhoto:
        started = time.perf_counter()
        pixels, camera, metadata = read()
        code = self.model.encode_photo(pixels, camera, heading_deg=heading_deg)
        return EncodedPhoto(photo, camera, metadata, code, time.perf_counter() - started)

    def answer(
        self, photo: EncodedPhoto, *, near: Near | None = None, heading: Heading | None = None
    ) -> Localization:
        """Answers for an encoded photo.

        Raises:
            GalleryError: no chip lies near the prior.
        """
        started = time.perf_counter()
        found = self.match(photo.code, near=near, heading=heading)
        judged = self.judge(found)
        posterior = judged.posterior
        pose = posterior.places.pose(posterior.mode)
        crs, x_m, y_m = self._in_raster_crs(pose, int(found.chips[posterior.mode.chip]))
        return Localization(
            photo=photo.photo,
            pose=pose,
            posterior=posterior,
            chips=found.chips,
            chip_evidence=found.chip_evidence,
            confidence=judged.confidence,
            is_calibrated=self.model.calibration.is_fitted_to(found.evidence),
            camera=photo.camera,
            metadata=photo.metadata,
            features=judged.features,
            crs=crs,
            x_m=x_m,
            y_m=y_m,
            seconds=photo.seconds + time.perf_counter() - started,
        )

    def match(
        self, code: PhotoCode, *, near: Near | None = None, heading: Heading | None = None
    ) -> Match:
        """Evidence of an encoded photo over the gallery's candidates.

        Raises:
            GalleryError: no chip lies near the prior.
        """
        possible = self._possible(near)
        chips = self.candidates(code, possible)
        table = self.gallery.chips
        places = Places.around(table.lat[chips], table.lon[chips], chip_m=self.model.chip_m)
        prior = Prior(places, near, heading)
        evidence = self.model.match(
            code,
            self.features(chips),
            has_imagery=self._has_imagery[chips],
            log_prior=prior.on_coarse_cells,
        )
        share = len(chips) / len(possible)
        return Match(chips, places, prior, replace(evidence, matched_share=share))

    def judge(self, found: Match) -> Judged:
        """The calibrated posterior of some evidence, with its confidence."""
        return judge(found.evidence, found.prior, self.model.calibration)

    def candidates(self, code: PhotoCode, chips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of some chips the photo is matched with, in order: all, or a shortlist."""
        is_plan = isinstance(code, GroundCode) and bool(code.is_plan.all())
        if len(chips) > (MAX_EXHAUSTIVE_FROM_ABOVE if is_plan else MAX_EXHAUSTIVE_CHIPS):
            length = NUM_SHORTLIST_FROM_ABOVE if is_plan else NUM_SHORTLIST
            chips = self._shortlist(code, chips, length)
        return np.sort(chips)

    def _possible(self, near: Near | None) -> NDArray[np.int64]:
        """All chips, or those that a prior leaves."""
        if near is None:
            return np.arange(len(self.gallery))
        reach = near.reach_m
        chips = self.gallery.chips_within(lat=near.lat, lon=near.lon, radius_m=reach)
        if len(chips) == 0:
            raise GalleryError(
                f"{self.gallery.path} has no chip within {reach:.0f} m of "
                f"{near.lat}, {near.lon}; expected a position inside the imagery: check "
                "--near LAT,LON,RADIUS_M"
            )
        return chips

    def _shortlist(
        self, code: PhotoCode, chips: NDArray[np.int64], length: int
    ) -> NDArray[np.int64]:
        """The `length` most promising chips, at a glance or by descriptor."""
        if len(chips) <= MAX_GLANCED_CHIPS:
            scores = self.model.glance(code, self.features(chips), self._has_imagery[chips])
            if scores is not None:
                return chips[np.argsort(-scores, kind="stable")[:length]]
        found, _ = self.retrieve(
            code, length, chips=None if len(chips) == len(self.gallery) else chips
        )
        return found[found >= 0]

    def retrieve(
        self, code: PhotoCode, num_chips: int, *, chips: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        """The chips most similar to a photo by descriptor, best first, and their similarity."""
        queries = code.descriptor.float().mean(0, keepdim=True).cpu().numpy()
        found, similarity = self.gallery.index.search(queries, num_chips, chips=chips)
        return found[0], similarity[0]

    def features(self, chips: NDArray[np.int64]) -> ChipFeatures:
        """What the gallery holds of some chips."""
        gallery, device = self.gallery, self.model.device
        return ChipFeatures(
            read_descriptors=lambda: gallery.descriptors[chips],
            read_coarse=lambda: self._coarse_maps(chips),
            read_fine=lambda used: torch.from_numpy(gallery.fine[chips[used]]).to(device),
        )

    def _coarse_maps(self, chips: NDArray[np.int64]) -> torch.Tensor:
        """Coarse maps of chips: of all but large galleries all are kept, 32 KiB a chip."""
        if len(self.gallery) <= MAX_GLANCED_CHIPS:
            return self._all_coarse_maps[torch.from_numpy(chips)]
        maps = torch.from_numpy(self.gallery.coarse[chips])
        return maps.to(self.model.device, fast_dtype(self.model.device))

    @cached_property
    def _all_coarse_maps(self) -> torch.Tensor:
        maps = torch.from_numpy(np.asarray(self.gallery.coarse[:]))
        return maps.to(self.model.device, fast_dtype(self.model.device))

    @cached_property
    def _has_imagery(self) -> NDArray[np.bool_]:
        """`(R, 16, 16)` coarse cells of all chips that hold imagery."""
        return self.model.cells_with_imagery(self.features(np.arange(len(self.gallery))))

    def _in_raster_crs(self, pose: Pose, chip: int) -> tuple[str, float, float]:
        crs = self.gallery.rasters[int(self.gallery.chips.rasters[chip])].crs
        frame = LocalFrame(lat=pose.lat, lon=pose.lon)
        x_m, y_m = frame.crs_from_local(crs)(0.0, 0.0)
        return crs_name(crs), float(x_m), float(y_m)


@lru_cache(maxsize=64)
def crs_name(wkt: str) -> str:
    """`EPSG:32633` and the like where the registry knows the CRS, else its WKT."""
    authority = pyproj.CRS.from_wkt(wkt).to_authority(min_confidence=90)
    return wkt if authority is None else ":".join(authority)


@dataclass(frozen=True)
class Judged:
    """A calibrated posterior, what its confidence rests on, and the confidence.

    That is the probability that the answer lies within 5 m of the truth, and so in the gallery.
    """

    posterior: Posterior
    features: tuple[float, ...]
    confidence: float


def weights_named_by(gallery: str | Path | Gallery) -> str:
    """The shipped weights that a gallery says it was made with; `ground` where it names others."""
    manifest = gallery.manifest if isinstance(gallery, Gallery) else Manifest.read(Path(gallery))
    name = manifest.header.model_name
    return name if name in shipped_names() else "ground"


def judge(evidence: Evidence, prior: Prior, calibration: Calibration) -> Judged:
    """What some evidence says with a prior on its chips."""
    view = calibration.view(evidence)
    posterior = posterior_of(evidence, prior.places, calibration)
    if prior.says_something:
        posterior = posterior.times(prior.log_position, prior.log_heading)
    if prior.heading is not None:
        # What is told is as sure as it is told to be.
        posterior = replace(posterior, heading_scale=1.0)
    features = confidence_features(evidence, posterior, prior.on_coarse_cells)
    confidence = logistic(view.confidence, features)
    # Who is within 5 m is in the gallery: the larger of the two models holds.
    inside = max(logistic(view.in_gallery, features), confidence)
    return Judged(posterior.with_outside(1.0 - inside), features, confidence)


def posterior_of(evidence: Evidence, places: Places, calibration: Calibration) -> Posterior:
    """Calibrated posterior of a photo's evidence."""
    e, shape = evidence, calibration.view(evidence).shape
    posterior = Posterior.from_logits(
        places,
        e.coarse,
        Refinement(e.chip, e.heading, e.row, e.column, e.fine, e.side_share),
        coarse_temperature=shape.coarse_temperature,
        fine_temperature=shape.fine_temperature,
        unrefined_offset=shape.unrefined_offset,
        floor=shape.floor,
    )
    return replace(posterior, says_heading=e.says_heading, heading_scale=shape.heading_scale)


def confidence_features(
    evidence: Evidence, posterior: Posterior, log_prior: NDArray[np.float32] | None
) -> tuple[float, ...]:
    """What tells a right answer from a wrong one, all relative: no photo's logits have a zero.

    Returns:
        `NUM_FEATURES` numbers: log odds of the mass within 5 m of the answer; how far its coarse
        evidence stands out of the mean over the places that the prior leaves; how much more than
        other modes the fine level confirms it; and the share of the horizon that the photo sees.
    """
    mode = posterior.mode
    mass = min(max(posterior.prob_within(CONFIDENT_WITHIN_M, mode.x_m, mode.y_m), 1e-6), 1 - 1e-6)
    e = evidence
    coarse = e.coarse[e.chip, e.heading, e.row, e.column].astype(np.float64)
    added = logsumexp(e.fine, axis=(1, 2, 3)) - coarse
    best = int(posterior.refinement.log_prob.reshape(len(added), -1).max(1).argmax())
    if log_prior is None:
        mean = logsumexp(e.coarse) - np.log(np.isfinite(e.coarse).sum())
    else:
        is_possible = np.isfinite(e.coarse)
        mean = logsumexp(e.coarse + log_prior) - logsumexp(log_prior[is_possible])
    mean += np.log(e.matched_share)  # where a shortlist was matched, of all that could have been
    return (
        float(np.log(mass / (1 - mass))),
        float(coarse[best] - mean),
        float(added[best] - np.median(added)),
        evidence.visible_share,
    )


def logistic(weights: Sequence[float], features: Sequence[float]) -> float:
    """Logistic model: weights are (constant, one per feature)."""
    total = weights[0] + sum(w * f for w, f in zip(weights[1:], features, strict=True))
    return float(1 / (1 + np.exp(-np.clip(total, -60, 60))))
