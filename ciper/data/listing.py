"""Whether the files that labels name are there, under that very name, and whole.

Every folder is listed once; no file is asked for by itself, which takes minutes where the files lie
on another machine. A few files are opened, and the ends of all of them are read if asked for.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ciper.data.photos import SUFFIXES
from ciper.data.preprocess import read_photo
from ciper.errors import PhotoError

Level = Literal["ok", "note", "problem"]
Progress = Callable[[str, int, int], None]

NUM_EXAMPLES = 3
_TAIL_BYTES = 4096
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        level: "ok"; "note", what a user should know; "problem", what stands in the way.
        subject: what was looked at, such as "Chicago panoramas".
        text: what was seen, and what to do about it.
    """

    level: Level
    subject: str
    text: str


@dataclass(frozen=True)
class Shelf:
    """Files of one kind that labels name.

    Attributes:
        subject: what they are, such as "Chicago panoramas".
        folders: names by folder, each with the place that names it, "FILE line N".
        are_images: whether they can be opened as such.
        side_px: of square images of a known size.
        aspect: width by height where one is usual.
    """

    subject: str
    folders: Mapping[Path, Mapping[str, str]]
    are_images: bool = True
    side_px: int | None = None
    aspect: float | None = None


@dataclass(frozen=True)
class Listed:
    """A shelf beside what is on the disk.

    Attributes:
        shelf: what labels name.
        found: paths that are there under their names.
        missing: paths that are not, each with the place that names it.
        misnamed: paths that are there under another name, each with that name.
        unnamed: paths that no label names; of a shelf of images, those of images.
        refused: folders that cannot be listed, each with the reason.
    """

    shelf: Shelf
    found: tuple[Path, ...]
    missing: tuple[tuple[Path, str], ...]
    misnamed: tuple[tuple[Path, str], ...]
    unnamed: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]

    @property
    def num_named(self) -> int:
        """How many files labels name."""
        return sum(len(names) for names in self.shelf.folders.values())


# ------------------------------------------------------------------------------------------ names


def list_shelf(shelf: Shelf) -> Listed:
    """Compare what labels name with what is there."""
    found: list[Path] = []
    missing: list[tuple[Path, str]] = []
    misnamed: list[tuple[Path, str]] = []
    unnamed: list[Path] = []
    refused: list[tuple[Path, str]] = []
    for folder, names in shelf.folders.items():
        try:
            present = names_in(folder)
        except OSError as error:
            refused.append((folder, error.strerror or str(error)))
            continue
        found += [folder / name for name in names if name in present]
        others = present - names.keys()
        absent = [name for name in names if name not in present]
        alike = _names_alike(absent, others)
        missing += [(folder / name, names[name]) for name in absent if name not in alike]
        misnamed += [(folder / name, other) for name, other in alike.items()]
        unnamed += [
            folder / name
            for name in others.difference(alike.values())
            if not shelf.are_images or name.lower().endswith(SUFFIXES)
        ]
    return Listed(
        shelf,
        tuple(found),
        tuple(missing),
        tuple(misnamed),
        tuple(sorted(unnamed)),
        tuple(refused),
    )


def names_in(folder: Path) -> set[str]:
    """The names of what lies in a folder but hidden files.

    Raises:
        OSError: it is absent, no folder, or cannot be listed.
    """
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(".")}


