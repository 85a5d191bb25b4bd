from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dataset_helpers import image_bytes, pixels
from PIL import Image

from ciper.data.listing import (
    Finding,
    Shelf,
    damage,
    deep_findings,
    examples,
    list_shelf,
    name_findings,
    pick,
    sample_findings,
)


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def shelf(folder: Path, *names: str, **kind: Any) -> Shelf:
    wheres = {name: f"labels.txt line {i}" for i, name in enumerate(names, start=1)}
    return Shelf("chips", {folder: wheres}, **kind)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def noise(kind: str, width: int = 64, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(width, height, 1)).save(buffer, kind)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------ names


def test_names_are_compared_with_one_listing_and_without_a_question_per_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i}.png" for i in range(500)]
    touch(tmp_path, *names)
    listings = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        listings.append(path)
        return scandir(path)

    def asked(*_: object, **__: object) -> Any:
        raise AssertionError("a file was asked for by itself")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", counted)
        patch.setattr(os, "stat", asked)
        patch.setattr(os.path, "exists", asked)
        findings = name_findings(list_shelf(shelf(tmp_path, *names)))
    assert listings == [tmp_path]
    assert findings == [Finding("ok", "chips", "all 500 files that labels name are there")]


def test_missing_misnamed_and_unnamed_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.PNG", "c.jpg", "stray.png", "remark.txt", ".hidden.png")
    listed = list_shelf(shelf(tmp_path, "a.png", "b.png", "c.png", "d.png"))
    assert listed.found == (tmp_path / "a.png",)
    assert listed.missing == ((tmp_path / "d.png", "labels.txt line 4"),)
    assert listed.misnamed == ((tmp_path / "b.png", "b.PNG"), (tmp_path / "c.png", "c.jpg"))
    assert listed.unnamed == (tmp_path / "stray.png",)
    missing, misnamed, unnamed = name_findings(listed)
    assert missing.level == misnamed.level == "problem"
    assert missing.text == (
        f"1 of 4 files are missing: {tmp_path / 'd.png'} (labels.txt line 4); copy them again"
    )
    assert f"found b.PNG for {tmp_path / 'b.png'}, found c.jpg for" in misnamed.text
    assert unnamed.level == "note" and "1 files that no label names" in unnamed.text


def test_a_file_system_where_case_does_not_matter_opens_what_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "b.PNG")
    listed = list_shelf(shelf(tmp_path, "b.png"))
    assert [finding.level for finding in name_findings(listed)] == ["problem"]
    monkeypatch.setattr(Path, "exists", lambda _: True)
    (finding,) = name_findings(listed)
    assert finding.level == "note" and "not on others" in finding.text


@pytest.mark.parametrize("kind", ["absent", "file", "locked"])
def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / kind
    if kind == "file":
        folder.touch()
    if kind == "locked":

        def locked(path: Path) -> Iterator[None]:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", locked)
    (finding,) = name_findings(list_shelf(shelf(folder, "a.png", "b.png")))
    assert finding.level == "problem"
    reason = {"absent": "No such file", "file": "Not a directory", "locked": "Permission denied"}
    assert reason[kind] in finding.text and "expected 2 files" in finding.text


def test_many_examples_are_counted() -> None:
    assert examples(["a", "b"]) == "a, b"
    assert examples([str(i) for i in range(1003)]) == "0, 1, 2 and 1,000 more"


# ----------------------------------------------------------------------------------------- content


def test_what_is_picked_depends_on_the_names_and_the_seed_alone() -> None:
    names = [f"{i}.png" for i in range(1000)]
    first = pick(names, 20, seed=0)
    assert first == pick(reversed(names), 20, seed=0)
    assert first != pick(names, 20, seed=1)
    # The names of a smaller set that are picked from the larger one stay picked.
    some = set(names[:500])
    assert [name for name in first if name in some] == [
        name for name in pick(some, 20, seed=0) if name in first
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_damage_at_the_ends_of_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    whole = noise(kind, 200, 100)
    path.write_bytes(whole)
    assert damage(path) is None
    path.write_bytes(whole + bytes(16))
    assert damage(path) is None
    for num_left in (len(whole) - 2, len(whole) // 2, 20):
        path.write_bytes(whole[:num_left])
        assert str(damage(path)).startswith("is cut short")
    path.write_bytes(b"")
    assert damage(path) == "is empty (0 bytes)"
    path.write_bytes(b"<!DOCTYPE html>")
    assert str(damage(path)).startswith("is neither JPEG nor PNG")
    path.unlink()
    assert str(damage(path)).startswith("cannot be read (No such file")


def test_deep_findings_read_the_ends_of_all_files(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(5)]
    for name in names:
        (tmp_path / name).write_bytes(noise("JPEG"))
    listed = list_shelf(shelf(tmp_path, *names))
    assert deep_findings(listed, no_progress) == [Finding("ok", "chips", "5 are whole")]
    # Decodes all the same: cameras write videos behind their photos.
    (tmp_path / "2.jpg").write_bytes(noise("JPEG") + b"x" * 10_000)
    (finding,) = deep_findings(listed, no_progress)
    assert finding.level == "note" and "1 of 5 can be decoded all the same" in finding.text
    (tmp_path / "3.jpg").write_bytes(noise("JPEG", 300, 300)[:9000])
    (tmp_path / "4.jpg").write_bytes(b"")
    finding, odd = deep_findings(listed, no_progress)
    assert finding.level == "problem" and finding.text.startswith("2 of 5 looked into are damaged")
    assert "3.jpg is cut short" in finding.text and "4.jpg is empty" in finding.text
    assert "2.jpg" in odd.text


def test_samples_are_decoded_and_measured(tmp_path: Path) -> None:
    for name, side in (("a.png", 640), ("b.png", 640), ("c.png", 512)):
        (tmp_path / name).write_bytes(image_bytes(side, side, "PNG", (1, 2, 3)))
    listed = list_shelf(shelf(tmp_path, "a.png", "b.png", "c.png", side_px=640))
    a, b, c = listed.found
    assert sample_findings(listed, [a, b]) == [Finding("ok", "chips", "2 opened: 640 x 640 px (2)")]
    (finding,) = sample_findings(listed, [a, b, c])
    assert finding.level == "note"
    assert "640 x 640 px (2), 512 x 512 px (1); published are 640 x 640 px" in finding.text
    c.write_bytes(image_bytes(640, 320, "PNG", (1, 2, 3)))
    (finding,) = sample_findings(listed, [a, c])
    assert finding.level == "problem" and "square" in finding.text
    c.write_bytes(noise("PNG")[:200])
    b.write_bytes(b"")
    damaged, sizes = sample_findings(listed, [a, b, c])
    assert damaged.level == "problem" and damaged.text.startswith("2 of 3 looked into are")
    assert "b.png is empty" in damaged.text and "c.png is cut short" in damaged.text
    assert sizes.text == "1 opened: 640 x 640 px (1)"


def test_an_unusual_aspect_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes(64, 32, "JPEG", (1, 2, 3)))
    (tmp_path / "b.jpg").write_bytes(image_bytes(64, 48, "JPEG", (1, 2, 3)))
    listed = list_shelf(shelf(tmp_path, "a.jpg", "b.jpg", aspect=2.0))
    assert [f.level for f in sample_findings(listed, listed.found[:1])] == ["ok"]
    (finding,) = sample_findings(listed, listed.found)
    assert finding.level == "note" and "b.jpg" in finding.text
