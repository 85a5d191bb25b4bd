"""Benchmarks: the accuracy study, cell by cell, resumable; tables and plots of what is finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ciper.errors import ConfigError
from ciper.study.cells import (
    SETTINGS,
    Cell,
    GridCell,
    PhotoView,
    RealCell,
    SearchCell,
    Setting,
    SwapCell,
)
from ciper.study.config import (
    PARTS,
    Part,
    StudyConfig,
    default_study,
    gpu_study,
    quick_study,
)
from ciper.study.grids import Grid
from ciper.study.measuring import baselines
from ciper.study.nadir import NadirPlaces, nadir_baselines, nadir_folder, read_nadir
from ciper.study.networks import refused_starts
from ciper.study.parts import Baselines, Tables
from ciper.study.plan import Means, Plan
from ciper.study.real import RealPhotos, read_real, real_baselines, real_folder
from ciper.study.report import write_study
from ciper.study.store import CellStore
from ciper.study.training import Deadline, Workshop

Progress = Callable[[str, int, int], None]
# How long to wait for other processes before looking again for something to do.
WAIT_S = 2.0


@dataclass(frozen=True)
class AccuracyResult:
    """Where the report lies, and how much of the study is finished.

    `refusals` say what cannot be trained here, and what to do about it.
    """

    report: Path
    num_finished: int
    num_missing: int
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class AccuracyOptions:
    """What to do of the study, where.

    Attributes:
        config: its size.
        parts: of it.
        model: weights of parts d and e, a name or a file.
        device: cpu, cuda or mps.
        cache: keeps rendered cities.
        max_minutes: when to stop; what is unfinished goes on in the next run.
        street: folder of the real street photos of part f, see `study.real`; None without them.
        nadir: folder of the rasters of its photos from above, see `study.nadir`; or None.
    """

    config: StudyConfig = field(default_factory=StudyConfig)
    parts: tuple[Part, ...] = PARTS
    model: str = "ground"
    device: str = "cpu"
    cache: Path = Path("cache/synthetic")
    max_minutes: float | None = None
    street: Path | None = field(default_factory=real_folder)
    nadir: Path | None = field(default_factory=nadir_folder)


def study_config(
    device: str,
    *,
    is_quick: bool = False,
    num_pairs: int | None = None,
    num_seeds: int | None = None,
) -> StudyConfig:
    """The study's size for a device, with another number of pairs or seeds if they are given.

    The long trainings and those for the learning rate change in proportion to the pairs.

    Raises:
        ConfigError: too few pairs or seeds.
    """
    usual = default_study if device == "cpu" else gpu_study
    config = quick_study() if is_quick else usual()
    if num_pairs is not None:
        factor = num_pairs / config.num_pairs
        config = replace(
            config,
            num_pairs=num_pairs,
            curve_pairs=max(config.batch_size, round(config.curve_pairs * factor)),
            lr_pairs=max(config.batch_size, round(config.lr_pairs * factor)),
        )
    return config if num_seeds is None else replace(config, num_seeds=num_seeds)


def parse_parts(text: str | None) -> tuple[Part, ...]:
    """The parts that `a,b` names, in their order; all if None.

    Raises:
        ConfigError: there is no such part.
    """
    if text is None:
        return PARTS
    wanted = [word.strip() for word in text.split(",")]
    for word in wanted:
        if word not in PARTS:
            raise ConfigError(f"--only {text}: there is no part {word!r}; expected {PARTS}")
    return tuple(part for part in PARTS if part in wanted)


def accuracy(
    out: Path, options: AccuracyOptions, *, progress: Progress | None = None
) -> AccuracyResult:
    """Runs what is missing of the accuracy study and writes its report.

    Several processes may work on one folder: each takes cells that no other works on.

    Args:
        out: REPORT folder; cells that are finished there are kept.
        options: what to do.
        progress: called with (what, done, total).

    Returns:
        What there is; `num_missing` above 0 if the time was over first.

    Raises:
        ConfigError, CheckpointError, OutputError: an input cannot be used.
    """
    study = _Study(out, options, progress or (lambda _what, _done, _total: None))
    while not study.deadline.is_over:
        missing = list(study.plan.missing())
        if not missing:
            break
        if not any(study.has_run(cell) for cell in missing):
            study.wait(missing[0])
    return study.write()


class _Study:
    """One sitting of the study."""

    def __init__(self, out: Path, options: AccuracyOptions, progress: Progress) -> None:
        self.out, self.options, self.progress = out, options, progress
        minutes = options.max_minutes
        self.deadline = Deadline(None if minutes is None else time.monotonic() + 60.0 * minutes)
        self.store = CellStore(out / "cells", options.config)
        self.workshop = Workshop(self.store, options.cache, options.device, self.deadline, progress)
        self.plan = Plan(self.store, options.parts, self._means())

    def _means(self) -> Means:
        parts = set(self.options.parts)
        is_started = "f" in parts
        return Means(
            model_hash=self.grid.model.model_hash if parts & {"d", "e"} else None,
            photos={k: v.digest for k, v in self.real.items()} if is_started else {},
            refusals=refused_starts() if is_started else {},
        )

    @cached_property
    def real(self) -> dict[PhotoView, RealPhotos | NadirPlaces]:
        """The real photos that there are, by view."""
        found: dict[PhotoView, RealPhotos | NadirPlaces] = {}
        if self.options.street is not None:
            found["street"] = read_real(self.options.street)
        if self.options.nadir is not None:
            found["nadir"] = read_nadir(self.options.nadir)
        return found

    @cached_property
    def grid(self) -> Grid:
        """What evaluates the finished model."""
        from ciper.model.load import load_model

        model = load_model(self.options.model, self.options.device)
        return Grid(model, self.store, self.options.cache, self.progress)

    def has_run(self, cell: Cell) -> bool:
        """Runs a cell to its end, or to the deadline, unless another process works on it."""
        with self.store.claimed(cell) as is_ours:
            if is_ours:
                self._run(cell)
        return is_ours

    def wait(self, cell: Cell) -> None:
        """Other processes work on all that can be done by now, such as this cell."""
        self.progress(f"waiting for {cell.title}", 0, 1)
        time.sleep(WAIT_S)

    def _run(self, cell: Cell) -> None:
        if isinstance(cell, GridCell):
            self.grid.measure(cell)
        elif isinstance(cell, SwapCell):
            self.workshop.swap(cell)
        elif isinstance(cell, SearchCell):
            self.workshop.search(cell)
        elif isinstance(cell, RealCell):
            self.workshop.real(cell, self.real[cell.view])
        else:
            self.workshop.train(cell)

    def write(self) -> AccuracyResult:
        """The report of all that is finished."""
        is_started = "f" in self.options.parts
        real = self.real if is_started else {}
        on_real: dict[PhotoView, Baselines] = {
            view: nadir_baselines(p) if isinstance(p, NadirPlaces) else real_baselines(p)
            for view, p in real.items()
        }
        tables = Tables(self.plan, self._baselines(), on_real)
        report = write_study(self.out, tables, self.options.parts)
        num_finished = sum(self.store.result(cell) is not None for cell in self.plan.cells())
        num_missing = sum(1 for _ in self.plan.missing())
        refusals = tuple(dict.fromkeys(self.plan.means.refusals.values()))
        return AccuracyResult(report, num_finished, num_missing, refusals)

    def _baselines(self) -> dict[Setting, Baselines]:
        # Nothing is rendered only for them: time may be over.
        if not (self.plan.is_trained and self.workshop.has_cities(self.options.config.test)):
            return {}
        num_references = len(self.workshop.gallery)
        return {
            setting: baselines(self.workshop.test_pairs(setting), num_references=num_references)
            for setting in SETTINGS
        }
