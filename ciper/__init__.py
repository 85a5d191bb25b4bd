"""From a ground photo to a position on the map.

The public names are resolved on first use, so that ``import ciper`` stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ciper.geo import Pose
    from ciper.localize import Localizer
    from ciper.model.load import load_model
    from ciper.posterior import Posterior

__version__ = "0.1.0"

__all__ = ["Localizer", "Pose", "Posterior", "__version__", "load_model"]

_MODULE_OF = {
    "Localizer": "ciper.localize",
    "Pose": "ciper.geo",
    "Posterior": "ciper.posterior",
    "load_model": "ciper.model.load",
}


def __getattr__(name: str) -> object:
    """Import the module that owns a public name, on its first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ciper' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
