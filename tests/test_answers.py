from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ciper.answers import Form, answer_of, format_answers
from ciper.geo import Pose

FOUND: dict[str, Any] = {
    "photo": "a, b.jpg",
    "lat": -33.8568,
    "lon": 151.2153,
    "heading_deg": 271.26,
    "radius_50_m": 1.5,
    "radius_90_m": 4.26,
    "heading_sigma_deg": 2.0,
    "confidence": 0.875,
    "crs": "EPSG:32756",
    "x_m": 334897.1,
    "y_m": 6252284.9,
    "hypotheses": [
        {"lat": -33.8568, "lon": 151.2153, "heading_deg": 271.26, "prob": 0.9, "chip": "c1"}
    ],
    "seconds": 0.21,
    "camera": "assumed",
    "in_gallery_prob": 0.96,
    "outcome": "located",
}
NOTHING = dict.fromkeys(("lat", "lon", "heading_deg", "x_m", "y_m"))
ABSENT: dict[str, Any] = {
    **FOUND,
    **NOTHING,
    "photo": "c.jpg",
    "confidence": 0.03,
    "in_gallery_prob": 0.1,
    "outcome": "not_in_gallery",
}


def localization(
    *, outside_prob: float, says_heading: bool = True, is_calibrated: bool = True
) -> Any:
    best = SimpleNamespace(x_m=3.0, y_m=4.0, heading_deg=90.0, prob=0.75, chip=1)
    posterior = SimpleNamespace(
        hypotheses=(best, best, best),
        radius_m=lambda level: 10 * level,
        heading_sigma_deg=2.0,
        outside_prob=outside_prob,
    )
    return SimpleNamespace(
        photo="a.jpg",
        pose=Pose(lat=0.0, lon=6.5, heading_deg=-90.0),
        posterior=posterior,
        chips=np.array([2, 1]),
        confidence=0.5,
        says_heading=says_heading,
        is_calibrated=is_calibrated,
        is_in_gallery=outside_prob < 0.5,
        crs="EPSG:32631",
        x_m=1.0,
        y_m=0.0,
        camera=SimpleNamespace(is_guessed=True, projection="pinhole"),
        hypothesis_pose=lambda h: Pose(lat=h.y_m, lon=h.x_m, heading_deg=h.heading_deg),
        seconds=0.123456,
    )


CHIPS: Any = SimpleNamespace(ids=("w", "x", "y"))


def test_the_record_of_a_localized_photo() -> None:
    answer = answer_of(localization(outside_prob=0.25), CHIPS, num_hypotheses=2)
    # The posterior knows two of the gallery's three chips, in its own order.
    hypothesis = {"lat": 4.0, "lon": 3.0, "heading_deg": 90.0, "prob": 0.75, "chip": "x"}
    assert answer == {
        "photo": "a.jpg",
        "lat": 0.0,  # the equator is a place
        "lon": 6.5,
        "heading_deg": 270.0,
        "radius_50_m": 5.0,
        "radius_90_m": 9.0,
        "heading_sigma_deg": 2.0,
        "confidence": 0.5,
        "crs": "EPSG:32631",
        "x_m": 1.0,
        "y_m": 0.0,
        "hypotheses": [hypothesis, hypothesis],
        "seconds": 0.1235,
        "camera": "assumed",
        "in_gallery_prob": 0.75,
        "outcome": "located",
    }
    assert list(answer) == list(FOUND)


def test_a_guess_is_no_place() -> None:
    answer = answer_of(localization(outside_prob=0.75), CHIPS)
    assert answer["outcome"] == "not_in_gallery"
    assert answer["in_gallery_prob"] == 0.25
    assert {name: answer[name] for name in NOTHING} == NOTHING
    assert len(answer["hypotheses"]) == 3


def test_what_a_model_cannot_say_is_null() -> None:
    answer = answer_of(localization(outside_prob=0.25, is_calibrated=False), CHIPS)
    assert answer["confidence"] is None
    assert answer["heading_deg"] == 270.0
    assert format_answers([answer], "text").endswith("confidence unknown\n")
    answer = answer_of(localization(outside_prob=0.25, says_heading=False), CHIPS)
    assert answer["heading_deg"] is answer["heading_sigma_deg"] is None
    assert all(h["heading_deg"] is None for h in answer["hypotheses"])
    assert answer["confidence"] == 0.5


def test_lines_for_people() -> None:
    assert format_answers([FOUND, ABSENT], "text") == (
        "a, b.jpg: -33.8568000, 151.2153000, heading 271.3 deg, "
        "90 % within 4.3 m, confidence 0.88\n"
        "c.jpg: not in this gallery (probability of being in it 0.10; best guess "
        "-33.8568000, 151.2153000, confidence 0.03)\n"
    )


def test_json_is_the_answers() -> None:
    assert json.loads(format_answers([FOUND, ABSENT], "json")) == [FOUND, ABSENT]


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        format_answers([{**FOUND, "x_m": float("nan")}], "json")


def test_geojson_has_lon_before_lat_and_null_for_a_guess() -> None:
    found, absent = json.loads(format_answers([FOUND, ABSENT], "geojson"))["features"]
    assert found["geometry"] == {"type": "Point", "coordinates": [151.2153, -33.8568]}
    assert absent["geometry"] is None
    assert found["properties"]["heading_deg"] == 271.26
    assert not {"lat", "lon"} & found["properties"].keys()


def test_csv_has_the_single_values() -> None:
    found, absent = csv.DictReader(io.StringIO(format_answers([FOUND, ABSENT], "csv")))
    assert found["photo"] == "a, b.jpg"
    assert float(found["lat"]) == -33.8568
    assert (absent["lat"], absent["outcome"]) == ("", "not_in_gallery")
    assert list(found) == [name for name in FOUND if name != "hypotheses"]


@pytest.mark.parametrize(("form", "text"), [("text", ""), ("json", "[]\n"), ("csv", "")])
def test_no_answers_are_no_lines(form: Form, text: str) -> None:
    assert format_answers([], form) == text
