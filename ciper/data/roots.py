"""What lies where in a data set's folder: its marks, its label files, and the files these name.

Labels are not understood here, only the names in them: a file that a reader refuses still says
which images it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from ciper.data.datasets import DATASETS, SPLITS, Dataset, Labels, Part, ProtocolOptions
from ciper.data.ford_labels import DAYS, PUBLISHED_COUNTS, Drive
from ciper.data.kitti import IMAGE_PX, NUM_PUBLISHED
from ciper.data.kitti_files import AERIAL_FOLDERS, LIST_FOLDERS, RAW_FOLDERS
from ciper.data.listing import Shelf, examples
from ciper.data.photos import SUFFIXES
from ciper.data.protocol import Protocol
from ciper.data.vigor import CITIES, SIDE_PX, SPLIT_CITIES, label_path, published_counts

_PANORAMA_ASPECT = 2.0
_MAX_PARENTS, _MAX_CHILDREN = 4, 100
_MARKS: dict[Dataset, tuple[str, ...]] = {
    "vigor": ("splits__corrected/*/", "splits/*/", *(f"{city}/panorama/" for city in CITIES)),
    "kitti": (
        *(f"{folder}/????_??_??/" for folder in (*RAW_FOLDERS, *AERIAL_FOLDERS)),
        *(
            str(Path(folder) / f"{name}_files.txt")
            for folder in LIST_FOLDERS
            for name in NUM_PUBLISHED
        ),
    ),
    "ford": ("????-??-??/V2/", "Calibration-V2/"),
}
_FOLDERS: dict[Dataset, tuple[str, ...]] = {
    "vigor": ("splits__corrected", "splits", *CITIES),
    "kitti": (*RAW_FOLDERS, *AERIAL_FOLDERS),
    "ford": ("Calibration-V2",),
}
_EXPECTED: dict[Dataset, str] = {
    "vigor": "splits__corrected, and NewYork, Seattle, SanFrancisco or Chicago",
    "kitti": "raw, satellite, and train_files.txt, test1_files.txt, test2_files.txt",
    "ford": "2017-08-04, 2017-10-26 and Calibration-V2",
}

Names = dict[Path, dict[str, str]]


# ----------------------------------------------------------------------------------------- the root


def is_root(dataset: Dataset, folder: Path) -> bool:
    """Whether a folder looks like that of a data set.

    Raises:
        OSError: it cannot be listed.
    """
    return any(any(folder.glob(mark)) for mark in _MARKS[dataset])


def root_advice(dataset: Dataset, root: Path) -> str | None:
    """Why a folder is not that of a data set, and which one may be meant; None if it is.

    Raises:
        OSError: it cannot be listed.
    """
    misnamed = _misnamed_folders(dataset, root)
    if misnamed:
        return f"{root} holds {examples(misnamed)}; rename them: names matter in case"
    if is_root(dataset, root):
        return None
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    for other in DATASETS:
        if is_root(other, root):
            return f"{root} looks like the root of {other}; did you mean {other}:{root}?"
    folders = [entry for entry in entries if entry.is_dir()][:_MAX_CHILDREN]
    for place, near in (
        ("parent", folders),
        ("child", list(root.absolute().parents)[:_MAX_PARENTS]),
    ):
        for folder in near:
            if is_root(dataset, folder):
                return f"{root} looks like a {place} of the root; did you mean {dataset}:{folder}?"
    seen = ", ".join(entry.name for entry in entries[:5])
    state = f"holds {seen}{', ...' if len(entries) > 5 else ''}" if entries else "is empty"
    return f"{root} {state}; expected {_EXPECTED[dataset]} in it: see docs/datasets.md"


def _misnamed_folders(dataset: Dataset, root: Path) -> list[str]:
    """Folders that would be right in other upper and lower case, where that matters."""
    names = {entry.name for entry in root.iterdir()}
    by_name = {name.casefold(): name for name in names}
    return [
        f"{by_name[wanted.casefold()]} for {wanted}"
        for wanted in _FOLDERS[dataset]
        if wanted not in names and wanted.casefold() in by_name and not (root / wanted).exists()
    ]


# --------------------------------------------------------------------------------------- the labels


def label_files(dataset: Dataset, root: Path, options: ProtocolOptions) -> tuple[Path, ...]:
    """Where the label files of a part of a split may lie; whether they do is not looked at."""
    split = options.split or SPLITS[dataset][0]
    if dataset == "vigor":
        cities = SPLIT_CITIES[split, options.part]
        return tuple(label_path(root, city, split, options) for city in cities)
    if dataset == "kitti":
        part = "train" if options.part == "train" else split
        return tuple(root / folder / f"{part}_files.txt" for folder in LIST_FOLDERS)
    return (_drive(root, split, options.part).labels,)


def published_count(dataset: Dataset, options: ProtocolOptions) -> int | None:
    """How many queries a part of a split has, as published; None if nothing is."""
    split = options.split or SPLITS[dataset][0]
    if dataset == "vigor":
        return published_counts(split, options.part)[0]
    if dataset == "kitti":
        return NUM_PUBLISHED["train" if options.part == "train" else split]
    return PUBLISHED_COUNTS.get((split, options.part))


def _drive(root: Path, split: str, part: Part) -> Drive:
    day, log = DAYS[split][part], split.capitalize()
    return Drive(root / day / "V2" / log, day, log, part)


def _parts(dataset: Dataset) -> Iterator[tuple[str, Part]]:
    parts: tuple[Part, ...] = get_args(Part)
    for split in SPLITS[dataset]:
        for part in parts:
            yield split, part


# ------------------------------------------------------------------------------ the files they name


def shelves(dataset: Dataset, root: Path, readable: Iterable[Protocol] = ()) -> list[Shelf]:
    """The files that the labels in a root name, by kind.

    What lies in a city or drive that is absent altogether is not named: a root may hold a part.

    Args:
        dataset: whose.
        root: its folder.
        readable: the protocols that were read. Of Ford's training files they take some lines only.
    """
    if dataset == "vigor":
        return _vigor_shelves(root)
    if dataset == "kitti":
        return _kitti_shelves(root)
    return _ford_shelves(root, list(readable))


def _vigor_shelves(root: Path) -> list[Shelf]:
    found = []
    for city in CITIES:
        if not (root / city).is_dir():
            continue
        panoramas: dict[str, str] = {}
        chips: dict[str, str] = {}
        for path in _vigor_files(root, city):
            if path.name == "satellite_list.txt":
                _name_all(chips, path, slice(0, 1))
            else:
                _name_all(panoramas, path, slice(0, 1))
                _name_all(chips, path, slice(1, None, 3))
        for kind, folder, names, side_px, aspect in (
            ("panoramas", "panorama", panoramas, None, _PANORAMA_ASPECT),
            ("chips", "satellite", chips, SIDE_PX, None),
        ):
            if names:
                folders = {root / city / folder: names}
                found.append(Shelf(f"{city} {kind}", folders, side_px=side_px, aspect=aspect))
    return found


def _vigor_files(root: Path, city: str) -> list[Path]:
    """The city's label files that are there, of both kinds of labels."""
    paths: dict[Path, None] = {}
    kinds: tuple[Labels, ...] = get_args(Labels)
    for labels in kinds:
        for split, part in _parts("vigor"):
            if city in SPLIT_CITIES[split, part]:
                path = label_path(root, city, split, ProtocolOptions(part=part, labels=labels))
                paths |= {path.with_name("satellite_list.txt"): None, path: None}
    return [path for path in paths if path.is_file()]


