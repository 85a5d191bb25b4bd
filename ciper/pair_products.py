"""Inner products of many single pairs in float64, compiled: without copies of their descriptors."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# The order of a sum may change, so that it runs in vector registers; nothing else may.
_kernel = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@_kernel
def pair_products(
    queries: NDArray[np.floating],
    references: NDArray[np.floating],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    similarity: NDArray[np.float64],
) -> None:
    """Write the product of the most similar location of each pair's reference.

    Args:
        queries: (Q, D) float32 or float64.
        references: (R, L, D), likewise.
        rows: (P,) index into the queries.
        columns: (P,) index into the references.
        similarity: (P,), written; without meaning where a descriptor is not finite.
    """
    num_locations, num_terms = references.shape[1], references.shape[2]
    for pair in range(len(rows)):
        query = queries[rows[pair]]
        best = -np.inf
        for location in range(num_locations):
            reference = references[columns[pair], location]
            total = 0.0
            for i in range(num_terms):
                total += np.float64(query[i]) * np.float64(reference[i])
            best = max(best, total)
        similarity[pair] = best
