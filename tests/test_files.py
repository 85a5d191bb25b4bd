from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ciper.errors import OutputError
from ciper.files import finished_folder, is_free, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_whole(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.parent == path.parent
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_file_that_is_not_finished_leaves_the_old_one(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), written_whole(path) as unfinished:
        unfinished.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), written_whole(tmp_path / "a") as unfinished:
        unfinished.write_bytes(b"data")
    assert names(tmp_path) == []


def test_free_places(tmp_path: Path) -> None:
    assert is_free(tmp_path)
    assert is_free(tmp_path / "none")
    (tmp_path / "file").touch()
    assert not is_free(tmp_path)
    assert not is_free(tmp_path / "file")


@pytest.mark.parametrize("old", [None, (), ("stale.txt",)])
def test_a_folder_appears_when_it_is_finished(old: tuple[str, ...] | None, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "report"
    if old is not None:
        out.mkdir(parents=True)
        for name in old:
            (out / name).touch()
    with finished_folder(out) as folder:
        (folder / "a.txt").write_text("new")
        assert not (out / "a.txt").exists()
    assert names(out) == ["a.txt"]
    assert names(tmp_path / "runs") == ["report"]
    if os.name == "posix":
        assert out.stat().st_mode & 0o777 == 0o755


def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "metrics.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), finished_folder(out) as folder:
        (folder / "metrics.json").write_text("new")
        raise KeyboardInterrupt
    assert (out / "metrics.json").read_text() == "old"
    assert names(tmp_path) == ["report"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"cannot write beside .*report: .*choose another place"),
        finished_folder(tmp_path / "file" / "report"),
    ):
        pass
    with (
        pytest.raises(OutputError, match=r"cannot write .*out: No space left.*free some space"),
        finished_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OutputError, match=r"cannot write .*out: block 7; free some space"),
        finished_folder(tmp_path / "out", LookupError),
    ):
        raise LookupError("block 7")
    with pytest.raises(LookupError), finished_folder(tmp_path / "out"):
        raise LookupError("no refusal to write")
    assert names(tmp_path) == ["file"]
