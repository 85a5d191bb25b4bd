"""What a run says of itself: tables of metrics, TensorBoard events, pace."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ciper.errors import TrainingError
from ciper.files import written_whole

Metrics = Mapping[str, float]


class Pace:
    """How fast the steps are, smoothed over about the last twenty.

    Args:
        num_pairs: that a step takes.
    """

    def __init__(self, num_pairs: int) -> None:
        self.num_pairs = num_pairs
        self.seconds_per_step = 0.0
        self._last = time.monotonic()

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second."""
        return self.num_pairs / max(self.seconds_per_step, 1e-9)

    def tick(self) -> None:
        """A step was done."""
        now = time.monotonic()
        taken, self._last = now - self._last, now
        weight = 0.05 if self.seconds_per_step else 1.0
        self.seconds_per_step += (taken - self.seconds_per_step) * weight

    def metrics(self, num_steps_left: int) -> dict[str, float]:
        """Pairs per second, and the seconds until the end."""
        eta_s = num_steps_left * self.seconds_per_step
        return {"pairs_per_s": self.pairs_per_s, "eta_s": eta_s}


class MetricsLog:
    """A table of metrics (CSV): every `every` steps a row of means over the steps since the last.

    Rows that lie beyond `start`, the step that the run goes on from, are dropped: they belong to
    steps that are now done again. So is a last row that was being written when its process was
    killed. The seconds go on from the last row.

    Raises:
        TrainingError: the table of the run that goes on is no such table.
    """

    def __init__(self, path: Path, *, start: int = 0, every: int = 20) -> None:
        self.path, self.every = path, every
        self._rows: list[Metrics] = []
        self._step = start
        self._written = self._read(start)
        self._started = time.monotonic()
        if self._written:
            self._started -= self._number(self._written[-1], "seconds")

    def add(self, step: int, row: Metrics) -> dict[str, float] | None:
        """Collects a step; returns the means when a row was written."""
        self._rows.append(row)
        self._step = step
        return None if step % self.every else self.flush()

    def flush(self) -> dict[str, float] | None:
        """Writes and returns the row of the steps since the last one; None if there are none."""
        if not self._rows:
            return None
        count = len(self._rows)
        means = {name: sum(r[name] for r in self._rows) / count for name in self._rows[-1]}
        means = {"step": self._step, "seconds": time.monotonic() - self._started, **means}
        self._rows.clear()
        self._write(means)
        return means

    def _read(self, start: int) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            lines = file.readlines()
        whole = [line for line in lines if line.endswith("\n")]
        written = list(csv.DictReader(whole))
        kept = [row for row in written if self._number(row, "step") <= start]
        if written and (len(kept) < len(written) or len(whole) < len(lines)):
            self._rewrite(kept, list(written[0]))
        return kept

    def _number(self, row: Mapping[str, str], name: str) -> float:
        try:
            return float(row[name])
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"{self.path} has a row with {name} {row.get(name)!r}; expected a number; mend the "
                "table, or move it away to begin another"
            ) from error

    def _write(self, means: Metrics) -> None:
        row = {name: f"{value:.6g}" for name, value in means.items()}
        is_first = not self._written
        known = list(row) if is_first else list(self._written[0])
        self._written.append(row)
        if is_first or set(row) != set(known):
            # Another version wrote the older rows, or another criterion: columns of both.
            self._rewrite(self._written, list(dict.fromkeys([*known, *row])))
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, fieldnames=known).writerow(row)

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        for row in rows:
            row.update({name: "" for name in columns if name not in row})
        with written_whole(self.path) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns)
            writer.writeheader()
            writer.writerows(rows)


class RunLog:
    """All that a run tells while it lasts: `metrics.csv`, `validation.csv` and TensorBoard events.

    Events are written when the package tensorboard is installed; older ones beyond `start` are
    hidden. Whoever saves the run calls `flush`: so every step is in one row, also when the run is
    killed and goes on.

    Args:
        out: RUN folder; None to write nothing.
        start: step that the run goes on from.
    """

    def __init__(self, out: Path | None, start: int) -> None:
        self.latest: dict[str, float] = {}
        self._steps = self._validations = None
        self._write_event: Callable[[str, float, int], None] = _write_nothing
        self._close: Callable[[], None] = _close_nothing
        if out is not None:
            self._steps = MetricsLog(out / "metrics.csv", start=start)
            self._validations = MetricsLog(out / "validation.csv", start=start, every=1)
            self._open_events(out, start)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._close()

    def add_step(self, step: int, row: Metrics) -> None:
        """Collects a step's losses and statistics; writes their means every so often."""
        if self._steps:
            self._tell(self._steps.add(step, row))

    def flush(self) -> dict[str, float]:
        """Writes the means of the steps since the last ones, and returns the latest means."""
        if self._steps:
            self._tell(self._steps.flush())
        return self.latest

    def add_validation(self, step: int, row: Metrics) -> None:
        """Writes the figures of a validation."""
        if self._validations:
            self._validations.add(step, row)
            self._add_events("validation/", step, row)

    def _tell(self, means: dict[str, float] | None) -> None:
        if means is not None:
            self.latest = means
            self._add_events("", int(means["step"]), means)

    def _open_events(self, out: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        writer = SummaryWriter(str(out), purge_step=start + 1 if start else None)
        self._write_event, self._close = writer.add_scalar, writer.close

    def _add_events(self, prefix: str, step: int, row: Metrics) -> None:
        for name, value in row.items():
            self._write_event(prefix + name, value, step)


def _write_nothing(_name: str, _value: float, _step: int) -> None:
    """Where there is no TensorBoard."""


def _close_nothing() -> None:
    """Where there is no TensorBoard."""
