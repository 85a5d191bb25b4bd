from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from model_helpers import TINY, write_tiny_weights
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import Affine
from typer.testing import CliRunner

from ciper.calibrate import calibrate, known_calibration
from ciper.calibration_cities import CalibrateConfig, NadirImagery
from ciper.checkpoint import load_checkpoint, save_checkpoint
from ciper.cli import app
from ciper.errors import ConfigError, OutputError
from ciper.index import build_index
from ciper.model.calibration import Calibration, PosteriorShape, ViewCalibration
from ciper.model.load import load_model
from ciper.model.matcher import Evidence
from ciper.nadir_benchmark import NadirBenchmarkOptions, _same_row, benchmark_nadir

WITH_PLAN = replace(TINY, has_plan_head=True)


def write_raster(path: Path, array: NDArray[np.uint8], *, left: float = 385_000.0) -> None:
    transform = Affine(0.5, 0, left, 0, -0.5, 6_672_000.0)
    with rasterio.open(
        path, "w", driver="GTiff", height=len(array), width=array.shape[1], count=3, dtype="uint8",
        crs="EPSG:32635", transform=transform,
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(array, -1, 0))


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two places of 160 m at two dates: the same ground in another light."""
    folder = tmp_path_factory.mktemp("dates")
    for place in range(2):
        small = np.random.default_rng(place).integers(30, 220, (40, 40, 3), np.uint8)
        ground = Image.fromarray(small).resize((320, 320), Image.Resampling.BICUBIC)
        for year, gain in ((2018, 1.0), (2020, 0.85)):
            array = (np.asarray(ground) * gain).astype(np.uint8)
            write_raster(folder / f"{place}_{year}.tif", array, left=385_000.0 + 2000 * place)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return write_tiny_weights(path, config=WITH_PLAN)


def options_of(dates: Path, weights: Path, cache: Path, **changes: object) -> NadirBenchmarkOptions:
    options = NadirBenchmarkOptions(
        photos=(f"{dates}/*_2018.tif",),
        imagery=(f"{dates}/*_2020.tif",),
        model=weights,
        num_photos=4,
        num_classical=3,
        device="cpu",
        cache=cache,
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def test_methods_side_by_side(dates: Path, weights: Path, tmp_path: Path) -> None:
    options = options_of(dates, weights, tmp_path / "cache")
    figures = benchmark_nadir(tmp_path / "report", options)
    ours, _, described, same, template, sift, flann = figures["table"]
    assert [row["num_photos"] for row in figures["table"]] == [4, 4, 4, 3, 3, 3, 3]
    # Of four photos the methods without learning had the first, the last and one between them.
    rows = pq.read_table(tmp_path / "report" / "model" / "per_query.parquet").to_pylist()
    of_same = [rows[i] for i in (0, 2, 3)]
    assert same["recall_at_1"] == np.mean([row["posterior_rank"] == 0 for row in of_same])
    assert same["median_m"] == pytest.approx(np.median([row["error_m"] for row in of_same]))
    # The ground has not changed: methods that compare pixels find it to the metre.
    assert template["within_5m"] == 1.0 and template["heading_median_deg"] < 2.0
    assert template["hit_rate"] == 1.0 and template["seconds"] > 0
    assert "exact" in sift["method"] and "approximate" in flann["method"]
    assert sift["within_5m"] >= 0.6 and described["within_5m"] is None
    assert 0 <= ours["recall_at_1"] <= 1 and ours["seconds"] > 0
    assert figures["floor"]["num_pairs"] == 2 and figures["floor"]["median_m"] < 0.1
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| template matching, 36 rotations | 3 |" in text and "lie apart" in text
    assert (tmp_path / "report" / "model" / "report.md").exists()
    saved = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert saved["table"] == figures["table"]


def test_photos_that_fail_count_beside_the_other_methods(tmp_path: Path) -> None:
    rows = [
        {"posterior_rank": 0, "posterior_hit_rank": 0, "error_m": 0.5, "heading_error_deg": 1.0,
         "seconds": 0.2},
        {"posterior_rank": None, "posterior_hit_rank": None, "error_m": None,
         "heading_error_deg": None, "seconds": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "per_query.parquet")
    row = _same_row("ours", tmp_path, np.array([0, 1, 1]))
    assert row.num_photos == 3
    assert (row.recall_at_1, row.hit_rate, row.within_5m) == pytest.approx((1 / 3,) * 3)
    assert (row.median_m, row.heading_median_deg, row.seconds) == (np.inf, 180.0, 0.2)


def test_photos_are_kept_and_heights_change_what_is_told(
    dates: Path, weights: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    plain = options_of(dates, weights, cache, num_classical=0)
    first = benchmark_nadir(tmp_path / "a", plain)
    photos = {path: path.stat().st_mtime_ns for path in cache.rglob("*.jpg")}
    again = benchmark_nadir(tmp_path / "b", plain)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.jpg")} == photos
    assert again["model"]["pose"] == first["model"]["pose"]
    unknown = benchmark_nadir(tmp_path / "c", replace(plain, height_error=None))
    assert unknown["model"]["pose"] != first["model"]["pose"]
    assert "heights not told" in (tmp_path / "c" / "report.md").read_text()


def test_other_places_have_no_floor(dates: Path, weights: Path, tmp_path: Path) -> None:
    options = options_of(
        dates, weights, tmp_path / "cache", num_classical=0,
        photos=(f"{dates}/0_2018.tif",), imagery=(f"{dates}/1_2020.tif",),
    )  # fmt: skip
    figures = benchmark_nadir(tmp_path / "report", options)
    assert figures["floor"] is None
    assert "was not measured" in (tmp_path / "report" / "report.md").read_text()
    assert figures["table"][0]["recall_at_1"] == 0.0


def test_photos_from_above_are_calibrated_alone(dates: Path, weights: Path, tmp_path: Path) -> None:
    imagery = NadirImagery(
        photos=(f"{dates}/0_2018.tif",),
        imagery=(f"{dates}/0_2020.tif",),
        elsewhere=(f"{dates}/1_2018.tif",),
    )
    out = tmp_path / "calibrated.safetensors"
    config = CalibrateConfig(num_photos=3)
    fitted = calibrate(weights, out, config, cache=tmp_path / "cache", nadir=imagery, device="cpu")
    found = load_model(out, "cpu").calibration
    assert found == fitted and found.plan is not None
    assert found.plan.shape.heading_scale != 1.0
    of_plan = Evidence(*(np.zeros(1),) * 6, is_plan=True)  # type: ignore[arg-type]
    assert found.is_fitted_to(of_plan) and not found.is_fitted
    assert replace(found, plan=None) == Calibration(is_fitted=False)
    # Known for street photos, the rest stays; a plan head that learned alone has it from its start.
    start = write_tiny_weights(tmp_path / "start.safetensors", calibration=Calibration(floor_of()))
    state, header = load_checkpoint(weights)
    config_of_run = {**header["config"], "train": {"trained": "plan"}, "init": str(start)}
    save_checkpoint(tmp_path / "run.safetensors", state, {**header, "config": config_of_run})
    assert known_calibration(tmp_path / "run.safetensors") == Calibration(floor_of())
    assert known_calibration(start) == Calibration(floor_of())


def floor_of() -> PosteriorShape:
    return PosteriorShape(floor=0.25)


def test_confidences_of_kinds_that_nobody_fitted_are_not_stated() -> None:
    evidence = Evidence(*(np.zeros(1),) * 6, is_plan=True)  # type: ignore[arg-type]
    street = replace(evidence, is_plan=False)
    plain, plan = Calibration(), ViewCalibration(PosteriorShape(floor=0.2), confidence=(1.0,) * 5)
    both = replace(plain, plan=plan)
    assert plain.is_fitted_to(street) and not plain.is_fitted_to(evidence)
    assert both.is_fitted_to(street) and both.is_fitted_to(evidence)
    assert both.view(evidence) == plan and both.view(street).confidence == plain.confidence
    assert plain.view(evidence).shape == plain.shape(1.0)


def test_what_cannot_be_measured(dates: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least one photo"):
        options_of(dates, weights, tmp_path, num_photos=0)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a report"):
        benchmark_nadir(taken, options_of(dates, weights, tmp_path / "cache"))
    found = CliRunner().invoke(
        app,
        ["benchmark", "nadir", "--photos", f"{tmp_path}/none_*.tif", "--imagery", "x.tif",
         "--out", str(tmp_path / "r"), "--model", str(weights)],
    )  # fmt: skip
    assert found.exit_code == 2 and "none_*.tif" in found.stderr
    assert "Traceback" not in found.stderr
    with pytest.raises(ConfigError, match="set --num-classical 0"):
        options_of(dates, weights, tmp_path, num_classical=1, height_error=None)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        benchmark_nadir(tmp_path / "r", options_of(dates, weights, file))


def test_a_model_of_street_photos_says_so(dates: Path, tmp_path: Path) -> None:
    plain = write_tiny_weights(tmp_path / "plain.safetensors")
    options = options_of(dates, plain, tmp_path / "cache", num_classical=0, num_photos=2)
    figures = benchmark_nadir(tmp_path / "report", options)
    assert any("was trained on level photos" in w for w in figures["model"]["warnings"])
    assert "Warning: 2 of 2 photos" in (tmp_path / "report" / "report.md").read_text()
    imagery = NadirImagery((f"{dates}/0_2018.tif",), (f"{dates}/0_2020.tif",), (str(dates),))
    with pytest.raises(ConfigError, match="expected a model with a plan head"):
        calibrate(plain, tmp_path / "w", cache=tmp_path / "cache", nadir=imagery, device="cpu")


def test_one_gallery_serves_all_heads(dates: Path, tmp_path: Path) -> None:
    """Weights that differ in their plan head and in their name alone go on with one gallery."""
    plain = load_model(write_tiny_weights(tmp_path / "plain.safetensors"), "cpu")
    headed = write_tiny_weights(tmp_path / "headed.safetensors", config=WITH_PLAN)
    rasters = sorted(dates.glob("*_2020.tif"))
    build_index(rasters, tmp_path / "gallery", plain)
    again = build_index(rasters, tmp_path / "gallery", load_model(headed, "cpu"))
    assert again.num_encoded == 0
