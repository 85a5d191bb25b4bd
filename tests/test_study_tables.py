from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from study_helpers import tiny_study

from ciper.study.cells import SETTINGS, STARTS, PhotoView, Variant
from ciper.study.config import PARTS, Part
from ciper.study.parts import Tables
from ciper.study.plan import (
    CURVE_DECODERS,
    OURS,
    TEXT,
    USUAL,
    Means,
    Plan,
    decoder_variants,
    start_variants,
)
from ciper.study.report import write_study
from ciper.study.store import CellResult, CellStore
from ciper.study.tables import Row, Summary, format_summary

VARIANTS = (*(v for setting in SETTINGS for v in decoder_variants(setting)), *start_variants())
PACKAGE = "it needs the package x; run: pip install --no-deps x"


def test_summaries_are_of_the_sample() -> None:
    summary = Summary.of([1.0, 3.0])
    assert (summary.mean, summary.num) == (2.0, 2)
    assert summary.deviation == pytest.approx(2**0.5)
    assert Summary.of([4.0]) == Summary(4.0, 0.0, 1)
    assert format_summary(Summary.of([0.1, 0.3]), "recall@5m") == "20.0 ± 14.1"
    assert format_summary(Summary.of([0.5]), "median_m") == "0.50"
    assert format_summary(None, "median_m") == ""


def test_rows_say_how_many_diverged() -> None:
    assert Row(("a",), ({}, {}), 3, 1).count == "2 of 3, 1 diverged"
    assert Row(("a",), ({},), 3).count == "1 of 3"
    assert Row(("baseline",), ({},)).count == ""


def planned(
    folder: Path, parts: tuple[Part, ...] = PARTS, means: Means | None = None, seeds: int = 2
) -> Plan:
    config = replace(tiny_study(), num_seeds=seeds)
    return Plan(CellStore(folder / "cells", config), parts, means or Means("abc"))


def rate(recall: float, median_m: float = 10.0) -> CellResult:
    return CellResult({"validation_recall@5m": recall, "validation_median_m": median_m})


DIVERGED = CellResult({"diverged_at_step": 3.0})


def finish_rates(plan: Plan, *, best: float) -> None:
    for variant in VARIANTS:
        for cell in plan.rate_cells(variant):
            plan.store.put(cell, rate(0.5 if cell.lr == best else 0.25))


