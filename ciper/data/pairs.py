"""Training pairs out of a data set's samples: cut afresh at every step, damaged files skipped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.data.batches import Drawing, RandomPairs
from ciper.data.neighbours import Int
from ciper.data.pair_views import Pair, PairViews
from ciper.data.protocol import Protocol, Sample
from ciper.errors import CameraError, DatasetError, PhotoError
from ciper.geo import LocalFrame

Float = NDArray[np.float64]

# Of the samples; one is always survived.
MAX_DAMAGED_SHARE = 0.001
# Cells of the holdout: 1.1 km from south to north, 0.8 km from west to east at 45 degrees.
CELL_DEG = 0.01
# Chips of 128 m about cameras that lie farther apart share less than half of their ground.
MARGIN_M = 100.0
METRES_PER_DEG = 111_320.0


@dataclass(frozen=True, eq=False)
class Places:
    """Where samples lie, so that those who see the same ground are known.

    Attributes:
        city: `(N,)` number of the city. KITTI's drives are one, and so are Ford's: they cross.
        image_m: `(N, 2)` centres of the aerial images, east and north in that city.
        camera_m: `(N, 2)` cameras.
    """

    city: Int
    image_m: Float
    camera_m: Float

    @classmethod
    def of(cls, samples: Sequence[Sample], dataset: str) -> Places:
        """The places of a data set's samples."""
        names = [s.name.partition("/")[0] if dataset == "vigor" else dataset for s in samples]
        _, city = np.unique(names, return_inverse=True)
        centres = np.array([(s.image.lat, s.image.lon) for s in samples])
        image_m = np.empty((len(samples), 2))
        for number in range(city.max() + 1):
            members = city == number
            lat, lon = centres[members].mean(axis=0)
            frame = LocalFrame(lat=float(lat), lon=float(lon))
            image_m[members] = np.column_stack(
                frame.to_local(lat=centres[members, 0], lon=centres[members, 1])
            )
        return cls(city, image_m, image_m + np.array([(s.x_m, s.y_m) for s in samples]))


class Damage:
    """The samples that were skipped because their files are damaged; shared by threads.

    Args:
        num_samples: of all that may be drawn.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.reasons: dict[str, str] = {}
        self._counting = threading.Lock()

    @property
    def limit(self) -> int:
        """How many are survived."""
        return max(1, int(MAX_DAMAGED_SHARE * self.num_samples))

    def add(self, name: str, reason: Exception) -> None:
        """Counts a sample, once.

        Raises:
            DatasetError: there are too many.
        """
        with self._counting:
            self.reasons.setdefault(name, str(reason))
            if len(self.reasons) > self.limit:
                first = "; ".join(list(self.reasons.values())[:3])
                raise DatasetError(
                    f"{len(self.reasons)} of {self.num_samples} samples cannot be read; expected "
                    f"at most {self.limit}. The first: {first}. Mend these files; ciper data check "
                    "finds the others"
                ) from reason


class RealPairs(RandomPairs):
    """Random training pairs out of a data set's samples.

    A sample whose files are damaged is replaced by the next one in the data set's order.

    Args:
        samples: of one protocol.
        places: of the samples.
        views: makes pairs.
        damage: where damaged samples are counted.
        drawing: how pairs are drawn.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        places: Places,
        views: PairViews,
        damage: Damage,
        drawing: Drawing,
    ) -> None:
        self.samples, self.places, self.views, self.damage = samples, places, views, damage
        super().__init__(places.city, places.camera_m, drawing, views.augment.narrow_share)

    def _item(
        self, photo: int, rng: np.random.Generator, narrow_share: float
    ) -> tuple[NDArray[Any], ...]:
        """A pair of the photo, or of the first one behind it whose files can be read.

        Raises:
            DatasetError: too many files are damaged.
        """
        num_samples, start = len(self.samples), rng.bit_generator.state
        for index in ((photo + ahead) % num_samples for ahead in range(num_samples)):
            sample = self.samples[index]
            if sample.name in self.damage.reasons:
                continue
            rng.bit_generator.state = start
            try:
                pair = self.views.make(sample, rng, narrow_share)
            except (PhotoError, CameraError) as error:
                self.damage.add(sample.name, error)
            else:
                return self._labelled(pair, index)
        first = next(iter(self.damage.reasons.values()))
        raise DatasetError(
            f"none of {num_samples} samples can be read; expected images that can. The first: "
            f"{first}"
        )

    def _labelled(self, pair: Pair, index: int) -> tuple[NDArray[Any], ...]:
        """The pair's part of every tensor of `Batch`, in its order."""
        places = self.places
        return (
            pair.canvas,
            pair.is_visible,
            pair.chip,
            pair.is_valid,
            pair.pose.astype(np.float32),
            places.city[index],
            (places.image_m[index] + pair.centre_m).astype(np.float32),
            places.camera_m[index].astype(np.float32),
        )


