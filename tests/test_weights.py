"""The shipped weights: what they must at least do, on an unseen city and on real photos."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ciper.camera import Camera
from ciper.checkpoint import find_weights, load_checkpoint
from ciper.data.nadir import NadirConfig, cut_nadir_photos
from ciper.evaluate import evaluate
from ciper.geo import LocalFrame
from ciper.index import build_index
from ciper.localize import Localizer
from ciper.model.load import Model, load_model
from ciper.simulate import SimulateConfig, simulate


@pytest.fixture(scope="module")
def ground() -> Model:
    return load_model("ground", "cpu")


@pytest.fixture(scope="module")
def real_data() -> Path:
    folder = os.environ.get("CIPER_REAL_DATA")
    if folder is None:
        pytest.skip("CIPER_REAL_DATA is unset: it names the folder of real photos and imagery")
    return Path(folder)


@pytest.mark.parametrize("name", ["ground", "nadir"])
def test_the_shipped_files_are_small_and_described(name: str) -> None:
    path = find_weights(name)
    assert path.stat().st_size <= 20_000_000
    card = (path.parent / "card.md").read_text()
    assert "ciper train" in card
    assert "ciper calibrate" in card
    # Where they were trained is nobody's business.
    assert '"/' not in json.dumps(load_checkpoint(path)[1])


def test_each_kind_of_weights_knows_its_photos(ground: Model) -> None:
    nadir = load_model("nadir", "cpu")
    level = Camera("pinhole", 300, 400, 90.0)
    from_above = replace(level, pitch_deg=-90.0)
    assert ground.misfit(level) is ground.misfit(from_above) is nadir.misfit(from_above) is None
    assert "take the model 'ground'" in str(nadir.misfit(level))
    assert nadir.calibration.plan is not None and not nadir.calibration.is_fitted
    assert nadir.limits == ground.limits == ()
    assert nadir.model_hash != ground.model_hash


def test_panoramas_of_an_unseen_city_are_found(ground: Model, tmp_path: Path) -> None:
    simulate(tmp_path / "city", SimulateConfig(seed=77, size_m=400.0, num_photos=24))
    build_index([tmp_path / "city" / "aerial.tif"], tmp_path / "gallery", ground)
    figures = evaluate(
        str(tmp_path / "city" / "poses.csv"),
        tmp_path / "report",
        gallery=tmp_path / "gallery",
        model=ground,
    )
    assert figures["pose"]["median_m"] <= 1.8
    assert figures["pose"]["heading_median_deg"] <= 2.5
    assert figures["end_to_end"]["recall@5m"] >= 0.5
    random = figures["baseline"]["random"]["end_to_end"]
    assert figures["end_to_end"]["recall@5m"] > random["recall@5m"] + 0.4


def test_real_photos_of_elsewhere_get_no_confident_answer(
    ground: Model, real_data: Path, tmp_path: Path
) -> None:
    """16 photos of Helsinki, US cities and Karlsruhe against chips of Long Beach."""
    rasters = sorted((real_data / "naip").glob("long_beach_2020_1*.tif"))
    assert len(rasters) == 11
    build_index(rasters, tmp_path / "gallery", ground)
    localizer = Localizer(tmp_path / "gallery", ground)
    photos = sorted((real_data / "helsinki").glob("*_ground.jpg"))
    photos += sorted(p for p in (real_data / "ground").iterdir() if p.suffix in (".jpg", ".png"))
    assert len(photos) == 16
    confidences = np.array([localizer.localize(photo).confidence for photo in photos])
    assert (confidences > 0.5).sum() <= 1


@pytest.mark.parametrize("name", ["ground", "nadir"])
def test_photos_from_above_are_found_at_another_date(
    real_data: Path, tmp_path: Path, name: str
) -> None:
    later = sorted((real_data / "naip").glob("chico_2020_1*.tif"))
    build_index(later, tmp_path / "gallery", load_model(name, "cpu"))
    localizer = Localizer(tmp_path / "gallery", device="cpu")
    assert localizer.model.model_name == name
    earlier = sorted((real_data / "naip").glob("chico_2018_1*.tif"))
    (tmp_path / "photos").mkdir()
    photos = cut_nadir_photos(earlier, tmp_path / "photos", NadirConfig(num_photos=11, seed=5))
    errors = []
    for pose in photos:
        found = localizer.localize(pose.photo)
        frame = LocalFrame(lat=pose.lat, lon=pose.lon)
        errors.append(float(np.hypot(*frame.to_local(lat=found.pose.lat, lon=found.pose.lon))))
        assert found.is_calibrated
    assert np.median(errors) < 1.5
    assert np.mean(np.array(errors) < 5.0) >= 0.8
