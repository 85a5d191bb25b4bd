"""A cell: one training or one evaluation with all its settings, and the folder that keeps them.

A finished cell is `KEY.json`; a finished training also keeps its weights, `KEY.safetensors`. A
training that was stopped leaves the folder `KEY/`, from which it goes on exactly.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ciper.checkpoint import save_checkpoint
from ciper.errors import OutputError
from ciper.files import written_whole
from ciper.study.config import Condition, StudyConfig

Decoder = Literal["authors", "text", "one_way", "ours"]
Setting = Literal["unknown", "aligned"]
Task = Literal["both", "retrieval", "pose"]
DECODERS: tuple[Decoder, ...] = ("authors", "text", "one_way", "ours")
SETTINGS: tuple[Setting, ...] = ("unknown", "aligned")


@dataclass(frozen=True)
class TrainingCell:
    """One training, measured on the test cities.

    Attributes:
        decoder: of the network.
        setting: of the heading: "unknown", or "aligned" with the camera within 20 m of the centre.
        task: that is trained for.
        num_tokens: one token for both tasks, or two.
        num_pairs: seen.
        num_checks: how often it is measured on the validation cities, the end included.
        lr: learning rate.
        seed: of weights and pairs.
        is_tested: whether it is measured on the test cities; who chooses a learning rate is not.
    """

    decoder: Decoder
    num_pairs: int
    lr: float
    seed: int = 0
    setting: Setting = "unknown"
    task: Task = "both"
    num_tokens: int = 2
    num_checks: int = 1
    is_tested: bool = True

    @property
    def is_reused(self) -> bool:
        """Whether other cells need its weights: swapped tokens and searches do."""
        return self.is_tested and self.setting == "unknown" and self.decoder in ("text", "ours")

    @property
    def title(self) -> str:
        """In a progress bar, and the beginning of the key."""
        lr = f"{self.lr:g}"
        return (
            f"{self.decoder}-{self.setting}-{self.task}-{self.num_tokens}t-"
            f"{self.num_pairs}p-lr{lr}-s{self.seed}"
        )


@dataclass(frozen=True)
class SwapCell:
    """A trained two-token network whose tokens change their tasks at test."""

    trained: TrainingCell

    @property
    def title(self) -> str:
        """As of a training."""
        return f"swap-{self.trained.title}"


@dataclass(frozen=True)
class SearchCell:
    """Two trained networks (or one, twice): the first proposes chips, the second finds the pose."""

    retrieval: TrainingCell
    pose: TrainingCell
    num_shortlist: int

    @property
    def title(self) -> str:
        """As of a training."""
        return f"search{self.num_shortlist}-{self.retrieval.title}-{self.pose.task}"


@dataclass(frozen=True)
class GridCell:
    """A finished model on one simulated city, with one field of view and under one condition."""

    model_hash: str
    city_seed: int
    hfov_deg: int
    heading_prior_deg: int
    condition: Condition

    @property
    def title(self) -> str:
        """As of a training."""
        words = "-".join(self.condition.name.split())
        return f"grid-{self.city_seed}-{self.hfov_deg}deg-prior{self.heading_prior_deg}-{words}"


Cell = TrainingCell | SwapCell | SearchCell | GridCell


@dataclass(frozen=True)
class CellResult:
    """What a finished cell says.

    Attributes:
        metrics: figures by name.
        curve: (pairs seen, validation figures) of a training.
        seconds: of work, in all sittings.
        num_sittings: how often it was taken up.
    """

    metrics: Mapping[str, float]
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()
    seconds: float = 0.0
    num_sittings: int = 1

    @property
    def has_diverged(self) -> bool:
        """Whether a training's loss ceased to be finite: it has no figures and no weights."""
        return "diverged_at_step" in self.metrics


class CellStore:
    """The finished cells of a study.

    Args:
        folder: where they lie; made if absent.
        config: of the study; what it fixes for all cells is part of their keys.
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
        text = json.dumps([type(cell).__name__, asdict(cell), self._shared(cell)], sort_keys=True)
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
            self._known[key] = self._read(path)
        return self._known[key]

    def _read(self, path: Path) -> CellResult:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            curve = tuple((int(pairs), dict(figures)) for pairs, figures in values["curve"])
            return CellResult(values["metrics"], curve, values["seconds"], values["num_sittings"])
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} is damaged ({error}); expected a finished cell: delete it to run it again"
            ) from error

    def put(self, cell: Cell, result: CellResult) -> None:
        """Writes a finished cell, at once or not at all; removes what an unfinished one left."""
        path = self.folder / f"{self.key(cell)}.json"
        values = {
            "kind": type(cell).__name__,
            "settings": asdict(cell),
            "shared": self._shared(cell),
            **asdict(result),
            "hardware": hardware(),
        }
        try:
            with written_whole(path) as unfinished:
                unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); free some space"
            ) from error
        shutil.rmtree(self.run_folder(cell), ignore_errors=True)

    def run_folder(self, cell: Cell) -> Path:
        """Where an unfinished training keeps what it needs to go on."""
        return self.folder / self.key(cell)

    def weights(self, cell: TrainingCell) -> Path:
        """The file of a finished training's weights."""
        return self.folder / f"{self.key(cell)}.safetensors"

    def save_weights(self, cell: TrainingCell, state: Mapping[str, Any]) -> None:
        """Keeps a training's weights for the cells that build on it."""
        named = {f"model.{name}": value for name, value in state.items()}
        save_checkpoint(self.weights(cell), named, {"settings": asdict(cell)})

    def _shared(self, cell: Cell) -> dict[str, Any]:
        """What the study fixes for a kind of cell."""
        config = asdict(self.config)
        if isinstance(cell, GridCell):
            return {"grid": {k: config["grid"][k] for k in ("size_m", "num_photos")}}
        names = ("train", "validation", "test", "trunk", "batch_size")
        return {name: config[name] for name in names}


def hardware() -> dict[str, Any]:
    """What computes, and with which versions."""
    import torch

    from ciper import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
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
