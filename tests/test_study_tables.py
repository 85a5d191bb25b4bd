from __future__ import annotations

import csv
from pathlib import Path

import pytest
from study_helpers import tiny_study

from ciper.study.cells import DECODERS, CellResult, CellStore
from ciper.study.config import PARTS, Part
from ciper.study.plan import USUAL, Plan
from ciper.study.report import write_study
from ciper.study.tables import Spread, Tables, format_spread


def test_spread_is_of_the_sample() -> None:
    spread = Spread.of([1.0, 3.0])
    assert (spread.mean, spread.num) == (2.0, 2)
    assert spread.deviation == pytest.approx(2**0.5)
    assert Spread.of([4.0]) == Spread(4.0, 0.0, 1)
    assert format_spread(Spread.of([0.1, 0.3]), "recall@5m") == "20.0 ± 14.1"
    assert format_spread(Spread.of([0.5]), "median_m") == "0.50"
    assert format_spread(None, "median_m") == ""


def planned(folder: Path, parts: tuple[Part, ...] = PARTS) -> Plan:
    return Plan(CellStore(folder / "cells", tiny_study()), parts, "abc")


def finish_rates(plan: Plan, *, best: float) -> None:
    for setting in ("unknown", "aligned"):
        for decoder in DECODERS:
            for cell in plan.rate_cells(decoder, setting):
                error = 1.0 if cell.lr == best else 2.0
                plan.store.put(cell, CellResult({"validation_mean_m": error}))


def test_the_plan_unfolds_with_the_learning_rates(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    assert len(list(plan.cells())) == 2 * 4 * 2
    assert plan.lr("ours", "unknown") is None and plan.runs("ours") == []
    finish_rates(plan, best=3e-3)
    assert plan.lr("ours", "unknown") == 3e-3
    # Two seeds and one long training each.
    assert len(list(plan.missing())) == 2 * 4 * 3
    assert plan.num_pairs() == 2 * 4 * (2 * 4 + 2 * 8 + 8)
    trained = [cell.num_pairs for cell in plan.cells() if hasattr(cell, "num_pairs")]
    assert sum(trained) == plan.num_pairs()


def test_a_diverged_learning_rate_is_never_the_best(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("a",))
    slow, fast = plan.rate_cells("text", "unknown")
    plan.store.put(slow, CellResult({"validation_mean_m": 40.0}))
    plan.store.put(fast, CellResult({"diverged_at_step": 3.0}))
    assert plan.lr("text", "unknown") == slow.lr


def test_joint_and_single_task_networks_see_equally_many_pairs(tmp_path: Path) -> None:
    plan = planned(tmp_path, ("c",))
    finish_rates(plan, best=1e-3)
    joint, retrieval, pose = (
        sum(cell.num_pairs for cell in plan.runs("ours", task=task))
        for task in ("both", "retrieval", "pose")
    )
    assert joint == retrieval + pose


def test_the_report_says_what_the_cells_say(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    finish_rates(plan, best=1e-3)
    errors = {"authors": 20.0, "text": 10.0, "one_way": 12.0, "ours": 2.0}
    for decoder, error in errors.items():
        for seed, cell in enumerate(plan.runs(decoder)):  # type: ignore[arg-type]
            figures = {"median_m": error + seed, "retrieval_recall@1": 0.25}
            plan.store.put(cell, CellResult(figures, ((8, {"median_m": error}),), seconds=36.0))
    for grid_cell in plan.grid_cells(360, 180, USUAL):
        plan.store.put(grid_cell, CellResult({"end_to_end_recall@5m": 0.5}))
    tables = Tables(plan, {"unknown": {"center": {"median_m": 25.0}}})
    report = write_study(tmp_path, tables, PARTS).read_text()
    assert "| paper's text | 0.001 | 2 | 10.50 ± 0.71 |" in report
    assert "- authors' code: 8.20 x (spreads do not overlap)" in report
    assert "| baseline: center |  | 1 | 25.00 |" in report
    assert "| 360 | unknown | 1 |" in report
    assert "A quick run" in report
    with (tmp_path / "a_decoder_unknown.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["median_m mean"]) == 2.5
    for name in ("a_decoder_unknown", "d_grid"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
