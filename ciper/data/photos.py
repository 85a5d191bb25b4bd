"""Photos by name: files, patterns and folders."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from ciper.errors import PhotoError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def find_photos(names: Sequence[str | Path]) -> tuple[Path, ...]:
    """The photos that names mean, in the order of the names, each once.

    A name without wildcards that is no folder is passed on as it is, whether it exists or not: one
    missing photo among many is for whoever reads them to report.

    Args:
        names: files; patterns such as ``photos/*.jpg`` and ``**/*.png``; folders, whose images are
            taken by their suffix, not those of folders below.

    Raises:
        PhotoError: a pattern matches nothing, a folder holds no image or cannot be read.
    """
    found: list[Path] = []
    for name in names:
        try:
            found += _expand(Path(name))
        except OSError as error:
            raise PhotoError(
                f"photos {name} cannot be looked up ({error.strerror or error}); check the "
                "permissions of the folder"
            ) from error
    return tuple(dict.fromkeys(found))


def _expand(name: Path) -> list[Path]:
    if name.is_dir():
        files = sorted(p for p in name.iterdir() if not p.name.startswith("."))
        photos = [p for p in files if p.suffix.lower() in SUFFIXES]
        if not photos:
            raise PhotoError(
                f"folder {name} holds no photo; expected files that end in {', '.join(SUFFIXES)}"
            )
        return photos
    # A file may be called "a[1].jpg": a name that exists is never a pattern.
    if name.exists() or not glob.has_magic(str(name)):
        return [name]
    root = Path(name.anchor)
    found = sorted(p for p in root.glob(str(name.relative_to(root))) if p.is_file())
    photos = [p for p in found if name.name.startswith(".") or not p.name.startswith(".")]
    if not photos:
        raise PhotoError(f"no photo matches {str(name)!r}; check the pattern")
    return photos
