from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from study_helpers import SMALL_TRUNK, random_city, tiny_study

from ciper.model.matcher import Evidence, best_pose
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import PaperNetwork
from ciper.study.measuring import (
    StudyNetwork,
    aligned_prior,
    baselines,
    evaluation,
    find_pose,
    measure_retrieval,
    measure_search,
    num_windows,
    pose_evidence,
    predict_poses,
    recall_of_first,
    similarity,
    with_setting,
)
from ciper.study.networks import paper_config
from ciper.study.pairs import StudyPairs
from ciper.training.gradients import take


def evidence(heading: int, row: int, column: int) -> Evidence:
    """One window about a coarse cell, flat but for its middle: heading step 4, row 2, column 3."""
    fine = np.full((1, 9, 6, 6), -np.inf, np.float32)
    fine[0, 4, 2, 3] = 1.0
    return Evidence(
        coarse=np.zeros((1, 32, 16, 16), np.float32),
        chip=np.array([0]),
        heading=np.array([heading]),
        row=np.array([row]),
        column=np.array([column]),
        fine=fine,
    )


def test_what_the_setting_says_weighs_fine_cells_in_all_four_quadrants() -> None:
    # Coarse cells at 24 m, 40 m and more from the centre cannot hold an aligned camera.
    for row, column in [(3, 3), (3, 12), (12, 3), (12, 12)]:
        inside = evidence(0, row, column)
        assert with_setting(inside, "unknown") is inside
        weighed = with_setting(inside, "aligned").fine[0, 4]
        flat = inside.fine.copy()
        flat[:] = 0.0
        told = with_setting(replace(inside, fine=flat), "aligned").fine[0, 4]
        # Rows and columns of the window's fine cells, 2 m each, by hand.
        y_m = 31 - 2.0 * (2 * row - 2 + np.arange(6))
        x_m = 2.0 * (2 * column - 2 + np.arange(6)) - 31
        is_near = (np.abs(y_m) <= 21)[:, None] & (np.abs(x_m) <= 21)
        assert is_near.any() and not is_near.all()
        assert np.array_equal(told > -100, is_near)
        assert np.isfinite(weighed).sum() == 1
    # Half a circle away the heading is all but impossible, one fine step away it is not.
    turned = with_setting(evidence(16, 8, 8), "aligned").fine[0, 4]
    assert turned.max() < -1000
    assert best_pose(with_setting(evidence(0, 7, 7), "aligned"))[1][2] == pytest.approx(0.0)


def test_the_aligned_prior_is_about_north_and_the_centre() -> None:
    prior = aligned_prior(2)
    assert prior.shape == (2, 32, 16, 16)
    heading, row, column = np.unravel_index(prior[0].argmax(), prior.shape[1:])
    assert heading == 0 and {int(row), int(column)} <= set(range(2, 14))
    assert prior[0, 0, 8, 8] == 0
    # Centres of cells lie at 2, 6, ... m: 22 m may hold a camera at 20 m, 26 m may not.
    assert prior[0, 0, 8, 13] == 0 and prior[0, 0, 8, 14] < -1000
    assert prior[0, 16].max() < -100


def small_network(*, is_paper: bool) -> StudyNetwork:
    torch.manual_seed(0)
    if is_paper:
        return PaperNetwork(paper_config("text", SMALL_TRUNK, num_tokens=2))
    return Network(NetworkConfig(encoder=SMALL_TRUNK))


def small_pairs() -> StudyPairs:
    config = tiny_study().test
    return StudyPairs([random_city(config)], config, 0, "unknown")


@pytest.mark.parametrize("is_paper", [True, False])
def test_batched_poses_are_single_ones(is_paper: bool) -> None:
    network = small_network(is_paper=is_paper).eval()
    batches = [next(iter(small_pairs().fixed(3))), *list(small_pairs().fixed(1))[:3]]
    poses = []
    with torch.inference_mode():
        for batch in batches:
            ground = network.encode_ground(batch.canvas, batch.is_visible)
            aerial = network.encode_aerial(batch.chip, batch.is_valid)
            poses.append(predict_poses(network, ground, aerial))
    np.testing.assert_allclose(np.concatenate(poses[1:]), poses[0], atol=0.01)
    assert len(np.unique(poses[0].round(3), axis=0)) == 3


@pytest.mark.parametrize("is_paper", [True, False])
def test_pose_evidence_names_the_chip_that_the_pose_is_found_in(is_paper: bool) -> None:
    network = small_network(is_paper=is_paper)
    batch = next(iter(small_pairs().fixed(3)))
    with evaluation(network):
        ground = network.encode_ground(batch.canvas, batch.is_visible)
        aerial = network.encode_aerial(batch.chip, batch.is_valid)
        photo = take(ground, 0, 1)
        together = pose_evidence(network, photo, aerial)
        alone = [pose_evidence(network, photo, take(aerial, i, i + 1))[0] for i in range(3)]
        chip, _ = find_pose(network, photo, aerial)
    np.testing.assert_allclose(together, alone, atol=0.05)
    assert similarity(ground, aerial).shape == (3, 3)
    assert network.training
    if is_paper:
        assert chip == together.argmax()


def test_recall_of_first() -> None:
    scores = np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.5], [0.0, 0.1, 0.2]])
    # Right, a tie (which counts as wrong), wrong.
    assert recall_of_first(scores, np.array([1, 0, 1])) == pytest.approx(1 / 3)


def test_windows_grow_with_the_chips() -> None:
    assert num_windows(1) == 4
    assert num_windows(10) >= 24


def test_searches_and_retrieval_agree_and_count_the_chosen_chip() -> None:
    network, pairs = small_network(is_paper=False), small_pairs()
    gallery = pairs.gallery()
    whole = measure_retrieval(network, pairs, gallery, num_matched=4)
    assert set(whole) == {"retrieval_recall@1", "matched_recall@1"}
    assert "matched_recall@1" not in measure_retrieval(network, pairs, gallery)
    found = measure_search((network, network), pairs, gallery, 1, lambda _done, _total: None)
    assert found["retrieval_recall@1"] == whole["retrieval_recall@1"]
    # Of a single chip that is proposed none other can be chosen.
    assert found["chosen_recall@1"] == found["retrieval_recall@1"]


def test_baselines_know_what_the_setting_says() -> None:
    config = tiny_study().test
    city = random_city(config)
    figures = {
        setting: baselines(StudyPairs([city], config, 0, setting), num_references=9)
        for setting in ("unknown", "aligned")
    }
    assert figures["aligned"]["center"]["heading_median_deg"] < 0.4
    assert figures["unknown"]["center"]["heading_median_deg"] > 5
    assert figures["aligned"]["center"]["mean_m"] <= 20 * 2**0.5 + 0.5
    for name in ("retrieval", "matched"):
        assert figures["unknown"]["random"][f"{name}_recall@1"] == pytest.approx(1 / 9)
