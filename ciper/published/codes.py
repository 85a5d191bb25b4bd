"""Codes of the chips that published protocols cut, and of their galleries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ciper.asking import Progress, batches, one_line, without_gaps
from ciper.data.chips import ImageReader
from ciper.data.protocol import AerialImage, Cut
from ciper.errors import DatasetError
from ciper.gallery.search import DescriptorIndex
from ciper.gallery.shards import AerialCodes
from ciper.model.model import Model

Bool = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CHIPS_AT_ONCE = 16
NUM_KEPT = 256
# Whole galleries are searched exactly: 90,618 images of 36 places each.
EXACT_LIMIT = 10_000_000
# A reference answers for its middle, up to this share of its side from its centre along both axes:
# the rest is in other references' middles. The positives of VIGOR reach to 0.286 (Seattle).
REACH_SHARE = 0.3

Chip: TypeAlias = tuple[AerialImage, Cut]


def seen_cut(model: Model, cut: Cut) -> Cut:
    """The chip that a model sees in place of a published one: its own side if it is metric."""
    return replace(cut, side_m=model.chip_m) if model.is_metric else cut


def whole(image: AerialImage) -> Cut:
    """An aerial image as a chip."""
    return Cut(x_m=0.0, y_m=0.0, up_deg=0.0, side_m=image.side_m)


def cells_within(num_cells: int, *, half_m: float, reach_m: float) -> Bool:
    """Which of `num_cells` x `num_cells` cells of a square reach into a smaller one, `(n, n)`.

    Args:
        num_cells: along a side.
        half_m: from the centre to the edge of the square.
        reach_m: likewise of the smaller square, about the same centre.
    """
    width_m = 2.0 * half_m / num_cells
    middle_m = (np.arange(num_cells) + 0.5) * width_m - half_m
    is_within = np.abs(middle_m) - width_m / 2 < reach_m
    return np.asarray(is_within[:, None] & is_within)


class ChipCoder:
    """Encodes chips and keeps the last codes.

    A model that sees pixels gets a chip as it was published, in its own resolution: it is resized
    by the network, as in the training. A metric one gets its own chip about the same centre.

    Args:
        model: that encodes.
        num_kept: codes, of 0.2 to 0.8 MB.
    """

    def __init__(self, model: Model, num_kept: int = NUM_KEPT) -> None:
        self.model = model
        self.reader = ImageReader()
        self._num_kept = num_kept
        self._kept: OrderedDict[Chip, AerialCodes] = OrderedDict()

    def codes(self, chips: Sequence[Chip]) -> list[AerialCodes | str]:
        """As `encode`, of chips that may have been encoded before."""
        asked = [(image, seen_cut(self.model, cut)) for image, cut in chips]
        missing = [chip for chip in dict.fromkeys(asked) if chip not in self._kept]
        fresh = dict(zip(missing, self._encode(missing), strict=True))
        found = [fresh[chip] if chip in fresh else self._kept[chip] for chip in asked]
        for chip, code in zip(asked, found, strict=True):
            if not isinstance(code, str):
                self._kept[chip] = code
                self._kept.move_to_end(chip)
        while len(self._kept) > self._num_kept:
            self._kept.popitem(last=False)
        return found

    def encode(self, chips: Sequence[Chip]) -> list[AerialCodes | str]:
        """Codes of one chip each, or what is wrong with its image."""
        return self._encode([(image, seen_cut(self.model, cut)) for image, cut in chips])

    def _encode(self, chips: Sequence[Chip]) -> list[AerialCodes | str]:
        found: list[AerialCodes | str] = [""] * len(chips)
        readable: dict[int, list[tuple[int, NDArray[np.uint8], Bool]]] = {}
        for i, (image, cut) in enumerate(chips):
            try:
                rgb, is_valid = self.reader.cut(image, cut, self._size_px(image, cut))
            except DatasetError as error:
                found[i] = one_line(error)
                continue
            if is_valid.any():
                readable.setdefault(len(rgb), []).append((i, rgb, is_valid))
            else:
                found[i] = f"aerial image {image.path}: the chip lies outside of it"
        for group in readable.values():
            for part in batches(len(group), CHIPS_AT_ONCE):
                numbers, pixels, valid = zip(*(group[k] for k in part), strict=True)
                codes = self.model.encode(np.stack(pixels), np.stack(valid))
                for k, number in enumerate(numbers):
                    found[number] = codes[k : k + 1]
        return found

    def _size_px(self, image: AerialImage, cut: Cut) -> int:
        if self.model.is_metric:
            return self.model.chip_px
        return max(1, round(cut.side_m / image.gsd))


@dataclass(frozen=True, eq=False)
class References:
    """A published gallery.

    Attributes:
        images: the references.
        descriptors: (R, L, D) of their places, NaN of what cannot be read.
        is_read: (R,) which files could be read.
        problems: what is wrong with the others, one line each.
    """

    images: tuple[AerialImage, ...]
    descriptors: NDArray[np.float16]
    is_read: NDArray[np.bool_]
    problems: tuple[str, ...]

    @classmethod
    def encode(
        cls, coder: ChipCoder, images: tuple[AerialImage, ...], progress: Progress
    ) -> References:
        """Encode all references; of a metric model only the places in each one's middle count.

        Raises:
            DatasetError: not one can be read.
        """
        kept: list[NDArray[np.float16] | None] = []
        problems = []
        for numbers in batches(len(images), CHIPS_AT_ONCE):
            part = [images[i] for i in numbers]
            codes = coder.encode([(image, whole(image)) for image in part])
            for image, code in zip(part, codes, strict=True):
                if isinstance(code, str):
                    problems.append(code)
                kept.append(None if isinstance(code, str) else _places(coder.model, image, code))
            progress("references", numbers.stop, len(images))
        if len(problems) == len(images):
            raise DatasetError(
                f"none of {len(images)} references can be read; expected the imagery of the data "
                f"set: copy it again. The first: {problems[0]}"
            )
        is_read = np.array([places is not None for places in kept])
        return cls(images, _stacked(kept), is_read, tuple(problems))

    @cached_property
    def index(self) -> DescriptorIndex:
        """To search."""
        return DescriptorIndex.build(self.descriptors, exact_limit=EXACT_LIMIT)

    def most_similar(self, descriptors: Floats, num: int) -> Ints:
        """(N, `num`) the most similar references, best first; -1 where there are fewer."""
        found, _ = self.index.search(descriptors, num)
        return found


def _places(model: Model, image: AerialImage, code: AerialCodes) -> NDArray[np.float16]:
    """`(L, D)` descriptors of the places that a reference answers for."""
    descriptors = code.descriptors[0]
    if model.is_metric:
        side = round(len(descriptors) ** 0.5)
        is_within = cells_within(side, half_m=model.chip_m / 4, reach_m=REACH_SHARE * image.side_m)
        descriptors = descriptors[is_within.ravel()]
    return np.asarray(without_gaps(descriptors[None])[0], np.float16)


def _stacked(kept: Sequence[NDArray[np.float16] | None]) -> NDArray[np.float16]:
    """`(R, L, D)`: a reference of fewer places than others repeats its first, others are NaN."""
    there = [places for places in kept if places is not None]
    num_places, dim = max(len(places) for places in there), there[0].shape[1]
    stacked = np.full((len(kept), num_places, dim), np.nan, np.float16)
    for row, places in zip(stacked, kept, strict=True):
        if places is not None:
            row[:] = places[0]
            row[: len(places)] = places
    return stacked
