from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from gallery_helpers import write_city
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from released_helpers import write_released
from torch import nn
from typer.testing import CliRunner, Result

from ciper.cli import app
from ciper.convert import convert
from ciper.data.poses import read_poses
from ciper.model.load import Model, load_model
from ciper.real_photos import evaluation
from ciper.real_photos.evaluation import (
    AskedPhoto,
    RealPhotosOptions,
    Scores,
    cut_window,
    measure_real_photos,
)
from ciper.real_photos.figures import (
    Ranks,
    Trials,
    coin_probability,
    figures_of,
    interval,
    measures_of,
    verdict,
)
from ciper.simulate import SimulateConfig, simulate
from ciper.study.real import NUM_OFFSETS, SEED, read_real, read_table, window_shift

FEW = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos of noise; aerial images of 200 m whose red and green tell row and column."""
    rng, row = np.random.default_rng(0), np.arange(400)[:, None] * np.ones((1, 400))
    aerial = np.stack([row / 2, row.T / 2, 9 + 0 * row], axis=-1).astype(np.uint8)
    made = tmp_path / "photos"
    made.mkdir()
    for name in ("a", "b"):
        photo = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(photo).save(made / f"{name}_ground.jpg")
        Image.fromarray(aerial).save(made / f"{name}_aerial.jpg", quality=98)
    (made / "poses.csv").write_text("id,lat,lon,compass_deg\na,60,25,-30\nb,60,25,100\n")
    return made


def asked(model: Model, aerial: NDArray[np.uint8], heading_deg: float = 0.0) -> AskedPhoto:
    photo = np.zeros((60, 80, 3), np.uint8)
    code: Any = None  # windows are cut without it
    camera: Any = None
    return AskedPhoto("a", photo, camera, heading_deg, aerial, code)


def test_windows_are_those_of_the_study(folder: Path, tiny_weights: Path) -> None:
    model = load_model(tiny_weights, "cpu")
    photos = read_real(folder).photos
    assert [pose.name for pose in read_table(folder)] == ["a", "b"]
    for number, windows in enumerate(read_real(folder).windows()):
        for i, photo in enumerate(photos):
            window = cut_window(
                asked(model, photo.aerial, photo.heading_deg), model, window_shift(number, i)
            )
            assert np.array_equal(window.pixels, windows.chip[i].numpy())
            assert np.array_equal(window.pose, windows.pose[i])


@pytest.mark.parametrize("shift", [(20.2, 9.7), (-20.2, 9.7), (-20.2, -9.7), (20.2, -9.7)])
def test_windows_of_other_models_show_the_camera_where_their_pose_says(
    tiny_weights: Path, shift: tuple[float, float]
) -> None:
    model = load_model(tiny_weights, "cpu")
    small = replace(model, network=_Small())
    row = np.arange(400)[:, None] * np.ones((1, 400))
    aerial = np.stack([row / 2, row.T / 2, 0 * row], axis=-1).astype(np.uint8)
    window = cut_window(asked(model, aerial, 70.0), small, np.array(shift))
    assert window.pixels.shape == (128, 128, 3)
    assert window.pose == pytest.approx((-shift[0], -shift[1], 70.0), abs=0.25)
    # 96 m over 128 px; the image's middle is (200, 200), which holds 100.
    u, v = 64 + window.pose[0] / 0.75, 64 - window.pose[1] / 0.75
    seen = window.pixels[round(v - 0.5), round(u - 0.5)]
    assert np.abs(seen.astype(int) - (100, 100, 0)).max() <= 1


class _Small(nn.Module):
    """Of a network only the configuration is looked at."""

    class config:  # noqa: N801
        chip_px, gsd = 128, 0.75


# ---------------------------------------------------------------------------------------- figures


def trials(**changes: Any) -> Trials:
    """Two photos at two offsets in windows of 128 m."""
    true = np.array([[(3, 4, 10), (0, 0, 10)], [(0, 0, 200), (32, 32, 200)]], dtype=float)
    found = np.array([[(0, 0, 350), (0, 1, 11)], [(-6, 8, 20), (32, 30, 203)]], dtype=float)
    ranks = Ranks(np.array([[1.0, 2], [1, 2]]), np.array([[1.0, 1], [2, 2]]))
    made = Trials(
        ("a", "b"), 32.0, true, found, np.full((2, 2), 0.25), np.ones((2, 2, 32, 32)), ranks
    )
    return replace(made, **changes)


def test_errors_are_held_against_what_knows_nothing() -> None:
    figures = figures_of(trials())
    assert figures["photos"]["a"]["distance_m"] == pytest.approx(3.0)
    assert figures["photos"]["a"]["heading_error_deg"] == pytest.approx((20 + 1) / 2)
    assert figures["photos"]["b"]["heading_error_deg"] == pytest.approx((180 + 3) / 2)
    assert figures["photos"]["a"]["center_distance_m"] == pytest.approx(2.5)
    assert figures["total"]["distance_m"]["mean"] == pytest.approx((5 + 1 + 10 + 2) / 4)
    chance = measures_of(trials())["distance_m"].against
    assert chance["center"] == pytest.approx(np.array([[5, 0], [0, 32 * np.sqrt(2)]]))
    # Mean distance in a square of side s from its middle 0.3826 s, from its corner twice that.
    assert chance["random"][:, 1] == pytest.approx(0.382598 * 64 * np.array([1, 2]), rel=1e-3)
    by_evidence = figures["total"]["rank_evidence"]["against"]["random"]
    assert (by_evidence["mean"], by_evidence["num_photos_better"]) == (1.5, 1)


def test_what_a_model_does_not_say_is_left_out() -> None:
    silent = trials().found.copy()
    silent[..., 2] = np.nan
    figures = figures_of(trials(found=silent, confidence=np.full((2, 2), np.nan)))
    assert set(figures["total"]) == {"rank_descriptor", "rank_evidence", "distance_m"}


def test_intervals_are_students() -> None:
    reach = 4.302653 / np.sqrt(3)
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - reach, 2 + reach))
    assert [verdict(i) for i in ((-3, -1), (-3, 1), (1, 3))] == [
        "better",
        "not told apart",
        "worse",
    ]
    assert (coin_probability(5, 5), coin_probability(4, 5)) == (1 / 32, 6 / 32)


def scores(own: float, other: float, far: tuple[float, ...]) -> Scores:
    """Of two photos: similarities of all own windows, of all others', and of the distractors."""
    is_own = np.tile(np.eye(2), (NUM_OFFSETS, 1))
    similarity = np.concatenate([np.where(is_own, own, other), np.tile(np.array(far)[:, None], 2)])
    return Scores(
        descriptor=np.eye(2, dtype=np.float32),
        references=similarity[:, None].astype(np.float16),
        evidence=-similarity.T,
    )