def _kitti_shelves(root: Path) -> list[Shelf]:
    raw, aerial = _first_folder(root, RAW_FOLDERS), _first_folder(root, AERIAL_FOLDERS)
    frames: dict[str, str] = {}
    paths = dict.fromkeys(
        path
        for split, part in _parts("kitti")
        for path in label_files("kitti", root, ProtocolOptions(split, part))
        if path.is_file()
    )
    for path in paths:
        _name_all(frames, path, slice(0, 1))
    photos: Names = {}
    oxts: Names = {}
    images: Names = {}
    is_there: dict[str, bool] = {}
    for frame, where in frames.items():
        drive, _, name = frame.rpartition("/")
        if drive not in is_there:
            is_there[drive] = (raw / drive).is_dir() or (aerial / drive).is_dir()
        if drive and is_there[drive]:
            photos.setdefault(raw / drive / "image_02" / "data", {})[name] = where
            text = name.removesuffix(".png") + ".txt"
            oxts.setdefault(raw / drive / "oxts" / "data", {})[text] = where
            images.setdefault(aerial / drive, {})[name] = where
    return [
        Shelf("photos", photos),
        Shelf("oxts files", oxts, are_images=False),
        Shelf("aerial images", images, side_px=IMAGE_PX),
    ]


def _first_folder(root: Path, names: Iterable[str]) -> Path:
    """The first of several that is there, else the first."""
    folders = [root / name for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _ford_shelves(root: Path, readable: list[Protocol]) -> list[Shelf]:
    photos: Names = {}
    images: Names = {}
    for protocol in readable:
        part: Part = "train" if protocol.settings["part"] == "train" else "test"
        where = str(_drive(root, protocol.settings["split"], part).labels)
        for sample in protocol.samples:
            photos.setdefault(sample.photo.parent, {})[sample.photo.name] = where
            path = sample.image.path
            images.setdefault(path.parent, {})[path.name] = where
    read = {(protocol.settings["split"], protocol.settings["part"]) for protocol in readable}
    for split, part in _parts("ford"):
        drive = _drive(root, split, part)
        if (split, part) in read or not drive.labels.is_file():
            continue
        for words, where in _words(drive.labels):
            name = words[0].removesuffix(".txt").removesuffix(".png") + ".png"
            photos.setdefault(drive.photos, {})[name] = where
            if len(words) > 8:
                images.setdefault(drive.chips, {})[f"{words[7]}_{words[8]}.png"] = where
    side_px = next((p.samples[0].image.side_px for p in readable if p.samples), None)
    return [Shelf("photos", photos), Shelf("aerial images", images, side_px=side_px)]


def _name_all(names: dict[str, str], path: Path, words: slice) -> None:
    """Add the names of images in some words of each line, with the line that first names them."""
    for line, where in _words(path):
        for name in line[words]:
            if name.lower().endswith(SUFFIXES):
                names.setdefault(name, where)


def _words(path: Path) -> Iterator[tuple[list[str], str]]:
    """The words of each line that is not blank, and where it is."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # which the reader of the labels reports
        return
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if words:
            yield words, f"{path} line {number}"
