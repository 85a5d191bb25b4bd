"""Which cells the study consists of, as far as the finished ones allow to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ciper.study.cells import (
    DECODERS,
    SETTINGS,
    Cell,
    CellStore,
    Decoder,
    GridCell,
    SearchCell,
    Setting,
    SwapCell,
    Task,
    TrainingCell,
)
from ciper.study.config import Condition, Part, StudyConfig

USUAL = Condition("one date apart")
# The fields of view at which part e asks.
CONDITION_HFOVS_DEG = (360, 90)
UNKNOWN_HEADING_DEG = 180


class Plan:
    """The cells of some parts.

    Args:
        store: the finished cells; from those of the learning rates follow the others.
        parts: that are wanted.
        model_hash: of the model of parts d and e; None without them.
    """

    def __init__(self, store: CellStore, parts: Sequence[Part], model_hash: str | None) -> None:
        self.store, self.parts, self.model_hash = store, parts, model_hash
        self.config: StudyConfig = store.config

    def cells(self) -> Iterator[Cell]:
        """All cells that can be named by now; of a training that others wait for, first."""
        makers: dict[Part, Callable[[], Iterator[Cell]]] = {
            "a": self._decoders,
            "b": self._tokens,
            "c": self._tasks,
            "d": self.grid,
            "e": self.conditions,
        }
        for part in self.parts:
            yield from makers[part]()

    def missing(self) -> Iterator[Cell]:
        """Those that are not finished."""
        return (cell for cell in self.cells() if self.store.result(cell) is None)

    @property
    def is_trained(self) -> bool:
        """Whether any part trains networks."""
        return bool(set(self.parts) & {"a", "b", "c"})

    def num_pairs(self) -> int:
        """Pairs of all trainings of the parts, finished or not."""
        config, count = self.config, 0
        per_decoder = len(config.lrs) * config.lr_pairs
        usual = config.num_seeds * config.num_pairs
        if "a" in self.parts:
            count += len(DECODERS) * (len(SETTINGS) * (per_decoder + usual) + config.curve_pairs)
        elif "b" in self.parts:
            count += per_decoder + usual
        if "b" in self.parts:
            count += usual
        if "c" in self.parts:
            count += usual + (0 if "a" in self.parts else per_decoder + usual)
        return count

    # ------------------------------------------------------------------------------------ trainings

    def rate_cells(self, decoder: Decoder, setting: Setting) -> list[TrainingCell]:
        """The short trainings that choose a learning rate."""
        pairs = self.config.lr_pairs
        return [
            TrainingCell(decoder, pairs, lr, setting=setting, is_tested=False)
            for lr in self.config.lrs
        ]

    def lr(self, decoder: Decoder, setting: Setting) -> float | None:
        """The learning rate with the smallest mean error on validation; None before it is known."""
        cells = self.rate_cells(decoder, setting)
        results = [self.store.result(cell) for cell in cells]
        errors = [r.metrics.get("validation_mean_m", np.inf) for r in results if r is not None]
        return cells[int(np.argmin(errors))].lr if len(errors) == len(cells) else None

    def runs(
        self,
        decoder: Decoder,
        *,
        setting: Setting = "unknown",
        task: Task = "both",
        num_tokens: int = 2,
    ) -> list[TrainingCell]:
        """The trainings of all seeds; none before the learning rate is known.

        A network for a single task sees half the pairs: the two together see as many as one for
        both. It and the one-token network take the learning rate of the one for both tasks.
        """
        lr = self.lr(decoder, setting)
        if lr is None:
            return []
        pairs = self.config.num_pairs if task == "both" else self.config.num_pairs // 2
        first = TrainingCell(decoder, pairs, lr, setting=setting, task=task, num_tokens=num_tokens)
        return [replace(first, seed=seed) for seed in range(self.config.num_seeds)]

    def curve_cell(self, decoder: Decoder) -> TrainingCell | None:
        """The one long training, with an unknown heading."""
        lr, config = self.lr(decoder, "unknown"), self.config
        if lr is None:
            return None
        return TrainingCell(decoder, config.curve_pairs, lr, num_checks=config.num_checks)

    def _decoders(self) -> Iterator[Cell]:
        for setting in SETTINGS:
            for decoder in DECODERS:
                yield from self.rate_cells(decoder, setting)
            # One seed of all decoders after the other: a study that is stopped compares them.
            runs = [self.runs(decoder, setting=setting) for decoder in DECODERS]
            for same_seed in zip(*(r for r in runs if r), strict=True):
                yield from same_seed
        for decoder in DECODERS:
            cell = self.curve_cell(decoder)
            if cell is not None:
                yield cell

    def _tokens(self) -> Iterator[Cell]:
        yield from self.rate_cells("text", "unknown")
        yield from self.runs("text")
        yield from self.runs("text", num_tokens=1)
        yield from self.swaps()

    def swaps(self) -> Iterator[SwapCell]:
        """The two-token networks with their tokens exchanged, as far as they are trained."""
        for cell in self.runs("text"):
            if self._has_weights(cell):
                yield SwapCell(cell)

    def _tasks(self) -> Iterator[Cell]:
        yield from self.rate_cells("ours", "unknown")
        for task in ("both", "retrieval", "pose"):
            yield from self.runs("ours", task=task)
        for first, second, num_shortlist in self.ways():
            yield from self.searches(first, second, num_shortlist)

    def ways(self) -> tuple[tuple[Task, Task, int], ...]:
        """Who proposes chips, who finds the pose, and in how many chips."""
        several = self.config.num_shortlist
        return (
            ("both", "both", 1),
            ("both", "both", several),
            ("retrieval", "pose", 1),
            ("retrieval", "pose", several),
        )

    def searches(self, first: Task, second: Task, num_shortlist: int) -> Iterator[SearchCell]:
        """The searches of all seeds, as far as their networks are trained."""
        pairs = zip(self.runs("ours", task=first), self.runs("ours", task=second), strict=True)
        for retrieval, pose in pairs:
            if self._has_weights(retrieval) and self._has_weights(pose):
                yield SearchCell(retrieval, pose, num_shortlist)

    def _has_weights(self, cell: TrainingCell) -> bool:
        result = self.store.result(cell)
        return result is not None and not result.has_diverged

    # -------------------------------------------------------------------------------------- grids

    def grid_cells(self, hfov_deg: int, prior_deg: int, condition: Condition) -> list[GridCell]:
        """One cell of a grid: all its cities."""
        if self.model_hash is None:
            return []
        grid = self.config.grid
        seeds = range(grid.first_seed, grid.first_seed + grid.num_cities)
        return [GridCell(self.model_hash, s, hfov_deg, prior_deg, condition) for s in seeds]

    def grid(self) -> Iterator[Cell]:
        """Field of view by heading prior."""
        for hfov_deg in self.config.grid.hfovs_deg:
            for prior_deg in self.config.grid.heading_priors_deg:
                yield from self.grid_cells(hfov_deg, prior_deg, USUAL)

    def conditions(self) -> Iterator[Cell]:
        """Every condition for panoramas and pinhole photos, heading unknown."""
        for condition in (USUAL, *self.config.grid.conditions):
            for hfov_deg in CONDITION_HFOVS_DEG:
                yield from self.grid_cells(hfov_deg, UNKNOWN_HEADING_DEG, condition)
