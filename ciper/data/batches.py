"""What training asks of pairs wherever they come from, and what all of them do to make batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ciper.data.neighbours import Int, PhotoOrder
from ciper.data.sample import Batch
from ciper.errors import ConfigError


class Pairs(Protocol):
    """Random pairs: item i of step s is a function of (seed, s, i) and of the mined table.

    Attributes:
        mined: `(M, GROUP_SIZE)` photos that are mistaken for each other now, or None; batches that
            are made later draw groups from it, see `PhotoOrder.photos`.
    """

    mined: Int | None

    def pairs(
        self, photos: Int, number: tuple[int, int], *, narrow_share: float | None = None
    ) -> Batch:
        """Pairs of chosen photos `(B,)`, no part of the training's batches.

        `number` tells these pairs from others of the same photos; `narrow_share` of the panoramas
        become pinhole views, None for the configured share.
        """

    def sample(self, step: int, size: int) -> Int:
        """Up to `size` different photos, chosen by seed and step."""

    def batches(
        self,
        steps: range,
        size: int,
        narrow_shares: Sequence[float],
        *,
        num_threads: int = 1,
    ) -> Iterator[Batch]:
        """The batches of `steps`, made by threads while the ones before are used.

        `narrow_shares[step]` of a step's panoramas become pinhole views.
        """


@dataclass(frozen=True)
class Drawing:
    """How pairs are drawn.

    Attributes:
        seed: of the pairs.
        neighbour_share: share of each batch that are groups of neighbours, see `PhotoOrder`.
        part: (rank, size): of every batch this process makes the rank-th of `size` equal parts.
    """

    seed: int
    neighbour_share: float = 0.0
    part: tuple[int, int] = (0, 1)


class RandomPairs(ABC):
    """Random pairs of photos as `Pairs`; what a pair is made of is for the subclasses to say.

    Args:
        city: `(N,)` the city of each photo.
        position_m: `(N, 2)` where it was taken in that city.
        drawing: how pairs are drawn.
        narrow_share: of the panoramas that become pinhole views where nothing else is said.
    """

    def __init__(
        self,
        city: Int,
        position_m: NDArray[np.float64],
        drawing: Drawing,
        narrow_share: float = 0.0,
    ) -> None:
        self.seed, self.part = drawing.seed, drawing.part
        self.narrow_share = narrow_share
        self.mined: Int | None = None
        self.order = PhotoOrder(city, position_m, drawing.seed, drawing.neighbour_share)

    def batch(self, step: int, size: int, *, narrow_share: float | None = None) -> Batch:
        """This process's part of the batch of one step.

        Args:
            step: from 0.
            size: pairs of the whole batch.
            narrow_share: share of panoramas that become pinhole views; the configured one if None.

        Raises:
            ConfigError: there are fewer photos, or the batch cannot be shared out.
        """
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
        num_photos = len(self.order.city)
        rng = np.random.default_rng([self.seed, 6, step])
        return rng.choice(num_photos, min(size, num_photos), replace=False)

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
        share = self.narrow_share if narrow_share is None else narrow_share
        items = zip(photos, entropy, strict=True)
        return stacked([self._item(int(p), np.random.default_rng(e), share) for p, e in items])

    @abstractmethod
    def _item(
        self, photo: int, rng: np.random.Generator, narrow_share: float
    ) -> tuple[NDArray[Any], ...]:
        """A pair of one photo: its part of every array of `Batch`, in their order.

        Args:
            photo: whose pair.
            rng: of all that is random in it.
            narrow_share: of the panoramas that become pinhole views.
        """


def part_of_batch(size: int, part: tuple[int, int]) -> range:
    """The items of a batch that the rank-th of `size` equal processes makes, part = (rank, size).

    Raises:
        ConfigError: the batch cannot be cut into equal parts.
    """
    rank, num_parts = part
    if size % num_parts:
        raise ConfigError(
            f"train.batch_size is {size} for {num_parts} processes; expected a multiple of "
            f"{num_parts}"
        )
    return range(rank * size // num_parts, (rank + 1) * size // num_parts)


def made_ahead(
    make: Callable[[int], Batch], steps: Iterable[int], num_threads: int
) -> Iterator[Batch]:
    """The batches of `steps` in order; threads make the next ones while one is used."""
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Batch]] = deque()
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def stacked(items: Sequence[Sequence[Any]]) -> Batch:
    """A batch of items that hold the arrays of `Batch` in its order, without first dimension.

    NumPy copies in the thread that calls; torch would wake threads that training is using.
    """
    return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*items, strict=True)))
