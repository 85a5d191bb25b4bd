"""The folder of a study's cells.

A finished cell is `KEY.json`; some finished trainings also keep their weights, `KEY.safetensors`. A
training that was stopped leaves the folder `KEY/`, from which it goes on exactly. While a process
works on a cell it holds the lock `KEY.lock`, so that several can share a folder. KEY ends in a
hash of all that the cell depends on, as far as it differs from the defaults: a setting that is
new does not change the keys. The file holds the settings in full: where a default has changed
since, the cell is not taken for finished.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ciper.checkpoint import save_checkpoint
from ciper.config import to_dict
from ciper.device import fast_dtype
from ciper.errors import OutputError
from ciper.files import written_whole
from ciper.study.cells import Cell, GridCell, RealCell, SearchCell, SwapCell, TrainingCell
from ciper.study.config import StudyConfig
from ciper.study.networks import recipe

# To be raised when the same weights would get other figures.
MEASURE_VERSION = 1


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What computes on a device, in which precision, and with which versions."""
    import torch

    from ciper import __version__

    is_cuda = torch.device(device).type == "cuda"
    gpu = torch.cuda.get_device_name(device) if is_cuda else None
    return {
        "processor": processor_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "precision": str(fast_dtype(device)).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ciper": __version__,
    }


def processor_name() -> str:
    """The CPU's name as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class CellResult:
    """What a finished cell says.

    Attributes:
        metrics: figures by name.
        curve: (pairs seen, validation figures) of a training.
        seconds: of work, interruptions left out.
        hardware: that finished it.
    """

    metrics: Mapping[str, float]
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()
    seconds: float = 0.0
    hardware: Mapping[str, Any] = field(default_factory=hardware)

    @property
    def has_diverged(self) -> bool:
        """Whether a training's loss ceased to be finite: it has no figures and no weights."""
        return "diverged_at_step" in self.metrics


class CellStore:
    """The finished cells of a study.

    Args:
        folder: where they lie; made if absent.
        config: of the study; what it fixes for a cell is part of its key.
    """

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self.folder, self.config = folder, config
        self._known: dict[str, CellResult] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be made ({error.strerror}); name another --out"
            ) from error

    def key(self, cell: Cell) -> str:
        """A name that says what it is, and a hash of all that it depends on."""
        text = json.dumps(self._contents(cell, changed), sort_keys=True)
        return f"{cell.title[:96]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def result(self, cell: Cell) -> CellResult | None:
        """Of a finished cell, else None.

        Raises:
            OutputError: its file is damaged.
        """
        key = self.key(cell)
        if key not in self._known:
            path = self.folder / f"{key}.json"
            if not path.exists():
                return None
            found = self._read(path, cell)
            if found is None:
                return None
            self._known[key] = found
        return self._known[key]

    def _read(self, path: Path, cell: Cell) -> CellResult | None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            curve = tuple((int(pairs), dict(figures)) for pairs, figures in values["curve"])
            result = CellResult(values["metrics"], curve, values["seconds"], values["hardware"])
            is_same = agree(values["settings"], self._settings(cell))
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is damaged ({error}); expected a finished cell: delete it to run it again"
            ) from error
        return result if is_same else None

    def put(self, cell: Cell, result: CellResult) -> None:
        """Writes a finished cell, at once or not at all; removes what an unfinished one left."""
        path = self.folder / f"{self.key(cell)}.json"
        values = {"settings": self._settings(cell), **asdict(result)}
        try:
            with written_whole(path) as unfinished:
                unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); free some space"
            ) from error
        self._known[self.key(cell)] = result
        shutil.rmtree(self.run_folder(cell), ignore_errors=True)

    @contextmanager
    def claimed(self, cell: Cell) -> Iterator[bool]:
        """Whether the cell is this process's to run until the block ends.

        It is not while another process works on it, nor once it is finished. The system frees the
        lock of a process that was killed.
        """
        path = self.folder / f"{self.key(cell)}.lock"
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield self.result(cell) is None
        finally:
            lock.release()
            # Whoever waits for this file finds the cell finished, or else the file in its place.
            if self.result(cell) is not None:
                path.unlink(missing_ok=True)

    def run_folder(self, cell: Cell) -> Path:
        """Where an unfinished training keeps what it needs to go on."""
        return self.folder / self.key(cell)

    def weights(self, cell: TrainingCell) -> Path:
        """The file of a finished training's weights."""
        return self.folder / f"{self.key(cell)}.safetensors"

    def save_weights(self, cell: TrainingCell, state: Mapping[str, Any]) -> None:
        """Keeps a training's weights for the cells that build on it."""
        named = {f"model.{name}": value for name, value in state.items()}
        save_checkpoint(self.weights(cell), named, {"settings": self._settings(cell)})

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """All that a cell depends on, in full, as JSON has it."""
        settings: dict[str, Any] = json.loads(json.dumps(self._contents(cell, to_dict)))
        return settings

    def _contents(self, cell: Cell, describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """All that a cell depends on; `describe` says what of a dataclass is taken."""
        from ciper.city.parts import CITY_VERSION

        config = self.config
        parts: dict[str, Any] = {
            "kind": type(cell).__name__,
            "city_version": CITY_VERSION,
            "measure_version": MEASURE_VERSION,
        }
        if isinstance(cell, GridCell):
            grid = {k: getattr(config.grid, k) for k in ("size_m", "num_photos", "gsd")}
            return {**parts, "cell": describe(cell), "grid": grid}
        if isinstance(cell, TrainingCell):
            parts |= {"cell": describe(cell), "recipe": describe(recipe(cell, config))}
            parts["validation"] = describe(config.validation)
            if cell.is_tested:
                parts |= {"test": describe(config.test), "num_matched": config.num_matched}
            return parts
        trained = {k: v for k, v in vars(cell).items() if isinstance(v, TrainingCell)}
        assert isinstance(cell, SwapCell | SearchCell | RealCell)
        others = {
            f.name: value
            for f in fields(cell)
            if f.name not in trained
            and ((value := getattr(cell, f.name)) != f.default or describe is not changed)
        }
        return {**parts, **others, **{k: self._contents(t, describe) for k, t in trained.items()}}


def changed(config: Any) -> dict[str, Any]:
    """What of a dataclass differs from its class's defaults; of nested ones likewise."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        make = item.default_factory
        default = item.default if make is MISSING else make()
        if is_dataclass(value) and not isinstance(value, type):
            inside = changed(value)
            if inside or type(value) is not type(default):
                found[item.name] = inside
        elif value != default:
            found[item.name] = value
    return found


def agree(one: Any, other: Any) -> bool:
    """Whether two descriptions say the same where both say something."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(agree(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)
