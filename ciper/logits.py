"""Sums of probabilities that are kept as logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]


def logsumexp(x: Float, axis: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Log of a sum of exponentials over some axes, or over all; -inf where there is no mass.

    Exponentials are taken in the array's own precision and summed in float64.
    """
    peak = x.max(axis=axis, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0).astype(x.dtype)
    total = np.exp(x - peak).sum(axis=axis, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(total) + peak.astype(np.float64).reshape(np.shape(total)))
