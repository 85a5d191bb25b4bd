"""How many references beat each query's true one: exact, in one pass over a large gallery.

All products are made in float32, whose rounding error has a strict bound. What lies further from
the true reference's similarity than the bound is decided; only the pairs within it are summed
again, in float64. `ciper.metrics` defines what the counts mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# A float64 sum of D products is wrong by less than D eps |q| |r|: this is room for two such sums.
ROUNDING = 4.0 * float(np.finfo(np.float64).eps)

_NUM_ROWS = 1024
# How many numbers are gathered at once for single pairs: what fits into a core's cache.
_NUM_GATHERED = 1 << 17
# With more undecided columns than this a row's whole product costs less than its single pairs.
_DENSE_SHARE = 1 / 5
# For fewer undecided pairs the compiled product is not worth being loaded.
_NUM_COMPILED = 2000

_ROUNDOFF = 2.0**-24
# Squares of smaller norms are denormal, and so are products in float32 below the second.
_SMALLEST_NORM = 1e-140
_SMALLEST_PRODUCT = 1e-30


def count_against(
    queries: NDArray[Any],
    references: NDArray[Any],
    true: Ints,
    *,
    left_out: tuple[Ints, Ints],
    block_size: int,
    count_ties: bool = True,
) -> tuple[Ints, Ints]:
    """For each query the number of other references that are not less similar than its true one.

    Similarities are inner products in float64 (the largest one of a reference's locations). Less
    means by more than the rounding error of such sums, and nothing is less than what is not
    finite.

    Args:
        queries: (Q, D) of any real type.
        references: (R, L, D), read once in order, and the rows of the true ones and of `left_out`.
        true: (Q,) below R; negative if there is none, and then the counts mean nothing.
        left_out: Pairs (rows, columns) that do not compete in the second count.
        block_size: How many reference descriptors are held at once.
        count_ties: If not, only references that are more similar count; nothing is more similar
            than what is not finite, and what is not finite is not more similar.

    Returns:
        (Q,) counts over all references, and over those that are not left out.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        asked = _ask(queries, references, true, count_ties=count_ties)
        counts = np.zeros(len(queries), dtype=np.int64)
        step = max(1, block_size // references.shape[1])
        for columns in blocks(len(references), step):
            block = _read(references, columns)
            for rows in blocks(len(queries), _NUM_ROWS):
                counts[rows] += _count_in_block(asked.part(rows), block)
        counts[np.isnan(asked.own)] = len(references) - 1 if count_ties else 0
        return counts, counts - _count_left_out(asked, references, left_out)


@dataclass(frozen=True)
class _Asked:
    """Queries, and the true references that the others are compared with.

    Attributes:
        descriptors: (Q, D) as given.
        unit: (Q, D) divided by their norms; zeros where the norm is not finite.
        norm: (Q,)
        true: (Q,)
        own: (Q,) similarity of the true reference; NaN if it does not exist or a norm is not
            finite.
        own_norm: (Q,) norm of the true reference.
        count_ties: whether ties are against.
    """

    descriptors: NDArray[Any]
    unit: Singles
    norm: Floats
    true: Ints
    own: Floats
    own_norm: Floats
    count_ties: bool

    def part(self, rows: slice) -> _Asked:
        """Some of the queries."""
        return _Asked(
            descriptors=self.descriptors[rows],
            unit=self.unit[rows],
            norm=self.norm[rows],
            true=self.true[rows],
            own=self.own[rows],
            own_norm=self.own_norm[rows],
            count_ties=self.count_ties,
        )

    def is_against(self, rows: Ints, similarity: Floats, norm: Floats) -> Bools:
        """The definition: whether references of such similarities and norms are against."""
        rounding = ROUNDING * self.descriptors.shape[1]
        margin = rounding * self.norm[rows] * (self.own_norm[rows] + norm)
        own = self.own[rows]
        if self.count_ties:
            return np.asarray(~(similarity < own - margin))
        return np.asarray(similarity > own + margin)

    def windows(self, scale: float) -> tuple[Singles, Singles]:
        """(Q,) twice: products of units below the first are less, from the second on are more.

        With u = 2^-24, a sum of D products in float32 in any order is wrong by at most about
        D u |q| |r| (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1);
        rounding the factors adds 2 u, the windows' own rounding 2 u of the true similarity.

        Args:
            scale: What the references of the products were divided by; no norm is larger.
        """
        num_terms = self.descriptors.shape[1]
        own = self.own / np.maximum(self.norm, _SMALLEST_NORM) / scale
        own_margin = (4.0 * _ROUNDOFF + ROUNDING * num_terms) * (self.own_norm / scale)
        margin = (num_terms + 8.0) * _ROUNDOFF + own_margin + _SMALLEST_PRODUCT
        return (own - margin).astype(np.float32), (own + margin).astype(np.float32)


@dataclass(frozen=True)
class _Block:
    """References that are held in memory.

    Attributes:
        start: index of the first one.
        descriptors: (r, L, D) as given.
        norm: (r,) the largest one of each reference's locations.
        scale: the largest finite norm.
        unit: (r L, D) divided by the scale; zeros where the norm is not finite.
    """

    start: int
    descriptors: NDArray[Any]
    norm: Floats
    scale: float
    unit: Singles


def _ask(
    queries: NDArray[Any], references: NDArray[Any], true: Ints, *, count_ties: bool
) -> _Asked:
    norm = np.empty(len(queries))
    unit = np.empty(queries.shape, dtype=np.float32)
    for rows in blocks(len(queries), _NUM_ROWS):
        exact = queries[rows].astype(np.float64)
        norm[rows] = np.sqrt(np.einsum("qd,qd->q", exact, exact))
        exact /= np.maximum(norm[rows], _SMALLEST_NORM)[:, None]
        exact[~np.isfinite(norm[rows])] = 0.0
        unit[rows] = exact
    own, own_norm = np.full(len(queries), np.nan), np.zeros(len(queries))
    known = np.flatnonzero(true >= 0)
    for part, similarity, reference_norm in _pairs(queries, references, known, true[known]):
        own[known[part]], own_norm[known[part]] = similarity, reference_norm
    own[~np.isfinite(norm + own_norm)] = np.nan
    return _Asked(queries, unit, norm, true, own, own_norm, count_ties)


def _read(references: NDArray[Any], columns: slice) -> _Block:
    descriptors = np.array(references[columns])
    exact = descriptors.astype(np.float64)
    norm = np.sqrt(np.einsum("rld,rld->rl", exact, exact)).max(axis=1)
    is_finite = np.isfinite(norm)
    scale = max(_SMALLEST_NORM, float(norm[is_finite].max(initial=0.0)))
    exact /= scale
    exact[~is_finite] = 0.0
    unit = exact.reshape(-1, exact.shape[2]).astype(np.float32)
    return _Block(columns.start, descriptors, norm, scale, unit)


def _count_in_block(asked: _Asked, block: _Block) -> Ints:
    low, high = asked.windows(block.scale)
    similarity = _best_location(asked.unit @ block.unit.T, block)
    similarity[:, ~np.isfinite(block.norm)] = np.inf if asked.count_ties else np.nan
    is_against = similarity >= high[:, None]
    is_open = (similarity >= low[:, None]) & ~is_against
    own_column = asked.true - block.start
    here = np.flatnonzero((own_column >= 0) & (own_column < len(block.norm)))
    is_against[here, own_column[here]] = is_open[here, own_column[here]] = False
    return _count_rows(is_against) + _count_open(asked, block, is_open)


def _count_open(asked: _Asked, block: _Block, is_open: Bools) -> Ints:
    """How many of the undecided pairs are against, (Q,); overwrites what it is given."""
    counts = np.zeros(len(is_open), dtype=np.int64)
    dense = np.flatnonzero(_count_rows(is_open) > _DENSE_SHARE * is_open.shape[1])
    if len(dense):
        exact = block.descriptors.reshape(len(block.unit), -1).astype(np.float64)
        product = asked.descriptors[dense].astype(np.float64) @ exact.T
        similarity = _best_location(product, block)
        is_against = asked.is_against(dense[:, None], similarity, block.norm)
        counts[dense] = _count_rows(is_against & is_open[dense])
        is_open[dense] = False
    rows, columns = np.divmod(np.flatnonzero(is_open), is_open.shape[1])
    if len(rows) < _NUM_COMPILED:
        return counts + _count_pairs(asked, block.descriptors, rows, columns)
    similarity = _compiled_products(asked.descriptors, block.descriptors, rows, columns)
    is_against = asked.is_against(rows, similarity, block.norm[columns])
    return counts + np.bincount(rows[is_against], minlength=len(counts))


def _count_left_out(asked: _Asked, references: NDArray[Any], pairs: tuple[Ints, Ints]) -> Ints:
    """How many of the pairs are in the counts, (Q,): each once, and no true one."""
    rows, columns = pairs
    is_other = columns != asked.true[rows]
    flat = np.unique(rows[is_other] * len(references) + columns[is_other])
    return _count_pairs(asked, references, *np.divmod(flat, max(1, len(references))))


def _count_pairs(asked: _Asked, references: NDArray[Any], rows: Ints, columns: Ints) -> Ints:
    counts = np.zeros(len(asked.true), dtype=np.int64)
    for index, similarity, norm in _pairs(asked.descriptors, references, rows, columns):
        is_against = asked.is_against(rows[index], similarity, norm)
        counts += np.bincount(rows[index][is_against], minlength=len(counts))
    return counts


def _pairs(
    queries: NDArray[Any], references: NDArray[Any], rows: Ints, columns: Ints
) -> Iterator[tuple[Ints, Floats, Floats]]:
    """Which of the pairs, their similarities and their references' norms, some at a time."""
    order = np.argsort(columns, kind="stable")  # a gallery on disk is read in order
    for part in blocks(len(order), max(1, _NUM_GATHERED // max(1, references[:1].size))):
        index = order[part]
        chosen = references[columns[index]].astype(np.float64)
        query = queries[rows[index]].astype(np.float64)
        similarity = np.einsum("pd,pld->pl", query, chosen).max(axis=1)
        norm = np.sqrt(np.einsum("pld,pld->pl", chosen, chosen)).max(axis=1)
        yield index, similarity, norm


def _compiled_products(
    queries: NDArray[Any], references: NDArray[Any], rows: Ints, columns: Ints
) -> Floats:
    from ciper.pair_products import pair_products  # numba takes half a second to load

    is_single = np.result_type(queries, references, np.float32) == np.float32
    kind = np.dtype(np.float32 if is_single else np.float64)
    similarity = np.empty(len(rows))
    pair_products(
        np.ascontiguousarray(queries, dtype=kind),
        np.ascontiguousarray(references, dtype=kind),
        rows,
        columns,
        similarity,
    )
    return similarity


def _best_location(similarity: NDArray[Any], block: _Block) -> NDArray[Any]:
    """(Q, r L) similarities of locations to (Q, r) of references."""
    num_references, num_locations = block.descriptors.shape[:2]
    if num_locations == 1:
        return similarity
    best: NDArray[Any] = similarity.reshape(-1, num_references, num_locations).max(axis=2)
    return best


def _count_rows(is_counted: Bools) -> Ints:
    # Summed as bytes: a sum of booleans takes three times as long.
    counts: NDArray[np.uint32] = is_counted.view(np.uint8).sum(axis=1, dtype=np.uint32)
    return counts.astype(np.int64)


def blocks(length: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover `length`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
