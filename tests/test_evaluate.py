from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from model_helpers import SmallWorld, write_tiny_weights
from posterior_helpers import row_of_chips

from ciper.asking import without_gaps
from ciper.data.datasets import ProtocolOptions
from ciper.data.poses import PhotoPose, write_poses
from ciper.errors import (
    ConfigError,
    DatasetError,
    GalleryModelMismatchError,
    OutputError,
    PhotoError,
)
from ciper.evaluate import evaluate
from ciper.geo import LocalFrame
from ciper.localize import Localizer
from ciper.metrics import NO_REFERENCE, PoseErrors
from ciper.model.calibration import NUM_FEATURES
from ciper.report import check_replaceable, choose_cases
from ciper.scoring import (
    EvaluateOptions,
    Found,
    Query,
    Setting,
    baseline_answers,
    baseline_figures,
    end_to_end_figures,
    errors_of,
    figures_of,
    foreign_figures,
    near_offset_m,
    pose_figures,
    table_of,
)

CALIBRATION_KEYS = {
    "coverage_50", "coverage_90", "median_radius_90_m", "ece", "aurc", "nll", "heading_within_sigma"
}  # fmt: skip
RETRIEVAL_KEYS = {"recall@1", "recall@5", "recall@10", "recall@1%", "hit_rate"}
POSE_KEYS = {
    "mean_m", "median_m", "recall@1m", "recall@3m", "recall@5m", "lateral_median_m",
    "lateral_recall@1m", "lateral_recall@5m", "longitudinal_median_m", "longitudinal_recall@1m",
    "longitudinal_recall@5m", "heading_mean_deg", "heading_median_deg", "heading_recall@1deg",
    "heading_recall@5deg",
}  # fmt: skip
CITY_KEYS = {
    "median_m", "recall@1m", "recall@3m", "recall@5m", "recall@10m", "recall@25m",
    "heading_median_deg",
}  # fmt: skip
GATED_KEYS = {"gated_recall@1m", "gated_recall@5m"}


