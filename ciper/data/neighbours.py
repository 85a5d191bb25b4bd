"""Which photos make a batch: all of them in turn, and groups whose chips look alike.

A batch of photos from anywhere teaches a network to tell quarters from each other. What it will
be asked is to tell a street from the next one: a share of the batch is drawn in groups from one
neighbourhood, and from photos whose chips the network confuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ciper.errors import ConfigError

GROUP_SIZE = 4
# Chips nearer than that may hold the same camera; farther ones are of another quarter.
NEIGHBOUR_M = (60.0, 250.0)

Int = NDArray[np.int64]


class PhotoOrder:
    """The photos of every step, a function of (seed, step) and of the mined table alone.

    Args:
        city: `(N,)` the city of each photo.
        position_m: `(N, 2)` where it was taken in that city.
        seed: of the order.
        neighbour_share: share of a batch that are groups of `GROUP_SIZE`.
    """

    def __init__(
        self, city: Int, position_m: NDArray[np.float64], seed: int, neighbour_share: float = 0.0
    ) -> None:
        self.city, self.position_m = city, position_m
        self.seed, self.neighbour_share = seed, neighbour_share

    def photos(self, step: int, size: int, mined: Int | None = None) -> Int:
        """The photos `(size,)` of a step.

        The photos come in turn, in a new order every epoch; the last ones, which do not fill a
        batch, are left out of it. A group is the next photo of that order and neighbours of it.
        With a mined table every second group is a row of it, in place of the photo whose turn it
        is.

        Args:
            step: from 0.
            size: of the batch.
            mined: `(M, GROUP_SIZE)` photos that are mistaken for each other.

        Raises:
            ConfigError: a batch is larger than the number of photos.
        """
        num_photos = len(self.city)
        if size > num_photos:
            raise ConfigError(
                f"train.batch_size is {size}, but there are {num_photos} photos to train on; "
                "expected at most as many: lower it, or add some"
            )
        num_groups = round(self.neighbour_share * size) // GROUP_SIZE
        num_in_turn = size - num_groups * (GROUP_SIZE - 1)
        epoch, start = divmod(step * num_in_turn, num_photos // num_in_turn * num_in_turn)
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(num_photos)
        in_turn = order[start : start + num_in_turn]
        groups = [
            self._group(photo, [self.seed, 4, step, index], mined if index % 2 else None)
            for index, photo in enumerate(in_turn[:num_groups])
        ]
        return np.concatenate([*groups, in_turn[num_groups:]])

    def _group(self, photo: np.int64, entropy: Sequence[int], mined: Int | None) -> Int:
        """A row of the mined table, else the photo and neighbours of it."""
        rng = np.random.default_rng(entropy)
        if mined is not None and len(mined):
            return np.asarray(mined[rng.integers(len(mined))])
        neighbours = self.neighbours(photo)
        if len(neighbours) < GROUP_SIZE - 1:
            # A lonely photo: any others do.
            neighbours = np.delete(np.arange(len(self.city)), photo)
        chosen = rng.choice(neighbours, GROUP_SIZE - 1, replace=len(neighbours) < GROUP_SIZE - 1)
        return np.array([photo, *chosen])

    def neighbours(self, photo: np.int64 | int) -> Int:
        """The photos of the same city at a distance within `NEIGHBOUR_M`."""
        offset = self.position_m - self.position_m[photo]
        distance = np.hypot(offset[:, 0], offset[:, 1])
        is_near = (distance >= NEIGHBOUR_M[0]) & (distance <= NEIGHBOUR_M[1])
        return np.flatnonzero(is_near & (self.city == self.city[photo]))
