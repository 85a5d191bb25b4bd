from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from model_helpers import write_tiny_weights
from published_helpers import Beacon, panoramas, turned_chips
from released_helpers import SMALL, random_network

from ciper.asking import ignore_progress
from ciper.cli.protocols import protocol_options
from ciper.data.datasets import ProtocolOptions
from ciper.data.protocol import AerialImage, Cut, Protocol, Told
from ciper.errors import ConfigError, DatasetError, OutputError
from ciper.evaluate import evaluate
from ciper.metrics import NO_REFERENCE
from ciper.model.load import Calibration, Model, PaperModel, load_model
from ciper.model.released import Origin
from ciper.posterior import Places
from ciper.published.answers import ToldPrior
from ciper.published.codes import ChipCoder, References, cells_within
from ciper.published.evaluation import Asking, warnings_of_training
from ciper.published.figures import (
    Asked,
    SampleQuery,
    answers_in_chips,
    baseline_answers,
    figures_of,
    queries_of,
    world_offset,
)
from ciper.scoring import errors_of


def asked_of(protocol: Protocol, model: Model) -> tuple[list[SampleQuery], dict[str, Any], Asking]:
    asking = Asking(model, protocol)
    queries = asking.ask(ignore_progress)
    asked = Asked(protocol, 0, model.is_metric, model.calibration.is_fitted)
    return queries, figures_of(queries, asked), asking


def released_model(dataset: Any = "vigor", **more: Any) -> PaperModel:
    return PaperModel(
        network=random_network(),
        model_name="released",
        model_hash="1" * 64,
        calibration=Calibration(is_fitted=False),
        origin=Origin(dataset, SMALL.side_m, **more),
    )


# ---------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("metric", [True, False])
def test_answers_in_turned_chips_are_those_of_the_world(metric: bool, tmp_path: Path) -> None:
    """The chip's own metres and up become true metres and north, whatever the model calls them."""
    protocol = turned_chips(tmp_path)
    queries, figures, _ = asked_of(protocol, Beacon(metric=metric))
    errors = errors_of(queries, "in_chip")
    # Half a fine cell of 2 m, or of a 64th of the 50 m.
    assert (errors.position_m < 0.7).all(), errors.position_m
    assert (errors.heading_deg < 2.5).all(), errors.heading_deg
    assert figures["pose"]["recall@1m"] == 1.0
    assert ("pose_untold" in figures) == metric
    for query in queries:
        true = query.sample.position
        assert (query.in_chip.lat, query.in_chip.lon) == pytest.approx(true, abs=2e-5)
    # Nobody else competes, and the rank of one's own chip is given away.
    assert "retrieval" not in figures and "end_to_end" not in figures
    assert figures["retrieval_per_query_chips"] == {
        "recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "recall@1%": 1.0,
    }  # fmt: skip
    assert figures["num_references"] == len(protocol.samples)


@pytest.mark.parametrize("metric", [True, False])
def test_answers_in_the_gallery_are_those_of_the_world(metric: bool, tmp_path: Path) -> None:
    """Two cities of other gsd share the posterior: every offset has its own chip's metres."""
    queries, figures, _ = asked_of(panoramas(tmp_path), Beacon(metric=metric))
    for name in ("in_chip", "whole"):
        errors = errors_of(queries, name)
        assert (errors.position_m < 0.7).all(), (name, errors.position_m)
        assert (errors.heading_deg < 2.5).all()
    assert figures["retrieval"]["recall@1"] == figures["retrieval"]["hit_rate"] == 1.0
    assert figures["end_to_end"]["gated_recall@1m"] == 1.0
    assert figures["num_references"] == 2 * len(queries)
    assert figures["calibration"]["coverage_90"] > 0.5
    for query in queries:
        assert query.whole.denser_mass < 0.5
        assert np.isfinite(query.whole.log_density)


def test_semi_positives_do_not_cost_a_hit(tmp_path: Path) -> None:
    """A neighbour that looks the same is not less similar: a rank of 1, but a hit."""
    protocol = panoramas(tmp_path, 3)
    twin = protocol.references[1]
    protocol.references[0].path.replace(tmp_path / "own.png")
    (tmp_path / "own.png").replace(protocol.references[0].path)
    twin.path.write_bytes(protocol.references[0].path.read_bytes())
    queries, figures, _ = asked_of(protocol, Beacon())
    assert [(q.rank, q.hit_rank) for q in queries] == [(1, 0), (0, 0), (0, 0)]
    assert figures["retrieval"]["hit_rate"] == 1.0
    assert figures["retrieval"]["recall@1"] == pytest.approx(2 / 3)


