"""Nearest chips of a descriptor, by the best of each chip's locations.

A chip has L location descriptors; its similarity to a query is the largest inner product among
them. Up to two million locations the search is exact (float16 vectors, float32 sums), beyond that
an inverted file looks at the most promising cells only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ciper.errors import GalleryDamagedError, GalleryError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

EXACT_LIMIT = 2_000_000

# Inverted file: cells grow with the square root of the number of vectors; an eighth of them,
# at least 32, is visited.
_TRAINING_VECTORS_PER_CELL = 64
_MIN_PROBES = 32


class DescriptorIndex:
    """A FAISS index over the locations of R chips, L of them each."""

    def __init__(self, index: Any, *, num_chips: int, num_locations: int) -> None:
        """Wrap a FAISS index whose ids are chip * num_locations + location."""
        self._index = index
        self.num_chips = num_chips
        self.num_locations = num_locations

    @classmethod
    def build(
        cls, descriptors: NDArray[np.floating[Any]], *, exact_limit: int = EXACT_LIMIT
    ) -> DescriptorIndex:
        """Index descriptors (R, L, D). Locations with a NaN are left out: nothing finds them.

        Raises:
            GalleryError: the array is not (R, L, D) or holds no finite descriptor.
        """
        if descriptors.ndim != 3:
            raise GalleryError(
                f"descriptors have shape {descriptors.shape}; expected (chips, locations, "
                "channels)."
            )
        num_chips, num_locations, dim = descriptors.shape
        num_vectors = num_chips * num_locations
        vectors = descriptors.reshape(num_vectors, dim)
        if num_vectors <= exact_limit:
            flat = faiss.IndexScalarQuantizer(
                dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
            )
            index = faiss.IndexIDMap2(flat)
        else:
            index = _inverted_file(vectors)
        for ids in _pieces(num_vectors):
            piece = np.asarray(vectors[ids], np.float32)
            is_finite = np.isfinite(piece).all(axis=1)
            index.add_with_ids(np.ascontiguousarray(piece[is_finite]), ids[is_finite])
        if index.ntotal == 0:
            raise GalleryError("no descriptor is finite; expected an encoder's unit vectors.")
        return cls(index, num_chips=num_chips, num_locations=num_locations)

    def to_bytes(self) -> memoryview:
        """The index in FAISS's own format."""
        data: NDArray[np.uint8] = faiss.serialize_index(self._index)
        return data.data

    def save(self, path: Path) -> None:
        """Write a file that FAISS itself reads."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path, *, num_chips: int, num_locations: int) -> DescriptorIndex:
        """Read what `save` or `to_bytes` wrote.

        Raises:
            GalleryDamagedError: it is not a FAISS index.
        """
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise GalleryDamagedError(
                f"{path}: is not a FAISS index; index the rasters again."
            ) from error
        return cls(index, num_chips=num_chips, num_locations=num_locations)

    @property
    def is_exact(self) -> bool:
        """Whether every location is compared."""
        return isinstance(faiss.downcast_index(self._index), faiss.IndexIDMap)

    def search(
        self, queries: ArrayLike, num_chips: int, *, chips: ArrayLike | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The `num_chips` most similar chips of each query, best first; ties by lower index.

        Places that cannot be filled (a small gallery, a query with NaN) hold chip -1 and
        similarity -inf.

        Args:
            queries: (N, D).
            num_chips: k.
            chips: indexes of the only chips to look at (a prior); then the search is exact.

        Returns:
            Chip indexes (N, k) int64 and similarities (N, k) float32.
        """
        q = np.ascontiguousarray(np.atleast_2d(queries), np.float32)
        found = np.full((len(q), num_chips), -1, np.int64)
        similarity = np.full((len(q), num_chips), -np.inf, np.float32)
        subset = None if chips is None else np.unique(np.asarray(chips, np.int64))
        for rows in _pieces(len(q), 64):
            rows = rows[np.isfinite(q[rows]).all(axis=1)]
            if rows.size and num_chips and (subset is None or subset.size):
                self._search(q, rows, found, similarity, subset)
        return found, similarity

    def _search(
        self,
        queries: FloatArray,
        rows: IntArray,
        found: IntArray,
        similarity: FloatArray,
        subset: IntArray | None,
    ) -> None:
        """Fill the answers of some queries, asking for more locations until all are settled."""
        num_wanted = found.shape[1]
        num_vectors, parameters = self._index.ntotal, None
        if subset is not None:
            num_vectors = len(subset) * self.num_locations
            parameters = self._only(subset)
        num_asked = min(num_vectors, 8 * num_wanted + 64)
        while rows.size:
            values, ids = self._index.search(queries[rows], num_asked, params=parameters)
            unsettled = []
            for row, value, location in zip(rows, values, ids, strict=True):
                best, score = _best_chips(value, location, self.num_locations)
                count = min(num_wanted, len(best))
                found[row, :count], similarity[row, :count] = best[:count], score[:count]
                # Another chip may tie with the last one as long as the list has not dropped below.
                is_complete = num_asked >= num_vectors or location[-1] < 0
                if not is_complete and not (count == num_wanted and value[-1] < score[count - 1]):
                    unsettled.append(row)
            rows = np.array(unsettled, np.int64)
            num_asked = min(num_vectors, 4 * num_asked)

    def _only(self, subset: IntArray) -> Any:
        """FAISS parameters that restrict a search to the locations of some chips, exactly."""
        ids = (subset[:, None] * self.num_locations + np.arange(self.num_locations)).ravel()
        # A selector keeps a pointer to the ids; the Python object of the parameters keeps both.
        selector = faiss.IDSelectorBatch(ids)
        if self.is_exact:
            flat: Any = faiss.SearchParameters  # FAISS adds its keyword arguments at run time
            return flat(sel=selector)
        inverted: Any = faiss.SearchParametersIVF
        return inverted(sel=selector, nprobe=self._index.nlist)


def _best_chips(
    values: FloatArray, locations: IntArray, num_locations: int
) -> tuple[IntArray, FloatArray]:
    """Distinct chips of a list of locations with their largest value, best first, ties by index."""
    is_found = locations >= 0
    chips, values = locations[is_found] // num_locations, values[is_found]
    order = np.lexsort((chips, -values))
    distinct, first = np.unique(chips[order], return_index=True)
    best = values[order][first]
    ranking = np.lexsort((distinct, -best))
    return distinct[ranking], best[ranking]


def _inverted_file(vectors: NDArray[np.floating[Any]]) -> Any:
    """A trained, empty inverted file with float16 vectors."""
    num_vectors, dim = vectors.shape
    num_cells = max(1, int(4 * np.sqrt(num_vectors)))
    num_training = min(num_vectors, _TRAINING_VECTORS_PER_CELL * num_cells)
    # Evenly spread, not random: the same gallery gives the same index.
    sample = np.linspace(0, num_vectors - 1, num_training).astype(np.int64)
    training = np.asarray(vectors[sample], np.float32)
    training = np.ascontiguousarray(training[np.isfinite(training).all(axis=1)])
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim),
        dim,
        min(num_cells, max(1, len(training))),
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    index.cp.min_points_per_centroid = 1
    index.train(training)
    index.nprobe = max(_MIN_PROBES, index.nlist // 8)
    return index


def _pieces(num_items: int, size: int = 1 << 16) -> Iterator[IntArray]:
    for start in range(0, num_items, size):
        yield np.arange(start, min(start + size, num_items), dtype=np.int64)
