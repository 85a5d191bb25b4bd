"""The study's report: REPORT/report.md with its tables, plots, time and hardware."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ciper.study.cells import TrainingCell
from ciper.study.config import Part
from ciper.study.parts import DECODER_NAMES, SETTING_TITLES, Tables
from ciper.study.plan import Plan
from ciper.study.plots import CURVE, draw_part
from ciper.study.tables import Summary, Table

CURVE_TITLE = f"Learning curves, {SETTING_TITLES['unknown']}"
PART_TITLES: dict[Part, str] = {
    "a": "(a) Decoder",
    "b": "(b) Tokens",
    "c": "(c) Joint training, single tasks, cascade",
    "d": "(d) Field of view and prior on the heading",
    "e": "(e) Aerial change and occlusion",
    "f": "(f) Initialisation",
}


def write_study(folder: Path, tables: Tables, parts: Sequence[Part]) -> Path:
    """Writes tables (CSV), plots (PNG) and report.md of what is finished; returns the report."""
    sections = [_introduction(tables.plan)]
    for part in parts:
        pictures = draw_part(folder, part, tables)
        sections.append(f"## {PART_TITLES[part]}\n")
        made = tables.of(part)
        if not made:
            sections.append("Nothing of this part is finished yet.\n")
        for table in made:
            table.write_csv(folder / f"{table.name}.csv")
            sections.append(_section(table, pictures.get(table.name)))
        if CURVE in pictures:
            sections.append(f"### {CURVE_TITLE}\n\n![{CURVE_TITLE}]({pictures[CURVE]})\n")
        if part == "a":
            sections += _ratios(tables)
        sections += [f"- {note}" for note in tables.notes(part)]
        sections.append("")
    sections.append(_costs(tables.plan))
    path = folder / "report.md"
    path.write_text("\n".join(sections), encoding="utf-8")
    return path


def _introduction(plan: Plan) -> str:
    config, shown = plan.config, list(plan.cells())
    num_done = sum(plan.store.result(cell) is not None for cell in shown)
    lines = ["# Accuracy study\n"]
    if config.name == "quick":
        lines.append(
            "**A quick run: it proves that the commands work. Its budgets are far too small for "
            "any conclusion.**\n"
        )
    lines.append(f"{num_done} of {len(shown)} cells that can be named so far are finished.\n")
    if plan.is_trained:
        lines.append(
            f"Trained networks share one trunk (width {config.trunk.width}, transformer depth "
            f"{config.trunk.depth}), the same panoramas of {config.train.num_cities} procedural "
            f"cities of {config.train.city_m:g} m, augmentation and batches of "
            f"{config.batch_size}. Learning rates are those of "
            f"{', '.join(f'{lr:g}' for lr in config.lrs)} with the most photos within 5 m (then "
            f"the smallest median error) on {config.validation.num_cities} validation cities "
            f"after {config.lr_pairs:,} pairs. Test: "
            f"{config.test.num_cities} other cities with {config.test.photos_per_city} photos "
            "each; retrieval over all their chips of 128 m at a stride of 64 m: by descriptors "
            f"(retrieval recall), and for {config.num_matched} of the photos by the evidence for "
            "poses (matched recall). A spread is the standard deviation over seeds; trainings "
            "that diverged have no figures and are counted beside.\n"
        )
    return "\n".join(lines)


def _section(table: Table, picture: str | None) -> str:
    image = f"\n![{table.title}]({picture})\n" if picture else ""
    return f"### {table.title}\n\n{table.meaning}\n\n{table.markdown()}\n{image}"


def _ratios(tables: Tables) -> Iterator[str]:
    """How many times as large the others' median position errors are as ours."""
    for table in tables.of("a"):
        medians = {row.labels[0]: row.summary("median_m") for row in table.rows}
        ours = medians.pop(DECODER_NAMES["ours"], None)
        if ours is None or ours.mean <= 0:
            continue
        lines = [f"{table.title}: median position error as a multiple of ours:\n"]
        for name, other in medians.items():
            if other is not None and not name.startswith("baseline"):
                lines.append(f"- {name}: {other.mean / ours.mean:.2f} x{_overlap(other, ours)}")
        yield "\n".join(lines) + "\n"


def _overlap(one: Summary, other: Summary) -> str:
    """Whether intervals of one standard deviation meet; nothing where either has no spread."""
    if min(one.num, other.num) < 2:
        return ""
    is_apart = abs(one.mean - other.mean) > one.deviation + other.deviation
    return " (spreads do not overlap)" if is_apart else " (spreads overlap)"


def _costs(plan: Plan) -> str:
    """Time of all finished cells, by the hardware that finished them."""
    hours: defaultdict[str, float] = defaultdict(float)
    pairs: Counter[str] = Counter()
    for cell in plan.cells():
        result = plan.store.result(cell)
        if result is None:
            continue
        machine = _machine(result.hardware)
        hours[machine] += result.seconds / 3600
        pairs[machine] += cell.num_pairs if isinstance(cell, TrainingCell) else 0
    lines = [
        f"- {hours[machine]:.2f} hours for {pairs[machine]:,} training pairs and all evaluations "
        f"on {machine}"
        for machine in sorted(hours)
    ]
    done = "\n".join(lines) or "Nothing is finished yet."
    return (
        f"## Time and hardware\n\n{done}\n\nThe parts have {plan.num_pairs():,} training pairs in "
        "all. Every cell's settings, figures, curve, seconds and hardware are in `cells/`. Pairs "
        "per second count training steps only.\n"
    )


def _machine(hardware: Mapping[str, Any]) -> str:
    # Cells that say nothing of it are older: they were all computed in bfloat16.
    precision = hardware.get("precision", "bfloat16")
    return (
        f"{hardware['processor']}, {hardware['num_threads']} threads, "
        f"{hardware['gpu'] or 'no GPU'}, {precision}; Python {hardware['python']}, "
        f"PyTorch {hardware['torch']}, "
        f"CIPER {hardware['ciper']}"
    )
