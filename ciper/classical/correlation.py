"""Parts of correlations: the common pixels of photos and chips, their features and spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Floats = NDArray[np.float32]
Complexes = NDArray[np.complex64]

# How far from a chip's centre a camera is looked for, as a part of its side: beyond its central
# half another chip answers; a little more lets a peak at the rim be a peak.
REACH = 0.28
# How far from the camera the photo is used, likewise: 72 m of 128. What lies farther away would
# meet the chip's other side, because discrete correlations are circular.
TEMPLATE_REACH = 0.5625
# Energies are summed in blocks of so many pixels.
BLOCK_PX = 4
# Less energy per pixel than this is no structure: a tenth of a grey level.
MIN_ENERGY = 0.01


def vertex(before: float, peak: float, after: float) -> float:
    """Where between -0.5 and 0.5 a parabola through three equidistant values has its maximum."""
    curvature = before - 2.0 * peak + after
    if curvature >= 0.0:
        return 0.0
    return float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5))


# -------------------------------------------------------------------------------- common pixels


@dataclass(frozen=True)
class Grid:
    """The common pixels of photo and chips.

    Attributes:
        full_px: side of a chip as given.
        size_px: side of a chip in the common pixels.
        period_px: side of the square in which they are correlated, a multiple of `BLOCK_PX`.
        reach_px: largest offset of the camera from the chip's centre.
        gsd: metres per common pixel.
    """

    full_px: int
    size_px: int
    period_px: int
    reach_px: int
    gsd: float

    @classmethod
    def of(cls, full_px: int, full_gsd: float, gsd: float) -> Grid:
        """Pixels of at most `gsd` metres for chips of `full_px` pixels of `full_gsd` metres."""
        side_m = full_px * full_gsd
        size_px = min(full_px, math.ceil(side_m / gsd - 1e-9))
        gsd = side_m / size_px
        reach_px = max(1, round(REACH * side_m / gsd))
        period = (0.5 + TEMPLATE_REACH) * side_m / gsd + reach_px
        blocks = scipy.fft.next_fast_len(math.ceil(period / BLOCK_PX), real=True)
        return cls(full_px, size_px, blocks * BLOCK_PX, reach_px, gsd)

    @property
    def num_lags(self) -> int:
        """Offsets along either axis."""
        return 2 * self.reach_px + 1

    @property
    def reach_blocks(self) -> int:
        """The largest offset in blocks, rounded up."""
        return -(-self.reach_px // BLOCK_PX)

    @cached_property
    def pixels_from_blocks(self) -> Floats:
        """Linear weights (num_lags, blocks) that bring sums in blocks to single pixels."""
        block = np.arange(-self.reach_blocks, self.reach_blocks + 1)
        pixel = np.arange(-self.reach_px, self.reach_px + 1)[:, None] / BLOCK_PX
        return np.asarray(np.maximum(1.0 - np.abs(pixel - block), 0.0), np.float32)

    def reduce(
        self, image: NDArray[np.uint8], is_valid: NDArray[np.bool_]
    ) -> tuple[Floats, Floats]:
        """Grey levels and mask (1 or 0) in the common pixels, averaged over valid pixels only."""
        weights = _averaging(self.full_px, self.size_px)
        mask = weights @ is_valid.astype(np.float32) @ weights.T
        grey = image.astype(np.float32).mean(axis=2) * is_valid
        grey = weights @ grey @ weights.T
        is_shown = mask > 0.5
        return np.where(is_shown, grey / np.maximum(mask, 0.5), 0), is_shown.astype(np.float32)

    def pad(self, images: Floats) -> Floats:
        """Images (..., size, size) in the middle of the period."""
        before = (self.period_px - self.size_px) // 2
        after = self.period_px - self.size_px - before
        return np.pad(images, [(0, 0)] * (images.ndim - 2) + [(before, after)] * 2)

    def turn(self, images: Floats, headings_deg: NDArray[np.float64]) -> Floats:
        """Plan views (C, size, size) as they lie on north-up chips, (n, C, period, period).

        At (x, y) metres from the camera lies what the plan shows at x right(h) + y forward(h).
        """
        middle = (self.period_px - self.size_px) // 2 + self.size_px / 2
        x = np.arange(self.period_px) + 0.5 - middle
        y = -x[:, None]
        turned = np.zeros((len(headings_deg), len(images), *[self.period_px] * 2), np.float32)
        for out, heading in zip(turned, np.deg2rad(headings_deg), strict=True):
            u = self.size_px / 2 + x * math.cos(heading) - y * math.sin(heading) - 0.5
            v = self.size_px / 2 - x * math.sin(heading) - y * math.cos(heading) - 0.5
            for channel, image in zip(out, images, strict=True):
                scipy.ndimage.map_coordinates(image, [v, u], output=channel, order=1)
        is_used = np.abs(x) <= TEMPLATE_REACH * self.size_px
        return np.asarray(turned * (is_used & is_used[:, None]))


def _averaging(num_in: int, num_out: int) -> Floats:
    """(num_out, num_in) weights by which wider pixels average those that they cover."""
    ratio = num_in / num_out
    low = np.arange(num_out)[:, None] * ratio
    pixel = np.arange(num_in)
    covered = np.minimum(low + ratio, pixel + 1) - np.maximum(low, pixel)
    return np.asarray(np.maximum(covered, 0.0) / ratio, np.float32)


# -------------------------------------------------------------------------------------- features


def doubled_gradients(grey: Floats) -> Complexes:
    """Gradients with their angle doubled and the root of their length, (H, W), right + i down.

    An edge is the same from whichever side it is bright, and strong ones do not drown the others.
    """
    down, right = np.gradient(grey)
    gradient = right + 1j * down
    # z^2 / |z|^1.5; a hundredth of a grey level per pixel is no edge.
    return np.asarray(gradient**2 / np.maximum(np.abs(gradient), 0.01) ** 1.5, np.complex64)


def edges(grey: Floats, mask: Floats, gsd: float) -> Floats:
    """Doubled gradients as two channels, (2, H, W)."""
    doubled = doubled_gradients(_blurred(grey, mask, 0.6 / gsd))
    # The border of what is shown is no edge of the ground.
    is_inside = scipy.ndimage.minimum_filter(mask, 3, mode="constant") > 0
    return np.stack([doubled.real * is_inside, doubled.imag * is_inside]).astype(np.float32)


def _turned_edges(edges: Floats, headings_deg: NDArray[np.float64]) -> Floats:
    """Edges (n, 2, H, W) of plans whose right now is right(h): doubled, angles turn by 2 h."""
    by = np.exp(2j * np.deg2rad(headings_deg))[:, None, None].astype(np.complex64)
    turned = (edges[:, 0] + 1j * edges[:, 1]) * by
    return np.stack([turned.real, turned.imag], axis=1)


def high_passed(grey: Floats, mask: Floats, gsd: float) -> Floats:
    """Grey levels less their mean over some 4 m, (1, H, W)."""
    return ((grey - _blurred(grey, mask, 4.0 / gsd)) * mask)[None]


def _blurred(grey: Floats, mask: Floats, sigma_px: float) -> Floats:
    """A Gaussian mean over what is shown."""
    blur = scipy.ndimage.gaussian_filter
    weight = blur(mask, sigma_px, mode="constant")
    return np.asarray(blur(grey * mask, sigma_px, mode="constant") / np.maximum(weight, 1e-3))


# ----------------------------------------------------------------------------------- correlation


@dataclass(frozen=True)
class Spectra:
    """Transforms of n images: of chips, or of a photo turned to n headings.

    Attributes:
        images: of the features, (n, C, period, period / 2 + 1).
        energy: of their squares' means in blocks, (n, blocks, blocks / 2 + 1).
        mask: of what is shown, likewise.
        area: pixels shown, (n,).
    """

    images: Complexes
    energy: Complexes
    mask: Complexes
    area: Floats

    @classmethod
    def of(cls, images: Floats, masks: Floats) -> Spectra:
        """Of features (n, C, period, period) and masks (n, period, period)."""
        return cls(
            images=scipy.fft.rfft2(images),
            energy=scipy.fft.rfft2(_block_means((images**2).sum(axis=1))),
            mask=scipy.fft.rfft2(_block_means(masks)),
            area=masks.sum(axis=(1, 2)),
        )

    def __getitem__(self, index: slice | int | NDArray[np.int64]) -> Spectra:
        return Spectra(self.images[index], self.energy[index], self.mask[index], self.area[index])

    def as_templates(self, grid: Grid) -> Spectra:
        """Ready to be multiplied: correlations then begin at the largest offset up and left."""
        fine = _delay(grid.period_px, grid.reach_px)
        coarse = _delay(grid.period_px // BLOCK_PX, grid.reach_blocks)
        return Spectra(
            np.conj(self.images) * fine,
            np.conj(self.energy) * coarse,
            np.conj(self.mask) * coarse,
            self.area,
        )


def _block_means(images: Floats) -> Floats:
    n, height, width = images.shape
    blocks = images.reshape(n, height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    return np.asarray(blocks.mean(axis=(2, 4)))


def _delay(period: int, by: int) -> Complexes:
    """The spectrum of an impulse `by` pixels right and down, (period, period / 2 + 1)."""
    rows, columns = np.fft.fftfreq(period), np.fft.rfftfreq(period)
    return np.exp(-2j * math.pi * by * (rows[:, None] + columns)).astype(np.complex64)


def first_lags(spectra: Complexes, num_lags: int) -> Floats:
    """The first rows and columns of inverse transforms of (n, period, period / 2 + 1)."""
    rows = scipy.fft.ifft(spectra, axis=1)[:, :num_lags]
    return np.asarray(scipy.fft.irfft(rows, n=spectra.shape[1], axis=2)[:, :, :num_lags])


def templates_of(grid: Grid, photo: Floats, headings_deg: NDArray[np.float64]) -> Spectra:
    """A photo's features and mask (C + 1, size, size), turned to n headings and transformed."""
    turned = grid.turn(photo, headings_deg)
    mask = (turned[:, -1] > 0.5).astype(np.float32)
    images = turned[:, :-1] * mask[:, None]
    if images.shape[1] == 2:
        images = _turned_edges(images, headings_deg)
    return Spectra.of(images, mask).as_templates(grid)


