"""Answers as records and as text: lines for people, JSON and CSV for programs, GeoJSON for maps.

An answer is what ``ciper localize --json`` promises for one photo: photo, lat, lon, heading_deg,
radius_50_m, radius_90_m, heading_sigma_deg, confidence, crs, x_m, y_m, hypotheses and seconds; and
besides ``camera`` (its projection, or "assumed"), ``in_gallery_prob`` and ``outcome``. With the
outcome "not_in_gallery" the position and heading are null: nobody takes a guess for a place by
mistake. The hypotheses are listed all the same. Every heading is null if the model knows nothing
of headings, and the confidence of a model that is not calibrated.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ciper.gallery.store import ChipTable
    from ciper.geo import Pose
    from ciper.localize import Localization
    from ciper.posterior import Hypothesis

Answer = Mapping[str, Any]
Form = Literal["text", "json", "geojson", "csv"]

LOCATED, NOT_IN_GALLERY = "located", "not_in_gallery"


def answer_of(found: Localization, chips: ChipTable, *, num_hypotheses: int = 5) -> Answer:
    """The record of one localized photo.

    Args:
        found: What the localizer says.
        chips: Of the gallery; names the hypotheses' chips.
        num_hypotheses: How many of the best to list.
    """
    posterior = found.posterior
    sigma_deg = posterior.heading_sigma_deg if found.says_heading else None
    best = posterior.hypotheses[:num_hypotheses]
    pose = found.pose if found.is_in_gallery else None
    return {
        "photo": found.photo,
        "lat": pose and pose.lat,
        "lon": pose and pose.lon,
        "heading_deg": pose and _heading_deg(found, pose),
        "radius_50_m": posterior.radius_m(0.5),
        "radius_90_m": posterior.radius_m(0.9),
        "heading_sigma_deg": sigma_deg,
        "confidence": found.confidence if found.is_calibrated else None,
        "crs": found.crs,
        "x_m": pose and found.x_m,
        "y_m": pose and found.y_m,
        "hypotheses": [_hypothesis(found, hypothesis, chips) for hypothesis in best],
        "seconds": round(found.seconds, 4),
        "camera": "assumed" if found.camera.is_guessed else found.camera.projection,
        "in_gallery_prob": 1.0 - posterior.outside_prob,
        "outcome": NOT_IN_GALLERY if pose is None else LOCATED,
    }


def _hypothesis(found: Localization, hypothesis: Hypothesis, chips: ChipTable) -> Answer:
    pose = found.hypothesis_pose(hypothesis)
    return {
        "lat": pose.lat,
        "lon": pose.lon,
        "heading_deg": _heading_deg(found, pose),
        "prob": hypothesis.prob,
        "chip": chips.ids[int(found.chips[hypothesis.chip])],
    }


def _heading_deg(found: Localization, pose: Pose) -> float | None:
    return pose.heading_deg if found.says_heading else None


def format_answers(answers: Sequence[Answer], form: Form) -> str:
    """Write answers in one of the forms, ending with a newline unless there is nothing to write."""
    return _WRITERS[form](answers)


def _text(answers: Sequence[Answer]) -> str:
    return "".join(f"{_line(answer)}\n" for answer in answers)


def _line(answer: Answer) -> str:
    stated = answer["confidence"]
    confidence = "confidence " + ("unknown" if stated is None else f"{stated:.2f}")
    if answer["outcome"] == NOT_IN_GALLERY:
        guess = "".join(
            f"; best guess {h['lat']:.7f}, {h['lon']:.7f}" for h in answer["hypotheses"][:1]
        )
        return (
            f"{answer['photo']}: not in this gallery "
            f"(probability of being in it {answer['in_gallery_prob']:.2f}{guess}, {confidence})"
        )
    heading_deg = answer["heading_deg"]
    heading = "heading unknown" if heading_deg is None else f"heading {heading_deg:.1f} deg"
    return (
        f"{answer['photo']}: {answer['lat']:.7f}, {answer['lon']:.7f}, {heading}, "
        f"90 % within {answer['radius_90_m']:.1f} m, {confidence}"
    )


def _json(answers: Sequence[Answer]) -> str:
    return json.dumps([dict(answer) for answer in answers], indent=2, allow_nan=False) + "\n"


def _geojson(answers: Sequence[Answer]) -> str:
    """A FeatureCollection of points, (lon, lat) as RFC 7946 orders them.

    A photo that is not of this gallery has no point: a map must not show a guess as a place.
    """
    features = [
        {
            "type": "Feature",
            "geometry": None
            if answer["outcome"] == NOT_IN_GALLERY
            else {"type": "Point", "coordinates": [answer["lon"], answer["lat"]]},
            "properties": {k: v for k, v in answer.items() if k not in ("lat", "lon")},
        }
        for answer in answers
    ]
    collection = {"type": "FeatureCollection", "features": features}
    return json.dumps(collection, indent=2, allow_nan=False) + "\n"


def _csv(answers: Sequence[Answer]) -> str:
    """One line per photo under a header; what is not a single value (hypotheses) is left out."""
    columns = list(
        dict.fromkeys(
            name
            for answer in answers
            for name, value in answer.items()
            if not isinstance(value, Mapping | list | tuple)
        )
    )
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    if columns:
        writer.writeheader()
    writer.writerows(answers)
    return file.getvalue()


_WRITERS: Mapping[Form, Callable[[Sequence[Answer]], str]] = {
    "text": _text,
    "json": _json,
    "geojson": _geojson,
    "csv": _csv,
}