def _names_alike(absent: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """For each absent name one that differs in case, or in the suffix of an image."""
    absent = list(absent)
    if not absent:
        return {}
    by_name = {name.casefold(): name for name in others}
    by_stem = {_stem(name): name for name in by_name.values()}
    alike = {}
    for name in absent:
        other = by_name.get(name.casefold()) or by_stem.get(_stem(name))
        if other is not None:
            alike[name] = other
    return alike


def _stem(name: str) -> str:
    """The name in small letters without the suffix of an image."""
    stem, dot, suffix = name.casefold().rpartition(".")
    return stem if dot + suffix in SUFFIXES else name.casefold()


def name_findings(listed: Listed) -> list[Finding]:
    """What is missing, misnamed or superfluous of a shelf."""
    subject, total = listed.shelf.subject, listed.num_named
    found = []
    for folder, reason in listed.refused:
        num = len(listed.shelf.folders[folder])
        text = f"{folder} cannot be listed ({reason}); expected {num:,} files in it: "
        found.append(Finding("problem", subject, text + "unpack them there or let it be read"))
    if listed.missing:
        names = examples([f"{path} ({where})" for path, where in listed.missing])
        text = f"{len(listed.missing):,} of {total:,} files are missing: {names}; copy them again"
        found.append(Finding("problem", subject, text))
    if listed.misnamed:
        found.append(_misnamed_finding(listed))
    if listed.unnamed:
        names = examples([str(path) for path in listed.unnamed])
        text = f"{len(listed.unnamed):,} files that no label names, and nothing uses: {names}"
        found.append(Finding("note", subject, text))
    if len(listed.found) == total:
        found.insert(0, Finding("ok", subject, f"all {total:,} files that labels name are there"))
    return found


def _misnamed_finding(listed: Listed) -> Finding:
    names = examples([f"found {other} for {path}" for path, other in listed.misnamed])
    text = f"{len(listed.misnamed):,} of {listed.num_named:,} files have another name: {names}"
    # Where case does not matter the files open all the same; elsewhere they will not.
    if all(path.exists() for path, _ in listed.misnamed):
        rest = "they open on this file system, where case does not matter, but not on others"
        return Finding("note", listed.shelf.subject, f"{text}; {rest}")
    return Finding("problem", listed.shelf.subject, f"{text}; rename them")


def examples(texts: Sequence[str]) -> str:
    """The first few of many."""
    rest = len(texts) - NUM_EXAMPLES
    shown = ", ".join(texts[:NUM_EXAMPLES])
    return f"{shown} and {rest:,} more" if rest > 0 else shown


# ----------------------------------------------------------------------------------------- content


def pick(names: Iterable[str], num: int, *, seed: int) -> list[str]:
    """Some of many names: which ones depends on the seed and on the names alone."""

    def key(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()

    return heapq.nsmallest(num, names, key)


def damage(path: Path) -> str | None:
    """Why a file's first and last bytes are not those of a whole JPEG or PNG; None if they are."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_PNG_START))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            tail = file.read()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if not start:
        return "is empty (0 bytes)"
    # Some writers pad their files: the mark need not be the very last. It occurs nowhere else in
    # the data of an image.
    if start.startswith(_JPEG_START):
        return None if _JPEG_END in tail else "is cut short: it has no JPEG end marker"
    if start == _PNG_START:
        return None if _PNG_END in tail else "is cut short: it has no PNG end chunk"
    return f"is neither JPEG nor PNG (it begins with {start!r})"


def sample_findings(listed: Listed, paths: Sequence[Path]) -> list[Finding]:
    """Whether some of a shelf's images can be decoded and have the size that they should have."""
    sizes: dict[Path, tuple[int, int]] = {}
    broken: list[str] = []
    odd: list[str] = []
    for path in paths:
        reason = damage(path)
        try:
            height, width = read_photo(path).shape[:2]
        except PhotoError as error:
            broken.append(f"{path} {reason}" if reason else str(error))
        else:
            sizes[path] = height, width
            odd += [f"{path} {reason}"] if reason else []
    found = _damage_findings(listed.shelf.subject, broken, odd, len(paths))
    return [*found, *(_size_findings(listed.shelf, sizes) if sizes else ())]


def _damage_findings(
    subject: str, broken: Sequence[str], odd: Sequence[str], num_read: int
) -> list[Finding]:
    found = []
    if broken:
        text = f"{len(broken):,} of {num_read:,} looked into are damaged: {examples(broken)}"
        found.append(Finding("problem", subject, f"{text}; copy them again"))
    if odd:
        # Cameras may write more behind a photo, and other formats than these two.
        text = f"{len(odd):,} of {num_read:,} can be decoded all the same, but {examples(odd)}"
        found.append(Finding("note", subject, text))
    return found


def _size_findings(shelf: Shelf, sizes: Mapping[Path, tuple[int, int]]) -> list[Finding]:
    counted = Counter(sizes.values()).most_common()
    seen = ", ".join(f"{width} x {height} px ({num})" for (height, width), num in counted)
    text = f"{len(sizes)} opened: {seen}"
    side = shelf.side_px
    if side is not None:
        oblong = [str(path) for path, (height, width) in sizes.items() if height != width]
        if oblong:
            text += f"; expected squares, unlike {examples(oblong)}: copy them again"
            return [Finding("problem", shelf.subject, text)]
        if any(height != side for height, _ in sizes.values()):
            # Data sets are often kept smaller: the same square is shown.
            text += f"; published are {side} x {side} px, others are taken to be resized"
            return [Finding("note", shelf.subject, text)]
    # A resized panorama may be a pixel too high.
    odd = [
        p for p, (h, w) in sizes.items() if shelf.aspect and abs(w / h / shelf.aspect - 1) > 0.01
    ]
    if odd:
        odd_ones = examples([str(path) for path in odd])
        text += f"; usual is a width of {shelf.aspect:g} times the height ({odd_ones})"
        return [Finding("note", shelf.subject, text)]
    return [Finding("ok", shelf.subject, text)]


def deep_findings(listed: Listed, progress: Progress) -> list[Finding]:
    """Whether any of a shelf's images is empty or cut short: the last bytes of all are read."""
    broken: list[str] = []
    odd: list[str] = []
    subject, total = listed.shelf.subject, len(listed.found)
    for i, path in enumerate(listed.found, start=1):
        reason = damage(path)
        if reason is not None:
            (odd if _can_be_decoded(path) else broken).append(f"{path} {reason}")
        if i % 500 == 0 or i == total:
            progress(subject, i, total)
    whole = [] if broken or odd else [Finding("ok", subject, f"{total:,} are whole")]
    return [*whole, *_damage_findings(subject, broken, odd, total)]


def _can_be_decoded(path: Path) -> bool:
    try:
        read_photo(path)
    except PhotoError:
        return False
    return True
