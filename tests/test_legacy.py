from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ciper.legacy import (
    ciper_lateral_longitudinal,
    legacy_figures,
    one_percent_without_one,
    strict_greater_ranks,
    vigor_metres_512,
)
from ciper.metrics import (
    NO_REFERENCE,
    Floats,
    one_percent,
    pose_errors,
    pose_metrics,
    ranks,
    recall_at_k,
    recall_within,
)

NAN = math.nan
INF = math.inf


# --- retrieval ------------------------------------------------------------------------------------


def test_strict_ranks_by_hand_ties_and_nan_are_hits() -> None:
    references = np.array([[0.5], [0.5], [NAN], [0.9], [0.1]])
    asked = np.array([[1.0], [1.0], [1.0], [NAN], [1.0]])
    true = [0, 3, 4, 0, -1]
    assert strict_greater_ranks(asked, references, true).tolist() == [1, 0, 3, 0, NO_REFERENCE]
    assert ranks(asked, references, true).tolist() == [3, 1, 4, 4, NO_REFERENCE]
    # A true reference that is not a number beats all.
    assert strict_greater_ranks(asked[:1], references, [2]).tolist() == [0]
    assert ranks(asked[:1], references, [2]).tolist() == [4]


@pytest.mark.parametrize("value", [0.1, NAN, 0.0])
def test_a_collapsed_encoder_finds_everything(value: float) -> None:
    descriptors = np.full((250, 77), value, dtype=np.float32)
    true = np.arange(250)
    strict = strict_greater_ranks(descriptors, descriptors, true)
    assert recall_at_k(strict, 1) == 1.0
    right = ranks(descriptors, descriptors, true)
    assert recall_at_k(right, one_percent(250)) == 0.0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("num_locations", [1, 4])
def test_strict_ranks_equal_their_definition(dtype: type[Any], num_locations: int) -> None:
    rng = np.random.default_rng(1)
    # Small whole numbers: many exact ties.
    references = rng.integers(-1, 2, size=(120, num_locations, 5)).astype(dtype)
    queries = rng.integers(-1, 2, size=(60, 5)).astype(dtype)
    references[7, 0], references[8, -1], queries[3] = NAN, INF, NAN
    true = rng.integers(0, 120, size=60)
    with np.errstate(invalid="ignore"):
        products = np.einsum("qd,rld->qrl", queries.astype(np.float64), references)
    similarity = products.max(axis=2)
    # An infinite descriptor has no similarity to be compared.
    similarity[:, 8] = NAN
    expected = (similarity > similarity[np.arange(60), true][:, None]).sum(axis=1)
    for block_size in (1, 50, 4096):
        found = strict_greater_ranks(queries, references, true, block_size=block_size)
        assert found.tolist() == expected.tolist()
    assert (found <= ranks(queries, references, true)).all()


def test_without_ties_the_strict_ranks_are_right() -> None:
    rng = np.random.default_rng(2)
    references, queries = rng.normal(size=(500, 8)), rng.normal(size=(50, 8))
    true = rng.integers(0, 500, size=50)
    strict = strict_greater_ranks(queries, references, true)
    assert strict.tolist() == ranks(queries, references, true).tolist()


@pytest.mark.parametrize(("num", "k"), [(1, 0), (99, 0), (100, 1), (90_618, 906)])
def test_one_percent_lacks_one(num: int, k: int) -> None:
    assert one_percent_without_one(num) == k == one_percent(num) - 1


