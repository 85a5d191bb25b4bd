"""Runs the cells that train or that need trained networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ciper.checkpoint import load_checkpoint, weights_of
from ciper.data.sample import Batch
from ciper.data.synthetic import RenderedCity, SyntheticConfig, find_city, open_city
from ciper.errors import TrainingError
from ciper.model.network import Network
from ciper.study.cells import RealCell, SearchCell, Setting, SwapCell, TrainingCell
from ciper.study.measuring import (
    StudyNetwork,
    measure_pose,
    measure_retrieval,
    measure_search,
)
from ciper.study.nadir import NadirPlaces, measure_nadir
from ciper.study.networks import recipe, swapped
from ciper.study.pairs import Gallery, StudyPairs, study_cache
from ciper.study.real import RealPhotos, measure_real
from ciper.study.store import CellResult, CellStore, hardware
from ciper.train import prepare_cities
from ciper.training.recipe import TrainConfig, make_network, narrow_shares
from ciper.training.run import Run

Progress = Callable[[str, int, int], None]
SAVE_EVERY_S = 120.0
TEST_SEED = 20_260_101


@dataclass(frozen=True)
class Deadline:
    """When to stop: `time.monotonic` seconds, or None for never."""

    at_s: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return self.at_s is not None and time.monotonic() >= self.at_s


@dataclass
class Workshop:
    """What trainings and their evaluations share.

    Attributes:
        store: the finished cells.
        cache: folder of the rendered cities.
        device: of the networks.
        deadline: when to stop.
        progress: called with (what, done, total).
        num_workers: processes that render cities.
    """

    store: CellStore
    cache: Path
    device: str
    deadline: Deadline
    progress: Progress
    num_workers: int = 2
    _cities: dict[SyntheticConfig, list[RenderedCity]] = field(default_factory=dict)

    def pairs(self, config: SyntheticConfig, seed: int, setting: Setting) -> StudyPairs:
        """Pairs of cities that are rendered if they are not there yet."""
        if config not in self._cities:
            folder = study_cache(self.cache, config)
            folders = prepare_cities(config, folder, self.num_workers, self.progress)
            self.keep(config, [open_city(f) for f in folders])
        return StudyPairs(self._cities[config], config, seed, setting)

    def has_cities(self, config: SyntheticConfig) -> bool:
        """Whether all cities of a recipe are rendered."""
        folder = study_cache(self.cache, config)
        found = (find_city(seed, config, folder) for seed in config.training_seeds)
        return config in self._cities or all(path is not None for path in found)

    def keep(self, config: SyntheticConfig, cities: list[RenderedCity]) -> None:
        """Takes these for the cities of a recipe from now on."""
        self._cities[config] = cities

    def test_pairs(self, setting: Setting) -> StudyPairs:
        """The test photos in their true chips."""
        return self.pairs(self.store.config.test, TEST_SEED, setting)

    @cached_property
    def gallery(self) -> Gallery:
        """All chips of the test cities."""
        return self.test_pairs("unknown").gallery()

    # ------------------------------------------------------------------------------------ training

    def train(self, cell: TrainingCell) -> CellResult | None:
        """Trains, or goes on training; None if the deadline came first."""
        started = time.monotonic()
        config = recipe(cell, self.store.config)
        run = Run(config, self.store.run_folder(cell), self.device)
        log = _Log.of(run, started)
        pairs = self.pairs(self.store.config.train, cell.seed, cell.variant.setting)
        checks = check_steps(config.train.num_steps, cell.num_checks)
        saved = started
        for batch in _batches(pairs, config, run.step):
            try:
                with log.training():
                    run.advance(batch)
            except TrainingError:
                # A learning rate may be too high: that is a result, and the study goes on.
                return self._put(cell, {"diverged_at_step": float(run.step)}, log)
            if run.step in checks:
                figures = self._validation(run.network, cell.variant.setting)
                log.curve.append((run.step * config.train.batch_size, figures))
            self.progress(cell.title, run.step, config.train.num_steps)
            now = time.monotonic()
            if self.deadline.is_over or now - saved > SAVE_EVERY_S:
                run.save(log.header())
                saved = now
            if self.deadline.is_over and run.step < config.train.num_steps:
                return None
        return self._put(cell, self._figures(cell, run, log), log)

    def _figures(self, cell: TrainingCell, run: Run, log: _Log) -> dict[str, float]:
        """What a finished training is measured by; keeps its weights if others need them."""
        network: Any = run.network
        metrics = {f"validation_{k}": v for k, v in log.curve[-1][1].items()}
        metrics["pairs_per_s"] = cell.num_pairs / log.training_s
        if not cell.is_tested:
            return metrics
        variant = cell.variant
        pairs = self.test_pairs(variant.setting)
        metrics |= measure_pose(network, pairs)
        # Aligned cameras are near the centre of their chip, as those on a grid of chips are not.
        num_matched = self.store.config.num_matched if variant.setting == "unknown" else 0
        metrics |= measure_retrieval(network, pairs, self.gallery, num_matched=num_matched)
        if variant.is_mixed:
            seen = measure_pose(network, pairs, is_pinhole=True)
            metrics |= {f"pinhole_{name}": value for name, value in seen.items()}
        if cell.keeps_weights:
            self.store.save_weights(cell, network.state_dict())
        return metrics

    def _put(self, cell: TrainingCell, metrics: Mapping[str, float], log: _Log) -> CellResult:
        result = CellResult(metrics, tuple(log.curve), log.seconds, hardware(self.device))
        self.store.put(cell, result)
        return result

    def _validation(self, network: Any, setting: Setting) -> dict[str, float]:
        pairs = self.pairs(self.store.config.validation, TEST_SEED, setting)
        return measure_pose(network, pairs)

    # ---------------------------------------------------------------------------------- evaluation

    def swap(self, cell: SwapCell) -> CellResult:
        """Measures a network whose tokens change their tasks."""
        started = time.monotonic()
        network = self.network(cell.trained, is_swapped=True)
        pairs = self.test_pairs(cell.trained.variant.setting)
        num_matched = self.store.config.num_matched
        metrics = {
            **measure_pose(network, pairs),
            **measure_retrieval(network, pairs, self.gallery, num_matched=num_matched),
        }
        return self._evaluated(cell, metrics, started)

    def search(self, cell: SearchCell) -> CellResult:
        """Measures a search by one network for retrieval and one for the pose."""
        started = time.monotonic()
        networks = (self.network(cell.retrieval), self.network(cell.pose))
        pairs = self.test_pairs(cell.pose.variant.setting)
        metrics = measure_search(
            networks,
            pairs,
            self.gallery,
            cell.num_shortlist,
            lambda done, total: self.progress(cell.title, done, total),
        )
        return self._evaluated(cell, metrics, started)

    def real(self, cell: RealCell, photos: RealPhotos | NadirPlaces) -> CellResult:
        """Measures a network on real photos of the cell's kind."""
        started = time.monotonic()
        network = self.network(cell.trained)
        assert isinstance(network, Network)
        if isinstance(photos, NadirPlaces):
            metrics = measure_nadir(network, photos)
        else:
            metrics = measure_real(network, photos)
        return self._evaluated(cell, metrics, started)

    def network(self, cell: TrainingCell, *, is_swapped: bool = False) -> StudyNetwork:
        """The network of a finished training."""
        config = recipe(cell, self.store.config)
        if is_swapped:
            config = replace(config, paper=swapped(config.paper))
        network: Any = make_network(config)
        state, _ = load_checkpoint(self.store.weights(cell))
        network.load_state_dict(weights_of(state))
        moved: StudyNetwork = network.to(torch.device(self.device))
        return moved

    def _evaluated(
        self, cell: SwapCell | SearchCell | RealCell, metrics: Mapping[str, float], started: float
    ) -> CellResult:
        result = CellResult(
            metrics, seconds=time.monotonic() - started, hardware=hardware(self.device)
        )
        self.store.put(cell, result)
        return result