def test_legacy_columns_are_those_of_the_code(tmp_path: Path) -> None:
    """VIGOR's metres are 0.8 of the truth there, a tie is a hit, and k is R // 100."""
    protocol = panoramas(tmp_path, 3)
    protocol.references[1].path.write_bytes(protocol.references[0].path.read_bytes())
    queries, figures, _ = asked_of(protocol, Beacon())
    assert [query.legacy_rank for query in queries] == [0, 0, 0]
    assert figures["legacy"]["legacy_recall@1"] == 1.0 > figures["retrieval"]["recall@1"]
    assert figures["legacy"]["legacy_recall@1%"] == 0.0
    assert figures["legacy"]["legacy_mean_m"] == pytest.approx(0.8 * figures["pose"]["mean_m"])
    (tmp_path / "k").mkdir()
    queries, figures, _ = asked_of(turned_chips(tmp_path / "k", 4), Beacon())
    assert figures["legacy"]["legacy_mean_m"] == pytest.approx(figures["pose"]["mean_m"])
    for (x_m, y_m, turn_deg), query in zip(answers_in_chips(queries), queries, strict=True):
        true = query.sample.pose
        assert (x_m, y_m) == pytest.approx(true[:2], abs=0.7)
        assert abs((turn_deg - true[2] + 180) % 360 - 180) < 2.5


def test_what_is_told_reaches_metric_models_alone(tmp_path: Path) -> None:
    protocol = turned_chips(tmp_path, 1)
    model = Beacon()
    asked_of(protocol, model)
    told, untold = model.seen_priors
    assert untold is None
    assert told is not None
    # 90 deg is coarse heading 8; the opposite one is as good as excluded.
    assert told[0, 8].max() == 0.0
    assert told[0, 24].max() < -100
    # 15 m are beyond the 13 m, in any corner.
    assert told[0, 8, 0, 8] < -0.5 and told[0, 8, 8, 8] == 0.0
    pixels = Beacon(metric=False)
    asked_of(protocol, pixels)
    assert pixels.seen_priors == [None]


def test_a_told_heading_is_no_answer(tmp_path: Path) -> None:
    protocol = panoramas(tmp_path, 2, noise_deg=0.0)
    model = Beacon()
    _, figures, asking = asked_of(protocol, model)
    assert np.isnan(figures["pose"]["heading_median_deg"])
    assert np.isnan(figures["end_to_end"]["heading_median_deg"])
    assert figures["pose_untold"]["heading_median_deg"] < 2.5
    assert any("tells the headings" in w for w in asking.warnings(queries_of(protocol)))
    # Only here a model that wants north may turn the photo.
    assert model.seen_headings == [0.0, 0.0]
    turned = Beacon()
    asked_of(panoramas(tmp_path, 2), turned)
    assert turned.seen_headings == [None, None]


def test_priors_by_hand() -> None:
    places = Places.around(np.array([40.0]), np.array([8.0]), chip_m=64.0)
    prior = ToldPrior(places, told=Told(heading_deg=350.0, heading_within_deg=20.0, within_m=10.0))
    beyond = prior.log_position(np.array([10.0, -12.0, 3.0]), np.array([-10.0, 3.0, 11.0]))
    assert beyond.tolist() == [0.0, -2.0, -0.5]
    heading = prior.log_heading(np.array([350.0, 10.0, 330.0, 13.0, 327.0]), 0.0)
    assert heading.tolist() == [0.0, 0.0, 0.0, -4.5, -4.5]
    nothing = ToldPrior(places, told=Told(0.0, 180.0, np.inf))
    assert not nothing.log_heading(np.array([0.0, 180.0]), 1.0).any()
    assert not nothing.log_position(np.array([99.0]), np.array([0.0])).any()
    assert ToldPrior(places).on_coarse_cells is None


def test_world_offsets_by_hand() -> None:
    for up_deg, expected in ((0, (3, 4)), (90, (4, -3)), (180, (-3, -4)), (270, (-4, 3))):
        assert world_offset(3.0, 4.0, up_deg) == pytest.approx(np.array(expected, float))
    many = world_offset(np.array([3.0, 3.0]), np.array([4.0, 4.0]), np.array([0.0, 90.0]))
    np.testing.assert_allclose(many, [(3, 4), (4, -3)], atol=1e-12)


def test_the_middle_of_a_reference() -> None:
    assert cells_within(4, half_m=8.0, reach_m=3.9).tolist() == [
        [False] * 4, [False, True, True, False], [False, True, True, False], [False] * 4,
    ]  # fmt: skip
    assert cells_within(4, half_m=8.0, reach_m=4.1).all()
    assert cells_within(1, half_m=8.0, reach_m=1.0).all()


