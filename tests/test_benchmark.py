from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import SmallWorld
from study_helpers import random_city, tiny_study
from typer.testing import CliRunner

from ciper import benchmark
from ciper.benchmark import AccuracyOptions, accuracy, parse_parts, study_config
from ciper.cli import app
from ciper.errors import ConfigError
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
    assert (half.curve_pairs, half.lr_pairs, half.num_seeds) == (50_000, 2_000, 5)
    seeds = [
        range(c.first_seed, c.first_seed + c.num_cities)
        for c in (usual.train, usual.validation, usual.test, usual.grid)
    ]
    assert len({s for r in seeds for s in r}) == sum(map(len, seeds))
    with pytest.raises(ConfigError, match="--pairs 32"):
        study_config("cpu", num_pairs=32)


def test_parts_by_name() -> None:
    assert parse_parts(None) == ("a", "b", "c", "d", "e")
    assert parse_parts("d, b") == ("b", "d")
    with pytest.raises(ConfigError, match="no part 'f'"):
        parse_parts("a,f")


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


@pytest.mark.slow
def test_grids_of_a_finished_model(tmp_path: Path, small_world: SmallWorld) -> None:
    options = AccuracyOptions(
        tiny_study(), ("d", "e"), str(small_world.weights), "cpu", tmp_path / "cache"
    )
    result = accuracy(tmp_path / "report", options)
    assert result.num_missing == 0
    # Two priors; the usual case and two conditions for two fields of view.
    assert result.num_finished == 2 + 3 * 2
    report = result.report.read_text()
    assert "| 360 | known | 1 |" in report
    assert "| 90 | behind a bus | 1 |" in report


def test_unknown_parts_are_refused_in_one_line(tmp_path: Path) -> None:
    command = ["benchmark", "accuracy", "--out", str(tmp_path), "--only", "z"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --only z") and len(result.stderr.splitlines()) == 1
