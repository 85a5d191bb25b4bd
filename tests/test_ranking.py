from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ciper import ranking
from ciper.metrics import ranks, ranks_and_hit_ranks, ranks_from_similarity, recall_at_k
from ciper.ranking import Floats, Ints, Singles

NUM_QUERIES, NUM_REFERENCES, NUM_TERMS = 23, 41, 9


def slow_ranks(
    queries: NDArray[Any], references: NDArray[Any], true: Ints, excluded: list[Ints] | None = None
) -> list[int]:
    """The definition with the whole matrix in float64, without a matrix product."""
    queries, references = queries.astype(np.float64), references.astype(np.float64)
    references = references[:, None, :] if references.ndim == 2 else references
    rounding = 4 * queries.shape[1] * np.finfo(np.float64).eps
    result = []
    with np.errstate(all="ignore"):
        norm = np.sqrt((references**2).sum(axis=2)).max(axis=1)
        for q, t in enumerate(true):
            similarity = (queries[q] * references).sum(axis=2).max(axis=1)
            query_norm = np.sqrt((queries[q] ** 2).sum())
            margin = rounding * query_norm * (norm[t] + norm)
            is_against = ~(similarity < similarity[t] - margin)
            is_against[t] = False
            if excluded is not None:
                is_against[excluded[q]] = False
            result.append(int(is_against.sum()))
    return result


def unit(values: Floats) -> Floats:
    scaled: Floats = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return scaled


def make(kind: str, rng: np.random.Generator, num_locations: int) -> tuple[Floats, Floats]:
    """Queries and references (R, L, D) that are hard in one way."""
    queries = unit(rng.normal(size=(NUM_QUERIES, NUM_TERMS)))
    references = unit(rng.normal(size=(NUM_REFERENCES, num_locations, NUM_TERMS)))
    if kind == "ties":
        return np.rint(2 * queries), np.rint(2 * references)
    if kind == "clusters":
        near = rng.choice([1e-4, 1e-6, 1e-7, 1e-8, 1e-10], size=(NUM_REFERENCES, 1, 1))
        return queries, references[rng.integers(0, 3, NUM_REFERENCES)] + near * references
    if kind == "duplicates":
        return queries, references[rng.integers(0, 5, NUM_REFERENCES)]
    if kind == "constant":
        return queries, np.broadcast_to(references[:1], references.shape)
    if kind == "zeros":
        queries[::3], references[::4] = 0.0, 0.0
    if kind == "huge":
        references *= 10.0 ** rng.integers(-30, 36, size=(NUM_REFERENCES, 1, 1))
        queries *= 10.0 ** rng.integers(-30, 36, size=(NUM_QUERIES, 1))
    if kind == "denormal":
        references *= 10.0 ** rng.choice([-310, -200, -150, 0, 140], size=(NUM_REFERENCES, 1, 1))
        queries *= 10.0 ** rng.choice([-310, -200, -150, 0, 140], size=(NUM_QUERIES, 1))
    if kind == "overflow":
        references *= 10.0 ** rng.choice([0, 100, 200, 300], size=(NUM_REFERENCES, 1, 1))
        queries *= 10.0 ** rng.choice([0, 50, 100, 200], size=(NUM_QUERIES, 1))
    if kind == "not finite":
        for values in (queries, references):
            is_bad = rng.uniform(size=values.shape) < 0.02
            values[is_bad] = rng.choice([np.nan, np.inf, -np.inf], size=is_bad.sum())
    return queries, references


