"""Which processor the network runs on, and how many threads the numerical libraries use."""

from __future__ import annotations

import os
import re
import sys

from ciper.errors import DeviceError

DEVICES = ("cpu", "cuda", "mps")


def pick_device(name: str | None = None) -> str:
    """Check a device's name against this machine; None means cuda where there is one, else cpu.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``mps``.

    Raises:
        DeviceError: The name is unknown or the machine has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    parts = re.fullmatch(rf"({'|'.join(DEVICES)})(?::(\d+))?", name)
    if parts is None:
        raise DeviceError(f"device {name!r} is unknown; expected one of {', '.join(DEVICES)}.")
    kind, number = parts.groups(default="0")
    num_present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if int(number) >= num_present:
        raise DeviceError(
            f"device {name!r} is not there: this machine has {num_present} of kind {kind}; "
            "choose another, for example cpu."
        )
    return name


def limit_threads(num_threads: int | None) -> None:
    """Let the numerical libraries use that many threads; None changes nothing.

    Call it before anything numerical is imported: most of them look once, when they are loaded.
    """
    if num_threads is None:
        return
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(num_threads)
    if "numba" not in sys.modules:
        # Numba re-reads this one at every compilation and refuses a change.
        os.environ["NUMBA_NUM_THREADS"] = str(num_threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(num_threads)
