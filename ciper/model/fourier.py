"""Correlation of templates with maps through Fourier transforms.

Where products are slow, on CPUs that compute in float32, a large template against many maps takes a
sixth of the arithmetic this way. A map's sides are the periods: a template that lies inside of a
map does not wrap, so that what is wanted of the circular correlation is the plain one. Only that is
transformed back, by two matrix products.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

# Maps whose spectra are held at once.
MAPS_AT_ONCE = 64


def correlate(maps: Tensor, templates: Tensor) -> Tensor:
    """Every template at every place of every map where it lies inside, as `F.conv2d` has it.

    Args:
        maps: `(R, C, H, W)` float32.
        templates: `(T, C, h, w)` float32, no larger than the maps.

    Returns:
        `(R, T, H - h + 1, W - w + 1)`.
    """
    size = (maps.shape[-2], maps.shape[-1])
    places = (size[0] - templates.shape[-2] + 1, size[1] - templates.shape[-1] + 1)
    wanted = _spectra(templates, size).conj_physical().transpose(1, 2)
    parts: list[Tensor] = []
    for part in maps.split(MAPS_AT_ONCE):
        product = _spectra(part, size) @ wanted
        found = _at_places(product.flatten(1), size, places)
        by_pair = found.view(*places, len(part), len(templates))
        parts.append(by_pair.permute(2, 3, 0, 1))
    return torch.cat(parts)


def _spectra(images: Tensor, size: tuple[int, int]) -> Tensor:
    """`(N, C, h, w)`, filled up with zeros, to `(frequencies, N, C)`: rows' slowest, half of W."""
    spectra: Tensor = torch.fft.rfft2(images, s=size)
    return spectra.permute(2, 3, 0, 1).flatten(0, 1)


def _at_places(spectra: Tensor, size: tuple[int, int], places: tuple[int, int]) -> Tensor:
    """The first rows and columns `places` of what has the spectra `(frequencies, N)`: `(., ., N)`.

    Rows first, as complex numbers; then columns, whose other half is the conjugate of this one.
    """
    by_row, by_column = _inverses(size, places)
    num_columns = size[1] // 2 + 1
    half = spectra.unflatten(0, (size[0], num_columns)).flatten(1)
    rows = (by_row @ half).unflatten(1, (num_columns, -1))
    parts = torch.view_as_real(rows).permute(0, 3, 1, 2).flatten(1, 2)
    found: Tensor = by_column @ parts
    return found


@cache
def _inverses(size: tuple[int, int], places: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Matrices of the inverse transform of `size`, of its first `places` alone.

    Returns:
        Over rows `(places, H)` complex, and over half of the columns, their real and then their
        imaginary parts, `(places, 2 (W / 2 + 1))` real.
    """
    (height, width), (num_rows, num_columns) = size, places
    # Kept for any later use, also with gradients.
    with torch.inference_mode(False):
        angle = _angles(num_rows, height, height)
        by_row = torch.polar(torch.full_like(angle, 1 / (height * width)), angle)
        frequencies = width // 2 + 1
        angle = _angles(num_columns, frequencies, width)
        # All but the first and, of an even width, the last stand for two that are conjugate.
        weight = torch.full((frequencies,), 2.0, dtype=torch.float64)
        weight[0] = 1.0
        if width % 2 == 0:
            weight[-1] = 1.0
        by_column = torch.cat([angle.cos() * weight, -angle.sin() * weight], dim=1)
        return by_row.to(torch.complex64), by_column.float()


def _angles(num_places: int, num_frequencies: int, period: int) -> Tensor:
    turns = torch.outer(
        torch.arange(num_places, dtype=torch.float64),
        torch.arange(num_frequencies, dtype=torch.float64),
    )
    return turns * (2 * math.pi / period)
