"""The tables of every part, out of its finished cells, and what has to be said beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ciper.study.cells import (
    SETTINGS,
    Cell,
    Decoder,
    PhotoView,
    Setting,
    Start,
    Task,
    Variant,
)
from ciper.study.config import Condition, Part
from ciper.study.nadir import CHIP_YEAR, NO_RASTERS, PHOTO_YEAR
from ciper.study.pairs import centre_recall
from ciper.study.plan import (
    CONDITION_HFOVS_DEG,
    CURVE_DECODERS,
    OURS,
    TEXT,
    UNKNOWN_HEADING_DEG,
    USUAL,
    Plan,
    decoder_variants,
    start_variants,
)
from ciper.study.real import NOT_MEASURED
from ciper.study.store import CellResult
from ciper.study.tables import Figures, Row, Table

DECODER_NAMES: dict[Decoder, str] = {
    "authors": "authors' code",
    "text": "paper's text",
    "one_way": "one-way",
    "ours": "geometric correlation (ours)",
    "ours_refined": "ours with the two-way refiner",
}
START_NAMES: dict[Start, str] = {
    "random": "plain stem, random",
    "stem": "pretrained EfficientNet-Lite0",
    "frozen_stem": "pretrained EfficientNet-Lite0, frozen",
}
SETTING_TITLES: dict[Setting, str] = {
    "unknown": "unknown heading",
    "aligned": "aligned heading, shift of up to 20 m",
}
MEANINGS: dict[Setting, str] = {
    "unknown": "All decoders on one trunk with the same pairs; poses in the true chip.",
    "aligned": "The same when the photo looks to the chip's up and the camera is within 20 m of "
    "its centre, east and north. The set decoders have learned that from their pairs; the "
    "geometric correlation is told as a prior, in training and at test.",
}
POSE_COLUMNS = ("median_m", "mean_m", "heading_median_deg", "recall@1m", "recall@5m")
RETRIEVAL_COLUMNS = ("retrieval_recall@1", "matched_recall@1")
SEARCH_COLUMNS = ("end_to_end_recall@1m", "end_to_end_recall@5m")
# What a network that was trained for a single task cannot answer.
UNTRAINED: dict[Task, tuple[str, ...]] = {
    "both": (),
    "retrieval": (*POSE_COLUMNS, "matched_recall@1"),
    "pose": ("retrieval_recall@1",),
}
Baselines = Mapping[str, Figures]


class Tables:
    """Makes the tables of a plan out of its finished cells.

    Args:
        plan: what was wanted.
        baselines: by setting, what knowing nothing finds; empty before the test cities exist.
        real_baselines: the same on the real photos, by view; empty without them.
    """

    def __init__(
        self,
        plan: Plan,
        baselines: Mapping[Setting, Baselines] | None = None,
        real_baselines: Mapping[PhotoView, Baselines] | None = None,
    ) -> None:
        self.plan, self.baselines = plan, baselines or {}
        self.real_baselines = real_baselines or {}

    def of(self, part: Part) -> list[Table]:
        """The tables of a part, without those that have no row yet."""
        makers = {
            "a": self._decoders,
            "b": self._tokens,
            "c": self._tasks,
            "d": self._grid,
            "e": self._conditions,
            "f": self._starts,
        }
        return [table for table in makers[part]() if table.rows]

    def notes(self, part: Part) -> list[str]:
        """What a reader of a part's tables has to know besides, in a sentence each."""
        variants: dict[Part, tuple[Variant, ...]] = {
            "a": tuple(v for setting in SETTINGS for v in decoder_variants(setting)),
            "b": (TEXT,),
            "c": (OURS,),
            "f": start_variants(),
        }
        # Some take the learning rate of others: what is doubtful about it is said once.
        chosen = dict.fromkeys(self.plan.rate_owner(v) for v in variants.get(part, ()))
        notes = [note for variant in chosen for note in self._rate_notes(variant)]
        if part == "f":
            refusals = self.plan.means.refusals.items()
            notes += [f"{START_NAMES[start]} is left out: {why}." for start, why in refusals]
            notes.append("All starts have the learning rate that ours has in (a).")
            if "street" not in self.plan.means.photos:
                notes.append(f"Real photos: {NOT_MEASURED}.")
            if "nadir" not in self.plan.means.photos:
                notes.append(f"Real photos from above: {NO_RASTERS}.")
        elif part == "a":
            notes.append("Ours with the two-way refiner has the learning rate of ours.")
        return notes

    def results(self, cells: Sequence[Cell]) -> tuple[CellResult, ...]:
        """Of those that are finished."""
        found = (self.plan.store.result(cell) for cell in cells)
        return tuple(result for result in found if result is not None)

    def row(
        self, labels: tuple[str, ...], cells: Sequence[Cell], *, left_out: Sequence[str] = ()
    ) -> Iterator[Row]:
        """One row if any of its cells is finished."""
        results = self.results(cells)
        if not results:
            return
        figures = tuple(
            {k: v for k, v in result.metrics.items() if k not in left_out}
            for result in results
            if not result.has_diverged
        )
        yield Row(labels, figures, len(cells), len(results) - len(figures))

    def _variant_row(self, name: str, variant: Variant) -> Iterator[Row]:
        """One row of all seeds, with the learning rate as its second label."""
        lr = self.plan.lr(variant)
        if lr is None and self.plan.rates(variant) is not None:
            yield Row((name, "every rate diverged"), (), self.plan.config.num_seeds)
        elif lr is not None:
            yield from self.row((name, f"{lr:g}"), self.plan.runs(variant))

    def _rate_notes(self, variant: Variant) -> Iterator[str]:
        """What is doubtful about a variant's learning rate."""
        config, lr = self.plan.config, self.plan.lr(variant)
        rates = self.plan.rates(variant)
        if rates is None:
            return
        name = f"{variant_name(variant)}, {SETTING_TITLES[variant.setting]}"
        if lr is None:
            yield f"{name}: every learning rate diverged."
            return
        if lr in (min(config.lrs), max(config.lrs)):
            edge = "smallest" if lr == min(config.lrs) else "largest"
            yield f"{name}: the best learning rate, {lr:g}, is the {edge} that was tried."
        recall = rates[lr].metrics["validation_recall@5m"]
        chance = centre_recall(variant.setting, config.validation.gsd)
        num_photos = config.validation.num_cities * config.validation.photos_per_city
        noise = 2.0 * (chance * (1.0 - chance) / num_photos) ** 0.5
        if recall <= chance + noise:
            yield (
                f"{name}: with its best learning rate {100 * recall:.1f} % of the validation "
                f"photos are within 5 m; answering the chip's centre gives {100 * chance:.1f} ± "
                f"{100 * noise:.1f} % (two standard errors): the choice is by chance."
            )

    def _baseline_rows(self, baselines: Baselines, *extra: str) -> Iterator[Row]:
        for name, figures in baselines.items():
            yield Row((f"baseline: {name}", *extra), (figures,))

    def _decoders(self) -> Iterator[Table]:
        for setting in SETTINGS:
            rows: list[Row] = []
            for variant in decoder_variants(setting):
                rows += self._variant_row(DECODER_NAMES[variant.decoder], variant)
            rows += self._baseline_rows(self.baselines.get(setting, {}), "")
            retrieval = RETRIEVAL_COLUMNS if setting == "unknown" else RETRIEVAL_COLUMNS[:1]
            yield Table(
                f"a_decoder_{setting}",
                f"Decoder, {SETTING_TITLES[setting]}, {self.plan.config.num_pairs:,} pairs",
                MEANINGS[setting],
                ("decoder", "learning rate"),
                (*POSE_COLUMNS, *retrieval, "pairs_per_s"),
                tuple(rows),
            )
        rows = []
        for decoder in CURVE_DECODERS:
            cell = self.plan.curve_cell(decoder)
            rows += self.row((DECODER_NAMES[decoder],), [] if cell is None else [cell])
        yield Table(
            "a_decoder_unknown_long",
            f"Decoder, {SETTING_TITLES['unknown']}, {self.plan.config.curve_pairs:,} pairs",
            "The same, one longer training each.",
            ("decoder",),
            (*POSE_COLUMNS, *RETRIEVAL_COLUMNS, "pairs_per_s"),
            (*rows, *self._baseline_rows(self.baselines.get("unknown", {}))),
        )

    def _tokens(self) -> Iterator[Table]:
        plan = self.plan
        rows = [
            *self.row(("one token for both tasks",), plan.runs(TEXT, num_tokens=1)),
            *self.row(("two tokens",), plan.runs(TEXT)),
            *self.row(("two tokens, swapped at test",), plan.swaps()),
            *self._baseline_rows(self.baselines.get("unknown", {})),
        ]
        yield Table(
            "b_tokens",
            f"Tokens of the paper's network, {plan.config.num_pairs:,} pairs",
            "If each token had learned its task, exchanging them must cost both tasks.",
            ("tokens",),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS),
            tuple(rows),
        )

    def _tasks(self) -> Iterator[Table]:
        plan, half = self.plan, self.plan.config.num_pairs // 2
        names: dict[Task, str] = {
            "both": f"joint, {plan.config.num_pairs:,} pairs",
            "retrieval": f"retrieval only, {half:,} pairs",
            "pose": f"pose only, {half:,} pairs",
        }
        rows: list[Row] = []
        for task, name in names.items():
            rows += self.row((name,), plan.runs(OURS, task=task), left_out=UNTRAINED[task])
        yield Table(
            "c_single_tasks",
            "Joint training and single tasks",
            "Each task on its own; the two single-task networks together saw as many pairs as the "
            "joint one. What a network was not trained for is left out.",
            ("network",),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS),
            tuple(rows),
        )
        searches: list[Row] = []
        for first, second, num in plan.ways():
            kind = "joint" if first == "both" else "two networks"
            how = "first chip alone" if num == 1 else f"cascade, {num} chips"
            searches += self.row((kind, how), plan.searches(first, second, num))
        yield Table(
            "c_end_to_end",
            "Joint network, two networks, and cascades, end to end",
            "Descriptors propose chips over all test cities; the evidence for poses decides.",
            ("networks", "search"),
            ("retrieval_recall@1", "chosen_recall@1", *SEARCH_COLUMNS),
            tuple(searches),
        )

    def _grid(self) -> Iterator[Table]:
        grid = self.plan.config.grid
        rows: list[Row] = []
        for hfov_deg in grid.hfovs_deg:
            for prior_deg in grid.heading_priors_deg:
                labels = (f"{hfov_deg}", prior_name(prior_deg))
                rows += self.row(labels, self.plan.grid_cells(hfov_deg, prior_deg, USUAL))
        yield Table(
            "d_grid",
            "Field of view by prior on the heading",
            "One model for all; spread over cities. Descriptors do not know the prior.",
            ("field of view, deg", "heading prior"),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS, *SEARCH_COLUMNS),
            tuple(rows),
            repeated="cities",
        )

    def _conditions(self) -> Iterator[Table]:
        rows: list[Row] = []
        condition: Condition
        for hfov_deg in CONDITION_HFOVS_DEG:
            for condition in (USUAL, *self.plan.config.grid.conditions):
                cells = self.plan.grid_cells(hfov_deg, UNKNOWN_HEADING_DEG, condition)
                rows += self.row((f"{hfov_deg}", condition.name), cells)
        yield Table(
            "e_conditions",
            "Aerial change and occlusion, heading unknown",
            "The same model; one date apart is the usual case. Spread over cities.",
            ("field of view, deg", "condition"),
            (*RETRIEVAL_COLUMNS, *POSE_COLUMNS, *SEARCH_COLUMNS),
            tuple(rows),
            repeated="cities",
        )

    def _starts(self) -> Iterator[Table]:
        synthetic: list[Row] = []
        for variant in start_variants():
            synthetic += self._variant_row(START_NAMES[variant.start], variant)
        pinhole = ("pinhole_median_m", "pinhole_recall@5m")
        yield Table(
            "f_start_synthetic",
            f"Start of our network, unseen synthetic cities, {self.plan.config.num_pairs:,} pairs",
            "Half of the training's photos are pinhole views of 60 to 120 deg. Panoramas, and the "
            "same photos as views of 75 deg; heading unknown.",
            ("start", "learning rate"),
            (*POSE_COLUMNS, *pinhole, *RETRIEVAL_COLUMNS, "pairs_per_s"),
            (*synthetic, *self._baseline_rows(self.baselines.get("unknown", {}), "")),
        )
        yield Table(
            "f_start_real",
            "Start of our network, real photos",
            "The same networks on five photos of Helsinki, each at eight offsets in its own chip; "
            "the chips of the other four compete with it. Five places are few: this tells working "
            "from not working, and no more.",
            ("start",),
            (*RETRIEVAL_COLUMNS, "retrieval_rank", "matched_rank", *POSE_COLUMNS),
            self._real_rows("street"),
        )
        yield Table(
            "f_start_nadir",
            "Start of our network, real photos from above",
            "The same networks, which have seen simulated streets alone, on photos from above cut "
            f"out of NAIP imagery of {PHOTO_YEAR}, one of a place, each against its own chip of "
            f"{CHIP_YEAR} and those of the other places. Nothing is trained for them: plan views "
            "are read as chips are, less what all chips have in common.",
            ("start",),
            ("matched_recall@1", "matched_rank", *POSE_COLUMNS),
            self._real_rows("nadir"),
        )

    def _real_rows(self, view: PhotoView) -> tuple[Row, ...]:
        """A row per start that was held against real photos, and what knowing nothing finds."""
        rows: list[Row] = []
        for variant in start_variants():
            cells = self.plan.real_cells(variant, view)
            rows += self.row((START_NAMES[variant.start],), cells)
        return (*rows, *self._baseline_rows(self.real_baselines.get(view, {})))


def variant_name(variant: Variant) -> str:
    """In a sentence."""
    return START_NAMES[variant.start] if variant.is_mixed else DECODER_NAMES[variant.decoder]


def prior_name(half_width_deg: int) -> str:
    """A heading prior in words."""
    if half_width_deg == 0:
        return "known"
    return "unknown" if half_width_deg >= 180 else f"±{half_width_deg} deg"