@pytest.fixture(scope="module")
def report(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on five photos: one lies outside, one is broken, one has no known heading."""
    folder = tmp_path_factory.mktemp("evaluate")
    first, second, third, *_ = small_world.poses
    lat, lon = LocalFrame(lat=first.lat, lon=first.lon).to_geographic(x=900.0, y=0.0)
    outside = replace(small_world.poses[4], lat=float(lat), lon=float(lon))
    (folder / "broken.jpg").write_bytes(b"no image")
    broken = replace(small_world.poses[3], photo=folder / "broken.jpg")
    table = folder / "poses.csv"
    write_poses(table, [first, second, replace(third, heading_deg=None), broken, outside])
    options = EvaluateOptions(
        near_error_m=30.0,
        near_radius_m=50.0,
        foreign=(str(small_world.poses[5].photo), str(folder / "broken.jpg")),
    )
    steps: list[tuple[str, int, int]] = []
    evaluate(
        str(table), folder / "report", gallery=small_world.gallery, model=small_world.weights,
        device="cpu", options=options, progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert {step[0] for step in steps} == {"queries", "true chips", "foreign photos", "pictures"}
    assert ("queries", 5, 5) in steps
    return folder / "report"


@pytest.fixture(scope="module")
def figures(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    return found


def test_all_files_are_there_and_linked(report: Path) -> None:
    text = (report / "report.md").read_text()
    for name in ("errors", "recall", "retrieval", "heading", "calibration"):
        assert (report / f"{name}.png").stat().st_size > 5000
        assert f"]({name}.png)" in text
    cases = sorted(path.name for path in (report / "cases").iterdir())
    assert cases == [f"worst-{i}.png" for i in (1, 2, 3, 4)]  # the broken photo has no picture
    assert all(f"](cases/{name})" in text for name in cases)
    assert not [path for path in report.parent.iterdir() if "tmp" in path.name]


def test_the_keys_of_metrics_json(figures: dict[str, Any], small_world: SmallWorld) -> None:
    assert figures["num_queries"] == 5
    assert (figures["num_outside"], figures["num_unreadable"]) == (1, 1)
    assert figures["num_references"] > 16
    assert figures["model"] == small_world.weights.stem
    assert (figures["chip_m"], figures["stride_m"]) == (128.0, 64.0)
    assert figures["seconds"] > 0
    for block in ("retrieval", "retrieval_matched", "retrieval_posterior"):
        assert set(figures[block]) == RETRIEVAL_KEYS
    assert set(figures["pose"]) == POSE_KEYS
    assert set(figures["end_to_end"]) == CITY_KEYS | GATED_KEYS
    assert set(figures["end_to_end_near"]) == CITY_KEYS | GATED_KEYS | {
        "near_error_m",
        "near_radius_m",
    }
    for block in ("calibration", "calibration_near", "calibration_pose"):
        assert set(figures[block]) == CALIBRATION_KEYS
    for kind in ("center", "random"):
        assert set(figures["baseline"][kind]["pose"]) == POSE_KEYS
        assert set(figures["baseline"][kind]["end_to_end"]) == CITY_KEYS
        assert set(figures["baseline"][kind]["end_to_end_near"]) == CITY_KEYS
    assert set(figures["foreign"]) == {
        "num", "num_unreadable", "auroc", "share_above_0.5", "share_right_confident",
    }  # fmt: skip


def test_failures_are_warned_of_and_counted(figures: dict[str, Any]) -> None:
    outside, unreadable, uncalibrated, foreign = figures["warnings"]
    assert "is not calibrated" in uncalibrated
    assert outside.startswith("1 of 5 true positions lie outside the gallery's imagery")
    assert unreadable.startswith("1 of 5 photos cannot be read")
    assert "broken.jpg" in unreadable
    assert foreign.startswith("1 of 2 foreign photos cannot be read and are left out")
    assert (figures["foreign"]["num"], figures["foreign"]["num_unreadable"]) == (1, 1)
    # The mean over a query without an answer is infinite, which JSON writes as null.
    assert figures["pose"]["mean_m"] is None
    assert figures["calibration"]["nll"] is None
    # Two of five can never be right.
    assert figures["retrieval"]["recall@10"] <= 0.6
    assert figures["end_to_end_near"]["recall@25m"] <= 0.6
    assert figures["calibration"]["coverage_90"] <= 0.6


def test_every_query_is_in_the_table(report: Path, small_world: SmallWorld) -> None:
    table = pyarrow.parquet.read_table(report / "per_query.parquet").to_pydict()
    assert len(table["photo"]) == 5
    assert table["is_outside"] == [False] * 4 + [True]
    assert [problem is None for problem in table["problem"]] == [True] * 3 + [False, True]
    assert table["true_heading_deg"][2] is None
    assert table["heading_error_deg"][2] is None
    assert table["error_m"][2] is not None
    assert table["error_m"][3] is None
    assert table["rank"][3] is table["rank"][4] is None
    assert None not in table["rank"][:3]
    for name in ("confidence", "confidence_feature_3", "radius_90_m", "lat", "seconds"):
        assert None not in table[name][:3]
        assert f"pose_{name}" in table and f"near_{name}" in table
    # Errors are those of the positions in the table.
    first = small_world.poses[0]
    x_m, y_m = LocalFrame(lat=first.lat, lon=first.lon).to_local(
        lat=table["lat"][0], lon=table["lon"][0]
    )
    assert float(np.hypot(x_m, y_m)) == pytest.approx(table["error_m"][0])
    parts = np.hypot(table["lateral_m"][0], table["longitudinal_m"][0])
    assert float(parts) == pytest.approx(table["error_m"][0])
    offsets = np.array([table[f"pose_chip_offset_{axis}_m"][:3] for axis in "xy"])
    assert (abs(offsets) <= 32).all()
    assert np.ptp(offsets) > 5


def test_a_wrong_prior_is_as_wrong_as_asked(report: Path) -> None:
    table = pyarrow.parquet.read_table(report / "per_query.parquet").to_pydict()
    wrong = np.hypot(table["near_error_x_m"], table["near_error_y_m"])
    np.testing.assert_allclose(wrong, 30.0)
    # The answer lies within the prior's reach of the wrong position.
    for i in range(3):
        frame = LocalFrame(lat=table["true_lat"][i], lon=table["true_lon"][i])
        x, y = frame.to_local(lat=table["near_lat"][i], lon=table["near_lon"][i])
        gap = np.hypot(x - table["near_error_x_m"][i], y - table["near_error_y_m"][i])
        assert gap < 50.0 * 1.3 + 8
    # No chip lies near the photo that is outside.
    assert table["near_error_m"][4] is None


def test_the_same_again_replaces_the_report_with_the_same_figures(
    report: Path,
    figures: dict[str, Any],
    small_world: SmallWorld,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The figures are the matter here; drawing takes most of the time.
    monkeypatch.setattr("ciper.report.answer_picture", lambda *_, **__: None)
    monkeypatch.setattr("ciper.report.plots.draw_all", lambda *_, **__: {})
    options = EvaluateOptions(
        near_error_m=30.0,
        near_radius_m=50.0,
        foreign=(str(small_world.poses[5].photo), str(report.parent / "broken.jpg")),
    )
    (report / "stale.txt").touch()
    again = evaluate(
        str(report.parent / "poses.csv"), report, gallery=small_world.gallery,
        model=small_world.weights, device="cpu", options=options,
    )  # fmt: skip
    assert not (report / "stale.txt").exists()
    for name in ("seconds", "seconds_per_query"):
        assert again.pop(name) != figures[name]
    assert again == {k: v for k, v in figures.items() if not k.startswith("seconds")}


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("spec", ["vigor:/data", "KITTI:/data", "ford:/x"])
def test_options_of_tables_and_of_data_sets_are_not_mixed(
    spec: str, small_world: SmallWorld, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="brings a gallery of its own"):
        evaluate(spec, tmp_path / "r", gallery="g")
    with pytest.raises(ConfigError, match="as published has no --near-error"):
        evaluate(spec, tmp_path / "r", options=EvaluateOptions(foreign=("a.jpg",)))
    with pytest.raises(ConfigError, match="on a grid needs a folder for the gallery"):
        evaluate(spec, tmp_path / "r", is_on_grid=True)
    with pytest.raises(DatasetError, match="is no folder"):
        evaluate(f"{spec}/none", tmp_path / "r")
    with pytest.raises(ConfigError, match="no data set with splits"):
        evaluate(str(small_world.table), tmp_path / "r", gallery="g", protocol=ProtocolOptions())
    assert not list(tmp_path.iterdir())


def test_bad_inputs_leave_nothing_behind(small_world: SmallWorld, tmp_path: Path) -> None:
    out, table = tmp_path / "r", str(small_world.table)
    with pytest.raises(ConfigError, match="name it with --gallery"):
        evaluate(table, out, gallery=None)
    other = write_tiny_weights(tmp_path / "other.safetensors", seed=3)
    with pytest.raises(GalleryModelMismatchError):
        evaluate(table, out, gallery=small_world.gallery, model=other, device="cpu")
    options = EvaluateOptions(foreign=(str(tmp_path / "*.gif"),))
    with pytest.raises(PhotoError, match="no photo matches"):
        evaluate(
            table, out, gallery=small_world.gallery, model=small_world.weights, device="cpu",
            options=options,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_other_folders_are_not_replaced(small_world: SmallWorld, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for taken in (out, out / "thesis.txt"):
        with pytest.raises(OutputError, match="is not a report"):
            check_replaceable(taken)
        with pytest.raises(OutputError, match="is not a report"):
            evaluate(str(small_world.table), taken, gallery=small_world.gallery)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "thesis.txt").unlink()
    check_replaceable(out)
    for name in ("metrics.json", "report.md"):
        (out / name).touch()
    check_replaceable(out)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="without --near-error"):
        EvaluateOptions(near_radius_m=50.0)
    with pytest.raises(ConfigError, match="--near-error -1"):
        EvaluateOptions(near_error_m=-1.0)
    with pytest.raises(ConfigError, match="--near-error nan"):
        EvaluateOptions(near_error_m=float("nan"))
    with pytest.raises(ConfigError, match="--near-error 0 is no distance"):
        EvaluateOptions(near_error_m=0.0)
    for radius_m in (0.0, -5.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"--near-radius {radius_m:g} is no distance"):
            EvaluateOptions(near_error_m=10.0, near_radius_m=radius_m)
    assert EvaluateOptions(near_error_m=100.0).near == (100.0, 150.0)


# ------------------------------------------------------------------------------------------ scoring


def query(x_m: float, y_m: float, heading_deg: float, *, chip: int = 0, **more: Any) -> Query:
    """A camera in the middle of three chips that looks east; the answer is given about it."""
    pose = PhotoPose(Path("a.jpg"), lat=60.0, lon=24.0, heading_deg=90.0)
    whole = Found(x_m=x_m, y_m=y_m, heading_deg=heading_deg, confidence=0.7, denser_mass=0.4,
                  credible_mass=0.4, log_density=-3.0, radius_90_m=5.0)  # fmt: skip
    return Query(pose, chip, whole=whole, rank=more.pop("rank", 0), **more)


def setting(**options: Any) -> Setting:
    return Setting(row_of_chips(3), EvaluateOptions(**options), seed=4)


def test_errors_by_hand() -> None:
    # Looking east: to the north is to the left, to the east ahead.
    errors = errors_of([query(3.0, 4.0, 95.0), query(-6.0, 8.0, 80.0)], "whole")
    np.testing.assert_allclose(errors.position_m, [5.0, 10.0])
    np.testing.assert_allclose(errors.lateral_m, [4.0, 8.0], atol=1e-9)
    np.testing.assert_allclose(errors.longitudinal_m, [3.0, 6.0], atol=1e-9)
    np.testing.assert_allclose(errors.heading_deg, [5.0, 10.0])


def test_a_missing_answer_is_infinitely_wrong_and_an_unknown_heading_is_unknown() -> None:
    missing = Query(PhotoPose(Path("b.jpg"), 60.0, 24.0, 10.0), -1)
    unknown = replace(query(3.0, 4.0, 0.0), pose=PhotoPose(Path("c.jpg"), 60.0, 24.0))
    errors = errors_of([missing, unknown], "whole")
    assert errors.position_m.tolist() == [np.inf, 5.0]
    assert errors.heading_deg[0] == np.inf
    assert np.isnan(errors.heading_deg[1])
    figures = end_to_end_figures(errors, [missing, unknown])
    assert figures["recall@10m"] == 0.5
    assert figures["heading_median_deg"] == np.inf
    alone = pose_figures(errors_of([unknown], "whole"))
    assert alone["median_m"] == 5.0
    assert np.isnan(alone["lateral_median_m"]) and np.isnan(alone["heading_recall@1deg"])


def test_nan_never_passes() -> None:
    nothing = [Query(PhotoPose(Path("b.jpg"), 60.0, 24.0, 10.0), 0)]
    figures = figures_of(nothing, setting(near_error_m=10.0))
    assert set(figures["retrieval"].values()) == {0.0}
    assert figures["end_to_end"]["recall@25m"] == 0
    assert figures["calibration"]["coverage_90"] == 0
    assert figures["calibration"]["nll"] == np.inf
    assert figures["pose"]["recall@5m"] == 0


def test_gated_recall_needs_the_first_chip() -> None:
    queries = [query(0.5, 0.0, 90.0), query(0.5, 0.0, 90.0, rank=1)]
    figures = figures_of(queries, setting())
    assert figures["end_to_end"]["recall@1m"] == 1.0
    assert figures["end_to_end"]["gated_recall@1m"] == 0.5
    assert figures["retrieval"]["recall@1"] == 0.5
    assert figures["retrieval"]["recall@5"] == 1.0


def test_baselines_know_the_geometry() -> None:
    queries = [
        replace(query(0.0, 0.0, 90.0), chip_offset_m=(x, y))
        for x in np.linspace(-31, 31, 40)
        for y in np.linspace(-31, 31, 40)
    ]
    answers = baseline_answers(queries, setting(near_error_m=100.0))
    figures = baseline_figures(answers, queries)
    # The camera stands in the middle of the three chips, a city of 192 m x 64 m.
    assert figures["center"]["end_to_end"]["median_m"] == pytest.approx(0.0, abs=1e-6)
    assert 40 < figures["random"]["end_to_end"]["median_m"] < 60
    assert figures["center"]["end_to_end_near"]["median_m"] == pytest.approx(100.0)
    # Mean distance from the middle of a square of side s: 0.3826 s; between two points: 0.5214 s.
    assert figures["center"]["pose"]["mean_m"] == pytest.approx(0.3826 * 64, rel=0.03)
    assert figures["random"]["pose"]["mean_m"] == pytest.approx(0.5214 * 64, rel=0.03)
    for kind in ("center", "random"):
        assert figures[kind]["pose"]["heading_mean_deg"] == pytest.approx(90, abs=5)
        assert "gated_recall@1m" not in figures[kind]["end_to_end"]


def test_foreign_photos_by_hand() -> None:
    own = [query(0.0, 1.0, 0.0), query(0.0, 50.0, 0.0), query(0.0, 2.0, 0.0, chip=-1)]
    own[1].whole = replace(own[1].whole, confidence=0.2)
    figures = foreign_figures(own, [0.1, 0.6])
    # 0.7 beats both, 0.2 beats one; the photo outside the gallery is not of it.
    assert figures["auroc"] == pytest.approx(3 / 4)
    assert figures["share_above_0.5"] == 0.5
    assert figures["share_right_confident"] == 1.0
    none = foreign_figures(own, [], num_unreadable=2)
    assert (none["num"], none["num_unreadable"]) == (0, 2)
    assert np.isnan([none["auroc"], none["share_above_0.5"]]).all()


def test_the_wrong_position_is_a_function_of_seed_and_query() -> None:
    options = EvaluateOptions(near_error_m=7.0)
    assert near_offset_m(options, 3, 5) == near_offset_m(options, 3, 5)
    offsets = [near_offset_m(options, seed, i) for seed in (0, 1) for i in range(3)]
    assert len(set(offsets)) == 6
    np.testing.assert_allclose(np.hypot(*np.array(offsets).T), 7.0)


def test_tables_have_no_sentinels() -> None:
    table = table_of([query(1.0, 2.0, 3.0, rank=NO_REFERENCE)], setting())
    assert table["rank"] == [None]
    assert table["pose_error_m"] == [None]
    assert all(len(column) == 1 for column in table.values())


def test_an_unanswered_photo_is_a_line_like_any_other(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    """A confidence rests on as many numbers as a missing answer leaves empty."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    broken = Query(PhotoPose(tmp_path / "broken.jpg", 60.0, 24.0, 10.0), 0, problem="no image")
    localizer = Localizer(small_world.gallery, small_world.weights, "cpu")
    with pytest.raises(PhotoError):
        localizer.read_posed(broken.pose)
    found = localizer.localize(small_world.poses[0].photo)
    assert len(found.features) == NUM_FEATURES
    answered = query(1.0, 2.0, 3.0)
    answered.whole = replace(answered.whole, features=found.features)
    table = table_of([answered, broken], setting())
    for number, value in enumerate(found.features, start=1):
        assert table[f"confidence_feature_{number}"] == [pytest.approx(value), None]
    assert f"confidence_feature_{NUM_FEATURES + 1}" not in table
    figures = figures_of([answered, broken], setting())
    assert figures["end_to_end"]["recall@5m"] == 0.5


def test_gaps_repeat_a_descriptor_of_the_same_chip() -> None:
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(3, 4, 2)).astype(np.float16)
    holes = descriptors.copy()
    holes[0, 0] = holes[1, 1:] = np.nan
    holes[2] = np.nan
    filled = without_gaps(holes)
    assert np.isfinite(filled[:2]).all()
    np.testing.assert_array_equal(filled[0, 0], descriptors[0, 1])
    np.testing.assert_array_equal(filled[1], np.repeat(descriptors[1, :1], 4, axis=0))
    assert np.isnan(filled[2]).all()


def test_cases_are_the_worst_and_an_even_spread_of_the_others() -> None:
    error_m = [float(i) for i in range(30)]
    error_m[3] = np.inf
    cases = choose_cases(error_m)
    assert cases["worst"] == [3, 29, 28, 27, 26, 25]
    assert len(cases["typical"]) == 6
    assert cases["typical"] == sorted(cases["typical"])
    assert not set(cases["typical"]) & set(cases["worst"])
    assert choose_cases([1.0, 2.0]) == {"worst": [1, 0], "typical": []}


def test_errors_without_any_answer_are_not_a_mean_of_nothing() -> None:
    nothing = PoseErrors(*(np.array([np.inf]) for _ in range(4)))
    assert pose_figures(nothing)["median_m"] == np.inf


def test_poses_with_spaces_and_unknowns_are_read(small_world: SmallWorld) -> None:
    with small_world.table.open() as file:
        assert len(list(csv.DictReader(file))) == len(small_world.poses)
