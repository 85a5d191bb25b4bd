from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from study_helpers import SMALL_TRUNK

from ciper.errors import DatasetError
from ciper.model.network import Network, NetworkConfig
from ciper.study import real
from ciper.study.real import RealPhotos, measure_real, read_real, real_baselines, real_folder

NUM_PHOTOS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos of noise; aerial images whose red and green tell row and column."""
    lines = ["id,lat,lon,compass_deg"]
    row, column = np.mgrid[0:500, 0:500]
    aerial = np.stack([row // 2, column // 2, np.full_like(row, 9)], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    for i in range(NUM_PHOTOS):
        photo = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(photo).save(tmp_path / f"{i}_ground.jpg")
        Image.fromarray(aerial).save(tmp_path / f"{i}_aerial.jpg", quality=98)
        lines.append(f"{i},60.0,25.0,{-30 + 100 * i}")
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    return tmp_path


def test_photos_have_a_view_per_field_of_view(folder: Path) -> None:
    photos = read_real(folder).photos
    assert [photo.heading_deg for photo in photos] == [330.0, 70.0, 170.0]
    assert photos[0].canvas.shape == (5, 128, 512, 3)
    widths = photos[0].is_visible.any(1).sum(1)
    assert (widths.diff() > 0).all()
    assert int(widths[-1]) == pytest.approx(512 * 90 / 360, abs=2)


def test_windows_show_the_camera_where_their_pose_says(folder: Path) -> None:
    windows = list(read_real(folder).windows())
    assert len(windows) == 8
    poses = np.concatenate([w.pose for w in windows])
    assert np.abs(poses[:, :2]).max() <= 32.5
    assert (poses[:, :2].min(0) < -16).all() and (poses[:, :2].max(0) > 16).all()
    assert np.array_equal(poses[:3, 2], [330.0, 70.0, 170.0])
    for window in windows:
        assert window.is_valid.all()
        for chip, (x_m, y_m, _) in zip(window.chip.numpy(), window.pose, strict=True):
            # The pixel south-east of the camera is (250, 250) of the aerial image.
            seen = chip[round(128 - 2 * y_m), round(128 + 2 * x_m)]
            assert np.abs(seen.astype(int) - (125, 125, 9)).max() <= 4
    again = next(iter(read_real(folder).windows()))
    assert torch.equal(again.chip, windows[0].chip)


def network() -> Network:
    torch.manual_seed(0)
    return Network(NetworkConfig(encoder=SMALL_TRUNK))


@pytest.mark.parametrize(("sign", "recall", "rank"), [(1.0, 1.0, 1.0), (-1.0, 0.0, 3.0)])
def test_ranks_are_of_the_own_chip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sign: float, recall: float, rank: float
) -> None:
    asked: list[int] = []

    def oracle(*_: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        asked.append(len(asked) % NUM_PHOTOS)
        return np.asarray(sign * np.eye(NUM_PHOTOS)[asked[-1]])

    monkeypatch.setattr(real, "pose_evidence", oracle)
    monkeypatch.setattr(real, "NUM_OFFSETS", 2)
    figures = measure_real(network(), read_real(folder))
    assert len(asked) == 2 * NUM_PHOTOS
    assert (figures["matched_recall@1"], figures["matched_rank"]) == (recall, rank)
    assert 1 <= figures["retrieval_rank"] <= NUM_PHOTOS
    assert 0 < figures["median_m"] < 92


def test_chance_is_what_knowing_nothing_gives(folder: Path) -> None:
    figures = real_baselines(read_real(folder))
    assert figures["center"]["retrieval_recall@1"] == pytest.approx(1 / 3)
    assert figures["random"]["matched_rank"] == 2.0
    assert 18 < figures["center"]["median_m"] < 32


def test_other_photos_have_another_digest_and_a_wrong_folder_is_named(folder: Path) -> None:
    before = read_real(folder).digest
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(folder / "0_ground.jpg")
    assert read_real(folder).digest != before
    (folder / "poses.csv").write_text("id,lat\n0,60.0\n")
    with pytest.raises(DatasetError, match="compass_deg"):
        read_real(folder)
    with pytest.raises(DatasetError, match=r"unset it"):
        read_real(folder / "elsewhere")


def test_the_folder_is_that_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPER_REAL_DATA", "/data")
    assert real_folder() == Path("/data/helsinki")
    monkeypatch.delenv("CIPER_REAL_DATA")
    assert real_folder() is None


def test_the_photos_of_helsinki() -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if root is None:
        pytest.skip("CIPER_REAL_DATA is not set: it names the folder of real photos")
    found: RealPhotos = read_real(Path(root) / "helsinki")
    assert len(found.photos) == 5
    assert all(photo.aerial.shape == (500, 500, 3) for photo in found.photos)
    assert found.photos[1].heading_deg == pytest.approx(111.13)
