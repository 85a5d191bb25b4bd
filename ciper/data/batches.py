"""What training asks of pairs wherever they come from, and what all of them do to make batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ciper.data.neighbours import Int
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


def stacked(items: Sequence[Sequence[NDArray[Any]]]) -> Batch:
    """A batch of items that hold the arrays of `Batch` in its order, without first dimension.

    NumPy copies in the thread that calls; torch would wake threads that training is using.
    """
    return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*items, strict=True)))
