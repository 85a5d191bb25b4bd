"""What of a data set is there, whether it is whole, and whether its labels make sense.

Nothing is written into the data set's folder. Whatever is wrong becomes a finding that says what to
do, and the rest goes on being looked at.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ciper.camera import camera_from_photo
from ciper.data.datasets import (
    DATASETS,
    SPLITS,
    Dataset,
    Labels,
    Part,
    ProtocolOptions,
    Reading,
    parse_spec,
    read_protocol,
)
from ciper.data.label_geometry import geometry_findings
from ciper.data.listing import (
    Finding,
    Level,
    Listed,
    Progress,
    Shelf,
    deep_findings,
    examples,
    list_shelf,
    name_findings,
    pick,
    sample_findings,
)
from ciper.data.poses import PhotoPose, read_poses
from ciper.data.protocol import Protocol, Sample
from ciper.data.roots import is_root, label_files, published_count, root_advice, shelves
from ciper.errors import CameraError, ConfigError, DatasetError, PhotoError

_LABELS: tuple[Labels, ...] = get_args(Labels)
_PARTS: tuple[Part, ...] = get_args(Part)
_DIGEST_BYTES = 65_536


@dataclass(frozen=True)
class CheckOptions:
    """How much is looked at.

    Attributes:
        num_samples: images of each kind that are opened, and samples for a sheet.
        is_deep: whether the ends of all images are read.
        seed: of what is opened, by name.
        split: the only one to look at; None is all.
        labels: VIGOR's: the only ones to look at; None is both.
        reading: KITTI's and Ford's.
    """

    num_samples: int = 12
    is_deep: bool = False
    seed: int = 0
    split: str | None = None
    labels: Labels | None = None
    reading: Reading = "highlyaccurate"


@dataclass(frozen=True)
class Checked:
    """What a check saw, in the order of looking, and samples for a sheet, sorted by name."""

    findings: tuple[Finding, ...]
    samples: tuple[Sample, ...] = ()

    @property
    def num_problems(self) -> int:
        """How much stands in the way."""
        return sum(finding.level == "problem" for finding in self.findings)


def check_data(
    spec: str, options: CheckOptions | None = None, progress: Progress | None = None
) -> Checked:
    """Look at a data set, or at a table of photos.

    Args:
        spec: `vigor:ROOT`, `kitti:ROOT`, `ford:ROOT` or POSES.csv.
        options: how much is looked at.
        progress: called with (what, done, total).

    Raises:
        ConfigError: `spec` or an option names nothing that there is.
        DatasetError: the root is no folder.
        PoseTableError: the table is malformed.
    """
    options, progress = options or CheckOptions(), progress or _no_progress
    parsed = parse_spec(spec)
    if parsed is None:
        return Checked(tuple(check_table(_table_of(spec), options, progress)))
    dataset, root = parsed
    if options.split is not None and options.split not in SPLITS[dataset]:
        raise ConfigError(
            f"--split {options.split}: {dataset} has none such; expected "
            f"{' or '.join(SPLITS[dataset])}"
        )
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder; expected the root of {dataset}: check the path")
    try:
        advice = root_advice(dataset, root)
    except OSError as error:
        advice = f"{root} cannot be listed ({error.strerror}); check its permissions"
    if advice is not None:
        return Checked((Finding("problem", "root", advice),))
    return _check_root(dataset, root, options, progress)


def _no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def _table_of(spec: str) -> Path:
    """The table that a spec names which names no data set."""
    path = Path(spec)
    if path.suffix.lower() == ".csv" or path.is_file():
        return path
    expected = f"expected {', '.join(f'{name}:ROOT' for name in DATASETS)} or POSES.csv"
    for dataset in DATASETS:
        if path.is_dir() and is_root(dataset, path):
            raise ConfigError(f"{spec!r} names no data set; did you mean {dataset}:{spec}?")
    raise ConfigError(f"{spec!r} names no data set; {expected}")


# --------------------------------------------------------------------------------------- data sets


def _check_root(dataset: Dataset, root: Path, options: CheckOptions, progress: Progress) -> Checked:
    findings, protocols = _read_all(dataset, root, options, progress)
    findings += _leak_findings(protocols)
    named = [shelf for shelf in shelves(dataset, root, protocols) if shelf.folders]
    if not named:
        text = f"none that labels name is in {root}; unpack them beside the labels"
        findings.append(Finding("problem", "images", text))
    findings += _file_findings([list_shelf(shelf) for shelf in named], root, options, progress)
    geometry: list[Finding] = []
    samples: tuple[Sample, ...] = ()
    for labels in _LABELS:
        same = [p for p in protocols if p.settings.get("labels", "corrected") == labels]
        if same:
            whole = replace(same[0], samples=tuple(s for p in same for s in p.samples))
            geometry += _geometry_findings(whole, labels)
            samples = samples or _pick_samples(whole.samples, options)
    return Checked((*findings, *_merged(geometry)), samples)


def _parts(dataset: Dataset, options: CheckOptions) -> list[ProtocolOptions]:
    """All parts of all splits that are asked for, with all labels."""
    kinds = _LABELS if options.labels is None else (options.labels,)
    splits = SPLITS[dataset] if options.split is None else (options.split,)
    return [
        ProtocolOptions(split, part, labels, options.reading, seed=options.seed)
        for labels in (kinds if dataset == "vigor" else _LABELS[:1])
        for split in splits
        for part in _PARTS
    ]


def _read_all(
    dataset: Dataset, root: Path, options: CheckOptions, progress: Progress
) -> tuple[list[Finding], list[Protocol]]:
    """Read the labels of every part; an error is a finding, and the next part is read."""
    findings: list[Finding] = []
    read: dict[tuple[Path, ...], Protocol | None] = {}
    protocols: list[Protocol] = []
    absent: list[str] = []
    parts = _parts(dataset, options)
    for i, part in enumerate(parts, start=1):
        split, files = part.split or "", label_files(dataset, root, part)
        subject = _subject(dataset, part)
        if not any(path.is_file() for path in files):
            absent.append(f"{subject}: {files[0].relative_to(root)}")
        elif files not in read:
            read[files], found = _read(dataset, root, part)
            findings += [Finding(f.level, subject, f.text) for f in found]
        # KITTI has one training list for both of its splits.
        protocol = read.get(files)
        if protocol is not None:
            protocols.append(replace(protocol, settings={**protocol.settings, "split": split}))
        progress("labels", i, len(parts))
    if absent:
        text = f"absent, so that these parts cannot be used: {examples(absent)}"
        level: Level = "note" if len(absent) < len(parts) else "problem"
        findings.append(Finding(level, "label files", text))
    return _merged(findings), protocols


def _subject(dataset: Dataset, part: ProtocolOptions) -> str:
    if dataset == "kitti":
        return "train" if part.part == "train" else str(part.split)
    labels = f" {part.labels}" if dataset == "vigor" else ""
    return f"{part.split} {part.part}{labels}"


def _read(
    dataset: Dataset, root: Path, part: ProtocolOptions
) -> tuple[Protocol | None, list[Finding]]:
    """A part's protocol: how many queries and references it has, and what its reader noted."""
    try:
        protocol = read_protocol(f"{dataset}:{root}", part)
    except DatasetError as error:
        return None, [Finding("problem", "", str(error))]
    text = f"{len(protocol.samples):,} queries"
    if protocol.references:
        text += f" among {len(protocol.references):,} references"
    published = published_count(dataset, part)
    if published == len(protocol.samples):
        text += ", as published"
    elif published is not None:
        text += f" (published: {published:,})"
    return protocol, [Finding("ok", "", text), *(Finding("note", "", n) for n in protocol.notes)]


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with one for all subjects of which the same is said."""
    subjects: dict[tuple[Level, str], list[str]] = {}
    for finding in findings:
        subjects.setdefault((finding.level, finding.text), []).append(finding.subject)
    return [
        Finding(level, examples(list(dict.fromkeys(of))), text)
        for (level, text), of in subjects.items()
    ]


def _leak_findings(protocols: Sequence[Protocol]) -> list[Finding]:
    """Photos that are both trained on and tested on."""
    photos: dict[tuple[str, str], dict[str, set[Path]]] = defaultdict(dict)
    for protocol in protocols:
        settings = protocol.settings
        kind = settings["split"], settings.get("labels", "")
        photos[kind][settings["part"]] = {sample.photo for sample in protocol.samples}
    found = []
    for (split, _), parts in photos.items():
        both = sorted(parts.get("train", set()) & parts.get("test", set()))
        if both:
            names = examples([str(path) for path in both])
            text = f"{len(both):,} photos are both trained on and tested on: {names}"
            found.append(Finding("problem", split, f"{text}; fetch the label files again"))
    return found


def _file_findings(
    listed: Sequence[Listed], root: Path, options: CheckOptions, progress: Progress
) -> list[Finding]:
    """Which files are there, and whether those that are looked into are whole."""
    findings = [finding for shelf in listed for finding in name_findings(shelf)]
    pictured = [shelf for shelf in listed if shelf.shelf.are_images and shelf.found]
    # So many of the ground and so many of the aerial view, whatever the number of cities.
    num = math.ceil(2 * options.num_samples / max(2, len(pictured)))
    for i, shelf in enumerate(pictured, start=1):
        paths = {os.path.relpath(path, root): path for path in shelf.found}
        opened = [paths[name] for name in pick(paths, num, seed=options.seed)]
        findings += sample_findings(shelf, opened)
        progress("images", i, len(pictured))
    if options.is_deep:
        findings += [f for shelf in pictured for f in deep_findings(shelf, progress)]
    return findings


def _geometry_findings(protocol: Protocol, labels: Labels) -> list[Finding]:
    try:
        return geometry_findings(protocol, are_corrected=labels == "corrected")
    except DatasetError as error:
        return [Finding("note", f"{labels} labels", f"their geometry was not checked: {error}")]


def _pick_samples(samples: Sequence[Sample], options: CheckOptions) -> tuple[Sample, ...]:
    by_name = {sample.name: sample for sample in samples}
    names = pick(by_name, options.num_samples, seed=options.seed)
    return tuple(by_name[name] for name in sorted(names))


# ------------------------------------------------------------------------------------------ tables


def check_table(path: Path, options: CheckOptions, progress: Progress) -> list[Finding]:
    """Whether the photos of a table are there, can be read, and are listed once.

    Raises:
        PoseTableError: the table is malformed.
    """
    poses = read_poses(path)
    folders: dict[Path, dict[str, str]] = {}
    for pose in poses:
        folders.setdefault(pose.photo.parent, {})[pose.photo.name] = str(path)
    listed = list_shelf(Shelf("photos", folders))
    findings = [Finding("ok", "table", f"{len(poses):,} lines"), *_line_findings(poses)]
    findings += _file_findings([listed], path.parent, options, progress)
    findings += _twin_findings(listed.found)
    return findings + _camera_findings(poses, set(listed.found), options)


def _line_findings(poses: Sequence[PhotoPose]) -> list[Finding]:
    findings = []
    num_without = sum(pose.heading_deg is None for pose in poses)
    if num_without:
        text = f"{num_without:,} of {len(poses):,} lines have none: theirs cannot be scored"
        findings.append(Finding("note", "headings", text))
    places: dict[tuple[float, float, float | None], list[str]] = defaultdict(list)
    for pose in poses:
        places[pose.lat, pose.lon, pose.heading_deg].append(pose.photo.name)
    again = [" = ".join(names) for names in places.values() if len(names) > 1]
    if again:
        text = f"{len(again):,} are those of several photos: {examples(again)}"
        findings.append(Finding("note", "poses", text))
    return findings


def _twin_findings(paths: Sequence[Path]) -> list[Finding]:
    """Photos with the same content."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    twins: dict[bytes, list[str]] = defaultdict(list)
    refused: list[str] = []
    for path in paths:
        try:
            sizes[path.stat().st_size].append(path)
        except OSError as error:
            refused.append(f"{path} ({error.strerror})")
    for path in (path for size, same in sizes.items() if size and len(same) > 1 for path in same):
        try:
            twins[_digest(path)].append(path.name)
        except OSError as error:
            refused.append(f"{path} ({error.strerror})")
    found = []
    if refused:
        text = f"{len(refused):,} cannot be read: {examples(refused)}; check them"
        found.append(Finding("problem", "photos", text))
    again = [" = ".join(names) for names in twins.values() if len(names) > 1]
    if again:
        text = f"{len(again):,} are there under several names: {examples(again)}"
        found.append(Finding("note", "photos", text))
    return found


def _digest(path: Path) -> bytes:
    """Of a file's beginning and end, which no two photos of one size share.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_DIGEST_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _DIGEST_BYTES))
        return hashlib.blake2b(start + file.read()).digest()


def _camera_findings(
    poses: Sequence[PhotoPose], found: set[Path], options: CheckOptions
) -> list[Finding]:
    """Whether what the table says of cameras fits some of the photos."""
    by_name = {str(pose.photo): pose for pose in poses if pose.photo in found}
    wrong, num_assumed = [], 0
    names = pick(by_name, options.num_samples, seed=options.seed)
    for name in names:
        try:
            camera = camera_from_photo(name, by_name[name].camera_overrides)
        except CameraError as error:
            wrong.append(f"{name}: {error}")
        except PhotoError:  # which the look at the files reports
            continue
        else:
            num_assumed += camera.is_assumed
    if wrong:
        return [Finding("problem", "cameras", examples(wrong))]
    if num_assumed:
        text = f"{num_assumed} of {len(names)} looked at do not tell their field of view: fill in "
        return [Finding("note", "cameras", text + "hfov_deg, or it is averaged over")]
    return []