def test_ranks_are_among_windows_of_one_offset_and_among_distractors() -> None:
    made = scores(0.5, 0.75, (0.25, 0.625, 0.875, 0.5))
    near = evaluation._among_photos(made, 2)
    assert near.descriptor.shape == (2, NUM_OFFSETS)
    assert (near.descriptor == 2).all() and (near.evidence == 1).all()
    far = evaluation._among_distractors(made, 2, 5)
    assert far is not None and (far.num, far.num_incomplete) == (4, 1)
    # Ties are against: 0.625, 0.875 and 0.5; the evidence has the opposite sign.
    assert (far.own.descriptor == 4).all() and (far.others.descriptor == 2).all()
    assert (far.own.evidence == 3).all() and (far.others.evidence == 4).all()
    total = figures_of(
        trials(among_distractors=replace(far, own=Ranks(*np.full((2, 2, 2), 4.0)),
                                         others=Ranks(*np.full((2, 2, 2), 2.0))))
    )["total"]["distractor_rank_descriptor"]  # fmt: skip
    assert total["against"]["random"]["mean"] == 3.0
    assert total["against"]["other windows"]["mean"] == 2.0


# -------------------------------------------------------------------------------- from end to end


@pytest.fixture
def few_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "NUM_OFFSETS", FEW)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciper.real_photos.report.draw_photo", lambda *_: None)


def run(out: Path, *options: object) -> Result:
    command = ["benchmark", "photos", "--out", out, "--device", "cpu", *options]
    return CliRunner().invoke(app, [str(part) for part in command])


