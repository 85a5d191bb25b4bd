"""Local features: SIFT, nearest neighbours, votes for a pose, RANSAC.

Lowe's pipeline (2004) with today's habits: descriptors are compared by the Hellinger kernel
(Arandjelovic and Zisserman 2012), the metric scale of both images is known, and matches must agree
on one pose before RANSAC fits a similarity to them. Chips are matched exactly and one by one, or
all at once in an approximate index. There the ratio test compares with the tenth neighbour: chips
overlap, so that the nearest ones may be the same feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ciper.classical import (
    ClassicalAnswer,
    check_gallery,
    check_plan,
    in_threads,
    not_prepared,
    opencv,
)
from ciper.errors import ConfigError
from ciper.geo import wrap_deg

Floats = NDArray[np.float32]

# Fewer inliers than this agree by chance: two always lie on a similarity.
_MIN_INLIERS = 3
# Single features tell scale and heading roughly; these are as far as they may be off.
_FEATURE_SCALE_CHANGE = 1.5
_VOTE_RADIUS_M, _VOTE_RADIUS_RAD = 12.0, 0.3
_MARGIN_PX = 4
# Of FLANN: trees, leaves that are looked at, neighbours, the best chips by matches that are fitted.
_NUM_TREES, _NUM_CHECKS, _NUM_NEIGHBOURS, _NUM_FITTED = 4, 128, 10, 100


@dataclass(frozen=True)
class SiftConfig:
    """Settings of SIFT matching.

    Attributes:
        contrast_threshold: OpenCV's; its default of 0.04 leaves few features on roofs and lawns.
        edge_threshold: OpenCV's; its default is 10.
        ratio: of the nearest to the second nearest distance, below which a match counts.
        max_scale_change: the similarity may enlarge or shrink by this much: altitudes are known.
        search: "exact" matches chip by chip, "flann" in one index (FLANN's randomised trees) of all
            chips: some twenty times faster in a gallery of 250 chips, with few places less found.
        within_m: how far an inlier may lie from where the similarity puts it.
        num_threads: that share the chips, and of OpenCV.
    """

    contrast_threshold: float = 0.01
    edge_threshold: float = 20.0
    ratio: float = 0.9
    max_scale_change: float = 1.25
    search: Literal["exact", "flann"] = "exact"
    within_m: float = 2.0
    num_threads: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.ratio <= 1 and self.max_scale_change >= 1 and self.within_m > 0):
            raise ConfigError(
                f"ratio {self.ratio}, max_scale_change {self.max_scale_change}, within_m "
                f"{self.within_m}; expected a ratio in (0, 1], a change of 1 or more, metres above "
                "0"
            )
        if self.search not in ("exact", "flann"):
            raise ConfigError(f"search {self.search!r}; expected 'exact' or 'flann'")
        if self.num_threads < 1:
            raise ConfigError(f"num_threads {self.num_threads}; expected 1 or more")


@dataclass(frozen=True)
class _Features:
    """SIFT features of one image.

    Attributes:
        place: pixels right + i pixels down of the image's centre, (n,).
        size_px: diameters, (n,).
        angle_rad: clockwise from the image's right, (n,).
        descriptors: of unit length, (n, 128).
    """

    place: NDArray[np.complex64]
    size_px: Floats
    angle_rad: Floats
    descriptors: Floats

    def __len__(self) -> int:
        return len(self.size_px)

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> _Features:
        return _Features(
            self.place[index],
            self.size_px[index],
            self.angle_rad[index],
            self.descriptors[index],
        )


@dataclass(frozen=True)
class _Fit:
    """A photo's pose on one chip: the camera's foot in metres from the chip's centre."""

    num_inliers: int = 0
    x_m: float = math.nan
    y_m: float = math.nan
    heading_deg: float = math.nan


class _Index:
    """The features of all chips in randomised trees."""

    def __init__(self, cv2: ModuleType, chips: list[_Features]) -> None:
        """Build the trees; they are the same every time."""
        self._owner = np.repeat(np.arange(len(chips)), [len(chip) for chip in chips])
        self._first = np.cumsum([0, *(len(chip) for chip in chips)])
        self._trees: Any = None
        # FLANN's trees split at random features.
        cv2.setRNGSeed(7)
        if len(self._owner) >= _NUM_NEIGHBOURS:
            kd_tree = 1
            self._trees = cv2.FlannBasedMatcher(
                {"algorithm": kd_tree, "trees": _NUM_TREES}, {"checks": _NUM_CHECKS}
            )
            self._trees.add([np.concatenate([chip.descriptors for chip in chips])])
            self._trees.train()

    def matches(
        self, photo: _Features, ratio: float
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """{chip: (photo's features, chip's features)} of the chips with most matches."""
        if self._trees is None or len(photo) == 0:
            return {}
        found = self._trees.knnMatch(photo.descriptors, k=_NUM_NEIGHBOURS)
        index = np.array([[match.trainIdx for match in row] for row in found], np.int64)
        distance = np.array([[match.distance for match in row] for row in found])
        ours, rank = np.nonzero(distance[:, :-1] < ratio * distance[:, -1:])
        theirs = index[ours, rank]
        chips, counts = np.unique(self._owner[theirs], return_counts=True)
        best = chips[np.argsort(-counts, kind="stable")[:_NUM_FITTED]]
        groups = {chip: np.flatnonzero(self._owner[theirs] == chip) for chip in best.tolist()}
        return {
            chip: (ours[group], theirs[group] - self._first[chip]) for chip, group in groups.items()
        }


class SiftMatching:
    """Finds plan views by their SIFT features; a chip's score is its number of inliers.

    A chip of 128 m at 0.5 m/px has 800 to 1,600 features, which take 0.4 to 0.8 MB of memory.
    """

    def __init__(self, config: SiftConfig | None = None) -> None:
        """Settings alone; see `prepare`."""
        self.config = config or SiftConfig()
        self._chips: list[_Features] = []
        self._index: _Index | None = None
        self._gsd = math.nan
        self._size_px: int | None = None

    def prepare(self, chips: NDArray[np.uint8], is_valid: NDArray[np.bool_], gsd: float) -> None:
        """Detect and describe the chips' features, see `ciper.classical.Method`.

        Raises:
            ConfigError: what is given is no gallery.
            DependencyError: OpenCV is not installed.
        """
        check_gallery(chips, is_valid, gsd)
        cv2 = opencv("SIFT", self.config.num_threads)
        self._chips = [
            self._features(cv2, chip, mask) for chip, mask in zip(chips, is_valid, strict=True)
        ]
        self._index = _Index(cv2, self._chips) if self.config.search == "flann" else None
        self._gsd, self._size_px = gsd, chips.shape[1]

    def locate(self, plan: NDArray[np.uint8], is_visible: NDArray[np.bool_]) -> ClassicalAnswer:
        """Search one photo, see `ciper.classical.Method`; scores are numbers of inliers.

        Raises:
            ConfigError: nothing was prepared, or the shapes do not fit.
            DependencyError: OpenCV is not installed.
        """
        if self._size_px is None:
            raise not_prepared()
        check_plan(plan, is_visible, self._size_px)
        cv2 = opencv("SIFT", self.config.num_threads)
        photo = self._features(cv2, plan, is_visible)
        known = self._index.matches(photo, self.config.ratio) if self._index else None

        def fit(chip: int) -> _Fit:
            theirs = self._chips[chip]
            if known is None:
                rows, nearest = self._nearest(photo, theirs)
            elif chip in known:
                rows, nearest = known[chip]
            else:
                return _Fit()
            return self._fit(cv2, photo[rows], theirs[nearest])

        fits = in_threads(fit, len(self._chips), self.config.num_threads)
        scores = np.array([fit.num_inliers for fit in fits], np.float64)
        if not scores.any():
            return ClassicalAnswer.nothing(len(fits))
        chip = int(scores.argmax())
        best = fits[chip]
        return ClassicalAnswer(
            chip, best.x_m, best.y_m, best.heading_deg, float(scores[chip]), scores
        )

    def _features(
        self, cv2: ModuleType, image: NDArray[np.uint8], is_valid: NDArray[np.bool_]
    ) -> _Features:
        detector = cv2.SIFT_create(
            contrastThreshold=self.config.contrast_threshold,
            edgeThreshold=self.config.edge_threshold,
        )
        # The border of what is shown is no feature of the ground.
        side = 2 * _MARGIN_PX + 1
        mask = cv2.erode(
            is_valid.astype(np.uint8) * 255,
            np.ones((side, side), np.uint8),
            borderType=cv2.BORDER_CONSTANT,
            borderValue=255,
        )
        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = detector.detectAndCompute(grey, mask)
        table = np.array(
            [(*point.pt, point.size, point.angle) for point in keypoints], np.float32
        ).reshape(-1, 4)
        if descriptors is None:
            descriptors = np.zeros((0, 128), np.float32)
        # OpenCV counts from the middle of the first pixel.
        middle = (image.shape[0] - 1) / 2
        return _Features(
            place=(table[:, 0] - middle + 1j * (table[:, 1] - middle)).astype(np.complex64),
            size_px=table[:, 2],
            angle_rad=np.deg2rad(table[:, 3]),
            descriptors=np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1)[:, None], 1e-6)),
        )

    def _fit(self, cv2: ModuleType, ours: _Features, theirs: _Features) -> _Fit:
        """The similarity that most matches agree on."""
        change = np.abs(np.log(theirs.size_px / ours.size_px))
        is_alike = change < math.log(_FEATURE_SCALE_CHANGE)
        ours, theirs = ours[is_alike], theirs[is_alike]
        agree = self._agreeing(ours, theirs)
        if np.count_nonzero(agree) < _MIN_INLIERS:
            return _Fit()
        matrix, is_inlier = cv2.estimateAffinePartial2D(
            _points(ours.place[agree]),
            _points(theirs.place[agree]),
            method=cv2.RANSAC,
            ransacReprojThreshold=self.config.within_m / self._gsd,
        )
        if matrix is None:
            return _Fit()
        # (a -b; b a) turns clockwise, because v points down; the photo's up then is the heading.
        scale, heading = math.hypot(matrix[0, 0], matrix[1, 0]), matrix[:2, 0]
        limit = self.config.max_scale_change
        num_inliers = int(is_inlier.sum())
        if num_inliers < _MIN_INLIERS or not 1 / limit <= scale <= limit:
            return _Fit()
        return _Fit(
            num_inliers,
            x_m=float(matrix[0, 2]) * self._gsd,
            y_m=-float(matrix[1, 2]) * self._gsd,
            heading_deg=float(wrap_deg(math.degrees(math.atan2(heading[1], heading[0])))),
        )

    def _nearest(
        self, photo: _Features, chip: _Features
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The photo's features that pass the ratio test, and their nearest ones on the chip."""
        if len(chip) < 2 or len(photo) == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        cosine = photo.descriptors @ chip.descriptors.T
        rows, nearest = np.arange(len(photo)), cosine.argmax(axis=1)
        first = cosine[rows, nearest]
        cosine[rows, nearest] = -1.0
        # Squared distances of unit vectors are 2 - 2 cos.
        kept = np.flatnonzero(1.0 - first < self.config.ratio**2 * (1.0 - cosine.max(axis=1)))
        return kept, nearest[kept]

    def _agreeing(self, ours: _Features, theirs: _Features) -> NDArray[np.bool_]:
        """The largest set of matches whose poses lie about that of one of them.

        A match alone tells the heading by its angles and then, as the scale is known, the place.
        """
        if len(ours) == 0:
            return np.zeros(0, np.bool_)
        turn = np.exp(1j * (theirs.angle_rad - ours.angle_rad))
        foot = theirs.place - turn * ours.place
        is_near = np.abs(foot[:, None] - foot) < _VOTE_RADIUS_M / self._gsd
        is_near &= (turn[:, None] * turn.conj()).real > math.cos(_VOTE_RADIUS_RAD)
        return np.asarray(is_near[is_near.sum(axis=1).argmax()])


def _points(place: NDArray[np.complex64]) -> Floats:
    """(n, 2) of right and down."""
    return np.column_stack([place.real, place.imag])
