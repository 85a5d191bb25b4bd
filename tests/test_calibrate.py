"""Calibration: fits that must find what generated the data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ciper.calibrate import (
    Answered,
    Case,
    candidates,
    fit_heading_scale,
    fit_logistic,
    fit_shape,
)
from ciper.localize import logistic


def test_logistic_fit_finds_the_odds_and_ignores_noise() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)) * (1.0, 10.0, 1.0) + (0.0, 50.0, 0.0)
    odds = -5.0 + 0.1 * features[:, 1]
    labels = rng.random(4000) < 1 / (1 + np.exp(-odds))
    weights = fit_logistic(features, labels)
    assert abs(weights[1]) < 0.1
    assert weights[2] == pytest.approx(0.1, rel=0.2)
    assert logistic(weights, (0.0, 50.0, 0.0)) == pytest.approx(0.5, abs=0.05)
    assert logistic(weights, (0.0, 80.0, 0.0)) > 0.9


def test_weighted_cases_count_as_often_as_their_weight() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(600, 3))
    labels = rng.random(600) < 0.3
    doubled = np.concatenate([np.arange(600), np.flatnonzero(labels)])
    weights = fit_logistic(features, labels, np.where(labels, 2.0, 1.0))
    # The scaling of the features differs a little between the two, hence the tolerance.
    assert weights == pytest.approx(fit_logistic(features[doubled], labels[doubled]), abs=0.01)


def test_logistic_fit_survives_one_class_and_constant_features() -> None:
    weights = fit_logistic(np.ones((10, 3)), np.ones(10, bool))
    assert np.isfinite(weights).all()
    assert logistic(weights, (1.0, 1.0, 1.0)) > 0.9


def test_a_posterior_with_honest_levels_win_over_equally_likely_dishonest_ones() -> None:
    shapes = candidates()
    honest = 7
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(400):
        mass = np.full(len(shapes), 0.99)
        mass[honest] = rng.random()
        cases.append(Case(np.full(len(shapes), -5.0), mass, mass, area_m2=1e6))
    assert replace(fit_shape(cases, shapes), floor=0.0) == shapes[honest]


def test_a_floor_is_raised_when_the_evidence_misleads() -> None:
    num = len(candidates())
    low, high = np.full(num, 0.2), np.full(num, 0.4)
    right = [Case(np.full(num, -2.0), low, high, 1e6) for _ in range(80)]
    misled = [Case(np.full(num, -60.0), np.ones(num), np.ones(num), 1e6) for _ in range(20)]
    assert fit_shape([*right, *misled], candidates()).floor >= 0.03
    assert fit_shape(right, candidates()).floor <= 0.01


def test_headings_are_scaled_until_two_thirds_are_within() -> None:
    rng = np.random.default_rng(2)
    ratios = np.abs(rng.normal(0.0, 0.4, 4000))
    own = [Answered(True, (), 1.0, float(r), 1.0) for r in ratios]
    assert fit_heading_scale(own) == pytest.approx(0.4, rel=0.05)
    # Who states no spread has no say.
    assert fit_heading_scale([*own, *[replace(own[0], heading_scale=np.nan)] * 4000]) == (
        fit_heading_scale(own)
    )
    assert fit_heading_scale([replace(own[0], heading_scale=np.nan)]) == 1.0