@dataclass
class _Log:
    """What a training knows of itself beside its weights; it travels in the checkpoint's header.

    `earlier_s` were worked before `started_s`, `training_s` of all were spent on steps.
    """

    curve: list[tuple[int, dict[str, float]]]
    started_s: float
    earlier_s: float = 0.0
    training_s: float = 0.0

    @classmethod
    def of(cls, run: Run, started_s: float) -> _Log:
        """Read from the checkpoint of a run that goes on, else empty."""
        if run.step == 0:
            return cls([], started_s)
        saved = load_checkpoint(run.checkpoint)[1]["metrics"]
        curve: dict[int, dict[str, float]] = {}
        for name, value in saved.items():
            if name.startswith("curve/"):
                _, num_pairs, figure = name.split("/")
                curve.setdefault(int(num_pairs), {})[figure] = value
        return cls(sorted(curve.items()), started_s, saved["seconds"], saved["training_seconds"])

    @property
    def seconds(self) -> float:
        """Of work so far."""
        return self.earlier_s + time.monotonic() - self.started_s

    @contextmanager
    def training(self) -> Iterator[None]:
        """Counts what happens inside as time spent on steps."""
        before = time.monotonic()
        yield
        self.training_s += time.monotonic() - before

    def header(self) -> dict[str, float]:
        """For the checkpoint."""
        flat = {f"curve/{n}/{name}": v for n, figures in self.curve for name, v in figures.items()}
        return {"seconds": self.seconds, "training_seconds": self.training_s, **flat}


def check_steps(num_steps: int, num_checks: int) -> frozenset[int]:
    """The steps after which a training is measured: evenly spaced, the last one included."""
    return frozenset(round(num_steps * i / num_checks) for i in range(1, num_checks + 1))


def _batches(pairs: StudyPairs, config: TrainConfig, start: int) -> Iterator[Batch]:
    steps = range(start, config.train.num_steps)
    return pairs.batches(steps, config.train.batch_size, narrow_shares(config.train))
