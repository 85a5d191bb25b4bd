"""The study's report: REPORT/report.md with its tables, plots, time and hardware."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ciper.study.cells import TrainingCell, hardware
from ciper.study.config import Part
from ciper.study.plan import Plan
from ciper.study.plots import draw_part
from ciper.study.tables import DECODER_NAMES, SETTING_TITLES, Table, Tables

PART_TITLES: dict[Part, str] = {
    "a": "(a) Decoder",
    "b": "(b) Tokens",
    "c": "(c) Joint training, single tasks, cascade",
    "d": "(d) Field of view and prior on the heading",
    "e": "(e) Aerial change and occlusion",
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
        sections += [_curve(name, pictures[name]) for name in pictures if name.endswith("_curve")]
        if part == "a":
            sections += _ratios(tables)
    sections.append(_costs(tables))
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
            f"{config.batch_size}. Learning rates are the best of "
            f"{', '.join(f'{lr:g}' for lr in config.lrs)} on {config.validation.num_cities} "
            f"validation cities after {config.lr_pairs:,} pairs. Test: "
            f"{config.test.num_cities} other cities with {config.test.photos_per_city} photos "
            "each; retrieval over all their chips of 128 m at a stride of 64 m. A spread is the "
            "standard deviation over seeds.\n"
        )
    return "\n".join(lines)


def _section(table: Table, picture: str | None) -> str:
    image = f"\n![{table.title}]({picture})\n" if picture else ""
    return f"### {table.title}\n\n{table.meaning}\n\n{table.markdown()}\n{image}"


def _curve(name: str, picture: str) -> str:
    setting = "aligned" if "aligned" in name else "unknown"
    title = f"Learning curves, {SETTING_TITLES['aligned' if setting == 'aligned' else 'unknown']}"
    return f"### {title}\n\n![{title}]({picture})\n"


def _ratios(tables: Tables) -> Iterator[str]:
    """How many times as large the others' median position errors are as ours."""
    for table in tables.of("a"):
        spreads = {row.labels[0]: row.spread("median_m") for row in table.rows}
        ours = spreads.pop(DECODER_NAMES["ours"], None)
        if ours is None or ours.mean <= 0:
            continue
        lines = [f"{table.title}: median position error as a multiple of ours:\n"]
        for name, spread in spreads.items():
            if spread is None or name.startswith("baseline"):
                continue
            gap = (spread.mean - spread.deviation) - (ours.mean + ours.deviation)
            overlap = "spreads do not overlap" if gap > 0 else "spreads overlap"
            note = f" ({overlap})" if min(spread.num, ours.num) > 1 else ""
            lines.append(f"- {name}: {spread.mean / ours.mean:.2f} x{note}")
        yield "\n".join(lines) + "\n"


def _costs(tables: Tables) -> str:
    """Time and hardware of all finished cells."""
    plan = tables.plan
    done = [(cell, plan.store.result(cell)) for cell in plan.cells()]
    seconds = sum(result.seconds for _, result in done if result is not None)
    pairs = sum(
        cell.num_pairs
        for cell, result in done
        if result is not None and isinstance(cell, TrainingCell)
    )
    machine = hardware()
    gpu = machine["gpu"] or "no GPU"
    return (
        "## Time and hardware\n\n"
        f"{seconds / 3600:.2f} hours for the finished cells ({pairs:,} training pairs) on "
        f"{machine['processor']}, {machine['num_threads']} threads, {gpu}; Python "
        f"{machine['python']}, PyTorch {machine['torch']}, CIPER {machine['ciper']}. Every cell's "
        "settings, figures, curve, seconds and hardware are in `cells/`.\n"
    )
