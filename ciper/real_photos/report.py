"""The report on a few real photos: text, tables, and a picture per photo."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciper.errors import OutputError
from ciper.files import is_free
from ciper.real_photos.figures import LEVEL, Trials, coin_probability, measures_of, verdict
from ciper.real_photos.picture import Shown, draw_photo
from ciper.report import METRICS, TEXT, markdown, number, write_metrics

PHOTOS, WINDOWS, PICTURES = "photos.csv", "windows.csv", "pictures"

UNITS = {
    "rank_descriptor": "rank among the photos' windows, by descriptor",
    "rank_evidence": "rank among the photos' windows, by evidence of all poses",
    "distractor_rank_descriptor": "rank among distractors, by descriptor",
    "distractor_rank_evidence": "rank among distractors, by evidence of all poses",
    "distance_m": "distance, m",
    "heading_error_deg": "heading error, deg",
    "confidence": "confidence",
}
AGAINST = {
    "random": "random",
    "center": "the window's centre",
    "other windows": "windows of the other photos",
}


def check_replaceable(out: Path) -> None:
    """Refuse a place that holds anything but an older report of this kind.

    Raises:
        OutputError: it does.
    """
    if not (is_free(out) or all((out / name).is_file() for name in (METRICS, TEXT, PHOTOS))):
        raise OutputError(
            f"{out} exists and is not a report of ciper benchmark photos; name a new folder or "
            "remove it"
        )


def write_report(
    folder: Path, trials: Trials, figures: Mapping[str, Any], shown: Sequence[Shown]
) -> dict[str, Any]:
    """Write everything into a folder; returns what metrics.json holds."""
    finite = write_metrics(folder, figures)
    _write_csv(folder / PHOTOS, _photo_rows(finite))
    _write_csv(folder / WINDOWS, _window_rows(trials))
    (folder / PICTURES).mkdir()
    pictures = []
    for i, photo in enumerate(shown):
        # Numbers: an id may hold what no file name may.
        pictures.append(f"{PICTURES}/photo-{i + 1}.png")
        draw_photo(trials, i, photo, folder / pictures[-1])
    (folder / TEXT).write_text(_text(finite, pictures), encoding="utf-8")
    return finite


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _photo_rows(figures: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Medians over the offsets."""
    for name, medians in figures["photos"].items():
        yield {"photo": name} | {key: round(value, 4) for key, value in medians.items()}


def _window_rows(trials: Trials) -> Iterable[Mapping[str, Any]]:
    measures = measures_of(trials)
    for i, o in np.ndindex(trials.confidence.shape):
        row: dict[str, Any] = {"photo": trials.names[i], "offset": o}
        for kind, pose in (("true", trials.true[i, o]), ("found", trials.found[i, o])):
            columns = (f"{kind}_x_m", f"{kind}_y_m", f"{kind}_heading_deg")
            row |= {c: _rounded(v) for c, v in zip(columns, pose.tolist(), strict=True)}
        yield row | {name: _rounded(float(m.values[i, o])) for name, m in measures.items()}


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


# ------------------------------------------------------------------------------------------- text


def _text(figures: Mapping[str, Any], pictures: Sequence[str]) -> str:
    parts = [_introduction(figures)]
    parts += [f"> {warning}" for warning in figures["warnings"]]
    parts.append("## Photo by photo\n\n" + _photo_table(figures))
    parts.append("## In total\n\n" + _total_table(figures) + "\n\n" + _reading(figures))
    parts += ["## Pictures", _legend(figures)]
    names = zip(figures["photos"], pictures, strict=True)
    parts += [f"![{name}]({picture})" for name, picture in names]
    return "\n\n".join(parts) + "\n"