@pytest.mark.usefixtures("few_offsets")
def test_from_the_command_line_to_the_report(
    folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    for i, size_px in enumerate((400, 400, 200)):
        write_city(tmp_path / f"{i}.tif", east=5e5 + 400 * i, north=5e6, size_px=size_px, seed=i)
    out, usual = tmp_path / "out", ("--folder", folder, "--model", tiny_weights)
    done = run(out, *usual, "--distractors", tmp_path / "?.tif")
    assert done.exit_code == 0, done.output
    figures = json.loads((out / "metrics.json").read_text())
    assert (figures["num_distractors"], figures["num_incomplete_distractors"]) == (2, 1)
    assert (figures["seed"], figures["num_offsets"], figures["chip_m"]) == (SEED, FEW, 128.0)
    total = figures["total"]
    assert "confidence" not in total
    # The aerial images are the same, so that whoever ties with the other window comes behind it.
    assert total["rank_evidence"]["against"]["random"]["mean"] == 1.5
    assert total["distractor_rank_evidence"]["against"]["random"]["mean"] == 2.0
    with (out / "windows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * FEW
    for row in rows:
        dx, dy = (float(row[f"found_{x}_m"]) - float(row[f"true_{x}_m"]) for x in "xy")
        assert np.hypot(dx, dy) == pytest.approx(float(row["distance_m"]), abs=2e-4)
    with (out / "photos.csv").open() as file:
        assert [row["photo"] for row in csv.DictReader(file)] == ["a", "b"]
    with Image.open(out / "pictures" / "photo-2.png") as picture:
        assert picture.width > 1000
    report = (out / "report.md").read_text()
    assert "not calibrated" in report and "1 more have gaps there" in report
    again = run(out, *usual, "--seed", "1")
    assert again.exit_code == 0, again.output
    assert json.loads((out / "metrics.json").read_text())["num_distractors"] == 0


@pytest.mark.usefixtures("few_offsets", "without_pictures")
def test_a_converted_model_has_windows_of_its_own_size(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vigor.safetensors"
    convert(write_released(tmp_path / "model.pth"), weights, dataset="vigor")
    figures = measure_real_photos(tmp_path / "out", RealPhotosOptions(folder, weights))
    assert figures["chip_m"] == pytest.approx(71.04)
    assert "heading_error_deg" not in figures["total"]
    assert figures["total"]["distance_m"]["against"]["random"]["mean"] < 25
    assert any("2 of 2 photos" in warning for warning in figures["warnings"])


def test_what_cannot_be_measured_is_refused(
    folder: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*options: object, out: Path = tmp_path / "out") -> str:
        done = run(out, "--model", tiny_weights, *options)
        assert done.exit_code == 2, done.output
        assert done.stderr.count("\n") == 1 or "error" in done.stderr.splitlines()[-1]
        return done.stderr

    monkeypatch.delenv("CIPER_REAL_DATA", raising=False)
    assert "--folder, or set $CIPER_REAL_DATA" in refusal()
    assert "holds no poses.csv" in refusal("--folder", tmp_path)
    assert "not a report of ciper benchmark photos" in refusal("--folder", folder, out=folder)
    assert "matches no file" in refusal("--folder", folder, "--distractors", tmp_path / "*.tif")
    write_city(tmp_path / "small.tif", east=5e5, north=5e6, size_px=200)
    small = refusal("--folder", folder, "--distractors", tmp_path / "small.tif")
    assert "none of 1 distractors" in small and "128 m" in small
    table = (folder / "poses.csv").read_text()
    (folder / "poses.csv").write_text(table.replace("-30", "nan"))
    assert "photo a without a heading" in refusal("--folder", folder)
    (folder / "poses.csv").write_text(table.rpartition("b,")[0])
    assert "holds 1 photos" in refusal("--folder", folder)
    (folder / "poses.csv").write_text(table)
    Image.new("RGB", (380, 400)).save(folder / "b_aerial.jpg")
    assert "is 190 m wide; expected 192.5 m" in refusal("--folder", folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_offsets", "without_pictures")
def test_the_photos_of_helsinki(tiny_weights: Path, tmp_path: Path) -> None:
    root = os.environ.get("CIPER_REAL_DATA")
    if root is None:
        pytest.skip("CIPER_REAL_DATA is not set: it names the folder of real photos")
    naip = str(Path(root) / "naip" / "chico_2020_1?.tif")
    options = RealPhotosOptions(model=tiny_weights, distractors=(naip,))
    figures = measure_real_photos(tmp_path / "out", options)
    assert (figures["num_photos"], figures["num_incomplete_distractors"]) == (5, 0)
    assert 0 < figures["total"]["distance_m"]["against"]["center"]["mean"] < 46


@pytest.mark.slow
def test_the_shipped_model_knows_a_simulated_city(tmp_path: Path) -> None:
    """What is at chance on real photos is far from it where the model is known to work."""
    city = simulate(tmp_path / "city", SimulateConfig(seed=9101, size_m=460.0, num_photos=40)).out
    with rasterio.open(city / "aerial.tif") as raster:
        rgb, to_crs = (
            raster.read().transpose(1, 2, 0),
            Transformer.from_crs(4326, raster.crs, always_xy=True),
        )
        inverse = ~raster.transform
    lines = ["id,lat,lon,compass_deg"]
    for i, pose in enumerate(read_poses(city / "poses.csv")):
        u, v = (round(value) for value in inverse @ to_crs.transform(pose.lon, pose.lat))
        about = rgb[max(v - 200, 0) : v + 200, max(u - 200, 0) : u + 200]
        if about.shape[:2] == (400, 400) and len(lines) <= 4:
            Image.fromarray(about).save(tmp_path / f"{i}_aerial.jpg", quality=95)
            Image.open(pose.photo).save(tmp_path / f"{i}_ground.jpg", quality=95)
            lines.append(f"{i},{pose.lat},{pose.lon},{pose.heading_deg}")
    (tmp_path / "poses.csv").write_text("\n".join(lines))
    figures = measure_real_photos(tmp_path / "out", RealPhotosOptions(tmp_path, "ground"))
    total = figures["total"]
    assert total["rank_evidence"]["mean"] < 1.5
    assert total["distance_m"]["median"] < 2.0 and total["heading_error_deg"]["median"] < 3.0