# --------------------------------------------------------------------------------------- baselines


def test_baselines_know_what_is_told(tmp_path: Path) -> None:
    """Of cameras uniform in the told square: 0.3826 and 0.5214 of its side."""
    (sample,) = turned_chips(tmp_path, 1).samples
    rng = np.random.default_rng(0)
    samples = []
    for i in range(1500):
        x_m, y_m = rng.uniform(-13, 13, 2)
        centre = np.array([sample.cut.x_m, sample.cut.y_m])
        x, y = centre + world_offset(x_m, y_m, sample.cut.up_deg)
        turn_deg = 90.0 + rng.uniform(-10, 10)
        heading_deg = (sample.cut.up_deg + turn_deg) % 360
        samples.append(
            replace(sample, name=str(i), x_m=float(x), y_m=float(y), heading_deg=heading_deg)
        )
    protocol = Protocol("kitti", {}, tuple(samples))
    figures = figures_of(queries_of(protocol), Asked(protocol, 0, True, True))["baseline"]
    assert figures["center"]["pose"]["mean_m"] == pytest.approx(0.3826 * 26, rel=0.03)
    assert figures["random"]["pose"]["mean_m"] == pytest.approx(0.5214 * 26, rel=0.03)
    assert figures["center"]["pose"]["heading_mean_deg"] == pytest.approx(5.0, rel=0.05)
    assert figures["random"]["pose"]["heading_mean_deg"] == pytest.approx(20 / 3, rel=0.05)
    # A sample's draw does not depend on which others are asked.
    some = replace(protocol, samples=protocol.samples[700:702])
    drawn = [
        baseline_answers(queries_of(p), Asked(p, 0, True, True))["pose"]["random"]
        for p in (protocol, some)
    ]
    np.testing.assert_allclose(drawn[0][700:702], drawn[1])


def test_a_random_reference_is_far_away(tmp_path: Path) -> None:
    protocol = panoramas(tmp_path)
    answers = baseline_answers(queries_of(protocol), Asked(protocol, 0, True, True))["end_to_end"]
    assert list(answers) == ["random"]
    away = np.hypot(*answers["random"][:, :2].T)
    assert np.isfinite(away).all() and away.max() > 1e5


# ----------------------------------------------------------------------------------------- failures


def test_unreadable_queries_are_failures_everywhere(tmp_path: Path) -> None:
    protocol = panoramas(tmp_path)
    protocol.samples[0].photo.write_bytes(b"no image")
    protocol.samples[1].image.path.unlink()
    protocol.references[9].path.write_bytes(b"no image")
    queries, figures, asking = asked_of(protocol, Beacon())
    assert figures["num_queries"] == 5
    assert figures["num_unreadable"] == 2
    assert [bool(query.problem) for query in queries] == [True, True, False, False, False]
    assert figures["pose"]["recall@5m"] == pytest.approx(3 / 5)
    assert figures["pose"]["mean_m"] == np.inf
    assert figures["end_to_end"]["recall@25m"] == pytest.approx(3 / 5)
    # References that cannot be read take nobody's rank but that of the place that they show.
    assert [query.rank for query in queries] == [NO_REFERENCE, NO_REFERENCE, 0, 0, 0]
    assert [query.hit_rank for query in queries[2:]] == [0, 0, 0]
    assert figures["retrieval"]["recall@1"] == pytest.approx(3 / 5)
    told = " ".join(asking.warnings(queries))
    assert "2 of 5 photos or their chips cannot be read and count as failures" in told
    assert "2 of 10 references cannot be read: they do not compete" in told


def test_without_a_gallery_too(tmp_path: Path) -> None:
    protocol = turned_chips(tmp_path, 3)
    protocol.samples[0].photo.unlink()
    protocol.samples[1].image.path.unlink()
    queries, figures, asking = asked_of(protocol, Beacon())
    # The first chip competes though its photo cannot be read, the second is not there.
    assert [query.rank for query in queries][2] == 0
    assert figures["retrieval_per_query_chips"]["recall@1"] == pytest.approx(1 / 3)
    assert any("gives away" in warning for warning in asking.warnings(queries))
    nothing = replace(protocol, samples=protocol.samples[:2])
    _, figures, _ = asked_of(nothing, Beacon())
    assert figures["pose"]["recall@5m"] == 0.0
    assert figures["retrieval_per_query_chips"]["recall@10"] == 0.0