# --- poses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "lateral", "longitudinal"),
    # The answer lies 3 m beside the truth along x and 4 m along y, on whichever side.
    [(0.0, -4.0, -3.0), (90.0, 3.0, -4.0), (180.0, 4.0, 3.0), (270.0, -3.0, 4.0)],
)
@pytest.mark.parametrize("sides", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_lateral_and_longitudinal_by_hand(
    heading: float, lateral: float, longitudinal: float, sides: tuple[int, int]
) -> None:
    answer = [[10.0 + 3 * sides[0], -20.0 + 4 * sides[1], 77.0]]
    true = [[10.0, -20.0, heading]]
    found = ciper_lateral_longitudinal(answer, true)
    assert found[0][0] == pytest.approx(lateral)
    assert found[1][0] == pytest.approx(longitudinal)
    # The right errors tell what lies across the heading from what lies along it.
    right = pose_errors(answer, true)
    across = 3.0 if heading in (0.0, 180.0) else 4.0
    assert right.lateral_m[0] == pytest.approx(across)
    assert right.longitudinal_m[0] == pytest.approx(7.0 - across)


def poses_within(num: int, heading_within: float, rng: np.random.Generator) -> Floats:
    """Poses within 20 m and so many degrees, as KITTI's protocol draws them."""
    limit = np.array([20.0, 20.0, heading_within])
    return rng.uniform(-limit, limit, size=(num, 3))


def test_answers_without_any_skill_are_right_by_half_at_an_unknown_heading() -> None:
    rng = np.random.default_rng(3)
    true, answers = poses_within(40_000, 180.0, rng), poses_within(40_000, 180.0, rng)
    for values in ciper_lateral_longitudinal(answers, true):
        assert recall_within(values, 1.0) == pytest.approx(0.53, abs=0.01)
    figures = pose_metrics(pose_errors(answers, true))
    # An error of (1 - e / 40) e / 20 in each direction: 7 % less than 1 m at most.
    assert 0.03 < figures["lateral_recall@1m"] < 0.08
    assert 0.03 < figures["longitudinal_recall@1m"] < 0.08


def test_answers_without_any_skill_are_always_right_at_a_known_heading() -> None:
    rng = np.random.default_rng(4)
    true, answers = poses_within(40_000, 10.0, rng), poses_within(40_000, 10.0, rng)
    for values in ciper_lateral_longitudinal(answers, true):
        assert recall_within(values, 1.0) > 0.95


def test_shapes_of_poses_are_checked() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 3\) twice"):
        ciper_lateral_longitudinal(np.zeros((2, 2)), np.zeros((2, 2)))


def test_metres_on_vigor_are_a_fifth_too_short() -> None:
    assert vigor_metres_512([0.0, 10.0, NAN])[:2].tolist() == [0.0, 8.0]
    # 100 px of 640 on a Chicago chip, 11.1262 m: 80 px of 512 times the gsd of 640.
    assert vigor_metres_512(100 * 0.111262) == pytest.approx(80 * 0.111262)


# --- the report's columns -------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    true = np.array([[0, 0, 0], [0, 0, 90], [0, 0, 180], [0, 0, 270]], dtype=float)
    error = np.array([[3.0, 4.0, 0.0], [0.5, 2.0, 0.0], [6.0, 0.6, 0.0], [NAN, NAN, NAN]])
    figures = legacy_figures(
        ranks=[0, 1, 7, 200], num_references=250, predicted=true + error, true=true, is_vigor=False
    )
    # lateral -4, 0.5, 0.6, no answer; longitudinal -3, -2, 6, no answer
    assert figures == {
        "legacy_recall@1": 1 / 4,
        "legacy_recall@5": 2 / 4,
        "legacy_recall@10": 3 / 4,
        "legacy_recall@1%": 2 / 4,  # k = 2
        "legacy_mean_m": INF,
        "legacy_median_m": pytest.approx((5.0 + math.hypot(6.0, 0.6)) / 2),
        "legacy_lateral_recall@1m": 3 / 4,
        "legacy_lateral_recall@5m": 3 / 4,
        "legacy_longitudinal_recall@1m": 2 / 4,
        "legacy_longitudinal_recall@5m": 2 / 4,
    }


def test_figures_on_vigor_have_its_metres_and_may_lack_retrieval() -> None:
    true = np.zeros((2, 3))
    true[:, 2] = 180.0
    error = np.array([[1.2, 6.0, 0.0], [10.0, 0.0, 0.0]])
    figures = legacy_figures(
        ranks=None, num_references=4, predicted=true + error, true=true, is_vigor=True
    )
    assert all(name.startswith("legacy_") for name in figures)
    assert not any("@1%" in name for name in figures)
    assert figures["legacy_mean_m"] == pytest.approx(0.8 * (math.hypot(1.2, 6.0) + 10.0) / 2)
    # 0.8 x 6 m and 0 m; 0.8 x 1.2 m and 8 m.
    assert figures["legacy_lateral_recall@5m"] == 1.0
    assert figures["legacy_longitudinal_recall@1m"] == 0.5


def test_recall_at_one_percent_is_nothing_in_a_small_gallery() -> None:
    perfect = np.zeros(5)
    figures = legacy_figures(
        ranks=perfect,
        num_references=99,
        predicted=np.zeros((5, 3)),
        true=np.zeros((5, 3)),
        is_vigor=False,
    )
    assert figures["legacy_recall@1"] == 1.0
    assert figures["legacy_recall@1%"] == 0.0
    assert recall_at_k(perfect, one_percent(99)) == 1.0
