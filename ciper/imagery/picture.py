"""Tiles as servers send them, as RGB and a mask."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_MAX_SIDE_PX = 4096
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF")
_LOSSY = frozenset({"JPEG", "WEBP", "AVIF"})
_WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})


class NotAPictureError(Exception):
    """Bytes that are no image, or only a part of one."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded tile.

    Attributes:
        rgb: (H, W, 3) uint8, black where nothing is shown.
        is_valid: (H, W), where it is not transparent.
        is_lossy: whether its format gives colours only nearly.
    """

    rgb: NDArray[np.uint8]
    is_valid: NDArray[np.bool_]
    is_lossy: bool

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.rgb.shape[0]), int(self.rgb.shape[1])


def decode(body: bytes) -> Picture:
    """Any mode that servers send: colours, grey, palettes, 16 bits, with and without alpha.

    Raises:
        NotAPictureError: it is no image, cut short, or larger than any tile.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(body), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")  # of odd metadata; the pixels are what counts
            if max(image.size) > _MAX_SIDE_PX:
                raise NotAPictureError(
                    f"an image of {image.width} x {image.height} px, larger than any tile"
                )
            image.load()
            rgba = np.asarray(_with_alpha(image))
            is_lossy = image.format in _LOSSY
    except UnidentifiedImageError:
        raise NotAPictureError("no image") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise NotAPictureError(f"a damaged image ({error})") from None
    is_valid = rgba[..., 3] >= 128
    rgb = np.where(is_valid[..., None], rgba[..., :3], np.uint8(0))
    return Picture(np.asarray(rgb, np.uint8), is_valid, is_lossy)


def _with_alpha(image: Image.Image) -> Image.Image:
    """RGBA. Only Pillow's own alpha and transparent colours make pixels missing."""
    if image.mode.startswith("I"):
        # Converted as it is, everything above 255 would become white.
        values = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGBA")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB").convert("RGBA")
