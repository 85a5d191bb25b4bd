from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ciper.errors import GalleryDamagedError, GalleryError
from ciper.gallery.search import DescriptorIndex


def unit_vectors(rng: np.random.Generator, *shape: int) -> NDArray[np.float16]:
    vectors = rng.standard_normal(shape)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / lengths, np.float16)


def slow_search(
    descriptors: NDArray[Any], queries: NDArray[Any], num_chips: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every query against every location, in plain numpy; ties go to the lower chip."""
    products = np.einsum("rld,nd->nrl", descriptors.astype(np.float64), queries.astype(np.float64))
    similarity = np.where(np.isnan(products), -np.inf, products).max(axis=2)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :num_chips]
    return order, np.take_along_axis(similarity, order, axis=1)


@pytest.mark.parametrize("num_chips", [1, 7, 40])
def test_search_equals_the_slow_reference(num_chips: int) -> None:
    rng = np.random.default_rng(num_chips)
    descriptors = unit_vectors(rng, 40, 9, 16)
    descriptors[3, 2] = np.nan
    descriptors[8] = np.nan
    queries = unit_vectors(rng, 5, 16).astype(np.float32)
    chips, similarity = DescriptorIndex.build(descriptors).search(queries, num_chips)
    expected, expected_similarity = slow_search(descriptors, queries, num_chips)
    is_found = np.isfinite(expected_similarity)
    assert (chips[is_found] == expected[is_found]).all()
    assert (chips[~is_found] == -1).all()
    np.testing.assert_allclose(similarity[is_found], expected_similarity[is_found], atol=2e-6)
    assert chips.shape == similarity.shape == (5, num_chips)
    assert 8 not in chips


def test_one_chip_with_all_the_best_locations_does_not_hide_the_others() -> None:
    rng = np.random.default_rng(0)
    descriptors = unit_vectors(rng, 10, 500, 8)
    query = unit_vectors(rng, 1, 8).astype(np.float32)
    descriptors[4] = query[0]
    chips, _ = DescriptorIndex.build(descriptors).search(query, 10)
    assert chips[0, 0] == 4
    assert sorted(chips[0].tolist()) == list(range(10))


def test_constant_descriptors_tie_and_go_by_index() -> None:
    index = DescriptorIndex.build(np.ones((300, 4, 8), np.float16))
    chips, similarity = index.search(np.ones((1, 8)), 5)
    assert chips.tolist() == [[0, 1, 2, 3, 4]]
    assert (similarity == 8).all()


def test_nan_queries_and_small_galleries_leave_places_empty() -> None:
    rng = np.random.default_rng(1)
    index = DescriptorIndex.build(unit_vectors(rng, 3, 4, 8))
    queries = unit_vectors(rng, 2, 8).astype(np.float32)
    queries[1, 3] = np.nan
    chips, similarity = index.search(queries, 5)
    assert sorted(chips[0].tolist()) == [-1, -1, 0, 1, 2]
    assert (chips[0, 3:] == -1).all()
    assert (chips[1] == -1).all()
    assert np.isneginf(similarity[1]).all()


@pytest.mark.parametrize("exact_limit", [10**6, 10])
def test_a_prior_searches_its_chips_only_and_exactly(exact_limit: int) -> None:
    rng = np.random.default_rng(2)
    descriptors = unit_vectors(rng, 200, 8, 16)
    queries = unit_vectors(rng, 4, 16).astype(np.float32)
    subset = np.array([150, 3, 77, 20, 199, 4])
    index = DescriptorIndex.build(descriptors, exact_limit=exact_limit)
    chips, similarity = index.search(queries, 8, chips=subset)
    expected, expected_similarity = slow_search(descriptors[np.sort(subset)], queries, 6)
    assert (chips[:, :6] == np.sort(subset)[expected]).all()
    np.testing.assert_allclose(similarity[:, :6], expected_similarity, atol=2e-6)
    assert (chips[:, 6:] == -1).all()
    assert (index.search(queries, 2, chips=[])[0] == -1).all()


def test_above_the_limit_an_inverted_file_still_finds_what_is_near(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    descriptors = unit_vectors(rng, 500, 16, 16)
    descriptors[7, 0] = np.nan
    index = DescriptorIndex.build(descriptors, exact_limit=1000)
    assert not index.is_exact
    true = rng.integers(8, 500, 50)
    queries = descriptors[true, 5].astype(np.float32) + 0.05 * rng.standard_normal((50, 16))
    chips, _ = index.search(queries, 3)
    assert (chips[:, 0] == true).mean() > 0.9
    (tmp_path / "index.faiss").write_bytes(index.to_bytes())
    loaded = DescriptorIndex.load(tmp_path / "index.faiss", num_chips=500, num_locations=16)
    assert (loaded.search(queries, 3)[0] == chips).all()
    assert not loaded.is_exact


def test_files_come_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    index = DescriptorIndex.build(unit_vectors(rng, 20, 4, 8))
    path = tmp_path / "index.faiss"
    index.save(path)
    assert path.read_bytes() == index.to_bytes()
    queries = unit_vectors(rng, 3, 8)
    loaded = DescriptorIndex.load(path, num_chips=20, num_locations=4)
    assert loaded.is_exact
    assert (loaded.search(queries, 5)[0] == index.search(queries, 5)[0]).all()
    path.write_bytes(b"something else")
    with pytest.raises(GalleryDamagedError, match=r"index\.faiss: is not a FAISS index"):
        DescriptorIndex.load(path, num_chips=20, num_locations=4)


def test_what_cannot_be_indexed_is_refused() -> None:
    with pytest.raises(GalleryError, match=r"expected \(chips, locations, channels\)"):
        DescriptorIndex.build(np.ones((4, 8), np.float16))
    with pytest.raises(GalleryError, match="no descriptor is finite"):
        DescriptorIndex.build(np.full((2, 3, 8), np.nan, np.float16))