def test_the_plan_unfolds_with_the_learning_rates(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    # Four decoders in both settings, two rates each; the refined one takes the rate of ours.
    assert len(list(plan.cells())) == (4 + 4) * 2
    assert plan.lr(OURS) is None and plan.runs(OURS) == []
    before = plan.num_pairs()
    finish_rates(plan, best=3e-3)
    assert plan.lr(OURS) == 3e-3
    # Two seeds each, and one long training of four decoders.
    assert len(list(plan.missing())) == 9 * 2 + 4
    assert before == plan.num_pairs() == 8 * 2 * 4 + 9 * 2 * 8 + 4 * 8
    trained = [cell.num_pairs for cell in plan.cells() if hasattr(cell, "num_pairs")]
    assert sum(trained) == plan.num_pairs()


def test_parts_share_what_they_have_in_common(tmp_path: Path) -> None:
    both, only = planned(tmp_path, ("a", "c")), planned(tmp_path, ("a",))
    # Two single tasks of half the pairs and two seeds.
    assert both.num_pairs() - only.num_pairs() == 2 * 2 * 4
    finish_rates(both, best=1e-3)
    cells = list(both.cells())
    assert len(cells) == len(set(cells))


def test_rates_are_chosen_by_recall_then_by_the_median(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    for variant, (first, second), expected in [
        # A mean or median error that the chip's centre beats does not matter.
        (TEXT, (rate(0.1, 24.0), rate(0.2, 30.0)), 3e-3),
        (OURS, (rate(0.2, 5.0), rate(0.2, 6.0)), 1e-3),
        (Variant("authors"), (rate(0.01), DIVERGED), 1e-3),
    ]:
        slow, fast = plan.rate_cells(variant)
        plan.store.put(slow, first)
        assert plan.lr(variant) is None
        plan.store.put(fast, second)
        assert plan.lr(variant) == expected


def test_where_every_rate_diverges_the_report_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    finish_rates(plan, best=1e-3)
    variant = Variant("one_way")
    for cell in plan.rate_cells(variant):
        plan.store.put(cell, DIVERGED)
    assert plan.lr(variant) is None and plan.runs(variant) == []
    # The others go on.
    assert len(list(plan.missing())) == 8 * 2 + 3
    report = write_study(tmp_path, Tables(plan), ("a",)).read_text()
    assert "| one-way | every rate diverged | 0 of 2 |" in report
    assert "- one-way, unknown heading: every learning rate diverged." in report


def test_doubtful_rates_are_noted(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    for variant in VARIANTS:
        for cell in plan.rate_cells(variant):
            plan.store.put(cell, rate(0.05 if variant == Variant("text") else 0.6))
    notes = Tables(plan).notes("a")
    # Four validation photos: 1.9 % are within 5 m of the centre, give or take 13.7 %.
    chance = [note for note in notes if "by chance" in note]
    assert len(chance) == 1
    assert chance[0].startswith("paper's text, unknown heading: with its best learning rate 5.0 %")
    assert "1.9 ± 13.7 %" in chance[0]
    assert sum("is the smallest that was tried" in note for note in notes) == 8


def test_joint_and_single_task_networks_see_equally_many_pairs(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("c",))
    finish_rates(plan, best=1e-3)
    joint, retrieval, pose = (
        sum(cell.num_pairs for cell in plan.runs(OURS, task=task))
        for task in ("both", "retrieval", "pose")
    )
    assert joint == retrieval + pose


def test_starts_that_are_refused_do_not_stop_the_others(tmp_path: Path) -> None:
    photos: dict[PhotoView, str] = {"street": "photos", "nadir": "rasters"}
    means = Means("abc", photos, {"stem": PACKAGE, "frozen_stem": PACKAGE})
    plan = planned(tmp_path, ("f",), means)
    assert len(list(plan.missing())) == 2
    assert plan.rate_cells(start_variants()[0]) == plan.rate_cells(OURS)
    for cell in plan.rate_cells(start_variants()[0]):
        plan.store.put(cell, rate(0.5))
    assert [cell.seed for cell in plan.missing()] == [0, 1]  # type: ignore[union-attr]
    for cell in plan.runs(start_variants()[0]):
        plan.store.put(cell, CellResult({"median_m": 3.0}))
    real = list(plan.missing())
    street, nadir = (plan.real_cells(start_variants()[0], kind) for kind in ("street", "nadir"))
    assert real == [*street, *nadir] and len(street) == len(nadir) == 2
    for real_cell, recall in zip(real, (0.4, 0.2, 0.8, 0.6), strict=True):
        plan.store.put(real_cell, CellResult({"matched_recall@1": recall}))
    assert list(plan.missing()) == []
    chance = {"center": {"matched_recall@1": 0.2}}
    tables = Tables(plan, {}, {"street": chance, "nadir": {}})
    report = write_study(tmp_path, tables, ("f",)).read_text()
    assert f"frozen is left out: {PACKAGE}." in report
    assert "| plain stem, random | 2 of 2 |  | 30.0 ± 14.1 |" in report
    assert "| plain stem, random | 2 of 2 | 70.0 ± 14.1 |" in report
    assert "| baseline: center |  |  | 20.0 |" in report
    assert "not measured" not in report
    assert [v.start for v in start_variants()] == list(STARTS)


def test_without_real_photos_the_report_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("f",))
    finish_rates(plan, best=1e-3)
    for variant in start_variants():
        for cell in plan.runs(variant):
            plan.store.put(cell, CellResult({"median_m": 3.0}))
        assert plan.real_cells(variant, "street") == plan.real_cells(variant, "nadir") == []
    report = write_study(tmp_path, Tables(plan), ("f",)).read_text()
    assert "not measured: $CIPER_REAL_DATA is unset" in report


def test_the_report_says_what_the_cells_say(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    finish_rates(plan, best=1e-3)
    errors = {"authors": 20.0, "text": 10.0, "one_way": 12.0, "ours": 2.0, "ours_refined": 1.0}
    for variant in decoder_variants("unknown"):
        for seed, cell in enumerate(plan.runs(variant)):
            error = errors[variant.decoder]
            figures = {"median_m": error + seed, "retrieval_recall@1": 0.25}
            curve = ((8, {"median_m": error}),)
            plan.store.put(cell, CellResult(figures, curve, seconds=36.0))
    for grid_cell in plan.grid_cells(360, 180, USUAL):
        plan.store.put(grid_cell, CellResult({"end_to_end_recall@5m": 0.5}))
    tables = Tables(plan, {"unknown": {"center": {"median_m": 25.0}}})
    report = write_study(tmp_path, tables, PARTS).read_text()
    assert "| paper's text | 0.001 | 2 of 2 | 10.50 ± 0.71 |" in report
    # (20 + 21) / (2 + 3); both deviations are 0.71, and 1.5 is 1 from 2.5.
    assert "- authors' code: 8.20 x (spreads do not overlap)" in report
    assert "- ours with the two-way refiner: 0.60 x (spreads overlap)" in report
    assert "| baseline: center |  |  | 25.00 |" in report
    assert "| 360 | unknown | 1 of 1 |" in report
    assert "A quick run" in report
    with (tmp_path / "a_decoder_unknown.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["median_m mean"]) == 2.5
    assert rows[3]["num_planned"] == "2"
    for name in ("a_decoder_unknown", "d_grid"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_better_is_as_far_apart_as_worse(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    finish_rates(plan, best=1e-3)
    for variant, error in ((OURS, 8.0), (TEXT, 2.0)):
        for seed, cell in enumerate(plan.runs(variant)):
            plan.store.put(cell, CellResult({"median_m": error + seed}))
    report = write_study(tmp_path, Tables(plan), ("a",)).read_text()
    assert "- paper's text: 0.29 x (spreads do not overlap)" in report


def test_diverged_trainings_are_counted_and_spoil_no_plot(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a", "c"), seeds=3)
    finish_rates(plan, best=1e-3)
    runs = plan.runs(OURS)
    for cell, figures in zip(runs, ({"median_m": 2.0}, {"median_m": 4.0}), strict=False):
        plan.store.put(cell, CellResult(figures))
    plan.store.put(runs[2], DIVERGED)
    for task in ("retrieval", "pose"):
        for cell in plan.runs(OURS, task=task):
            plan.store.put(cell, DIVERGED)
    for decoder in CURVE_DECODERS:
        curve = plan.curve_cell(decoder)
        assert curve is not None
        plan.store.put(curve, DIVERGED)
    report = write_study(tmp_path, Tables(plan), ("a", "c")).read_text()
    assert "| 0.001 | 2 of 3, 1 diverged | 3.00 ± 1.41 |" in report
    assert "| pose only, 4 pairs | 0 of 3, 3 diverged |" in report
    assert "| authors' code | 0 of 1, 1 diverged |" in report
    # Nobody could be measured on the way, nor after the long trainings.
    assert not (tmp_path / "a_decoder_unknown_curve.png").exists()
    assert not (tmp_path / "a_decoder_unknown_long.png").exists()
    assert list(plan.searches("retrieval", "pose", 1)) == []


def test_time_is_told_by_hardware(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    slow, fast = plan.rate_cells(OURS)
    machine = dict(CellResult({}).hardware)
    for cell, gpu, seconds in ((slow, None, 7200.0), (fast, "H200", 1800.0)):
        result = replace(rate(0.5), seconds=seconds, hardware={**machine, "gpu": gpu})
        plan.store.put(cell, result)
    # As a reader on a third machine finds them.
    report = write_study(tmp_path, Tables(planned(tmp_path, ("a",))), ("a",)).read_text()
    assert (
        f"2.00 hours for 4 training pairs and all evaluations on {machine['processor']}" in report
    )
    assert f", H200, {machine['precision']}; Python" in report and "- 0.50 hours" in report
    assert "have 240 training pairs in all" in report
