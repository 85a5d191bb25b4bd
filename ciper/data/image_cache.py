"""Images of a data set in the size that a network needs, decoded as far as that takes.

A JPEG is decoded at a half, a quarter or an eighth of its size where that is enough. What takes
long to decode, such as large PNGs, is kept shrunk in a folder of its own: a data set's folder is
never written to.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ciper.errors import OutputError, PhotoError
from ciper.files import written_whole
from ciper.metadata import open_image

SizePx = tuple[int, int]
Pixels = NDArray[np.uint8]

JPEG_QUALITY = 95
# Part of every key: files of another way of shrinking are not taken for these.
_VERSION = 1
# What Pillow raises on a file that is cut short or damaged.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True)
class Shrunk:
    """An image as it was read: `pixels (h, w, 3)`, not to be written to, and its file's size."""

    pixels: Pixels
    file_px: SizePx


class ImageCache:
    """Reads images shrunk, and keeps them if it has a folder; may be shared by threads.

    A file is known by its path, size and time of change, so that one that was replaced is read
    anew. Cached files that cannot be read are made again.

    Args:
        folder: made if it is missing; None keeps nothing.

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._writing = threading.Lock()
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _not_writable(folder, error) from error

    def read(self, path: Path, size_for: Callable[[SizePx], SizePx]) -> Shrunk:
        """Reads an image as RGB; its EXIF orientation is not looked at.

        Args:
            path: of the image.
            size_for: tells from the file's (height, width) the one to shrink it to.

        Raises:
            PhotoError: the file is missing, damaged or no image.
        """
        with open_image(path) as image:
            file_px = (image.height, image.width)
            size_px = size_for(file_px)
            if self.folder is None:
                return Shrunk(_shrunk(image, size_px, path), file_px)
            kept = self._place(self.folder, path, size_px)
            if kept.exists():
                try:
                    return Shrunk(_read_kept(kept, size_px), file_px)
                except PhotoError:
                    kept.unlink(missing_ok=True)
            pixels = _shrunk(image, size_px, path)
        self._keep(kept, pixels)
        return Shrunk(pixels, file_px)

    def _place(self, folder: Path, path: Path, size_px: SizePx) -> Path:
        stat = path.stat()
        key = f"{_VERSION} {path.absolute()} {stat.st_mtime_ns} {stat.st_size} {size_px}"
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return folder / name[:2] / f"{name[2:]}.jpg"

    def _keep(self, place: Path, pixels: Pixels) -> None:
        encoded = BytesIO()
        # Colour keeps its resolution: small images consist of edges.
        Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        try:
            # Two threads may have read the same image, and would write to the same neighbour.
            with self._writing:
                place.parent.mkdir(exist_ok=True)
                with written_whole(place) as unfinished:
                    unfinished.write_bytes(encoded.getvalue())
        except OSError as error:
            raise _not_writable(place, error) from error


def _read_kept(path: Path, size_px: SizePx) -> Pixels:
    with open_image(path) as image:
        if (image.height, image.width) != size_px:
            raise PhotoError(f"{path} is not as it was written; expected {size_px} px")
        return _shrunk(image, size_px, path)


def _shrunk(image: Image.Image, size_px: SizePx, path: Path) -> Pixels:
    """Decodes an opened image, `(*size_px, 3)`, bilinear and antialiased."""
    try:
        # Of JPEG alone: the smallest of the decoder's own sizes that is not below the wanted one.
        image.draft("RGB", size_px[::-1])
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        if (rgb.height, rgb.width) != size_px:
            rgb = rgb.resize(size_px[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0)
    except _DAMAGE as error:
        raise PhotoError(f"{path} is damaged or cut short ({error}); copy it again") from error
    return np.asarray(rgb)


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path} ({error.strerror}); expected a folder for resized images that can be "
        "written: name another real.cache, or none"
    )
