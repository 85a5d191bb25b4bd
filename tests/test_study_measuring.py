from __future__ import annotations

import numpy as np
import pytest
import torch
from study_helpers import SMALL_TRUNK, random_city, tiny_study

from ciper.model.matcher import Evidence
from ciper.model.network import Network, NetworkConfig
from ciper.model.paper import PaperNetwork
from ciper.study.measuring import (
    aligned_prior,
    baselines,
    best_pose,
    evaluation,
    find_pose,
    predict_poses,
    similarity,
    take,
)
from ciper.study.networks import paper_config
from ciper.study.pairs import StudyPairs


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


@pytest.mark.parametrize(
    ("heading", "row", "column", "pose"),
    [
        # Window rows start 2 fine cells above the coarse cell: row 2 r + 0, column 2 c + 1.
        (4, 2, 3, (-17.0, 23.0, 45.0)),
        (12, 13, 3, (-17.0, -21.0, 135.0)),
        (20, 13, 12, (19.0, -21.0, 225.0)),
        (28, 2, 12, (19.0, 23.0, 315.0)),
    ],
)
def test_best_pose_in_all_four_quadrants(
    heading: int, row: int, column: int, pose: tuple[float, float, float]
) -> None:
    chip, found = best_pose(evidence(heading, row, column))
    assert chip == 0
    np.testing.assert_allclose(found, pose)


def test_best_pose_is_the_mean_of_neighbours_across_north() -> None:
    flat = evidence(0, 7, 7)
    flat.fine[0, 3, 2, 3] = 1.0  # as likely, 2.8125 deg to the left
    _, found = best_pose(flat)
    assert found[2] == pytest.approx(360 - 2.8125 / 2)


def test_the_aligned_prior_is_about_north_and_the_centre() -> None:
    prior = aligned_prior(2)
    assert prior.shape == (2, 32, 16, 16)
    heading, row, column = np.unravel_index(prior[0].argmax(), prior.shape[1:])
    assert heading == 0 and {int(row), int(column)} <= set(range(2, 14))
    assert prior[0, 0, 8, 8] == 0
    # Centres of cells lie at 2, 6, ... m: 22 m may hold a camera at 20 m, 26 m may not.
    assert prior[0, 0, 8, 13] == 0 and prior[0, 0, 8, 14] < -1000
    assert prior[0, 16].max() < -100


@pytest.mark.parametrize("is_paper", [True, False])
def test_batched_poses_are_single_ones(is_paper: bool) -> None:
    torch.manual_seed(0)
    network = (
        PaperNetwork(paper_config("text", SMALL_TRUNK, num_tokens=2))
        if is_paper
        else Network(NetworkConfig(encoder=SMALL_TRUNK))
    )
    config = tiny_study().test
    batch = next(StudyPairs([random_city(config)], config, 0, "unknown").fixed(3))
    with evaluation(network):
        ground = network.encode_ground(batch.canvas, batch.is_visible)
        aerial = network.encode_aerial(batch.chip, batch.is_valid)
        poses = predict_poses(network, ground, aerial)
        for i in range(3):
            one = find_pose(network, take(ground, i, i + 1), take(aerial, i, i + 1))
            np.testing.assert_allclose(one[1], poses[i], atol=0.5)
    assert similarity(ground, aerial).shape == (3, 3)
    assert network.training


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
    assert figures["unknown"]["random"]["retrieval_recall@1"] == pytest.approx(1 / 9)