def test_a_chip_outside_of_its_image_is_a_failure(tmp_path: Path) -> None:
    protocol = turned_chips(tmp_path, 1)
    (sample,) = protocol.samples
    away = replace(sample, cut=Cut(500.0, 0.0, 0.0, 50.0))
    queries, _, _ = asked_of(replace(protocol, samples=(away,)), Beacon())
    assert queries[0].problem.endswith("the chip lies outside of it")


def test_no_reference_at_all_is_an_error(tmp_path: Path) -> None:
    missing = tuple(AerialImage(tmp_path / f"{i}.png", 40.0, 8.0, 0.1, 640) for i in range(3))
    with pytest.raises(DatasetError, match="none of 3 references can be read"):
        References.encode(ChipCoder(Beacon()), missing, ignore_progress)


def test_codes_are_kept_and_bounded(tmp_path: Path) -> None:
    protocol = turned_chips(tmp_path, 4)
    coder = ChipCoder(Beacon(), num_kept=2)
    chips = [(sample.image, sample.cut) for sample in protocol.samples]
    found = coder.codes([chips[0], chips[0], chips[1], chips[2]])
    assert found[0] is found[1]
    assert coder.codes([chips[2]])[0] is found[3]
    assert coder.codes([chips[0]])[0] is not found[0]
    chips[3][0].path.unlink()
    assert "does not exist" in str(coder.codes([chips[3]])[0])


# --------------------------------------------------------------------------------------- the report


@pytest.fixture
def as_data_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Protocol]]:
    """Protocols by their spec, in place of the readers."""
    protocols: dict[str, Protocol] = {}
    monkeypatch.setattr(
        "ciper.published.evaluation.read_protocol", lambda spec, _options: protocols[spec]
    )
    yield protocols


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_report_with_a_gallery(
    tmp_path: Path, as_data_set: dict[str, Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "root", tmp_path / "report"
    root.mkdir()
    as_data_set["vigor:x"] = panoramas(root)
    as_data_set["vigor:x"].samples[4].photo.unlink()
    before = snapshot(root)
    steps: set[str] = set()
    figures = evaluate("vigor:x", out, model=Beacon(), progress=lambda what, *_: steps.add(what))
    assert snapshot(root) == before
    assert steps == {"references", "queries", "pictures"}
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert figures["dataset"] == "vigor"
    assert figures["settings"] == {"split": "same_area"}
    assert {"retrieval", "pose", "pose_untold", "end_to_end", "calibration", "calibration_pose",
            "baseline", "seconds", "seconds_per_query"} <= set(figures)  # fmt: skip
    table = pyarrow.parquet.read_table(out / "per_query.parquet").to_pydict()
    assert [len(column) for column in table.values()] == [5] * len(table)
    assert table["problem"][:4] == [None] * 4 and "does not exist" in table["problem"][4]
    assert table["error_m"][4] is table["pose_error_m"][4] is table["rank"][4] is None
    assert table["rank"][:4] == [0] * 4
    text = (out / "report.md").read_text()
    for name in ("errors", "recall", "retrieval", "heading", "calibration"):
        assert (out / f"{name}.png").stat().st_size > 5000
        assert f"]({name}.png)" in text
    assert "| recall@1 | 0.8 | 0.1 |" in text
    assert "](cases/worst-1.png)" in text
    assert len(list((out / "cases").iterdir())) == 4
    # The figures are the matter now; drawing takes most of the time.
    monkeypatch.setattr("ciper.published.evaluation.write_published_report", lambda *_: None)
    again = evaluate("vigor:x", out, model=Beacon())
    timed = ("seconds", "seconds_per_query")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in figures.items() if k not in timed
    }


def test_a_report_of_one_photo_without_a_gallery(
    tmp_path: Path, as_data_set: dict[str, Protocol]
) -> None:
    as_data_set["kitti:x"] = turned_chips(tmp_path, 1)
    out = tmp_path / "report"
    figures = evaluate("kitti:x", out, model=Beacon(metric=False), seed=3)
    assert figures["num_queries"] == 1
    assert "calibration_pose" in figures and "calibration" not in figures
    text = (out / "report.md").read_text()
    assert "|  | retrieval_per_query_chips | random |" in text
    assert "made by hand" in text and "gives away" in text
    assert not (out / "retrieval.png").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="is not a report"):
        evaluate("kitti:x", tmp_path / "mine", model=Beacon())


