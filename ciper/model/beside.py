"""What a `config.json` beside a foreign file of weights says: sizes that no tensor tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ciper.errors import CheckpointError

NAME = "config.json"


def said_beside(path: Path) -> Mapping[str, Any]:
    """What it says; nothing if there is none.

    Args:
        path: the file of weights.

    Raises:
        CheckpointError: it is no JSON object.
    """
    beside = path.with_name(NAME)
    if not beside.is_file():
        return {}
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{beside}: is not JSON ({error}); correct it or move it away."
        ) from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{beside}: expected an object; correct it or move it away.")
    return said


def whole_number(path: Path, said: Mapping[str, Any], name: str, default: int) -> int:
    """A number above 0 that is said, or the default.

    Raises:
        CheckpointError: something else is said.
    """
    value = said.get(name, default)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{path.with_name(NAME)}: {name} is {value!r}; expected a whole number."
        )
    return value