def _introduction(figures: Mapping[str, Any]) -> str:
    num_photos, num_offsets = figures["num_photos"], figures["num_offsets"]
    distractors = _distractors(figures)
    return (
        f"# Real photos, asked of `{figures['model']}`\n\n"
        f"{num_photos} photos, each held against windows of {figures['chip_m']:g} m at "
        f"{figures['gsd']:.3g} m per pixel out of the aerial images about them, at {num_offsets} "
        f"seeded offsets: the camera lies uniformly in the window's central half. The photo's own "
        f"window is ranked among the {num_photos} windows of all photos at the same offset"
        f"{distractors}. Heading and place are unknown to the model; where a photo does not tell "
        "its field of view, it is averaged over. Distance and heading error are those of the "
        "posterior's mode in the own window. The true headings are those of a compass, some "
        f"degrees off. Seed {figures['seed']}. {figures['seconds']:.0f} s in all. Weights "
        f"`{figures['model_hash'][:12]}`.\n\n"
        f"Medians are in [{PHOTOS}]({PHOTOS}), every window is in [{WINDOWS}]({WINDOWS}), the "
        f"tables are in [{METRICS}]({METRICS})."
    )


def _distractors(figures: Mapping[str, Any]) -> str:
    num, num_incomplete = figures["num_distractors"], figures["num_incomplete_distractors"]
    if not num:
        return ""
    left_out = f"; {num_incomplete} more have gaps there and are left out" if num_incomplete else ""
    return (
        f", and separately among itself and {num} distractors, one chip from the middle of each "
        f"raster{left_out}"
    )


def _photo_table(figures: Mapping[str, Any]) -> str:
    total = figures["total"]
    rows = []
    for name, medians in figures["photos"].items():
        cells = [number(medians[key]) for key in total]
        rows.append((name, *cells, number(medians["center_distance_m"])))
    chance = [number(_chance(total[key]), "") for key in total]
    rows.append(("chance (expected)", *chance, ""))
    header = (
        "median over the offsets",
        *(UNITS[key] for key in total),
        "distance of the centre, m",
    )
    return markdown(header, rows) + "\n\nRanks are from 1, the first."


def _chance(total: Mapping[str, Any]) -> float | None:
    random = total["against"].get("random")
    return None if random is None else float(random["mean"])


def _total_table(figures: Mapping[str, Any]) -> str:
    rows = []
    for key, total in figures["total"].items():
        own = (UNITS[key], number(total["mean"]), _between(total["mean_95"]))
        if not total["against"]:
            rows.append((*own, "", "", "", "", ""))
        for name, other in total["against"].items():
            rows.append(
                (
                    *own,
                    AGAINST[name],
                    number(other["mean"]),
                    _between(other["difference_95"]),
                    f"{other['num_photos_better']} of {figures['num_photos']}",
                    verdict(other["difference_95"]),
                )
            )
    header = (
        "", "mean", f"{LEVEL:.0%}", "against", "mean", f"difference, {LEVEL:.0%}",
        "photos better", "verdict",
    )  # fmt: skip
    return markdown(header, rows)


def _between(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{number(low)} to {number(high)}"


def _reading(figures: Mapping[str, Any]) -> str:
    num = figures["num_photos"]
    text = (
        f"Means over all {num * figures['num_offsets']} windows. The intervals are Student's over "
        f"the {num} photos, as the offsets of one photo are no independent trials: **so few photos "
        "show a tendency at best**. By the toss of a coin all of them would be better than chance "
        f"with probability {number(coin_probability(num, num))}, all but one or more with "
        f"{number(coin_probability(num - 1, num))}; of twenty comparisons one is told apart by "
        "chance alone."
    )
    if figures["num_distractors"]:
        text += (
            " Chance among distractors supposes that they look like the windows. They are other "
            "imagery, so the windows of the *other* photos are ranked among them as well: only "
            "where the own windows come before those it is the place that the model tells."
        )
    return text


def _legend(figures: Mapping[str, Any]) -> str:
    return (
        "Left the photo. In the middle its window at the first offset, with the posterior's "
        "density on the central half (dashed), the truth (green ring) and the answer (white). "
        f"Right the whole aerial image, with the answers at all {figures['num_offsets']} offsets. "
        "The pictures show the photos and the imagery: their licences hold for them."
    )
