"""Which cells the study consists of, as far as the finished ones allow to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ciper.study.cells import (
    DECODERS,
    SETTINGS,
    STARTS,
    Cell,
    Decoder,
    GridCell,
    PhotoView,
    RealCell,
    SearchCell,
    Setting,
    Start,
    SwapCell,
    Task,
    TrainingCell,
    Variant,
)
from ciper.study.config import Condition, Part, StudyConfig
from ciper.study.store import CellResult, CellStore

USUAL = Condition("one date apart")
# The fields of view at which part e asks.
CONDITION_HFOVS_DEG = (360, 90)
UNKNOWN_HEADING_DEG = 180
# Decoders with a long training; the refined one is compared at the usual budget only.
CURVE_DECODERS: tuple[Decoder, ...] = ("authors", "text", "one_way", "ours")
TEXT, OURS = Variant("text"), Variant("ours")


@dataclass(frozen=True)
class Means:
    """What there is to measure with.

    Attributes:
        model_hash: of the model of parts d and e; None without them.
        photos: the real photos of part f that there are: by view, what tells them from others.
        refusals: starts of part f that cannot be had, and why.
    """

    model_hash: str | None = None
    photos: Mapping[PhotoView, str] = field(default_factory=dict)
    refusals: Mapping[Start, str] = field(default_factory=dict)


class Plan:
    """The cells of some parts.

    Args:
        store: the finished cells; from those of the learning rates follow the others.
        parts: that are wanted.
        means: what there is to measure with.
    """

    def __init__(self, store: CellStore, parts: Sequence[Part], means: Means | None = None) -> None:
        self.store, self.parts, self.means = store, parts, means or Means()
        self.config: StudyConfig = store.config

    def cells(self) -> Iterator[Cell]:
        """All cells that can be named by now, each once; what others wait for comes first."""
        makers: dict[Part, Callable[[], Iterator[Cell]]] = {
            "a": self._decoders,
            "b": self._tokens,
            "c": self._tasks,
            "d": self.grid,
            "e": self.conditions,
            "f": self._starts,
        }
        known: set[Cell] = set()
        for part in self.parts:
            for cell in makers[part]():
                if cell not in known:
                    known.add(cell)
                    yield cell

    def missing(self) -> Iterator[Cell]:
        """Those that are neither finished nor refused."""
        return (
            cell
            for cell in self.cells()
            if self.store.result(cell) is None and not self._is_refused(cell)
        )

    def _is_refused(self, cell: Cell) -> bool:
        return isinstance(cell, TrainingCell) and cell.variant.start in self.means.refusals

    @property
    def is_trained(self) -> bool:
        """Whether any part trains networks."""
        return bool(set(self.parts) & {"a", "b", "c", "f"})

    def num_pairs(self) -> int:
        """Pairs of all trainings of the parts, finished or not."""
        cells = _Rehearsal(self.store, self.parts, self.means).cells()
        return sum(cell.num_pairs for cell in cells if isinstance(cell, TrainingCell))

    # ------------------------------------------------------------------------------ learning rates

    def rate_owner(self, variant: Variant) -> Variant:
        """Whose learning rate a variant takes.

        Networks that are ours but for a refiner or the start of their weights take that of ours.
        """
        is_ours = variant.decoder == "ours_refined" or variant.is_mixed
        return Variant("ours", variant.setting) if is_ours else variant

    def rate_cells(self, variant: Variant) -> list[TrainingCell]:
        """The short trainings that choose a variant's learning rate."""
        owner, pairs = self.rate_owner(variant), self.config.lr_pairs
        return [TrainingCell(owner, pairs, lr, is_tested=False) for lr in self.config.lrs]

    def rates(self, variant: Variant) -> dict[float, CellResult] | None:
        """What the short trainings say by learning rate; None before all are finished."""
        results = {cell.lr: self.store.result(cell) for cell in self.rate_cells(variant)}
        found = {lr: result for lr, result in results.items() if result is not None}
        return found if len(found) == len(results) else None

    def lr(self, variant: Variant) -> float | None:
        """The learning rate with the most photos within 5 m on validation, then by the median.

        A mean error would reward answering the chip's centre. None before it is known, or where
        every rate diverged.
        """
        rates = self.rates(variant) or {}
        scores = {
            lr: (-r.metrics["validation_recall@5m"], r.metrics["validation_median_m"])
            for lr, r in rates.items()
            if not r.has_diverged
        }
        return min(scores, key=lambda lr: scores[lr]) if scores else None

    # ------------------------------------------------------------------------------------ trainings

    def runs(
        self, variant: Variant, *, task: Task = "both", num_tokens: int = 2
    ) -> list[TrainingCell]:
        """The trainings of all seeds; none before the learning rate is known.

        A network for a single task sees half the pairs: the two together see as many as one for
        both. It and the one-token network take the learning rate of the one for both tasks.
        """
        lr = self.lr(variant)
        if lr is None:
            return []
        pairs = self.config.num_pairs if task == "both" else self.config.num_pairs // 2
        first = TrainingCell(variant, pairs, lr, task=task, num_tokens=num_tokens)
        return [replace(first, seed=seed) for seed in range(self.config.num_seeds)]

    def curve_cell(self, decoder: Decoder) -> TrainingCell | None:
        """The one long training, with an unknown heading."""
        variant, config = Variant(decoder), self.config
        lr = self.lr(variant)
        if lr is None:
            return None
        return TrainingCell(variant, config.curve_pairs, lr, num_checks=config.num_checks)

    def _decoders(self) -> Iterator[Cell]:
        for setting in SETTINGS:
            variants = decoder_variants(setting)
            for variant in variants:
                yield from self.rate_cells(variant)
            # One seed of all decoders after the other: a study that is stopped compares them.
            runs = [self.runs(variant) for variant in variants]
            for same_seed in zip(*(r for r in runs if r), strict=True):
                yield from same_seed
        for decoder in CURVE_DECODERS:
            cell = self.curve_cell(decoder)
            if cell is not None:
                yield cell

    def _tokens(self) -> Iterator[Cell]:
        yield from self.rate_cells(TEXT)
        yield from self.runs(TEXT)
        yield from self.runs(TEXT, num_tokens=1)
        yield from self.swaps()

    def swaps(self) -> list[SwapCell]:
        """The two-token networks with their tokens exchanged, as far as they are trained."""
        return [SwapCell(cell) for cell in self.runs(TEXT) if self._has_weights(cell)]

    def _tasks(self) -> Iterator[Cell]:
        yield from self.rate_cells(OURS)
        for task in ("both", "retrieval", "pose"):
            yield from self.runs(OURS, task=task)
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

    def searches(self, first: Task, second: Task, num_shortlist: int) -> list[SearchCell]:
        """The searches of all seeds, as far as their networks are trained."""
        pairs = zip(self.runs(OURS, task=first), self.runs(OURS, task=second), strict=True)
        return [
            SearchCell(retrieval, pose, num_shortlist)
            for retrieval, pose in pairs
            if self._has_weights(retrieval) and self._has_weights(pose)
        ]

    def _starts(self) -> Iterator[Cell]:
        for variant in start_variants():
            yield from self.rate_cells(variant)
            yield from self.runs(variant)
            for view in self.means.photos:
                yield from self.real_cells(variant, view)

    def real_cells(self, variant: Variant, view: PhotoView) -> list[RealCell]:
        """The real photos of a view for all seeds, as far as their networks are trained."""
        photos_hash = self.means.photos.get(view)
        if photos_hash is None:
            return []
        runs = self.runs(variant)
        return [RealCell(cell, photos_hash, view) for cell in runs if self._has_weights(cell)]

    def _has_weights(self, cell: TrainingCell) -> bool:
        result = self.store.result(cell)
        return result is not None and not result.has_diverged

    # -------------------------------------------------------------------------------------- grids

    def grid_cells(self, hfov_deg: int, prior_deg: int, condition: Condition) -> list[GridCell]:
        """One cell of a grid: all its cities."""
        model_hash = self.means.model_hash
        if model_hash is None:
            return []
        grid = self.config.grid
        seeds = range(grid.first_seed, grid.first_seed + grid.num_cities)
        return [GridCell(model_hash, s, hfov_deg, prior_deg, condition) for s in seeds]

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


class _Rehearsal(Plan):
    """The plan as if every first learning rate were the best: it names all trainings."""

    def lr(self, variant: Variant) -> float | None:
        return self.config.lrs[0]


def decoder_variants(setting: Setting) -> tuple[Variant, ...]:
    """The decoders that are compared in a setting."""
    chosen = DECODERS if setting == "unknown" else CURVE_DECODERS
    return tuple(Variant(decoder, setting) for decoder in chosen)


def start_variants() -> tuple[Variant, ...]:
    """Ours by its start; half of the photos are pinhole views, as the real ones are."""
    return tuple(Variant("ours", start=start, is_mixed=True) for start in STARTS)
