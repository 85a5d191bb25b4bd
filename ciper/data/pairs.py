"""Training pairs out of a data set's samples: cut afresh at every step, damaged files skipped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ciper.data.batches import made_ahead, part_of_batch, stacked
from ciper.data.neighbours import Int, PhotoOrder
from ciper.data.pair_views import Pair, PairViews
from ciper.data.protocol import Protocol, Sample
from ciper.data.sample import Batch
from ciper.errors import CameraError, ConfigError, DatasetError, PhotoError
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


class RealPairs:
    """Random training pairs out of a data set's samples, as `batches.Pairs`.

    A sample whose files are damaged is replaced by the next one in the data set's order.

    Args:
        samples: of one protocol.
        places: of the samples.
        views: makes pairs.
        seed: of the pairs.
        damage: where damaged samples are counted.
        neighbour_share: share of each batch that are groups of neighbours, see `PhotoOrder`.
        part: (rank, size): of every batch this process makes the rank-th of `size` equal parts.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        places: Places,
        views: PairViews,
        seed: int,
        *,
        damage: Damage,
        neighbour_share: float = 0.0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.samples, self.places, self.views, self.seed = samples, places, views, seed
        self.damage, self.part = damage, part
        self.mined: Int | None = None
        self.order = PhotoOrder(places.city, places.camera_m, seed, neighbour_share)

    def batch(self, step: int, size: int, *, narrow_share: float | None = None) -> Batch:
        """This process's part of the batch of one step.

        Args:
            step: from 0.
            size: pairs of the whole batch.
            narrow_share: share of panoramas that become pinhole views; the configured one if None.

        Raises:
            ConfigError: there are fewer samples, or the batch cannot be shared out.
            DatasetError: too many files are damaged.
        """
        if size > len(self.samples):
            raise ConfigError(
                f"train.batch_size is {size}, but the data set holds {len(self.samples)} samples "
                "to train on; expected at most as many"
            )
        mine = part_of_batch(size, self.part)
        photos = self.order.photos(step, size, self.mined)[mine.start : mine.stop]
        return self._made(photos, [[self.seed, 3, step, i] for i in mine], narrow_share)

    def pairs(
        self, photos: Int, number: tuple[int, int], *, narrow_share: float | None = None
    ) -> Batch:
        """As `Pairs.pairs`."""
        entropy = [[self.seed, 5, *number, i] for i in range(len(photos))]
        return self._made(photos, entropy, narrow_share)

    def sample(self, step: int, size: int) -> Int:
        """As `Pairs.sample`."""
        rng = np.random.default_rng([self.seed, 6, step])
        return rng.choice(len(self.samples), min(size, len(self.samples)), replace=False)

    def batches(
        self,
        steps: range,
        size: int,
        narrow_shares: Sequence[float],
        *,
        num_threads: int = 1,
    ) -> Iterator[Batch]:
        """As `Pairs.batches`."""

        def make(step: int) -> Batch:
            return self.batch(step, size, narrow_share=narrow_shares[step])

        return made_ahead(make, steps, num_threads)

    def _made(
        self, photos: Int, entropy: Sequence[Sequence[int]], narrow_share: float | None
    ) -> Batch:
        share = self.views.augment.narrow_share if narrow_share is None else narrow_share
        return stacked([self._item(int(p), e, share) for p, e in zip(photos, entropy, strict=True)])

    def _item(
        self, photo: int, entropy: Sequence[int], narrow_share: float
    ) -> tuple[NDArray[Any], ...]:
        """A pair of the photo, or of the first one behind it whose files can be read."""
        num_samples = len(self.samples)
        for index in ((photo + ahead) % num_samples for ahead in range(num_samples)):
            sample = self.samples[index]
            if sample.name in self.damage.reasons:
                continue
            try:
                pair = self.views.make(sample, np.random.default_rng(entropy), narrow_share)
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
    if share == 0:
        return Holdout(samples, ())
    position = _positions(samples)
    margin = np.full_like(position, MARGIN_M / METRES_PER_DEG)
    margin[:, 1] /= np.cos(np.deg2rad(position[:, 0]))
    is_kept = _is_kept(position, share, seed)
    steps = [(north, east) for north in (-1, 0, 1) for east in (-1, 0, 1)]
    is_near = np.any([_is_kept(position + s * margin, share, seed) for s in steps], axis=0)
    return Holdout(
        tuple(s for s, near in zip(samples, is_near, strict=True) if not near),
        tuple(s for s, kept in zip(samples, is_kept, strict=True) if kept),
    )


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
