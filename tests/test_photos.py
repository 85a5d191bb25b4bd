from __future__ import annotations

from pathlib import Path

import pytest

from ciper.data.photos import find_photos
from ciper.errors import PhotoError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.txt",
        "._b.jpg",
        "deep/c.webp",
        "odd[1].jpg",
        "empty/x.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_means_its_images(folder: Path) -> None:
    assert find_photos([folder]) == (folder / "a.PNG", folder / "b.jpg", folder / "odd[1].jpg")


def test_patterns_and_files_keep_their_order_without_repeats(folder: Path) -> None:
    found = find_photos([str(folder / "b.jpg"), str(folder / "*.jpg"), str(folder / "**/*.webp")])
    assert found == (folder / "b.jpg", folder / "odd[1].jpg", folder / "deep/c.webp")


def test_relative_patterns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_photos(["deep/*"]) == (Path("deep/c.webp"),)


def test_a_name_that_exists_is_no_pattern(folder: Path) -> None:
    assert find_photos([folder / "odd[1].jpg"]) == (folder / "odd[1].jpg",)


def test_a_missing_file_is_left_to_the_reader(folder: Path) -> None:
    assert find_photos([folder / "missing.jpg"]) == (folder / "missing.jpg",)


def test_nothing_found_is_an_error(folder: Path) -> None:
    with pytest.raises(PhotoError, match=r"folder .*empty holds no photo"):
        find_photos([folder / "empty"])
    with pytest.raises(PhotoError, match=r"no photo matches '.*\*\.gif'"):
        find_photos([folder / "*.gif"])


def test_folders_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PhotoError, match=r"cannot be looked up \(Permission denied\)"):
        find_photos([folder])
