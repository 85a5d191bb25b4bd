"""What several test modules share: one small city with its gallery and untrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import SmallWorld, write_tiny_weights

from ciper.index import build_index
from ciper.model.load import load_model
from ciper.simulate import SimulateConfig, simulate


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small untrained network."""
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> SmallWorld:
    """Made once for all tests; nobody changes it."""
    folder = tmp_path_factory.mktemp("world")
    city = simulate(folder / "city", SimulateConfig(seed=5, size_m=220.0, num_photos=6)).out
    gallery = folder / "gallery"
    build_index([city / "aerial.tif"], gallery, load_model(tiny_weights, "cpu"))
    return SmallWorld(city, gallery, tiny_weights)