# ---------------------------------------------------------------------------------------- holdout


@dataclass(frozen=True)
class Holdout:
    """Samples to train on and samples to validate on, far from each other."""

    training: tuple[Sample, ...]
    validation: tuple[Sample, ...]


def hold_out(protocol: Protocol, share: float, seed: int) -> Holdout:
    """Keeps a share of the ground for validation, cell by cell of latitude and longitude.

    Whether a cell is kept depends on the seed and its coordinates alone, not on what else is in
    the data set. Samples that lie outside of a kept cell, but within `MARGIN_M` of it, are neither
    trained nor validated on.

    Args:
        protocol: training samples.
        share: of the cells that are kept; 0 keeps none.
        seed: of the choice.
    """
    samples = protocol.samples
    is_training, is_validation = held_apart(_positions(samples), share, seed)
    return Holdout(
        tuple(s for s, taken in zip(samples, is_training, strict=True) if taken),
        tuple(s for s, taken in zip(samples, is_validation, strict=True) if taken),
    )


def held_apart(
    geographic: Float, share: float, seed: int, *, margin_m: float = MARGIN_M
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of some places to train and which to validate on, as `hold_out` does.

    Args:
        geographic: `(N, 2)` latitudes and longitudes.
        share: of the cells that are kept for validation.
        seed: of the choice.
        margin_m: about kept cells, where there is neither.

    Returns:
        `(N,)` to train on, `(N,)` to validate on.
    """
    if share == 0:
        return np.ones(len(geographic), np.bool_), np.zeros(len(geographic), np.bool_)
    margin = np.full_like(geographic, margin_m / METRES_PER_DEG)
    margin[:, 1] /= np.cos(np.deg2rad(geographic[:, 0]))
    steps = [(north, east) for north in (-1, 0, 1) for east in (-1, 0, 1)]
    is_near = np.any([_is_kept(geographic + s * margin, share, seed) for s in steps], axis=0)
    return ~is_near, _is_kept(geographic, share, seed)


def _positions(samples: Sequence[Sample]) -> Float:
    """Latitudes and longitudes `(N, 2)` of the cameras, right to a metre."""
    centre = np.array([(s.image.lat, s.image.lon) for s in samples])
    offset = np.array([(s.y_m, s.x_m) for s in samples]) / METRES_PER_DEG
    offset[:, 1] /= np.cos(np.deg2rad(centre[:, 0]))
    return np.asarray(centre + offset)


def _is_kept(position: Float, share: float, seed: int) -> NDArray[np.bool_]:
    """Whether positions `(N, 2)` lie in cells that are kept for validation."""
    cells, index = np.unique(
        np.floor(position / CELL_DEG).astype(np.int64), axis=0, return_inverse=True
    )
    drawn = np.array([_uniform(f"{seed} {row} {column}") for row, column in cells.tolist()])
    return np.asarray((drawn < share)[index.ravel()])


def _uniform(name: str) -> float:
    """A number in [0, 1), uniform over names."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