def test_our_network_and_the_papers(tmp_path: Path) -> None:
    """Random weights: every block is there, and no figure is out of its range."""
    (tmp_path / "k").mkdir()
    (tmp_path / "v").mkdir()
    models = [
        load_model(write_tiny_weights(tmp_path / "tiny.safetensors"), "cpu"),
        released_model(),
    ]
    protocols = [turned_chips(tmp_path / "k", 2), panoramas(tmp_path / "v", 2, noise_deg=20.0)]
    for model in models:
        for protocol in protocols:
            queries, figures, _ = asked_of(protocol, model)
            errors = errors_of(queries, "in_chip")
            side_m = protocol.samples[0].cut.side_m
            assert np.isfinite(errors.position_m).all()
            if model.is_metric:
                assert (errors.position_m < side_m).all()
            assert ("calibration_pose" in figures) == model.calibration.is_fitted
            assert np.isfinite(errors.heading_deg).all() == model.says_heading
            if protocol.has_gallery:
                assert np.isfinite(errors_of(queries, "whole").position_m).all()


def test_the_papers_answer_is_its_hypothesis_scaled_to_the_chip(tmp_path: Path) -> None:
    """Twice the published side, the same pixels: twice the metres."""
    protocol = turned_chips(tmp_path, 1)
    (sample,) = protocol.samples
    image = replace(sample.image, gsd=2 * sample.image.gsd)
    cut = replace(sample.cut, x_m=2 * sample.cut.x_m, y_m=2 * sample.cut.y_m, side_m=100.0)
    large = replace(sample, image=image, cut=cut, x_m=2 * sample.x_m, y_m=2 * sample.y_m)
    model = released_model("kitti")
    answers = []
    for asked in (sample, large):
        (query,), _, _ = asked_of(replace(protocol, samples=(asked,)), model)
        answers.append(query.in_chip)
    assert answers[1].x_m == pytest.approx(2 * answers[0].x_m, rel=1e-3)
    assert answers[1].y_m == pytest.approx(2 * answers[0].y_m, rel=1e-3)
    assert answers[1].heading_deg == pytest.approx(answers[0].heading_deg, abs=0.1)


def test_authors_weights_are_warned_of_other_chips() -> None:
    turned, any_way = released_model("kitti", heading_range_deg=10.0), released_model("kitti")
    ours, theirs = ProtocolOptions(), ProtocolOptions(reading="ciper")
    assert "--protocol ciper turns" in warnings_of_training(turned, ours)[0]
    for model, options in ((turned, theirs), (any_way, ours), (released_model(), ours)):
        assert not warnings_of_training(model, options)
    assert not warnings_of_training(Beacon(), ours)


# -------------------------------------------------------------------------------------- the options


def options(**given: Any) -> ProtocolOptions | None:
    names = ("split", "labels", "fov", "heading_noise", "protocol")
    return protocol_options(**{**dict.fromkeys(names), "seed": 4, **given})


def test_options_by_name() -> None:
    assert options() is None
    assert options(protocol="grid") == ProtocolOptions(seed=4)
    assert options(split="test2", protocol="ciper", heading_noise=180.0) == ProtocolOptions(
        split="test2", reading="ciper", heading_noise_deg=180.0, seed=4
    )
    assert options(labels="original", fov=90.0) == ProtocolOptions(
        labels="original", fov_deg=90.0, seed=4
    )
    for given, message in (
        ({"labels": "mine"}, "--labels mine: expected corrected or original"),
        ({"protocol": "mesh"}, "--protocol mesh: expected highlyaccurate or ciper or grid"),
        ({"fov": 5.0}, "--fov 5"),
        ({"heading_noise": -1.0}, "--heading-noise -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            options(**given)


# -------------------------------------------------------------------------------------- real labels


@pytest.mark.slow
def test_the_centre_of_real_labels_is_as_far_as_known(tmp_path: Path) -> None:
    """Answering the chip's centre on VIGOR's same-area queries costs 14.2 m on average."""
    if "CIPER_REAL_DATA" not in os.environ:
        pytest.skip("CIPER_REAL_DATA is not set: it names the folder with the real label files")
    from ciper.data.vigor import read_vigor

    labels = Path(os.environ["CIPER_REAL_DATA"]) / "vigor" / "splits__corrected"
    (tmp_path / "splits__corrected").symlink_to(labels)
    for city in ("Chicago", "NewYork", "Seattle"):
        for kind in ("panorama", "satellite"):
            (tmp_path / city / kind).mkdir(parents=True)
    protocol = read_vigor(tmp_path, "same_area", ProtocolOptions())
    asked = Asked(protocol, 0, False, False)
    answers = baseline_answers(queries_of(protocol), asked)["pose"]["center"]
    assert len(answers) > 38_000
    assert np.hypot(*answers[:, :2].T).mean() == pytest.approx(14.23, abs=0.01)
