from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciper import metrics
from ciper.metrics import (
    NO_REFERENCE,
    Floats,
    Ints,
    auroc,
    baseline_answers,
    calibration_metrics,
    coverage,
    end_to_end_metrics,
    expected_calibration_error,
    finite_or_none,
    one_percent,
    pose_errors,
    pose_metrics,
    ranks,
    ranks_and_hit_ranks,
    ranks_from_similarity,
    recall_at_k,
    recall_within,
    retrieval_metrics,
    risk_coverage_area,
    true_and_semi_positive_chips,
)

NAN = math.nan
INF = math.inf


def slow_ranks(similarity: Floats, true: Ints, excluded: list[Ints] | None) -> list[int]:
    """The definition, word by word."""
    result = []
    for q, t in enumerate(true):
        left_out = set() if excluded is None else set(excluded[q].tolist())
        others = [r for r in range(similarity.shape[1]) if r != t and r not in left_out]
        result.append(sum(not similarity[q, r] < similarity[q, t] for r in others))
    return result


# --- retrieval ------------------------------------------------------------------------------------


def test_ranks_by_hand_ties_and_nan_count_against() -> None:
    similarity = np.array(
        [
            [0.9, 0.5, 0.1],  # true is best
            [0.5, 0.5, 0.1],  # tied with one
            [0.9, NAN, 0.1],  # the other is not a number
            [NAN, 0.5, 0.1],  # the true one is not a number
            [0.2, 0.5, 0.1],  # not in the gallery
        ]
    )
    true = np.array([0, 1, 0, 0, -1])
    assert ranks_from_similarity(similarity, true).tolist() == [0, 1, 1, 2, NO_REFERENCE]


def test_semi_positives_do_not_compete() -> None:
    similarity = np.array([[0.5, 0.9, 0.1], [0.5, 0.9, 0.8]])
    excluded = [np.array([1]), np.array([], dtype=np.int64)]
    assert ranks_from_similarity(similarity, [0, 0], excluded=excluded).tolist() == [0, 2]
    nobody = [np.array([], dtype=np.int64)] * 2
    assert ranks_from_similarity(similarity, [0, 0], excluded=nobody).tolist() == [1, 2]


def test_ranks_with_and_without_semi_positives_come_in_one_pass() -> None:
    references = np.array([[0.5], [0.9], [0.8], [0.1], [0.5]])
    semi = [np.array([1, 2]), np.array([2]), np.array([], dtype=np.int64)]
    whole, without = ranks_and_hit_ranks(
        np.ones((3, 1)), references, [0, 0, 1], semi_positives=semi
    )
    assert whole.tolist() == [3, 3, 0]
    assert without.tolist() == [1, 2, 0]  # reference 4 is tied with 0
    assert ranks(np.ones((3, 1)), references, [0, 0, 1], excluded=semi).tolist() == [1, 2, 0]