def score_surfaces(grid: Grid, chip: Spectra, templates: Spectra, min_overlap: float) -> Floats:
    """Scores of all of a chip's offsets, (n, num_lags, num_lags), first index down, second right.

    A score is the normalised cross-correlation of what photo and chip both show, times the part of
    the photo that the chip shows; 0 where that part is less than `min_overlap`.
    """
    product = templates.images[:, 0] * chip.images[0]
    for channel in range(1, len(chip.images)):
        product += templates.images[:, channel] * chip.images[channel]
    correlation = first_lags(product, grid.num_lags)
    num_blocks = 2 * grid.reach_blocks + 1
    chip_energy = first_lags(templates.mask * chip.energy, num_blocks) * BLOCK_PX**2
    photo_energy = first_lags(templates.energy * chip.mask, num_blocks) * BLOCK_PX**2
    shown = first_lags(templates.mask * chip.mask, num_blocks) * BLOCK_PX**2
    area = np.maximum(templates.area, 1.0)[:, None, None]
    overlap = np.where(shown < min_overlap * area, 0.0, shown / area)
    least = MIN_ENERGY * area
    energy = np.maximum(chip_energy, least) * np.maximum(photo_energy, least)
    weights = grid.pixels_from_blocks
    norm = weights @ (overlap / np.sqrt(energy)) @ weights.T
    return np.asarray(correlation * norm, np.float32)