KINDS = ["random", "ties", "clusters", "duplicates", "constant", "zeros", "not finite"]
KINDS += ["huge", "denormal", "overflow"]


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    num_locations=st.sampled_from([1, 3]),
    block_size=st.sampled_from([1, 7, 60, 4096]),
    way=st.sampled_from(["as it comes", "whole rows", "single pairs", "compiled"]),
)
@settings(max_examples=150, deadline=None)
def test_the_fast_way_is_exact(
    seed: int, kind: str, dtype: type[Any], num_locations: int, block_size: int, way: str
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore", under="ignore"):
        queries, references = (x.astype(dtype) for x in make(kind, rng, num_locations))
    true = rng.integers(0, NUM_REFERENCES, size=NUM_QUERIES)
    # A list may name a reference twice, or the true one.
    excluded = [rng.integers(0, NUM_REFERENCES, size=n) for n in rng.integers(0, 6, NUM_QUERIES)]
    with pytest.MonkeyPatch.context() as patch:
        if way != "as it comes":
            patch.setattr(ranking, "_DENSE_SHARE", 0.0 if way == "whole rows" else 1.0)
            patch.setattr(ranking, "_NUM_COMPILED", 0 if way == "compiled" else 10**9)
            patch.setattr(ranking, "_NUM_ROWS", 10)
        if num_locations == 1:
            references = references[:, 0]
        whole, without = ranks_and_hit_ranks(
            queries, references, true, semi_positives=excluded, block_size=block_size
        )
    assert whole.tolist() == slow_ranks(queries, references, true)
    assert without.tolist() == slow_ranks(queries, references, true, excluded)


def clustered(rng: np.random.Generator, num: int, spread: float) -> tuple[Singles, Ints]:
    """Unit descriptors (num, 64) about ten directions, and the direction of each."""
    centre, which = unit(rng.normal(size=(10, 64))), rng.integers(0, 10, num)
    return unit(centre[which] + spread * unit(rng.normal(size=(num, 64)))).astype(np.float32), which


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_near_ties_that_float32_confuses_are_told_apart(spread: float) -> None:
    rng = np.random.default_rng(7)
    references, which = clustered(rng, 6000, spread)
    true = rng.integers(0, 6000, size=300)
    queries = references[rng.permutation(true)]
    expected = slow_ranks(queries, references, true)
    assert ranks(queries, references, true).tolist() == expected
    product = queries @ references.T
    single = (product >= product[np.arange(300), true][:, None]).sum(axis=1) - 1
    assert spread > 1e-3 or (single != expected).sum() > 20
    assert len(np.unique(which)) == 10


def test_every_product_in_float32_lies_within_its_bound() -> None:
    """Same signs and many terms: the rounding errors of a sum do not cancel."""
    rng = np.random.default_rng(8)
    references = rng.uniform(0.5, 1.0, size=(500, 4001)).astype(np.float32)
    queries = references[:100] * np.float32(3.7)
    true = rng.integers(0, 500, size=100)
    assert ranks(queries, references, true).tolist() == slow_ranks(queries, references, true)


def test_what_a_huge_true_reference_may_round_to_is_a_tie() -> None:
    """Its product is 0, but no sum of such numbers is known to 1e15."""
    references = np.array([[0.0, 1e30], [-0.5, 0.0], [-1e20, 0.0]])
    queries = np.array([[1.0, 0.0]])
    true = np.array([0])
    assert slow_ranks(queries, references, true) == [1]
    assert ranks(queries, references, true, block_size=1).tolist() == [1]


def test_references_may_be_a_memory_map_of_locations(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    file = tmp_path / "descriptors.f16"
    shape = (300, 8, 32)
    stored = unit(rng.normal(size=shape)).astype(np.float16)
    stored.tofile(file)
    references = np.memmap(file, dtype=np.float16, mode="r", shape=shape)
    true = rng.integers(0, 300, size=50)
    true[3] = -1
    queries = (stored[true, 2] + 0.5 * unit(rng.normal(size=(50, 32)))).astype(np.float32)
    found = ranks(queries, references, true, block_size=100)
    known = true >= 0
    assert found[known].tolist() == slow_ranks(queries[known], stored, true[known])
    assert 0.1 < recall_at_k(found, 1) < 1.0
    assert recall_at_k(found[~known], 300) == 0.0


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_whole_numbers_are_descriptors_too(dtype: type[Any]) -> None:
    rng = np.random.default_rng(10)
    references, queries = rng.integers(-9, 9, (80, 6)), rng.integers(-9, 9, (40, 6))
    true = rng.integers(0, 80, size=40)
    found = ranks(queries.astype(dtype), references.astype(dtype), true)
    assert found.tolist() == slow_ranks(queries, references, true)


def test_nobody_asks_and_nobody_answers() -> None:
    nothing = np.empty((0, 4), np.float32)
    assert ranks(nothing, np.eye(4), []).tolist() == []
    assert recall_at_k(ranks(np.eye(4), nothing, [-1] * 4), 10) == 0.0
    nobody = [np.empty(0, np.int64)] * 4
    whole, without = ranks_and_hit_ranks(np.eye(4), np.eye(4), [0, 1, 2, -1], semi_positives=nobody)
    assert whole[:3].tolist() == without[:3].tolist() == [0, 0, 0]


def test_wrong_lists_of_semi_positives_are_refused() -> None:
    with pytest.raises(ValueError, match="3 lists of excluded references: expected 4"):
        ranks(np.eye(4), np.eye(4), np.arange(4), excluded=[np.array([1])] * 3)
    with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
        ranks(np.eye(4), np.eye(4), np.arange(4), excluded=[np.array([4])] * 4)


def test_metrics_load_neither_torch_nor_numba() -> None:
    code = "import sys, ciper.metrics; sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- full scale -----------------------------------------------------------------------------------


def vigor_sized(kind: str, num_terms: int) -> tuple[Singles, Singles, Ints]:
    """52,605 queries, 90,618 references and the true ones, as VIGOR's same-area split has."""
    rng = np.random.default_rng(11)
    true = rng.integers(0, 90_618, size=52_605)
    queries = rng.standard_normal((52_605, num_terms), dtype=np.float32)
    references = rng.standard_normal((90_618, num_terms), dtype=np.float32)
    if kind == "clustered":
        # 180 references, and the true one among them, differ by 1e-3 of a descriptor.
        centre = rng.standard_normal((500, num_terms), dtype=np.float32)
        which = rng.integers(0, 500, size=90_618)
        for values, centres in ((queries, which[true]), (references, which)):
            values *= 1e-3
            for rows in ranking.blocks(len(values), 1024):
                values[rows] += centre[centres[rows]]
    for values in (queries, references):
        for rows in ranking.blocks(len(values), 1024):
            values[rows] /= np.linalg.norm(values[rows], axis=1, keepdims=True)
    return queries, references, true


def peak_gb() -> float:
    """Of this program alone; `getrusage` begins with the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def rank_at_full_scale(kind: str, num_terms: int) -> tuple[float, float, bool]:
    """Seconds, gigabytes and whether a sample of the ranks is exact."""
    queries, references, true = vigor_sized(kind, num_terms)
    semi = list(np.random.default_rng(12).integers(0, len(references), (len(queries), 3)))
    started = time.perf_counter()
    whole, without = ranks_and_hit_ranks(queries, references, true, semi_positives=semi)
    seconds, peak = time.perf_counter() - started, peak_gb()
    some = slice(0, len(queries), 5000)
    exact = queries[some].astype(np.float64) @ references.astype(np.float64).T
    is_exact = (whole[some] == ranks_from_similarity(exact, true[some])).all()
    expected = ranks_from_similarity(exact, true[some], excluded=semi[some])
    return seconds, peak, bool(is_exact and (without[some] == expected).all())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize("num_terms", [512, 1000])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_full_scale(kind: str, num_terms: int, capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, peak, is_exact = pool.submit(rank_at_full_scale, kind, num_terms).result()
    with capsys.disabled():
        sys.stdout.write(f"\n{kind}, {num_terms}-d: {seconds:.1f} s, {peak:.2f} GB\n")
    assert is_exact
    assert peak <= 1.5