@pytest.mark.parametrize("num_locations", [None, 3])
@pytest.mark.parametrize("block_size", [1, 7, 16_384])
def test_the_streaming_path_equals_the_slow_reference(
    num_locations: int | None, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    shape = (23, 5) if num_locations is None else (23, num_locations, 5)
    # Small integers make many exact ties.
    references = rng.integers(-1, 2, size=shape).astype(np.float32)
    queries = rng.integers(-1, 2, size=(600, 5)).astype(np.float32)
    references[4] = NAN
    queries[2] = NAN
    true = rng.integers(0, 23, size=600)
    excluded = [rng.choice(23, size=n, replace=False) for n in rng.integers(0, 4, size=600)]
    similarity = np.einsum("qd,r...d->qr...", queries.astype(np.float64), references)
    if num_locations is not None:
        similarity = similarity.max(axis=2)
    expected = slow_ranks(similarity, true, excluded)
    found = ranks(queries, references, true, excluded=excluded, block_size=block_size)
    assert found.tolist() == expected
    assert ranks_from_similarity(similarity, true, excluded=excluded).tolist() == expected
    assert ranks(queries, references, true).tolist() == slow_ranks(similarity, true, None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_constant_descriptors_do_not_score(dtype: type[np.floating[Any]]) -> None:
    """Whatever order a matrix product sums in, equal descriptors stay tied: everyone is last."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 99))
    references = np.repeat(one / np.linalg.norm(one), 301, axis=0).astype(dtype)
    found = ranks(references[:50], references, np.arange(50), block_size=77)
    assert (found == 300).all()
    figures = retrieval_metrics(found, found, num_references=301)
    assert set(figures.values()) == {0.0}


def test_distinct_descriptors_score() -> None:
    references = np.eye(40, dtype=np.float32)
    found = ranks(references, references, np.arange(40))
    assert (found == 0).all()
    missing = ranks(references[:1], references, [-1])
    assert recall_at_k(missing, 40) == 0.0


def test_an_infinite_descriptor_counts_against_without_a_warning() -> None:
    references: Floats = np.eye(3)
    references[2] = INF
    assert ranks(np.eye(3)[:2], references, [0, 1]).tolist() == [1, 1]


@pytest.mark.parametrize(("num", "k"), [(1, 1), (99, 1), (100, 2), (841, 9), (90_618, 907)])
def test_one_percent_follows_vigor(num: int, k: int) -> None:
    assert one_percent(num) == k


def test_retrieval_metrics_by_hand() -> None:
    found = np.array([0, 1, 4, 5, 9, 10, 2, NO_REFERENCE])
    hits = np.array([0, 0, 3, 5, 9, 10, 2, NO_REFERENCE])
    assert retrieval_metrics(found, hits, num_references=250) == {
        "recall@1": 1 / 8,
        "recall@5": 4 / 8,
        "recall@10": 6 / 8,
        "recall@1%": 3 / 8,  # k = 3
        "hit_rate": 2 / 8,
    }


def test_the_true_chip_is_the_nearest_and_others_around_the_camera_are_semi_positive() -> None:
    # A 3 x 2 grid of 128 m chips with stride 64 m, not square.
    centres = np.array([[x, y] for y in (64.0, 128.0) for x in (64.0, 128.0, 192.0)])
    cameras = np.array([[70.0, 60.0], [130.0, 125.0], [250.0, 190.0], [300.0, 60.0], [NAN, 1.0]])
    true, semi = true_and_semi_positive_chips(cameras, centres, chip_m=128.0)
    assert true.tolist() == [0, 4, 5, -1, -1]
    assert [s.tolist() for s in semi] == [[1], [1, 2, 5], [], [], []]


def test_a_true_index_outside_the_gallery_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(2,\), below 3"):
        ranks_from_similarity(np.zeros((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="true_index of shape"):
        ranks(np.zeros((2, 3)), np.zeros((3, 3)), [0])


# --- poses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "lateral", "longitudinal"),
    # The answer lies 3 m east and 4 m north of the truth.
    [
        (0.0, 3.0, 4.0),
        (90.0, 4.0, 3.0),
        (180.0, 3.0, 4.0),
        (270.0, 4.0, 3.0),
        (45.0, 1 / math.sqrt(2), 7 / math.sqrt(2)),
        (135.0, 7 / math.sqrt(2), 1 / math.sqrt(2)),
        (225.0, 1 / math.sqrt(2), 7 / math.sqrt(2)),
        (315.0, 7 / math.sqrt(2), 1 / math.sqrt(2)),
    ],
)
def test_errors_are_turned_by_the_true_heading(
    heading: float, lateral: float, longitudinal: float
) -> None:
    # The predicted heading is different on purpose: it must not matter here.
    errors = pose_errors([[13.0, -16.0, 77.0]], [[10.0, -20.0, heading]])
    assert errors.position_m[0] == pytest.approx(5.0)
    assert errors.lateral_m[0] == pytest.approx(lateral)
    assert errors.longitudinal_m[0] == pytest.approx(longitudinal)


@pytest.mark.parametrize(
    ("predicted", "true", "error"),
    [(10, 350, 20), (350, 10, 20), (180, 0, 180), (0, 180, 180), (-90, 270, 0), (725, 0, 5)],
)
def test_heading_errors_take_the_short_way(predicted: float, true: float, error: float) -> None:
    errors = pose_errors([[0.0, 0.0, predicted]], [[0.0, 0.0, true]])
    assert errors.heading_deg[0] == pytest.approx(error)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 5), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_lateral_and_longitudinal_make_up_the_distance(rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows)
    errors = pose_errors(table[:, [0, 1, 4]], table[:, [2, 3, 4]])
    whole = np.hypot(errors.lateral_m, errors.longitudinal_m)
    np.testing.assert_allclose(whole, errors.position_m, atol=1e-9)


def test_pose_metrics_by_hand() -> None:
    true = np.zeros((4, 3))
    predicted = [[0.5, 0.0, 0.5], [0.0, 2.0, 359.0], [3.0, 4.0, 4.0], [0.0, 1.0, 90.0]]
    assert pose_metrics(pose_errors(predicted, true)) == pytest.approx(
        {
            "mean_m": 8.5 / 4,
            "median_m": 1.5,
            "recall@1m": 1 / 4,  # an error of exactly 1 m is not within 1 m
            "recall@3m": 3 / 4,
            "recall@5m": 3 / 4,
            "lateral_median_m": 0.25,
            "lateral_recall@1m": 3 / 4,
            "lateral_recall@5m": 1.0,
            "longitudinal_median_m": 1.5,
            "longitudinal_recall@1m": 1 / 4,
            "longitudinal_recall@5m": 1.0,
            "heading_mean_deg": 95.5 / 4,
            "heading_median_deg": 2.5,
            "heading_recall@1deg": 1 / 4,
            "heading_recall@5deg": 3 / 4,
        }
    )


def test_missing_answers_are_failures() -> None:
    true = np.zeros((3, 3))
    predicted = [[0.5, 0.0, 0.5], [NAN, NAN, NAN], [INF, 0.0, INF]]
    errors = pose_errors(predicted, true)
    assert errors.position_m.tolist() == [0.5, INF, INF]
    figures = pose_metrics(errors)
    assert figures["recall@1m"] == pytest.approx(1 / 3)
    assert figures["median_m"] == figures["mean_m"] == figures["heading_median_deg"] == INF
    assert finite_or_none({"pose": figures})["pose"]["median_m"] is None
    json.dumps(finite_or_none({"pose": figures}), allow_nan=False)


def test_end_to_end_metrics_by_hand() -> None:
    predicted = np.array([[0.5, 0, 1], [4, 0, 2], [20, 0, 3], [0.1, 0, 4], [NAN] * 3])
    figures = end_to_end_metrics(
        pose_errors(predicted, np.zeros((5, 3))), [True, True, True, False, True]
    )
    assert figures == pytest.approx(
        {
            "median_m": 4.0,
            "recall@1m": 2 / 5,
            "recall@3m": 2 / 5,
            "recall@5m": 3 / 5,
            "recall@10m": 3 / 5,
            "recall@25m": 4 / 5,
            "heading_median_deg": 3.0,
            "gated_recall@1m": 1 / 5,
            "gated_recall@5m": 2 / 5,
        }
    )


def test_figures_over_nothing_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no queries"):
        recall_within([], 1.0)
    with pytest.raises(ValueError, match="no queries"):
        pose_metrics(pose_errors(np.zeros((0, 3)), np.zeros((0, 3))))
    with pytest.raises(ValueError, match=r"expected \(N, 3\) twice"):
        pose_errors(np.zeros((2, 2)), np.zeros((2, 2)))


def test_baselines_know_nothing_but_the_rectangle() -> None:
    bounds = (-32.0, -16.0, 32.0, 48.0)
    answers = baseline_answers(4000, bounds_m=bounds, rng=np.random.default_rng(1))
    again = baseline_answers(4000, bounds_m=bounds, rng=np.random.default_rng(1))
    assert answers.keys() == {"center", "random"}
    assert (answers["center"][:, :2] == [0.0, 16.0]).all()
    assert (answers["random"][:, :2] >= [-32, -16]).all()
    assert (answers["random"][:, :2] < [32, 48]).all()
    np.testing.assert_allclose(answers["random"][:, :2].mean(axis=0), [0, 16], atol=2.0)
    for name, poses in answers.items():
        assert (poses == again[name]).all()
        errors = pose_errors(poses, np.zeros((4000, 3)))
        assert pose_metrics(errors)["heading_median_deg"] == pytest.approx(90.0, abs=4.0)


# --- calibration ----------------------------------------------------------------------------------


def test_coverage_by_hand() -> None:
    mass = [0.1, 0.5, 0.7, 0.9, 0.95, NAN]
    assert coverage(mass, mass, 0.5) == pytest.approx(2 / 6)
    assert coverage(mass, mass, 0.9) == pytest.approx(4 / 6)


def test_a_region_that_ends_inside_the_true_place_covers_a_share_of_it() -> None:
    # A first place of 60 %: the 50 % region is five sixths of it.
    assert coverage([0.0], [0.6], 0.5) == pytest.approx(5 / 6)
    assert coverage([0.6], [1.0], 0.5) == 0.0
    # So whoever lies there in 60 % of the cases is covered in 50 %.
    assert coverage([0.0] * 6 + [0.6] * 4, [0.6] * 6 + [1.0] * 4, 0.5) == pytest.approx(0.5)
    assert coverage([1.0], [1.0], 0.9) == 0.0


def test_calibration_error_by_hand() -> None:
    # Two bins of two: |1.0 - 1| / 2 ... (0.2 + 0.4 - 1) and (0.8 + 1.0 - 2), over four.
    found = expected_calibration_error([0.2, 0.8, 0.4, 1.0], [True, True, False, True], num_bins=2)
    assert found == pytest.approx((0.4 + 0.2) / 4)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1.0


@given(st.permutations(range(20)))
@settings(max_examples=30, deadline=None)
def test_equal_confidences_make_the_order_irrelevant(order: list[int]) -> None:
    confidence = np.repeat([0.5, 0.75], [8, 12])[order]
    is_correct = np.tile([True, False, True, True], 5)[order]
    assert expected_calibration_error(confidence, is_correct) == pytest.approx(
        (abs(8 * 0.5 - 6) + abs(12 * 0.75 - 9)) / 20
    )
    # Twelve answers at error rate 1/4, then eight at 1/4: a useless order.
    assert risk_coverage_area(confidence, is_correct) == pytest.approx(0.25)


def test_calibrated_confidence_has_a_small_error() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.uniform(size=20_000)
    is_correct = rng.uniform(size=20_000) < confidence
    assert expected_calibration_error(confidence, is_correct) < 0.02
    assert expected_calibration_error(np.sqrt(confidence), is_correct) > 0.1


def test_risk_coverage_area_by_hand() -> None:
    confidence = [0.9, 0.8, 0.3, 0.2]
    assert risk_coverage_area(confidence, [True, True, True, True]) == 0.0
    assert risk_coverage_area(confidence, [True, True, False, True]) == pytest.approx(
        (0 + 0 + 1 / 3 + 1 / 4) / 4
    )
    assert risk_coverage_area(confidence, [False] * 4) == 1.0


@pytest.mark.parametrize("bad", [NAN, -0.1, 1.1])
def test_confidences_must_be_probabilities(bad: float) -> None:
    with pytest.raises(ValueError, match="not a probability"):
        expected_calibration_error([0.5, bad], [True, False])
    with pytest.raises(ValueError, match="not a probability"):
        risk_coverage_area([0.5, bad], [True, False])


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([0.9, 0.8], [0.1, 0.2], 1.0),
        ([0.1], [0.9], 0.0),
        ([0.5, 0.5], [0.5], 0.5),
        ([0.5, 0.9, 0.1], [0.5, 0.3], (0.5 + 1 + 1 + 1 + 0 + 0) / 6),
        ([NAN, 0.9], [0.1], 0.5),
        ([0.9], [NAN, 0.1], 0.5),
    ],
)
def test_auroc_by_hand(positive: list[float], negative: list[float], area: float) -> None:
    assert auroc(positive, negative) == pytest.approx(area)


def test_auroc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="at least one positive"):
        auroc([], [0.5])


def test_calibration_metrics_by_hand() -> None:
    figures = calibration_metrics(
        denser_mass=[0.1, 0.4, 0.8, NAN],
        credible_mass=[0.2, 0.6, 0.95, NAN],
        radius_90_m=[2.0, 4.0, 8.0, NAN],
        confidence=[1.0, 1.0, 0.0, 0.0],
        position_error_m=[1.0, 4.9, 5.0, NAN],
        log_density=[-1.0, -2.0, -3.0, -6.0],
        heading_error_deg=[1.0, 3.0, 2.0, NAN],
        heading_sigma_deg=[1.0, 2.0, 3.0, 4.0],
    )
    assert figures == {
        # 0.5 lies halfway into the second place, 0.9 two thirds into the third.
        "coverage_50": pytest.approx((1 + 1 / 2) / 4),
        "coverage_90": pytest.approx((1 + 1 + 2 / 3) / 4),
        "median_radius_90_m": 6.0,
        "ece": 0.0,
        "aurc": pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4),
        "nll": 3.0,
        "heading_within_sigma": pytest.approx(2 / 3),
    }
    assert metrics.CORRECT_WITHIN_M == 5.0
